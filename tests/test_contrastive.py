"""Contrastive learning: losses against their definitions, views that keep the class."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffedu import nets
from diffedu.losses import views
from diffedu.losses.contrastive import (
    augment,
    move,
    nt_xent,
    projector,
    recolour,
    simclr_loss,
    two_views,
    vicreg,
    vicreg_loss,
    vicreg_terms,
)
from diffedu.worlds.shapeworld import ShapeWorld


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# NT-Xent


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 6), temperature=st.floats(0.1, 5))
def test_nt_xent_is_equation_1_in_a_loop(seed, n, temperature):
    z1, z2 = draw(seed, n, 4), draw(seed + 1, n, 4)
    z = [v / v.norm() for v in (*z1, *z2)]
    losses = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k != i]
        e = {k: torch.exp(z[i] @ z[k] / temperature) for k in others}
        losses.append(-torch.log(e[j] / sum(e.values())))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(nt_xent(z1, z2, temperature), expected)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 5])
def test_nt_xent_where_it_can_be_worked_out(n, temperature):
    same = torch.ones(n, 3, dtype=torch.float64)
    # all alike: every one of the 2n - 1 others is as likely
    assert float(nt_xent(same, same, temperature)) == pytest.approx(math.log(2 * n - 1))
    # views equal, images orthogonal: one similarity of 1 beside 2n - 2 of 0
    own = torch.eye(n, dtype=torch.float64)
    expected = math.log(1 + (2 * n - 2) * math.exp(-1 / temperature))
    assert float(nt_xent(own, own, temperature)) == pytest.approx(expected)


def test_nt_xent_has_no_scale_and_a_temperature():
    z1, z2 = draw(0, 8, 5), draw(1, 8, 5)
    torch.testing.assert_close(nt_xent(7 * z1, 0.1 * z2), nt_xent(z1, z2))
    torch.testing.assert_close(nt_xent(z2, z1), nt_xent(z1, z2))
    # a high temperature forgets all similarities
    assert float(nt_xent(z1, z2, 1e6)) == pytest.approx(math.log(15), abs=1e-5)
    assert float(nt_xent(z1, z1, 0.05)) < float(nt_xent(z1, z1, 0.5))


def test_nt_xent_pairs_rows():
    z1, z2 = draw(0, 8, 5), draw(0, 8, 5)
    assert float(nt_xent(z1, z2, 0.1)) < float(nt_xent(z1, z2.roll(1, 0), 0.1)) - 1


# VICReg


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), target=st.floats(0.1, 3))
def test_vicreg_terms_are_their_definitions(seed, target):
    n, d, eps = 7, 4, 1e-3
    z1, z2 = draw(seed, n, d), 2 * draw(seed + 1, n, d) + 1
    terms = vicreg_terms(z1, z2, target, eps)
    invariance = sum(((z1[i] - z2[i]) ** 2).sum() for i in range(n)) / n
    variance = covariance = 0.0
    for z in (z1, z2):
        c = torch.cov(z.T)
        for i in range(d):
            variance += max(0.0, target - math.sqrt(c[i, i] + eps)) / d
            covariance += sum(c[i, j] ** 2 for j in range(d) if j != i) / d
    assert float(terms.invariance) == pytest.approx(float(invariance))
    assert float(terms.variance) == pytest.approx(variance)
    assert float(terms.covariance) == pytest.approx(float(covariance))
    expected = 2 * terms.invariance + 3 * terms.variance + 5 * terms.covariance
    default = [float(t) for t in vicreg_terms(z1, z2)]
    torch.testing.assert_close(
        vicreg(z1, z2), z1.new_tensor(25 * default[0] + 25 * default[1] + default[2])
    )
    if (target, eps) == (1.0, 1e-4):
        torch.testing.assert_close(vicreg(z1, z2, (2, 3, 5)), expected)


def test_vicreg_names_collapse():
    """One answer for all images is free of charge but for the variance."""
    still = torch.ones(6, 3, dtype=torch.float64)
    terms = vicreg_terms(still, still)
    assert float(terms.invariance) == float(terms.covariance) == 0
    assert float(terms.variance) == pytest.approx(2 * (1 - math.sqrt(1e-4)))
    # two features that say the same cost covariance, independent ones none
    wave = (
        torch.tensor([1.0, -1, 1, -1]) * math.sqrt(3 / 4),
        torch.tensor([1.0, 1, -1, -1]) * math.sqrt(3 / 4),
    )
    twice, apart = torch.stack([wave[0]] * 2, 1), torch.stack(wave, 1)
    assert float(vicreg_terms(twice, twice).covariance) == pytest.approx(2.0)
    assert float(vicreg_terms(apart, apart).covariance) == pytest.approx(0, abs=1e-9)
    assert float(vicreg(apart, apart)) == pytest.approx(0, abs=1e-6)


# Views


@pytest.mark.parametrize("change", [augment, move, recolour])
def test_views_keep_shape_and_range_and_are_drawn_from_the_generator(change):
    x = ShapeWorld(32, "plain_rotated").images(40)
    one, again = change(x, generator=seeded()), change(x, generator=seeded())
    other = change(x, generator=seeded(1))
    assert one.shape == x.shape and one.dtype == x.dtype
    assert float(one.abs().max()) <= 1 + 1e-5
    assert torch.equal(one, again)
    assert ((one - other).flatten(1).abs().amax(1) > 0.01).all()
    assert ((one - x).flatten(1).abs().amax(1) > 0.01).all()


def test_each_image_has_its_own_view():
    x = ShapeWorld(32, "plain_rotated").images(1).expand(6, -1, -1, -1)
    for change in (move, recolour):
        seen = change(x, generator=seeded()).flatten(1)
        assert (torch.pdist(seen) > 0.5).all()


def test_two_views_differ_and_can_be_parts_of_the_whole():
    x = ShapeWorld(32, "plain_rotated").images(8)
    first, second = two_views(x, seeded())
    assert (first != second).flatten(1).any(1).all()
    torch.testing.assert_close(first, augment(x, seeded()))
    only_moved = augment(x, seeded(), colour=False)
    torch.testing.assert_close(only_moved, move(x, seeded()))
    only_painted = augment(x, seeded(), geometry=False)
    torch.testing.assert_close(only_painted, recolour(x, seeded()))
    assert augment(x, geometry=False, colour=False) is x


def test_moving_keeps_the_object():
    """What no colour tells: the area of the object, but for zoom and what leaves."""
    drawn = ShapeWorld(32, "plain_rotated").batch(200)
    mask = (drawn.parts > 0).float()[:, None]
    moved = move(mask, seeded())
    ratio = moved.sum((1, 2, 3)) / mask.sum((1, 2, 3))
    zoom = views.ZOOM**2
    assert (ratio < 1.05 * zoom).all() and (ratio > 0.95 / zoom / 1.7).all()
    assert 0.8 < float(ratio.median()) < 1.2
    # and the picture's object moves with its mask: the border is background
    assert float(moved[:, :, 0].mean()) < 0.1


def test_moving_a_disc_is_a_similarity():
    """Round stays round and whole, whatever the angle; no view is sheared."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 2, indexing="ij")
    disc = ((x**2 + y**2) < 0.25).double().expand(50, 1, 64, 64)
    moved = move(disc, seeded())
    weight = moved / moved.sum((2, 3), keepdim=True)
    means = [(weight * z).sum((2, 3), keepdim=True) for z in (x, y)]
    both = list(zip((x, y), means, strict=True))
    xx, yy = ((weight * (z - m) ** 2).sum((1, 2, 3)) for z, m in both)
    xy = (weight * (x - means[0]) * (y - means[1])).sum((1, 2, 3))
    torch.testing.assert_close(xx, yy, rtol=0.03, atol=0)
    assert float((xy / xx).abs().max()) < 0.03
    centres = torch.cat([m.flatten() for m in means])
    assert 0.1 < float(centres.abs().max()) < views.SHIFT * 1.5 * 1.25


