"""Noising paths: how much signal and how much noise there is at each time."""

from diffedu.schedules.catalogue import (
    CATALOGUE,
    by_name,
    cosine,
    edm,
    flow,
    linear,
    log_linear,
    sigmoid,
    sub_vp,
    ve,
)
from diffedu.schedules.chain import Chain, Table, from_betas
from diffedu.schedules.path import Schedule
from diffedu.schedules.preserving import (
    Cosine,
    Linear,
    LogLinear,
    Sigmoid,
    VariancePreserving,
)
from diffedu.schedules.straight import (
    EDM,
    Flow,
    SubVariancePreserving,
    VarianceExploding,
)

__all__ = [
    "CATALOGUE",
    "EDM",
    "Chain",
    "Cosine",
    "Flow",
    "Linear",
    "LogLinear",
    "Schedule",
    "Sigmoid",
    "SubVariancePreserving",
    "Table",
    "VarianceExploding",
    "VariancePreserving",
    "by_name",
    "cosine",
    "edm",
    "flow",
    "from_betas",
    "linear",
    "log_linear",
    "sigmoid",
    "sub_vp",
    "ve",
]
