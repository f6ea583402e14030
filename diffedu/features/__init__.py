"""Looking inside a denoiser: hidden states read, changed and collected by name."""

from diffedu.features.extraction import POOLS, extract
from diffedu.features.hooks import blocks_of, edit, network_of, record

__all__ = ["POOLS", "blocks_of", "edit", "extract", "network_of", "record"]
