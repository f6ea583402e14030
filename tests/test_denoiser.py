"""Prediction, Denoiser and its wrappers: every reading agrees with every other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import NAMES, PATHS, mixture, oracle
from torch.testing import assert_close

from diffedu import Clipped, Denoiser, Prediction, schedules
from diffedu.prediction import PARAMETRISATIONS, Point, edm

READINGS = ("x0", "eps", "v", "score", "velocity")


def sample_at(path, t, n: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return mixture().at(path, t).sample(n, generator)


@pytest.mark.parametrize("predicts", NAMES)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_parametrisation_reads_the_same(path, predicts: str) -> None:
    """At both ends and between, in double precision."""
    exact, denoise = mixture().denoiser(path), oracle(path, predicts)
    for t in (path.t_max, 0.5, 0.01):
        x = sample_at(path, t)
        truth, seen = exact(x, t), denoise(x, t)
        for name in READINGS:
            ours, theirs = getattr(seen, name), getattr(truth, name)
            assert_close(ours, theirs, rtol=1e-6, atol=1e-7 * theirs.abs().max())


@pytest.mark.parametrize("predicts", NAMES)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_one_time_or_one_a_sample(path, predicts: str) -> None:
    denoise, x = oracle(path, predicts), sample_at(path, 0.6)
    one, many = denoise(x, 0.6), denoise(x, torch.full((32,), 0.6, dtype=torch.float64))
    for name in READINGS:
        assert_close(getattr(one, name), getattr(many, name))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_two_relations_hold(path) -> None:
    """x = alpha x0 + sigma eps, and each reading is what its name says."""
    t, x = 0.4, sample_at(path, 0.4)
    seen = mixture().denoiser(path)(x, t)
    (alpha, sigma), (alpha_rate, sigma_rate) = path.coefficients(t), path.rates(t)
    assert_close(alpha * seen.x0 + sigma * seen.eps, x)
    assert_close(alpha * seen.eps - sigma * seen.x0, seen.v)
    assert_close(-seen.eps / sigma, seen.score)
    assert_close(alpha_rate * seen.x0 + sigma_rate * seen.eps, seen.velocity)


def test_velocity_on_the_flow_path_is_noise_minus_data() -> None:
    path = schedules.flow()
    x = sample_at(path, 0.4)
    seen = mixture().denoiser(path)(x, 0.4)
    assert_close(seen.velocity, seen.eps - seen.x0)


@pytest.mark.parametrize("kind", [*PARAMETRISATIONS, "edm at 1"])
def test_edm_and_others_have_the_target_they_are_read_from(kind: str) -> None:
    path, t = schedules.cosine(), torch.tensor(0.3).double()
    known = edm(1.0) if kind == "edm at 1" else PARAMETRISATIONS[kind]
    x0, eps = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    x = path.add_noise(x0, t, eps)
    seen = Prediction(x, t, path, known, known.target(x0, eps, Point(path, t, x)))
    assert_close(seen.x0, x0)
    assert_close(seen.eps, eps)


def test_edm_preconditioning_has_unit_variance_at_every_level() -> None:
    """Input and target, for data of standard deviation 0.5."""
    path, n = schedules.edm(), 100_000
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 1, generator=generator).double()
    seen: list[float] = []

    def net(x, c_noise):
        seen.append(x.var().item())
        return x

    for t in (1e-4, 0.01, 1.0):
        t = torch.tensor(t).double()
        x = path.add_noise(0.5 * x0, t, eps)
        Denoiser(net, path, "edm")(x, t)
        target = edm(0.5).target(0.5 * x0, eps, Point(path, t, x))
        seen.append(target.var().item())
    assert all(abs(v - 1) < 5 * (2 / n) ** 0.5 for v in seen)


def test_edm_tells_its_network_the_noise_level() -> None:
    path, told = schedules.edm(), []
    denoise = Denoiser(lambda x, c: told.append(c) or x, path, "edm")
    denoise(torch.zeros(2, 1).double(), torch.tensor([0.01, 0.5]).double())
    assert_close(told[0], torch.tensor([0.8, 40.0]).double().log() / 4)


@pytest.mark.parametrize("target", ["edm", "flow", "linear", "ddpm_chain"])
@pytest.mark.parametrize("start", ["cosine", "edm", "flow", "linear"])
def test_on_another_path_it_is_the_same_denoiser(start: str, target: str) -> None:
    denoise = mixture().denoiser(PATHS[start]).on(PATHS[target])
    exact = mixture().denoiser(PATHS[target])
    for t in (0.9, 0.4, 0.05):
        x = sample_at(PATHS[target], t)
        seen, truth = denoise(x, t), exact(x, t)
        for name in READINGS:
            ours, theirs = getattr(seen, name), getattr(truth, name)
            assert_close(ours, theirs, rtol=1e-6, atol=1e-7 * theirs.abs().max())


def test_clipping_derives_eps_again() -> None:
    path = schedules.cosine()
    denoise = Clipped(mixture().denoiser(path), -0.1, 0.1)
    x = sample_at(path, 0.3)
    seen = denoise(x, 0.3)
    assert seen.x0.abs().max() <= 0.1
    alpha, sigma = path.coefficients(0.3)
    assert_close(alpha * seen.x0 + sigma * seen.eps, x)
    assert denoise.inner is not None and denoise.schedule is path
    with pytest.raises(ValueError, match="low < high"):
        Clipped(denoise, 1.0, -1.0)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 5),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    predicts=st.sampled_from(NAMES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_shapes_and_dtypes_go_through(batch, shape, predicts, dtype) -> None:
    denoise = Denoiser(lambda x, t: 0.1 * x, schedules.cosine(), predicts)
    x = torch.ones(batch, *shape, dtype=dtype)
    for t in (0.5, torch.full((batch,), 0.5)):
        for name in READINGS:
            out = getattr(denoise(x, t), name)
            assert out.shape == x.shape and out.dtype == dtype


@settings(max_examples=20, deadline=None)
@given(predicts=st.sampled_from(NAMES), path=st.sampled_from(sorted(PATHS)))
def test_samples_of_a_batch_do_not_meet(predicts: str, path: str) -> None:
    denoise, x = oracle(PATHS[path], predicts), sample_at(PATHS[path], 0.5)
    t = torch.linspace(0.2, 0.8, 32).double()
    together, alone = denoise(x, t), denoise(x[3:4], t[3:4])
    assert_close(together.x0[3:4], alone.x0)


def test_conditions_reach_the_network_and_none_is_dropped() -> None:
    given_: list[dict] = []
    denoise = Denoiser(lambda x, t, **c: given_.append(c) or x, schedules.cosine())
    denoise(torch.zeros(2, 1), 0.5, label=torch.zeros(2), keep=None)
    assert list(given_[0]) == ["label"]


def test_a_learned_variance_comes_apart() -> None:
    def net(x, t):
        return torch.cat([x, torch.full_like(x, -1.0)], 1)

    denoise = Denoiser(net, schedules.cosine(), learns_variance=True)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for seen in (denoise(x, 0.5), denoise.on(schedules.flow())(x, 0.5)):
        assert_close(seen.variance_fraction, torch.zeros_like(x))
    with pytest.raises(ValueError, match=r"\(2, 6, 4, 4\) is needed"):
        Denoiser(lambda x, t: x, schedules.cosine(), learns_variance=True)(x, 0.5)


# --- the ends that are excluded, and bad input ------------------------------------

ZERO_END = schedules.linear().chain(1000).with_zero_terminal_snr().schedule


@pytest.mark.parametrize(
    ("predicts", "reads", "refuses"),
    [
        ("eps", ("eps", "score"), ("x0", "v", "velocity")),
        ("score", ("eps", "score"), ("x0", "v", "velocity")),
        ("x0", READINGS, ()),
        ("v", READINGS, ()),
        ("velocity", READINGS, ()),
    ],
)
@pytest.mark.parametrize("path", [schedules.flow(), ZERO_END], ids=["flow", "table"])
def test_where_alpha_is_zero(path, predicts: str, reads, refuses) -> None:
    """What divides by alpha raises; the others go through."""
    seen = Denoiser(lambda x, t: 0.3 * x, path, predicts)(torch.ones(2, 2), 1.0)
    for name in reads:
        assert torch.isfinite(getattr(seen, name)).all()
    for name in refuses:
        with pytest.raises(ValueError, match="cannot be read from eps.*t_max"):
            getattr(seen, name)


def test_where_alpha_is_zero_for_some_of_a_batch() -> None:
    denoise = Denoiser(lambda x, t: x, schedules.flow(), "eps")
    with pytest.raises(ValueError, match="cannot be read"):
        _ = denoise(torch.ones(2, 2), torch.tensor([0.5, 1.0])).x0
    with pytest.raises(ValueError, match="told ln"):
        Denoiser(lambda x, t: x, schedules.flow(), "edm")(torch.ones(2, 2), 1.0)


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (torch.ones(2, 2), 0.0, "nothing is denoised at t = 0"),
        (torch.ones(2, 2), 1.5, "time runs from 0"),
        (torch.ones(2, 2), float("nan"), "time runs from 0"),
        (torch.ones(2, 2), torch.ones(3), "t must have shape"),
        (torch.ones(2, 2), torch.ones(2, 1), "t must have shape"),
        (torch.ones(2), 0.5, "at least 2 axes"),
        (torch.ones(2, 2).long(), 0.5, "floating"),
    ],
)
def test_bad_input_is_refused(x, t, message: str) -> None:
    for denoise in (
        Denoiser(lambda x, t: x, schedules.cosine()),
        mixture().denoiser(schedules.cosine()),
        mixture().denoiser(schedules.cosine()).on(schedules.flow()),
    ):
        with pytest.raises(ValueError, match=message):
            denoise(x, t)


def test_bad_denoisers_are_refused() -> None:
    with pytest.raises(ValueError, match='did you mean "velocity"'):
        Denoiser(lambda x, t: x, schedules.cosine(), "velocty")
    with pytest.raises(ValueError, match="is no Schedule"):
        Denoiser(lambda x, t: x, "cosine")
    with pytest.raises(ValueError, match="answered shape"):
        Denoiser(lambda x, t: x[:, :1], schedules.cosine())(torch.ones(2, 2), 0.5)
    with pytest.raises(ValueError, match="sigma_data"):
        Denoiser(lambda x, t: x, schedules.cosine(), "edm", sigma_data=0.0)
    with pytest.raises(ValueError, match="parametrisation"):
        Prediction(torch.ones(1, 1), torch.tensor(0.5), schedules.cosine(), "z", 0)


@pytest.mark.parametrize("predicts", NAMES)
def test_a_mix_is_what_it_says(predicts: str) -> None:
    path = schedules.cosine()
    x, t = torch.randn(3, 2).double(), torch.tensor(0.4).double()
    seen = oracle(path, predicts)(x, t)
    assert_close(seen.mix(0.3, -1.2), 0.3 * seen.x0 - 1.2 * seen.eps)
    each = torch.tensor([[0.1], [2.0], [0.0]]).double()
    assert_close(seen.mix(each, 1.0), each * seen.x0 + seen.eps)
