"""How each shipped network is trained, and how it is taken off the shelf.

`diffedu train NAME` follows a recipe: at 32 pixels on a GPU, and as a smaller preview
of the same names and shapes on a CPU.
"""

from diffedu.recipes.data import HELD_OUT
from diffedu.recipes.shelf import CHECKPOINTS, card, load, measure
from diffedu.recipes.table import RECIPES, Recipe, Size
from diffedu.recipes.train import main, network, train

__all__ = [
    "CHECKPOINTS",
    "HELD_OUT",
    "RECIPES",
    "Recipe",
    "Size",
    "card",
    "load",
    "main",
    "measure",
    "network",
    "train",
]
