"""Samplers on the oracle: every one, on every path, from every parametrisation."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import NAMES, PATHS, mixture, oracle, std_error_of_variance, within
from torch.testing import assert_close

from diffedu import Denoiser, GaussianMixture, samplers, schedules
from diffedu.samplers import SAMPLERS

CONTINUOUS = {name: path for name, path in PATHS.items() if path.steps is None}
DETERMINISTIC = (
    "ddim",
    "euler",
    "heun",
    "dpm_solver_2",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_3m",
)
EVERY_SAMPLER = pytest.mark.parametrize("name", SAMPLERS)
EVERY_PATH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def few(name: str) -> dict:
    """Options that keep annealed Langevin as quick as the others."""
    return {"steps_per_level": 2} if name == "annealed_langevin" else {}


def recorded(name: str, steps: int, x: torch.Tensor) -> torch.Tensor:
    """Noise of the shape that a sampler takes."""
    extra = (2,) if name in ("annealed_langevin", "predictor_corrector") else ()
    generator = torch.Generator().manual_seed(9)
    return torch.randn(steps, *extra, *x.shape, generator=generator).to(x.dtype)


def start(path, n: int = 16, data: GaussianMixture | None = None) -> torch.Tensor:
    data = data or mixture()
    return data.at(path, path.t_max).sample(n, torch.Generator().manual_seed(4))


# --- all against all --------------------------------------------------------------


@EVERY_PATH
@EVERY_SAMPLER
def test_every_parametrisation_walks_the_same_way(name: str, path) -> None:
    x, times = start(path), samplers.time_grid(path, 8, "log_snr")
    noise = recorded(name, 8, x)
    options = few(name) | {"noise": noise}
    want = SAMPLERS[name](mixture().denoiser(path), x, times, **options)
    for predicts in NAMES:
        got = SAMPLERS[name](oracle(path, predicts), x, times, **options)
        assert_close(got, want, rtol=1e-5, atol=1e-6)


@EVERY_PATH
@EVERY_SAMPLER
def test_every_sampler_reaches_the_data(name: str, path) -> None:
    """The mean log-density of 2,000 samples, against that of the data's own."""
    data, n = mixture(), 2_000
    generator = torch.Generator().manual_seed(1)
    x = data.at(path, path.t_max).sample(n, generator)
    times = samplers.time_grid(path, 150, "log_snr")
    ends = SAMPLERS[name](data.denoiser(path), x, times, generator=generator)
    truth = data.log_prob(data.sample(200_000, generator))
    error = truth.std() / n**0.5
    # first-order methods and finite Langevin steps keep a bias of their own
    bias = 0.15
    assert abs(data.log_prob(ends).mean() - truth.mean()) < 5 * error + bias
    assert within(ends.mean(0), data.weights @ data.means, ends.std(0) / n**0.5 + 0.015)


@EVERY_SAMPLER
def test_untrained_control_does_not_reach_the_data(name: str) -> None:
    path, data = schedules.cosine(), mixture()
    denoise = Denoiser(lambda x, t: 0.3 * torch.ones_like(x), path, "eps")
    x, times = start(path, 500), samplers.time_grid(path, 20, "log_snr")
    ends = SAMPLERS[name](denoise, x, times, **few(name))
    assert data.log_prob(ends).mean() < -50


# --- orders -----------------------------------------------------------------------


def broad() -> GaussianMixture:
    """A ring of eight wide modes, on which no sample is torn between two."""
    angle = torch.arange(8).double() * math.pi / 4
    means = torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(torch.ones(8), means, torch.full((8,), 0.5))


