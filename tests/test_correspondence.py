"""Correspondence: matches that are known, PCK by hand, and learned mixes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from diffedu import Denoiser, nets, schedules
from diffedu.representations import correspondence, hyperfeatures, keypoints, prompts
from diffedu.worlds.shapeworld import NAMES, VOCABULARY, ShapeWorld, symmetries

WORLD = ShapeWorld(16, "plain_rotated")


def centres(column, row, width, height):
    x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
    return torch.stack([x, y], -1).float()


@settings(max_examples=20, deadline=None)
@given(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 10**6))
def test_a_rolled_map_is_matched_exactly(down, right, seed):
    dice = torch.Generator().manual_seed(seed)
    source = torch.randn(2, 12, 10, 14, generator=dice)
    row = torch.randint(3, 7, (2, 4), generator=dice)
    column = torch.randint(3, 11, (2, 4), generator=dice)
    found = correspondence.match(
        source,
        source.roll((down, right), (2, 3)),
        centres(column, row, 14, 10),
        grid=None,
    )
    assert_close(found, centres(column + right, row + down, 14, 10))


def test_standardised_maps_forget_offset_and_scale():
    maps = torch.randn(3, 5, 6, 6)
    other = 4 - 0 * maps + 3 * maps
    assert_close(correspondence.standardise(maps), correspondence.standardise(other))
    flat = correspondence.standardise(torch.ones(1, 2, 3, 3))
    assert torch.equal(flat, torch.zeros_like(flat))


def test_descriptions_are_exact_at_pixel_centres():
    maps = torch.randn(1, 3, 4, 6)
    at = centres(torch.tensor([[5, 0]]), torch.tensor([[1, 3]]), 6, 4)
    read = correspondence.describe(maps, at)
    assert_close(read[0], torch.stack([maps[0, :, 1, 5], maps[0, :, 3, 0]]))


def test_similarity_agrees_with_cosine_similarity():
    a, b = torch.randn(2, 1, 5, 4, 4, dtype=torch.float64)
    at = centres(torch.tensor([[2]]), torch.tensor([[3]]), 4, 4).double()
    ours = correspondence.similarity(a, b, at)[0, 0]
    theirs = torch.nn.functional.cosine_similarity(a[:, :, 3, 2][..., None, None], b)
    assert_close(ours, theirs[0])


def test_pck_by_hand():
    truth = torch.tensor([[[0.0, 0.0], [0.5, 0.5], [-0.5, 0.5]]])
    found = torch.tensor([[[0.1, 0.1], [0.5, 0.69], [0.0, 0.0]]])
    assert_close(keypoints.pck(found, truth), torch.tensor([2 / 3]))
    seen = torch.tensor([[True, False, True]])
    assert_close(keypoints.pck(found, truth, visible=seen), torch.tensor([0.5]))
    assert_close(keypoints.pck(found, truth, asked=~seen), torch.tensor([1.0]))
    strict = keypoints.pck(found, truth, extent=torch.tensor([1.0]))
    assert_close(strict, torch.tensor([0.0]))


def test_a_renamed_answer_counts_once_symmetry_is_given():
    batch = WORLD.batch(40)
    names = keypoints.permutations(batch.label)
    for n, label in enumerate(batch.label):
        group = symmetries(NAMES[label])
        assert torch.equal(names[n].unique(dim=0), group.unique(dim=0))
    renamed = batch.keypoints[torch.arange(40)[:, None], names[:, 1]]
    score = keypoints.pck(renamed, batch.keypoints, symmetry=names)
    assert_close(score, torch.ones(40))
    assert (keypoints.pck(renamed, batch.keypoints) < 1).any()


def test_one_renaming_serves_a_whole_pair():
    truth = torch.tensor([[[0.0, 0.9], [-0.5, 0.0], [0.5, 0.0]]])
    swap = torch.tensor([[[0, 1, 2], [0, 2, 1]]])
    both_right = truth[:, [0, 2, 2]]  # one point on its own side, one mirrored
    assert_close(keypoints.pck(both_right, truth, symmetry=swap), torch.tensor([2 / 3]))


def test_pairs_share_what_is_kept():
    pairs = keypoints.shape_pairs(WORLD, 12, 5)
    assert len(pairs) == 12 and set(pairs.label.tolist()) <= {2, 6, 7}
    assert_close(pairs.score(pairs.truth), torch.ones(12))
    again = keypoints.shape_pairs(WORLD, 20, 5)[:12]
    assert torch.equal(pairs.target, again.target)
    assert not torch.equal(pairs.points, pairs.truth)
    moved = keypoints.shape_pairs(WORLD, 4, keep=("label", "x", "y", "rotation"))
    direction = [torch.nn.functional.normalize(p[:, 1] - p[:, 2], dim=-1)
                 for p in (moved.points, moved.truth)]  # fmt: skip
    assert_close(*direction)


def test_random_pixels_lie_inside():
    pairs = keypoints.shape_pairs(WORLD, 6)
    guess = keypoints.any_inside(pairs.inside, 9, torch.Generator().manual_seed(0))
    place = ((guess + 1) * 8).long()
    rows = torch.arange(6)[:, None]
    assert pairs.inside[rows, place[..., 1], place[..., 0]].all()


def test_fused_maps_have_the_ends_of_both():
    a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)
    at = 1.6 * torch.rand(2, 4, 2) - 0.8
    whole, half = correspondence.fuse(a, b, 1.0), correspondence.fuse(a, b, 0.5)
    assert_close(half[:, :3].norm(dim=1), torch.full((2, 8, 8), 0.5))
    assert torch.equal(
        correspondence.match(whole, whole.flip(3), at, grid=None),
        correspondence.match(
            torch.nn.functional.normalize(a, dim=1), a.flip(3), at, grid=None
        ),
    )


def test_the_mix_is_equation_14():
    torch.manual_seed(0)
    maps = {"one": torch.randn(3, 2, 4, 4, 4), "two": torch.randn(3, 2, 6, 2, 2)}
    mix = hyperfeatures.Hyperfeatures({"one": 4, "two": 6}, 3, width=5, grid=8)
    torch.nn.init.normal_(mix.scores)
    assert_close(mix.weights().sum(), torch.tensor(1.0))
    total = sum(
        mix.weights()[i, s]
        * correspondence.enlarge(mix.bottleneck[i](maps[name][s]), 8)
        for i, name in enumerate(maps)
        for s in range(3)
    )
    assert_close(mix(maps), total)


def test_matching_loss_of_a_sure_right_answer_is_zero():
    truth = centres(torch.tensor([[1, 3]]), torch.tensor([[0, 2]]), 4, 4)
    scores = torch.zeros(1, 2, 4, 4)
    uniform = hyperfeatures.matching_loss(scores, truth)
    assert_close(uniform, torch.tensor(math.log(16)))
    scores[0, 0, 0, 1] = scores[0, 1, 2, 3] = 1.0
    assert hyperfeatures.matching_loss(scores, truth) < 1e-6
    swap = torch.tensor([[[0, 1], [1, 0]]])
    mirrored = scores[:, [1, 0]]
    assert hyperfeatures.matching_loss(mirrored, truth) > 1
    assert hyperfeatures.matching_loss(mirrored, truth, swap) < 1e-6


def test_learning_finds_the_informative_cell():
    pairs = keypoints.shape_pairs(WORLD, 24)
    x, y = torch.meshgrid(*2 * [torch.linspace(-1, 1, 8)], indexing="xy")

    def field(points):  # each place says how near it is to each of the keypoints
        far = (torch.stack([x, y], -1)[None, None] - points[:, :, None, None]).norm(
            dim=-1
        )
        return correspondence.standardise((-4 * far.square()).exp())

    told = torch.cat([field(pairs.points), field(pairs.truth)])
    noise = torch.randn(told.shape, generator=torch.Generator().manual_seed(0))
    maps = {"block": torch.stack([noise, told])}
    mix = hyperfeatures.learn(
        maps,
        pairs,
        steps=40,
        lr=0.05,
        width=5,
        generator=torch.Generator().manual_seed(0),
    )
    assert mix.weights()[0, 1] > 0.7
    found = correspondence.match(*mix(maps).detach().chunk(2), pairs.points)
    assert pairs.score(found).mean() > 0.8


def reader():
    torch.manual_seed(0)
    net = nets.UNet(3, 16, 8, (1, 2), attention=(8,), vocabulary=len(VOCABULARY))
    for part in net.modules():
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight, std=0.3)
    return Denoiser(net, schedules.cosine(), "v").requires_grad_(False).eval()


def test_told_words_stand_for_the_caption():
    denoise = reader()
    caption = torch.tensor([3, 9, 0, 0])
    x = torch.randn(2, 3, 16, 16)
    with prompts.told(denoise, prompts.vectors(denoise, caption)):
        shown = denoise(x, 0.5).v
    assert_close(shown, denoise(x, 0.5, caption=caption).v)
    with prompts.told(denoise, prompts.vectors(denoise)):
        assert_close(denoise(x, 0.5, caption=caption).v, denoise(x, 0.5).v)
    assert_close(denoise(x, 0.5, caption=caption).v, shown)


def test_maps_are_shares_and_words_are_found():
    denoise = reader()
    batch = WORLD.batch(3)
    at = batch.keypoints[:, :2]
    dice = torch.Generator().manual_seed(0)
    words = prompts.find_words(denoise, batch.images, at, 0.2, "up.0", steps=1, lr=0,
                               generator=dice)  # fmt: skip
    better = prompts.find_words(denoise, batch.images, at, 0.2, "up.0", steps=15,
                                generator=torch.Generator().manual_seed(0))  # fmt: skip
    goal = prompts.bumps(at, 8)
    assert goal.amax() <= 1 and goal.shape == (3, 2, 8, 8)
    errors = []
    for each in (words, better):
        maps = prompts.attention_maps(denoise, batch.images, 0.2, "up.0", each)
        assert_close(maps.sum(1), torch.ones(3, 8, 8))
        errors.append((maps[:, :2] - goal).square().mean())
    assert errors[1] < errors[0]


def test_a_tuned_prompt_changes_and_the_weights_stay():
    denoise = reader()
    before = [p.clone() for p in denoise.parameters()]
    pairs = keypoints.shape_pairs(WORLD, 4)
    start = prompts.vectors(denoise)
    dice = torch.Generator().manual_seed(0)
    tuned = prompts.tune_prompt(denoise, pairs, 0.2, "up.0", start, steps=2, batch=2,
                                generator=dice)  # fmt: skip
    assert tuned.shape == start.shape and not torch.equal(tuned, start)
    for old, new in zip(before, denoise.parameters(), strict=True):
        assert torch.equal(old, new) and new.grad is None


def test_dift_answers_maps():
    denoise = reader()
    maps = correspondence.dift(denoise, WORLD.images(2), 0.3, "up.1", draws=2,
                               generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert maps.shape == (2, 8, 16, 16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: correspondence.standardise(torch.ones(2, 3)), "pool"),
        (lambda: correspondence.describe(torch.ones(1, 2, 4, 4), torch.ones(2, 5, 2)),
         "points must have"),
        (lambda: correspondence.match(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4),
                                      torch.zeros(1, 1, 2)), "channels"),
        (lambda: correspondence.match(torch.full((1, 2, 4, 4), math.nan),
                                      torch.ones(1, 2, 4, 4), torch.zeros(1, 1, 2)),
         "NaN"),
        (lambda: correspondence.fuse(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), 2),
         "weight is 2"),
        (lambda: keypoints.pck(torch.ones(1, 5, 2), torch.ones(1, 4, 2)), "both be"),
        (lambda: keypoints.pck(torch.ones(1, 5, 2), torch.ones(1, 5, 2), share=0),
         "share is 0"),
        (lambda: keypoints.pck(torch.ones(1, 5, 2), torch.ones(1, 5, 2),
                               visible=torch.zeros(1, 5, dtype=torch.bool)), "leave"),
        (lambda: keypoints.shape_pairs(WORLD, 2, shapes=("triangel",)), "triangle"),
        (lambda: keypoints.shape_pairs(WORLD, 2, keep=("hue",)), "label"),
        (lambda: hyperfeatures.Hyperfeatures({}, 2), "block"),
        (lambda: hyperfeatures.Hyperfeatures({"a": 2}, 2)({"b": torch.ones(1)}),
         "lack"),
        (lambda: hyperfeatures.Hyperfeatures({"a": 2}, 2)(
            {"a": torch.ones(1, 1, 2, 4, 4)}), "must be"),
        (lambda: hyperfeatures.matching_loss(torch.ones(1, 2, 4, 4),
                                             torch.ones(1, 3, 2)), "truth must"),
        (lambda: prompts.vectors(Denoiser(nets.UNet(3, 16, 8, (1, 2)),
                                          schedules.cosine(), "v")), "no captions"),
        (lambda: prompts.told(reader(), torch.ones(2, 3)).__enter__(), "words must"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
