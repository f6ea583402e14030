"""How an exercise is checked: fresh inputs, the truth, and the kind of mistake.

A check calls the reader's function on fresh inputs. If the result is wrong, it is
compared with each known mistake on the same inputs, then with general ones.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from diffedu.checks.calling import (
    CheckFailed,
    Function,
    Stop,
    call,
    coloured,
    require_signature,
)
from diffedu.checks.diagnosis import Pair, diagnose, misshapen
from diffedu.checks.values import Parts, cast, close, kind, parts, same, sizes
from diffedu.errors import require

Inputs = dict[str, Any]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}


@dataclass(frozen=True)
class Property:
    """What must hold of a function that has no one right answer.

    Attributes:
        message: said where it does not hold; names the kind of mistake.
        holds: called with the reader's function and a generator; True if it holds.
    """

    message: str
    holds: Callable[[Function, torch.Generator], bool]


@dataclass(frozen=True)
class Trial:
    """One draw: the inputs, what the reader's function gave, and what is right."""

    seed: int
    inputs: Inputs
    given: Any
    right: Any
    touched: str = ""


@dataclass(frozen=True)
class Exercise:
    """One exercise's check; call it with the reader's function.

    Attributes:
        name: the exercise's, which is also the name of the reader's function.
        draw: makes fresh inputs by name, in the order of the call, from a generator.
        truth: the right function of these inputs; None if `properties` say it all.
        mistakes: message to wrong function of the same inputs.
        properties: what else must hold.
        returns: names of the parts, where a tuple is returned.
        tolerance: largest error in units of the truth's largest value; None for
            1e-4 in float32 and 1e-6 in float64.
        relative: measure each element's error by that element instead.
        draws: how many fresh inputs are tried.
        probe: maps a result to what is compared.
    """

    name: str
    draw: Callable[[torch.Generator], Inputs] = lambda generator: {}
    truth: Function | None = None
    mistakes: Mapping[str, Function] = field(default_factory=dict)
    properties: tuple[Property, ...] = ()
    returns: tuple[str, ...] = ()
    tolerance: float | None = None
    relative: bool = False
    draws: int = 6
    probe: Callable[[Any], Any] = lambda result: result

    def __post_init__(self) -> None:
        require(
            self.truth is not None or bool(self.properties),
            f'exercise "{self.name}" has neither a truth nor properties to check',
        )

    def __call__(
        self,
        answer: Function,
        *,
        seed: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Check an answer; print one line, or raise with the kind of mistake.

        Args:
            answer: the reader's function.
            seed: for the same draws again; None draws fresh ones.
            dtype: of the inputs, float32 or float64.

        Raises:
            CheckFailed: if the answer is wrong.
        """
        seed = secrets.randbits(40) if seed is None else seed
        message = self.verdict(answer, seed, dtype)
        if message:
            raise CheckFailed(f"{self.name}: {message}")
        print(coloured(f"✓ {self.name}"))

    def verdict(
        self, answer: Function, seed: int, dtype: torch.dtype = torch.float32
    ) -> str:
        """What is wrong with an answer on the draws of a seed; "" if nothing is."""
        if not callable(answer):
            return (
                f"it got {kind(answer)}; give it the function itself, without "
                f"calling it: check.{self.name}({self.name})"
            )
        try:
            return self._compare(answer, seed, dtype) or self._ask(answer, seed)
        except Stop as stop:
            return str(stop)

    def _compare(self, answer: Function, seed: int, dtype: torch.dtype) -> str:
        if self.truth is None:
            return ""
        seeds = range(seed, seed + self.draws)
        trials = [self._trial(answer, each, dtype) for each in seeds]
        tolerance = self.tolerance or TOLERANCE[dtype]
        touched = next((trial.touched for trial in trials if trial.touched), "")
        if all(self._equal(t.given, t.right, tolerance) for t in trials):
            return touched
        known = self._known(trials, dtype, 10 * tolerance)
        return known or touched or self._general(trials, answer, dtype, tolerance)

    def _ask(self, answer: Function, seed: int) -> str:
        for number, each in enumerate(self.properties):
            generator = _generator(seed + number)
            if not call(each.holds, (answer, generator), of=answer):
                return each.message
        return ""

    def _inputs(self, seed: int, dtype: torch.dtype) -> Inputs:
        return cast(self.draw(_generator(seed)), dtype)

    def _exact(self, function: Function, seed: int, dtype: torch.dtype) -> Any:
        """The function in float64, unless it draws its own noise from an input."""
        inputs = self._inputs(seed, dtype)
        draws = any(isinstance(v, torch.Generator) for v in inputs.values())
        wide = inputs if draws else cast(inputs, torch.float64)
        return self.probe(function(*wide.values()))

    def _trial(self, answer: Function, seed: int, dtype: torch.dtype) -> Trial:
        inputs = self._inputs(seed, dtype)
        fresh = self._inputs(seed, dtype)
        require_signature(answer, inputs)
        result = call(answer, tuple(inputs.values()), of=answer)
        if result is None:
            raise Stop("it returned None; is the `return` missing?")
        given = call(self.probe, (result,), of=answer)
        changed = [name for name in fresh if not same(fresh[name], inputs[name])]
        touched = f"it changes its input {', '.join(changed)}; work on a copy"
        right = self._exact(self.truth, seed, dtype)
        return Trial(seed, fresh, given, right, touched if changed else "")

    def _equal(self, given: Any, right: Any, tolerance: float) -> bool:
        a, b = self._parts(given), parts(right, self.returns)
        return a.keys() == b.keys() and all(
            close(a[k], b[k], tolerance, self.relative) for k in b
        )

    def _parts(self, given: Any) -> Parts:
        try:
            return parts(given, self.returns)
        except (TypeError, ValueError, RuntimeError) as error:
            raise Stop(f"it returned {kind(given)}, which is no number") from error

    def _known(self, trials: list[Trial], dtype: torch.dtype, tolerance: float) -> str:
        """The first known mistake that gives the reader's result on all draws."""
        for message, mistake in self.mistakes.items():
            try:
                wrong = [self._exact(mistake, t.seed, dtype) for t in trials]
            except Exception:  # a formula that can't be evaluated explains nothing
                continue
            pairs = list(zip(trials, wrong, strict=True))
            fits = all(self._equal(t.given, w, tolerance) for t, w in pairs)
            tells = any(not self._equal(w, t.right, tolerance) for t, w in pairs)
            if fits and tells:
                return f"looks like {message}"
        return ""

    def _general(
        self, trials: list[Trial], answer: Function, dtype: torch.dtype, tol: float
    ) -> str:
        given = [self._parts(trial.given) for trial in trials]
        right = [parts(trial.right, self.returns) for trial in trials]
        if given[0].keys() != right[0].keys():
            return f"it returned {kind(trials[0].given)}, not {kind(trials[0].right)}"
        for label in right[0]:
            both = [(g[label], r[label]) for g, r in zip(given, right, strict=True)]
            if all(close(g, r, tol, self.relative) for g, r in both):
                continue
            name = f"{label.strip('[]')}: " if label else ""
            if message := misshapen(both):
                return name + message
            pairs = [
                Pair(g.reshape(r.shape), r, frozenset(sizes(t.inputs)))
                for (g, r), t in zip(both, trials, strict=True)
            ]
            return name + diagnose(
                pairs, tol, lambda: self._mixed(trials, answer, dtype, tol)
            )
        return ""

    def _mixed(
        self, trials: list[Trial], answer: Function, dtype: torch.dtype, tol: float
    ) -> str:
        """Whether the answer is right for each sample alone, but not for the batch."""
        try:
            alone = all(self._alone(t, answer, dtype, tol) for t in trials)
        except Exception:  # not every exercise has a batch
            return ""
        words = "it is right for a batch of one: the samples of a batch are mixed"
        return f"{words}, or a value a sample lies along the wrong axis" * alone

    def _alone(
        self, trial: Trial, answer: Function, dtype: torch.dtype, tol: float
    ) -> bool:
        size = len(next(iter(parts(trial.right).values())))
        first = {
            name: value[:1]
            if isinstance(value, torch.Tensor) and value.dim() and len(value) == size
            else value
            for name, value in self._inputs(trial.seed, dtype).items()
        }
        right = self.probe(self.truth(*cast(first, torch.float64).values()))
        whole = {k: t[:1] for k, t in parts(trial.right, self.returns).items()}
        one = parts(right, self.returns)
        sliced = size > 1 and all(close(one[k], whole[k], tol) for k in whole)
        return sliced and self._equal(self.probe(answer(*first.values())), right, tol)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
