"""Readers of the real sets, on small files of the same formats made here."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import tarfile

import numpy as np
import pytest
import torch

from diffedu.worlds import readers, real

IDX = ("mnist", "fashion_mnist")


def idx_bytes(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def random_pair(count: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    images.flat[:2] = 0, 255
    return images, rng.integers(0, 10, count)


@pytest.fixture
def mnist(tmp_path):
    """A folder with 7 training and 4 test images; the test files are not packed."""
    for split, count in (("train", 7), ("test", 4)):
        stems = real.REAL_SETS["mnist"].files[split]
        for stem, array in zip(stems, random_pair(count, 28, 28), strict=True):
            content = idx_bytes(array)
            if split == "train":
                (tmp_path / f"{stem}.gz").write_bytes(gzip.compress(content))
            else:
                (tmp_path / stem).write_bytes(content)
    return tmp_path


def old_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """As Python 2 and the NumPy of 2009 wrote CIFAR-10."""
    batch = {b"data": images.reshape(len(images), -1), b"labels": labels.tolist()}
    return pickle.dumps(batch, 2).replace(b"numpy._core", b"numpy.core")


@pytest.fixture
def cifar(tmp_path):
    """A folder with CIFAR-10's archive: five batches of 3 images, a test one of 4."""
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name in [f"data_batch_{k}" for k in range(1, 6)]:
            add(tar, name, old_pickle(*random_pair(3, 3, 32, 32)))
        add(tar, "test_batch", old_pickle(*random_pair(4, 3, 32, 32)))
    return tmp_path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def unpacked(cifar):
    with tarfile.open(cifar / "cifar-10-python.tar.gz") as tar:
        tar.extractall(cifar, filter="data")
    (cifar / "cifar-10-python.tar.gz").unlink()
    return cifar / "cifar-10-batches-py"


def same(pair, wanted) -> bool:
    images, labels = pair
    pixels = np.round((images.numpy() + 1) * 127.5)
    fits = np.array_equal(pixels, wanted[0].reshape(pixels.shape))
    return fits and np.array_equal(labels.numpy(), wanted[1])


@pytest.mark.parametrize("split, count", [("train", 7), ("test", 4)])
@pytest.mark.parametrize("name", IDX)
def test_idx_sets_packed_or_not(mnist, name, split, count):
    images, labels = real.load(name, mnist, split, verify=False)
    assert images.shape == (count, 1, 28, 28) and images.dtype == torch.float32
    assert labels.shape == (count,) and labels.dtype == torch.int64
    assert images.min() == -1 and images.max() == 1
    assert same((images, labels), random_pair(count, 28, 28))


def test_folder_may_be_text_and_limit_takes_the_first(mnist):
    images, labels = real.load("mnist", str(mnist), verify=False, limit=3)
    everything = real.load("mnist", mnist, verify=False)
    assert torch.equal(images, everything[0][:3])
    assert torch.equal(labels, everything[1][:3])


@pytest.mark.parametrize("where", ["archive", "folder", "inside"])
def test_cifar_from_archive_or_folder(cifar, where):
    folder = cifar
    if where != "archive":
        inside = unpacked(cifar)
        folder = inside if where == "inside" else cifar
    images, labels = real.load("cifar10", folder, verify=False)
    assert images.shape == (15, 3, 32, 32) and images.dtype == torch.float32
    one = random_pair(3, 3, 32, 32)
    assert same((images[12:], labels[12:]), one) and same((images[:3], labels[:3]), one)
    pair = real.load("cifar10", folder, "test", verify=False)
    assert same(pair, random_pair(4, 3, 32, 32))


@pytest.mark.parametrize("name", [*IDX, "cifar10"])
def test_missing_folder_says_what_and_where_from(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="nothing is downloaded") as caught:
        real.load(name, tmp_path / "nowhere")
    message = str(caught.value)
    assert "is no folder" in message and real.REAL_SETS[name].origin in message
    assert (
        "cifar-10-python.tar.gz" if name == "cifar10" else "train-images"
    ) in message


def test_missing_file(mnist, cifar):
    (mnist / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no train-labels-idx1-ubyte\.gz"):
        real.load("mnist", mnist, verify=False)
    inside = unpacked(cifar)
    (inside / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="has no data_batch_3"):
        real.load("cifar10", cifar, verify=False)


def test_wrong_checksum(mnist, cifar):
    for name, folder in (
        ("mnist", mnist),
        ("fashion_mnist", mnist),
        ("cifar10", cifar),
    ):
        with pytest.raises(ValueError, match="has the MD5 .* pass verify=False"):
            real.load(name, folder)
    unpacked(cifar)
    with pytest.raises(ValueError, match="data_batch_1 has the MD5"):
        real.load("cifar10", cifar)


@pytest.mark.parametrize("name, split", [("mnist", "train"), ("cifar10", "test")])
def test_right_checksum(mnist, cifar, monkeypatch, name, split):
    sums = {
        path.name: hashlib.md5(path.read_bytes()).hexdigest()
        for path in mnist.iterdir()
        if path.is_file()
    }
    known = dataclasses.replace(real.REAL_SETS[name], md5=sums)
    monkeypatch.setitem(real.REAL_SETS, name, known)
    wanted = real.load(name, mnist, split, verify=False)
    assert torch.equal(real.load(name, mnist, split)[0], wanted[0])


def test_unpacked_idx_cannot_be_verified_and_says_so(mnist):
    with pytest.warns(UserWarning, match="cannot be verified") as caught:
        real.load("mnist", mnist, "test")
    assert caught[0].filename == __file__


def test_published_checksums_are_well_formed_and_complete():
    for chosen in real.REAL_SETS.values():
        assert all(len(bytes.fromhex(s)) == 16 for s in chosen.md5.values())
        wanted = {n for names in chosen.files.values() for n in names}
        assert wanted <= {n.removesuffix(".gz") for n in chosen.md5}
    sums = [s for chosen in real.REAL_SETS.values() for s in chosen.md5.values()]
    assert len(set(sums)) == len(sums) == 15


@pytest.mark.parametrize("keep", [0, 3, 9, 17, 200])
@pytest.mark.parametrize("packed", [False, True])
def test_truncated_idx(tmp_path, keep, packed):
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(idx_bytes(random_pair(3, 28, 28)[0])[:keep])
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match="truncated|no IDX file"):
        readers.read_idx(path)


