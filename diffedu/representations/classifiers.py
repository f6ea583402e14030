"""A generative model as a classifier: which class makes the data likeliest?

By the bound: the class whose denoiser errs least, with the same noise for all classes
and the unlikely ones dropped early. By the probability-flow ODE: log p(x0 | class).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffedu import likelihood
from diffedu.denoiser import DenoiserBase
from diffedu.errors import lookup, require, require_finite
from diffedu.representations.looks import (
    WEIGHTINGS,
    Conditions,
    class_count,
    denoising_errors,
    even_places,
    rows_of,
)
from diffedu.tensors import normal_like


@dataclass(frozen=True)
class Verdict:
    """What a generative classifier makes of a batch.

    Attributes:
        score: log p(x0 | class) + log prior + a constant of each sample, nats, (B, C).
            A class that was dropped early keeps the score it was dropped with.
        alive: which classes were kept to the end, (B, C) bool.
        evaluations: how many samples the network was shown, over the whole batch.
    """

    score: Tensor
    alive: Tensor
    evaluations: int

    @property
    def log_posterior(self) -> Tensor:
        """log p(class | x0) in nats among the classes alive, -inf elsewhere: (B, C)."""
        return self.score.masked_fill(~self.alive, -torch.inf).log_softmax(1)

    @property
    def prediction(self) -> Tensor:
        """The likeliest class of each sample, (B,)."""
        return self.log_posterior.argmax(1)


@dataclass(frozen=True)
class DiffusionClassifier:
    """The class whose denoiser errs least: `classify(x0)` answers a Verdict.

    Looks come in rounds. After round i, `looks[i]` looks have been taken in all, and
    for each sample only the `keep[i]` classes with the least error go on.

    Attributes:
        denoise: a denoiser that knows the classes.
        conditions: by keyword, a tensor with a row for each class.
        looks: looks taken by the end of each round, rising.
        keep: classes that each round keeps, falling; None keeps all.
        weighting: "likelihood" spreads looks evenly over log-SNR, so that scores are
            the bound in nats; "uniform" spreads them over time, as the paper does.
        paired: whether all classes share times and noise.
        ends: lowest and highest log-SNR; the path's own unless given.
        log_prior: log p(class) in nats, (C,); all equal unless given.
        batch: the network sees at most so many samples at once.

    Source: (arXiv 2303.16203, algorithms 1 and 2).
    """

    denoise: DenoiserBase
    conditions: Conditions
    looks: tuple[int, ...] = (64,)
    keep: tuple[int, ...] | None = None
    weighting: str = "likelihood"
    paired: bool = True
    ends: tuple[float, float] | None = None
    log_prior: Tensor | None = None
    batch: int = 1024

    def __post_init__(self) -> None:
        classes = class_count(self.conditions)
        lookup(WEIGHTINGS, self.weighting, "weighting")
        looks, keep = (0, *self.looks), (classes, *self._kept(classes))
        rising = len(looks) > 1 and all(a < b for a, b in pairwise(looks))
        require(rising, f"looks must rise from 1 or more, got {self.looks}")
        falling = len(keep) == len(looks) and keep[-1] >= 1
        falling = falling and all(a >= b for a, b in pairwise(keep))
        require(falling, f"keep needs {len(self.looks)} numbers that fall from at most "
                f"{classes} to at least 1, got {self.keep}")  # fmt: skip
        low, high = self._ends()
        require(low < high, f"ends are (lowest, highest) log-SNR, got {self.ends}")
        _checked_prior(self.log_prior, classes)

    def _kept(self, classes: int) -> tuple[int, ...]:
        return (classes,) * len(self.looks) if self.keep is None else self.keep

    def _ends(self) -> tuple[float, float]:
        path = self.denoise.schedule
        own = (path.log_snr(path.t_max).item(), path.log_snr(path.t_min).item())
        return own if self.ends is None else self.ends

    def errors(
        self,
        x0: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The weighted errors of all looks, without dropping any: (looks, B, C).

        The mean of the first m is what m looks say: -score without the prior. Random
        numbers come as in a call: the places, then the noise look by look.
        """
        everyone = torch.ones(len(x0), class_count(self.conditions), dtype=torch.bool)
        looks = self._looks(x0, generator)
        return torch.stack([self._look(x0, *look, everyone) for look in looks])

    def __call__(self, x0: Tensor, generator: torch.Generator | None = None) -> Verdict:
        """Classify x0 of shape (B, ...); times and noise come from the generator."""
        require_finite(x0, "x0")
        classes = class_count(self.conditions)
        total = x0.new_zeros(len(x0), classes)
        alive = torch.ones(total.shape, dtype=torch.bool, device=x0.device)
        prior = _checked_prior(self.log_prior, classes).to(x0)
        score, taken, evaluations = total, 0, 0
        stream = self._looks(x0, generator)
        for until, keep in zip(self.looks, self._kept(classes), strict=True):
            for _ in range(until - taken):
                total = total + self._look(x0, *next(stream), alive)
                evaluations += int(alive.sum())
            taken = until
            score = torch.where(alive, prior - total / taken, score)
            alive = _best(score.masked_fill(~alive, -torch.inf), keep)
        return Verdict(score, alive, evaluations)

    def _looks(
        self, x0: Tensor, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Times and noise of each look in turn: (B,) or (B, C), and noise to fit."""
        shape = (len(x0),) if self.paired else (len(x0), class_count(self.conditions))
        spread, _ = WEIGHTINGS[self.weighting]
        places = even_places(self.looks[-1], shape, generator)
        like = x0 if self.paired else x0[:, None].expand(*shape, *x0.shape[1:])
        for place in places:
            t = spread(self.denoise.schedule, place, self._ends())
            yield t, normal_like(like, generator)

    def _look(self, x0: Tensor, t: Tensor, noise: Tensor, alive: Tensor) -> Tensor:
        _, width = WEIGHTINGS[self.weighting]
        given = x0, self.conditions, t, noise, alive, self.batch
        return width(self._ends()) * denoising_errors(self.denoise, *given)


def _best(score: Tensor, keep: int) -> Tensor:
    """Which `keep` classes of each sample have the highest scores: (B, C) bool."""
    best = torch.zeros_like(score, dtype=torch.bool)
    return best.scatter(1, score.topk(keep, dim=1).indices, True)


def _checked_prior(log_prior: Tensor | None, classes: int) -> Tensor:
    prior = torch.zeros(classes) if log_prior is None else log_prior
    ok = prior.shape == (classes,) and not bool(prior.isnan().any())
    require(ok, f"log_prior needs shape ({classes},) without NaN, got {log_prior}")
    return prior


def diffusion_classify(
    denoise: DenoiserBase,
    x0: Tensor,
    conditions: Conditions,
    generator: torch.Generator | None = None,
    **options: object,
) -> Verdict:
    """`DiffusionClassifier(denoise, conditions, **options)(x0, generator)` in one call.

    Args:
        denoise: a denoiser that knows the classes.
        x0: data, shape (B, ...).
        conditions: by keyword, a tensor with a row for each class.
        generator: source of times and noise.
        **options: as of `DiffusionClassifier`.
    """
    return DiffusionClassifier(denoise, conditions, **options)(x0, generator)


def likelihood_classify(
    denoise: DenoiserBase,
    x0: Tensor,
    conditions: Conditions,
    *,
    steps: int = 50,
    method: str = "heun",
    divergence: str = "exact",
    probes: int = 1,
    log_prior: Tensor | None = None,
    seed: int = 0,
) -> Verdict:
    """The class with the highest log p(x0 | class) by the ODE, plus its log prior.

    Hutchinson's probes are the same for all classes, which pairs their errors.

    Args:
        denoise: a denoiser that knows the classes.
        x0: data, shape (B, ...).
        conditions: by keyword, a tensor with a row for each class.
        steps, method, divergence, probes: as of `likelihood.log_prob`.
        log_prior: log p(class) in nats, (C,); all equal unless given.
        seed: of the probes.

    Returns:
        a Verdict; its evaluations count the network's forward passes.

    Raises:
        ValueError: as `likelihood.log_prob`, and for conditions that do not fit.

    Source: (arXiv 2110.00473, section 3).
    """
    classes = class_count(conditions)
    prior = _checked_prior(log_prior, classes).to(x0)
    scores = []
    for k in range(classes):
        rows = rows_of(conditions, torch.full((len(x0),), k, device=x0.device))
        found = likelihood.log_prob(
            denoise, x0, steps=steps, method=method, divergence=divergence,
            probes=probes, generator=torch.Generator().manual_seed(seed), **rows,
        )  # fmt: skip
        scores.append(found.log_prob)
    score = torch.stack(scores, 1) + prior
    passes = steps * (2 if method == "heun" else 1)
    alive = torch.ones_like(score, dtype=torch.bool)
    return Verdict(score, alive, passes * classes * len(x0))
