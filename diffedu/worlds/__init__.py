"""Data whose truth is known: mixtures, 2-D toys, digits, ShapeWorld, optional sets."""

from diffedu.worlds import digits, real, shapeworld, toys
from diffedu.worlds.exact import EmpiricalDenoiser, MixtureDenoiser
from diffedu.worlds.mixtures import GaussianMixture
from diffedu.worlds.shapeworld import ShapeWorld

__all__ = [
    "EmpiricalDenoiser",
    "GaussianMixture",
    "MixtureDenoiser",
    "ShapeWorld",
    "digits",
    "real",
    "shapeworld",
    "toys",
]
