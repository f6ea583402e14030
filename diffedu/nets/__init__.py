"""Networks: plain modules called as `net(x, t, **condition)` that return one tensor.

They know nothing of schedules; anything with the same call can replace them.
"""

from diffedu.nets.attention import Attend
from diffedu.nets.autoencoder import Autoencoder, autoencoder_loss
from diffedu.nets.captions import CrossAttention, Words
from diffedu.nets.conditions import Condition, TimeFeatures
from diffedu.nets.dit import DiT
from diffedu.nets.mlp import MLP, Energy
from diffedu.nets.tokens import TokenAttention, patchify, unpatchify
from diffedu.nets.unet import UNet

__all__ = [
    "MLP",
    "Attend",
    "Autoencoder",
    "Condition",
    "CrossAttention",
    "DiT",
    "Energy",
    "TimeFeatures",
    "TokenAttention",
    "UNet",
    "Words",
    "autoencoder_loss",
    "patchify",
    "unpatchify",
]
