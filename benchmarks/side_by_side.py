"""Timing programs next to each other on a machine that is never quite at rest.

All contenders run once in each round, in turn. What counts is the ratio within a
round, and of those the median: a slow moment then slows both sides of a ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

Prepare = Callable[[], Callable[[], object]]  # sets up, and answers what is timed


@dataclass(frozen=True)
class Row:
    """One line of the table: our cost of a step against another's.

    Attributes:
        task: what is done.
        other: who does it beside us.
        ours: our time for a step, in microseconds, the median of rounds.
        theirs: the other's.
        ratio: the median of ours / theirs within a round.
        low: the ratio's lower quartile.
        high: its upper quartile.
    """

    task: str
    other: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float


def seconds(prepare: Prepare) -> float:
    """The processor time of what `prepare` answers; preparing is not counted."""
    run = prepare()
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(
    task: str,
    contenders: Mapping[str, Prepare],
    steps: int,
    rounds: int,
    clock: Callable[[Prepare], float] | None = None,
) -> list[Row]:
    """Our cost a step against each other contender's.

    Args:
        task: a name for the rows.
        contenders: what runs, ours first, each taking `steps` steps.
        steps: steps in one run.
        rounds: how often each runs, after one round that is thrown away.
        clock: how long a run takes, in seconds; processor time unless given.

    Returns:
        a row for each contender but the first.
    """
    names = list(contenders)
    spent: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        first = turn % len(names)  # nobody always runs after the same neighbour
        for name in names[first:] + names[:first]:
            spent[name].append((clock or seconds)(contenders[name]))
    per_step = {n: [1e6 * s / steps for s in spent[n][1:]] for n in names}
    ours = per_step[names[0]]
    return [row(task, name, ours, per_step[name]) for name in names[1:]]


def row(task: str, other: str, ours: list[float], theirs: list[float]) -> Row:
    """The summary of paired times, in microseconds a step."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return Row(task, other, median(ours), median(theirs), median(ratios), low, high)
