"""What kind of mistake a wrong result shows, where no known mistake fits it.

Each diagnosis is a sentence and a test on (given, expected); the first that holds on
all draws is said. No sentence holds a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffedu.checks.values import close

LOOSE = 1e-3


@dataclass(frozen=True)
class Pair:
    """One draw's result: what was given and what is right, both of one shape.

    Attributes:
        given: the reader's, any shape, float64.
        right: the truth, same shape.
        counts: what a sum or a mean over the inputs could run over.
    """

    given: Tensor
    right: Tensor
    counts: frozenset[int] = frozenset()


Test = Callable[[Tensor, Tensor], bool]


def diagnose(
    pairs: Sequence[Pair], tolerance: float, mixed: Callable[[], str] = str
) -> str:
    """The sentence for a result that is wrong on some of the draws.

    Args:
        pairs: one a draw.
        tolerance: two results closer than that agree.
        mixed: says whether the samples of a batch are mixed; costs calls, so is asked
            only if no simpler form fits.
    """
    if sentence := _not_finite(pairs):
        return sentence
    loose = max(LOOSE, tolerance)
    for sentence, test in PATTERNS:
        if all(_holds(test, pair) for pair in pairs):
            return sentence
    found = mixed() or _factor(pairs, loose) or _place(pairs, loose)
    return found or _amount(pairs)


def misshapen(both: Sequence[tuple[Tensor, Tensor]]) -> str:
    """What is wrong with the shape of a result, from (given, right) of each draw."""
    for g, r in both:
        if g.shape != r.shape and not g.numel() == r.numel() == 1:
            return (
                f"the result has shape {tuple(g.shape)}; asked for is {tuple(r.shape)}"
            )
        if g.is_complex() and not r.is_complex():
            return "the result is complex; asked for are real numbers"
    return ""


def _holds(test: Test, pair: Pair) -> bool:
    return bool(test(pair.given, pair.right))


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and close(a, b, LOOSE)


def _not_finite(pairs: Sequence[Pair]) -> str:
    bad = [p for p in pairs if (p.given.isnan() & ~p.right.isnan()).any()]
    if bad:
        at, of = int(bad[0].given.isnan().sum()), bad[0].given.numel()
        return (
            f"{at} of {of} values are NaN: a root or logarithm of a negative number, "
            "or 0 divided by 0"
        )
    if any((p.given.isinf() & ~p.right.isinf()).any() for p in pairs):
        return "it holds infinite values: something is divided by 0"
    return ""


def _squared(a: Tensor, b: Tensor) -> bool:
    return _alike(a, b * b)


def _rooted(a: Tensor, b: Tensor) -> bool:
    return bool((a >= 0).all()) and _alike(a * a, b)


def _turned(a: Tensor, b: Tensor) -> bool:
    return b.dim() >= 2 and b.shape[-1] == b.shape[-2] and _alike(a.mT, b)


def _flipped(a: Tensor, b: Tensor) -> bool:
    return b.dim() >= 1 and b.shape[0] > 1 and _alike(a.flip(0), b)


def _late(a: Tensor, b: Tensor) -> bool:
    return b.dim() >= 1 and b.shape[0] > 2 and _alike(a[1:], b[:-1])


def _early(a: Tensor, b: Tensor) -> bool:
    return b.dim() >= 1 and b.shape[0] > 2 and _alike(a[:-1], b[1:])


def _offset(a: Tensor, b: Tensor) -> bool:
    gap = a - b
    return b.numel() > 2 and _alike(gap, gap.mean().expand_as(gap))


def _constant(a: Tensor, b: Tensor) -> bool:
    spread = b.numel() > 2 and not _alike(b, b.mean().expand_as(b))
    return spread and bool(_alike(a, a.flatten()[0].expand_as(a)))


PATTERNS: tuple[tuple[str, Test], ...] = (
    ("it is 0 everywhere", lambda a, b: not a.any() and bool(b.any())),
    ("it has the wrong sign", lambda a, b: _alike(-a, b)),
    ("its size is right, but some signs are wrong",
     lambda a, b: _alike(a.abs(), b.abs())),
    ("it is the square of what is asked: a square root is missing", _squared),
    ("it is the square root of what is asked: a root too many", _rooted),
    ("it is one over what is asked", lambda a, b: _alike(a * b, torch.ones_like(b))),
    ("it is one minus what is asked", lambda a, b: _alike(a, 1 - b)),
    ("it is the exponential of what is asked: a logarithm is missing",
     lambda a, b: _alike(a, b.exp())),
    ("it is the logarithm of what is asked: an exponential is missing",
     lambda a, b: _alike(a.exp(), b)),
    ("it is transposed: two axes are exchanged", _turned),
    ("its first axis runs backwards", _flipped),
    ("it is shifted by one along its first axis: it comes one too late", _late),
    ("it is shifted by one along its first axis: it comes one too early", _early),
    ("it is off by one and the same amount everywhere", _offset),
    ("it has one and the same value everywhere, and should not", _constant),
)  # fmt: skip


def _ratio(pair: Pair, tolerance: float) -> float | None:
    """given / right where that is one number for all elements, else None."""
    big = pair.right.abs() > 1e-3 * pair.right.abs().max()
    ratios = (pair.given / pair.right)[big]
    if pair.right.is_complex() or not ratios.numel():
        return None
    first = float(ratios.median())
    return first if close(pair.given, first * pair.right, tolerance) else None


def _factor(pairs: Sequence[Pair], tolerance: float) -> str:
    ratios = [_ratio(pair, tolerance) for pair in pairs]
    if not all(ratios):
        return ""
    if max(ratios) - min(ratios) <= tolerance * abs(ratios[0]):
        return "it is off by a constant factor"
    counts = [pair.counts for pair in pairs]
    if _among(ratios, counts, tolerance):
        return "it sums where a mean is asked, or is divided by too few"
    if _among([1 / ratio for ratio in ratios], counts, tolerance):
        return "it takes a mean where a sum is asked, or is divided by too many"
    single = all(pair.right.numel() == 1 for pair in pairs)
    return "" if single else "it is off by a factor that changes with the inputs"


def _among(
    ratios: Sequence[float], counts: Sequence[frozenset[int]], tolerance: float
) -> bool:
    """Whether each ratio is one of its draw's counts."""
    return all(
        any(abs(ratio - n) <= tolerance * n for n in options)
        for ratio, options in zip(ratios, counts, strict=True)
    )


