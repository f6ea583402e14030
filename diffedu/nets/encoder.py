"""A small residual network that reads an image: labels, or features without labels.

It is the course's stand-in for a supervised classifier and for a self-supervised
teacher. It knows nothing of noise: it is called as `net(x)`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.errors import require
from diffedu.nets.attention import group_norm
from diffedu.nets.autoencoder import ResidualBlock
from diffedu.nets.conditions import require_input, require_positive

MULTIPLIERS = (1, 2, 4)  # channels of the stages, in widths; each halves the grid
HALVINGS = len(MULTIPLIERS)


class Encoder(nn.Module):
    """A residual network for small images, whose grid halves from stage to stage.

    Stage i has `width * (1, 2, 4)[i]` channels on a grid of size / 2^(i + 1); the
    first halving comes with the first convolution. It has no batch statistics, so
    each image is read alone. The defaults have 0.5 M parameters.

    Args:
        channels: channels of an image.
        size: height and width of an image in pixels, a multiple of 8.
        width: channels of the first stage.
        outputs: numbers to answer, such as one a class; None answers the features.

    Raises:
        ValueError: if a number is not positive, or 8 does not divide the size.
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        width: int = 32,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        require_positive(channels=channels, size=size, width=width)
        require(
            size % 2**HALVINGS == 0,
            f"size {size} cannot be halved {HALVINGS} times; take a multiple of "
            f"{2**HALVINGS}, such as 32",
        )
        self.channels, self.size, self.dim = channels, size, width * MULTIPLIERS[-1]
        self.stem = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.stage = nn.ModuleList([ResidualBlock(width)])
        for before, after in zip(MULTIPLIERS, MULTIPLIERS[1:], strict=False):
            halve = nn.Conv2d(width * before, width * after, 3, stride=2, padding=1)
            self.stage.append(nn.Sequential(halve, ResidualBlock(width * after)))
        self.norm = group_norm(self.dim)
        self.head = None
        if outputs is not None:
            require_positive(outputs=outputs)
            self.head = nn.Linear(self.dim, outputs)

    def blocks(self) -> list[str]:
        """Names of the modules whose outputs are the hidden states, in order."""
        return [f"stage.{i}" for i in range(len(self.stage))]

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """The hidden states of images x (B, channels, size, size), by name.

        Returns:
            for each of `blocks()` a tensor (B, C, H, W).

        Raises:
            ValueError: if x has another shape, dtype or device.
        """
        require_input(x, (self.channels, self.size, self.size), self.stem.weight)
        h, seen = self.stem(x), {}
        for name, stage in zip(self.blocks(), self.stage, strict=True):
            h = seen[name] = stage(h)
        return seen

    def features(self, x: Tensor) -> Tensor:
        """One vector an image: the last stage, averaged over the grid, (B, dim).

        Args, Raises: as `stages`.
        """
        last = self.stages(x)[self.blocks()[-1]]
        return F.silu(self.norm(last)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, outputs) of images x; features (B, dim) if it has no outputs.

        Args, Raises: as `stages`.
        """
        features = self.features(x)
        return features if self.head is None else self.head(features)


def classification_loss(
    net: nn.Module,
    x0: Tensor,
    label: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean cross-entropy of what a network says of images, in nats.

    Args:
        net: answers logits (B, K) of images.
        x0: images, (B, C, H, W).
        label: classes, (B,) int64.
        generator: unused, for this loss draws nothing; here for one call of all losses.

    Returns:
        shape ().
    """
    return F.cross_entropy(net(x0), label)
