"""Distillation: targets on the oracle, boundaries, levels, and a few steps of it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import PATHS, mixture, oracle
from torch.testing import assert_close

from diffedu import Denoiser, GaussianMixture, distillation, nets, samplers, schedules

COSINE = schedules.cosine()
CONTINUOUS = {name: path for name, path in PATHS.items() if path.steps is None}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int = 16) -> torch.Tensor:
    return mixture().sample(n, seeded(0))


def small(path=COSINE, predicts: str = "v") -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(nets.MLP(2, width=16, depth=1), path, predicts)


def model(path=COSINE, **options) -> distillation.ConsistencyModel:
    torch.manual_seed(1)
    return distillation.ConsistencyModel(nets.MLP(2, 16, 1), path, **options)


# --- progressive distillation -----------------------------------------------------


@pytest.mark.parametrize("path", CONTINUOUS.values(), ids=CONTINUOUS)
@pytest.mark.parametrize("clean", [False, True])
def test_the_target_lands_where_two_steps_do(path, clean: bool) -> None:
    levels = torch.tensor([-2.0, 0.0, 2.0]).double()
    t, middle, s = path.time_of_log_snr(levels)
    s = 0 * s if clean else s
    teacher, x = oracle(path, "v"), mixture().at(path, t).sample(16, seeded(0))
    target = distillation.two_step_target(teacher, x, t, middle, s)
    landed = samplers.ddim(teacher, x, torch.stack([t, middle, s]))
    (alpha, sigma), (alpha_s, sigma_s) = (path.coefficients(v) for v in (t, s))
    assert_close(alpha_s * target + sigma_s * (x - alpha * target) / sigma, landed)
    assert (target - teacher(x, t).x0).abs().max() > 1e-3


def test_times_may_differ_from_sample_to_sample() -> None:
    teacher, x = oracle(COSINE, "v"), points(2).double()
    times = [torch.tensor(pair).double() for pair in ([0.9, 0.4], [0.7, 0.2], [0.5, 0])]
    both = distillation.two_step_target(teacher, x, *times)
    for i in range(2):
        one = distillation.two_step_target(
            teacher, x[i : i + 1], *(t[i] for t in times)
        )
        assert_close(both[i : i + 1], one)


@pytest.mark.parametrize("weighting", ["truncated_snr", "snr_plus_one", "x0"])
def test_a_perfect_student_has_no_loss(weighting: str) -> None:
    """One data point: every DDIM walk goes straight, so the teacher is the student."""
    at = torch.tensor([[0.3, -0.7]]).double()
    one = GaussianMixture(torch.ones(1).double(), at, torch.zeros(1)).denoiser(COSINE)
    times = samplers.time_grid(COSINE, 8)
    x0 = at.expand(32, 2)
    loss = distillation.progressive_loss(
        one, one, x0, times, weighting, generator=seeded(0)
    )
    assert loss < 1e-12
    worse = oracle(COSINE, "v")
    assert distillation.progressive_loss(worse, one, x0, times, weighting) > 1e-3


def test_the_weights_are_the_papers() -> None:
    student, teacher, x0 = small(), oracle(COSINE, "v"), points().float()
    times, noise = (
        samplers.time_grid(COSINE, 4),
        torch.randn(16, 2, generator=seeded(1)),
    )
    options = dict(index=torch.ones(16, dtype=torch.long), noise=noise)
    losses = {
        w: distillation.progressive_loss(student, teacher, x0, times, w, **options)
        for w in ("x0", "truncated_snr", "snr_plus_one")
    }
    snr = COSINE.snr(times[2]).item()
    for weighting, weight in (
        ("truncated_snr", max(snr, 1)),
        ("snr_plus_one", snr + 1),
    ):
        ratio = (losses[weighting] / losses["x0"]).item()
        assert ratio == pytest.approx(weight, rel=1e-4)


def test_gradients_reach_the_student_alone() -> None:
    student, teacher = small(), copy.deepcopy(small())
    times = samplers.time_grid(COSINE, 4)
    distillation.progressive_loss(student, teacher, points().float(), times).backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.slow
def test_halving_learns_and_leaves_the_teacher_alone() -> None:
    """A Gaussian, whose denoiser is linear: one trained step nears the walk of four."""
    data = torch.randn(2000, 2, generator=seeded(3)) * 0.5
    teacher = small()
    before = copy.deepcopy(teacher.state_dict())
    times = samplers.time_grid(COSINE, 4)
    x = torch.randn(200, 2, generator=seeded(4))
    want = samplers.ddim(teacher, x, times)
    stages = list(
        distillation.progressive(
            teacher, [data[i : i + 200] for i in range(0, 2000, 200)] * 30, times,
            train_steps=250, lr=2e-3, generator=seeded(5), progress=False,
        )
    )  # fmt: skip
    assert [stage.steps for stage in stages] == [2, 1]
    assert_close(stages[1].times, times[::4])
    after = teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    end = samplers.ddim(stages[1].student, x, stages[1].times)
    naive = samplers.ddim(teacher, x, stages[1].times)
    assert (end - want).square().mean() < 0.3 * (naive - want).square().mean()


def test_bad_numbers_of_steps_are_refused() -> None:
    times = samplers.time_grid(COSINE, 6)
    with pytest.raises(ValueError, match="cannot be halved down to 1"):
        next(distillation.progressive(small(), [points().float()], times))
    with pytest.raises(ValueError, match="cannot be paired"):
        distillation.progressive_loss(
            small(), small(), points().float(), samplers.time_grid(COSINE, 5)
        )
    with pytest.raises(ValueError, match='did you mean "truncated_snr"'):
        distillation.progressive_loss(
            small(), small(), points().float(), times, "truncated_sn"
        )


# --- consistency models -----------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    sigma_min=st.floats(0.001, 0.1),
    sigma_data=st.floats(0.2, 2.0),
    name=st.sampled_from(["cosine", "linear", "edm"]),
)
def test_at_the_boundary_nothing_changes(sigma_min, sigma_data, name) -> None:
    path = schedules.by_name(name)
    net = model(path, sigma_data=sigma_data, sigma_min=sigma_min).double()
    t = path.time_of_log_snr(torch.tensor(-2 * math.log(sigma_min)).double())
    x = points().double()
    assert_close(net(path.alpha(t) * x, t).x0, x, rtol=1e-6, atol=1e-6)


def test_the_answer_is_the_same_on_every_path() -> None:
    x, level = points().double(), torch.tensor(0.7).double()
    answers = []
    for path in (COSINE, schedules.edm(), schedules.flow()):
        t = path.time_of_log_snr(-2 * level.log())
        answers.append(model(path).double()(path.alpha(t) * x, t).x0)
    assert_close(answers[0], answers[1])
    assert_close(answers[0], answers[2])


def test_noise_levels_are_karras_reversed() -> None:
    levels = distillation.noise_levels(12)
    path = schedules.edm()
    theirs = path.sigma(samplers.time_grid(path, 12, "karras"))[:-1]
    assert_close(levels, theirs.flip(0))


def test_the_curriculum_doubles_to_the_last() -> None:
    seen = [distillation.curriculum(k, 800, 10, 1280) for k in range(800)]
    assert seen[0] == 11 and seen[-1] == 1281
    assert sorted(set(seen)) == [10 * 2**i + 1 for i in range(8)]
    assert seen == sorted(seen)
    assert {distillation.curriculum(k, 50, 17, 17) for k in range(50)} == {18}


def test_likely_levels_are_the_cut_log_normal() -> None:
    levels = distillation.noise_levels(30)
    shares = distillation.likely_levels(levels)
    draws = torch.randn(200_000, generator=seeded(6)).double() * 2.0 - 1.1
    counts = torch.histogram(draws, levels.log())[0]
    counts = counts / counts.sum()
    error = (shares * (1 - shares) / 150_000).sqrt()
    assert ((counts - shares).abs() < 5 * error + 1e-6).all()


def test_pseudo_huber_is_square_near_and_length_far() -> None:
    a = torch.tensor([[3.0, 4.0], [3e-4, 4e-4]]).double()
    got = distillation.pseudo_huber(a, 0 * a, c=0.01)
    assert_close(got[0], torch.tensor(5 - 0.01).double(), rtol=1e-4, atol=0)
    assert_close(got[1], torch.tensor(25e-8 / 0.02).double(), rtol=1e-3, atol=0)


def test_the_exact_end_has_no_loss_when_distilled() -> None:
    """For N(0, s^2) the ODE's end is known: x sqrt((s^2 + e^2) / (s^2 + sigma^2))."""
    s, path = 0.5, schedules.edm()
    gauss = GaussianMixture(
        torch.ones(1), torch.zeros(1, 2).double(), torch.tensor([s])
    )

    class Exact(distillation.ConsistencyModel):
        def forward(self, x, t, **condition):
            seen = super().forward(x, t)
            sigma = path.sigma(t)[:, None]
            shrink = ((s**2 + 0.002**2) / (s**2 + sigma**2)).sqrt()
            seen.value = seen.x0 = x * shrink
            return seen

    exact = Exact(lambda x, t: x, path)
    levels = distillation.noise_levels(400)
    x0 = gauss.sample(500, seeded(7))
    options = dict(teacher=gauss.denoiser(path), generator=seeded(8))
    right = distillation.consistency_loss(exact, x0, levels, **options)
    wrong = distillation.consistency_loss(model(path).double(), x0, levels, **options)
    assert right < 0.02 * wrong


