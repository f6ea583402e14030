"""Guidance: denoisers around denoisers that steer what is drawn, and nest."""

from diffedu.guidance.base import Guidance
from diffedu.guidance.control import Control, ControlledUNet
from diffedu.guidance.energies import EnergyGuidance, TimeTravel
from diffedu.guidance.labels import (
    ClassifierFree,
    ClassifierGuidance,
    ExactClassifier,
)
from diffedu.guidance.rules import FLAGS, RULES, Rule, table_1
from diffedu.guidance.strength import Autoguidance, Interval
from diffedu.guidance.windows import MultiDiffusion

__all__ = [
    "FLAGS",
    "RULES",
    "Autoguidance",
    "ClassifierFree",
    "ClassifierGuidance",
    "Control",
    "ControlledUNet",
    "EnergyGuidance",
    "ExactClassifier",
    "Guidance",
    "Interval",
    "MultiDiffusion",
    "Rule",
    "TimeTravel",
    "table_1",
]
