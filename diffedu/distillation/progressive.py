"""Progressive distillation: one student step does what two teacher steps did.

Then the student is the teacher, and the steps halve again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffedu.denoiser import Denoiser, DenoiserBase
from diffedu.distillation.levels import refuse_checkpoint
from diffedu.errors import lookup, require, require_same_shape
from diffedu.samplers.deterministic import ddim_step
from diffedu.samplers.walk import checked_times
from diffedu.tensors import batch_mean, normal_like, per_sample
from diffedu.training.data import BatchSource
from diffedu.training.loop import fit

WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "truncated_snr": lambda snr: snr.clamp(min=1),
    "snr_plus_one": lambda snr: snr + 1,
    "x0": torch.ones_like,
}


def two_step_target(
    teacher: DenoiserBase,
    x_t: Tensor,
    t: Tensor | float,
    middle: Tensor | float,
    s: Tensor | float,
    **condition: Tensor | None,
) -> Tensor:
    """The x0 whose one DDIM step from t lands where two steps of the teacher do.

    Args:
        teacher: any denoiser.
        x_t: the state at t, shape (B, ...).
        t: where both begin, shape () or (B,), above 0.
        middle: where the teacher stops over, shape () or (B,).
        s: where both land, shape () or (B,); 0 is clean data.
        **condition: passed to the teacher.

    Returns:
        the target, shape of x_t, without gradient.

    Source: (arXiv 2202.00512, algorithm 2).
    """
    with torch.no_grad():
        halfway = ddim_step(teacher, x_t, t, middle, **condition)
        landed = ddim_step(teacher, halfway, middle, s, **condition)
        path = teacher.schedule
        (alpha, sigma), (alpha_s, sigma_s) = (
            [per_sample(c, x_t) for c in path.coefficients(time)] for time in (t, s)
        )
        ratio = sigma_s / sigma
        weight = 1 / (alpha_s - ratio * alpha)
        return weight.to(x_t) * (landed - ratio.to(x_t) * x_t)


def progressive_loss(
    student: DenoiserBase,
    teacher: DenoiserBase,
    x0: Tensor,
    times: Tensor,
    weighting: str = "truncated_snr",
    index: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    **condition: Tensor | None,
) -> Tensor:
    """The weighted squared error of the student's x0 to the teacher's two steps.

    Args:
        student: the denoiser in training.
        teacher: the one that it learns from.
        x0: clean data, shape (B, ...).
        times: the teacher's falling times, shape (2 N + 1,); the student's are every
            second one.
        weighting: "truncated_snr", max(SNR, 1); "snr_plus_one", v's own; or "x0".
        index: the student's step of each sample, 0 to N - 1, shape (B,); drawn if
            None.
        noise: standard noise, shape of x0; fresh if None.
        generator: source of steps and noise.
        **condition: passed to both.

    Returns:
        the mean over elements and batch, shape ().

    Raises:
        ValueError: for an odd number of teacher's steps, an unknown weighting, or
            shapes that do not fit.

    Source: (arXiv 2202.00512, algorithm 2 and section 4).
    """
    times = checked_times(times).to(x0.device)
    steps = len(times) - 1
    require(
        steps % 2 == 0,
        f"the teacher takes {steps} steps, which cannot be paired; give it an even "
        "number",
    )
    weigh = lookup(WEIGHTINGS, weighting, "weighting")
    if index is None:
        device = generator.device if generator is not None else x0.device
        index = torch.randint(steps // 2, x0.shape[:1], generator=generator,
                              device=device).to(x0.device)  # fmt: skip
    noise = normal_like(x0, generator) if noise is None else noise
    require_same_shape(x0, noise, "x0 and noise")
    t, middle, s = (times[2 * index + k].to(x0.dtype) for k in range(3))
    path = student.schedule
    x_t = path.add_noise(x0, t, noise)
    target = two_step_target(teacher, x_t, t, middle, s, **condition)
    error = (student(x_t, t, **condition).x0 - target).square()
    return (weigh(path.snr(t)).to(x0) * batch_mean(error)).mean()


@dataclass
class Stage:
    """What one halving left: a student for a number of steps.

    Attributes:
        steps: how many steps it walks.
        times: the times of that walk, shape (steps + 1,).
        student: the denoiser, in evaluation mode.
        loss: the mean loss at the end of the stage.
    """

    steps: int
    times: Tensor
    student: Denoiser
    loss: float


def progressive(
    teacher: Denoiser,
    batches: BatchSource,
    times: Tensor,
    *,
    down_to: int = 1,
    train_steps: int = 1000,
    weighting: str = "truncated_snr",
    generator: torch.Generator | None = None,
    **options: Any,
) -> Iterator[Stage]:
    """Halve the steps of a denoiser again and again; each turn is one halving.

    Each student begins with its teacher's weights. The teacher passed in stays as it
    is.

    Args:
        teacher: the denoiser to begin with.
        batches: as of `training.fit`; clean data, shape (B, ...), or pairs of data and
            labels (B,).
        times: its falling times, shape (steps + 1,); steps / down_to is a power of 2.
        down_to: the steps to end with.
        train_steps: training steps of each halving.
        weighting: as of `progressive_loss`.
        generator: source of noise and steps.
        **options: passed to `training.fit`, such as lr or ema; a checkpoint is refused.

    Yields:
        a `Stage` for each halving, most steps first.

    Raises:
        ValueError: if the steps cannot be halved down to `down_to`.

    Source: (arXiv 2202.00512, algorithm 2).
    """
    refuse_checkpoint(options)
    times = checked_times(times)
    ratio = (len(times) - 1) / down_to if down_to >= 1 else 0
    require(
        ratio >= 2 and ratio == int(ratio) and int(ratio) & (int(ratio) - 1) == 0,
        f"{len(times) - 1} steps cannot be halved down to {down_to}; their ratio must "
        "be 2, 4, 8 or another power of 2",
    )
    while len(times) - 1 > down_to:
        student, loss = _halve(
            teacher, batches, times, train_steps, weighting, generator, options
        )
        teacher, times = student, times[::2]
        yield Stage(len(times) - 1, times, student, loss)


def _halve(
    teacher: Denoiser,
    batches: BatchSource,
    times: Tensor,
    train_steps: int,
    weighting: str,
    generator: torch.Generator | None,
    options: dict[str, Any],
) -> tuple[Denoiser, float]:
    """One student of half the steps, and its last mean loss."""
    student = copy.deepcopy(teacher).requires_grad_(True)
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)

    def loss_fn(batch: Any, generator: torch.Generator) -> Tensor:
        x0, label = (batch, None) if isinstance(batch, Tensor) else batch
        return progressive_loss(
            student, teacher, x0, times, weighting, generator=generator, label=label
        )

    options = {"lr": 5e-4, "ema": None, "capture": False} | options
    for state in fit(
        student, loss_fn, batches, steps=train_steps, generator=generator, **options
    ):
        last = state
    student.load_state_dict(last.ema.state_dict())
    return student.eval(), last.mean_loss
