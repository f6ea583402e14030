"""What representations of images are good for, and how they are made without labels."""

from diffedu.representations.levels import choose_levels, improve
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
    "Policy",
    "PyramidPooling",
    "accuracy",
    "attention_loss",
    "attention_map",
    "choose_levels",
    "draw",
    "dream_loss",
    "exact_gradient",
    "expected_reward",
    "fine_tune",
    "hint_loss",
    "improve",
    "leave_one_out",
    "pretrain",
    "regression_loss",
    "reinforce_loss",
    "soft_label_loss",
    "whiten",
]