def test_broken_idx(tmp_path):
    path = tmp_path / "images.gz"
    content = gzip.compress(idx_bytes(random_pair(3, 28, 28)[0]))
    for broken in (content[:-20], b"", content[:100] + b"\xff" * 50 + content[150:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="damaged|truncated|no IDX"):
            readers.read_idx(path)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"damaged or truncated \.gz"):
        readers.read_idx(path)
    plain = tmp_path / "page"
    plain.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="no IDX file of bytes: it starts with"):
        readers.read_idx(plain)
    plain.write_bytes(idx_bytes(np.zeros(3)) + b"more")
    with pytest.raises(ValueError, match="3 bytes, and 7 follow"):
        readers.read_idx(plain)


def test_files_that_do_not_go_together(mnist):
    stem = "train-labels-idx1-ubyte.gz"
    for labels in (np.zeros(3), np.full(7, 11), np.zeros((7, 1))):
        (mnist / stem).write_bytes(gzip.compress(idx_bytes(labels)))
        with pytest.raises(ValueError, match="do not go with labels"):
            real.load("mnist", mnist, verify=False)
    empty = gzip.compress(idx_bytes(np.zeros((0, 28, 28))))
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(empty)
    (mnist / stem).write_bytes(gzip.compress(idx_bytes(np.zeros(0))))
    with pytest.raises(ValueError, match="do not go with labels"):
        real.load("mnist", mnist, verify=False)


class Calls:
    """A pickle of this calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "function, arguments",
    [
        (print, ("this ran",)),
        (os.system, ("true",)),
        (eval, ("1",)),
        (np.fromfile, ("/dev/null",)),
        (codecs.decode, (b"", "zlib")),
    ],
)
def test_pickle_that_calls_is_refused(capsys, protocol, function, arguments):
    images, labels = random_pair(3, 3, 32, 32)
    batch = {b"data": images, b"labels": Calls(function, *arguments)}
    content = pickle.dumps(batch, protocol)
    with pytest.raises(ValueError, match="refused as a CIFAR-10 batch.*asks for"):
        readers.read_cifar_batch(content, "evil")
    assert "this ran" not in capsys.readouterr().out


def test_other_codecs_and_elements_are_refused():
    def refused(value, why):
        with pytest.raises(ValueError, match=why):
            readers.read_cifar_batch(pickle.dumps({b"data": value}, 2), "evil")

    refused(Calls(codecs.encode, "x", "rot13"), "codec 'rot13'")
    refused(np.array([print], dtype=object), "elements of type 'O8'|asks for")
    refused(np.zeros(3072), "elements of type 'f8'")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": 3, b"labels": []}),
        pickle.dumps({b"labels": [1]}),
        old_pickle(*random_pair(3, 3, 32, 32))[:500],
        old_pickle(np.zeros((3, 100), np.uint8), np.zeros(3, int)),
        old_pickle(random_pair(3, 3, 32, 32)[0], np.zeros(2, int)),
    ],
)
def test_damaged_batch(content):
    with pytest.raises(ValueError, match="batch 1 (is refused|has 2 labels)"):
        readers.read_cifar_batch(content, "batch 1")


def test_damaged_archive(cifar):
    archive = cifar / "cifar-10-python.tar.gz"
    content = archive.read_bytes()
    for broken in (content[:-3000], b"", b"<html>404</html>", content[:40]):
        archive.write_bytes(broken)
        with pytest.raises(ValueError, match="damaged or truncated|lacks one"):
            real.load("cifar10", cifar, verify=False)
    with tarfile.open(archive, "w:gz") as tar:
        add(tar, "data_batch_1", b"")
    with pytest.raises(ValueError, match="lacks one of"):
        real.load("cifar10", cifar, "test", verify=False)
    shutil.rmtree(cifar)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        real.load("cifar10", cifar)


def test_unknown_names_and_bad_limits(tmp_path):
    with pytest.raises(
        ValueError, match='"cifar-10" is unknown; did you mean "cifar10"'
    ):
        real.load("cifar-10", tmp_path)
    with pytest.raises(
        ValueError, match='split "tran" is unknown; did you mean "train"'
    ):
        real.load("mnist", tmp_path, "tran")
    for limit in (0, -1, 2.5, "3", True):
        with pytest.raises(ValueError, match="limit is"):
            real.load("mnist", tmp_path, limit=limit)
