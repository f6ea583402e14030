"""The networks: shapes, dtypes, conditions, named blocks, and every bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffedu import nets

UNETS = {
    "digits": (dict(channels=1, size=8, width=8), (1, 8, 8)),
    "colour": (
        dict(channels=3, size=16, width=8, attention=(4,), heads=2),
        (3, 16, 16),
    ),
    "deep": (
        dict(channels=3, size=24, width=4, multipliers=(1, 1, 2), blocks=2),
        (3, 24, 24),
    ),
    "large": (
        dict(channels=3, size=32, width=4, multipliers=(1, 2, 2, 2), attention=(8, 4)),
        (3, 32, 32),
    ),
    "flat": (dict(channels=1, size=8, width=4, multipliers=(2,), blocks=3), (1, 8, 8)),
}


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """The net with every weight drawn anew, so that no zero hides a path."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / 8)
    return net.eval()


def batch(shape: tuple[int, ...], n: int = 4, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x, torch.rand(n, generator=generator, dtype=dtype)


def make(kind: str, **more) -> tuple[nn.Module, tuple[int, ...]]:
    if kind == "mlp":
        return nets.MLP(dim=3, width=16, depth=2, **more), (3,)
    options, shape = UNETS[kind]
    return nets.UNet(**options, **more), shape


@pytest.mark.parametrize("kind", ["mlp", *UNETS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_in_the_shape_and_dtype_of_x(kind, dtype):
    net, shape = make(kind)
    x, t = batch(shape, dtype=dtype)
    out = awake(net.to(dtype))(x, t)
    assert out.shape == x.shape and out.dtype == dtype
    assert torch.isfinite(out).all() and out.std() > 0


@pytest.mark.parametrize("kind", ["mlp", "colour"])
def test_outputs_leave_room_for_a_variance(kind):
    net, shape = make(kind, outputs=6)
    assert net(*batch(shape)).shape == (4, 6, *shape[1:])


@pytest.mark.parametrize("kind", ["mlp", "colour", "deep"])
def test_no_sample_sees_another(kind):
    net, shape = make(kind, classes=5)
    net = awake(net.double())
    x, t = batch(shape, dtype=torch.float64)
    label = torch.tensor([0, 4, -1, 2])
    whole = net(x, t, label=label)
    alone = [net(x[i : i + 1], t[i : i + 1], label=label[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(alone))


@pytest.mark.parametrize("kind", ["mlp", "colour"])
def test_time_and_class_reach_the_answer(kind):
    net, shape = make(kind, classes=5)
    awake(net)
    x, t = batch(shape)
    label = torch.tensor([0, 1, 2, 3])
    assert (net(x, t) - net(x, t + 0.001)).abs().max() > 1e-5
    assert (net(x, t) - net(x, t, label=label)).abs().amin() >= 0
    changed = (net(x, t) - net(x, t, label=label)).flatten(1).abs().amax(1)
    assert (changed > 1e-4).all()


@pytest.mark.parametrize("kind", ["mlp", "colour"])
def test_ways_of_being_unconditional_agree(kind):
    net, shape = make(kind, classes=5)
    awake(net)
    x, t = batch(shape)
    label, keep = torch.tensor([0, 1, 2, 3]), torch.tensor([True, False, True, False])
    free = net(x, t)
    assert torch.equal(free, net(x, t, label=None))
    assert torch.equal(free, net(x, t, label=torch.full((4,), -1)))
    assert torch.equal(free, net(x, t, label=label, keep=torch.zeros(4).bool()))
    mixed = net(x, t, label=label, keep=keep)
    torch.testing.assert_close(mixed[keep], net(x, t, label=label)[keep])
    torch.testing.assert_close(mixed[~keep], free[~keep])
    one = net(x, t, label=torch.tensor(2))
    torch.testing.assert_close(one, net(x, t, label=torch.full((4,), 2)))


def test_one_time_stands_for_all():
    net, shape = make("colour")
    x, _ = batch(shape)
    a = awake(net)(x, torch.tensor(0.3))
    assert torch.equal(a, net(x, torch.full((4,), 0.3)))
    assert torch.equal(a, net(x, torch.tensor(0.3, dtype=torch.float64)))


def test_any_real_number_is_a_time():
    features = nets.TimeFeatures(64)
    t = torch.linspace(-2, 2, 401, dtype=torch.float64)
    seen = features(t)
    assert seen.shape == (401, 64) and seen.abs().max() <= 1
    gaps = torch.cdist(seen, seen) + 9 * torch.eye(401)
    assert gaps.min() > 0.5  # no two times 0.01 apart look alike


@pytest.mark.parametrize("kind", ["mlp", *UNETS])
def test_blocks_are_modules_whose_outputs_are_hidden_states(kind):
    net, shape = make(kind)
    awake(net)
    x, t = batch(shape)
    seen = {}
    for name in net.blocks():
        net.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out})
        )
    net(x, t)
    assert list(seen) == net.blocks()  # in the order in which they run
    assert all(h.shape[0] == 4 and h.dim() == x.dim() for h in seen.values())


def test_blocks_of_a_unet_mirror_each_other():
    net, shape = make("deep")
    assert net.blocks() == [
        *(f"down.{i}" for i in range(6)),
        "middle",
        *(f"up.{i}" for i in range(6)),
    ]
    grids = {}
    for name in net.blocks():
        net.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: grids.update({name: out.shape[-1]})
        )
    net(*batch(shape))
    assert [grids[f"down.{i}"] for i in range(6)] == [24, 24, 12, 12, 6, 6]
    assert [grids[f"up.{i}"] for i in range(6)] == [6, 6, 12, 12, 24, 24]


def test_attention_product_can_be_hooked():
    net, shape = make("colour")
    awake(net)
    x, t = batch(shape)
    plain = net(x, t)
    products = [m for m in net.modules() if isinstance(m, nets.Attend)]
    assert len(products) == 3  # down, middle and up at 4 x 4
    seen = []

    def identity(_, qkv, out):  # perturbed attention: the product becomes v
        seen.append(out.shape)
        return qkv[2]

    for product in products:
        product.register_forward_hook(identity)
    assert (net(x, t) - plain).abs().max() > 1e-6
    assert seen == [torch.Size([4, 2, 16, 8])] * 3


def test_attention_is_the_textbook_product():
    q, k, v = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64).unbind(0)
    expected = nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(nets.Attend()(q, k, v), expected)


