"""The table of recipes: what to build, what to show it, what to make small, how long.

A recipe is data. Names and shapes are the same at every size of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffedu import losses, nets, schedules
from diffedu.denoiser import Denoiser
from diffedu.losses.contrastive import projector, simclr_loss
from diffedu.recipes.data import (
    Batch,
    captioned_images,
    digit_images,
    only_images,
    seen_images,
    shape_images,
)
from diffedu.worlds.shapeworld import NAMES, VOCABULARY


@dataclass(frozen=True)
class Size:
    """How large a training is: pixels a side, images a step, and steps."""

    pixels: int
    batch: int
    steps: int


@dataclass(frozen=True)
class Recipe:
    """How one shipped network is made.

    Attributes:
        name: of the recipe and of its files in diffedu/checkpoints.
        about: what it is, in one line.
        build: makes the module for images of so many pixels a side.
        data: answers n images, shape (n, C, s, s), and their conditions by name,
            for (n, start, pixels); from HELD_OUT on they are no training images.
        loss: of the module on a batch; shape (), units as its docstring says.
        full: the size of a training on a GPU.
        preview: the size of one on a CPU.
        drop: the chance with which a condition is left out while training.
        seed: of weights, order and noise.
        lr: the highest learning rate.
        ema: decay of the averaged weights.
        finish: called with the trained module and 1,024 training images, last.
        supervised: whether the label is the answer, not a condition that may be left
            out.
    """

    name: str
    about: str
    build: Callable[[int], nn.Module]
    data: Callable[[int, int, int], Batch]
    loss: Callable[..., Tensor]
    full: Size
    preview: Size
    drop: float = 0.0
    seed: int = 0
    lr: float = 1e-3
    ema: float = 0.995
    finish: Callable[[nn.Module, Tensor], object] | None = None
    supervised: bool = False

    def size(self, device: torch.device) -> Size:
        """The full size on a GPU, the preview elsewhere."""
        return self.full if device.type == "cuda" else self.preview


def digits_net(classes: int | None = None) -> Callable[[int], Denoiser]:
    """The course's U-Net for digits, on the cosine path, predicting v."""
    return lambda pixels: Denoiser(
        nets.UNet(1, pixels, classes=classes), schedules.cosine(), "v"
    )


def shapes_net(**options: Any) -> Callable[[int], Denoiser]:
    """The course's U-Net for ShapeWorld, with attention at half the size."""
    return lambda pixels: Denoiser(
        nets.UNet(3, pixels, width=32, attention=(pixels // 2,), **options),
        schedules.cosine(),
        "v",
    )


def deep_net(**options: Any) -> Callable[[int], Denoiser]:
    """The U-Net to look into: four levels, narrow where the grid is fine.

    It costs at 32 pixels what the other one costs at 16, and nearly half more.
    """
    return lambda pixels: Denoiser(
        nets.UNet(
            3,
            pixels,
            width=16,
            multipliers=(1, 2, 4, 6),
            attention=(pixels // 4,),
            **options,
        ),
        schedules.cosine(),
        "v",
    )


def transformer(pixels: int) -> Denoiser:
    """The course's class-conditional DiT for ShapeWorld."""
    net = nets.DiT(3, pixels, patch=2, width=80, depth=6, classes=len(NAMES))
    return Denoiser(net, schedules.cosine(), "v")


def classifier(pixels: int) -> nets.Encoder:
    """An encoder that names the shape: features made with labels."""
    return nets.Encoder(3, pixels, outputs=len(NAMES))


def teacher(pixels: int) -> nets.Encoder:
    """The same encoder with SimCLR's head as its `projector`; labels are never seen."""
    encoder = nets.Encoder(3, pixels)
    encoder.projector = projector(encoder.dim)
    return encoder


def reconstruction(
    module: nn.Module, x0: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """The autoencoder's loss on images x0 (n, C, s, s): squared error and a pull."""
    return nets.autoencoder_loss(module, x0, generator=generator)


DIGITS = Size(8, 128, 1600)
FEW = Size(8, 128, 400)
FEWER = Size(8, 128, 100)
GPU, CPU = Size(32, 128, 12_000), Size(16, 24, 4_000)
LONG, SHORTER = Size(32, 32, 10_000), Size(32, 32, 6_000)  # under an hour of a core

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "digits_unet",
            "unconditional U-Net on the 8x8 digits",
            digits_net(),
            only_images(digit_images),
            losses.denoising,
            DIGITS,
            DIGITS,
        ),
        Recipe(
            "digits_unet_class",
            "class-conditional U-Net on the 8x8 digits, trained briefly",
            digits_net(classes=10),
            digit_images,
            losses.denoising,
            FEW,
            FEW,
            drop=0.1,
            ema=0.98,
        ),
        Recipe(
            "digits_unet_class_early",
            "the same after a quarter of the steps: a weak model of the same kind",
            digits_net(classes=10),
            digit_images,
            losses.denoising,
            FEWER,
            FEWER,
            drop=0.1,
            ema=0.95,
        ),
        Recipe(
            "shapeworld_unet",
            "unconditional U-Net on ShapeWorld",
            deep_net(),
            only_images(shape_images),
            losses.denoising,
            GPU,
            LONG,
        ),
        Recipe(
            "shapeworld_unet_class",
            "class-conditional U-Net on ShapeWorld",
            shapes_net(classes=len(NAMES)),
            shape_images,
            losses.denoising,
            GPU,
            CPU,
            drop=0.1,
        ),
        Recipe(
            "shapeworld_unet_caption",
            "U-Net on ShapeWorld that reads captions by cross-attention",
            shapes_net(vocabulary=len(VOCABULARY)),
            captioned_images,
            losses.denoising,
            GPU,
            CPU,
            drop=0.1,
        ),
        Recipe(
            "shapeworld_unet_words",
            "U-Net that reads captions and has never seen some pairs of shape and hue",
            deep_net(vocabulary=len(VOCABULARY)),
            seen_images,
            losses.denoising,
            GPU,
            SHORTER,
            drop=0.1,
        ),
        Recipe(
            "shapeworld_dit",
            "class-conditional diffusion transformer on ShapeWorld",
            transformer,
            shape_images,
            losses.denoising,
            GPU,
            CPU,
            drop=0.1,
        ),
        Recipe(
            "shapeworld_autoencoder",
            "autoencoder of ShapeWorld images, latents of half the size",
            lambda pixels: nets.Autoencoder(3, pixels, factor=2, latent_channels=4),
            only_images(shape_images),
            reconstruction,
            GPU,
            CPU,
            finish=nets.Autoencoder.standardise_,
        ),
        Recipe(
            "shapeworld_supervised",
            "classifier of ShapeWorld images, trained with every label",
            classifier,
            shape_images,
            nets.classification_loss,
            GPU,
            Size(32, 128, 800),
            supervised=True,
        ),
        Recipe(
            "shapeworld_simclr",
            "the same encoder trained by SimCLR: two views of each image, no label",
            teacher,
            only_images(shape_images),
            simclr_loss,
            GPU,
            Size(32, 128, 1_200),
        ),
    )
}
