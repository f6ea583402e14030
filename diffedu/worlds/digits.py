"""1,797 real handwritten digits of 8x8 pixels, shipped with the library.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine
Learning Repository (1998), CC BY 4.0; digits.txt has the whole attribution.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffedu.errors import require, unknown

FILE = Path(__file__).with_name("digits.npz")
SPLITS = ("train", "test", "all")
LEVELS = 17
TEST_SIZE = 500


def load(split: str = "train", *, file: Path | None = None) -> tuple[Tensor, Tensor]:
    """The digits of one fixed split: 1,297 to train on and 500 to test with.

    Args:
        split: "train", "test", or "all" (the original order).
        file: another copy of digits.npz; None is the shipped one.

    Returns:
        images (N, 1, 8, 8) float32 in [-1, 1], ink is 1, with 17 levels 1/8 apart;
        labels (N,) int64.

    Raises:
        ValueError: if the split is unknown or the file is damaged.
        FileNotFoundError: if the file is missing.
    """
    if split not in SPLITS:
        raise unknown(split, SPLITS, "split")
    images, labels, test = _read(FILE if file is None else Path(file))
    chosen = _indices(split, test)
    pixels = torch.from_numpy(images[chosen]).to(torch.float32)[:, None]
    return pixels / 8 - 1, torch.from_numpy(labels[chosen].astype(np.int64))


def _indices(split: str, test: np.ndarray) -> np.ndarray:
    everything = np.arange(1797)
    table = {"all": everything, "test": test, "train": np.setdiff1d(everything, test)}
    return table[split]


def _read(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing; it is part of the package, so install diffedu again"
        )
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = arrays["images"], arrays["labels"], arrays["test"]
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, EOFError) as error:
        raise ValueError(_damaged(file, str(error))) from error
    _check(file, *found)
    return found


def _check(
    file: Path, images: np.ndarray, labels: np.ndarray, test: np.ndarray
) -> None:
    shapes = images.shape, labels.shape, test.shape
    expected = (1797, 8, 8), (1797,), (TEST_SIZE,)
    require(shapes == expected, _damaged(file, f"shapes {shapes}, not {expected}"))
    inside = images.max() < LEVELS and labels.max() < 10 and test.max() < 1797
    require(inside, _damaged(file, "a value lies outside its range"))


def _damaged(file: Path, why: str) -> str:
    return f"{file} is damaged ({why}); it is part of the package: install it again"