def test_a_fresh_unet_answers_zero_and_trains_everywhere():
    net, shape = make("colour", classes=3)
    x, t = batch(shape)
    assert net(x, t).abs().max() == 0
    awake(net).train()
    net(x, t, label=torch.tensor([0, 1, 2, -1])).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_dropout_is_off_in_evaluation():
    net, shape = make("digits", dropout=0.5)
    awake(net)
    x, t = batch(shape)
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))


def test_sizes_are_those_the_course_counts_on():
    def count(net):
        return sum(p.numel() for p in net.parameters())

    assert 0.1e6 < count(nets.MLP()) < 0.2e6
    assert 0.5e6 < count(nets.UNet(classes=10)) < 0.65e6
    assert 0.8e6 < count(nets.UNet(3, 32, width=40, classes=8)) < 1.1e6


# Energies ---------------------------------------------------------------------


@pytest.mark.parametrize("form", ["scalar", "squared"])
@pytest.mark.parametrize("predicts", ["score", "eps"])
def test_energy_field_is_its_gradient(form, predicts):
    outputs = 1 if form == "scalar" else None
    inner = awake(nets.MLP(dim=3, width=16, outputs=outputs).double())
    net = nets.Energy(inner, form=form, predicts=predicts)
    x, t = batch((3,), dtype=torch.float64)
    with torch.no_grad():
        field = net(x, t)
        for axis in range(3):
            h = torch.zeros(3, dtype=torch.float64)
            h[axis] = 1e-5
            slope = (net.energy(x + h, t) - net.energy(x - h, t)) / 2e-5
            expected = slope if predicts == "eps" else -slope
            torch.testing.assert_close(field[:, axis], expected, rtol=1e-6, atol=1e-8)
    assert field.dtype == torch.float64 and not field.requires_grad
    assert net.energy(x, t).shape == (4,)


def test_energy_field_has_no_curl():
    net = nets.Energy(awake(nets.MLP(width=16, outputs=1).double()))
    x, t = torch.randn(2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x[None], t)[0], x)
    assert jacobian.abs().max() > 1e-6
    torch.testing.assert_close(jacobian, jacobian.T)


def test_energy_trains_and_keeps_its_label():
    inner = awake(nets.MLP(width=16, outputs=1, classes=3))
    net = nets.Energy(inner)
    x, t = batch((2,))
    label = torch.tensor([0, 1, 2, -1])
    assert not torch.equal(net(x, t), net(x, t, label=label))
    net(x, t, label=label).square().mean().backward()
    grads = {name: p.grad for name, p in inner.named_parameters()}
    silent = [n for n, g in grads.items() if g is None or g.abs().max() == 0]
    assert silent == ["head.1.bias"] or silent == []  # a constant has no slope


def test_energy_of_images():
    net, shape = make("digits")
    field = nets.Energy(awake(net), form="squared")
    x, t = batch(shape)
    assert field(x, t).shape == x.shape and field.energy(x, t).shape == (4,)


