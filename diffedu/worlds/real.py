"""MNIST, Fashion-MNIST and CIFAR-10 from their standard files, never downloaded.

The reader names the folder. IDX files may be packed (.gz) or not; CIFAR's pickles
are read from the .tar.gz or from its folder, and may build nothing but byte arrays.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffedu.errors import lookup, require, unknown
from diffedu.worlds.readers import Pair, parse_idx, read_cifar_batch, read_members

SPLITS = ("train", "test")


@dataclass(frozen=True)
class RealSet:
    """Where a set comes from and what its files are.

    Args:
        origin: where its authors publish it.
        read: the function of (set, folder, split, verify) that reads it.
        files: split to file names; for CIFAR-10 names inside the archive.
        md5: file name to the published checksum.
    """

    origin: str
    read: Callable[[RealSet, Path, str, bool], Pair]
    files: dict[str, tuple[str, ...]]
    md5: dict[str, str]


def load(
    name: str,
    folder: str | Path,
    split: str = "train",
    *,
    verify: bool = True,
    limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """One split of a real set, from files that the reader put into a folder.

    All of CIFAR-10's training images take 0.6 GB as float32; `limit` takes fewer.

    Args:
        name: "mnist", "fashion_mnist" or "cifar10".
        folder: where the standard files lie.
        split: "train" or "test".
        verify: compare each file with its published MD5. IDX files that are no
            longer packed have none; a warning says so.
        limit: only the first so many images; None is all.

    Returns:
        images (N, C, H, W) float32 in [-1, 1]; labels (N,) int64.

    Raises:
        FileNotFoundError: if the folder or a file is missing.
        ValueError: if a name is unknown or a file is truncated, damaged or another.
    """
    chosen = lookup(REAL_SETS, name, "set")
    if split not in SPLITS:
        raise unknown(split, SPLITS, "split")
    require(
        limit is None or (type(limit) is int and limit >= 1),
        f"limit is {limit!r}; it must be None or a whole number from 1 up",
    )
    images, labels = chosen.read(chosen, Path(folder), split, verify)
    _check_pair(images, labels, f"{name} in {folder}")
    pixels = torch.from_numpy(images[:limit].copy()).to(torch.float32)
    return pixels.div_(127.5).sub_(1), torch.from_numpy(labels[:limit].astype(np.int64))


def _check_pair(images: np.ndarray, labels: np.ndarray, what: str) -> None:
    fits = images.ndim == 4 and labels.shape == images.shape[:1] and len(labels) > 0
    require(
        fits and labels.max() < 10,
        f"{what}: images of shape {images.shape} do not go with labels of shape "
        f"{labels.shape} from 0 to 9; are the files of one set and split?",
    )


def _missing(chosen: RealSet, folder: Path, wanted: str) -> FileNotFoundError:
    what = "has no" if folder.is_dir() else "is no folder; it should hold"
    return FileNotFoundError(
        f"{folder} {what} {wanted}. The set is published at {chosen.origin}; "
        "nothing is downloaded here: put its files there, names unchanged"
    )


def _check_sum(chosen: RealSet, path: Path, content: bytes) -> None:
    wanted = chosen.md5[path.name]
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    require(
        found == wanted,
        f"{path} has the MD5 {found}, but the published file has {wanted}: it is "
        "damaged or of another set; fetch it again, or pass verify=False",
    )


def _read_idx_set(chosen: RealSet, folder: Path, split: str, verify: bool) -> Pair:
    images, labels = (
        _one_idx(chosen, folder, stem, verify) for stem in chosen.files[split]
    )
    return images[:, None] if images.ndim == 3 else images, labels


def _one_idx(chosen: RealSet, folder: Path, stem: str, verify: bool) -> np.ndarray:
    packed, plain = folder / f"{stem}.gz", folder / stem
    path = packed if packed.is_file() else plain
    if not path.is_file():
        raise _missing(chosen, folder, f"{packed.name} (or {stem})")
    content = path.read_bytes()
    if verify and path == plain:
        warnings.warn(
            f"{plain} cannot be verified: only its .gz has a published checksum; "
            "verify=False says that this is known",
            stacklevel=5,
        )
    elif verify:
        _check_sum(chosen, path, content)
    return parse_idx(path, content)


def _read_cifar(chosen: RealSet, folder: Path, split: str, verify: bool) -> Pair:
    archive = folder / _ARCHIVE
    places = folder / _INSIDE, folder
    unpacked = [p for p in places if (p / chosen.files[split][0]).is_file()]
    if unpacked:
        contents = _from_folder(chosen, unpacked[0], split, verify)
    elif archive.is_file():
        contents = _from_archive(chosen, archive, split, verify)
    else:
        raise _missing(chosen, folder, f"{_ARCHIVE} (or the folder {_INSIDE})")
    pairs = [read_cifar_batch(content, what) for what, content in contents]
    images, labels = zip(*pairs, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _from_folder(
    chosen: RealSet, folder: Path, split: str, verify: bool
) -> list[tuple[str, bytes]]:
    found = []
    for path in (folder / name for name in chosen.files[split]):
        if not path.is_file():
            raise _missing(chosen, folder, path.name)
        found.append((str(path), path.read_bytes()))
        if verify:
            _check_sum(chosen, path, found[-1][1])
    return found


def _from_archive(
    chosen: RealSet, archive: Path, split: str, verify: bool
) -> list[tuple[str, bytes]]:
    content = archive.read_bytes()
    if verify:
        _check_sum(chosen, archive, content)
    names = [f"{_INSIDE}/{name}" for name in chosen.files[split]]
    whats = [f"{archive}: {name}" for name in names]
    return list(zip(whats, read_members(archive, content, names), strict=True))


_ARCHIVE, _INSIDE = "cifar-10-python.tar.gz", "cifar-10-batches-py"
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def _idx_sums(*sums: str) -> dict[str, str]:
    names = [f"{stem}.gz" for stems in _IDX_FILES.values() for stem in stems]
    return dict(zip(names, sums, strict=True))


REAL_SETS = {
    "mnist": RealSet(
        "yann.lecun.com/exdb/mnist",
        _read_idx_set,
        _IDX_FILES,
        _idx_sums(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion_mnist": RealSet(
        "github.com/zalandoresearch/fashion-mnist",
        _read_idx_set,
        _IDX_FILES,
        _idx_sums(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "cifar10": RealSet(
        "www.cs.toronto.edu/~kriz/cifar.html",
        _read_cifar,
        {
            "train": tuple(f"data_batch_{k}" for k in range(1, 6)),
            "test": ("test_batch",),
        },
        {
            _ARCHIVE: "c58f30108f718f92721af3b95e74349a",
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
}
