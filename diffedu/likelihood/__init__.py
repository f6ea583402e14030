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
    dequantize,
    encode,
    log_prob,
)

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
