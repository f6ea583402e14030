"""Energies, windows and control branches: what they equal and leave alone."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from diffedu import (
    Denoiser,
    GaussianMixture,
    guidance,
    losses,
    nets,
    samplers,
    schedules,
    training,
)

PATH = schedules.cosine()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Energies


def one_gaussian():
    return GaussianMixture([1.0], torch.tensor([[0.5, -0.2]]).double(), [0.7])


def test_energy_of_one_gaussian_is_known_in_closed_form():
    target = torch.tensor([1.0, 0.0]).double()
    rule = guidance.EnergyGuidance(
        one_gaussian().denoiser(PATH),
        lambda x0: (x0 - target).square().sum(1) / 2, 3.0,
    )  # fmt: skip
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    seen, plain = rule(x, 0.5), one_gaussian().denoiser(PATH)(x, 0.5)
    alpha, sigma = PATH.coefficients(0.5)
    # x0(x_t) is linear, with this slope
    slope = alpha * 0.49 / (alpha**2 * 0.49 + sigma**2)
    push = 3.0 * slope * (target - plain.x0)
    assert_close(seen.score, plain.score + push)


def test_freedoms_printed_step_is_ddim_of_the_wrapper():
    denoise = one_gaussian().denoiser(PATH)
    rule = guidance.EnergyGuidance(denoise, lambda x0: x0[:, 0] ** 4, 0.8)
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = map(PATH.coefficients, (0.6, 0.5))
    rho = 0.8 * sigma_t * (alpha_s * sigma_t / alpha_t - sigma_s)
    printed = samplers.ddim_step(denoise, x, 0.6, 0.5) - rho * rule.slope(x, 0.6)[1]
    assert_close(samplers.ddim_step(rule, x, 0.6, 0.5), printed)


def test_energy_leaves_no_graph_behind_without_gradients():
    rule = guidance.EnergyGuidance(
        one_gaussian().denoiser(PATH), lambda x: x[:, 0], 1.0
    )
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    assert not rule(x, 0.5).x0.requires_grad
    assert rule(x.requires_grad_(), 0.5).x0.requires_grad


def test_scale_0_is_the_inner_denoiser():
    rule = guidance.EnergyGuidance(
        one_gaussian().denoiser(PATH), lambda x: x[:, 0], 0.0
    )
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    assert torch.equal(rule(x, 0.5).value, rule.inner(x, 0.5).value)


def test_time_travel_keeps_the_marginals_of_an_exact_model():
    # the start has the right variance, and every trip up and down must keep it
    data = one_gaussian()
    denoise = data.denoiser(PATH)
    n = 40_000
    times = torch.tensor([0.6, 0.55, 0.5])
    generator = seeded(1)
    start = data.at(PATH, 0.6).sample(n, generator)
    travel = guidance.TimeTravel(denoise, repeats=2, generator=generator)
    end = samplers.ddim(denoise, start, times, after=travel)
    truth = data.at(PATH, 0.5)
    # DDIM's step from 0.55 to 0.5 is off by less than these 5 standard errors
    assert ((end.mean(0) - truth.means[0]).abs() < 5 * (1 / n) ** 0.5).all()
    assert (
        (end.var(0) / truth.spectrum[0] - 1).abs() < 5 * (2 / n) ** 0.5 + 0.01
    ).all()


def test_no_repeats_change_nothing_and_the_band_is_kept():
    denoise = one_gaussian().denoiser(PATH)
    times = samplers.time_grid(PATH, steps=5)
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    plain = samplers.ddim(denoise, x, times)
    for options in ({"repeats": 0}, {"repeats": 3, "low": 0.95}):
        travel = guidance.TimeTravel(denoise, generator=seeded(), **options)
        assert torch.equal(samplers.ddim(denoise, x, times, after=travel), plain)
    travel = guidance.TimeTravel(denoise, 1, generator=seeded())
    assert not torch.equal(samplers.ddim(denoise, x, times, after=travel), plain)


# Windows


class Shift(torch.nn.Module):
    """A network whose answer depends on where in its window a pixel lies."""

    def forward(self, x, t, label=None):
        ramp = torch.arange(x.shape[-1], dtype=x.dtype)
        ramp = ramp if label is None else ramp + label[:, None, None, None]
        return x + ramp


def strip(stride=2, **options):
    return guidance.MultiDiffusion(Denoiser(Shift(), PATH), 4, stride, **options)


def test_windows_cover_the_image_and_end_with_it():
    assert strip().corners(4, 9) == [(0, 0), (0, 2), (0, 4), (0, 5)]
    assert strip(4).corners(8, 4) == [(0, 0), (4, 0)]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_average_solves_the_least_squares_problem(weighted):
    x = torch.randn(2, 1, 4, 9, generator=seeded(), dtype=torch.float64)
    weight = torch.rand(4, 4, generator=seeded()) + 0.1 if weighted else None
    rule = strip(weight=weight)
    seen, rows, wanted = rule(x, 0.5), [], []
    root = (weight if weighted else torch.ones(4, 4)).double().sqrt().flatten()
    places = torch.arange(36).reshape(4, 9)
    for top, left in rule.corners(4, 9):
        crop = (slice(top, top + 4), slice(left, left + 4))
        rows.append(root[:, None] * torch.eye(36).double()[places[crop].flatten()])
        answer = Shift()(x[..., crop[0], crop[1]], 0.5)[0].flatten()
        wanted.append(root * answer)
    solution = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)).solution
    assert_close(seen.value[0].flatten(), solution)


def test_one_window_is_the_inner_denoiser():
    x = torch.randn(2, 1, 4, 4, generator=seeded())
    assert torch.equal(strip()(x, 0.5).value, Denoiser(Shift(), PATH)(x, 0.5).value)


def test_averaging_predictions_averages_ddim_steps():
    x = torch.randn(1, 1, 4, 9, generator=seeded(), dtype=torch.float64)
    rule, total, count = strip(), torch.zeros(1, 1, 4, 9).double(), torch.zeros(4, 9)
    for top, left in rule.corners(4, 9):
        crop = (..., slice(top, top + 4), slice(left, left + 4))
        total[crop] += samplers.ddim_step(rule.inner, x[crop], 0.6, 0.5)
        count[crop] += 1
    assert_close(samplers.ddim_step(rule, x, 0.6, 0.5), total / count)


def test_each_window_may_have_its_own_condition():
    x = torch.zeros(1, 1, 4, 8)
    labels = [{"label": torch.tensor([k])} for k in (10, 20)]
    seen = strip(4, conditions=labels)(x, 0.5).value[0, 0, 0]
    assert_close(seen, torch.tensor([10.0, 11, 12, 13, 20, 21, 22, 23]))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: strip(5), "leaves gaps"),
        (lambda: strip(0), "whole numbers above 0"),
        (lambda: strip(weight=torch.ones(3, 4)), "weight needs shape"),
        (lambda: strip()(torch.zeros(1, 1, 3, 9), 0.5), "no window of 4"),
        (lambda: strip()(torch.zeros(1, 9), 0.5), "cut from"),
        (lambda: strip(conditions=[{}])(torch.zeros(1, 1, 4, 9), 0.5), "1 conditions"),
        (lambda: guidance.Interval(strip(), 1.0, 2.0)(torch.zeros(1, 1, 4, 9), 0.01),
         "can't be left out"),
    ],
)  # fmt: skip
def test_bad_windows_say_what_is_accepted(act, message):
    with pytest.raises(ValueError, match=message):
        act()


# Control branches


def small(classes=None):
    torch.manual_seed(0)
    net = nets.UNet(1, 8, width=8, multipliers=(1, 2), classes=classes)
    for p in net.parameters():  # so that the zero layers of a fresh net speak
        torch.nn.init.normal_(p, std=0.2) if p.dim() > 1 else None
    return Denoiser(net, PATH, "v")


def batch():
    x = torch.randn(3, 1, 8, 8, generator=seeded())
    return x, torch.randn(3, 2, 8, 8, generator=seeded(1))


def test_control_starts_as_the_denoiser_it_wraps():
    denoise, (x, hint) = small(classes=4), batch()
    control = guidance.Control(denoise, hint_channels=2)
    for told in ({}, {"label": torch.tensor([1, 2, -1])}):
        seen = control(x, 0.5, hint=hint, **told)
        assert torch.equal(seen.value, denoise(x, 0.5, **told).value)
    assert torch.equal(control(x, 0.5).value, denoise(x, 0.5).value)


def test_control_starts_as_a_captioned_denoiser_too():
    torch.manual_seed(0)
    net = nets.UNet(1, 8, width=8, multipliers=(1, 2), vocabulary=5)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2) if p.dim() > 1 else None
    denoise, (x, hint) = Denoiser(net, PATH, "v"), batch()
    caption = torch.tensor([[1, 2], [3, 0], [0, 0]])
    control = guidance.Control(denoise, hint_channels=2)
    seen = control(x, 0.5, hint=hint, caption=caption)
    assert torch.equal(seen.value, denoise(x, 0.5, caption=caption).value)


def test_only_the_branch_learns_and_it_learns():
    denoise, (_, hint) = small(), batch()
    control = guidance.Control(denoise, hint_channels=2)
    before = {k: v.clone() for k, v in denoise.net.state_dict().items()}
    x0 = hint[:, :1].tanh()

    def loss(batch, generator):
        return losses.denoising(control, x0, hint=hint, generator=generator)

    for _ in training.fit(
        control, loss, lambda step: x0, steps=30, lr=1e-2, ema=None,
        generator=seeded(2), progress=False,
    ):  # fmt: skip
        pass
    assert all(torch.equal(before[k], v) for k, v in denoise.net.state_dict().items())
    with torch.no_grad():
        measured = {"generator": seeded(3), "t": torch.tensor(0.7)}
        told = losses.denoising(control, x0, hint=hint, **measured)
        measured["generator"] = seeded(3)
        untold = losses.denoising(control, x0, **measured)
    assert told < 0.8 * untold


def test_first_step_moves_only_what_stands_after_zero():
    # the zero convolutions stop the branch's own gradient, not their own
    control = guidance.Control(small(), hint_channels=2)
    x, hint = batch()
    losses.denoising(control, x, hint=hint, generator=seeded()).backward()
    net = control.controlled.net
    assert net.zero[0].weight.grad.abs().max() > 0
    assert net.stem.weight.grad.abs().max() == 0
    assert net.read[-1].weight.grad.abs().max() == 0


def test_control_nests_with_other_rules():
    control = guidance.Control(small(classes=4), hint_channels=2)
    x, hint = batch()
    label = torch.tensor([0, 1, 2])
    guided = guidance.ClassifierFree(control, 2.0, instead={"hint": hint})
    seen = guided(x, 0.5, label=label, hint=hint).value
    plain = guidance.ClassifierFree(control.inner, 2.0)(x, 0.5, label=label).value
    assert torch.equal(seen, plain)


def test_bad_controls_say_what_is_accepted():
    with pytest.raises(ValueError, match="UNet"):
        guidance.Control(one_gaussian().denoiser(PATH), 1)
    control = guidance.Control(small(), hint_channels=2)
    x, hint = batch()
    with pytest.raises(ValueError, match="hint needs shape"):
        control(x, 0.5, hint=hint[:, :1])
