"""Transformers, captions and the autoencoder: shapes, identities and bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffedu import nets
from diffedu.nets.dit import DiTBlock
from diffedu.nets.tokens import grid_positions
from diffedu.worlds.shapeworld import VOCABULARY, encode

SIZES = {
    "dit": lambda **more: nets.DiT(3, 8, patch=2, width=16, depth=2, **more),
    "unet": lambda **more: nets.UNet(3, 8, width=8, attention=(4,), **more),
}


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """The net with every weight drawn anew, so that no zero hides a path."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / 5)
    return net.eval()


def batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 8, 8, generator=generator, dtype=dtype)
    return x, torch.rand(4, generator=generator, dtype=dtype)


def captions() -> torch.Tensor:
    texts = ("small red circle left", "blue ring", "green star top", "large red cross")
    known = [" ".join(w for w in t.split() if w in VOCABULARY) for t in texts]
    return torch.stack([encode(text) for text in known])


# Patches ----------------------------------------------------------------------


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_patches_can_be_put_together_again(patch):
    x, _ = batch()
    tokens = nets.patchify(x, patch)
    assert tokens.shape == (4, (8 // patch) ** 2, 3 * patch**2)
    assert torch.equal(nets.unpatchify(tokens, patch, 3), x)


def test_a_patch_is_what_unfold_cuts():
    x, _ = batch()
    cut = nn.functional.unfold(x, 2, stride=2).transpose(1, 2)
    assert torch.equal(nets.patchify(x, 2), cut)


def test_patches_that_do_not_fit():
    x, _ = batch()
    with pytest.raises(ValueError, match="cannot be cut"):
        nets.patchify(x, 3)
    with pytest.raises(ValueError, match="no square image"):
        nets.unpatchify(torch.zeros(1, 6, 12), 2, 3)
    with pytest.raises(ValueError, match="no square image"):
        nets.unpatchify(torch.zeros(1, 4, 11), 2, 3)


def test_places_differ_and_tell_rows_from_columns():
    places = grid_positions(8, 16)
    apart = torch.cdist(places, places) + 9 * torch.eye(64)
    assert places.shape == (64, 16) and apart.min() > 0.3
    row, column = places.reshape(8, 8, 16).chunk(2, dim=2)
    assert torch.equal(row, row[:, :1].expand_as(row))
    assert torch.equal(column, row.transpose(0, 1))
    with pytest.raises(ValueError, match="multiple of 4"):
        grid_positions(4, 6)


# The transformer --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("more", [{}, {"classes": 5}, {"vocabulary": 22}])
def test_dit_answers_in_the_shape_and_dtype_of_x(dtype, more):
    net = awake(SIZES["dit"](**more).to(dtype))
    x, t = batch(dtype)
    out = net(x, t)
    assert out.shape == x.shape and out.dtype == dtype and out.std() > 0


def test_a_block_is_the_identity_until_it_is_trained():
    h, condition = torch.randn(3, 10, 16), torch.randn(3, 16)
    block = DiTBlock(16, 16)
    assert torch.equal(block(h, condition), h)
    assert not torch.equal(awake(block)(h, condition), h)


def test_a_block_is_the_papers_equations():
    block = awake(DiTBlock(16, 16).double())
    h, c = torch.randn(3, 5, 16).double(), torch.randn(3, 16).double()
    weight, bias = block.modulation.weight, block.modulation.bias
    b1, s1, g1, b2, s2, g2 = (c @ weight.T + bias)[:, None].chunk(6, dim=2)

    def norm(h):
        centred = h - h.mean(2, keepdim=True)
        return centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()

    h1 = h + g1 * block.mixer(norm(h) * (1 + s1) + b1)
    h2 = h1 + g2 * block.feed_forward(norm(h1) * (1 + s2) + b2)
    torch.testing.assert_close(block(h, c), h2)


def test_token_attention_is_torchs_own():
    mine = awake(nets.TokenAttention(16, heads=4).double())
    theirs = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(mine.qkv.weight)
        theirs.in_proj_bias.copy_(mine.qkv.bias)
        theirs.out_proj.weight.copy_(mine.out.weight)
        theirs.out_proj.bias.copy_(mine.out.bias)
    h = torch.randn(2, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(mine(h), theirs(h, h, h)[0])


def test_windows_see_only_themselves():
    mixer = awake(nets.TokenAttention(16, heads=2, window=4).double())
    h = torch.randn(2, 12, 16, dtype=torch.float64)
    out = mixer(h)
    changed = h.clone()
    changed[:, 5] += 1
    same = (mixer(changed) == out).all(2).all(0)
    assert same.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    mixer.window = 12
    whole = mixer(h)
    mixer.window = None
    torch.testing.assert_close(whole, mixer(h))
    mixer.window = 5
    with pytest.raises(ValueError, match="windows of 5"):
        mixer(h)


def test_dit_without_places_cannot_tell_where():
    net = awake(SIZES["dit"]())
    x, t = batch()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))

    def shuffled(x):
        return nets.unpatchify(nets.patchify(x, 2)[:, order], 2, 3)

    assert (net(shuffled(x), t) - shuffled(net(x, t))).abs().max() > 1e-2
    net.places.zero_()
    torch.testing.assert_close(net(shuffled(x), t), shuffled(net(x, t)))


@pytest.mark.parametrize("kind", SIZES)
def test_a_fresh_net_answers_zero_and_trains_everywhere(kind):
    net = SIZES[kind](classes=3, vocabulary=len(VOCABULARY))
    x, t = batch()
    label = torch.tensor([0, 1, 2, -1])
    assert net(x, t, label=label, caption=captions()).abs().max() == 0
    awake(net).train()
    net(x, t, label=label, caption=captions()).square().mean().backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    assert all(g is not None and g.abs().max() > 0 for g in grads.values())


@pytest.mark.parametrize("kind", SIZES)
def test_blocks_name_the_hidden_states(kind):
    net = awake(SIZES[kind](vocabulary=22))
    seen = []
    for name in net.blocks():
        net.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.append((name, out.shape[0]))
        )
    net(*batch(), caption=captions())
    assert seen == [(name, 4) for name in net.blocks()]


