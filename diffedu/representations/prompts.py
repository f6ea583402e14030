"""Prompts found by optimisation: word vectors that no caption has, for matching.

One way reads where the network looks for a word (USCSD), the other tunes what it is
told so that its features match better (SD4Match). The network stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffedu import features
from diffedu.errors import require
from diffedu.features.hooks import network_of
from diffedu.nets.captions import Context, Words
from diffedu.representations.correspondence import similarity, standardise
from diffedu.representations.hyperfeatures import matching_loss
from diffedu.representations.keypoints import Pairs
from diffedu.representations.looking import on_grid, watching
from diffedu.tensors import normal_like


def reader_of(denoise: nn.Module) -> Words:
    """The caption encoder of a denoiser's network.

    Raises:
        ValueError: if the network reads no captions.
    """
    words = getattr(getattr(network_of(denoise), "condition", None), "words", None)
    require(
        isinstance(words, Words),
        'this network reads no captions; try recipes.load("shapeworld_unet_words")',
    )
    return words


@contextmanager
def told(denoise: nn.Module, words: Tensor) -> Iterator[None]:
    """Show the network these word vectors in the place of any caption.

    Args:
        denoise: a Denoiser whose network reads captions, or a wrapper of one.
        words: shape (L, width) for all samples, or (B, L, width); gradients reach
            them.

    Raises:
        ValueError: if the network reads no captions, or the width is another.
    """
    reader = reader_of(denoise)
    width = reader.token.embedding_dim
    require(
        words.dim() in (2, 3) and words.shape[-1] == width,
        f"words must be (L, {width}) or (B, L, {width}), got {tuple(words.shape)}",
    )

    def replace(module: nn.Module, inputs: tuple[Any, ...], output: Context) -> Context:
        given = words.expand(len(inputs[0]), -1, -1)
        return Context(given, given.new_ones(given.shape[:2], dtype=torch.bool))

    handle = reader.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def vectors(denoise: nn.Module, caption: Tensor | None = None) -> Tensor:
    """The word vectors of a caption, places included, without gradients.

    Args:
        denoise: a Denoiser whose network reads captions.
        caption: token ids (L,), no zeros between or after; None is the null token.

    Returns:
        shape (L, width), (1, width) for None.
    """
    reader = reader_of(denoise)
    one = reader.token.weight.new_zeros(1, 1)
    with torch.no_grad():
        return reader(one, None if caption is None else caption[caption > 0]).words[0]


def attention_maps(
    denoise: nn.Module, x: Tensor, t: float | Tensor, block: str, words: Tensor
) -> Tensor:
    """Where each word is looked at: the maps of one block's cross-attention.

    Args:
        denoise: a Denoiser whose network reads captions.
        x: noisy images, (B, C, s, s).
        t: their time.
        block: a block with cross-attention, such as "up.1".
        words: shape (L, width) or (B, L, width).

    Returns:
        shape (B, L, h, w), averaged over heads; at each place the words' shares sum
        to 1.

    Raises:
        ValueError: if the block has no cross-attention, or as `told`.
    """
    name = f"{block}.cross.attend"
    with told(denoise, words), watching(denoise, [name]) as seen:
        denoise(x, t)
    return on_grid(seen[name])


def bumps(points: Tensor, grid: int, width: float = 0.25) -> Tensor:
    """A Gaussian bump of height 1 at each point.

    Args:
        points: (x, y) in [-1, 1], shape (N, K, 2).
        grid: pixels a side.
        width: standard deviation of the bump, in the units of the points.

    Returns:
        shape (N, K, grid, grid).
    """
    centres = (2 * torch.arange(grid, device=points.device) + 1) / grid - 1
    x = centres - points[..., 0, None]  # (N, K, grid)
    y = centres - points[..., 1, None]
    far = x.square()[:, :, None, :] + y.square()[:, :, :, None]
    return (-far / (2 * width**2)).exp()


def find_words(
    denoise: nn.Module,
    images: Tensor,
    points: Tensor,
    t: float,
    block: str = "up.1",
    *,
    steps: int = 40,
    lr: float = 0.1,
    width: float = 0.25,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Word vectors that are looked at from given points, a word for each point.

    The squared distance between each word's map and a bump at its point falls, under
    fresh noise at each step. The null token stands last and takes what is left.

    Args:
        denoise: a Denoiser whose network reads captions; its weights stay.
        images: clean, shape (N, C, s, s).
        points: shape (N, K, 2).
        t: the time.
        block: a block with cross-attention.
        steps: of Adam.
        lr: its rate.
        width: of the bumps.
        generator: source of the first vectors and of the noise.

    Returns:
        shape (N, K + 1, width of a word).

    Raises:
        ValueError: as `attention_maps`.

    Source: argmin_e |A(x; e) - G(p)|^2 (arXiv 2305.15581), where each point has a run
    of its own; here the points of an image share one caption.
    """
    n, k = points.shape[:2]
    rest = vectors(denoise).expand(n, 1, -1)
    start = 0.1 * normal_like(rest.expand(n, k, -1), generator)
    words = (rest + start).clone().requires_grad_()
    optimiser = torch.optim.Adam([words], lr=lr)
    for _ in range(steps):
        noisy = _noised(denoise, images, t, generator)
        given = torch.cat([words, rest], 1)
        maps = attention_maps(denoise, noisy, t, block, given)[:, :k]
        loss = (maps - bumps(points, maps.shape[-1], width)).square().mean((2, 3)).sum()
        optimiser.zero_grad()
        loss.backward(inputs=[words])
        optimiser.step()
    return torch.cat([words.detach(), rest], 1)


def tune_prompt(
    denoise: nn.Module,
    pairs: Pairs,
    t: float,
    block: str,
    start: Tensor,
    *,
    steps: int = 30,
    batch: int = 8,
    lr: float = 0.03,
    grid: int = 16,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Word vectors under which the features of labelled pairs match best.

    Args:
        denoise: a Denoiser whose network reads captions; its weights stay.
        pairs: labelled pairs.
        t: the time.
        block: whose features are matched.
        start: the vectors to begin with, (L, width), such as `vectors(denoise)`.
        steps: of Adam.
        batch: pairs a step.
        lr: its rate.
        grid: pixels a side on which the loss compares.
        generator: source of the batches and of the noise.

    Returns:
        shape (L, width).

    Raises:
        ValueError: as `told`.

    Source: cross-entropy of softmax(F_A F_B / tau) (arXiv 2310.17569); one prompt for
    all pairs, its simplest form.
    """
    words = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([words], lr=lr)
    for _ in range(steps):
        some = pairs[torch.randperm(len(pairs), generator=generator)[:batch]]
        noisy = _noised(denoise, some.both, t, generator)
        with told(denoise, words), features.record(denoise, [block]) as seen:
            denoise(noisy, t)
        a, b = standardise(seen[block]).chunk(2)
        scores = similarity(a, b, some.points, grid)
        loss = matching_loss(scores, some.truth, some.symmetry)
        optimiser.zero_grad()
        loss.backward(inputs=[words])
        optimiser.step()
    return words.detach()


def _noised(
    denoise: nn.Module, x0: Tensor, t: float, generator: torch.Generator | None
) -> Tensor:
    """Images (N, C, s, s) at time t, with fresh noise."""
    return denoise.schedule.add_noise(x0, t, normal_like(x0, generator))
