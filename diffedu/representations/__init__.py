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
from diffedu.representations.molrg import LowRankMixture, low_rank_mixture, typical_snr

__all__ = [
    "LowRankMixture",
    "augment",
    "low_rank_mixture",
    "nt_xent",
    "projector",
    "simclr_loss",
    "two_views",
    "typical_snr",
    "vicreg",
    "vicreg_loss",
    "vicreg_terms",
]
