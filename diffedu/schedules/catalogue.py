"""The paths in use, by name."""

from __future__ import annotations

from diffedu.errors import lookup
from diffedu.schedules.path import Schedule
from diffedu.schedules.preserving import Cosine, Linear, LogLinear, Sigmoid
from diffedu.schedules.straight import (
    EDM,
    Flow,
    SubVariancePreserving,
    VarianceExploding,
)

linear, cosine, sigmoid, log_linear = Linear, Cosine, Sigmoid, LogLinear
ve, edm, flow = VarianceExploding, EDM, Flow
sub_vp = SubVariancePreserving

CATALOGUE = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "log_linear": log_linear,
    "ve": ve,
    "edm": edm,
    "flow": flow,
    "sub_vp": sub_vp,
}


def by_name(name: str) -> Schedule:
    """The path of this name with its usual constants.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    return lookup(CATALOGUE, name, "schedule")()
