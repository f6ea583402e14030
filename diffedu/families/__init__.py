"""Four other families of generative models, to be set beside a diffusion model.

Each turns standard noise z into data: a VAE and a GAN by a network that has no inverse,
RealNVP by one that has, an energy-based model by a chain of Langevin steps. They know
nothing of noising paths.
"""

from diffedu.families.cost import Cost, count, mlp
from diffedu.families.energy import (
    Chains,
    EnergyModel,
    contrastive_loss,
    langevin,
)
from diffedu.families.gan import (
    GAN,
    Round,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    play,
)
from diffedu.families.realnvp import Coupling, RealNVP
from diffedu.families.vae import VAE, gaussian_log_prob, standard_kl

__all__ = [
    "GAN",
    "VAE",
    "Chains",
    "Cost",
    "Coupling",
    "EnergyModel",
    "RealNVP",
    "Round",
    "contrastive_loss",
    "count",
    "discriminator_loss",
    "gaussian_log_prob",
    "generator_loss",
    "gradient_penalty",
    "langevin",
    "mlp",
    "play",
    "standard_kl",
]
