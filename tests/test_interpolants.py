"""Stochastic interpolants, the continuity equation and D-Flow on mixtures."""

from __future__ import annotations

import pytest
import torch
from oracle import mixture, within
from torch.autograd.functional import jvp

from diffedu import GaussianMixture, flows, nets, samplers, schedules

FLOW = schedules.flow()
F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def two_mixtures():
    right = torch.tensor([[2.0, -1.0], [2.0, 1.0]], dtype=F64)
    return mixture(), GaussianMixture([0.3, 0.7], right, [0.4, 0.2])


def density(bridge, x, t):
    """log q_t by writing out the mixture of all pairs of components."""
    a, b, gamma = bridge.interpolant.coefficients(torch.tensor(t, dtype=F64))
    data, source = bridge.data, bridge.source
    means = (a * data.means[:, None] + b * source.means).flatten(0, 1)
    spectrum = a**2 * data.spectrum[:, None] + b**2 * source.spectrum + gamma**2
    weights = (data.weights[:, None] * source.weights).flatten()
    return GaussianMixture(weights, means, spectrum.flatten(0, 1).sqrt()).log_prob(x)


PATHS = [
    flows.Interpolant(),
    flows.Interpolant(0.8),
    flows.Interpolant(0.5, "trigonometric"),
]


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_bridge_obeys_continuity_and_its_score_is_the_gradient(path, t):
    bridge = flows.MixtureBridge(*two_mixtures(), path)
    x = 1.5 * torch.randn(40, 2, generator=seeded(), dtype=F64)
    off = flows.continuity_residual(
        lambda x, t: density(bridge, x, t), lambda x, t: bridge(x, t).velocity, x, t
    )
    assert off.abs().max() < 1e-4
    x.requires_grad_()
    (slope,) = torch.autograd.grad(density(bridge, x, t).sum(), x)
    torch.testing.assert_close(bridge(x, t).score, slope)


def test_continuity_fails_for_another_velocity():
    data = mixture()
    x = data.sample(30, seeded())
    wrong = flows.continuity_residual(
        lambda x, t: data.at(FLOW, t).log_prob(x),
        lambda x, t: -data.denoiser(FLOW)(x, t).velocity, x, 0.5,
    )  # fmt: skip
    assert wrong.abs().max() > 1
    with pytest.raises(ValueError, match="need h < t"):
        flows.continuity_residual(lambda x, t: x[:, 0], lambda x, t: x, x, 1.0)


def test_a_bridge_from_noise_is_the_flow_paths_denoiser():
    noise = GaussianMixture([1.0], torch.zeros(1, 2, dtype=F64), [1.0])
    bridge, exact = flows.MixtureBridge(mixture(), noise), mixture().denoiser(FLOW)
    x = torch.randn(20, 2, generator=seeded(), dtype=F64)
    t = 0.05 + 0.9 * torch.rand(20, generator=seeded(1), dtype=F64)
    motion, seen = bridge(x, t), exact(x, t)
    torch.testing.assert_close(motion.velocity, seen.velocity)
    torch.testing.assert_close(motion.score, seen.score)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_rates_are_the_derivatives(path):
    t = torch.tensor([0.2, 0.6], dtype=F64)
    values, slopes = jvp(path.coefficients, t, torch.ones_like(t))
    a, b, heat = path.rates(t)
    torch.testing.assert_close((a, b), slopes[:2])
    torch.testing.assert_close(heat, values[2] * slopes[2])
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    a, b, gamma = path.coefficients(ends)
    torch.testing.assert_close(a, 1 - ends, atol=1e-12, rtol=0)
    torch.testing.assert_close(b, ends, atol=1e-12, rtol=0)
    assert gamma.tolist() == [0, 0]


@pytest.mark.parametrize("diffusion", [0.0, 0.4, lambda t: 0.5 * t])
def test_every_diffusion_ends_in_the_datas_moments(diffusion):
    data, source = two_mixtures()
    bridge, n = flows.MixtureBridge(data, source, flows.Interpolant(1.0)), 4000
    times = torch.linspace(1, 0, 151)
    begin = source.sample(n, seeded())
    x = flows.interpolant_sample(bridge, begin, times, diffusion, seeded(1))
    many = data.sample(200_000, seeded(2))
    assert within(x.mean(0), many.mean(0), many.std(0) / n**0.5 + 0.002)
    assert (x.std(0) / many.std(0) - 1).abs().max() < 0.06
    assert not within(begin.mean(0), many.mean(0), many.std(0) / n**0.5)


