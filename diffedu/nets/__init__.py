"""Networks: plain modules called as `net(x, t, **condition)` that return one tensor.

They know nothing of schedules; anything with the same call can replace them.
"""

from diffedu.nets.attention import Attend
from diffedu.nets.autoencoder import Autoencoder, autoencoder_loss
from diffedu.nets.captions import CrossAttention, Words
from diffedu.nets.conditions import Condition, TimeFeatures
from diffedu.nets.dit import DiT
from diffedu.nets.encoder import Encoder, classification_loss
from diffedu.nets.mlp import MLP, Energy
from diffedu.nets.ssm import StateSpace
from diffedu.nets.tokens import TokenAttention, patchify, unpatchify
from diffedu.nets.unet import UNet
from diffedu.nets.uvit import UViT

__all__ = [
    "MLP",
    "Attend",
    "Autoencoder",
    "Condition",
    "CrossAttention",
    "DiT",
    "Encoder",
    "Energy",
    "StateSpace",
    "TimeFeatures",
    "TokenAttention",
    "UNet",
    "UViT",
    "Words",
    "autoencoder_loss",
    "classification_loss",
    "patchify",
    "unpatchify",
]