def test_recolouring_keeps_the_outline():
    """Pixels of one colour stay of one colour, and two colours stay apart."""
    drawn = ShapeWorld(32, "plain").batch(100)
    inside = drawn.parts > 0
    painted = recolour(drawn.images, seeded())
    for n in range(0, 100, 10):
        flat = drawn.images[n].flatten(1).T
        new = painted[n].flatten(1).T
        old_gap, new_gap = torch.pdist(flat), torch.pdist(new)
        far = old_gap > 0.2
        share = new_gap[far] / old_gap[far]
        assert float(share.min()) > 0.1 and float(share.max()) < 1.01
        assert float(new_gap[old_gap < 1e-4].max()) < 1e-3
        assert inside[n].any()


def test_recolouring_hides_the_hue_and_the_polarity():
    """The control: what colour told before, it tells no more."""
    world = ShapeWorld(32, "plain_rotated")
    drawn = world.batch(600)
    angle = drawn.factors["hue"] * 2 * math.pi
    polarity = drawn.factors["brightness"].sign()
    told = torch.stack([angle.cos(), angle.sin(), polarity], 1)

    def explained(images: torch.Tensor) -> float:
        mask = (drawn.parts > 0)[:, None]
        colour = (images * mask).sum((2, 3)) / mask.sum((2, 3))
        features = torch.cat([colour, torch.ones(600, 1)], 1)
        fit = torch.linalg.lstsq(features, told).solution
        left = (told - features @ fit).var(0) / told.var(0)
        return 1 - float(left.max())

    assert explained(drawn.images) > 0.8
    assert explained(recolour(drawn.images, seeded())) < 0.1


