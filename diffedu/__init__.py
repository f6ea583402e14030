"""diffedu: diffusion models and what they know, built piece by piece."""
