"""Diffusion in latents: a coder in front, a denoiser behind, images on both ends.

A coder is anything with `to_latents(x)`, `to_images(z)` and `latent_shape`, whose
latents have deviation 1: a trained `nets.Autoencoder`, or a `PatchPCA`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from diffedu import losses, samplers
from diffedu.denoiser import DenoiserBase
from diffedu.errors import require
from diffedu.nets.tokens import patchify, unpatchify


class Coder(Protocol):
    """What stands between images and latents."""

    latent_shape: tuple[int, ...]

    def to_latents(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images (B, C, H, W) to standard latents (B, *latent_shape)."""

    def to_images(self, z: Tensor) -> Tensor:
        """Standard latents (B, *latent_shape) to images (B, C, H, W)."""


class PatchPCA(nn.Module):
    """Patches as principal components: a coder that is fitted in one step.

    With all components it is a rotation, and its inverse is exact; with fewer it is
    the best linear autoencoder of patches in squared error.

    Args:
        images: what it is fitted to, (B, C, H, W); H and W are equal.
        patch: side of a patch, divides H.
        components: how many are kept, at most C patch^2; None keeps all.
        whiten: give each component deviation 1. Otherwise one number scales all of
            them: white noise in such latents is white noise in the kept pixels.

    Raises:
        ValueError: if the patch or the components do not fit.
    """

    def __init__(
        self,
        images: Tensor,
        patch: int = 2,
        components: int | None = None,
        whiten: bool = True,
    ) -> None:
        super().__init__()
        self.patch, self.channels = patch, images.shape[1]
        rows = patchify(images.detach(), patch).flatten(0, 1).double()
        size = rows.shape[1]
        components = size if components is None else components
        require(
            isinstance(components, int) and 1 <= components <= size,
            f"a patch has {size} numbers, so components must be 1 to {size}, got "
            f"{components!r}",
        )
        mean = rows.mean(0)
        variance, basis = torch.linalg.eigh((rows - mean).T.cov())
        kept = variance.flip(0)[:components].clamp(min=1e-12)
        std = kept.sqrt() if whiten else kept.mean().sqrt().expand(components)
        grid = images.shape[-1] // patch
        self.latent_shape = (components, grid, grid)
        self.explained = float(kept.sum() / variance.sum())
        self.register_buffer("mean", mean.to(images))
        self.register_buffer("basis", basis.flip(1)[:, :components].T.to(images))
        self.register_buffer("std", std.to(images).clone())

    def to_latents(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents (B, *latent_shape) of images (B, C, H, W); nothing is drawn."""
        tokens = (patchify(x, self.patch) - self.mean) @ self.basis.T / self.std
        return tokens.transpose(1, 2).unflatten(2, self.latent_shape[1:])

    def to_images(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents (B, *latent_shape)."""
        tokens = z.flatten(2).transpose(1, 2) * self.std @ self.basis + self.mean
        return unpatchify(tokens, self.patch, self.channels)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x, (B, C, H, W): its projection on the components."""
        return self.to_images(self.to_latents(x))


class LatentDiffusion(nn.Module):
    """A denoiser of latents between a coder's two ends (2112.10752).

    The coder is frozen; only the denoiser trains.

    Args:
        inner: any denoiser of latents, called with (B, *coder.latent_shape).
        coder: between images and latents; its weights are left alone.

    Raises:
        ValueError: if the coder lacks one of its three parts.
    """

    def __init__(self, inner: DenoiserBase, coder: Coder) -> None:
        super().__init__()
        missing = [
            name
            for name in ("to_latents", "to_images", "latent_shape")
            if not hasattr(coder, name)
        ]
        require(
            not missing, f"a coder needs {', '.join(missing)}; try PatchPCA(images)"
        )
        self.inner = inner
        self._coder = (coder,)  # hidden, so that it is neither trained nor saved here

    @property
    def coder(self) -> Coder:
        """What stands between images and latents."""
        return self._coder[0]

    def loss(
        self, x: Tensor, generator: torch.Generator | None = None, **options: object
    ) -> Tensor:
        """The denoising loss on the latents of images x (B, C, H, W): shape ().

        Args:
            x: clean images.
            generator: source of all randomness, the latents' too.
            options: what `losses.denoising` takes, conditions among them.
        """
        with torch.no_grad():
            z = self.coder.to_latents(x, generator)
        return losses.denoising(self.inner, z, generator=generator, **options)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        times: Tensor,
        sampler: Callable[..., Tensor] = samplers.ddim,
        generator: torch.Generator | None = None,
        **condition: Tensor | None,
    ) -> Tensor:
        """n images: noise of the latents' shape, walked to 0 and decoded.

        Args:
            n: how many.
            times: a falling grid of times, as `samplers.time_grid` makes it.
            sampler: any sampler, called as `sampler(denoise, z, times, **condition)`.
            generator: source of the first noise.
            condition: what the denoiser is told.

        Returns:
            shape (n, C, H, W).
        """
        shape = (n, *self.coder.latent_shape)
        start = self.inner.schedule.prior_sample(shape, times[0], generator)
        return self.coder.to_images(sampler(self.inner, start, times, **condition))
