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
from diffedu.representations.correspondence import dift, fuse, match
from diffedu.representations.editing import LocalBlend, PromptToPrompt
from diffedu.representations.hyperfeatures import Hyperfeatures
from diffedu.representations.keypoints import Pairs, pck, shape_pairs
from diffedu.representations.looking import attention_maps, edited_maps
from diffedu.representations.methods import METHODS, Method, table_2, table_2_text
from diffedu.representations.molrg import LowRankMixture, low_rank_mixture, typical_snr
from diffedu.representations.objects import (
    background_change,
    object_hue,
    object_mask,
    overlap,
)
from diffedu.representations.plug_and_play import PlugAndPlay, Replay, inverted_walk

__all__ = [
    "METHODS",
    "Hyperfeatures",
    "LocalBlend",
    "LowRankMixture",
    "Method",
    "Pairs",
    "PlugAndPlay",
    "PromptToPrompt",
    "Replay",
    "attention_maps",
    "augment",
    "background_change",
    "dift",
    "edited_maps",
    "fuse",
    "inverted_walk",
    "low_rank_mixture",
    "match",
    "nt_xent",
    "object_hue",
    "object_mask",
    "overlap",
    "pck",
    "projector",
    "shape_pairs",
    "simclr_loss",
    "table_2",
    "table_2_text",
    "two_views",
    "typical_snr",
    "vicreg",
    "vicreg_loss",
    "vicreg_terms",
]
