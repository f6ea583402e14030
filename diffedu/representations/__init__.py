"""What representations of images are good for, and how they are made without labels."""

from diffedu.representations.clustering import KMeans, kmeans, kmeans_step
from diffedu.representations.depth import (
    DepthReader,
    PyramidHead,
    TextAdapter,
    root_mean_square,
    word_maps,
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
    "PyramidHead",
    "TextAdapter",
    "as_maps",
    "as_pixels",
    "kmeans",
    "kmeans_step",
    "pixel_features",
    "root_mean_square",
    "upsample",
    "word_maps",
]
