"""The shipped digits: the same as the source, split once for all, offline."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from diffedu.worlds import digits


def hashes(images: torch.Tensor) -> set[str]:
    return {hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in images}


@pytest.mark.parametrize("split, count", [("train", 1297), ("test", 500)])
def test_shapes_levels_and_balance(split, count):
    images, labels = digits.load(split)
    assert images.shape == (count, 1, 8, 8) and images.dtype == torch.float32
    assert labels.shape == (count,) and labels.dtype == torch.int64
    assert torch.equal(images.unique(), torch.arange(17) / 8 - 1)
    share = labels.bincount(minlength=10) / count
    assert share.numel() == 10 and ((share - 0.1).abs() < 0.006).all()


def test_splits_share_no_image_and_are_everything():
    train, test = (hashes(digits.load(split)[0]) for split in ("train", "test"))
    assert len(train) == 1297 and len(test) == 500
    assert not train & test
    assert train | test == hashes(digits.load("all")[0])


def test_split_never_moves():
    chosen = np.load(digits.FILE)["test"].astype("<u2").tobytes()
    assert hashlib.sha256(chosen).hexdigest().startswith("59746188847afe89")


def test_equal_to_the_source():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = digits.load("all")
    assert np.array_equal((images[:, 0].numpy() + 1) * 8, source.images)
    assert np.array_equal(labels.numpy(), source.target)


def test_small_and_attributed():
    assert digits.FILE.stat().st_size < 50_000
    text = digits.FILE.with_suffix(".txt").read_text()
    assert "CC BY 4.0" in text and "Alpaydin" in text and "UCI" in text


def test_unknown_split():
    with pytest.raises(ValueError, match='split "tset" is unknown; did you mean'):
        digits.load("tset")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.*install diffedu again"):
        digits.load(file=tmp_path / "digits.npz")


@pytest.mark.parametrize("keep", [0, 10, 20_000, 46_000])
def test_truncated_file(tmp_path, keep):
    broken = tmp_path / "digits.npz"
    broken.write_bytes(digits.FILE.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is damaged"):
        digits.load(file=broken)


def test_flipped_byte(tmp_path):
    content = bytearray(digits.FILE.read_bytes())
    content[20_000] ^= 255
    broken = tmp_path / "digits.npz"
    broken.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        digits.load(file=broken)


def good() -> dict[str, np.ndarray]:
    with np.load(digits.FILE) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.zeros((1797, 64), np.uint8)},
        {"labels": np.zeros(3, np.uint8)},
        {"labels": np.full(1797, 12, np.uint8)},
        {"images": np.full((1797, 8, 8), 17, np.uint8)},
        {"test": np.full(500, 1797, np.uint16)},
    ],
)
def test_wrong_content(tmp_path, change):
    np.savez(tmp_path / "digits.npz", **(good() | change))
    with pytest.raises(ValueError, match="is damaged"):
        digits.load(file=tmp_path / "digits.npz")


def test_array_missing_or_pickled(tmp_path):
    arrays = good()
    del arrays["test"]
    np.savez(tmp_path / "digits.npz", **arrays)
    with pytest.raises(ValueError, match="is damaged"):
        digits.load(file=tmp_path / "digits.npz")
    np.savez(tmp_path / "digits.npz", **arrays, test=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="is damaged"):
        digits.load(file=tmp_path / "digits.npz")
