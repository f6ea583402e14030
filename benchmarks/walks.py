"""What a step of a sampler costs by itself: the network is a tensor made beforehand.

Each library runs in the parametrisation that its own loop is written for, with the
set-up of its time steps outside of what is timed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import torch
from side_by_side import Prepare, Row, compare
from torch import Tensor

from diffedu import Denoiser, samplers, schedules

Shape = Sequence[int]


def ours(
    sampler: Callable, path: schedules.Schedule, predicts: str, x: Tensor, steps: int
) -> Prepare:
    """Our walk from x, shape (B, ...)."""
    answer = torch.randn_like(x)

    def prepare() -> Callable[[], Tensor]:
        denoise = Denoiser(lambda x, t: answer, path, predicts)
        times = samplers.time_grid(path, steps)
        return partial(sampler, denoise, x, times)

    return prepare


def diffusers_walk(make: Callable, x: Tensor, steps: int, **config: object) -> Prepare:
    """diffusers' loop from x, shape (B, ...), as its pipelines write it.

    Pipelines also call `scale_model_input`, which is left out in its favour.
    """
    answer = torch.randn_like(x)

    @torch.no_grad()
    def walk(scheduler) -> Tensor:
        now = x
        for k in scheduler.timesteps:
            now = scheduler.step(answer, k, now, return_dict=False)[0]
        return now

    def prepare() -> Callable[[], Tensor]:
        scheduler = make(**config)
        scheduler.set_timesteps(steps)
        return partial(walk, scheduler)

    return prepare


def k_diffusion_walk(function: Callable, x: Tensor, sigmas: Tensor) -> Prepare:
    """k-diffusion's sampler from x, shape (B, ...), down sigmas of shape (steps + 1,).

    Its networks answer x0.
    """
    answer = torch.randn_like(x)
    return lambda: partial(function, lambda x, sigma: answer, x, sigmas, disable=True)


def k_diffusion_sampling() -> ModuleType | None:
    """k-diffusion's module of samplers alone, or None if it can't be imported.

    The package's own start imports metrics and models that no sampler needs.
    """
    name = "k_diffusion.sampling"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        return None
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    try:
        return importlib.import_module(name)
    except ImportError:
        del sys.modules["k_diffusion"]
        return None


def contenders(shape: Shape, steps: int) -> dict[str, dict[str, Prepare]]:
    """Who runs each method, ours first.

    Args:
        shape: of the batch, such as (64, 3, 32, 32).
        steps: of one walk.
    """
    import diffusers

    x = torch.randn(tuple(shape))
    chain, edm = schedules.linear().chain(1000).schedule, schedules.edm()
    theirs = partial(diffusers_walk, x=x, steps=steps)
    found = {
        "DDIM": {
            "diffedu": ours(samplers.ddim, chain, "eps", x, steps),
            "diffusers": theirs(
                diffusers.DDIMScheduler,
                clip_sample=False,
                timestep_spacing="trailing",
            ),
        },
        "Heun": {
            "diffedu": ours(samplers.heun, edm, "eps", x, steps),
            "diffusers": theirs(
                diffusers.HeunDiscreteScheduler, use_karras_sigmas=True
            ),
        },
        "DPM-Solver++ 2M": {
            "diffedu": ours(samplers.dpm_solver_pp_2m, chain, "x0", x, steps),
            "diffusers": theirs(
                diffusers.DPMSolverMultistepScheduler, prediction_type="sample"
            ),
        },
    }
    k_diffusion = k_diffusion_sampling()
    if k_diffusion:
        sigmas = k_diffusion.get_sigmas_karras(steps, 0.002, 80.0)
        for method, name in K_DIFFUSION.items():
            walk = k_diffusion_walk(getattr(k_diffusion, name), x, sigmas)
            found[method]["k-diffusion"] = walk
    return found


# an Euler step in sigma is DDIM's, and the only form of it that k-diffusion has
K_DIFFUSION = {
    "DDIM": "sample_euler",
    "Heun": "sample_heun",
    "DPM-Solver++ 2M": "sample_dpmpp_2m",
}


def walks(shape: Shape, steps: int, rounds: int) -> list[Row]:
    """The rows of all methods, for a batch of this shape (B, ...)."""
    found = contenders(shape, steps).items()
    return [row for name, who in found for row in compare(name, who, steps, rounds)]