def slopes(names: tuple[str, ...], path) -> dict[str, float]:
    """d log2(error) / d log2(N) over N = 32 ... 256, to a much finer walk."""
    data, counts = broad(), (32, 64, 128, 256)
    denoise, x = data.denoiser(path), start(path, 16, data)
    ends = {"spacing": "log_snr", "end": 0.02}
    fine = samplers.time_grid(path, 2048, **ends)
    truth = samplers.dpm_solver_2(denoise, x, fine)
    steps = torch.tensor(counts).double().log2()
    centred = (steps - steps.mean()) / (steps - steps.mean()).square().sum()
    out = {}
    for name in names:
        grids = [samplers.time_grid(path, count, **ends) for count in counts]
        errors = [SAMPLERS[name](denoise, x, times) - truth for times in grids]
        logs = torch.stack([e.square().mean().sqrt().log2() for e in errors])
        out[name] = (centred @ logs).item()
    return out


@pytest.mark.parametrize("path", CONTINUOUS.values(), ids=CONTINUOUS)
def test_orders(path) -> None:
    """Euler and DDIM 1; Heun, DPM-Solver-2 and ++(2M) 2. ++(3M): test_multistep."""
    for name, slope in slopes(DETERMINISTIC[:5], path).items():
        order, slack = (1, 0.15) if name in ("ddim", "euler") else (2, 0.3)
        assert abs(-slope - order) < slack, (name, slope)


def test_orders_in_lambda_hold_on_a_chain_too() -> None:
    found = slopes(("dpm_solver_2", "dpm_solver_pp_2m"), PATHS["ddpm_chain"])
    assert all(abs(-slope - 2) < 0.3 for slope in found.values()), found


# --- identities ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_on_straight_paths_ddim_is_euler(name: str) -> None:
    path = PATHS[name]
    denoise, x = mixture().denoiser(path), start(path)
    times = samplers.time_grid(path, 9)
    ours = samplers.ddim(denoise, x, times)
    assert_close(ours, samplers.euler(denoise, x, times))


@EVERY_PATH
def test_eta_one_is_the_ancestral_sampler(path) -> None:
    denoise, x = mixture().denoiser(path), start(path)
    times = samplers.time_grid(path, 9, "log_snr")
    noise = recorded("ddim", 9, x)
    ours = samplers.ddim(denoise, x, times, eta=1.0, noise=noise)
    assert_close(ours, samplers.ancestral(denoise, x, times, noise=noise))


