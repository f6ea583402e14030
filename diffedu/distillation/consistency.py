"""Consistency models: from any point of the sampling ODE straight to where it ends.

Two neighbouring points of one path must be sent to the same end, and a point at the
end to itself. Trained against a teacher's steps, or from data alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from diffedu.denoiser import DenoiserBase, checked_inputs
from diffedu.distillation.levels import (
    SIGMA_MAX,
    SIGMA_MIN,
    curriculum,
    likely_levels,
    noise_levels,
    pseudo_huber,
    refuse_checkpoint,
)
from diffedu.errors import capturing, require, require_same_shape
from diffedu.prediction import Prediction, combine, for_batch
from diffedu.schedules import Schedule
from diffedu.tensors import normal_like, per_sample
from diffedu.training.data import BatchSource
from diffedu.training.loop import fit
from diffedu.training.options import State


class ConsistencyModel(DenoiserBase):
    """f(x, sigma) = c_skip x + c_out F, which is x itself at the smallest noise.

    On any path: x and sigma are those of the path divided by alpha. The answer's x0 is
    the end of the ODE's way through x_t, not the posterior mean.

    Args:
        net: F, called as `net(x, c_noise, **condition)` like one that predicts "edm".
        schedule: the path that x_t lies on.
        sigma_data: the data's standard deviation.
        sigma_min: the noise at which f is the identity.
        noise_scale: what c_noise is multiplied by. Small, so that F is smooth in the
            noise level: neighbours must agree, and fast time features tear them apart
            (arXiv 2310.14189, section 3.1, shrinks its Fourier features likewise).

    Source: (arXiv 2303.01469, eq. 5, with the coefficients of appendix C).
    """

    def __init__(
        self,
        net: nn.Module | Callable[..., Tensor],
        schedule: Schedule,
        sigma_data: float = 0.5,
        sigma_min: float = SIGMA_MIN,
        noise_scale: float = 0.02,
    ) -> None:
        super().__init__()
        require(sigma_data > 0, f"sigma_data must be above 0, got {sigma_data}")
        require(sigma_min >= 0, f"sigma_min must be 0 or more, got {sigma_min}")
        self.net, self.schedule = net, schedule
        self.sigma_data, self.sigma_min = sigma_data, sigma_min
        self.noise_scale = noise_scale

    def forward(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> Prediction:
        """Look at x_t of shape (B, ...) at t of shape () or (B,); None is dropped."""
        t = checked_inputs(x, t)
        alpha, sigma = self.schedule.coefficients(t)
        require(
            capturing() or bool((alpha > 0).all()),
            "a consistency model needs some signal, and alpha is 0 here; start at "
            f"schedule.t_max = {self.schedule.t_max:g}",
        )
        level = sigma / alpha
        # the last level of a table is a little off after a round trip through t
        above = (level - self.sigma_min).clamp(min=0)
        spread = torch.hypot(level, torch.full_like(level, self.sigma_data))
        c_skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
        c_out = self.sigma_data * above / spread
        given = {name: c for name, c in condition.items() if c is not None}
        c_noise = (self.noise_scale * level.log() / 4).to(x.dtype).to(x.device)
        out = self.net(
            for_batch(1 / (alpha * spread), x) * x, c_noise.expand(len(x)), **given
        )
        x0 = combine(for_batch(c_skip / alpha, x), x, for_batch(c_out, x), out)
        return Prediction(x, t, self.schedule, "x0", x0)


def teacher_step(
    teacher: DenoiserBase,
    x: Tensor,
    level: Tensor,
    lower: Tensor,
    **condition: Tensor | None,
) -> Tensor:
    """One step of Heun's method down the teacher's ODE, in sigma, with alpha = 1.

    Args:
        teacher: any denoiser.
        x: x_t / alpha_t, shape (B, ...).
        level: sigma / alpha of x, shape (B,).
        lower: where to go, shape (B,), above 0.
        **condition: passed to the teacher.

    Source: (arXiv 2303.01469, algorithm 2, with the solver of 2206.00364).
    """
    step = per_sample(lower - level, x).to(x)
    slope = _eps(teacher, x, level, condition)
    ahead = _eps(teacher, x + step * slope, lower, condition)
    return x + step * (slope + ahead) / 2


def _at(denoise: DenoiserBase, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """x / alpha and sigma / alpha as a state and a time of the denoiser's own path."""
    # alpha of tiny noise needs the digits that float32 does not have
    t = denoise.schedule.time_of_log_snr(-2 * level.double().log()).to(x.device)
    return per_sample(denoise.schedule.alpha(t), x).to(x) * x, t


