"""Checks of chapter 12's exercises on transfer: REINFORCE, and DreamTeacher's loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from diffedu.checks.ch03_fields import whole
from diffedu.checks.machinery import Exercise, Property

__all__ = ["policy_gradient", "regression_loss"]

Inputs = dict[str, Any]


# REINFORCE with a baseline


def _arms(g: Generator) -> Inputs:
    arms, samples = whole(3, 6, g), whole(4, 9, g)
    logits = torch.randn(samples, arms, generator=g)
    drawn = torch.randint(arms, (samples,), generator=g)
    rewards = 1.5 + torch.randn(samples, generator=g)
    return {"logits": logits, "arms": drawn, "rewards": rewards}


def _advantage(rewards: Tensor) -> Tensor:
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


def _drawn(logits: Tensor, arms: Tensor) -> Tensor:
    return F.one_hot(arms, logits.shape[1]).to(logits)


def _gradient(logits: Tensor, arms: Tensor, weights: Tensor) -> Tensor:
    push = _drawn(logits, arms) - logits.softmax(1)
    return weights[:, None] * push / len(logits)


def _of_probabilities(logits: Tensor, arms: Tensor, rewards: Tensor) -> Tensor:
    shares = logits.softmax(1).gather(1, arms[:, None])[:, 0]
    return _gradient(logits, arms, _advantage(rewards) * shares)


def _over_samples(logits: Tensor, arms: Tensor, rewards: Tensor) -> Tensor:
    push = _drawn(logits, arms) - logits.softmax(0)
    return _advantage(rewards)[:, None] * push / len(logits)


def _of_ratio(logits: Tensor, arms: Tensor, rewards: Tensor) -> Tensor:
    push = _drawn(logits, arms) / logits.softmax(1) - 1
    return _advantage(rewards)[:, None] * push / len(logits)


def _drawn_arm_alone(logits: Tensor, arms: Tensor, rewards: Tensor) -> Tensor:
    push = _drawn(logits, arms) * (1 - logits.softmax(1))
    return _advantage(rewards)[:, None] * push / len(logits)


def _with_logarithms(logits: Tensor, arms: Tensor, rewards: Tensor) -> Tensor:
    push = _drawn(logits, arms) - logits.log_softmax(1)
    return _advantage(rewards)[:, None] * push / len(logits)


policy_gradient = Exercise(
    "policy_gradient",
    draw=_arms,
    truth=lambda logits, arms, r: _gradient(logits, arms, _advantage(r)),
    mistakes={
        "the sign is that of a loss; what is asked for climbs":
            lambda logits, arms, r: -_gradient(logits, arms, _advantage(r)),
        "the baseline of a sample contains the sample's own reward, so it is biased":
            lambda logits, arms, r: _gradient(logits, arms, r - r.mean()),
        "no baseline is taken away: unbiased, and far too noisy":
            lambda logits, arms, r: _gradient(logits, arms, r),
        "the samples are summed, where their mean is asked":
            lambda logits, arms, r: len(r) * _gradient(logits, arms, _advantage(r)),
        "the baseline contains the sample's own reward, and the samples are summed":
            lambda logits, arms, r: len(r) * _gradient(logits, arms, r - r.mean()),
        "no baseline is taken away, and the samples are summed":
            lambda logits, arms, r: len(r) * _gradient(logits, arms, r),
        "the mean over samples divides by B - 1; only the baseline's does":
            lambda logits, arms, r:
                len(r) / (len(r) - 1) * _gradient(logits, arms, _advantage(r)),
        "the baseline divides by B, but there are B - 1 others":
            lambda logits, arms, r:
                _gradient(logits, arms, r - (r.sum() - r) / len(r)),
        "the baseline is the sum of the others; it is their mean":
            lambda logits, arms, r: _gradient(logits, arms, 2 * r - r.sum()),
        "the rewards are divided by their deviation, which is not asked":
            lambda logits, arms, r:
                _gradient(logits, arms, (r - r.mean()) / r.std()),
        "the baseline is the best reward; it is the mean of the others":
            lambda logits, arms, r: _gradient(logits, arms, r - r.max()),
        "only the arm that was drawn is pushed; the other logits enter log pi too":
            _drawn_arm_alone,
        "it is divided by the probabilities as well; the logits' gradient needs none":
            _of_ratio,
        "logarithms of probabilities stand where probabilities belong":
            _with_logarithms,
        "the baseline is added to the reward":
            lambda logits, arms, r:
                _gradient(logits, arms, 2 * r - _advantage(r)),
        "the softmax is missing: logits stand where probabilities belong":
            lambda logits, arms, r:
                _advantage(r)[:, None] * (_drawn(logits, arms) - logits) / len(r),
        "only the arm that was drawn is pushed; the softmax ties it to the others":
            lambda logits, arms, r:
                _advantage(r)[:, None] * _drawn(logits, arms) / len(r),
        "it is the gradient of the probability; of its logarithm is asked":
            _of_probabilities,
        "the softmax is taken over the samples; it is over the arms":
            _over_samples,
        "the baseline alone weighs the push, and the reward is forgotten":
            lambda logits, arms, r: _gradient(logits, arms, r - _advantage(r)),
    },
)  # fmt: skip


# DreamTeacher's regression loss


def _levels(g: Generator) -> Inputs:
    batch = whole(2, 4, g)
    shapes = [(batch, whole(3, 5, g), 4, 4), (batch, whole(6, 8, g), 2, 2)]
    predicted = [torch.randn(s, generator=g) for s in shapes]
    teacher = [1 + (2 + 3 * i) * torch.randn(s, generator=g)
               for i, s in enumerate(shapes)]  # fmt: skip
    return {"predicted": predicted, "teacher": teacher}


def _white(h: Tensor, axes: Any = 1, correction: int = 0) -> Tensor:
    centred = h - h.mean(axes, keepdim=True)
    variance = h.var(axes, keepdim=True, correction=correction)
    return centred / (variance + 1e-5).sqrt()


def _errors(predicted: list, teacher: list, change: Any = _white) -> list[Tensor]:
    pairs = zip(predicted, teacher, strict=True)
    return [(p - change(t)).square() for p, t in pairs]


def _mean(errors: list[Tensor]) -> Tensor:
    return torch.stack([e.mean() for e in errors]).mean()


def _swapped(predicted: list, teacher: list) -> Tensor:
    return _mean(_errors(teacher, predicted))


def _teacher_is_left_alone(answer: Any, g: Generator) -> bool:
    drawn = _levels(g)
    ours, theirs = ([h.requires_grad_() for h in drawn[k]] for k in drawn)
    answer(ours, theirs).backward()
    return all(h.grad is None or not h.grad.any() for h in theirs)


def _student_learns(answer: Any, g: Generator) -> bool:
    drawn = _levels(g)
    ours = [h.requires_grad_() for h in drawn["predicted"]]
    loss = answer(ours, drawn["teacher"])
    if not getattr(loss, "requires_grad", False):
        return False
    loss.backward()
    return all(h.grad is not None and bool(h.grad.any()) for h in ours)


regression_loss = Exercise(
    "regression_loss",
    draw=_levels,
    truth=lambda p, t: _mean(_errors(p, t)),
    tolerance=1e-3,
    mistakes={
        "the levels are summed, where their mean is asked":
            lambda p, t: 2 * _mean(_errors(p, t)),
        "the teacher is not normalised, so its largest numbers decide":
            lambda p, t: _mean(_errors(p, t, lambda h: h)),
        "the student's answer is normalised, and the teacher is not":
            _swapped,
        "both are normalised; only the teacher should be":
            lambda p, t: _mean(_errors([_white(h) for h in p], t)),
        "the statistics are taken over the whole map; at each place over channels":
            lambda p, t: _mean(_errors(p, t, lambda h: _white(h, (1, 2, 3)))),
        "the statistics are taken over places, channel by channel":
            lambda p, t: _mean(_errors(p, t, lambda h: _white(h, (2, 3)))),
        "the statistics are taken over the batch, as batch normalisation does":
            lambda p, t: _mean(_errors(p, t, lambda h: _white(h, (0, 2, 3)))),
        "the mean is not taken away, the deviation alone is divided by":
            lambda p, t: _mean(_errors(
                p, t, lambda h: h / (h.var(1, keepdim=True, correction=0)
                                     + 1e-5).sqrt())),
        "it is divided by the variance; the square root is missing":
            lambda p, t: _mean(_errors(
                p, t, lambda h: _white(h) / (h.var(1, keepdim=True, correction=0)
                                             + 1e-5).sqrt())),
        "the variance divides by C - 1, where LayerNorm divides by C":
            lambda p, t: _mean(_errors(p, t, lambda h: _white(h, correction=1))),
        "all elements of all levels share one mean, so the finest level counts most":
            lambda p, t: torch.cat([e.flatten() for e in _errors(p, t)]).mean(),
        "squared errors are summed within a level, where their mean is asked":
            lambda p, t: torch.stack([e.sum() for e in _errors(p, t)]).mean(),
        "squares are summed over the channels, where their mean is asked":
            lambda p, t: _mean([e.sum(1) for e in _errors(p, t)]),
        "a root of the mean square is taken, which is not asked":
            lambda p, t: torch.stack([e.mean().sqrt() for e in _errors(p, t)]).mean(),
        "the statistics are taken over the last axis, a row of the map":
            lambda p, t: _mean(_errors(p, t, lambda h: _white(h, 3))),
        "the mean is taken away, and nothing is divided by the deviation":
            lambda p, t: _mean(_errors(p, t, lambda h: h - h.mean(1, keepdim=True))),
        "the teacher is scaled to length one; asked for are mean 0 and variance 1":
            lambda p, t: _mean(_errors(p, t, lambda h: F.normalize(h, dim=1))),
        "only the first level counts":
            lambda p, t: _mean(_errors(p[:1], t[:1])),
        "only the last level counts":
            lambda p, t: _mean(_errors(p[-1:], t[-1:])),
        "the error is absolute, not squared":
            lambda p, t: _mean([e.sqrt() for e in _errors(p, t)]),
    },
    properties=(
        Property(
            "its value is right, but no gradient reaches the student",
            _student_learns,
        ),
        Property(
            "its value is right, but a gradient reaches the teacher, who is frozen; "
            "detach it",
            _teacher_is_left_alone,
        ),
    ),
)  # fmt: skip
