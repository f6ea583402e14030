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

__all__ = [
    "augment",
    "nt_xent",
    "projector",
    "simclr_loss",
    "two_views",
    "vicreg",
    "vicreg_loss",
    "vicreg_terms",
]