def test_another_mixer_takes_attentions_place():
    net = SIZES["dit"](mixer=lambda width: nn.Linear(width, width))
    assert not any(isinstance(m, nets.Attend) for m in net.modules())
    assert awake(net)(*batch()).shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(patch=3), "does not divide"),
        (dict(patch=0), "patch"),
        (dict(width=18), "multiple of 4"),
        (dict(width=20, heads=3), "heads"),
        (dict(depth=0), "depth"),
        (dict(vocabulary=0), "vocabulary"),
        (dict(classes=-1), "classes"),
    ],
)
def test_dits_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        nets.DiT(**(dict(channels=3, size=8) | options))


# Captions ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", SIZES)
def test_captions_reach_the_answer_and_padding_does_not(kind):
    net = awake(SIZES[kind](vocabulary=len(VOCABULARY)).double())
    x, t = batch(torch.float64)
    ids = captions()
    out = net(x, t, caption=ids)
    assert ((out - net(x, t)).flatten(1).abs().amax(1) > 1e-4).all()
    short = torch.tensor([3, 12, 0, 0])
    whole = net(x, t, caption=short)
    torch.testing.assert_close(whole, net(x, t, caption=short[:2]))
    net.condition.words.place.weight.data[2:] += 1
    torch.testing.assert_close(whole, net(x, t, caption=short))


@pytest.mark.parametrize("kind", SIZES)
def test_ways_of_having_no_caption_agree(kind):
    net = awake(SIZES[kind](vocabulary=len(VOCABULARY)).double())
    x, t = batch(torch.float64)
    ids, keep = captions(), torch.tensor([True, False, True, False])
    free = net(x, t)
    torch.testing.assert_close(free, net(x, t, caption=torch.zeros_like(ids)))
    torch.testing.assert_close(free, net(x, t, caption=ids, keep=keep & False))
    mixed = net(x, t, caption=ids, keep=keep)
    torch.testing.assert_close(mixed[keep], net(x, t, caption=ids)[keep])
    torch.testing.assert_close(mixed[~keep], free[~keep])


def test_keep_rules_label_and_caption_alike():
    net = awake(SIZES["unet"](classes=3, vocabulary=22).double())
    x, t = batch(torch.float64)
    label, none = torch.tensor([0, 1, 2, 0]), torch.zeros(4).bool()
    gone = net(x, t, label=label, caption=captions(), keep=none)
    torch.testing.assert_close(gone, net(x, t))


