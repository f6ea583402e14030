"""Networks: plain modules called as `net(x, t, **condition)` that return one tensor.

They know nothing of schedules; anything with the same call can replace them.
"""

from diffedu.nets.attention import Attend
from diffedu.nets.conditions import Condition, TimeFeatures
from diffedu.nets.mlp import MLP, Energy
from diffedu.nets.unet import UNet

__all__ = ["MLP", "Attend", "Condition", "Energy", "TimeFeatures", "UNet"]
