"""Counted operations against torch's own counter, calls, energy and the scoreboard."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import PATHS, mixture, oracle
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffedu import Denoiser, cost, nets, samplers, schedules

COSINE = schedules.cosine()
NETS = {
    "mlp": (nets.MLP(3, width=12, depth=2), (3,)),
    "unet": (nets.UNet(), (1, 8, 8)),
    "attention": (nets.UNet(3, 16, width=8, attention=(8, 4)), (3, 16, 16)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [1, 5])
def test_operations_are_those_of_torchs_counter(name: str, batch: int) -> None:
    net, shape = NETS[name]
    x, t = torch.zeros(batch, *shape), torch.full((batch,), 0.5)
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        net(x, t)
    with torch.no_grad(), cost.meter(net) as seen:
        net(x, t)
    assert seen.flops == theirs.get_total_flops() > 0
    assert seen.calls == 1 and sum(seen.layers.values()) == seen.flops


@settings(max_examples=20, deadline=None)
@given(
    groups=st.integers(1, 3), channels=st.integers(1, 3), kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
)  # fmt: skip
def test_convolutions_with_groups_and_strides(groups, channels, kernel, stride) -> None:
    layer = nn.Conv2d(groups * channels, 2 * groups, kernel, stride, groups=groups)
    x = torch.zeros(2, groups * channels, 7, 6)
    with FlopCounterMode(display=False) as theirs:
        layer(x)
    with cost.meter(layer) as seen:
        layer(x)
    assert seen.flops == theirs.get_total_flops()


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm_solver_2", "dpm_solver_pp_3m"])
def test_flops_are_proportional_to_calls(name: str) -> None:
    torch.manual_seed(0)
    denoise = Denoiser(nets.MLP(2, width=8, depth=1), COSINE, "v")
    x = torch.randn(3, 2)
    with cost.meter(denoise) as one:
        denoise(x, 0.5)
    looks = cost.LOOKS_A_STEP.get(name, 1)
    for steps in (1, 2, 7):
        with cost.meter(denoise) as seen:
            samplers.SAMPLERS[name](denoise, x, samplers.time_grid(COSINE, steps))
        assert seen.calls == looks * (steps - 1) + 1
        assert seen.flops == seen.calls * one.flops


def test_hooks_are_gone_afterwards_even_after_an_error() -> None:
    net = nets.MLP(2, width=8, depth=1)
    with pytest.raises(ValueError, match="x has shape"), cost.meter(net) as seen:
        net(torch.zeros(4, 3), torch.zeros(4))
    calls = seen.calls
    net(torch.zeros(4, 2), torch.zeros(4))
    assert seen.calls == calls == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_layers_that_cannot_be_counted_are_named() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Bilinear(2, 2, 2))
    with pytest.raises(ValueError, match='"1" is a Bilinear'), cost.meter(net):
        pass
    with cost.meter(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))):
        pass


def test_energy_is_a_product_of_the_readers_own_figures() -> None:
    assert cost.energy_joules(flops=6.0, joules_per_flop=0.5) == 3.0
    assert cost.energy_joules(seconds=4.0, watts=10.0) == 40.0
    for wrong in (
        {}, {"flops": 1.0}, {"flops": 1.0, "watts": 2.0},
        dict(flops=1.0, joules_per_flop=1.0, seconds=1.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="have no default"):
            cost.energy_joules(**wrong)
    with pytest.raises(ValueError, match="0 or more"):
        cost.energy_joules(seconds=-1.0, watts=1.0)


def test_the_scoreboard_stays_within_its_budgets() -> None:
    path = PATHS["cosine"]
    denoise, x = oracle(path, "v"), torch.randn(8, 2).double()
    names = ("ddim", "heun", "dpm_solver_2", "dpm_solver_pp_2m")
    chosen = {name: samplers.SAMPLERS[name] for name in names}
    exact = samplers.heun(denoise, x, samplers.time_grid(path, 200, "log_snr"))
    entries = cost.scoreboard(
        chosen, denoise, x, [1, 6, 40], lambda end: (end - exact).square().mean()
    )
    for name in names:
        mine = [e for e in entries if e.name == name]
        assert [e.nfe for e in mine][0] == 1 and max(e.nfe for e in mine) <= 40
        assert mine[-1].error < mine[0].error and mine[-1].seconds > 0
    with pytest.raises(ValueError, match="at least 1 evaluation"):
        cost.scoreboard(chosen, denoise, x, [0], lambda end: 0.0)


def test_an_oracle_has_calls_and_no_operations() -> None:
    denoise = mixture().denoiser(COSINE)
    with cost.meter(denoise) as seen:
        samplers.ddim(denoise, torch.randn(4, 2), samplers.time_grid(COSINE, 5))
    assert (seen.calls, seen.flops) == (5, 0)
