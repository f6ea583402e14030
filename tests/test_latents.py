"""Latents, U-ViT and the state-space mixer: inverses, equalities and bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffedu import Denoiser, latents, nets, samplers, schedules
from diffedu.nets.ssm import convolve
from diffedu.worlds.shapeworld import ShapeWorld


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """The net with every weight drawn anew, so that no zero hides a path."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / 5)
    return net.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return ShapeWorld(16).images(64).double()


# Principal components of patches ----------------------------------------------


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("whiten", [True, False])
def test_all_components_have_an_exact_inverse(images, patch, whiten):
    coder = latents.PatchPCA(images, patch, whiten=whiten)
    unseen = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    assert coder.latent_shape == (3 * patch**2, 16 // patch, 16 // patch)
    assert coder.explained == pytest.approx(1)
    torch.testing.assert_close(coder(unseen), unseen)


def test_components_are_sklearns(images):
    sklearn = pytest.importorskip("sklearn.decomposition")
    rows = nets.patchify(images, 4).flatten(0, 1)
    theirs = sklearn.PCA(5, whiten=True).fit(rows.numpy())
    mine = latents.PatchPCA(images, 4, components=5)
    z = mine.to_latents(images).flatten(2).transpose(1, 2).flatten(0, 1)
    other = torch.from_numpy(theirs.transform(rows.numpy()))
    signs = (z * other).sum(0).sign()
    torch.testing.assert_close(z * signs, other)
    assert mine.explained == pytest.approx(theirs.explained_variance_ratio_.sum())
    back = torch.from_numpy(theirs.inverse_transform(theirs.transform(rows.numpy())))
    expected = nets.unpatchify(back.unflatten(0, (64, -1)), 4, 3)
    torch.testing.assert_close(mine(images), expected)


def test_whitened_components_have_unit_variance(images):
    z = latents.PatchPCA(images, 2).to_latents(images)
    std = z.transpose(0, 1).flatten(1).std(1)
    torch.testing.assert_close(std, torch.ones_like(std))
    plain = latents.PatchPCA(images, 2, whiten=False).to_latents(images)
    assert plain.square().mean().item() == pytest.approx(1, rel=1e-3)
    std = plain.transpose(0, 1).flatten(1).std(1)
    assert (std.diff() < 0).all() and std[0] > 2 * std[-1]


def test_without_whitening_white_noise_stays_white(images):
    coder = latents.PatchPCA(images, 2, whiten=False)
    noise = torch.randn(2, 12, 8, 8, dtype=torch.float64)
    shift = coder.to_images(noise) - coder.to_images(torch.zeros_like(noise))
    scale = coder.std[0]
    torch.testing.assert_close(shift.norm(), noise.norm() * scale)


def test_error_falls_with_every_component(images):
    errors = [
        (latents.PatchPCA(images, 2, k)(images) - images).square().mean()
        for k in range(1, 13)
    ]
    assert all(b < a for a, b in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("components", [0, 13, 2.5])
def test_components_that_do_not_fit(images, components):
    with pytest.raises(ValueError, match="1 to 12"):
        latents.PatchPCA(images, 2, components)


def test_patches_that_do_not_fit(images):
    with pytest.raises(ValueError, match="cannot be cut"):
        latents.PatchPCA(images, 3)


# Latent diffusion -------------------------------------------------------------


def latent_model(images) -> latents.LatentDiffusion:
    coder = latents.PatchPCA(images, 4, components=8)
    net = awake(nets.DiT(8, 4, patch=1, width=16, depth=1, classes=3).double())
    return latents.LatentDiffusion(
        Denoiser(net, schedules.cosine(), predicts="v"), coder
    )


def test_latent_loss_is_the_denoising_loss_of_latents(images):
    model = latent_model(images)
    z = model.coder.to_latents(images)
    label = torch.zeros(64).long()
    t, noise = torch.rand(64).double().clamp(min=0.1), torch.randn_like(z)
    loss = model.loss(images, t=t, noise=noise, label=label)
    path = model.inner.schedule
    out = model.inner(path.add_noise(z, t, noise), t, label=label)
    alpha, sigma = (c[:, None, None, None] for c in path.coefficients(t))
    target = alpha * noise - sigma * z
    torch.testing.assert_close(loss, (out.v - target).square().mean())


def test_latent_samples_are_decoded_walks(images):
    model = latent_model(images.float()).float()
    model.coder.float()
    times = samplers.time_grid(model.inner.schedule, steps=4)
    draw = torch.Generator().manual_seed(0)
    made = model.sample(5, times, generator=draw, label=torch.tensor(1))
    start = model.inner.schedule.prior_sample(
        (5, 8, 4, 4), times[0], torch.Generator().manual_seed(0)
    )
    walked = samplers.ddim(model.inner, start, times, label=torch.tensor(1))
    assert made.shape == (5, 3, 16, 16)
    torch.testing.assert_close(made, model.coder.to_images(walked))


def test_the_coder_is_neither_trained_nor_saved_with_the_model(images):
    coder = nets.Autoencoder(3, 16, factor=4, width=8)
    net = awake(nets.DiT(4, 4, patch=1, width=16, depth=1))
    model = latents.LatentDiffusion(Denoiser(net, schedules.cosine()), coder)
    model.loss(images.float(), torch.Generator().manual_seed(0)).backward()
    assert all(p.grad is None for p in coder.parameters())
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in net.parameters()
    )
    with pytest.raises(ValueError, match="to_latents, to_images"):
        latents.LatentDiffusion(model.inner, nn.Linear(2, 2))


# U-ViT ------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 5])
@pytest.mark.parametrize("skips", [True, False])
def test_uvit_answers_in_the_shape_of_x(classes, skips):
    net = nets.UViT(3, 8, patch=2, width=16, depth=3, classes=classes, skips=skips)
    x, t = torch.randn(4, 3, 8, 8), torch.rand(4)
    assert net(x, t).abs().max() == 0
    assert awake(net)(x, t).shape == x.shape
    shapes = []
    for name in net.blocks():
        net.get_submodule(name).register_forward_hook(
            lambda _, __, out: shapes.append(tuple(out.shape))
        )
    net(x, t)
    extras = 1 if classes is None else 2
    assert shapes == [(4, extras + 16, 16)] * 3
    assert net.blocks() == ["down.0", "middle", "up.0"]


def test_long_skips_pair_the_first_block_with_the_last():
    net = awake(nets.UViT(3, 8, patch=2, width=16, depth=5).double())
    inputs, outputs = {}, {}

    def hook(name):
        def note(_, given, out):
            inputs[name], outputs[name] = given, out

        return note

    for name in net.blocks():
        net.get_submodule(name).register_forward_hook(hook(name))
    net(torch.randn(2, 3, 8, 8).double(), torch.rand(2).double())
    for late, early in (("up.0", "down.1"), ("up.1", "down.0")):
        assert torch.equal(inputs[late][1], outputs[early])
    assert not any("merge" in n for n, _ in nets.UViT(skips=False).named_parameters())


def test_uvits_class_and_time_reach_the_answer():
    net = awake(nets.UViT(3, 8, patch=2, width=16, depth=3, classes=5))
    x, t = torch.randn(4, 3, 8, 8), torch.rand(4)
    label = torch.tensor([0, 1, 2, -1])
    changed = (net(x, t, label=label) - net(x, t)).flatten(1).abs().amax(1)
    assert (changed[:3] > 1e-4).all() and changed[3] == 0
    assert (net(x, t + 0.01) - net(x, t)).abs().max() > 1e-5
    none = torch.zeros(4).bool()
    torch.testing.assert_close(net(x, t, label=label, keep=none), net(x, t))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depth=4), "odd"),
        (dict(patch=3), "does not divide"),
        (dict(width=18), "heads"),
        (dict(depth=0), "depth"),
    ],
)
def test_uvits_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        nets.UViT(**options)
    with pytest.raises(ValueError, match="classes=K"):
        nets.UViT(width=16, depth=1)(
            torch.zeros(1, 3, 16, 16), torch.zeros(1), label=torch.tensor([0])
        )


