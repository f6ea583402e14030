"""Representations: what hidden states are good for, one method a module."""

from diffedu.representations.editing import LocalBlend, PromptToPrompt
from diffedu.representations.looking import attention_maps, edited_maps
from diffedu.representations.objects import (
    background_change,
    object_hue,
    object_mask,
    overlap,
)
from diffedu.representations.plug_and_play import PlugAndPlay

__all__ = [
    "LocalBlend",
    "PlugAndPlay",
    "PromptToPrompt",
    "attention_maps",
    "background_change",
    "edited_maps",
    "object_hue",
    "object_mask",
    "overlap",
]
