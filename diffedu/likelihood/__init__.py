"""How likely a model finds given data: by its ODE, exactly, or by a bound."""

from diffedu.likelihood.continuous import ContinuousBound, continuous_bound
from diffedu.likelihood.divergence import (
    PROBES,
    draw_probes,
    exact_divergence,
    hutchinson_divergence,
)
from diffedu.likelihood.flow import (
    METHODS,
    Likelihood,
    decode,
    encode,
    log_prob,
)
from diffedu.likelihood.levels import dequantize

__all__ = [
    "METHODS",
    "PROBES",
    "ContinuousBound",
    "Likelihood",
    "continuous_bound",
    "decode",
    "dequantize",
    "draw_probes",
    "encode",
    "exact_divergence",
    "hutchinson_divergence",
    "log_prob",
]
