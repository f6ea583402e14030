"""Knowledge transfer: what a student's features are compared with a teacher's by.

DreamTeacher regresses the hidden states of a diffusion network, without a label.
Hints, attention maps and soft labels are what it is made of, or came from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.errors import require, require_same_shape

Maps = Sequence[Tensor]


# What is compared


def whiten(h: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm over the channels of each place, with nothing to learn.

    Args:
        h: a hidden state, shape (B, C, ...).
        eps: added to the variance.

    Returns:
        the same shape; each place has mean 0 and variance 1 over its channels.

    Source: the whitening W of (arXiv 2307.07487), the LayerNorm of the survey's
    (arXiv 2407.00783, eq. 17).
    """
    channels_last = h.movedim(1, -1)
    return F.layer_norm(channels_last, channels_last.shape[-1:], eps=eps).movedim(-1, 1)


def regression_loss(predicted: Maps, teacher: Maps, normalise: bool = True) -> Tensor:
    """The mean over levels of the squared error to the teacher's whitened features.

    Args:
        predicted: the regressor's answers, one (B, C_l, H_l, W_l) a level.
        teacher: the teacher's hidden states, of the same shapes; no gradient
            reaches them.
        normalise: whiten the teacher. Without it the level with the largest numbers
            decides; channels of one level keep their shares either way.

    Returns:
        shape (): the mean over elements, then over levels.

    Raises:
        ValueError: if there is no level, or shapes differ.

    Source: (arXiv 2407.00783, eq. 17), which sums over elements.
    """
    pairs = _pairs(predicted, teacher)
    aims = [(ours, theirs.detach()) for ours, theirs in pairs]
    if normalise:
        aims = [(ours, whiten(theirs)) for ours, theirs in aims]
    return torch.stack([F.mse_loss(ours, aim) for ours, aim in aims]).mean()


def attention_map(h: Tensor, power: float = 2.0) -> Tensor:
    """Where a hidden state is large: sum_c |h_c|^power, flattened, of length one.

    Args:
        h: shape (B, C, ...).
        power: the exponent, above 0.

    Returns:
        shape (B, places).

    Source: (arXiv 1612.03928, section 3.1).
    """
    require(power > 0, f"power must be above 0, got {power}")
    return F.normalize(h.abs().pow(power).sum(1).flatten(1), dim=1)


def attention_loss(predicted: Maps, teacher: Maps, power: float = 2.0) -> Tensor:
    """The squared distance between attention maps, mean over samples and levels.

    Squared, so that it has a gradient where the maps agree.

    Args:
        predicted: one (B, C_l, H_l, W_l) a level.
        teacher: the same grids, any number of channels; gets no gradient.
        power: of `attention_map`.

    Returns:
        shape (), between 0 and 2.

    Raises:
        ValueError: if there is no level, or grids differ.

    Source: attention transfer (arXiv 1612.03928, eq. 2).
    """
    levels = [
        (attention_map(ours, power) - attention_map(theirs.detach(), power))
        .square().sum(1).mean()
        for ours, theirs in _pairs(predicted, teacher, channels=False)
    ]  # fmt: skip
    return torch.stack(levels).mean()


def dream_loss(
    predicted: Maps, teacher: Maps, attention: float = 1.0, normalise: bool = True
) -> Tensor:
    """DreamTeacher's loss: feature regression plus `attention` x attention transfer.

    Args, Returns, Raises: as of its two parts.

    Source: (arXiv 2307.07487), which gives the second part a weight too.
    """
    loss = regression_loss(predicted, teacher, normalise)
    return loss + attention * attention_loss(predicted, teacher) if attention else loss


def hint_loss(student: Tensor, teacher: Tensor, regressor: nn.Module) -> Tensor:
    """Half the squared error of one regressed hidden state to the teacher's, the hint.

    Args:
        student: the guided layer, shape (B, c, H, W).
        teacher: the hint, shape (B, C, H, W); gets no gradient.
        regressor: maps the first to the second's shape, as a 1x1 convolution does.

    Returns:
        shape (), the mean over elements.

    Source: FitNets (arXiv 1412.6550, eq. 3).
    """
    predicted = regressor(student)
    require_same_shape(predicted, teacher, "regressor(student) and teacher")
    return 0.5 * F.mse_loss(predicted, teacher.detach())


def soft_label_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0
) -> Tensor:
    """T^2 times the divergence of the student's softened classes from the teacher's.

    Args:
        student: logits (B, classes).
        teacher: logits (B, classes); gets no gradient.
        temperature: T, what both are divided by, above 0.

    Returns:
        shape (), in nats, mean over samples. The factor keeps the gradient's size
        as T changes.

    Raises:
        ValueError: if shapes differ or the temperature is not above 0.

    Source: knowledge distillation (arXiv 1503.02531, section 2).
    """
    require_same_shape(student, teacher, "student and teacher")
    require(temperature > 0, f"temperature must be above 0, got {temperature}")
    ours = F.log_softmax(student / temperature, dim=1)
    theirs = F.log_softmax(teacher.detach() / temperature, dim=1)
    gap = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return temperature**2 * gap


def _pairs(a: Maps, b: Maps, channels: bool = True) -> list[tuple[Tensor, Tensor]]:
    """The levels of two lists side by side, once their shapes are known to agree."""
    require(
        len(a) == len(b) > 0,
        f"predicted has {len(a)} levels and teacher {len(b)}; give the same, 1 or more",
    )
    pairs = list(zip(a, b, strict=True))
    for level, (ours, theirs) in enumerate(pairs):
        grids = ours.shape[2:] == theirs.shape[2:] and len(ours) == len(theirs)
        require(
            grids and (not channels or ours.shape == theirs.shape),
            f"level {level}: predicted has shape {tuple(ours.shape)} and teacher "
            f"{tuple(theirs.shape)}; they must agree",
        )
    return pairs
