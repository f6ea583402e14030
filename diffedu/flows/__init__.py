"""Flow matching: velocities learned along paths between any two distributions.

A velocity is one more name for what a denoiser knows; what is new here is the freedom
to choose which data point and which noise, or second data point, make a pair.
"""

from diffedu.flows.bridges import MixtureBridge
from diffedu.flows.continuity import continuity_residual
from diffedu.flows.couplings import assignment, minibatch_ot, sinkhorn
from diffedu.flows.dflow import d_flow
from diffedu.flows.interpolants import (
    Interpolant,
    InterpolantNet,
    Motion,
    interpolant_loss,
    interpolant_sample,
)
from diffedu.flows.matching import flow_matching
from diffedu.flows.rectified import (
    Journey,
    reflow_pairs,
    straightness,
    transport_cost,
    travel,
)

__all__ = [
    "Interpolant",
    "InterpolantNet",
    "Journey",
    "MixtureBridge",
    "Motion",
    "assignment",
    "continuity_residual",
    "d_flow",
    "flow_matching",
    "interpolant_loss",
    "interpolant_sample",
    "minibatch_ot",
    "reflow_pairs",
    "sinkhorn",
    "straightness",
    "transport_cost",
    "travel",
]
