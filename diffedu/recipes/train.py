"""Following a recipe: train, write the weights, measure them, write their card."""

from __future__ import annotations

import json
import platform
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffedu import claims, training
from diffedu.errors import lookup
from diffedu.recipes.data import VARIANT
from diffedu.recipes.shelf import CHECKPOINTS, load, measure
from diffedu.recipes.table import RECIPES, Recipe, Size
from diffedu.training.files import write_atomically

RUNS = Path("runs")
BAND = 0.02  # a loss may differ by this share on another machine


def train(
    name: str,
    *,
    device: torch.device | str = "cpu",
    size: Size | None = None,
    folder: Path = CHECKPOINTS,
    runs: Path = RUNS,
    resume: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Follow a recipe from scratch, or from where an earlier try stopped.

    Args:
        name: a recipe.
        device: where to train; "cuda" takes the full size.
        size: pixels, batch and steps; None is the recipe's for the device.
        folder: where NAME.safetensors and its card NAME.json are written.
        runs: where the training keeps its own checkpoint, to resume from.
        resume: False starts anew.
        progress: whether to show a bar.

    Returns:
        the card.

    Raises:
        ValueError: if the name is unknown, or the checkpoint is of another size.
        OSError: if a file cannot be written; what stood there is untouched.
    """
    recipe, device = lookup(RECIPES, name, "recipe"), torch.device(device)
    size = size or recipe.size(device)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(recipe.seed)
        module = recipe.build(size.pixels).to(device)
    module.to(memory_format=torch.channels_last)  # the faster layout
    states = training.fit(
        module,
        lambda batch, generator: recipe.loss(
            module, **batch, **_dropping(recipe), generator=generator
        ),
        lambda step: recipe.data(size.batch, step * size.batch, size.pixels),
        steps=size.steps,
        lr=recipe.lr,
        ema=recipe.ema,
        warmup=min(100, size.steps // 10),
        checkpoint=runs / f"{name}_{size.pixels}.safetensors",
        checkpoint_every=500,
        generator=torch.Generator(device).manual_seed(recipe.seed),
        resume=resume,
        progress=progress,
    )
    state = deque(states, maxlen=1).pop()
    best = state.ema.to("cpu").eval()
    if recipe.finish is not None:
        recipe.finish(best, recipe.data(1024, 0, size.pixels)["x0"])
    about = _card(recipe, size, best, device, state.seconds)
    training.save(best, folder / f"{name}.safetensors", about)
    training.load(best, folder / f"{name}.safetensors")  # measured as it is shipped
    about["metrics"] = _with_bands(measure(recipe, best, size.pixels))
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / f"{name}.json", text.encode())
    return about


def network(name: str) -> nn.Module:
    """The network a chapter looks into: the shipped one, or one trained on the spot.

    At the budget "full" (DIFFEDU_BUDGET) the recipe is followed from scratch on
    `claims.device()`, in a folder that is gone afterwards; what is shipped is neither
    read nor touched.

    Args:
        name: a recipe, such as "shapeworld_unet".

    Returns:
        as of `load`: in evaluation mode, on the CPU, with its card as `.card`.

    Raises:
        ValueError: if the name is unknown.
        FileNotFoundError: if the shipped network is not there.
    """
    if not claims.budget(False, True):
        return load(name)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        train(name, device=claims.device(), folder=folder, runs=folder, progress=False)
        return load(name, folder)


def _dropping(recipe: Recipe) -> dict[str, float]:
    return {"drop": recipe.drop} if recipe.drop else {}


def _card(
    recipe: Recipe, size: Size, module: nn.Module, device: torch.device, seconds: float
) -> dict[str, Any]:
    """What is known of the network before it is measured."""
    of_shapes = f"ShapeWorld, {VARIANT}, numbered from 0"
    return {
        "recipe": recipe.name,
        "about": recipe.about,
        "data": "digits, training split" if size.pixels == 8 else of_shapes,
        "pixels": size.pixels,
        "steps": size.steps,
        "batch": size.batch,
        "lr": recipe.lr,
        "ema": recipe.ema,
        "drop": recipe.drop,
        "seed": recipe.seed,
        "preview": size != recipe.full,
        "parameters": sum(p.numel() for p in module.parameters()),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "minutes": round(seconds / 60, 1),
    }


def hardware(device: torch.device) -> str:
    """What a training ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _with_bands(metrics: dict[str, float]) -> dict[str, list[float]]:
    """Each number with the lowest and the highest that another machine may find."""
    return {
        key: [
            round(value, 5),
            round(value * (1 - BAND), 5),
            round(value * (1 + BAND), 5),
        ]
        for key, value in metrics.items()
    }


def listing() -> str:
    """Every recipe with what it makes, for the command line."""
    lines = []
    for recipe in RECIPES.values():
        here = (CHECKPOINTS / f"{recipe.name}.json").is_file()
        lines.append(f"{recipe.name:<26}{recipe.about}{'' if here else ' (not made)'}")
    return "\n".join(lines)


def main(names: list[str], device: str = "", fresh: bool = False) -> int:
    """`diffedu train`: follow the named recipes; without a name, list them all.

    Args:
        names: recipes.
        device: "cpu", "cuda" or "mps"; "" takes a GPU where there is one.
        fresh: start anew though an earlier try could be resumed.

    Returns:
        an exit status: 0.
    """
    if not names:
        print(listing())
        return 0
    for name in names:
        lookup(RECIPES, name, "recipe")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for name in names:
        size = RECIPES[name].size(torch.device(device))
        print(f"{name}: {size.steps} steps at {size.pixels} pixels on {device} ...")
        about = train(name, device=device, resume=not fresh)
        print(f"{name}: {about['minutes']} minutes, {about['metrics']}")
    return 0
