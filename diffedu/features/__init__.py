"""Looking inside a denoiser: hidden states read, changed and collected by name.

One framework: extract features, select block and time on a validation split, fit a
head (2407.00783, section 3.1).
"""

from diffedu.features.extraction import POOLS, extract
from diffedu.features.heads import (
    MLP,
    AttentionFusion,
    Fitted,
    Linear,
    PixelEnsemble,
)
from diffedu.features.hooks import blocks_of, edit, network_of, record
from diffedu.features.selection import Selection, select

__all__ = [
    "MLP",
    "POOLS",
    "AttentionFusion",
    "Fitted",
    "Linear",
    "PixelEnsemble",
    "Selection",
    "blocks_of",
    "edit",
    "extract",
    "network_of",
    "record",
    "select",
]
