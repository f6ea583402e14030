"""What every network is told besides x: the time t and, if it has one, the class.

A network is called as `net(x, t, label=..., keep=...)` and knows nothing of
schedules; here t and the label become one vector a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffedu.errors import capturing, require, require_same_device


class TimeFeatures(nn.Module):
    """Cosines and sines of t at frequencies from 1 to 1000 radians.

    The slow ones tell 0 from 1, the fast ones neighbours in a chain of 1000 steps.
    Any real number will do: EDM's c_noise is negative at low noise.

    Args:
        features: how many; even.

    Raises:
        ValueError: if `features` is not an even number of at least 4.
    """

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        even = isinstance(features, int) and features >= 4 and features % 2 == 0
        require(even, f"features must be an even number >= 4, got {features!r}")
        frequencies = torch.logspace(0, 3, features // 2)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Map times of shape (B,) to features of shape (B, features)."""
        angles = t[:, None] * self.frequencies.to(t.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Condition(nn.Module):
    """One vector a sample that says how noisy x is and, optionally, of which class.

    Args:
        width: length of the vector.
        classes: number of classes, or None for a network without labels. One more
            row of the table stands for "no label".
        features: number of time features.

    Raises:
        ValueError: if `classes` is not a positive number.
    """

    def __init__(self, width: int, classes: int | None = None, features: int = 64):
        super().__init__()
        require_positive(width=width)
        self.time = nn.Sequential(
            TimeFeatures(features),
            nn.Linear(features, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        self.classes = classes
        if classes is not None:
            require_positive(classes=classes)
            self.label = nn.Embedding(classes + 1, width)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Embed time and label.

        Args:
            x: the network's input, (B, ...); only its batch, dtype and device count.
            t: shape (B,) or (), floating point.
            label: class numbers, (B,) or (), integers; -1 or None is unconditional.
            keep: who keeps its label, (B,) bool.

        Returns:
            shape (B, width).

        Raises:
            ValueError: if a shape, dtype, device or class number does not fit.
        """
        vector = self.time(as_times(t, x))
        if self.classes is None:
            given = "label" if label is not None else "keep"
            require(
                label is None and keep is None,
                f"this network was built without classes but got {given}=; "
                "build it with classes=K, or leave the condition out",
            )
            return vector
        return vector + self.label(self.rows(label, keep, x))

    def context(
        self, x: Tensor, caption: Tensor | None, keep: Tensor | None = None
    ) -> None:
        """Nothing: only a network with a vocabulary reads captions (`captions`)."""
        require(
            caption is None,
            "this network was built without a vocabulary but got caption=; "
            "build it with vocabulary=V, or leave the caption out",
        )

    def rows(self, label: Tensor | None, keep: Tensor | None, x: Tensor) -> Tensor:
        """The rows (B,) of the table: 0 without a label, class k in row k + 1."""
        if label is None:
            return torch.zeros(len(x), dtype=torch.long, device=x.device)
        row = as_labels(label, x, self.classes) + 1
        return row if keep is None else row * as_kept(keep, x)


def require_positive(**numbers: int) -> None:
    """Raise ValueError unless every named number is a whole one above 0."""
    for name, value in numbers.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(
            whole and value > 0, f"{name} must be a whole number > 0, got {value!r}"
        )


def require_input(x: Tensor, shape: tuple[int, ...], weight: Tensor) -> None:
    """Raise ValueError unless x is a batch of `shape` that fits the weights.

    Args:
        x: the network's input, (B, *shape).
        shape: what one sample must look like.
        weight: any parameter of the network; gives dtype and device.
    """
    expected = ", ".join(["B", *map(str, shape)])
    require(
        x.dim() == len(shape) + 1 and tuple(x.shape[1:]) == shape,
        f"x has shape {tuple(x.shape)} but this network takes ({expected}); "
        "reshape x, or build the network for it",
    )
    require_same_device(weight, x, "the network and x")
    require(
        x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type),
        f"x is {x.dtype} but the network's weights are {weight.dtype}; "
        f"cast one of them: x.to({weight.dtype}) or net.to({x.dtype})",
    )


def as_times(t: Tensor, x: Tensor) -> Tensor:
    """Times t, () or (B,), as (B,) in x's dtype; ValueError if they cannot be."""
    require(
        isinstance(t, Tensor) and t.is_floating_point(),
        f"t must be a floating-point tensor (0 is data, 1 is noise), got "
        f"{t.dtype if isinstance(t, Tensor) else type(t).__name__}; index k of a "
        "chain of T steps stands at t = (k + 1) / T",
    )
    require(
        t.dim() == 0 or t.shape == x.shape[:1],
        f"t has shape {tuple(t.shape)} but must be () or ({len(x)},), one a sample",
    )
    if t.dim():
        require_same_device(x, t, "x and t")
    return t.to(x).expand(len(x))


def as_labels(label: Tensor, x: Tensor, classes: int) -> Tensor:
    """Labels () or (B,) as (B,) of int64; ValueError unless each is in [-1, classes).

    The range check reads a value, so it rests while a CUDA graph is captured.
    """
    whole = isinstance(label, Tensor) and not (
        label.is_floating_point() or label.is_complex() or label.dtype == torch.bool
    )
    require(
        whole,
        f"label must be a tensor of integers, got "
        f"{label.dtype if isinstance(label, Tensor) else type(label).__name__}; "
        "try label.long()",
    )
    require(
        label.dim() == 0 or label.shape == x.shape[:1],
        f"label has shape {tuple(label.shape)} but must be () or ({len(x)},)",
    )
    require_same_device(x, label, "x and label")
    if label.numel() and not capturing():
        low, high = (int(end) for end in label.aminmax())
        require(
            -1 <= low and high < classes,
            f"label runs from {low} to {high}, but this network has {classes} "
            f"classes: 0 to {classes - 1}, and -1 for none",
        )
    return label.long().expand(len(x))


def as_kept(keep: Tensor, x: Tensor) -> Tensor:
    """The mask () or (B,) as (B,) of bool; ValueError if it is anything else."""
    require(
        isinstance(keep, Tensor) and keep.dtype == torch.bool,
        "keep must be a tensor of bool, True where the label stays",
    )
    require(
        keep.dim() == 0 or keep.shape == x.shape[:1],
        f"keep has shape {tuple(keep.shape)} but must be () or ({len(x)},)",
    )
    require_same_device(x, keep, "x and keep")
    return keep.expand(len(x))


def zero_(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The layer with its weights and bias set to zero, so that it starts silent."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
