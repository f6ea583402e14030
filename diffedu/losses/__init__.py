"""What a denoiser or a score is trained to make small."""

from diffedu.losses.bound import (
    Bound,
    bits_offset,
    bound_term,
    decoder_nll,
    gaussian_kl,
    hybrid,
    prior_kl,
    variational_bound,
)
from diffedu.losses.denoising import (
    WEIGHTINGS,
    denoising,
    edm_times,
    random_times,
)
from diffedu.losses.score_matching import (
    denoising_score_matching,
    explicit_score_matching,
    implicit_score_matching,
    sliced_score_matching,
)

__all__ = [
    "WEIGHTINGS",
    "Bound",
    "bits_offset",
    "bound_term",
    "decoder_nll",
    "denoising",
    "denoising_score_matching",
    "edm_times",
    "explicit_score_matching",
    "gaussian_kl",
    "hybrid",
    "implicit_score_matching",
    "prior_kl",
    "random_times",
    "sliced_score_matching",
    "variational_bound",
]