def _eps(
    denoise: DenoiserBase, x: Tensor, level: Tensor, condition: dict[str, Any]
) -> Tensor:
    """dx/dsigma at x (B, ...) and level (B,), where alpha is 1."""
    return denoise(*_at(denoise, x, level), **condition).eps


def consistency_loss(
    model: ConsistencyModel,
    x0: Tensor,
    levels: Tensor,
    teacher: DenoiserBase | None = None,
    target: ConsistencyModel | None = None,
    index: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    **condition: Tensor | None,
) -> Tensor:
    """How far apart the ends are to which two neighbouring points are sent.

    The upper point is data with noise. The lower one is a step of the teacher's ODE
    from it (consistency distillation), or the same data with less of the same noise
    (consistency training).

    Args:
        model: the one in training.
        x0: clean data, shape (B, ...).
        levels: rising noise levels sigma / alpha, shape (N,).
        teacher: any denoiser; None trains from data alone.
        target: says where the lower point goes, without gradient; the model itself if
            None, or an average of it.
        index: the pair of each sample, 0 to N - 2, shape (B,); drawn if None.
        noise: standard noise, shape of x0; fresh if None.
        generator: source of pairs and noise.
        **condition: passed to all.

    Returns:
        the weighted mean over the batch, shape ().

    Raises:
        ValueError: for fewer than 2 levels, or shapes that do not fit.

    Source: pairs and solver (arXiv 2303.01469, algorithms 2 and 3); distance, weight
    1 / (difference of levels) and draws (arXiv 2310.14189, section 3).
    """
    shape = tuple(levels.shape)
    require(levels.dim() == 1 and len(levels) >= 2, f"levels need (N,), got {shape}")
    levels = levels.double()
    if index is None:
        shares = likely_levels(levels)
        device = generator.device if generator is not None else None
        index = torch.multinomial(
            shares.to(device or "cpu"), len(x0), replacement=True, generator=generator
        )
    index = index.to(levels.device)
    lower, level = levels[index].to(x0.device), levels[index + 1].to(x0.device)
    noise = normal_like(x0, generator) if noise is None else noise
    require_same_shape(x0, noise, "x0 and noise")
    upper = x0 + per_sample(level, x0).to(x0) * noise
    with torch.no_grad():
        if teacher is None:
            below = x0 + per_sample(lower, x0).to(x0) * noise
        else:
            below = teacher_step(teacher, upper, level, lower, **condition)
        aim = (target or model)(*_at(model, below, lower), **condition).x0
    end = model(*_at(model, upper, level), **condition).x0
    return (pseudo_huber(end, aim) / (level - lower).to(x0)).mean()


def fit_consistency(
    model: ConsistencyModel,
    batches: BatchSource,
    *,
    steps: int = 4000,
    teacher: DenoiserBase | None = None,
    sigma_max: float = SIGMA_MAX,
    first: int = 10,
    last: int = 1280,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Iterator[State]:
    """Train a consistency model; each turn is one step, as of `training.fit`.

    The number of noise levels grows as in `curriculum`. The target is the model's own
    answer without gradient, and not an average of it.

    Args:
        model: what is trained; `state.ema` is its average, for sampling.
        batches: as of `training.fit`; clean data, shape (B, ...), or pairs of data and
            labels (B,).
        steps: training steps.
        teacher: a denoiser for distillation; None trains from data alone.
        sigma_max: the noise from which samples will start.
        first: intervals between levels at the start.
        last: the most there will be.
        generator: source of pairs and noise.
        **options: passed to `training.fit`, such as lr or ema; a checkpoint is refused.

    Source: (arXiv 2303.01469, algorithms 2 and 3), with the settings of
    (arXiv 2310.14189, section 3).
    """
    refuse_checkpoint(options)
    done = itertools.count()

    def loss_fn(batch: Any, generator: torch.Generator) -> Tensor:
        x0, label = (batch, None) if isinstance(batch, Tensor) else batch
        count = curriculum(next(done), steps, first, last)
        levels = noise_levels(count, model.sigma_min, sigma_max)
        return consistency_loss(
            model, x0, levels, teacher, generator=generator, label=label
        )

    # the number of levels changes in Python, which a captured graph would not see
    options = {"capture": False} | options
    yield from fit(model, loss_fn, batches, steps=steps, generator=generator, **options)
