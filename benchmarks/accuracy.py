"""How far from the exact answer each sampler ends, beside diffusers', on the oracle.

Both libraries start from the same points, ask the same exact denoiser as often and
stand at the same levels of noise. What is left is the method and its arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import hypot, pi

import torch
from side_by_side import Prepare, Row, compare
from torch import Tensor

from diffedu import GaussianMixture, metrics, samplers, schedules

ANCESTRAL = "Ancestral (DDPM)"
SINGLESTEP = "diffusers' DPM-Solver++ 2S"
TWICE = ("Heun", "DPM-Solver-2")  # look twice a step, once on the step to 0

CHAIN = schedules.linear().chain(1000).schedule
LAST = 1 / CHAIN.steps  # the table's first level, the last before the step to 0
TOP = CHAIN.snr(CHAIN.t_max).rsqrt().item()
EDM = schedules.edm(TOP)  # the same levels of noise, with the signal left as it is
STRETCH = hypot(1, TOP)  # from the chain's points to EDM's at the start

LOOKS = (10, 20, 40)  # divisors of 1000: diffusers' DDIM steps by 1000 // steps
TIMED = 20
POINTS, CROWD = 1024, 2**15  # a distance between samples needs more of them


@dataclass(frozen=True)
class Accuracy:
    """A method's errors in two libraries, and the time that its looks take.

    Attributes:
        row: the processor time of a look, ours beside the other's.
        looks: how often the denoiser was asked, at most.
        ours: our error after so many looks.
        theirs: the other's.
    """

    row: Row
    looks: tuple[int, ...]
    ours: tuple[float, ...]
    theirs: tuple[float, ...]


def ring(dtype: torch.dtype = torch.float32) -> GaussianMixture:
    """Eight narrow Gaussians on a circle, of unit variance in all."""
    angle = torch.arange(8, dtype=dtype) * (2 * pi / 8)
    means = (2 - 2 * 0.1**2) ** 0.5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return GaussianMixture(torch.ones(8, dtype=dtype), means, means.new_full((8,), 0.1))


def start(points: int) -> Tensor:
    """Where all walks on the chain begin: noise of shape (points, 2)."""
    return torch.randn(points, 2, generator=torch.Generator().manual_seed(0))


def karras(steps: int) -> Tensor:
    """Times (steps + 1,) of Karras' levels over the table's own range, then 0."""
    times = samplers.time_grid(CHAIN, steps - 1, "karras", end=LAST)
    return torch.cat([times, times.new_zeros(1)])


def on_edm(times: Tensor) -> Tensor:
    """The times (N + 1,) at which EDM's path has the chain's levels of noise."""
    there = EDM.time_of_log_snr(CHAIN.log_snr(times[:-1]))
    return torch.cat([there, times.new_zeros(1)])


def ours(
    sampler: Callable, path: schedules.Schedule, x: Tensor, times: Tensor
) -> Prepare:
    """Our walk from x, shape (B, 2), down the times (N + 1,) of a path.

    It is EDM's where diffusers' walk, too, leaves the signal as it is.
    """

    def prepare() -> Callable[[], Tensor]:
        denoise, noise = ring().denoiser(path), torch.Generator().manual_seed(1)
        return partial(sampler, denoise, x, times, generator=noise)

    return prepare


def theirs(
    make: Callable,
    x: Tensor,
    steps: int,
    looks: Tensor,
    reads: str = "eps",
    noisy: bool = False,
    **config: object,
) -> Prepare:
    """diffusers' walk from x, shape (B, 2), as its pipelines write it.

    The denoiser is told the level that x has, at the times `looks` of the chain; a
    pipeline tells it the nearest point of the table.
    """

    @torch.no_grad()
    def walk(scheduler, denoise: Callable, noise: dict[str, object]) -> Tensor:
        now = x
        with CHAIN.remembering(looks):
            for k, t in zip(scheduler.timesteps, looks, strict=True):
                seen = denoise(scheduler.scale_model_input(now, k), t)
                answer = getattr(seen, reads)
                now = scheduler.step(answer, k, now, return_dict=False, **noise)[0]
        return now

    def prepare() -> Callable[[], Tensor]:
        scheduler = make(beta_start=1e-4, beta_end=0.02, **config)
        scheduler.set_timesteps(steps)
        noise = {"generator": torch.Generator().manual_seed(1)} if noisy else {}
        return partial(walk, scheduler, ring().denoiser(CHAIN), noise)

    return prepare


def single_look(looks: int, x: Tensor) -> dict[str, dict[str, Prepare]]:
    """The methods that look once a step: who walks from x, shape (B, 2)."""
    import diffusers

    even, fine, wide = samplers.time_grid(CHAIN, looks), karras(looks), x * STRETCH
    trailing = partial(
        theirs,
        x=x,
        steps=looks,
        looks=even[:-1],
        clip_sample=False,
        timestep_spacing="trailing",
    )
    euler = theirs(
        diffusers.EulerDiscreteScheduler,
        wide,
        looks,
        fine[:-1],
        use_karras_sigmas=True,
    )
    return {
        "DDIM": {
            "diffedu": ours(samplers.ddim, CHAIN, x, even),
            "diffusers": trailing(diffusers.DDIMScheduler),
        },
        ANCESTRAL: {
            "diffedu": ours(samplers.ancestral, CHAIN, x, even),
            "diffusers": trailing(diffusers.DDPMScheduler, noisy=True),
        },
        "Euler": {
            "diffedu": ours(samplers.euler, EDM, wide, on_edm(fine)),
            "diffusers": euler,
        },
    }


def multistep(looks: int, x: Tensor) -> dict[str, dict[str, Prepare]]:
    """The multistep solvers that both have: who walks from x, shape (B, 2)."""
    import diffusers

    times, found = karras(looks), {}
    for order, name in ((2, "dpm_solver_pp_2m"), (3, "dpm_solver_pp_3m")):
        sampler = getattr(samplers, name, None)
        if sampler is not None:
            found[f"DPM-Solver++ {order}M"] = {
                "diffedu": ours(sampler, CHAIN, x, times),
                "diffusers": theirs(
                    diffusers.DPMSolverMultistepScheduler,
                    x,
                    looks,
                    times[:-1],
                    reads="x0",
                    use_karras_sigmas=True,
                    prediction_type="sample",
                    solver_order=order,
                ),
            }
    return found


def double_look(looks: int, x: Tensor) -> dict[str, dict[str, Prepare]]:
    """The methods of TWICE from x, shape (B, 2), with 2 (looks // 2) - 1 looks.

    diffusers' singlestep solver is no DPM-Solver-2: it takes points of the list for
    the middle of a step, and keeps x0 (to keep eps is deprecated there).
    """
    import diffusers

    steps, wide = looks // 2, x * STRETCH
    times = karras(steps)
    lower, log_snr = times[1:-1], CHAIN.log_snr(times[:-1])
    middle = CHAIN.time_of_log_snr((log_snr[1:] + log_snr[:-1]) / 2)
    at_ends, halfway = (
        torch.cat([times[:1], torch.stack([first, lower], dim=1).flatten()])
        for first in (lower, middle)
    )
    second = partial(theirs, x=wide, steps=steps, use_karras_sigmas=True)
    once = karras(2 * steps - 1)
    return {
        "Heun": {
            "diffedu": ours(samplers.heun, EDM, wide, on_edm(times)),
            "diffusers": second(diffusers.HeunDiscreteScheduler, looks=at_ends),
        },
        "DPM-Solver-2": {
            "diffedu": ours(samplers.dpm_solver_2, EDM, wide, on_edm(times)),
            "diffusers": second(diffusers.KDPM2DiscreteScheduler, looks=halfway),
            SINGLESTEP: theirs(
                diffusers.DPMSolverSinglestepScheduler,
                x,
                2 * steps - 1,
                once[:-1],
                reads="x0",
                use_karras_sigmas=True,
                prediction_type="sample",
                lower_order_final=True,
            ),
        },
    }


def contenders(looks: int, x: Tensor) -> dict[str, dict[str, Prepare]]:
    """Who runs each method, ours first, from x of shape (B, 2) on the chain."""
    return single_look(looks, x) | multistep(looks, x) | double_look(looks, x)


def exact_end(x: Tensor, steps: int = 600) -> Tensor:
    """Where the ODE leads from x, shape (B, 2): in double precision, fine steps."""
    denoise = ring(torch.float64).denoiser(EDM)
    times = samplers.time_grid(EDM, steps, "karras")
    return samplers.dpm_solver_2(denoise, x.double() * STRETCH, times)


def distance(end: Tensor, exact: Tensor) -> float:
    """Root of the mean squared distance between paired points (N, 2)."""
    return (end - exact).square().sum(-1).mean().sqrt().item()


def crowd_distance(end: Tensor) -> float:
    """The sliced Wasserstein-1 distance from points (N, 2) to the mixture's own."""
    own, lines = torch.Generator().manual_seed(2), torch.Generator().manual_seed(3)
    truth = ring().sample(len(end), own)
    return metrics.sliced_wasserstein(end, truth, generator=lines, p=1).item()


def floor(points: int = CROWD) -> float:
    """That distance for points drawn from the mixture itself."""
    return crowd_distance(ring().sample(points, torch.Generator().manual_seed(4)))


def errors(looks: int, exact: Tensor, crowd: int) -> dict[tuple[str, str], float]:
    """The error of each (method, library) after so many looks.

    Args:
        looks: how often the denoiser is asked.
        exact: where the ODE leads from `start`, shape (N, 2).
        crowd: how many points a method that draws noise is judged by.
    """
    found = {}
    for method, who in contenders(looks, start(len(exact))).items():
        random = method == ANCESTRAL  # no path to compare with
        if random:
            who = contenders(looks, start(crowd))[method]
        for name, prepare in who.items():
            end = prepare()()
            found[method, name] = (
                crowd_distance(end) if random else distance(end, exact)
            )
    return found


def accuracies(
    rounds: int,
    looks: tuple[int, ...] = LOOKS,
    timed: int = TIMED,
    points: int = POINTS,
    crowd: int = CROWD,
) -> list[Accuracy]:
    """The rows of all methods: errors after each of `looks`, times after `timed`."""
    exact, found = exact_end(start(points)), []
    far = [errors(n, exact, crowd) for n in looks]
    for method, who in contenders(timed, start(points)).items():
        took = 2 * (timed // 2) - 1 if method in TWICE else timed
        for row in compare(method, who, took, rounds):
            both = [tuple(f[method, n] for f in far) for n in ("diffedu", row.other)]
            found.append(Accuracy(row, tuple(looks), *both))
    return found
