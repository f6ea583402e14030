"""Flow matching: its loss, couplings and straightness against what is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import mixture, oracle

from diffedu import Denoiser, GaussianMixture, flows, losses, nets, samplers, schedules

FLOW = schedules.flow()
F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


def net(predicts="velocity", path=FLOW):
    torch.manual_seed(0)
    return Denoiser(nets.MLP(2, width=16, depth=1).double(), path, predicts)


# The loss


def test_the_loss_is_the_pairs_velocity():
    x0, x1, t = normal(9, 2), normal(9, 2, seed=1), torch.rand(9, generator=seeded(2))
    t = t.double()
    denoise = net()
    x_t = (1 - t)[:, None] * x0 + t[:, None] * x1
    right = (denoise.net(x_t, t) - (x1 - x0)).square().mean(1)
    found = flows.flow_matching(denoise, x0, x1, t, per_sample=True)
    torch.testing.assert_close(found, right)
    same = losses.denoising(denoise, x0, t=t, noise=x1)
    torch.testing.assert_close(flows.flow_matching(denoise, x0, x1, t), same)


@pytest.mark.parametrize("path", ["cosine", "edm", "flow"])
@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "velocity"])
def test_the_mixtures_own_velocity_is_the_minimum(path, predicts):
    path, data = schedules.by_name(path), mixture()
    x0, x1 = data.sample(4000, seeded()), normal(4000, 2)
    best = oracle(path, predicts)

    class Off(torch.nn.Module):
        def forward(self, x, t):
            return best(x, t).velocity + 0.3

    loss = flows.flow_matching(best, x0, x1, t=0.4)
    worse = flows.flow_matching(Denoiser(Off(), path, "velocity"), x0, x1, t=0.4)
    assert loss < worse


def test_pairs_are_made_by_the_coupling_and_times_drawn_inside():
    seen = {}

    class Watch(torch.nn.Module):
        def forward(self, x, t):
            seen.update(x=x, t=t)
            return torch.zeros_like(x)

    x0, x1 = normal(50, 2), normal(50, 2, seed=1)
    watch = Denoiser(Watch(), FLOW, "velocity")
    loss = flows.flow_matching(
        watch, x0, x1, pair_up=flows.minibatch_ot, generator=seeded()
    )
    near = flows.minibatch_ot(x0, x1)
    torch.testing.assert_close(loss, (near - x0).square().mean())
    assert 0 < seen["t"].min() < 0.1 and 0.9 < seen["t"].max() < 1
    t = seen["t"][:, None]
    torch.testing.assert_close(seen["x"], (1 - t) * x0 + t * near)


def test_without_partner_the_noise_is_fresh():
    a, b = (
        flows.flow_matching(net(), normal(5, 2), generator=seeded(s)) for s in (0, 1)
    )
    assert a != b


@pytest.mark.parametrize(
    ("x0", "x1", "words"),
    [
        (torch.zeros(0, 2), None, "needs"),
        (torch.zeros(3, 2, dtype=torch.long), None, "floating"),
        (torch.zeros(3, 2), torch.zeros(4, 2), "must be equal"),
    ],
)
def test_the_loss_refuses_what_is_no_batch(x0, x1, words):
    with pytest.raises(ValueError, match=words):
        flows.flow_matching(net(), x0, x1)


# Couplings


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 18), st.integers(0, 2**31), st.booleans())
def test_assignment_is_scipys(n, seed, ties):
    optimize = pytest.importorskip("scipy.optimize")
    cost = torch.randn(n, n, generator=seeded(seed), dtype=F64)
    cost = (2 * cost).round() if ties else cost
    columns = flows.assignment(cost)
    assert columns.sort().values.tolist() == list(range(n))
    best = cost.numpy()[optimize.linear_sum_assignment(cost.numpy())].sum()
    assert abs(cost[range(n), columns].sum().item() - best) < 1e-9


def test_sinkhorn_has_the_marginals_and_tends_to_the_assignment():
    cost = torch.rand(12, 12, generator=seeded(), dtype=F64)
    plan = flows.sinkhorn(cost, 0.01, 3000)
    torch.testing.assert_close(plan.sum(0), torch.full((12,), 1 / 12, dtype=F64))
    assert (plan.sum(1) - 1 / 12).abs().max() < 1e-3
    best = cost[range(12), flows.assignment(cost)].mean()
    assert best - 1e-3 < (plan * cost).sum() < best + 0.02
    wide = flows.sinkhorn(cost[:, :5], 0.1)
    torch.testing.assert_close(wide.sum(1), torch.full((12,), 1 / 12, dtype=F64))


def test_sinkhorn_survives_costs_that_underflow():
    cost = 1e4 * torch.rand(6, 6, generator=seeded())
    assert bool(torch.isfinite(flows.sinkhorn(cost, 1.0)).all())


@pytest.mark.parametrize("method", ["exact", "sinkhorn"])
def test_minibatch_ot_brings_partners_close(method):
    x0, x1 = normal(40, 3), normal(40, 3, seed=1) + 5
    near = flows.minibatch_ot(x0, x1, method, generator=seeded())
    gain = flows.transport_cost(x0, near).mean() < flows.transport_cost(x0, x1).mean()
    assert gain and {tuple(x.tolist()) for x in near} <= {tuple(x.tolist()) for x in x1}


def test_minibatch_ot_finds_a_known_order():
    x0 = normal(30, 1, 4, 4)
    order = torch.randperm(30, generator=seeded())
    torch.testing.assert_close(flows.minibatch_ot(x0, x0[order] + 0.001), x0 + 0.001)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: flows.assignment(torch.zeros(2, 3)), r"\(2, 3\)"),
        (lambda: flows.assignment(torch.full((2, 2), torch.nan)), "NaN"),
        (lambda: flows.sinkhorn(torch.zeros(2, 2), 0.0), "temperature"),
        (lambda: flows.minibatch_ot(torch.zeros(2, 2), torch.zeros(3, 2)), "equal"),
        (
            lambda: flows.minibatch_ot(torch.zeros(2, 2), torch.zeros(2, 2), "exat"),
            'did you mean "exact"',
        ),
    ],
)
def test_couplings_say_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# Straightness and reflow


def test_a_straight_path_at_even_speed_has_straightness_0():
    times = torch.tensor([1.0, 0.7, 0.2, 0.0])
    even = normal(1, 5, 3).expand(3, 5, 3)
    assert flows.straightness(even, times).max() < 1e-12
    uneven = even * torch.tensor([1.0, 2.0, 1.0], dtype=F64)[:, None, None]
    assert flows.straightness(uneven, times).min() > 0


def test_straightness_is_the_variance_over_time():
    times = torch.tensor([1.0, 0.25, 0.0])
    velocities = torch.tensor([[[1.0, 0.0]], [[5.0, 0.0]]])
    # mean 0.75 + 1.25 = 2; 0.75 * 1 + 0.25 * 9 = 3
    assert flows.straightness(velocities, times).item() == pytest.approx(3.0)


def test_one_step_with_independent_pairs_ends_in_the_mean():
    data = mixture()
    trip = flows.travel(data.denoiser(FLOW), normal(20, 2), steps=1)
    mean = (data.weights[:, None] * data.means).sum(0)
    torch.testing.assert_close(trip.x0, mean.expand(20, 2))
    assert trip.straightness.max() < 1e-20


def test_a_journey_is_eulers_walk():
    denoise, x1 = mixture().denoiser(FLOW), normal(6, 2)
    trip = flows.travel(denoise, x1, steps=12)
    times = samplers.time_grid(FLOW, 12, start=1.0)
    torch.testing.assert_close(trip.x0, samplers.euler(denoise, x1, times))
    assert torch.equal(trip.x1, x1) and trip.straightness.shape == (6,)
    x0, same = flows.reflow_pairs(denoise, x1, steps=12)
    torch.testing.assert_close(x0, samplers.heun(denoise, x1, times))
    assert torch.equal(same, x1)


def test_the_flow_of_a_gaussian_costs_no_more_than_its_pairs():
    one = GaussianMixture([1.0], torch.zeros(1, 2, dtype=F64), [0.5])
    x1 = normal(4000, 2)
    x0, _ = flows.reflow_pairs(one.denoiser(FLOW), x1, steps=200)
    # the ODE of a Gaussian is x0 = std x1, the optimal map
    torch.testing.assert_close(x0, 0.5 * x1, atol=2e-3, rtol=0)
    random = flows.transport_cost(one.sample(4000, seeded(1)), x1)
    assert flows.transport_cost(x0, x1).mean() < random.mean()


def test_travel_wants_the_flow_path_and_straightness_falling_times():
    with pytest.raises(ValueError, match="curved"):
        flows.travel(mixture().denoiser(schedules.cosine()), normal(2, 2))
    with pytest.raises(ValueError, match="need 3 times"):
        flows.straightness(torch.zeros(2, 1, 1), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="must fall"):
        flows.straightness(torch.zeros(2, 1, 1), torch.tensor([0.0, 0.5, 1.0]))
