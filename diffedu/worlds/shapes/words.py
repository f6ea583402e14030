"""Captions of two to four words, and the attributes that they name.

A caption reads [size] hue shape [place]; the hue and the shape always stand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffedu.errors import lookup, require
from diffedu.worlds.shapes.factors import HUES, hue_bucket
from diffedu.worlds.shapes.outlines import NAMES

SIZES = ("small", "large")
PLACES = ("left", "right", "top", "bottom", "middle")
PADDING = ""
VOCABULARY = (PADDING, *SIZES, *HUES, *NAMES, *PLACES)
LENGTH = 4
_NUMBER = {word: k for k, word in enumerate(VOCABULARY)}


def attributes(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The nameable attributes of each image's object, as whole numbers.

    Args:
        factors: a batch's factors, each (n,).

    Returns:
        "shape", "hue", "size", "place": (n,) int64, places in `NAMES`, `HUES`,
        `SIZES` and `PLACES`.
    """
    x, y = factors["x"], factors["y"]
    sideways = torch.where(x < 0, 0, 1)
    place = torch.where(x.abs() >= y.abs(), sideways, torch.where(y < 0, 2, 3))
    near = torch.maximum(x.abs(), y.abs()) < 0.12
    return {
        "shape": factors["label"],
        "hue": hue_bucket(factors["hue"]),
        "size": (factors["scale"] >= 0.63).long(),
        "place": place.masked_fill(near, 4),
    }


def tokens(named: dict[str, Tensor], says_size: Tensor, says_place: Tensor) -> Tensor:
    """The captions' token ids.

    Args:
        named: the attributes, each (n,) int64.
        says_size, says_place: (n,) bool, whether the optional word stands.

    Returns:
        (n, 4) int64, ids in `VOCABULARY`, 0 where the caption has ended.
    """
    first = torch.tensor([_NUMBER[w[0]] for w in (SIZES, HUES, NAMES, PLACES)])
    columns = [named[k] for k in ("size", "hue", "shape", "place")]
    ids = torch.stack(columns, 1) + first.to(columns[0].device)
    ids[:, 0].masked_fill_(~says_size, 0)
    ids[:, 3].masked_fill_(~says_place, 0)
    # without a size word the others move up by one
    return torch.where(says_size[:, None], ids, ids.roll(-1, 1))


def encode(caption: str) -> Tensor:
    """The token ids of a caption.

    Args:
        caption: up to four words of the vocabulary.

    Returns:
        (4,) int64, padded with 0.

    Raises:
        ValueError: if a word is unknown, or there are more than four.
    """
    words = caption.split()
    require(
        len(words) <= LENGTH,
        f'"{caption}" has {len(words)} words; at most {LENGTH} are accepted',
    )
    known = [lookup(_NUMBER, word, "word") for word in words]
    return torch.tensor(known + [0] * (LENGTH - len(words)))


def decode(ids: Tensor) -> list[str]:
    """The captions of token ids.

    Args:
        ids: (n, 4) or (4,) int64.

    Returns:
        one string a row.

    Raises:
        ValueError: if an id is outside the vocabulary or the shape is another.
    """
    require(
        ids.dim() in (1, 2) and ids.shape[-1] == LENGTH,
        f"expected token ids of shape (n, {LENGTH}), got {tuple(ids.shape)}",
    )
    rows = ids.reshape(-1, LENGTH).tolist()
    wrong = [k for row in rows for k in row if k not in range(len(VOCABULARY))]
    require(not wrong, f"token ids {wrong[:3]} are not in 0..{len(VOCABULARY) - 1}")
    return [" ".join(VOCABULARY[k] for k in row if k) for row in rows]
