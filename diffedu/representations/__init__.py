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

__all__ = [
    "DiffusionClassifier",
    "LowRankMixture",
    "METHODS",
    "Method",
    "Verdict",
    "augment",
    "denoising_errors",
    "diffusion_classify",
    "even_places",
    "likelihood_classify",
    "low_rank_mixture",
    "nt_xent",
    "projector",
    "simclr_loss",
    "table_2",
    "table_2_text",
    "two_views",
    "typical_snr",
    "vicreg",
    "vicreg_loss",
    "vicreg_terms",
]