# The state-space mixer --------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_the_kernel_and_the_scan_are_one(n):
    mixer = nets.StateSpace(6, states=3).double()
    tokens = torch.randn(2, n, 6, dtype=torch.float64)
    by_fft = mixer(tokens)
    mixer.method = "scan"
    torch.testing.assert_close(by_fft, mixer(tokens))
    assert by_fft.dtype == torch.float64


def test_the_kernel_is_scipys_impulse_response():
    signal = pytest.importorskip("scipy.signal")
    mixer = nets.StateSpace(3, states=2).double()
    a = torch.complex(-mixer.log_decay.exp(), mixer.turn).detach()
    c = torch.complex(mixer.out_real, mixer.out_imag).detach()[0]
    for w in range(3):
        both = torch.cat([a[w], a[w].conj()]).diag().numpy()
        out = torch.cat([c[w], c[w].conj()])[None].numpy()
        system = (both, torch.ones(4, 1).numpy(), out, torch.zeros(1, 1).numpy())
        dt = mixer.log_dt[w].exp().item()
        da, db, dc, _, _ = signal.cont2discrete(system, dt, method="zoh")
        expected, state = [], db[:, 0]
        for _ in range(9):
            expected.append((dc @ state)[0].real)
            state = da @ state
        torch.testing.assert_close(
            mixer.kernel(9)[0, w].detach(), torch.tensor(expected).double()
        )


def test_convolution_is_causal_and_does_not_wrap():
    u, kernel = torch.randn(2, 3, 8).double(), torch.randn(3, 8).double()
    slow = torch.zeros_like(u)
    for k in range(8):
        for j in range(k + 1):
            slow[..., k] += kernel[:, j] * u[..., k - j]
    torch.testing.assert_close(convolve(u, kernel), slow)


def test_every_token_hears_every_other():
    mixer = nets.StateSpace(4).double()
    tokens = torch.randn(1, 6, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda h: mixer(h).sum(2), tokens)
    assert (jacobian.abs().sum((0, 2, 4)) > 1e-6).all()


def test_state_space_takes_attentions_place_and_trains():
    net = nets.DiT(3, 8, patch=2, width=16, depth=1, mixer=nets.StateSpace)
    x, t = torch.randn(2, 3, 8, 8), torch.rand(2)
    assert net(x, t).shape == x.shape
    block = net.block[0]
    nn.init.normal_(block.modulation.weight, std=0.2)
    nn.init.normal_(net.head.linear.weight, std=0.2)
    net(x, t).square().mean().backward()
    silent = [n for n, p in block.mixer.named_parameters() if p.grad.abs().max() == 0]
    assert silent == []


def test_mixers_that_cannot_be():
    with pytest.raises(ValueError, match='did you mean "scan"'):
        nets.StateSpace(4, method="scann")
    with pytest.raises(ValueError, match="states"):
        nets.StateSpace(4, states=0)
