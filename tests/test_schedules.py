"""Paths: identities at both ends, rates, inverses, posteriors, chains, grids."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import PATHS
from torch.testing import assert_close

from diffedu import samplers, schedules
from diffedu.schedules import Chain

CONTINUOUS = {name: path for name, path in PATHS.items() if path.steps is None}
PRESERVING = [n for n in PATHS if n not in ("ve", "edm", "flow", "sub_vp")]
times = st.floats(1e-5, 1 - 1e-6)


def inner_times(path, n: int = 500) -> torch.Tensor:
    t = (torch.arange(n).double() + 0.37) / n
    if path.steps is None:
        return t
    return (torch.arange(1, path.steps).double() + 0.5) / path.steps


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_log_snr_falls_strictly(path) -> None:
    t = torch.linspace(1e-4, path.t_max, 400).double()
    assert (path.log_snr(t).diff() < 0).all()


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_path_is_clean_at_zero(path) -> None:
    assert path.alpha(0.0) == 1 and path.sigma(0.0) == 0


@pytest.mark.parametrize("name", PRESERVING)
def test_variance_is_preserved(name: str) -> None:
    alpha, sigma = PATHS[name].coefficients(inner_times(PATHS[name]))
    assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_rates_are_the_derivatives(path) -> None:
    t = inner_times(path).requires_grad_()
    alpha, sigma = path.coefficients(t)
    by_hand = [
        torch.autograd.grad((c + 0 * t).sum(), t, retain_graph=True)[0]
        for c in (alpha, sigma)
    ]
    for ours, theirs in zip(path.rates(t.detach()), by_hand, strict=True):
        assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_infinite_rates_are_refused() -> None:
    """sigma starts like sqrt(t) where the variance is kept; sigmoid ends like it."""
    for name in ("linear", "cosine", "sigmoid", "log_linear"):
        with pytest.raises(ValueError, match="infinitely fast"):
            schedules.by_name(name).rates(0.0)
    with pytest.raises(ValueError, match="infinitely fast"):
        schedules.sigmoid().rates(torch.tensor([0.5, 1.0]))
    assert all(r.isfinite() for r in schedules.cosine().rates(1.0))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_time_of_log_snr_inverts(path) -> None:
    t = inner_times(path)
    assert_close(path.time_of_log_snr(path.log_snr(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_float32_keeps_its_digits_at_both_ends(path) -> None:
    t = torch.cat([torch.logspace(-4, -1, 50), 1 - torch.logspace(-3, -1, 50)])
    assert_close(path.log_snr(t).double(), path.log_snr(t.double()), rtol=0, atol=2e-4)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_t_max_and_t_min_are_where_they_are_said_to_be(path) -> None:
    assert path.log_snr(path.t_max) >= -12 - 1e-9
    assert path.t_max == 1 or path.steps or abs(path.log_snr(path.t_max) + 12) < 1e-6
    assert path.log_snr(path.t_min) <= 13 + 1e-6


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_float64_stays_float64(path) -> None:
    x = torch.zeros(3, 2, dtype=torch.float64)
    assert path.add_noise(x, 0.5, x).dtype == torch.float64
    assert path.posterior(x, x, 0.5, 0.2)[0].dtype == torch.float64
    assert path.alpha(torch.tensor(0.5)).dtype == torch.float32


def test_terminal_snr_of_the_known_paths() -> None:
    assert PATHS["linear"].terminal_snr == pytest.approx(4.32e-5, rel=1e-2)
    assert PATHS["ddpm_chain"].terminal_snr == pytest.approx(4.04e-5, rel=1e-2)
    assert PATHS["cosine"].terminal_snr == pytest.approx(0, abs=1e-30)
    assert PATHS["edm"].terminal_snr == pytest.approx(80**-2)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@settings(max_examples=25, deadline=None)
@given(t=times, share=st.floats(0.01, 0.99))
def test_posterior_is_bayes_rule(path, t: float, share: float) -> None:
    """q(x_s | x_t, x0) from the precisions of q(x_s | x0) and q(x_t | x_s)."""
    s = share * t
    x0, x_t = torch.tensor([[0.7]]).double(), torch.tensor([[-1.3]]).double()
    (a_t, s_t), (a_s, s_s) = path.coefficients(t), path.coefficients(s)
    ratio = a_t / a_s
    step = s_t**2 - ratio**2 * s_s**2
    # when the step is lost in rounding, so is this naive way to compute it
    if step < 1e-8 * s_t**2 or a_t == 0:
        return
    precision = 1 / s_s**2 + ratio**2 / step
    mean = (a_s * x0 / s_s**2 + ratio * x_t / step) / precision
    ours, variance = path.posterior(x0, x_t, t, s)
    assert_close(ours, mean, rtol=1e-6, atol=1e-7)
    assert_close(variance, 1 / precision, rtol=1e-6, atol=1e-12)


def test_posterior_at_the_clean_end_is_x0() -> None:
    x0, x_t = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    for path in PATHS.values():
        mean, variance = path.posterior(x0, x_t, 0.4, 0.0)
        assert_close(mean, x0)
        assert variance == 0


def test_noised_data_has_the_variance_it_should() -> None:
    generator = torch.Generator().manual_seed(1)
    n, spread = 200_000, 0.3
    x0 = spread * torch.randn(n, 1, generator=generator).double()
    eps = torch.randn(n, 1, generator=generator).double()
    for path in PATHS.values():
        alpha, sigma = path.coefficients(0.3)
        want = alpha**2 * spread**2 + sigma**2
        got = path.add_noise(x0, 0.3, eps).var()
        assert abs(got - want) < 5 * want * (2 / n) ** 0.5


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_prior_sample_matches_unit_variance_data(path) -> None:
    generator = torch.Generator().manual_seed(2)
    x = path.prior_sample((100_000, 1), path.t_max, generator)
    alpha, sigma = path.coefficients(path.t_max)
    want = (alpha**2 + sigma**2).item()
    assert abs(x.var().item() - want) < 5 * want * (2 / 1e5) ** 0.5


# --- chains ---------------------------------------------------------------------


def test_ddpm_chain_is_the_papers_table() -> None:
    chain = schedules.linear().chain(1000)
    assert chain.betas[0] == pytest.approx(1e-4) and chain.betas[-1] == pytest.approx(
        0.02
    )
    assert chain.alpha_bar[-1] == pytest.approx(4.0358e-5, rel=1e-4)


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid", "log_linear"])
def test_chain_and_its_path_agree_at_every_index(name: str) -> None:
    chain = PATHS[name].chain(200)
    path = chain.schedule
    t = chain.times(torch.arange(200))
    assert_close(path.alpha(t) ** 2, chain.alpha_bar, rtol=1e-9, atol=1e-18)
    x0, x = torch.randn(2, 199, 3, generator=torch.Generator().manual_seed(0)).double()
    k = torch.arange(1, 200)
    mean, variance = chain.posterior(x0, x, k)
    mean_t, variance_t = path.posterior(x0, x, t[1:], t[:-1])
    assert_close(mean, mean_t, rtol=1e-6, atol=1e-8)
    assert_close(variance, variance_t, rtol=1e-6, atol=1e-12)
    assert_close(chain.add_noise(x0, k, x), path.add_noise(x0, t[1:], x))


def test_walking_a_chain_gives_its_closed_form() -> None:
    """Mean and variance recursions of the transition kernel, step by step."""
    chain = schedules.cosine().chain(100)
    mean, variance = torch.tensor(1.0).double(), torch.tensor(0.0).double()
    for k, beta in enumerate(chain.betas):
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        assert_close(mean, chain.alpha_bar[k].sqrt())
        assert_close(variance, 1 - chain.alpha_bar[k])


def test_zero_terminal_snr() -> None:
    chain = schedules.linear().chain(1000)
    fixed = chain.with_zero_terminal_snr()
    assert fixed.alpha_bar[-1] == 0 and fixed.terminal_snr == 0
    assert_close(fixed.alpha_bar[0], chain.alpha_bar[0])
    assert fixed.schedule.alpha(1.0) == 0
    assert fixed.schedule.t_max < 1


def test_a_chain_that_keeps_signal_warns() -> None:
    with pytest.warns(UserWarning, match="signal-to-noise ratio is still"):
        schedules.from_betas(torch.linspace(1e-4, 0.02, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedules.linear().chain(1000)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        (torch.ones(3, 2) / 2, "shape"),
        (torch.tensor([0.1, 1.0, 0.1]), "each beta"),
        (torch.tensor([0.1, -0.1]), "each beta"),
        (torch.tensor([0.1, float("nan")]), "NaN"),
        (torch.tensor([]), "T >= 2"),
    ],
)
def test_impossible_betas_are_refused(betas, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Chain(betas)


def test_bad_use_of_a_chain_is_refused() -> None:
    chain = schedules.cosine().chain(10)
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="integer"):
        chain.add_noise(x, torch.tensor(0.5), x)
    with pytest.raises(ValueError, match="from 0 to 9"):
        chain.add_noise(x, 10, x)
    with pytest.raises(ValueError, match="respace"):
        chain.schedule.chain(5)
    assert chain.schedule.chain() is chain
    assert "steps=10" in repr(chain.schedule)
    with pytest.raises(ValueError, match="take more than 20"):
        schedules.linear().chain(20)
    with pytest.raises(ValueError, match="at least 2"):
        schedules.cosine().chain(1)


# --- bad input --------------------------------------------------------------------


def test_a_typing_mistake_is_answered() -> None:
    with pytest.raises(ValueError, match='did you mean "cosine"'):
        schedules.by_name("cosin")
    with pytest.raises(ValueError, match="accepted: linear"):
        schedules.by_name("xyz")


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan"), 500.0])
def test_times_outside_are_refused(t: float) -> None:
    with pytest.raises(ValueError, match="time runs from 0"):
        PATHS["cosine"].alpha(t)


def test_shapes_that_do_not_fit_are_refused() -> None:
    path, x = PATHS["cosine"], torch.zeros(4, 2)
    with pytest.raises(ValueError, match="x0 has shape"):
        path.add_noise(x, 0.5, x[:3])
    with pytest.raises(ValueError, match="one value a sample"):
        path.add_noise(x, torch.full((3,), 0.5), x)
    with pytest.raises(ValueError, match="needs s < t"):
        path.posterior(x, x, 0.3, 0.3)
    with pytest.raises(ValueError, match="is on meta"):
        path.add_noise(x, 0.5, x.to("meta"))


def test_a_log_snr_that_the_path_never_has_is_refused() -> None:
    with pytest.raises(ValueError, match="log-SNR from"):
        PATHS["ve"].time_of_log_snr(30.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.linear(2.0, 1.0),
        lambda: schedules.cosine(-1.0),
        lambda: schedules.sigmoid(temperature=0.0),
        lambda: schedules.log_linear(-1.0, 1.0),
        lambda: schedules.ve(1.0, 0.5),
        lambda: schedules.edm(0.0),
        lambda: schedules.sub_vp(2.0, 1.0),
    ],
)
def test_impossible_constants_are_refused(make) -> None:
    with pytest.raises(ValueError, match="needs"):
        make()


# --- grids --------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@settings(max_examples=15, deadline=None)
@given(steps=st.integers(1, 60))
def test_grids_fall_from_t_max_to_zero(path, spacing: str, steps: int) -> None:
    grid = samplers.time_grid(path, steps, spacing)
    assert grid.shape == (steps + 1,) and grid.dtype == torch.float64
    assert (grid.diff() < 0).all() and grid[-1] == 0
    if spacing == "leading":
        assert grid[0] < path.t_max
    else:
        assert grid[0] == path.t_max


@pytest.mark.parametrize("spacing", ["uniform", "log_snr", "karras"])
def test_grids_take_other_ends(spacing: str) -> None:
    grid = samplers.time_grid(PATHS["cosine"], 7, spacing, start=0.8, end=0.02)
    assert len(grid) == 8
    assert grid[0] == 0.8 and grid[-1] == 0.02


def test_log_snr_grid_is_even_in_log_snr() -> None:
    path = PATHS["cosine"]
    steps = path.log_snr(samplers.time_grid(path, 9, "log_snr", end=0.02)).diff()
    assert_close(steps, steps[:1].expand_as(steps))


def test_karras_grid_is_the_papers() -> None:
    sigma = 80 * samplers.time_grid(PATHS["edm"], 18, "karras")
    i = torch.arange(18).double()
    ends = 80 ** (1 / 7), 0.002 ** (1 / 7)
    want = (ends[0] + i / 17 * (ends[1] - ends[0])) ** 7
    assert_close(sigma[:-1], want)
    assert sigma[-1] == 0


def test_on_a_table_uniform_times_are_its_points() -> None:
    path = PATHS["ddpm_chain"]
    for spacing in ("uniform", "leading"):
        places = samplers.time_grid(path, 7, spacing) * 1000
        assert_close(places, places.round())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"spacing": "karas"}, 'did you mean "karras"'),
        ({"start": 0.2, "end": 0.3}, "end < start"),
        ({"start": 1.5}, "end < start"),
        ({"rho": 0.0}, "rho"),
    ],
)
def test_impossible_grids_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        samplers.time_grid(PATHS["cosine"], **options)


def test_more_steps_than_points_are_refused() -> None:
    with pytest.raises(ValueError, match="too many"):
        samplers.time_grid(schedules.cosine().chain(10).schedule, 50)


# --- remembered times ---------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_remembered_coefficients_are_the_same(path) -> None:
    times = torch.linspace(1, 0, 7).double()
    want = [path.coefficients(t) for t in times]
    with path.remembering(times):
        assert [path.coefficients(t) for t in times] == want
        low = path.coefficients(times[3].float())
        assert low[0].dtype == torch.float32
        assert len(path._known) == 7
    assert not path._known


def test_a_walk_forgets_its_times_however_it_ends() -> None:
    path = schedules.flow()
    times = torch.tensor([1.0, 0.5, 0.0]).double()
    with pytest.raises(KeyError), path.remembering(times):
        raise KeyError
    assert not path._known
