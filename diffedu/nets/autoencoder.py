"""A convolutional autoencoder: images become smaller grids in which diffusion is cheap.

It is a variational one with a light pull towards N(0, I), as in latent diffusion
(2112.10752, section 3.1), without its perceptual and adversarial losses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.errors import require
from diffedu.nets.attention import group_norm
from diffedu.nets.conditions import require_input, require_positive, zero_
from diffedu.nets.unet import Grow
from diffedu.tensors import batch_mean, normal_like

FACTORS = (1, 2, 4, 8)


class ResidualBlock(nn.Module):
    """Two convolutions around which h passes; nobody tells it the time.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(channels), group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zero_(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        inner = self.conv1(F.silu(self.norm1(h)))
        return h + self.conv2(F.silu(self.norm2(inner)))


class Autoencoder(nn.Module):
    """Images to Gaussian latents on a grid `factor` times smaller, and back.

    `encode` and `decode` work with raw latents. `to_latents` and `to_images` work
    with standardised ones: `standardise_(images)` measures mean and deviation of
    each channel once, and both are saved with the weights.

    Args:
        channels: channels of an image.
        size: height and width of an image in pixels.
        factor: how many times smaller the latent grid is: 1, 2, 4 or 8.
        latent_channels: channels of a latent.
        width: channels inside.

    Raises:
        ValueError: if the factor is another, or does not divide the size.
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 16,
        factor: int = 2,
        latent_channels: int = 4,
        width: int = 32,
    ) -> None:
        super().__init__()
        require_positive(channels=channels, size=size, width=width)
        require_positive(latent_channels=latent_channels)
        require(factor in FACTORS, f"factor {factor!r} is not one of {FACTORS}")
        require(size % factor == 0, f"factor {factor} does not divide size {size}")
        self.channels, self.size, self.factor = channels, size, factor
        self.latent_shape = (latent_channels, size // factor, size // factor)
        halvings = FACTORS.index(factor)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            ResidualBlock(width),
            *(layer for _ in range(halvings) for layer in _halve(width)),
            *_read(width, 2 * latent_channels),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, width, 3, padding=1),
            ResidualBlock(width),
            *(layer for _ in range(halvings) for layer in _double(width)),
            *_read(width, channels),
        )
        self.register_buffer("mean", torch.zeros(latent_channels))
        self.register_buffer("std", torch.ones(latent_channels))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the raw latent, each (B, *latent_shape).

        Args:
            x: shape (B, channels, size, size).

        Raises:
            ValueError: if x has another shape, dtype or device.
        """
        require_input(x, (self.channels, self.size, self.size), self.mean)
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, channels, size, size) of raw latents z (B, *latent_shape)."""
        require_input(z, self.latent_shape, self.mean)
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x, through the mean: shape of x."""
        return self.decode(self.encode(x)[0])

    @torch.no_grad()
    def standardise_(self, images: Tensor) -> Autoencoder:
        """Measure the latents of images (B, channels, size, size), after training.

        LDM divides by one number (2112.10752, appendix G); here each channel has its
        mean and deviation. The deviation counts the spread of each latent too.

        Returns:
            the autoencoder.
        """
        mean, log_variance = self.encode(images)
        self.mean.copy_(mean.mean((0, 2, 3)))
        spread = mean.var((0, 2, 3)) + log_variance.exp().mean((0, 2, 3))
        self.std.copy_(spread.sqrt())
        return self

    def to_latents(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Standardised latents of images x: drawn if there is a generator, else means.

        Returns:
            shape (B, *latent_shape); mean 0 and deviation 1 on what was measured.
        """
        z, log_variance = self.encode(x)
        if generator is not None:
            z = z + (log_variance / 2).exp() * normal_like(z, generator)
        return (z - self.mean[:, None, None]) / self.std[:, None, None]

    def to_images(self, z: Tensor) -> Tensor:
        """Images (B, channels, size, size) of standard latents (B, *latent_shape)."""
        require_input(z, self.latent_shape, self.mean)
        return self.decode(z * self.std[:, None, None] + self.mean[:, None, None])


def autoencoder_loss(
    net: Autoencoder,
    x: Tensor,
    kl_weight: float = 1e-3,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Squared error of the reconstruction plus a light pull towards N(0, I).

    Args:
        net: the autoencoder.
        x: images, (B, C, H, W).
        kl_weight: weight of the KL divergence, which is counted in nats for each
            number of the image.
        per_sample: answer (B,) instead of the mean over the batch.
        generator: source of the latents' noise.

    Returns:
        shape (), or (B,).

    Raises:
        ValueError: if `kl_weight` is negative, or x does not fit.
    """
    require(kl_weight >= 0, f"kl_weight must be 0 or more, got {kl_weight}")
    mean, log_variance = net.encode(x)
    z = mean + (log_variance / 2).exp() * normal_like(mean, generator)
    error = batch_mean((net.decode(z) - x).square())
    nats = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
    loss = error + kl_weight * nats.flatten(1).sum(1) / x[0].numel()
    return loss if per_sample else loss.mean()


def _halve(width: int) -> list[nn.Module]:
    stride = nn.Conv2d(width, width, 3, stride=2, padding=1)
    return [stride, ResidualBlock(width)]


def _double(width: int) -> list[nn.Module]:
    return [Grow(width, width), ResidualBlock(width)]


def _read(width: int, outputs: int) -> list[nn.Module]:
    last = nn.Conv2d(width, outputs, 3, padding=1)
    return [group_norm(width), nn.SiLU(), last]
