"""Making a denoiser that needs few steps out of one that needs many, or of data.

Students are denoisers again: every sampler and every wrapper takes them.
"""

from diffedu.distillation.consistency import (
    ConsistencyModel,
    consistency_loss,
    fit_consistency,
    teacher_step,
)
from diffedu.distillation.levels import (
    curriculum,
    likely_levels,
    noise_levels,
    pseudo_huber,
)
from diffedu.distillation.progressive import (
    Stage,
    progressive,
    progressive_loss,
    two_step_target,
)

__all__ = [
    "ConsistencyModel",
    "Stage",
    "consistency_loss",
    "curriculum",
    "fit_consistency",
    "likely_levels",
    "noise_levels",
    "progressive",
    "progressive_loss",
    "pseudo_huber",
    "teacher_step",
    "two_step_target",
]