@EVERY_PATH
def test_a_single_step_returns_x0(path) -> None:
    """So sampling with an exact denoiser ends on its x0, whatever the sampler."""
    denoise, x = mixture().denoiser(path), start(path)
    for name in SAMPLERS:
        if name == "annealed_langevin":
            continue
        times = torch.tensor([path.t_max, 0.0], dtype=torch.float64)
        ours = SAMPLERS[name](denoise, x, times)
        assert_close(ours, denoise(x, path.t_max).x0, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("path", CONTINUOUS.values(), ids=CONTINUOUS)
def test_invert_then_sample_is_the_identity(path) -> None:
    denoise, data = mixture().denoiser(path), mixture()
    x0 = data.sample(16, torch.Generator().manual_seed(0))
    errors = []
    for steps in (50, 200):
        times = samplers.time_grid(path, steps, "log_snr", end=0.01)
        x = data.at(path, 0.01).sample(16, torch.Generator().manual_seed(0))
        up = samplers.ddim_invert(denoise, x, times)
        errors.append((samplers.ddim(denoise, up, times) - x).abs().max())
    assert errors[1] < 0.4 * errors[0]
    times = samplers.time_grid(path, 50, "log_snr")
    up = samplers.ddim_invert(denoise, x0, times, refine=30)
    assert (samplers.ddim(denoise, up, times) - x0).abs().max() < errors[1] + 1e-3


@EVERY_PATH
def test_the_step_function_is_the_samplers_step(path) -> None:
    denoise, x = mixture().denoiser(path), start(path)
    times = samplers.time_grid(path, 4, "log_snr")
    for step in samplers.walk(samplers.ddim, denoise, x, times):
        ours = samplers.ddim_step(denoise, step.x_t, step.t, step.s)
        assert_close(ours, step.x)
        many = samplers.ddim_step(
            denoise, step.x_t, step.t.expand(16), step.s.expand(16)
        )
        assert_close(many, step.x)


# --- marginals of the stochastic samplers ---------------------------------------------


MEAN, SPREAD = 0.7, 0.4


def gaussian() -> GaussianMixture:
    return GaussianMixture(
        torch.ones(1), torch.full((1, 1), MEAN).double(), torch.tensor([SPREAD])
    )


def linear_step(name: str, path, t, s, options: dict) -> tuple[float, float, float]:
    """x_s = a x_t + b + c noise for one Gaussian, from the textbook formulas.

    Written with alpha_t / alpha_s and beta, as the papers do, and not with the ratio
    of signal-to-noise ratios that the library uses.
    """
    (a_t, s_t), (a_s, s_s) = ([c.item() for c in path.coefficients(v)] for v in (t, s))
    total = a_t**2 * SPREAD**2 + s_t**2
    # x0 = gain x + offset
    gain = a_t * SPREAD**2 / total
    offset = MEAN * (1 - gain * a_t)
    ratio = a_t / a_s
    beta = s_t**2 - ratio**2 * s_s**2
    if name == "euler_maruyama":
        rate, noise_rate = (c.item() for c in path.rates(t))
        drift, length = rate / a_t, (t - s).item()
        g2 = 2 * s_t * noise_rate - 2 * drift * s_t**2
        pull = -1 / total  # score = pull (x - a_t MEAN)
        a = 1 - length * (drift - g2 * pull)
        return a, -length * g2 * pull * a_t * MEAN, (g2 * length) ** 0.5
    of_x0, of_x = a_s * beta / s_t**2, ratio * s_s**2 / s_t**2
    variance = beta * s_s**2 / s_t**2
    if options.get("variance") == "large":
        variance = beta
    if name == "ddim":
        variance *= options["eta"] ** 2
        kept = (s_s**2 - variance) ** 0.5 / s_t
        of_x0, of_x = a_s - kept * a_t, kept
    return of_x0 * gain + of_x, of_x0 * offset, variance**0.5


CASES = {
    "ancestral small": ("ancestral", {"variance": "small"}),
    "ancestral large": ("ancestral", {"variance": "large"}),
    "ddim 0": ("ddim", {"eta": 0.0}),
    "ddim 0.5": ("ddim", {"eta": 0.5}),
    "ddim 1": ("ddim", {"eta": 1.0}),
    "euler_maruyama": ("euler_maruyama", {}),
}


@EVERY_PATH
@pytest.mark.parametrize("case", CASES)
def test_marginals_follow_the_exact_recursion(case: str, path) -> None:
    """Mean and variance after eight coarse steps, 5 standard errors of 20,000 runs."""
    name, options = CASES[case]
    n, data = 20_000, gaussian()
    times = samplers.time_grid(path, 8, "log_snr", end=0.05)
    noised = data.at(path, path.t_max)
    mean, variance = noised.means.item(), noised.spectrum.item()
    for t, s in zip(times[:-1], times[1:], strict=True):
        a, b, c = linear_step(name, path, t, s, options)
        mean, variance = a * mean + b, a**2 * variance + c**2
    generator = torch.Generator().manual_seed(11)
    x = noised.sample(n, generator)
    walk = SAMPLERS[name](data.denoiser(path), x, times, generator=generator, **options)
    variance = torch.tensor(variance)
    assert within(walk.mean(), torch.tensor(mean), (variance / n) ** 0.5)
    assert within(walk.var(), variance, std_error_of_variance(variance, n))


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_eta_keeps_the_marginals(eta: float) -> None:
    """With many steps every eta ends on the data's own mean and variance."""
    data, path, n = gaussian(), schedules.cosine(), 20_000
    generator = torch.Generator().manual_seed(5)
    x = data.at(path, path.t_max).sample(n, generator)
    times = samplers.time_grid(path, 400, "log_snr")
    ends = samplers.ddim(data.denoiser(path), x, times, eta=eta, generator=generator)
    assert abs(ends.mean() - MEAN) < 5 * SPREAD / n**0.5
    variance = torch.tensor(SPREAD**2)
    assert abs(ends.var() - variance) < (
        5 * std_error_of_variance(variance, n) + 0.01 * variance
    )


def test_langevin_leaves_a_biased_gaussian() -> None:
    """The unadjusted chain's own stationary variance, from its exact recursion.

    x <- (1 - h/v) x + sqrt(2h) z has variance 2h / (1 - (1 - h/v)^2), here v = total.
    """
    data, path, n = gaussian(), schedules.ve(), 20_000
    t = torch.tensor(0.6).double()
    sigma = path.sigma(t).item()
    total, size = SPREAD**2 + sigma**2, 0.2 * sigma**2
    generator = torch.Generator().manual_seed(2)
    seen: list[torch.Tensor] = []

    def keep(x, step):
        seen.append(step.x_t)
        return x

    # a second level just below shows the state that the first one left behind
    times = torch.tensor([0.6, 0.6 - 1e-12, 0.0], dtype=torch.float64)
    x = data.at(path, t).sample(n, generator)
    samplers.annealed_langevin(
        data.denoiser(path), x, times, steps_per_level=60, step=0.2,
        generator=generator, after=keep,
    )  # fmt: skip
    stationary = torch.tensor(2 * size / (1 - (1 - size / total) ** 2))
    assert within(seen[1].var(), stationary, std_error_of_variance(stationary, n))
    assert abs(seen[1].mean() - MEAN) < 5 * (stationary / n) ** 0.5


@pytest.mark.parametrize("name", ["cosine", "ddpm_chain", "ve"])
def test_the_corrector_is_the_papers(name: str) -> None:
    """Its size is 2 alpha_i (r |z| / |score|)^2, with alpha_i = 1 - beta on a chain."""
    path, data = PATHS[name], mixture()
    denoise, x = data.denoiser(path), start(path)
    times = torch.tensor([0.5, 0.45], dtype=torch.float64)
    noise = recorded("predictor_corrector", 1, x)
    got = samplers.predictor_corrector(denoise, x, times, snr=0.1, noise=noise)
    moved = samplers.ancestral(denoise, x, times, noise=noise[:, 0])
    score, z = data.at(path, 0.45).score(moved), noise[0, 1]
    beta = 1 - (path.alpha(0.5) / path.alpha(0.45)) ** 2
    lengths = z.norm(dim=1).mean() / score.norm(dim=1).mean()
    size = 2 * (1 - beta) * (0.1 * lengths) ** 2
    assert_close(got, moved + size * score + (2 * size).sqrt() * z)


def test_learned_variance_lies_between_the_two() -> None:
    path, data = schedules.linear().chain(100).schedule, mixture()
    times, x = samplers.time_grid(path, 10), start(PATHS["cosine"])
    noise = recorded("ancestral", 10, x)
    exact = data.denoiser(path)

    def net(fraction):
        def answer(x, t):
            return torch.cat([exact(x, t).eps, torch.full_like(x, 2 * fraction - 1)], 1)

        return Denoiser(answer, path, learns_variance=True)

    for variance, fraction in (("small", 0.0), ("large", 1.0)):
        want = samplers.ancestral(exact, x, times, variance=variance, noise=noise)
        got = samplers.ancestral(
            net(fraction), x, times, variance="learned", noise=noise
        )
        assert_close(got, want)
    with pytest.raises(ValueError, match="learns_variance"):
        samplers.ancestral(exact, x, times, variance="learned")


# --- the walk ----------------------------------------------------------------------


@EVERY_SAMPLER
def test_a_walk_shows_all_of_it(name: str) -> None:
    path = schedules.cosine()
    denoise, x = mixture().denoiser(path), start(path)
    times = samplers.time_grid(path, 6)
    options = few(name) | {"noise": recorded(name, 6, x)}
    steps = list(samplers.walk(SAMPLERS[name], denoise, x, times, **options))
    assert [s.index for s in steps] == list(range(6))
    assert_close(torch.stack([s.t for s in steps]), times[:-1])
    assert_close(torch.stack([s.s for s in steps]), times[1:])
    assert torch.equal(steps[0].x_t, x)
    for before, after in zip(steps, steps[1:], strict=False):
        assert torch.equal(before.x, after.x_t)
    assert torch.equal(steps[-1].x, SAMPLERS[name](denoise, x, times, **options))
    assert all(s.x0.shape == x.shape for s in steps)


@EVERY_SAMPLER
def test_after_changes_the_walk(name: str) -> None:
    path = schedules.cosine()
    denoise, x = mixture().denoiser(path), start(path)
    times, calls = samplers.time_grid(path, 3), []

    def to_zero(x, step):
        calls.append(step.index)
        return torch.zeros_like(x)

    end = SAMPLERS[name](denoise, x, times, after=to_zero, **few(name))
    assert calls == [0, 1, 2] and torch.equal(end, torch.zeros_like(x))


@EVERY_SAMPLER
def test_generator_and_recorded_noise_say_the_same(name: str) -> None:
    path = schedules.linear()
    denoise, x = mixture().denoiser(path), start(path)
    times = samplers.time_grid(path, 5)
    run = SAMPLERS[name]
    twice = [
        run(denoise, x, times, generator=torch.Generator().manual_seed(3), **few(name))
        for _ in range(2)
    ]
    assert torch.equal(*twice)
    noise = recorded(name, 5, x)
    one = run(denoise, x, times, noise=noise, **few(name))
    other = run(denoise, x, times, noise=noise + 1, **few(name))
    assert torch.equal(one, other) == (name in DETERMINISTIC)


@EVERY_SAMPLER
@settings(max_examples=8, deadline=None)
@given(dtype=st.sampled_from([torch.float32, torch.float64]), n=st.integers(1, 4))
def test_dtype_shape_and_independence(name: str, dtype, n: int) -> None:
    path = schedules.cosine()
    denoise, x = mixture(dtype).denoiser(path), start(path, n).to(dtype)
    times = samplers.time_grid(path, 4)
    noise = recorded(name, 4, x)
    end = SAMPLERS[name](denoise, x, times, noise=noise, **few(name))
    assert end.shape == x.shape and end.dtype == dtype
    if name == "predictor_corrector":  # couples the batch, and says so
        assert "coupled" in inspect.getdoc(SAMPLERS[name])
        return
    first = noise[..., :1, :]
    alone = SAMPLERS[name](denoise, x[:1], times, noise=first, **few(name))
    assert_close(alone, end[:1])


@EVERY_SAMPLER
def test_labels_reach_the_denoiser(name: str) -> None:
    data, path = mixture(), schedules.cosine()
    x, times = start(path, 400), samplers.time_grid(path, 30, "log_snr")
    label = torch.zeros(400, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    ends = SAMPLERS[name](
        data.denoiser(path), x, times, label=label, generator=generator
    )
    one = data.condition(0)
    want = one.weights @ one.means
    assert within(ends.mean(0), want, ends.std(0) / 400**0.5 + 0.01)


@EVERY_SAMPLER
def test_gradients_only_when_asked_for(name: str) -> None:
    path = schedules.cosine()
    net = torch.nn.Linear(2, 2).double()
    denoise = Denoiser(lambda x, t: net(x), path, "v")
    times, x = samplers.time_grid(path, 3), start(path, 4)
    assert not SAMPLERS[name](denoise, x, times, **few(name)).requires_grad
    end = SAMPLERS[name](denoise, x.clone().requires_grad_(), times, **few(name))
    assert end.requires_grad
    # the caller's own mode survives each step that is shown
    for _ in samplers.walk(SAMPLERS[name], denoise, x, times, **few(name)):
        assert torch.is_grad_enabled()


# --- ends and bad input ------------------------------------------------------------

ZERO_END = schedules.linear().chain(1000).with_zero_terminal_snr().schedule


@EVERY_SAMPLER
def test_from_pure_noise_some_samplers_walk_and_the_others_say_why(name: str) -> None:
    x, divides = (
        start(PATHS["cosine"]),
        ("euler_maruyama", "dpm_solver_2", "annealed_langevin"),
    )
    for path in (schedules.flow(), ZERO_END):
        times = samplers.time_grid(path, 5, start=1.0)
        denoise = oracle(path, "v")
        if name in divides:
            with pytest.raises(ValueError, match="alpha is 0 at t=1"):
                SAMPLERS[name](denoise, x, times)
        else:
            assert torch.isfinite(SAMPLERS[name](denoise, x, times)).all()
        blind = Denoiser(lambda x, t: x, path, "eps")
        with pytest.raises(ValueError, match="alpha"):
            SAMPLERS[name](blind, x, times)


@EVERY_SAMPLER
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": torch.tensor([0.0, 0.5, 1.0])}, "must fall strictly"),
        ({"times": torch.tensor([1.0])}, "shape"),
        ({"times": torch.tensor([2.0, 0.0])}, "must fall strictly"),
        ({"x_T": torch.full((2, 2), float("nan"))}, "x_T holds"),
        ({"lable": torch.zeros(2)}, "lable"),
    ],
)
def test_bad_walks_are_refused(name: str, change: dict, message: str) -> None:
    path = schedules.cosine()
    usual = {"x_T": torch.zeros(2, 2).double(), "times": torch.tensor([0.9, 0.5, 0.0])}
    with pytest.raises((ValueError, TypeError), match=message):
        SAMPLERS[name](mixture().denoiser(path), **(usual | change))


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n not in DETERMINISTIC[1:]])
def test_recorded_noise_of_another_shape_is_refused(name: str) -> None:
    path, times = schedules.cosine(), torch.tensor([0.9, 0.5, 0.0])
    x = torch.zeros(2, 2).double()
    for shape in ((1, 2, 2), (2, 2), (3, 2, 2)):
        with pytest.raises(ValueError, match="recorded noise must have shape"):
            SAMPLERS[name](mixture().denoiser(path), x, times, noise=torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddim", {"eta": 1.5}, "eta runs"),
        ("ancestral", {"variance": "smal"}, 'did you mean "small"'),
        ("predictor_corrector", {"snr": 0.0}, "snr > 0"),
        ("predictor_corrector", {"corrections": -1}, "corrections"),
        ("annealed_langevin", {"step": 0.0}, "step > 0"),
        ("annealed_langevin", {"times": torch.tensor([0.9, 0.5])}, "end in 0"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict, message: str) -> None:
    path, x = schedules.cosine(), torch.zeros(2, 2).double()
    usual = {"times": torch.tensor([0.9, 0.0])}
    with pytest.raises(ValueError, match=message):
        SAMPLERS[name](mixture().denoiser(path), x, **(usual | options))


def test_bad_single_steps_are_refused() -> None:
    path, x = schedules.cosine(), torch.zeros(2, 2).double()
    denoise = mixture().denoiser(path)
    with pytest.raises(ValueError, match="needs noise="):
        samplers.ddim_step(denoise, x, 0.5, 0.3, eta=1.0)
    with pytest.raises(ValueError, match="refine"):
        samplers.ddim_invert(denoise, x, torch.tensor([0.5, 0.0]), refine=-1)
    with pytest.raises(ValueError, match="x0 needs shape"):
        samplers.ddim_invert(denoise, x[0], torch.tensor([0.5, 0.0]))
    with pytest.raises(ValueError, match="is no sampler"):
        samplers.walk(samplers.ddim_step, denoise, x, torch.tensor([0.5, 0.0]))
