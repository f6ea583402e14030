"""The shelf of shipped networks: their cards, and the networks ready to use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffedu import training
from diffedu.errors import lookup, require
from diffedu.recipes.data import HELD_OUT
from diffedu.recipes.table import RECIPES, Recipe

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


def load(name: str, folder: Path = CHECKPOINTS) -> nn.Module:
    """A shipped network, ready to use: in evaluation mode, on the CPU.

    Args:
        name: a recipe, such as "digits_unet".
        folder: where the checkpoints lie.

    Returns:
        a Denoiser; the Autoencoder for "shapeworld_autoencoder", an Encoder for
        "shapeworld_supervised" and "shapeworld_simclr". `.card` on it is `card(name)`.

    Raises:
        ValueError: if the name is unknown, or the file is broken or does not fit.
        FileNotFoundError: if the network is not there.
    """
    about = card(name, folder)
    module = RECIPES[name].build(about["pixels"])
    training.load(module, folder / f"{name}.safetensors")
    module.card = about
    return module.requires_grad_(False).eval()


def card(name: str, folder: Path = CHECKPOINTS) -> dict[str, Any]:
    """What is known of a shipped network: recipe, data, steps, metrics, hardware.

    Raises:
        ValueError: if the name is unknown.
        FileNotFoundError: if the network is not there.
    """
    lookup(RECIPES, name, "recipe")
    path = folder / f"{name}.json"
    hint = f"{path} is missing; make it with: diffedu train {name}"
    require(path.is_file(), hint, FileNotFoundError)
    return json.loads(path.read_text(encoding="utf-8"))


@torch.no_grad()
def measure(recipe: Recipe, module: nn.Module, pixels: int, n: int = 512) -> dict:
    """The loss on held-out images, with their condition and without it.

    Args:
        recipe: what the module was made by.
        module: what to measure.
        pixels: the size of the images.
        n: how many of them.

    Returns:
        "loss", and "loss_without" the condition where there is one: the same images,
        times and noise for both.
    """
    batch = recipe.data(n, HELD_OUT, pixels)
    images = {"x0": batch["x0"]}
    conditional = len(batch) > 1 and not recipe.supervised
    shown = {"loss": batch} | ({"loss_without": images} if conditional else {})
    return {
        key: float(
            recipe.loss(module, **given, generator=torch.Generator().manual_seed(1))
        )
        for key, given in shown.items()
    }
