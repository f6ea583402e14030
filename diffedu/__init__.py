"""diffedu: diffusion models and what they know, built piece by piece.

Every model is a denoiser on a noising path; the rest makes, wraps, walks one, or
looks inside it.
"""

from diffedu import (
    cost,
    distillation,
    families,
    features,
    flows,
    guidance,
    latents,
    likelihood,
    losses,
    metrics,
    nets,
    recipes,
    representations,
    samplers,
    schedules,
    training,
    worlds,
)
from diffedu.denoiser import Clipped, Denoiser
from diffedu.notation import notation
from diffedu.prediction import Prediction
from diffedu.worlds.exact import EmpiricalDenoiser
from diffedu.worlds.mixtures import GaussianMixture

__version__ = "0.1.0"

__all__ = [
    "Clipped",
    "Denoiser",
    "EmpiricalDenoiser",
    "GaussianMixture",
    "Prediction",
    "cost",
    "distillation",
    "families",
    "features",
    "flows",
    "guidance",
    "latents",
    "likelihood",
    "losses",
    "metrics",
    "nets",
    "notation",
    "recipes",
    "representations",
    "samplers",
    "schedules",
    "training",
    "worlds",
]
