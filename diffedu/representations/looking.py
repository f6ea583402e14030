"""Where words look: maps of cross-attention, drawn as pictures and edited."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.errors import require, require_same_shape
from diffedu.features.hooks import Change, edit, network_of
from diffedu.nets.attention import Attend
from diffedu.nets.captions import CrossAttention


def products(denoise: nn.Module, kind: type[nn.Module]) -> list[str]:
    """The names of the attention products (modules `attend`) in layers of one kind.

    Args:
        denoise: a Denoiser, or a wrapper of one.
        kind: SelfAttention or CrossAttention.
    """
    modules = network_of(denoise).named_modules()
    return [f"{name}.attend" for name, module in modules if isinstance(module, kind)]


@contextmanager
def watching(
    denoise: nn.Module, layers: Sequence[str] | None = None
) -> Iterator[dict[str, Tensor]]:
    """The weights of cross-attention in every call made inside the `with`.

    Args:
        denoise: a Denoiser of a network with cross-attention.
        layers: attention products, such as "up.1.cross.attend"; None is all.

    Yields:
        by layer the weights of the last call, (B, heads, N, L), gradients included.

    Raises:
        ValueError: if the network has no cross-attention, or a layer is unknown.
    """
    names = products(denoise, CrossAttention) if layers is None else list(layers)
    require(bool(names), "this network reads no captions: it has no cross-attention")
    seen: dict[str, Tensor] = {}

    def listener(name: str) -> Change:
        def listen(h: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            seen[name] = Attend.weights(q, k, mask)
            return h

        return listen

    with edit(denoise, {name: listener(name) for name in names}):
        yield seen


def on_grid(weights: Tensor) -> Tensor:
    """Attention weights (B, heads, N, L) as maps of words, (B, L, h, h), N = h^2.

    The mean over heads; at each place the words' shares sum to 1.

    Raises:
        ValueError: if N is no square number.
    """
    side = math.isqrt(weights.shape[2])
    require(side**2 == weights.shape[2], f"{weights.shape[2]} places are no square")
    return weights.mean(1).transpose(1, 2).unflatten(2, (side, side))


def word_maps(
    denoise: nn.Module, x_t: Tensor, t: float | Tensor, caption: Tensor
) -> dict[str, Tensor]:
    """Where each word of a caption is looked at from, layer by layer.

    Args:
        denoise: a Denoiser of a network with cross-attention.
        x_t: noisy images, shape (B, C, s, s).
        t: their time, shape () or (B,).
        caption: token ids, (B, L).

    Returns:
        for each product, as "up.1.cross.attend", the mean over its heads,
        (B, L, h, w); the words share the 1 of each place.

    Raises:
        ValueError: if the network reads no captions.
    """
    with watching(denoise) as seen:
        denoise(x_t, t, caption=caption)
    return {name: on_grid(weights) for name, weights in seen.items()}


def as_pictures(maps: Sequence[Tensor], size: int) -> Tensor:
    """The mean of attention maps over heads and layers, one picture a word.

    Args:
        maps: weights of each layer, (B, heads, N, L), N a square number.
        size: pixels a side of the pictures.

    Returns:
        (B, L, size, size); at each pixel the words' shares sum to 1.

    Raises:
        ValueError: if there are no maps, or N is no square number.

    Source: the average of (arXiv 2208.01626, section 3).
    """
    require(len(maps) > 0, "no map was seen")
    total = 0.0
    for words in map(on_grid, maps):
        total = total + F.interpolate(words, size=(size, size), mode="bilinear")
    return total / len(maps)


@torch.no_grad()
def attention_maps(
    denoise: nn.Module,
    x: Tensor,
    t: float | Tensor,
    caption: Tensor,
    blocks: Sequence[str] | None = None,
) -> Tensor:
    """Where each word of a caption is looked at from, while x_t is denoised.

    Args:
        denoise: a Denoiser of a network with cross-attention.
        x: noisy images x_t, (B, C, s, s).
        t: their time, shape () or (B,).
        caption: token ids, (B, L).
        blocks: cross-attention products, such as "up.1.cross.attend"; None is all.

    Returns:
        (B, L, s, s), the mean over heads and blocks; words share each pixel's 1.

    Raises:
        ValueError: if the network has no cross-attention, or a block is unknown.
    """
    with watching(denoise, blocks) as seen:
        denoise(x, t, caption=caption)
    return as_pictures(list(seen.values()), x.shape[-1])


def unmoved(source: Tensor, edited: Tensor) -> Tensor:
    """Which source word each edited word stands for: the one at its own place.

    Args:
        source: token ids, (B, L) int64; 0 is no word.
        edited: token ids, (B, L) int64.

    Returns:
        (B, L) int64, the source's place for each place of the edited caption.

    Raises:
        ValueError: if the captions of a pair differ in length.

    Source: (arXiv 2208.01626, section 3.2, word swap).
    """
    require_same_shape(source, edited, "source and edited")
    same = bool(((source > 0) == (edited > 0)).all())
    require(same, 'swapped captions need equal lengths; try alignment="refine"')
    return torch.arange(source.shape[1], device=source.device).expand_as(source)


def same_word(source: Tensor, edited: Tensor) -> Tensor:
    """Which source word each edited word is: -1 for a word that the source lacks.

    A word that the source holds twice is taken for its first occurrence.

    Args:
        source: token ids, (B, L) int64; 0 is no word.
        edited: token ids, (B, L) int64.

    Returns:
        (B, L) int64, places of the source, or -1.

    Source: the alignment A of (arXiv 2208.01626, section 3.2, adding a new phrase).
    """
    require_same_shape(source, edited, "source and edited")
    equal = (edited[:, :, None] == source[:, None, :]) & (edited > 0)[:, :, None]
    return torch.where(equal.any(2), equal.int().argmax(2), -1)


ALIGNMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "swap": unmoved,
    "refine": same_word,
}


def edited_maps(
    source: Tensor, edited: Tensor, alignment: Tensor, factors: Tensor | None = None
) -> Tensor:
    """The attention maps of an edited picture: the source's where a word is shared.

    Rows need not sum to 1 any more; the paper leaves them so.

    Args:
        source: maps of the source, (B, heads, N, L).
        edited: maps of the edited picture itself, (B, heads, N, L).
        alignment: place of each word in the source, (B, L) int64; -1 keeps its own map.
        factors: strength of each word of the edited caption, (L,) or (B, L).

    Returns:
        (B, heads, N, L).

    Source: the three Edit functions of (arXiv 2208.01626, section 3.2).
    """
    require_same_shape(source, edited, "source and edited")
    place = alignment[:, None, None, :]
    kept = source.gather(-1, place.clamp(min=0).expand_as(source))
    maps = torch.where(place >= 0, kept, edited)
    if factors is None:
        return maps
    factors = factors.to(maps)
    return maps * (factors if factors.dim() == 1 else factors[:, None, None, :])
