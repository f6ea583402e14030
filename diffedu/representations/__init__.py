"""What representations of images are good for, and how they are made and moved."""

from diffedu.representations.clustering import (
    KMeans,
    kmeans,
    kmeans_step,
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
from diffedu.representations.depth import (
    DepthReader,
    PyramidHead,
    TextAdapter,
    root_mean_square,
    word_maps,
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
from diffedu.representations.segmentation import (
    as_maps,
    as_pixels,
    pixel_features,
    upsample,
)

__all__ = [
    "DepthReader",
    "KMeans",
    "LowRankMixture",
    "METHODS",
    "Method",
    "PyramidHead",
    "TextAdapter",
    "as_maps",
    "as_pixels",
    "augment",
    "kmeans",
    "kmeans_step",
    "low_rank_mixture",
    "nt_xent",
    "pixel_features",
    "projector",
    "root_mean_square",
    "simclr_loss",
    "table_2",
    "table_2_text",
    "two_views",
    "typical_snr",
    "upsample",
    "vicreg",
    "vicreg_loss",
    "vicreg_terms",
    "word_maps",
]
