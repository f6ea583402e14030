"""A zero-initialised control branch: a trainable copy of a frozen U-Net's encoder."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.denoiser import Denoiser
from diffedu.errors import require
from diffedu.guidance.base import Guidance
from diffedu.nets.conditions import zero_
from diffedu.nets.unet import UNet
from diffedu.prediction import Prediction


class ControlledUNet(nn.Module):
    """A frozen U-Net with a copy of its encoder beside it, joined by zero convolutions.

    The copy sees x plus what a small net makes of the hint. Its hidden states pass
    through convolutions of zeros, and are added where the frozen decoder takes the
    frozen encoder's. So it starts as the U-Net itself, bit by bit.

    Args:
        net: a trained U-Net; its weights are frozen.
        hint_channels: channels of the hint.
        hint_width: channels inside the net that reads the hint.

    Source: (arXiv 2302.05543, eq. 2 and figure 3).
    """

    def __init__(self, net: UNet, hint_channels: int, hint_width: int = 16) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self.condition, self.stem = deepcopy(net.condition), deepcopy(net.stem)
        self.down, self.middle = deepcopy(net.down), deepcopy(net.middle)
        copies = (self.condition, self.stem, self.down, self.middle)
        for part in copies:
            part.requires_grad_(True)
        widths = [block.conv2.out_channels for block in self.down]
        self.read = nn.Sequential(
            nn.Conv2d(hint_channels, hint_width, 3, padding=1),
            nn.SiLU(),
            zero_(nn.Conv2d(hint_width, self.stem.out_channels, 3, padding=1)),
        )
        self.zero = nn.ModuleList(zero_(nn.Conv2d(c, c, 1)) for c in widths)
        last = self.middle.conv2.out_channels
        self.zero_middle = zero_(nn.Conv2d(last, last, 1))

    def controls(
        self,
        x: Tensor,
        t: Tensor,
        hint: Tensor,
        label: Tensor | None = None,
        keep: Tensor | None = None,
        caption: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """What is added to each skip connection, and to the middle.

        Args:
            x: shape (B, channels, size, size).
            t: shape (B,) or ().
            hint: shape (B, hint_channels, size, size).
            label: class numbers, (B,) or ().
            keep: who keeps its label and its caption, (B,) bool.
            caption: token ids, (B, L) or (L,).

        Raises:
            ValueError: if the hint is no picture of x's size.
        """
        wanted = (len(x), self.read[0].in_channels, *x.shape[2:])
        ok = tuple(hint.shape) == wanted
        require(ok, f"the hint needs shape {wanted}, got {tuple(hint.shape)}")
        condition = F.silu(self.condition(x, t, label, keep))
        context = self.condition.context(x, caption, keep)
        h, added = self.stem(x) + self.read(hint), []
        for block, zero in zip(self.down, self.zero, strict=True):
            h = block(h, condition, context)
            added.append(zero(h))
        return added, self.zero_middle(self.middle(h, condition, context))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        hint: Tensor,
        label: Tensor | None = None,
        keep: Tensor | None = None,
        caption: Tensor | None = None,
    ) -> Tensor:
        """Answer one image a sample; arguments as of `controls`."""
        added, added_middle = self.controls(x, t, hint, label, keep, caption)
        net = self.net
        condition = F.silu(net.condition(x, t, label, keep))
        context = net.condition.context(x, caption, keep)
        h, skips = net.stem(x), []
        for block in net.down:
            h = block(h, condition, context)
            skips.append(h)
        h = net.middle(h, condition, context) + added_middle
        for grow, block in zip(net.grow, net.up, strict=True):
            skip = skips.pop() + added.pop()
            h = block(torch.cat([grow(h), skip], dim=1), condition, context)
        return net.head(h)


class Control(Guidance):
    """A denoiser with a control branch: `denoise(x, t, hint=picture)`.

    Without a hint the inner denoiser answers. The branch is what is trained:
    `training.fit(control, ...)` moves nothing else, as the inner net is frozen.

    Args:
        inner: a Denoiser whose net is a UNet.
        hint_channels: channels of the hint.
        hint_width: channels inside the net that reads the hint.

    Raises:
        ValueError: if the inner one is no Denoiser of a UNet.

    Source: (arXiv 2302.05543).
    """

    def __init__(
        self, inner: Denoiser, hint_channels: int, hint_width: int = 16
    ) -> None:
        super().__init__(inner)
        ok = isinstance(inner, Denoiser) and isinstance(inner.net, UNet)
        require(ok, "a control branch copies the encoder of a Denoiser(UNet(...), ...)")
        net = ControlledUNet(inner.net, hint_channels, hint_width)
        self.controlled = Denoiser(
            net, inner.schedule, inner.predicts, inner.sigma_data, inner.learns_variance
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        hint: Tensor | None = None,
        **condition: Tensor | None,
    ) -> Prediction:
        """Look at x_t (B, C, H, W) at t () or (B,), with a hint (B, c, H, W)."""
        if hint is None:
            return self.inner(x, t, **condition)
        return self.controlled(x, t, hint=hint, **condition)
