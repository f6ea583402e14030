"""ShapeWorld: what is drawn is what the labels say, and image i is always the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffedu.worlds import shapeworld
from diffedu.worlds.shapes import factors as random_factors
from diffedu.worlds.shapes import painter
from diffedu.worlds.shapeworld import NAMES, SHAPES, VARIANTS, ShapeWorld

FIELDS = "index images label parts keypoints visible depth caption".split()
variants = st.sampled_from(list(VARIANTS))


def equal(a, b) -> bool:
    same = all(torch.equal(getattr(a, k), getattr(b, k)) for k in FIELDS)
    return same and all(torch.equal(a.factors[k], b.factors[k]) for k in a.factors)


def part_of(batch, chosen) -> shapeworld.ShapeBatch:
    fields = {k: getattr(batch, k)[chosen] for k in FIELDS}
    factors = {k: v[chosen] for k, v in batch.factors.items()}
    return shapeworld.ShapeBatch(**fields, factors=factors)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [16, 24, 32])
def test_shapes_types_and_ranges(variant, size):
    b = ShapeWorld(size, variant).batch(40)
    assert len(b) == 40 and b.images.shape == (40, 3, size, size)
    assert b.images.dtype == torch.float32 and b.images.abs().max() <= 1
    for whole in (b.index, b.label, b.parts, b.depth, b.caption):
        assert whole.dtype == torch.int64
    assert b.parts.shape == b.depth.shape == (40, size, size)
    assert b.keypoints.shape == (40, 5, 2) and b.keypoints.abs().max() < 1
    assert b.visible.shape == (40, 5) and b.visible.dtype == torch.bool
    assert b.parts.unique().tolist() == [0, 1, 2, 3]
    assert b.depth.max() == (2 if variant == "clutter" else 1)


@settings(deadline=None, max_examples=40)
@given(
    variants,
    st.integers(12, 40),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**61),
    st.integers(1, 9),
    st.data(),
)
def test_an_image_does_not_depend_on_its_batch(variant, size, seed, start, n, data):
    world = ShapeWorld(size, variant, seed)
    whole = world.batch(n, start)
    k = data.draw(st.integers(0, n - 1))
    assert equal(world.batch(1, start + k), part_of(whole, slice(k, k + 1)))
    assert torch.equal(world.images(n, start), whole.images)


def test_blocks_do_not_show():
    world = ShapeWorld(32, "clutter", 5)
    step = 2**15 // 32**2
    whole = world.batch(3 * step + 1, start=7)
    apart = world.batch(step, start=7 + step)
    assert equal(apart, part_of(whole, slice(step, 2 * step)))


def test_seeds_numbers_and_views_differ():
    images = ShapeWorld(16, "plain", 0).images(300)
    assert images.flatten(1).unique(dim=0).shape[0] == 300
    other = ShapeWorld(16, "plain", 1).images(300)
    assert (images - other).abs().flatten(1).amax(1).min() > 0.01


def test_uniforms_are_uniform_and_independent():
    u = random_factors.uniforms(0, 0, torch.arange(40_000), 8).double()
    assert u.min() >= 0 and u.max() < 1
    assert ((u.mean(0) - 0.5).abs() < 5 * 12**-0.5 / 200).all()
    assert ((u.square().mean(0) - 1 / 3).abs() < 5 * math.sqrt(4 / 45) / 200).all()
    nearby = torch.cat([u, u.roll(1, 0)], 1)
    off = torch.corrcoef(nearby.T) - torch.eye(16)
    assert off.abs().max() < 5 / 200


def test_uniforms_follow_the_published_mixer():
    # SplitMix64 with state 0 begins with this number
    scrambled = random_factors._scramble(torch.tensor(random_factors._GOLDEN))
    assert scrambled.item() % 2**64 == 0xE220A8397B1DCDAF


def test_factors_cover_their_ranges():
    f = ShapeWorld(16, "clutter").factors(4000)
    share = f["label"].bincount(minlength=8) / 4000
    assert ((share - 1 / 8).abs() < 5 * math.sqrt(7 / 64 / 4000)).all()
    assert 0.48 <= f["scale"].min() < 0.49 and 0.77 < f["scale"].max() <= 0.78
    assert (f["x"].abs() + f["scale"] <= 0.98 + 1e-6).all()
    assert f["rotation"].min() < -3.1 and f["rotation"].max() > 3.1
    assert (f["brightness"] * f["background_brightness"] < 0).all()
    plain = ShapeWorld(16, "plain").factors(4000)["rotation"]
    assert 0.77 < plain.abs().max() <= math.pi / 4


def test_one_number_is_one_scene_at_every_size():
    small, large = (ShapeWorld(s, "clutter", 2).batch(60) for s in (16, 32))
    assert torch.equal(small.label, large.label)
    assert torch.equal(small.keypoints, large.keypoints)
    shrunk = torch.nn.functional.avg_pool2d(large.images, 2)
    assert (shrunk - small.images).abs().mean() < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_distances_have_their_sign_and_slope(name):
    x, y = painter.grid(400, "cpu")
    x, y = (x * 1.1).expand(1, 400, 400), (y * 1.1).expand(1, 400, 400)
    distance = SHAPES[name].distance(x, y)[0]
    inside = distance < 0
    assert 0.15 < inside.float().mean() < 0.6
    assert not inside[(x[0] ** 2 + y[0] ** 2) > 1.0001].any()
    slope = torch.stack(torch.gradient(distance, spacing=2.2 / 400)).norm(dim=0)
    edge = distance.abs() < 0.03
    assert 0.9 < slope[edge].median() < 1.1 and slope.max() < 1.6


@pytest.mark.parametrize("name", NAMES)
def test_symmetries_keep_the_outline_and_move_the_keypoints_as_listed(name):
    """Each permutation is a rotation or mirror of the plane that keeps the shape."""
    points = torch.tensor(SHAPES[name].keypoints, dtype=torch.float64)
    x = torch.rand(2, 4000, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    before = SHAPES[name].distance(*x)
    for order in shapeworld.symmetries(name):
        u, _, v = torch.linalg.svd(points.T @ points[order])
        turn = (u @ v).T  # the orthogonal map nearest to points -> points[order]
        torch.testing.assert_close(points @ turn.T, points[order], atol=0.02, rtol=0)
        after = SHAPES[name].distance(*(turn @ x))
        torch.testing.assert_close(after, before, atol=0.02, rtol=0)


def test_symmetry_groups_have_their_sizes():
    sizes = {name: len(shapeworld.symmetries(name)) for name in NAMES}
    assert sizes == dict(
        disc=8, square=8, triangle=2, star=10, cross=8, ring=10, crescent=2, tee=2
    )
    assert shapeworld.symmetries("tee")[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("variant", VARIANTS)
def test_visible_keypoints_lie_on_the_object(variant):
    b = ShapeWorld(32, variant, 1).batch(400)
    pixel = ((b.keypoints + 1) * 16).long()
    rows = torch.arange(400)[:, None]
    on_object = b.parts[rows, pixel[..., 1], pixel[..., 0]] > 0
    # a pixel's centre is up to 0.7 pixels from the point: a few at edges may differ
    assert (on_object == b.visible).float().mean() > 0.985
    assert b.visible.all() == (variant != "clutter")
    if variant == "clutter":
        assert 0.005 < (~b.visible).float().mean() < 0.3


def test_hidden_keypoints_are_exactly_those_under_the_second_object():
    b = ShapeWorld(128, "clutter", 1).batch(300)
    pixel = ((b.keypoints + 1) * 64).long()
    rows = torch.arange(300)[:, None]
    nearer = b.depth[rows, pixel[..., 1], pixel[..., 0]] == 2
    front = b.factors["second_in_front"].bool()[:, None]
    assert ((nearer & front) == ~b.visible).float().mean() > 0.995
    assert b.visible[~front[:, 0]].all()


def test_frame_and_place_undo_each_other():
    f = ShapeWorld(16, "textured_rotated", 4).factors(50)
    points = torch.rand(50, 7, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x, y = painter.place(points, f).unbind(-1)
    x, y = painter.to_frame(f, "", x[:, None], y[:, None])
    back = torch.stack([x[:, 0], y[:, 0]], -1)
    torch.testing.assert_close(back, points, atol=1e-5, rtol=0)


def test_upright_shapes_have_their_first_keypoint_above():
    f = {k: torch.zeros(1) for k in ("x", "y", "rotation")} | {"scale": torch.ones(1)}
    apex = torch.tensor([[SHAPES["triangle"].keypoints[0]]])
    assert painter.place(apex, f)[0, 0, 1] < -0.7  # y points down
    f["rotation"] += math.pi / 2  # a quarter turn clockwise: apex to the right
    assert painter.place(apex, f)[0, 0, 0] > 0.7


def test_colours_of_parts_are_those_of_the_factors():
    b = ShapeWorld(64, "plain_rotated", 3).batch(60)
    for part, shift in zip((1, 2, 3), painter.PART_HUES, strict=True):
        hue, brightness = b.factors["hue"] + shift, b.factors["brightness"]
        wanted = painter.colour(hue, brightness, painter.CHROMA)
        mask = (b.parts == part)[:, None]
        middle = (b.images.masked_fill(~mask, torch.nan)).flatten(2).nanmedian(2)[0]
        torch.testing.assert_close(middle, wanted, atol=0.02, rtol=0)


def test_colour_is_hue_around_brightness():
    hues, grey = torch.tensor([0, 1 / 3, 2 / 3]), torch.full((3,), 0.1)
    rgb = painter.colour(hues, grey, 0.5)
    torch.testing.assert_close(rgb.mean(1), grey)
    assert rgb.argmax(1).tolist() == [0, 1, 2]


def test_depth_tells_who_is_in_front():
    b = ShapeWorld(32, "clutter").batch(200)
    front = b.factors["second_in_front"].bool()
    own = torch.where(front, 1, 2)[:, None, None].expand_as(b.depth)
    assert torch.equal(b.depth[b.parts > 0], own[b.parts > 0])
    other = (b.depth > 0) & (b.parts == 0)
    assert torch.equal(b.depth[other], (3 - own)[other])
    assert (other.flatten(1).any(1)).float().mean() > 0.9
    assert 0.3 < front.float().mean() < 0.7


def test_textures_only_where_named():
    corners = (slice(None), slice(None), [0, 0, -1, -1], [0, -1, 0, -1])
    flat = ShapeWorld(16, "plain").images(50)[corners]
    rough = ShapeWorld(16, "textured").images(50)[corners]
    assert flat.std(2).max() < 1e-6 and rough.std(2).mean() > 0.05


def test_class_is_not_linear_in_the_pixels():
    """Least squares on 3,000 images stays near chance, 0.125, on the next 1,000."""
    x, y = ShapeWorld(16, "textured").images_and_labels(4000)
    x = torch.cat([x.flatten(1), torch.ones(4000, 1)], 1).double()
    target = torch.nn.functional.one_hot(y, 8).double()
    ridge = x[:3000].T @ x[:3000] + 100 * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(ridge, x[:3000].T @ target[:3000])
    right = ((x[3000:] @ weights).argmax(1) == y[3000:]).double().mean()
    assert right < 0.25


def test_two_views_keep_what_is_named():
    world = ShapeWorld(16, "clutter", 2)
    a, b = world.two_views(200, start=10)
    assert equal(a, world.batch(200, start=10))
    for kept in ("label", "hue", "scale"):
        assert torch.equal(a.factors[kept], b.factors[kept])
    for new in ("x", "y", "rotation", "brightness", "background_hue", "second_hue"):
        assert (a.factors[new] == b.factors[new]).float().mean() < 0.01
    one = world.two_views(1, start=60)[1]
    assert torch.equal(one.images[0], b.images[50])
    a, b = world.two_views(20, keep="rotation")
    assert torch.equal(a.factors["rotation"], b.factors["rotation"])
    assert not torch.equal(a.label, b.label)


def test_captions_say_the_factors():
    b = ShapeWorld(16, "plain").batch(300)
    named = shapeworld.attributes(b.factors)
    for k, caption in enumerate(b.captions()):
        said = caption.split()
        assert 2 <= len(said) <= 4
        hue, shape = shapeworld.HUES[named["hue"][k]], NAMES[b.label[k]]
        assert f"{hue} {shape}" in caption
        assert torch.equal(shapeworld.encode(caption), b.caption[k])
        if said[0] == "small":
            assert b.factors["scale"][k] < 0.63
        if said[-1] == "left":
            assert b.factors["x"][k] < 0 and b.factors["x"][k] <= -0.12
        if said[-1] == "bottom":
            assert b.factors["y"][k] >= 0.12
    lengths = (b.caption > 0).sum(1).bincount(minlength=5)[2:] / 300
    assert ((lengths - torch.tensor([0.25, 0.5, 0.25])).abs() < 0.15).all()
    assert len(set(shapeworld.VOCABULARY)) == len(shapeworld.VOCABULARY) == 22


def test_hue_names_are_centred():
    hues = torch.tensor([0.0, 0.99, 0.08, 0.09, 1 / 3, 2 / 3, 5 / 6])
    assert shapeworld.hue_bucket(hues).tolist() == [0, 0, 0, 1, 2, 4, 5]


@pytest.mark.parametrize("variant", ["plain", "clutter"])
def test_held_out_pairs_are_never_seen(variant):
    def pairs(combinations, prefix=""):
        f = ShapeWorld(16, variant, 0, combinations).factors(6000)
        bucket = shapeworld.hue_bucket(f[prefix + "hue"])
        label = f[prefix + "label"]
        return shapeworld.held_out(label, bucket), label * 6 + bucket

    assert not pairs("seen")[0].any() and pairs("held_out")[0].all()
    assert pairs("seen")[1].unique().numel() == 40
    assert pairs("held_out")[1].unique().numel() == 8
    assert pairs("all")[1].unique().numel() == 48
    if variant == "clutter":
        assert not pairs("seen", "second_")[0].any()


def test_batches_resume_where_they_stopped():
    world = ShapeWorld(16, "plain", 7)
    batches = world.batches(5, start=3)
    first, second = next(batches), next(batches)
    assert torch.equal(first[0], world.images(5, 3))
    assert torch.equal(second[1], world.factors(5, 8)["label"])
    assert batches.next_index == 13
    resumed = next(iter(world.batches(5, start=batches.next_index)))
    assert torch.equal(resumed[0], next(batches)[0])


@pytest.mark.parametrize("size", [0, 11, 129, 16.0, "16", None, True])
def test_bad_size(size):
    with pytest.raises(ValueError, match="size is .*12 to 128"):
        ShapeWorld(size)


@pytest.mark.parametrize("seed", [1.5, None, 2**63, "0", False])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed is .*whole number of 64 bits"):
        ShapeWorld(seed=seed)


def test_unknown_names():
    with pytest.raises(ValueError, match='did you mean "textured"'):
        ShapeWorld(variant="texturd")
    with pytest.raises(ValueError, match='did you mean "seen"'):
        ShapeWorld(combinations="sen")
    with pytest.raises(ValueError, match='did you mean "rotation"'):
        ShapeWorld().two_views(3, keep=("label", "rotatoin"))
    with pytest.raises(ValueError, match='did you mean "star"'):
        shapeworld.symmetries("starr")


@pytest.mark.parametrize("call", ["batch", "images", "factors", "two_views", "batches"])
@pytest.mark.parametrize("n, start", [(0, 0), (-1, 0), (2.0, 0), (3, -1), (3, 2**62)])
def test_bad_counts(call, n, start):
    with pytest.raises(ValueError, match="it must be"):
        getattr(ShapeWorld(), call)(n, start)


def test_bad_captions():
    with pytest.raises(ValueError, match='"rde" is unknown; did you mean "red"'):
        shapeworld.encode("rde star")
    with pytest.raises(ValueError, match="has 5 words; at most 4"):
        shapeworld.encode("small red star left top")
    with pytest.raises(ValueError, match="not in 0..21"):
        shapeworld.decode(torch.tensor([[1, 2, 3, 22]]))
    with pytest.raises(ValueError, match=r"shape \(n, 4\)"):
        shapeworld.decode(torch.zeros(2, 3, dtype=torch.int64))
    assert shapeworld.decode(shapeworld.encode("red star")) == ["red star"]
    assert shapeworld.decode(shapeworld.encode("")) == [""]