def _place(pairs: Sequence[Pair], tolerance: float) -> str:
    wrong = [_wrong(pair, tolerance) for pair in pairs]
    for axis in range(pairs[0].right.dim()):
        if name := _end(wrong, axis):
            return (
                f"it is right but for the {name} index along axis {axis}: "
                "look at what happens at that end"
            )
    rows = [mask.reshape(len(mask), -1).any(1) for mask in wrong if mask.dim() >= 1]
    if len(rows) == len(wrong) and all(0 < int(r.sum()) < len(r) for r in rows):
        return "it is right for some samples of the batch and wrong for others"
    if any(not mask.any() for mask in wrong):
        return (
            "it is right on some inputs and wrong on others: a special case is missing"
        )
    return ""


def _wrong(pair: Pair, tolerance: float) -> Tensor:
    scale = pair.right.abs().max().clamp_min(1e-30)
    return (pair.given - pair.right).abs() > tolerance * scale


def _end(wrong: Sequence[Tensor], axis: int) -> str:
    """The end of an axis to which all errors are confined, "" if there is none."""
    lengths = [mask.shape[axis] for mask in wrong if mask.dim() > axis]
    if len(lengths) < len(wrong) or min(lengths) < 3:
        return ""
    for name, index in (("first", 0), ("last", -1)):
        if all(_confined(mask.movedim(axis, 0), index) for mask in wrong):
            return name
    return ""


def _confined(mask: Tensor, index: int) -> bool:
    rest = mask[1:] if index == 0 else mask[:-1]
    return bool(mask[index].any()) and not bool(rest.any())


def _amount(pairs: Sequence[Pair]) -> str:
    given = torch.cat([p.given.flatten() for p in pairs])
    right = torch.cat([p.right.flatten() for p in pairs])
    error = float((given - right).abs().max() / right.abs().max().clamp_min(1e-30))
    if error < 0.02:
        return "it is nearly right: look for a small term, an end, or a rounding"
    return "its values are wrong; compare each factor with the equation"