def test_the_loss_is_least_at_both_conditional_means():
    data, source = two_mixtures()
    path = flows.Interpolant(0.7)
    bridge, t = flows.MixtureBridge(data, source, path), torch.tensor(0.4, dtype=F64)
    gamma, heat = path.coefficients(t)[2], path.rates(t)[2]

    class Exact(torch.nn.Module):
        def forward(self, x, t, off=0.0):
            motion = bridge(x, t)
            drift, z = motion.velocity + heat * motion.score, -gamma * motion.score
            return torch.cat([drift + off, z + off], 1)

    class Off(Exact):
        def forward(self, x, t):
            return super().forward(x, t, 0.2)

    batch = data.sample(5000, seeded()), source.sample(5000, seeded(1))
    z = torch.randn(5000, 2, generator=seeded(2), dtype=F64)
    best, worse = (
        flows.interpolant_loss(flows.InterpolantNet(f(), path), *batch, t, z)
        for f in (Exact, Off)
    )
    # a shift c of both means raises the loss by 2 c^2, cross terms vanish on average
    assert worse - best == pytest.approx(0.08, abs=0.03)
    x = batch[0]
    found = flows.InterpolantNet(Exact(), path)(x, t)
    torch.testing.assert_close(tuple(found), tuple(bridge(x, t)))


def test_interpolants_say_what_is_wrong():
    with pytest.raises(ValueError, match="noise must be"):
        flows.Interpolant(-1.0)
    with pytest.raises(ValueError, match='did you mean "linear"'):
        flows.Interpolant(weights="linaer")
    net = flows.InterpolantNet(nets.MLP(2, 8, 1, outputs=4), flows.Interpolant())
    with pytest.raises(ValueError, match="noise > 0"):
        net(torch.zeros(3, 2), torch.tensor(0.5))
    with pytest.raises(ValueError, match="diffusion must be"):
        bridge = flows.MixtureBridge(*two_mixtures())
        flows.interpolant_sample(bridge, torch.zeros(3, 2), torch.tensor([1, 0.0]), -1)
    one = GaussianMixture([1.0], torch.zeros(1, 3), [1.0])
    with pytest.raises(ValueError, match="dimensions differ"):
        flows.MixtureBridge(mixture(), one)


# D-Flow


def gaussian():
    return GaussianMixture([1.0], torch.zeros(1, 2, dtype=F64), [0.5])


def solver(data, steps=60):
    times = samplers.time_grid(FLOW, steps, start=1.0)
    return lambda x1: samplers.heun(data.denoiser(FLOW), x1, times)


def test_d_flow_finds_the_source_of_a_target():
    # the ODE of a Gaussian is x0 = std x1: the cost's minimum is known
    target = torch.tensor([0.4, -0.3], dtype=F64)
    begin = torch.randn(7, 2, generator=seeded(), dtype=F64)
    kept = begin.clone()
    found = flows.d_flow(
        solver(gaussian()), begin, lambda x0: (x0 - target).square().sum(1), steps=30
    )
    torch.testing.assert_close(found, (target / 0.5).expand(7, 2), atol=0.02, rtol=0)
    assert torch.equal(begin, kept) and not found.requires_grad


def test_d_flows_prior_prefers_the_usual_length():
    begin = 3 * torch.randn(9, 4, generator=seeded(), dtype=F64)
    found = flows.d_flow(lambda x: x, begin, lambda x: 0 * x.sum(1), 40, prior=1.0)
    # the mode of a chi distribution with 4 degrees is sqrt(3)
    torch.testing.assert_close(
        found.norm(dim=1), torch.full((9,), 3**0.5, dtype=F64), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("solve", "cost", "words"),
    [
        (lambda x: x.detach(), lambda x: x.sum(1), "no gradient"),
        (lambda x: x, lambda x: x.sum(), r"cost needs \(B,\)"),
    ],
)
def test_d_flow_says_what_is_wrong(solve, cost, words):
    with pytest.raises(ValueError, match=words):
        flows.d_flow(solve, torch.ones(3, 2), cost)