@pytest.mark.parametrize("kind", SIZES)
def test_no_sample_reads_anothers_caption(kind):
    net = awake(SIZES[kind](vocabulary=22).double())
    x, t = batch(torch.float64)
    ids = captions()
    alone = [net(x[i : i + 1], t[i : i + 1], caption=ids[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(net(x, t, caption=ids), torch.cat(alone))


def test_maps_of_cross_attention_can_be_read():
    net = awake(SIZES["unet"](vocabulary=22))
    crossings = [m for m in net.modules() if isinstance(m, nets.CrossAttention)]
    maps = []
    for cross in crossings:
        cross.attend.register_forward_hook(
            lambda attend, inputs, _: maps.append(
                attend.weights(inputs[0], inputs[1], inputs[3])
            )
        )
    ids = captions()
    net(*batch(), caption=ids)
    assert [m.shape[2] for m in maps] == [16, 4, 16]
    for m in maps:
        torch.testing.assert_close(m.sum(-1), torch.ones_like(m[..., 0]))
        assert (m[(ids == 0)[:, None, None].expand_as(m)] == 0).all()


def test_a_vocabulary_changes_nothing_else():
    plain, reads = SIZES["unet"](classes=3), SIZES["unet"](classes=3, vocabulary=22)
    names = set(plain.state_dict())
    more = set(reads.state_dict()) - names
    assert names < set(reads.state_dict())
    assert all("cross" in name or "words" in name for name in more)
    reads.load_state_dict(plain.state_dict(), strict=False)
    x, t = batch()
    assert torch.equal(plain(x, t), reads(x, t, caption=captions()))


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        (torch.tensor([1, 22]), "this network knows 22"),
        (torch.tensor([-1, 2]), "this network knows 22"),
        (torch.zeros(3, 4).long(), r"\(4, L\)"),
        (torch.zeros(4, 5).long(), "at most 4"),
        (torch.zeros(4, 4), "token ids"),
        ("a red circle", "token ids"),
    ],
)
def test_captions_that_do_not_fit(caption, message):
    net = SIZES["dit"](vocabulary=22)
    with pytest.raises(ValueError, match=message):
        net(*batch(), caption=caption)


@pytest.mark.parametrize("kind", SIZES)
def test_no_vocabulary_no_caption(kind):
    with pytest.raises(ValueError, match="vocabulary=V"):
        SIZES[kind]()(*batch(), caption=captions())


# The autoencoder --------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [16, 32])
def test_autoencoder_halves_the_grid(factor, size):
    net = nets.Autoencoder(3, size, factor=factor, latent_channels=5, width=8)
    x = torch.randn(2, 3, size, size)
    mean, log_variance = net.encode(x)
    grid = size // factor
    assert mean.shape == log_variance.shape == (2, 5, grid, grid)
    assert net.latent_shape == (5, grid, grid)
    assert net.decode(mean).shape == net(x).shape == x.shape


def test_standard_latents_have_unit_variance_and_return():
    net = awake(nets.Autoencoder(3, 8, factor=2, width=8).double())
    x = torch.randn(64, 3, 8, 8, dtype=torch.float64)
    before = net(x)
    net.standardise_(x)
    z = net.to_latents(x)
    _, log_variance = net.encode(x)
    noise = (log_variance.exp().mean((0, 2, 3)) / net.std**2).sqrt()
    torch.testing.assert_close(
        z.mean((0, 2, 3)), torch.zeros(4).double(), atol=1e-9, rtol=0
    )
    total = z.var((0, 2, 3)) + noise**2
    torch.testing.assert_close(total, torch.ones(4).double())
    torch.testing.assert_close(net.to_images(z), before)
    drawn = net.to_latents(x, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(drawn, z) and (drawn.var((0, 2, 3)) - 1).abs().max() < 0.1


def test_autoencoder_loss_is_error_plus_divergence():
    net = awake(nets.Autoencoder(3, 8, factor=2, width=8).double())
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    mean, log_variance = net.encode(x)
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    p = torch.distributions.Normal(0.0, 1.0)
    nats = torch.distributions.kl_divergence(q, p).sum((1, 2, 3)) / (3 * 8 * 8)
    draw = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    loss, free = (
        nets.autoencoder_loss(net, x, w, per_sample=True, generator=draw())
        for w in (0.5, 0.0)
    )
    torch.testing.assert_close(loss - free, 0.5 * nats)
    z = mean + q.stddev * torch.randn(mean.shape, generator=draw(), dtype=mean.dtype)
    torch.testing.assert_close(free, (net.decode(z) - x).square().mean((1, 2, 3)))
    assert nets.autoencoder_loss(net, x, generator=draw()).shape == ()


def test_autoencoder_learns():
    torch.manual_seed(0)
    net = nets.Autoencoder(1, 8, factor=2, width=8)
    x = torch.randn(32, 1, 8, 1).expand(-1, -1, -1, 8).contiguous()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        losses.append(nets.autoencoder_loss(net, x))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1].item() < 0.3 * losses[0].item()


def test_autoencoder_refuses_what_cannot_be():
    for options, message in [
        (dict(factor=3), "factor"),
        (dict(size=10, factor=4), "does not divide"),
        (dict(latent_channels=0), "latent_channels"),
    ]:
        with pytest.raises(ValueError, match=message):
            nets.Autoencoder(**options)
    net = nets.Autoencoder(3, 8, factor=2, width=8)
    with pytest.raises(ValueError, match=r"\(B, 3, 8, 8\)"):
        net.encode(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"\(B, 4, 4, 4\)"):
        net.to_images(torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match="kl_weight"):
        nets.autoencoder_loss(net, torch.zeros(2, 3, 8, 8), kl_weight=-1)


def test_sizes_are_those_the_course_counts_on():
    def count(net):
        return sum(p.numel() for p in net.parameters())

    assert 0.9e6 < count(nets.DiT(classes=8)) < 1.2e6
    assert count(nets.UNet(3, 16, attention=(8,), vocabulary=22)) < 0.8e6
    assert count(nets.Autoencoder()) < 0.1e6
