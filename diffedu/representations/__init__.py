"""What representations of images are good for, and how they are made without labels."""

from diffedu.representations.contrastive import (
    augment,
    nt_xent,
    projector,
    simclr_loss,
    two_views,
    vicreg,
    vicreg_loss,
    vicreg_terms,
)
from diffedu.representations.levels import (
    choose_levels,
    improve,
)
from diffedu.representations.molrg import (
    LowRankMixture,
    low_rank_mixture,
    typical_snr,
)
from diffedu.representations.policy import (
    Bandit,
    Policy,
    draw,
    exact_gradient,
    expected_reward,
    leave_one_out,
    reinforce_loss,
)
from diffedu.representations.students import (
    FeatureRegressor,
    PyramidPooling,
    accuracy,
    fine_tune,
    pretrain,
)
from diffedu.representations.transfer import (
    attention_loss,
    attention_map,
    dream_loss,
    hint_loss,
    regression_loss,
    soft_label_loss,
    whiten,
)

__all__ = [
    "Bandit",
    "FeatureRegressor",
    "LowRankMixture",
    "Policy",
    "PyramidPooling",
    "accuracy",
    "attention_loss",
    "attention_map",
    "augment",
    "choose_levels",
    "draw",
    "dream_loss",
    "exact_gradient",
    "expected_reward",
    "fine_tune",
    "hint_loss",
    "improve",
    "leave_one_out",
    "low_rank_mixture",
    "nt_xent",
    "pretrain",
    "projector",
    "regression_loss",
    "reinforce_loss",
    "simclr_loss",
    "soft_label_loss",
    "two_views",
    "typical_snr",
    "vicreg",
    "vicreg_loss",
    "vicreg_terms",
    "whiten",
]