def test_energy_refuses_what_cannot_work():
    with pytest.raises(ValueError, match='did you mean "squared"'):
        nets.Energy(nets.MLP(), form="square")
    with pytest.raises(ValueError, match="predicts"):
        nets.Energy(nets.MLP(), predicts="v")
    x, t = batch((2,))
    with pytest.raises(ValueError, match="outputs=1"):
        nets.Energy(nets.MLP())(x, t)
    with pytest.raises(ValueError, match="leave outputs="):
        nets.Energy(nets.MLP(outputs=1), form="squared")(x, t)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        nets.Energy(nets.MLP(outputs=1))(x, t)
    with pytest.raises(TypeError, match="labels"):
        nets.Energy(nets.MLP(outputs=1))(x, t, labels=t)


# Bad input --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [((4, 2, 8, 8), "takes"), ((4, 1, 9, 9), "takes"), ((1, 8, 8), "takes")],
)
def test_unet_refuses_other_shapes(shape, message):
    with pytest.raises(ValueError, match=rf"{message} \(B, 1, 8, 8\)"):
        nets.UNet(width=8)(torch.zeros(shape), torch.tensor(0.5))


@pytest.mark.parametrize("shape", [(4, 3), (4,), (4, 2, 2)])
def test_mlp_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"takes \(B, 2\)"):
        nets.MLP(width=8)(torch.zeros(shape), torch.tensor(0.5))


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.zeros(3), r"must be \(\) or \(4,\)"),
        (torch.zeros(4, 1), r"must be \(\) or \(4,\)"),
        (torch.zeros(4, dtype=torch.long), "floating-point"),
        (0.5, "floating-point"),
    ],
)
def test_times_that_do_not_fit(t, message):
    with pytest.raises(ValueError, match=message):
        nets.MLP(width=8)(torch.zeros(4, 2), t)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (torch.tensor([0, 1, 2, 5]), "0 to 4"),
        (torch.tensor([0, 1, 2, -2]), "0 to 4"),
        (torch.tensor([0, 1, 2]), r"\(4,\)"),
        (torch.zeros(4), "long"),
        (torch.zeros(4).bool(), "long"),
        (3, "tensor of integers"),
    ],
)
def test_labels_that_do_not_fit(label, message):
    with pytest.raises(ValueError, match=message):
        nets.MLP(width=8, classes=5)(torch.zeros(4, 2), torch.zeros(4), label=label)


@pytest.mark.parametrize("keep", [torch.ones(4), torch.ones(3).bool(), True])
def test_keep_that_does_not_fit(keep):
    net = nets.MLP(width=8, classes=5)
    with pytest.raises(ValueError, match="keep"):
        net(torch.zeros(4, 2), torch.zeros(4), torch.zeros(4).long(), keep)


def test_no_classes_no_label():
    net, x, t = nets.MLP(width=8), torch.zeros(4, 2), torch.zeros(4)
    with pytest.raises(ValueError, match="classes=K"):
        net(x, t, label=torch.zeros(4).long())
    with pytest.raises(ValueError, match="keep"):
        net(x, t, keep=torch.ones(4).bool())
    with pytest.raises(TypeError, match="caption"):
        net(x, t, caption=t)


def test_dtype_and_device_that_do_not_fit():
    net, x = nets.MLP(width=8), torch.zeros(4, 2)
    with pytest.raises(ValueError, match="float64"):
        net(x.double(), torch.tensor(0.5))
    with pytest.raises(ValueError, match="meta"):
        net(x.to("meta"), torch.tensor(0.5))
    with pytest.raises(ValueError, match="x and t|x is on"):
        net(x, torch.zeros(4, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x, torch.tensor(0.5)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=9), "cannot be halved"),
        (dict(size=8, multipliers=(1,) * 5), "cannot be halved"),
        (dict(size=0), "size"),
        (dict(channels=0), "channels"),
        (dict(width=-8), "width"),
        (dict(blocks=0), "blocks"),
        (dict(blocks=True), "blocks"),
        (dict(multipliers=()), "multipliers"),
        (dict(multipliers=2), "multipliers"),
        (dict(multipliers=(1, 0)), "multiplier"),
        (dict(attention=(16,)), r"has \[8, 4, 2\]"),
        (dict(attention=4), "sequence"),
        (dict(attention=(4,), heads=7), "heads"),
        (dict(dropout=1.0), "dropout"),
        (dict(dropout=-0.1), "dropout"),
        (dict(classes=0), "classes"),
        (dict(outputs=0), "outputs"),
    ],
)
def test_unets_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        nets.UNet(**options)


def test_mlps_that_cannot_be():
    for option in ("dim", "width", "depth", "classes", "outputs"):
        for value in (0, -1, 1.5):
            with pytest.raises(ValueError, match=option):
                nets.MLP(**{option: value})
    with pytest.raises(ValueError, match="even"):
        nets.TimeFeatures(7)
