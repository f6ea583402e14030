"""What representations of images are good for, and how they are made and moved."""

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
from diffedu.representations.editing import (
    LocalBlend,
    PromptToPrompt,
)
from diffedu.representations.looking import (
    attention_maps,
    edited_maps,
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

__all__ = [
    "LocalBlend",
    "LowRankMixture",
    "PlugAndPlay",
    "PromptToPrompt",
    "Replay",
    "attention_maps",
    "augment",
    "background_change",
    "edited_maps",
    "inverted_walk",
    "low_rank_mixture",
    "nt_xent",
    "object_hue",
    "object_mask",
    "overlap",
    "projector",
    "simclr_loss",
    "two_views",
    "typical_snr",
    "vicreg",
    "vicreg_loss",
    "vicreg_terms",
]