# Training with them


def encoder(standardise: bool = True) -> nets.Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nets.Encoder(3, 16, width=8)
        net.projector = projector(net.dim, 16, 8, standardise)
    return net


@pytest.mark.parametrize("loss", [simclr_loss, vicreg_loss])
def test_losses_learn_and_reach_every_weight(loss):
    net, x = encoder(loss is simclr_loss), ShapeWorld(16).images(32)
    before = loss(net, x, seeded()).item()
    assert before == loss(net, x, seeded()).item()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(40):
        optimizer.zero_grad()
        loss(net, x, seeded(step)).backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())
    assert loss(net, x, seeded()).item() < 0.95 * before


def test_projections_are_standardised_by_the_batch_at_hand():
    head, h = projector(5, 7, 3).eval(), draw(0, 20, 5).float() + 9
    z = head(h)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(head.train()(h), z)
    assert not list(head.buffers()), "nothing is remembered of earlier batches"
    assert len(projector(5, 7, 3, standardise=False)) == len(head) - 1


def test_simclr_loss_is_nt_xent_of_two_views():
    net, x = encoder(), ShapeWorld(16).images(6)
    z1, z2 = net.projector(net.features(torch.cat(two_views(x, seeded())))).chunk(2)
    torch.testing.assert_close(simclr_loss(net, x, seeded(), 0.3), nt_xent(z1, z2, 0.3))
    torch.testing.assert_close(vicreg_loss(net, x, seeded()), vicreg(z1, z2))


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: nt_xent(torch.ones(3, 2), torch.ones(4, 2)), "must be equal"),
        (lambda: nt_xent(torch.ones(1, 2), torch.ones(1, 2)), "B of 2 or"),
        (lambda: vicreg(torch.ones(4), torch.ones(4)), r"they are \(B, D\)"),
        (lambda: nt_xent(torch.ones(3, 2), torch.ones(3, 2), 0.0), "above 0"),
        (lambda: vicreg(torch.ones(3, 2), torch.ones(3, 2), (1, 2)), "three numbers"),
        (lambda: augment(torch.ones(3, 8, 8)), "floating-point images"),
        (lambda: augment(torch.ones(1, 3, 8, 8).int()), "int32"),
        (lambda: two_views([1, 2]), "list"),
    ],
)
def test_mistakes_are_answered(call, says):
    with pytest.raises(ValueError, match=says):
        call()
