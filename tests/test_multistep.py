"""The third-order multistep solver: its order, its weights, and diffusers' version."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import PATHS, oracle
from scipy.integrate import quad
from test_samplers import CONTINUOUS, broad, start
from torch.testing import assert_close

from diffedu import samplers
from diffedu.samplers import multistep


def slope(path, truth: torch.Tensor) -> float:
    """d log2(error) / d log2(N) over N = 32 ... 256, to the walk's exact end."""
    denoise, x = broad().denoiser(path), start(path, 16, broad())
    logs = []
    for count in (32, 64, 128, 256):
        end = samplers.dpm_solver_pp_3m(denoise, x, grid(path, count))
        logs.append((end - truth).square().mean().sqrt().log2().item())
    return (3 * (logs[3] - logs[0]) + logs[2] - logs[1]) / 10


def grid(path, steps: int) -> torch.Tensor:
    return samplers.time_grid(path, steps, "log_snr", end=0.02)


def exact_end(path) -> torch.Tensor:
    """2,048 steps, whose error is 500 times smaller than that of 256."""
    x = start(path, 16, broad())
    return samplers.dpm_solver_pp_3m(broad().denoiser(path), x, grid(path, 2048))


@pytest.mark.parametrize("path", CONTINUOUS.values(), ids=CONTINUOUS)
def test_it_is_third_order(path) -> None:
    """Slopes of -2.78 to -3.03 were measured; second order would be -2."""
    assert abs(slope(path, exact_end(path)) + 3) < 0.3


def test_its_end_is_that_of_another_solver() -> None:
    path = CONTINUOUS["cosine"]
    x, denoise = start(path, 16, broad()), broad().denoiser(path)
    other = samplers.dpm_solver_2(denoise, x, grid(path, 1024))
    assert_close(exact_end(path), other, rtol=0, atol=1e-5)


@settings(deadline=None)
@given(h=st.floats(1e-3, 5.0))
def test_moments_are_the_integrals(h: float) -> None:
    for n, got in enumerate(multistep.moments(h)):
        want, _ = quad(lambda u, n=n: math.exp(u - h) * u**n / math.factorial(n), 0, h)
        assert abs(got - want) < 1e-7 * abs(want) + 1e-14


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@settings(deadline=None)
@given(
    a=st.floats(-2, 2), b=st.floats(-2, 2), c=st.floats(-2, 2),
    gaps=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)), at=st.floats(-3, 3),
)  # fmt: skip
def test_derivatives_of_a_parabola_are_exact(a, b, c, gaps, at) -> None:
    places = [at - gaps[0] - gaps[1], at - gaps[0], at]
    looks = [(u, one(a + b * u + c * u**2)) for u in places]
    value, slope, bend = multistep.derivatives(looks)
    assert_close(value, looks[-1][1])
    assert_close(slope, one(b + 2 * c * at), rtol=1e-7, atol=1e-9)
    assert_close(bend, one(2 * c), rtol=1e-7, atol=1e-9)


def test_it_begins_with_ddim() -> None:
    path = PATHS["cosine"]
    denoise, x = oracle(path, "v"), start(path)
    times = samplers.time_grid(path, 6, "log_snr")[:2]
    assert_close(
        samplers.dpm_solver_pp_3m(denoise, x, times), samplers.ddim(denoise, x, times)
    )


diffusers_only = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


def their_step(order: int, steps: int = 10):
    """diffusers' scheduler on the linear chain of 1000, in float64, and our times."""
    diffusers = pytest.importorskip("diffusers")
    from test_reference import CHAINS, in_float64, our_times

    chain = CHAINS["linear"]
    theirs = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=order, solver_type="midpoint",
        final_sigmas_type="zero", prediction_type="v_prediction",
        lower_order_final=False, euler_at_final=False,
    )  # fmt: skip
    in_float64(theirs, chain)
    theirs.set_timesteps(steps)
    sigmas = ((1 - chain.alpha_bar) / chain.alpha_bar).sqrt()[theirs.timesteps]
    theirs.sigmas = torch.cat([sigmas, torch.zeros(1)])
    return theirs, chain.schedule, our_times(theirs)


def released(looks):
    """Their derivatives: the second is the divided difference, not twice that."""
    found = EXACT(looks)
    return [*found[:2], *(bend / 2 for bend in found[2:])]


EXACT = multistep.derivatives


@diffusers_only
def test_diffusers_differs_by_half_the_bend_alone(monkeypatch) -> None:
    from test_reference import NEAR, their_walk

    theirs, path, times = their_step(3)
    denoise, x = oracle(path, "v"), start(path)
    want = their_walk(theirs, denoise.net, x, 9)
    right = samplers.dpm_solver_pp_3m(denoise, x, times[:10])
    monkeypatch.setattr(multistep, "derivatives", released)
    # their 2M step, which comes second, takes x0 from the middle of the step
    monkeypatch.setattr(multistep, "moments", first_then(times, path))
    ours = samplers.dpm_solver_pp_3m(denoise, x, times[:10])
    assert_close(ours, want, **NEAR)
    assert (right - want).abs().max() > 1e-3


def first_then(times, path):
    """The weights of the exact step, but the midpoint's in the second step."""
    exact, second = multistep.moments, 0.5 * path.log_snr(times).diff()[1].item()

    def weights(h: float) -> tuple[float, float, float]:
        first, slope, bend = exact(h)
        return first, h / 2 * first if abs(h - second) < 1e-12 else slope, bend

    return weights


def test_with_half_the_bend_it_is_second_order(monkeypatch) -> None:
    path = CONTINUOUS["cosine"]
    truth = exact_end(path)
    monkeypatch.setattr(multistep, "derivatives", released)
    assert abs(slope(path, truth) + 2) < 0.2
