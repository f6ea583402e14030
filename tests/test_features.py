"""Features: hooks read, change and collect hidden states, and are taken off again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from diffedu import Clipped, Denoiser, GaussianMixture, features, nets, schedules


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """h = 2 x + t, answer = 3 h: everything inside is known."""

    def __init__(self):
        super().__init__()
        self.twice, self.thrice = nn.Linear(3, 3, False), nn.Linear(3, 3, False)
        self.twice.weight.data = 2 * torch.eye(3)
        self.thrice.weight.data = 3 * torch.eye(3)

    def forward(self, x, t):
        return self.thrice(self.twice(x))


def known() -> Denoiser:
    return Denoiser(Linear(), schedules.flow(), "x0")


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    net = nets.UNet(1, 8, width=8, attention=(4,), classes=3)
    for parameter in net.parameters():  # blocks start silent otherwise
        nn.init.normal_(parameter, std=0.1)
    return Denoiser(net, schedules.cosine(), "v").eval()


def test_recorded_states_are_the_networks_own(unet):
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    with features.record(unet) as seen:
        unet(x, 0.5)
    assert list(seen) == unet.net.blocks() == features.blocks_of(unet)
    assert seen["down.0"].shape == (2, 8, 8, 8)
    assert_close(unet.net.head(seen["up.2"]), unet(x, 0.5).v)


def test_gradients_flow_through_what_is_recorded():
    x = torch.ones(2, 3, requires_grad=True)
    with features.record(known(), "twice") as seen:
        known_denoise = known()
        known_denoise(x, 0.5)
    assert seen == {}, "another denoiser's calls are not recorded"
    denoise = known()
    with features.record(denoise, "twice") as seen:
        denoise(x, 0.5)
    seen["twice"].sum().backward()
    assert_close(x.grad, torch.full((2, 3), 2.0))


def test_hooks_are_taken_off_even_after_an_error(unet):
    with pytest.raises(RuntimeError, match="stop"):
        with features.record(unet), features.edit(unet, {"middle": lambda h: h}):
            raise RuntimeError("stop")
    assert not any(m._forward_hooks for m in unet.modules())


def test_an_edit_changes_what_follows():
    denoise, x = known(), torch.ones(2, 3)
    with features.edit(denoise, {"twice": lambda h: h + 1}):
        assert_close(denoise(x, 0.5).x0, torch.full((2, 3), 9.0))
    assert_close(denoise(x, 0.5).x0, torch.full((2, 3), 6.0))


def test_an_edit_may_look_at_the_inputs(unet):
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    attend = [n for n, m in unet.net.named_modules() if isinstance(m, nets.Attend)]
    identity = {name: lambda h, q, k, v: v for name in attend}
    with features.edit(unet, identity), features.record(unet, attend) as seen:
        edited = unet(x, 0.5).v
    assert not torch.allclose(edited, unet(x, 0.5).v)
    assert seen.keys() == set(attend)


def test_an_edit_that_changes_nothing_changes_nothing(unet):
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    with features.edit(unet, {name: lambda h: h for name in unet.net.blocks()}):
        same = unet(x, 0.5).v
    assert torch.equal(same, unet(x, 0.5).v)


def test_wrappers_are_seen_through(unet):
    clipped = Clipped(unet)
    assert features.network_of(clipped) is unet.net
    assert features.network_of(clipped.on(schedules.edm())) is unet.net
    with features.record(clipped, ["middle"]) as seen:
        clipped(torch.zeros(1, 1, 8, 8), 0.5)
    assert seen["middle"].shape == (1, 16, 2, 2)


def test_features_of_a_known_network():
    x0, eps = torch.randn(2, 5, 3, generator=seeded())
    found = features.extract(known(), x0, 0.25, ["twice"], noise=eps)
    assert_close(found["twice"], 2 * (0.75 * x0 + 0.25 * eps))
    clean = features.extract(known(), x0, 0.25, "twice", noise=torch.zeros_like(x0))
    assert_close(clean["twice"], 1.5 * x0)


def test_several_times_share_their_noise():
    x0 = torch.randn(5, 3, generator=seeded())
    both = features.extract(known(), x0, [0.2, 0.6], "twice", generator=seeded(1))
    for k, t in enumerate((0.2, 0.6)):
        one = features.extract(known(), x0, t, "twice", generator=seeded(1))
        assert_close(both["twice"][k], one["twice"])
    assert both["twice"].shape == (2, 5, 3)


def test_draws_are_averaged():
    x0, noise = torch.zeros(5, 3), torch.randn(4, 5, 3, generator=seeded())
    found = features.extract(known(), x0, 0.5, "twice", draws=4, noise=noise)
    assert_close(found["twice"], noise.mean(0))
    # the mean over n draws has a variance n times smaller
    many = features.extract(
        known(), torch.zeros(4000, 3), 0.5, "twice", draws=4, generator=seeded()
    )["twice"]
    spread = many.var() * 4  # of 12,000 standard normals: 5 standard errors of 2/n
    assert abs(spread - 1) < 5 * (2 / many.numel()) ** 0.5


@pytest.mark.parametrize("pool", ["none", "mean", "max"])
def test_pools(unet, pool):
    x0 = torch.randn(3, 1, 8, 8, generator=seeded())
    found = features.extract(
        unet, x0, 0.3, ["down.0"], pool=pool, noise=torch.zeros_like(x0)
    )["down.0"]
    with features.record(unet, ["down.0"]) as seen, torch.no_grad():
        unet(unet.schedule.alpha(0.3).float() * x0, 0.3)
    h = seen["down.0"]
    wanted = {"none": h, "mean": h.mean((2, 3)), "max": h.amax((2, 3))}[pool]
    assert_close(found, wanted)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(1, 9), batch_size=st.integers(1, 10))
def test_the_answer_does_not_depend_on_the_batch_size(unet, n, batch_size):
    x0 = torch.randn(n, 1, 8, 8, generator=seeded(n))
    label = torch.arange(n) % 3
    options = dict(label=label, blocks=["middle", "up.1"])
    found = features.extract(
        unet, x0, 0.3, batch_size=batch_size, generator=seeded(), **options
    )
    wanted = features.extract(unet, x0, 0.3, generator=seeded(), **options)
    for name in wanted:
        assert_close(found[name], wanted[name])


def test_a_condition_is_told(unet):
    x0 = torch.randn(4, 1, 8, 8, generator=seeded())
    with_label, without = (
        features.extract(unet, x0, 0.3, "middle", generator=seeded(), label=label)
        for label in (torch.tensor([0, 1, 2, 0]), None)
    )
    assert not torch.allclose(with_label["middle"], without["middle"])


def test_an_answer_is_kept_and_found_again(unet, tmp_path, monkeypatch):
    x0 = torch.randn(4, 1, 8, 8, generator=seeded())
    ask = dict(t=0.3, blocks=["middle"], cache=tmp_path)
    first_generator, second_generator = seeded(), seeded()
    first = features.extract(unet, x0, generator=first_generator, **ask)
    monkeypatch.setattr(Denoiser, "forward", None)  # a second look would fail
    second = features.extract(unet, x0, generator=second_generator, **ask)
    assert torch.equal(first["middle"], second["middle"])
    assert torch.equal(first_generator.get_state(), second_generator.get_state())


def test_whatever_an_answer_depends_on_is_in_its_name(unet, tmp_path):
    x0 = torch.randn(4, 1, 8, 8, generator=seeded())
    other = Denoiser(unet.net, schedules.linear(), "v")
    asked = [
        (unet, x0, dict(t=0.3)),
        (unet, x0, dict(t=0.4)),
        (unet, x0 + 1, dict(t=0.3)),
        (unet, x0, dict(t=0.3, pool="max")),
        (unet, x0, dict(t=0.3, draws=2)),
        (unet, x0, dict(t=0.3, blocks=["up.0"])),
        (unet, x0, dict(t=0.3, label=torch.zeros(4, dtype=torch.long))),
        (unet, x0, dict(t=0.3, generator=seeded(1))),
        (other, x0, dict(t=0.3)),
        (Denoiser(unet.net, schedules.cosine(0.01), "v"), x0, dict(t=0.3)),
        (Clipped(unet), x0, dict(t=0.3)),
    ]
    for number, (denoise, data, options) in enumerate(asked, 1):
        options = dict(blocks=["middle"], generator=seeded()) | options
        features.extract(denoise, data, cache=tmp_path, **options)
        assert len(list(tmp_path.iterdir())) == number
    with torch.no_grad():
        unet.net.stem.bias += 0.1
    features.extract(
        unet, x0, 0.3, blocks=["middle"], generator=seeded(), cache=tmp_path
    )
    assert len(list(tmp_path.iterdir())) == len(asked) + 1


def test_mistakes_are_answered(unet, tmp_path):
    x0 = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match='did you mean "middle"'):
        features.extract(unet, x0, 0.3, ["midle"])
    with pytest.raises(ValueError, match='did you mean "mean"'):
        features.extract(unet, x0, 0.3, pool="meen")
    with pytest.raises(ValueError, match=r"t must lie in \(0, 1\]"):
        features.extract(unet, x0, 0.0)
    with pytest.raises(ValueError, match="draws and batch_size"):
        features.extract(unet, x0, 0.3, draws=0)
    with pytest.raises(ValueError, match=r"\(draws, \*x0.shape\)"):
        features.extract(unet, x0, 0.3, draws=2, noise=torch.zeros_like(x0))
    with pytest.raises(ValueError, match="repeatable"):
        features.extract(unet, x0, 0.3, cache=tmp_path)
    with pytest.raises(ValueError, match="with cache= the pool must be"):
        features.extract(
            unet, x0, 0.3, pool=torch.sum, cache=tmp_path, generator=seeded()
        )
    with pytest.raises(ValueError, match="must answer"):
        with features.edit(unet, {"middle": lambda h: h[:1]}):
            unet(x0, 0.3)
    with pytest.raises(ValueError, match="blocks is empty"):
        features.extract(unet, x0, 0.3, [])
    with pytest.raises(ValueError, match="NaN or infinite"):
        features.extract(unet, x0 / 0, 0.3)
    mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1))
    with pytest.raises(ValueError, match="no network to look into"):
        features.blocks_of(mixture.denoiser(schedules.flow()))
