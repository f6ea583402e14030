"""The registry of guidance rules: paper, chapter, code, and the survey's three flags.

Table 1 of the survey (2407.00783) is printed from here. A rule without code belongs
to a later chapter and prints "to come".
"""

from __future__ import annotations

from dataclasses import dataclass

from diffedu.errors import require
from diffedu.guidance.control import Control
from diffedu.guidance.energies import EnergyGuidance
from diffedu.guidance.labels import ClassifierFree, ClassifierGuidance
from diffedu.guidance.strength import Autoguidance, Interval
from diffedu.guidance.windows import MultiDiffusion

FLAGS = ("classifier_free", "annotation_free", "online")


@dataclass(frozen=True)
class Rule:
    """One guidance rule.

    Attributes:
        name: as in the literature.
        paper: its arXiv id.
        chapter: where the course builds it, as "ch09".
        code: the class of this package, or None where it is still to come.
        flags: classifier-free, annotation-free and online, in this order, as in the
            survey's table 1; None for a rule that the table does not have.
    """

    name: str
    paper: str
    chapter: str
    code: type | None = None
    flags: tuple[bool, bool, bool] | None = None

    @property
    def function(self) -> str:
        """The name of its code, or "to come"."""
        return "to come" if self.code is None else f"guidance.{self.code.__name__}"


NO_CLASSIFIER, NO_LABELS = (True, False, False), (True, True, False)
RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("classifier guidance", "2105.05233", "ch09", ClassifierGuidance,
             (False, False, False)),
        Rule("classifier-free guidance", "2207.12598", "ch09", ClassifierFree,
             NO_CLASSIFIER),
        Rule("self-guidance", "2210.06462", "ch16", None, NO_LABELS),
        Rule("online guidance", "2312.08825", "ch16", None, (True, True, True)),
        Rule("guidance interval", "2404.07724", "ch09", Interval),
        Rule("autoguidance", "2406.02507", "ch09", Autoguidance),
        Rule("energy guidance (FreeDoM)", "2303.09833", "ch09", EnergyGuidance),
        Rule("MultiDiffusion", "2302.08113", "ch09", MultiDiffusion),
        Rule("control branch", "2302.05543", "ch09", Control),
    )
}  # fmt: skip


def table_1() -> list[tuple[str, str, str, str, str, str]]:
    """The rows of the survey's table 1: name, three marks, chapter, function.

    Returns:
        one row a rule that has flags, in the table's order; a mark is "✓" or "✗".
    """
    rows = []
    for rule in RULES.values():
        if rule.flags is not None:
            marks = ("✓" if flag else "✗" for flag in rule.flags)
            rows.append((rule.name, *marks, rule.chapter, rule.function))
    require(len(rows) > 0, "no rule of the registry carries flags")
    return rows
