"""Measures of samples, representations and images.

Features are (N, D), images (B, C, H, W). A number means little without its features,
its n and its control: print all three.
"""

from .frechet import (
    frechet_distance,
    frechet_extrapolated,
    frechet_gaussian,
    mean_and_covariance,
)
from .images import psnr, ssim
from .kernels import energy_distance, kid, kid_subsets, mmd
from .neighbours import ModeCoverage, PrecisionRecall, mode_coverage, precision_recall
from .probe import LinearProbe, linear_probe, shared_rows
from .segments import adjusted_rand_index, class_iou, confusion, mean_iou
from .similarity import cka, cknna
from .sphere import alignment, uniformity
from .transport import sliced_wasserstein, wasserstein_1d

__all__ = [
    "LinearProbe",
    "ModeCoverage",
    "PrecisionRecall",
    "adjusted_rand_index",
    "alignment",
    "cka",
    "cknna",
    "class_iou",
    "confusion",
    "energy_distance",
    "frechet_distance",
    "frechet_extrapolated",
    "frechet_gaussian",
    "kid",
    "kid_subsets",
    "linear_probe",
    "mean_and_covariance",
    "mean_iou",
    "mmd",
    "mode_coverage",
    "precision_recall",
    "psnr",
    "shared_rows",
    "sliced_wasserstein",
    "ssim",
    "uniformity",
    "wasserstein_1d",
]
