"""EDM's stochastic sampler: its two halves, on the oracle and against diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import PATHS, mixture, std_error_of_variance, within
from torch import Tensor
from torch.testing import assert_close

from diffedu import GaussianMixture, samplers, schedules

CONTINUOUS = {name: path for name, path in PATHS.items() if path.steps is None}
EVERYWHERE = {"s_tmin": 0.0, "s_tmax": math.inf}
MEAN, SPREAD = 0.7, 0.4


def start(path, n: int = 16) -> Tensor:
    data = mixture().at(path, path.t_max)
    return data.sample(n, torch.Generator().manual_seed(4))


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def algorithm_2(denoise, x: Tensor, levels: list, zs: Tensor, **knobs) -> Tensor:
    """The paper's lines, in sigma, for `denoise(x, sigma)` that answers x0."""
    churn, low, high, scale = (
        knobs[k] for k in ("s_churn", "s_tmin", "s_tmax", "s_noise")
    )
    steps = len(levels) - 1
    for i in range(steps):
        gamma = 0.0
        if low <= levels[i] <= high:
            gamma = min(churn / steps, math.sqrt(2) - 1)
        raised = levels[i] + gamma * levels[i]
        x = x + math.sqrt(raised**2 - levels[i] ** 2) * scale * zs[i]
        d = (x - denoise(x, raised)) / raised
        end = x + (levels[i + 1] - raised) * d
        if levels[i + 1] != 0:
            d2 = (end - denoise(end, levels[i + 1])) / levels[i + 1]
            end = x + (levels[i + 1] - raised) * (d + d2) / 2
        x = end
    return x


@settings(max_examples=25, deadline=None)
@given(
    churn=st.floats(0, 60),
    low=st.sampled_from([0.0, 0.05, 1.0]),
    high=st.sampled_from([2.0, 50.0, math.inf]),
    scale=st.sampled_from([0.98, 1.0, 1.007]),
    steps=st.integers(2, 12),
)
def test_it_is_algorithm_2(churn, low, high, scale, steps: int) -> None:
    """On a path that reaches further than the walk, so that nothing is cut."""
    path = schedules.edm(sigma_max=160.0)
    exact = mixture().denoiser(path)
    times = samplers.time_grid(path, steps, "karras", start=0.5)
    levels = (160 * times).tolist()
    x = 80 * torch.randn(6, 2, generator=seeded()).double()
    zs = torch.randn(steps, 6, 2, generator=seeded(4)).double()
    knobs = dict(s_churn=churn, s_tmin=low, s_tmax=high, s_noise=scale)
    want = algorithm_2(lambda x, s: exact(x, s / 160).x0, x, levels, zs, **knobs)
    ours = samplers.edm_stochastic(exact, x, times, noise=zs, **knobs)
    assert_close(ours, want, rtol=1e-6, atol=1e-7)


def test_the_comparison_can_fail() -> None:
    path = schedules.edm(sigma_max=160.0)
    exact, times = mixture().denoiser(path), samplers.time_grid(path, 8, "karras")
    x = 160 * torch.randn(6, 2, generator=seeded()).double()
    zs = torch.randn(8, 6, 2, generator=seeded(4)).double()
    one, other = (
        samplers.edm_stochastic(exact, x, times, noise=zs, s_churn=c) for c in (1, 4)
    )
    assert (one - other).abs().max() > 1e-2


@pytest.mark.parametrize("order", [1, 2])
def test_without_churn_it_is_heun_or_euler_on_edms_path(order: int) -> None:
    path = PATHS["edm"]
    denoise, times = mixture().denoiser(path), samplers.time_grid(path, 9, "karras")
    ours = samplers.edm_stochastic(
        denoise, start(path), times, s_churn=0.0, order=order
    )
    plain = {1: samplers.euler, 2: samplers.heun}[order]
    assert_close(ours, plain(denoise, start(path), times))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("path", CONTINUOUS.values(), ids=CONTINUOUS)
