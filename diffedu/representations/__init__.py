"""What representations of images are good for, and how they are made without labels."""

from diffedu.representations.classifiers import (
    DiffusionClassifier,
    Verdict,
    diffusion_classify,
    likelihood_classify,
)
from diffedu.representations.looks import denoising_errors, even_places

__all__ = [
    "DiffusionClassifier",
    "Verdict",
    "denoising_errors",
    "diffusion_classify",
    "even_places",
    "likelihood_classify",
]
