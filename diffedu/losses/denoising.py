"""The denoising loss: noise the data, look, and weigh what was missed.

Weightings differ in how much each noise level counts; the optimum is the same for
all of them, the posterior mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import capturing, lookup, require, require_same_shape
from diffedu.prediction import Number, Point, Prediction
from diffedu.schedules import Schedule
from diffedu.tensors import batch_mean, normal_like


def _snr(at: Point) -> Number:
    """SNR: the squared error of eps."""
    return (at.alpha / at.sigma) ** 2


def _min_snr(at: Point) -> Number:
    """min(SNR, 5), which keeps small noise from ruling (arXiv 2303.09556)."""
    snr = _snr(at)
    return snr.clamp(max=5.0) if isinstance(snr, Tensor) else min(snr, 5.0)


def _edm(at: Point, sigma_data: float = 0.5) -> Number:
    """1 / c_out^2, the error of EDM's raw network (arXiv 2206.00364, table 1)."""
    # theirs at sigma / alpha, written so that nothing divides by alpha
    return (at.sigma**2 + (sigma_data * at.alpha) ** 2) / (at.sigma * sigma_data) ** 2


def _likelihood(at: Point) -> Number:
    """-SNR'(t) / 2: the continuous bound, in nats (arXiv 2107.00630, section 5)."""
    alpha_rate, sigma_rate = at.rates
    return at.alpha * (at.alpha * sigma_rate - at.sigma * alpha_rate) / at.sigma**3


def _one(at: Point) -> Number:
    """The squared error of x0 itself."""
    return 1.0


WEIGHTINGS = {
    "x0": _one,
    "snr": _snr,
    "min_snr": _min_snr,
    "edm": _edm,
    "likelihood": _likelihood,
}


def random_times(
    n: int,
    schedule: Schedule,
    generator: torch.Generator | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """n uniform times in [t_min, t_max], or points of the table: shape (n,).

    Args:
        n: how many.
        schedule: the path; through a chain's table, one of its points is drawn.
        generator: source of randomness.
        like: a tensor whose dtype and device the times take.
    """
    like = torch.empty(()) if like is None else like
    device = generator.device if generator is not None else like.device
    u = torch.rand(n, dtype=like.dtype, device=device, generator=generator).to(like)
    if schedule.steps:
        return ((u * schedule.steps).floor() + 1).clamp(max=schedule.steps) / (
            schedule.steps
        )
    return schedule.t_min + (schedule.t_max - schedule.t_min) * u


def edm_times(
    n: int,
    schedule: Schedule,
    generator: torch.Generator | None = None,
    like: Tensor | None = None,
    mean: float = -1.2,
    std: float = 1.2,
) -> Tensor:
    """n times whose log(sigma / alpha) is normal, within [t_min, t_max]: shape (n,).

    Source: (arXiv 2206.00364, table 1, with P_mean and P_std).
    """
    like = torch.empty(n) if like is None else like
    level = mean + std * normal_like(like.new_empty(n), generator)
    ends = (schedule.log_snr(t).item() for t in (schedule.t_max, schedule.t_min))
    return schedule.time_of_log_snr((-2 * level).clamp(*ends))


def denoising(
    denoise: DenoiserBase,
    x0: Tensor,
    weighting: str = "simple",
    t: Tensor | None = None,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
    drop: float = 0.0,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
    **condition: Tensor | None,
) -> Tensor:
    """The weighted squared error of a denoiser on freshly noised data.

    Args:
        denoise: any denoiser.
        x0: clean data, shape (B, ...).
        weighting: "simple" is the squared error of what the network predicts (of a
            score, sigma times its error: that of eps); x0, snr, min_snr, edm and
            likelihood weigh the squared error of x0. Likelihood is the bound's
            integral over time, in nats per element.
        t: times, shape (B,) or (); uniform in [t_min, t_max] unless given.
        noise: standard noise, shape of x0; fresh unless given.
        mask: which elements count, broadcastable to x0.
        drop: the chance with which a sample's condition is left out.
        per_sample: whether to return each sample's loss.
        generator: source of times, noise and drops.
        **condition: passed to the denoiser, such as `label=y`.

    Returns:
        the mean over elements, then over the batch: shape (), or (B,) if per_sample.

    Raises:
        ValueError: for an unknown weighting, empty data, integers, a drop outside
            [0, 1], or shapes that do not fit.

    Source: (arXiv 2006.11239, eq. 14).
    """
    require(x0.dim() >= 2 and len(x0) > 0, f"x0 needs (B, ...), got {tuple(x0.shape)}")
    require(x0.is_floating_point(), f"x0 must be floating, got {x0.dtype}")
    require(0 <= drop <= 1, f"drop is a chance from 0 to 1, got {drop}")
    path = denoise.schedule
    uniform = t is None
    t = random_times(len(x0), path, generator, x0) if uniform else t
    noise = normal_like(x0, generator) if noise is None else noise
    require_same_shape(x0, noise, "x0 and noise")
    if drop > 0:
        condition["keep"] = _keep(x0, drop, generator, condition.get("keep"))
    seen = denoise(path.add_noise(x0, t, noise), t, **condition)
    error = _weighted_error(seen, x0, noise, weighting)
    if weighting == "likelihood" and uniform:
        error = error * (path.t_max - path.t_min)
    loss = _mean(error, mask)
    return loss if per_sample else loss.mean()


def _keep(
    x0: Tensor, drop: float, generator: torch.Generator | None, keep: Tensor | None
) -> Tensor:
    """Who keeps their condition: a share 1 - drop of those who do already."""
    device = generator.device if generator is not None else x0.device
    u = torch.rand(len(x0), device=device, generator=generator).to(x0.device)
    return u >= drop if keep is None else (u >= drop) & keep


def _weighted_error(
    seen: Prediction, x0: Tensor, noise: Tensor, weighting: str
) -> Tensor:
    """The squared error of each element, weighed: shape of x0."""
    if weighting == "simple":
        return (seen.value - seen.kind.target(x0, noise, seen.at)).square()
    weigh = lookup(WEIGHTINGS | {"simple": None}, weighting, "weighting")
    return weigh(seen.at) * (seen.x0 - x0).square()


def _mean(error: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the elements that count, for each sample: (B,)."""
    if mask is None:
        return batch_mean(error)
    mask = mask.expand_as(error).to(error)
    counted = mask.flatten(1).sum(1)
    some = capturing() or bool((counted > 0).all())
    require(some, "the mask leaves a sample without any element")
    return (error * mask).flatten(1).sum(1) / counted
