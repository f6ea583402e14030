"""What representations of images are good for, and how they are made without labels."""

from diffedu.representations.classifiers import (
    DiffusionClassifier,
    Verdict,
    diffusion_classify,
    likelihood_classify,
)
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
from diffedu.representations.looks import (
    denoising_errors,
    even_places,
)
from diffedu.representations.methods import (
    METHODS,
    Method,
    table_2,
    table_2_text,
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
    "DiffusionClassifier",
    "FeatureRegressor",
    "LowRankMixture",
    "METHODS",
    "Method",
    "Policy",
    "PyramidPooling",
    "Verdict",
    "accuracy",
    "attention_loss",
    "attention_map",
    "augment",
    "choose_levels",
    "denoising_errors",
    "diffusion_classify",
    "draw",
    "dream_loss",
    "even_places",
    "exact_gradient",
    "expected_reward",
    "fine_tune",
    "hint_loss",
    "improve",
    "leave_one_out",
    "likelihood_classify",
    "low_rank_mixture",
    "nt_xent",
    "pretrain",
    "projector",
    "regression_loss",
    "reinforce_loss",
    "simclr_loss",
    "soft_label_loss",
    "table_2",
    "table_2_text",
    "two_views",
    "typical_snr",
    "vicreg",
    "vicreg_loss",
    "vicreg_terms",
    "whiten",
]
