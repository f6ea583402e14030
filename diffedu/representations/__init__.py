"""What representations of images are good for, and how they are made and moved."""

from diffedu.losses.contrastive import (
    augment,
    nt_xent,
    projector,
    simclr_loss,
    two_views,
    vicreg,
    vicreg_loss,
    vicreg_terms,
)
from diffedu.representations.classifiers import (
    DiffusionClassifier,
    Verdict,
    diffusion_classify,
    likelihood_classify,
)
from diffedu.representations.clustering import (
    KMeans,
    kmeans,
    kmeans_step,
)
from diffedu.representations.correspondence import (
    dift,
    fuse,
    match,
)
from diffedu.representations.depth import (
    DepthReader,
    PyramidHead,
    TextAdapter,
    root_mean_square,
)
from diffedu.representations.editing import (
    LocalBlend,
    PromptToPrompt,
)
from diffedu.representations.hyperfeatures import (
    Hyperfeatures,
)
from diffedu.representations.keypoints import (
    Pairs,
    pck,
    shape_pairs,
)
from diffedu.representations.levels import (
    choose_levels,
    improve,
)
from diffedu.representations.looking import (
    attention_maps,
    edited_maps,
    word_maps,
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
from diffedu.representations.objects import (
    background_change,
    object_hue,
    object_mask,
    overlap,
)
from diffedu.representations.plug_and_play import (
    PlugAndPlay,
    Replay,
    inverted_walk,
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
from diffedu.representations.segmentation import (
    as_maps,
    as_pixels,
    pixel_features,
    upsample,
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
    "DepthReader",
    "DiffusionClassifier",
    "FeatureRegressor",
    "Hyperfeatures",
    "KMeans",
    "LocalBlend",
    "LowRankMixture",
    "METHODS",
    "Method",
    "Pairs",
    "PlugAndPlay",
    "Policy",
    "PromptToPrompt",
    "PyramidHead",
    "PyramidPooling",
    "Replay",
    "TextAdapter",
    "Verdict",
    "accuracy",
    "as_maps",
    "as_pixels",
    "attention_loss",
    "attention_map",
    "attention_maps",
    "augment",
    "background_change",
    "choose_levels",
    "denoising_errors",
    "diffusion_classify",
    "dift",
    "draw",
    "dream_loss",
    "edited_maps",
    "even_places",
    "exact_gradient",
    "expected_reward",
    "fine_tune",
    "fuse",
    "hint_loss",
    "improve",
    "inverted_walk",
    "kmeans",
    "kmeans_step",
    "leave_one_out",
    "likelihood_classify",
    "low_rank_mixture",
    "match",
    "nt_xent",
    "object_hue",
    "object_mask",
    "overlap",
    "pck",
    "pixel_features",
    "pretrain",
    "projector",
    "regression_loss",
    "reinforce_loss",
    "root_mean_square",
    "shape_pairs",
    "simclr_loss",
    "soft_label_loss",
    "table_2",
    "table_2_text",
    "two_views",
    "typical_snr",
    "upsample",
    "vicreg",
    "vicreg_loss",
    "vicreg_terms",
    "whiten",
    "word_maps",
]
