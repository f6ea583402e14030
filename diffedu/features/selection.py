"""Which block at which time: the second step of the one framework.

Of all times and all sets of blocks, the one whose features a head reads best on a
validation split; test rows have no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from diffedu.errors import lookup, require, unknown
from diffedu.features.heads import Linear
from diffedu.features.learners import check_features, check_labels
from diffedu.metrics.inputs import at_least_float32
from diffedu.metrics.probe import shared_rows, split_rows

Blocks = str | tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """What was chosen, and what every candidate scored on the validation split.

    `block`: a name, or a tuple of names whose features are joined. `time`: its time.
    `score`: its score. `scores`: for each candidate (K,), one a time, lower is better.
    `times` (K,). `by`: "error" (share of wrong answers) or "loss" (nats).
    """

    block: Blocks
    time: float
    score: float
    scores: dict[Blocks, Tensor]
    times: Tensor
    by: str

    def features(self, features: Mapping[str, Tensor]) -> Tensor:
        """The chosen features (M, D) of others (K, M, D), made in the same way."""
        at = int((self.times == self.time).nonzero()[0, 0])
        return _joined(features, self.block)[at]


def select(
    features: Mapping[str, Tensor],
    y: Tensor,
    times: Sequence[float] | Tensor,
    head: Any = None,
    validation: float = 0.2,
    generator: torch.Generator | None = None,
    *,
    combinations: Sequence[Sequence[str]] = (),
    by: str = "error",
    test: Mapping[str, Tensor] | None = None,
) -> Selection:
    """The time and the blocks with the least discriminative loss (2407.00783, eq. 16).

    One split serves all candidates. Each head is fitted to the training part and
    scored on the rest; for a `Linear` head each of its strengths is a candidate too,
    so that no second split is needed. Of equals the first is chosen, in the order of
    blocks, then combinations, then times. Deterministic but for the split and heads.

    Args:
        features: for each block (K, N, D), as `extract` gives them for K times.
        y: integer labels, shape (N,).
        times: the K times.
        head: settings with `fit(x, y, generator)`; None is `Linear()`.
        validation: share of the rows, of every class, that choose; at most 1/2.
        generator: draws the split; every head is given one of the same seed.
        combinations: sets of blocks to try too, their features joined.
        by: "error" or "loss" (the cross-entropy, in nats) on the validation split.
        test: features (K, M, D) of the rows that must stay unseen, to be sure.

    Returns:
        a Selection.

    Raises:
        TypeError: if features are no floating-point tensors or labels no integers.
        ValueError: if shapes do not fit, a name is unknown, a row of `test` is among
            the features, or one row is in both parts of the split.
    """
    measure = lookup(MEASURES, by, "measure")
    head = Linear() if head is None else head
    times = torch.as_tensor(times, dtype=torch.float64).flatten()
    classes, numbers = _check(features, y, times)
    candidates = [*features, *(_known(features, blocks) for blocks in combinations)]
    rows, held = split_rows(numbers, validation, generator)
    _check_split(features, numbers, rows, held, test)
    state = None if generator is None else generator.get_state()
    scores = {}
    for blocks in candidates:
        found = []
        for x in _joined(features, blocks):
            if state is not None:
                generator.set_state(state)
            tried = _answers(head, x, numbers, len(classes), rows, held, generator)
            found.append(min(measure(logits, numbers[held]) for logits in tried))
        scores[blocks] = torch.tensor(found, dtype=torch.float64)
    best = min(scores, key=lambda blocks: float(scores[blocks].min()))
    at = int(scores[best].argmin())
    return Selection(best, float(times[at]), float(scores[best][at]), scores, times, by)


def _answers(
    head: Any,
    x: Tensor,
    y: Tensor,
    classes: int,
    rows: Tensor,
    held: Tensor,
    generator: torch.Generator | None,
) -> list[Tensor]:
    """Class scores (M, C) of the held-out rows by a head fitted to the others."""
    if isinstance(head, Linear):
        return list(head.try_on(x, y, classes, rows, held).values())
    return [head.fit(x[rows], y[rows], generator).logits(x[held])]


def _joined(features: Mapping[str, Tensor], blocks: Blocks) -> Tensor:
    """Features (K, N, D), side by side if there are several blocks."""
    names = (blocks,) if isinstance(blocks, str) else blocks
    parts = [lookup(features, name, "block") for name in names]
    return torch.cat([at_least_float32(part.detach()) for part in parts], -1)


def _known(features: Mapping[str, Tensor], blocks: Sequence[str]) -> tuple[str, ...]:
    """A combination, its names looked up."""
    require(
        not isinstance(blocks, str) and len(blocks) > 0,
        f"a combination is a sequence of names of blocks, got {blocks!r}",
    )
    for name in blocks:
        if name not in features:
            raise unknown(name, features.keys(), "block")
    return tuple(blocks)


def _check(
    features: Mapping[str, Tensor], y: Tensor, times: Tensor
) -> tuple[Tensor, Tensor]:
    """The classes and their numbers; raises unless every block fits them."""
    require(len(features) > 0, "features is empty; give (K, N, D) for each block")
    require(
        len(times.unique()) == len(times) > 0,
        f"times is {times.tolist()}; give one or more, each once",
    )
    for name, x in features.items():
        check_features(x, y, (3,), f"(K, N, D) in block {name}; see extract's times")
        require(
            len(x) == len(times),
            f"block {name} has features at {len(x)} times, but times has {len(times)}",
        )
        answer = check_labels(y, tuple(x.shape[1:2]))
    return answer


def _check_split(
    features: Mapping[str, Tensor],
    y: Tensor,
    rows: Tensor,
    held: Tensor,
    test: Mapping[str, Tensor] | None,
) -> None:
    """Refuse rows on both sides, and classes that no row is left to learn from."""
    for name, x in features.items():
        _apart(x[0][rows], x[0][held], f"validation rows of block {name}")
        if test is not None:
            _apart(x[0], lookup(test, name, "block")[0], f"test rows of block {name}")
    require(
        len(y[rows].unique()) == len(y.unique()),
        "a class has too few rows to be on both sides of the split; give more rows",
    )


def _apart(seen: Tensor, unseen: Tensor, what: str) -> None:
    leak = shared_rows(seen, unseen)
    require(
        len(leak) == 0,
        f"{len(leak)} {what} are among the rows fitted to, the first at "
        f"{leak[:3].tolist()}; draw the sets apart (see metrics.shared_rows)",
    )


def _error(logits: Tensor, y: Tensor) -> float:
    return int((logits.argmax(1) != y).sum()) / len(y)


def _loss(logits: Tensor, y: Tensor) -> float:
    return float(cross_entropy(logits, y))


MEASURES = {"error": _error, "loss": _loss}