def test_without_a_teacher_the_pair_shares_data_and_noise() -> None:
    path, x0 = schedules.edm(), points().double()
    net = model(path, sigma_data=0.58).double()
    levels, noise = distillation.noise_levels(5), torch.randn(16, 2).double()
    index = torch.full((16,), 2)
    low, high = levels[2], levels[3]
    ends = [net(x0 + level * noise, level / 80).x0 for level in (low, high)]
    want = distillation.pseudo_huber(ends[1], ends[0]).mean() / (high - low)
    got = distillation.consistency_loss(net, x0, levels, index=index, noise=noise)
    assert_close(got, want)
    other = model(path, sigma_data=0.9).double()
    averaged = distillation.consistency_loss(
        net, x0, levels, target=other, index=index, noise=noise
    )
    assert (averaged - want).abs() > 1e-3


def test_the_teachers_step_is_heuns() -> None:
    path, teacher = schedules.edm(), oracle(schedules.edm(), "v")
    x = 2 * torch.randn(16, 2, generator=seeded(9)).double()
    got = distillation.teacher_step(
        teacher, x, torch.full((16,), 2.0).double(), torch.full((16,), 1.5).double()
    )
    times = torch.tensor([2.0, 1.5]).double() / path.sigma_max
    assert_close(got, samplers.heun(teacher, x, times))
    moved = distillation.teacher_step(
        oracle(COSINE, "v"), x, torch.full((16,), 2.0), torch.full((16,), 1.5)
    )
    assert_close(moved, got, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_few_steps_of_training_find_the_end() -> None:
    data = torch.randn(4000, 2, generator=seeded(3)) * 0.5
    net = model(schedules.edm())
    x = 80 * torch.randn(2000, 2, generator=seeded(4))
    times = torch.tensor([1.0, 0.0])
    untrained = samplers.consistency(net, x, times).std()
    *_, state = distillation.fit_consistency(
        net, [data[i : i + 200] for i in range(0, 4000, 200)] * 20, steps=400, last=20,
        lr=3e-3, ema=0.98, generator=seeded(5), progress=False,
    )  # fmt: skip
    ends = samplers.consistency(state.ema, x, times)
    assert abs(ends.std() - 0.5) < 0.15 < abs(untrained - 0.5)


def test_bad_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 noise levels"):
        distillation.noise_levels(1)
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        distillation.noise_levels(5, 2.0, 1.0)
    with pytest.raises(ValueError, match="levels need"):
        distillation.consistency_loss(model(), points().float(), torch.ones(1))
    with pytest.raises(ValueError, match="first <= last"):
        distillation.curriculum(0, 10, 20, 10)
    with pytest.raises(ValueError, match="sigma_data"):
        model(sigma_data=0.0)
    with pytest.raises(ValueError, match="alpha is 0"):
        model(schedules.flow())(points().float(), torch.tensor(1.0))


def test_checkpoints_are_refused() -> None:
    options = {"checkpoint": "there.pt"}
    with pytest.raises(ValueError, match="leave checkpoint= out"):
        next(distillation.fit_consistency(model(), [points().float()], **options))
    times = samplers.time_grid(COSINE, 4)
    with pytest.raises(ValueError, match="leave checkpoint= out"):
        next(distillation.progressive(small(), [points().float()], times, **options))


# --- sampling -----------------------------------------------------------------------


def test_jumps_go_back_to_the_level_they_are_sent_to() -> None:
    """A model that always says one point: the state at s has noise sigma_s exactly."""
    at = torch.tensor([[0.4, -0.2]]).double()
    one = GaussianMixture(torch.ones(1).double(), at, torch.zeros(1)).denoiser(COSINE)
    x, times = torch.randn(20_000, 2, generator=seeded(1)).double(), [0.9, 0.5]
    end = samplers.consistency(
        one, x, torch.tensor(times).double(), generator=seeded(2)
    )
    alpha, sigma = (c.item() for c in COSINE.coefficients(0.5))
    spread = (sigma**2 - (0.002 * alpha) ** 2) ** 0.5
    assert ((end.mean(0) - alpha * at).abs() < 5 * spread / 20_000**0.5).all()
    assert ((end.std(0) - spread).abs() < 5 * spread / 40_000**0.5).all()


def test_one_jump_is_one_look() -> None:
    net, x = model(), torch.randn(16, 2, generator=seeded(1))
    times = torch.tensor([0.9, 0.0])
    assert_close(samplers.consistency(net, x, times), net(x, 0.9).x0)
    noise = torch.randn(2, 16, 2, generator=seeded(2))
    two = samplers.consistency(net, x, torch.tensor([0.9, 0.4, 0.0]), noise=noise)
    alpha, sigma = (c.item() for c in COSINE.coefficients(0.4))
    back = alpha * net(x, 0.9).x0 + (sigma**2 - (0.002 * alpha) ** 2) ** 0.5 * noise[0]
    assert_close(two, net(back, 0.4).x0, rtol=1e-5, atol=1e-5)


def test_a_posterior_mean_loses_variance_in_it() -> None:
    path, gauss = COSINE, GaussianMixture([1.0], torch.zeros(1, 2).double(), [0.5])
    x = path.prior_sample((5000, 2), path.t_max, seeded(3), dtype=torch.float64)
    times = samplers.time_grid(path, 50)
    denoise = gauss.denoiser(path)
    assert samplers.consistency(denoise, x, times, generator=seeded(4)).std() < 0.4
    assert samplers.ancestral(denoise, x, times, generator=seeded(4)).std() > 0.45