def test_the_path_does_not_matter(path, order: int) -> None:
    """At equal sigma / alpha and with equal noise, every path walks alike."""
    edm = schedules.edm(sigma_max=1000.0)
    log_snr = torch.linspace(-6.0, 5.0, 9).double()
    zs = torch.randn(9, 16, 2, generator=seeded()).double()
    ends = []
    for each in (path, edm):
        times = torch.cat([each.time_of_log_snr(log_snr), torch.zeros(1)])
        alpha = each.alpha(times[0])
        x = alpha * 20 * torch.randn(16, 2, generator=seeded(1)).double()
        ends.append(
            samplers.edm_stochastic(
                mixture().denoiser(each), x, times, noise=zs, order=order
            )
        )
    assert_close(*ends, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_noise_goes_up_by_the_paths_own_transition(path) -> None:
    """One Gaussian, one step, the raised state read off `seen`: exact moments."""
    data = GaussianMixture(
        torch.ones(1), torch.full((1, 1), MEAN).double(), torch.tensor([SPREAD])
    )
    n = 20_000
    t, s = path.time_of_log_snr(torch.tensor([-1.0, 1.0]).double())
    x = data.at(path, t).sample(n, seeded())
    (step,) = samplers.walk(
        samplers.edm_stochastic, data.denoiser(path), x, torch.stack([t, s]),
        s_churn=0.3, generator=seeded(5),
    )  # fmt: skip
    level = math.exp(0.5) * 1.3
    assert (-0.5 * path.log_snr(step.seen.t)).exp().item() == pytest.approx(level)
    noised = data.at(path, step.seen.t)
    mean, variance = noised.means[0, 0], noised.spectrum[0, 0]
    assert within(step.seen.x.mean(), mean, (variance / n) ** 0.5)
    assert within(step.seen.x.var(), variance, std_error_of_variance(variance, n))


def test_s_noise_is_the_size_of_the_noise() -> None:
    path = PATHS["cosine"]
    denoise, times = mixture().denoiser(path), samplers.time_grid(path, 5, "log_snr")
    zs = torch.randn(5, 16, 2, generator=seeded()).double()
    run = samplers.edm_stochastic
    big = run(denoise, start(path), times, noise=zs, s_noise=1.1)
    assert_close(big, run(denoise, start(path), times, noise=1.1 * zs))


def test_noise_is_added_within_the_limits_alone() -> None:
    path = PATHS["edm"]
    times = samplers.time_grid(path, 20, "karras")
    steps = samplers.walk(
        samplers.edm_stochastic, mixture().denoiser(path), start(path), times,
        s_churn=5.0, s_tmin=0.5, s_tmax=10.0, generator=seeded(),
    )  # fmt: skip
    raised = {80 * s.t.item(): bool(s.seen.t > s.t) for s in steps}
    assert raised == {level: 0.5 <= level <= 10 for level in raised}
    assert 5 < sum(raised.values()) < 15


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_no_more_noise_than_the_path_has(path) -> None:
    """Started at the path's end, the first step cannot be raised above it."""
    last = path.t_max if path.terminal_snr < 1e-4 else 1.0
    times = samplers.time_grid(path, 6, "log_snr", start=last)
    steps = list(
        samplers.walk(
            samplers.edm_stochastic, mixture().denoiser(path), start(path), times,
            generator=seeded(), **EVERYWHERE,
        )
    )  # fmt: skip
    assert all(step.t <= step.seen.t <= 1 for step in steps)
    assert any(step.seen.t > step.t for step in steps)
    assert torch.isfinite(steps[-1].x).all()


def test_growth_is_capped() -> None:
    inside = {"s_tmin": 0.05, "s_tmax": 50.0}
    growth = samplers.churn_growth
    assert growth(1.0, 10, 80.0, **inside) == pytest.approx(math.sqrt(2) - 1)
    assert growth(1.0, 200, 40.0, **inside) == pytest.approx(0.2)
    assert growth(0.04, 200, 40.0, **inside) == growth(51.0, 200, 40.0, **inside) == 0


def modes(weight: float) -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([weight, 1 - weight]), means, [0.3, 0.3])


@pytest.mark.parametrize(("score", "state"), [(0.75, 0.5), (0.5, 0.75)])
def test_churn_leads_to_the_denoisers_own_distribution(score, state) -> None:
    """Whatever the state was: a wrong state is mended, a wrong score is not."""
    path, n = PATHS["edm"], 4000
    times = samplers.time_grid(path, 48, "karras", start=2 / 80)
    x = modes(state).at(path, 2 / 80).sample(n, seeded())
    off = []
    for churn in (0.0, 40.0):
        end = samplers.edm_stochastic(
            modes(score).denoiser(path), x, times, s_churn=churn, generator=seeded(1)
        )
        off.append(abs((end[:, 0] < 0).double().mean().item() - score))
    error = 5 * (0.25 / n) ** 0.5
    assert off[1] < error < off[0]


@pytest.mark.parametrize("churn", [0.0, 3.0, 40.0])
def test_edm_euler_is_diffusers(churn: float) -> None:
    """Their walk with their noise; they keep sigmas and states in float32."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.utils.torch_utils import randn_tensor

    steps = 12
    theirs = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    theirs.set_timesteps(steps)
    levels = theirs.sigmas.double()
    path = schedules.edm(sigma_max=160.0)
    exact = mixture().denoiser(path)
    x = want = 80 * torch.randn(5, 2, generator=seeded())
    knobs = dict(s_churn=churn, s_tmin=0.05, s_tmax=50.0, s_noise=1.003)
    ours_z, theirs_z, zs = seeded(7), seeded(7), []
    for k, level in zip(theirs.timesteps, levels[:-1].tolist(), strict=True):
        theirs.scale_model_input(want, k)
        gamma = samplers.churn_growth(level, steps, churn, 0.05, 50.0)
        # their step adds the noise after the network has looked; give it the look
        # at the noisy state, as in the paper
        z = randn_tensor(want.shape, generator=ours_z) if gamma > 0 else 0 * want
        zs.append(z)
        raised = level * (1 + gamma)
        x_hat = want + 1.003 * z * (raised**2 - level**2) ** 0.5
        x0 = exact(x_hat.double(), raised / 160).x0.float()
        want = theirs.step(
            x0, k, want, generator=theirs_z, pred_original_sample=x0, **knobs
        ).prev_sample
    ours = samplers.edm_stochastic(
        exact, x.double(), levels / 160, order=1, noise=torch.stack(zs), **knobs
    )
    assert_close(ours.float(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"s_churn": -1.0}, "s_churn must be"),
        ({"s_tmin": 2.0, "s_tmax": 1.0}, "s_tmin <= s_tmax"),
        ({"s_noise": 0.0}, "s_noise must be"),
        ({"order": 3}, "order is 1"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    path = PATHS["cosine"]
    times = samplers.time_grid(path, 3)
    with pytest.raises(ValueError, match=message):
        samplers.edm_stochastic(mixture().denoiser(path), start(path), times, **options)
