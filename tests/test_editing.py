"""Editing by attention: pairs, prompt-to-prompt, plug-and-play, and their measures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from torch import Tensor
from torch.nn.init import normal_
from torch.testing import assert_close

from diffedu import Denoiser, features, guidance, samplers, schedules
from diffedu.nets import DiT, UNet
from diffedu.nets.attention import Attend
from diffedu.representations import (
    LocalBlend,
    PlugAndPlay,
    PromptToPrompt,
    Replay,
    attention_maps,
    background_change,
    edited_maps,
    inverted_walk,
    object_hue,
    object_mask,
    overlap,
)
from diffedu.representations.looking import as_pictures, same_word, unmoved
from diffedu.worlds.shapeworld import VOCABULARY, ShapeWorld, encode, hue_bucket

PATH = schedules.cosine()
CROSS = ("down.1.cross.attend", "middle.cross.attend", "up.1.cross.attend")
SELVES = ("down.1.attention.attend", "up.1.attention.attend")
TIMES = samplers.time_grid(PATH, 4)


def stirred(vocabulary: int | None = len(VOCABULARY)) -> Denoiser:
    """An untrained network none of whose layers is zero."""
    net = UNet(3, 16, 8, (1, 2, 2), attention=(8,), heads=2, vocabulary=vocabulary)
    dice = torch.Generator().manual_seed(0)
    for weights in net.parameters():
        normal_(weights, std=0.2, generator=dice)
    return Denoiser(net.requires_grad_(False).eval(), PATH, "v")


DENOISE = stirred()
SOURCE = torch.stack([encode("red disc"), encode("small blue star left")])
SWAPPED = torch.stack([encode("green disc"), encode("large blue star left")])
ADDED = torch.stack([encode("small red disc"), encode("blue star left")])


def noise(n: int = 2, seed: int = 1) -> Tensor:
    """n noisy images (n, 3, 16, 16)."""
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def twins(seed: int = 1) -> Tensor:
    """Two pairs (4, 3, 16, 16), each of one noise."""
    return noise(2, seed).repeat(2, 1, 1, 1)


def captions(edited: Tensor = SWAPPED) -> Tensor:
    """Captions (4, L) of two sources and their twins."""
    return torch.cat([SOURCE, edited])


def hooks(denoise: Denoiser) -> int:
    """How many hooks are left on the network."""
    return sum(len(m._forward_hooks) for m in denoise.modules())


# Prompt-to-prompt --------------------------------------------------------------


@pytest.mark.parametrize("alignment", ["swap", "refine"])
def test_a_captions_own_attention_changes_nothing(alignment):
    pair = PromptToPrompt(DENOISE, 1.0, 1.0, alignment)
    for t in (0.05, 0.5, 0.98):
        plain = DENOISE(twins(), t, caption=captions(SOURCE)).v
        assert_close(pair(twins(), t, caption=captions(SOURCE)).v, plain)


@pytest.mark.parametrize(
    "wrap",
    [lambda d: PromptToPrompt(d, 0.0, 0.0), lambda d: PlugAndPlay(d, 0.0, 0.0)],
)
def test_no_share_of_the_walk_is_the_plain_run(wrap: Callable):
    plain = samplers.ddim(DENOISE, twins(), TIMES, caption=captions())
    edited = samplers.ddim(wrap(DENOISE), twins(), TIMES, caption=captions())
    assert torch.equal(edited, plain)


@pytest.mark.parametrize(
    "pair",
    [
        PromptToPrompt(DENOISE, 1.0, 1.0, factors=[1.0, 3.0, 0.0, -1.0]),
        PlugAndPlay(DENOISE, 1.0, 1.0),
    ],
)
def test_sources_are_left_alone_and_their_twins_are_not(pair):
    plain = DENOISE(twins(), 0.6, caption=captions()).v
    seen = pair(twins(), 0.6, caption=captions()).v
    assert torch.equal(seen[:2], plain[:2])
    assert (seen[2:] - plain[2:]).flatten(1).norm(dim=1).min() > 1e-3


def recorded_inputs(names, x, t, caption) -> dict[str, tuple[Tensor, ...]]:
    """The queries, keys, values (and mask) of attention products in a plain run."""
    kept = {}

    def keep(name):
        def look(h, q, k, v, *mask):
            kept[name] = (q, k, v, *mask)
            return h

        return look

    with features.edit(DENOISE, {name: keep(name) for name in names}):
        DENOISE(x, t, caption=caption)
    return kept


def test_prompt_to_prompt_equals_two_runs_one_after_the_other():
    """The source is run alone, its maps are kept, and the twin's run is given them."""
    kept = recorded_inputs((*CROSS, *SELVES), noise(), 0.7, SOURCE)

    def change(name):
        q0, k0, _, *mask = kept[name]
        return lambda h, q, k, v, *_: Attend.weights(q0, k0, *mask) @ v

    # changes upstream alter the twin's own queries, but never the injected maps
    with features.edit(DENOISE, {name: change(name) for name in kept}):
        alone = DENOISE(noise(), 0.7, caption=SWAPPED).v
    pair = PromptToPrompt(DENOISE, 1.0, 1.0)
    assert_close(pair(twins(), 0.7, caption=captions()).v[2:], alone)


def test_plug_and_play_equals_two_runs_one_after_the_other():
    name, block = "up.1.attention.attend", "up.1.conv2"
    q0, k0, _ = recorded_inputs([name], noise(), 0.7, SOURCE)[name]
    with features.record(DENOISE, [block]) as seen:
        DENOISE(noise(), 0.7, caption=SOURCE)
    changes = {
        block: lambda h: seen[block],
        name: lambda h, q, k, v: Attend.weights(q0, k0) @ v,
    }
    with features.edit(DENOISE, changes):
        alone = DENOISE(noise(), 0.7, caption=SWAPPED).v
    pair = PlugAndPlay(DENOISE, 1.0, 1.0)
    assert_close(pair(twins(), 0.7, caption=captions()).v[2:], alone)


def test_everything_of_the_source_is_the_source():
    words = PromptToPrompt(DENOISE, 1.0, 1.0)
    blocks = [f"{name}.conv2" for name in DENOISE.net.blocks()]
    seen = [name.removesuffix(".attend") for name in CROSS]
    everything = PlugAndPlay(words, 1.0, 1.0, [*blocks, *seen])
    end = samplers.ddim(everything, twins(), TIMES, caption=captions())
    assert_close(end[2:], end[:2])
    maps_alone = samplers.ddim(words, twins(), TIMES, caption=captions())
    assert (maps_alone[2:] - maps_alone[:2]).abs().max() > 1e-2


def test_all_features_are_the_source_under_guidance():
    pair = PlugAndPlay(DENOISE, 1.0, 0.0, DENOISE.net.blocks())
    caption = torch.cat([torch.zeros_like(SOURCE), SWAPPED])
    end = samplers.ddim(
        guidance.ClassifierFree(pair, 3.0), twins(), TIMES, caption=caption
    )
    assert_close(end[2:], end[:2])


def test_shares_are_shares_of_the_walk():
    """With half of the walk edited, the times above a half are, the others not."""
    pair, whole = PromptToPrompt(DENOISE, 0.5, 0.0), PromptToPrompt(DENOISE, 1.0, 0.0)
    for t, reference in ((0.51, whole), (0.49, DENOISE)):
        ours = pair(twins(), t, caption=captions()).v
        assert torch.equal(ours, reference(twins(), t, caption=captions()).v)


def test_the_unconditional_half_of_guidance_is_left_alone():
    pair = PromptToPrompt(DENOISE, 1.0, 1.0)
    x = torch.cat([noise(), noise(seed=2)])
    assert torch.equal(pair(x, 0.8).v, DENOISE(x, 0.8).v)
    guided = guidance.ClassifierFree(pair, 3.0)(x, 0.8, caption=captions()).v
    told = pair(x, 0.8, caption=captions()).v
    assert_close(guided, torch.lerp(DENOISE(x, 0.8).v, told, 3.0))


def test_a_factor_of_one_is_no_factor_and_others_are():
    plain = PromptToPrompt(DENOISE, 1.0, 0.0)(twins(), 0.6, caption=captions()).v
    ones = PromptToPrompt(DENOISE, 1.0, 0.0, factors=torch.ones(2, 4))
    assert torch.equal(ones(twins(), 0.6, caption=captions()).v, plain)
    strong = PromptToPrompt(DENOISE, 1.0, 0.0, factors=[2.0, 1.0, 1.0, 1.0])
    assert (strong(twins(), 0.6, caption=captions()).v - plain)[2:].abs().max() > 1e-3


def test_hooks_are_taken_off_after_an_error():
    before = DENOISE(twins(), 0.5, caption=captions()).v
    for pair in (PromptToPrompt(DENOISE, 1.0, 1.0), PlugAndPlay(DENOISE, 1.0, 1.0)):
        with pytest.raises(ValueError, match="token ids"):
            pair(twins(), 0.5, caption=captions() + len(VOCABULARY))
        with pytest.raises(ValueError, match="shape"):
            pair(twins()[..., :8], 0.5, caption=captions())
    assert hooks(DENOISE) == 0
    assert torch.equal(DENOISE(twins(), 0.5, caption=captions()).v, before)


def test_a_transformer_can_be_edited_too():
    net = DiT(3, 16, patch=4, width=32, depth=2, vocabulary=len(VOCABULARY))
    for weights in net.parameters():
        normal_(weights, std=0.2, generator=torch.Generator().manual_seed(0))
    denoise = Denoiser(net.requires_grad_(False), PATH, "v")
    plain = denoise(twins(), 0.6, caption=captions()).v
    seen = PromptToPrompt(denoise, 1.0, 0.0)(twins(), 0.6, caption=captions()).v
    assert torch.equal(seen[:2], plain[:2])
    assert (seen[2:] - plain[2:]).abs().max() > 1e-3


# Words and maps -----------------------------------------------------------------


def test_alignments_of_captions():
    expected = torch.tensor([[-1, 0, 1, -1], [1, 2, 3, -1]])
    assert torch.equal(same_word(SOURCE, ADDED), expected)
    assert torch.equal(unmoved(SOURCE, SWAPPED), torch.arange(4).expand(2, 4))
    with pytest.raises(ValueError, match="refine"):
        unmoved(SOURCE, ADDED)
    with pytest.raises(ValueError, match="source has shape"):
        same_word(SOURCE, ADDED[:, :3])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))
def test_edited_maps_take_each_column_from_where_it_is_due(seed, b, n, words):
    dice = torch.Generator().manual_seed(seed)
    source, edited = torch.rand(2, b, 2, n, words, generator=dice)
    alignment = torch.randint(-1, words, (b, words), generator=dice)
    factors = torch.randn(b, words, generator=dice)
    maps = edited_maps(source, edited, alignment, factors)
    for i in range(b):
        for j, place in enumerate(alignment[i].tolist()):
            column = edited[i, ..., j] if place < 0 else source[i, ..., place]
            assert torch.equal(maps[i, ..., j], column * factors[i, j])


def test_attention_maps_are_the_mean_of_the_softmaxes():
    maps = attention_maps(DENOISE, noise(), 0.4, SOURCE)
    assert maps.shape == (2, 4, 16, 16)
    assert_close(maps.sum(1), torch.ones(2, 16, 16))
    assert torch.equal(maps[0, 2:], torch.zeros(2, 16, 16))
    name = "up.1.cross.attend"
    q, k, _, mask = recorded_inputs([name], noise(), 0.4, SOURCE)[name]
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    grid = scores.softmax(-1).mean(1).mT.reshape(2, 4, 8, 8)
    at_8 = torch.nn.functional.avg_pool2d(
        attention_maps(DENOISE, noise(), 0.4, SOURCE, [name]), 2
    )
    # averaging the enlarged picture again blurs it, but keeps its mean
    assert_close(at_8.mean((2, 3)), grid.mean((2, 3)), atol=0.02, rtol=0)
    assert torch.corrcoef(torch.stack([at_8[0, 0].ravel(), grid[0, 0].ravel()]))[
        0, 1
    ] > (0.9)
    assert hooks(DENOISE) == 0


def test_a_pair_remembers_where_its_words_looked():
    pair = PromptToPrompt(DENOISE, 0.0, 0.0)
    x = torch.cat([noise(), noise(seed=2)])
    guidance.ClassifierFree(pair, 2.0)(x, 0.4, caption=captions())
    assert_close(pair.last, attention_maps(DENOISE, x, 0.4, captions()))
    one = PromptToPrompt(DENOISE, 0.0, 0.0, shown=CROSS[2:])
    one(x, 0.4, caption=captions())
    assert_close(one.last, attention_maps(DENOISE, x, 0.4, captions(), CROSS[2:]))


def test_maps_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="no square"):
        as_pictures([torch.rand(1, 1, 6, 2)], 8)
    with pytest.raises(ValueError, match="no map"):
        as_pictures([], 8)
    plain = stirred(vocabulary=None)
    with pytest.raises(ValueError, match="reads no captions"):
        attention_maps(plain, noise(), 0.4, SOURCE)
    with pytest.raises(ValueError, match="reads no captions"):
        PromptToPrompt(plain)


# Local blending -----------------------------------------------------------------


def blended(threshold: float, pair: PromptToPrompt) -> tuple[Tensor, LocalBlend]:
    words = torch.tensor([True, False, False, False]).expand(4, 4)
    blend = LocalBlend(pair, words, threshold)
    end = samplers.ddim(pair, twins(), TIMES, caption=captions(), after=blend)
    return end, blend


def test_blending_everywhere_or_nowhere():
    pair = PromptToPrompt(DENOISE, 0.5, 0.0)
    plain = samplers.ddim(pair, twins(), TIMES, caption=captions())
    assert torch.equal(blended(0.0, pair)[0], plain)
    nowhere = blended(1.0, pair)[0]
    assert torch.equal(nowhere[2:], nowhere[:2])
    assert torch.equal(nowhere[:2], plain[:2])


def test_blending_keeps_the_source_outside_of_the_mask():
    pair = PromptToPrompt(DENOISE, 0.5, 0.0)
    end, blend = blended(0.98, pair)
    inside = blend.mask().any(0)
    assert 0 < inside.float().mean() < 1
    different = (end[2:] != end[:2]).any(1)
    assert torch.equal(different & inside, different)
    again = samplers.ddim(pair, twins(), TIMES, caption=captions(), after=blend)
    assert torch.equal(again, end)  # a new walk starts a new average


# Given pictures -----------------------------------------------------------------


def test_an_inverted_walk_is_the_inversion_with_all_its_states():
    x0 = noise().clamp(-1, 1)
    states = inverted_walk(DENOISE, x0, TIMES, refine=1)
    assert states.shape == (5, 2, 3, 16, 16)
    assert torch.equal(states[-1], x0)
    assert_close(states[0], samplers.ddim_invert(DENOISE, x0, TIMES, refine=1))


def test_a_replayed_source_ends_on_its_picture():
    x0 = noise().clamp(-1, 1)
    states = inverted_walk(DENOISE, x0, TIMES)
    x_T, caption = states[0].repeat(2, 1, 1, 1), captions()
    pair = PlugAndPlay(DENOISE, 1.0, 0.0, DENOISE.net.blocks())
    end = samplers.ddim(pair, x_T, TIMES, caption=caption, after=Replay(states))
    assert torch.equal(end[:2], x0)
    plain = samplers.ddim(DENOISE, x_T, TIMES, caption=caption)
    assert (plain[:2] - x0).abs().max() > 1e-2
    with pytest.raises(ValueError, match="2 sources make 4 samples"):
        samplers.ddim(DENOISE, noise(), TIMES, after=Replay(states))


# Inputs that are refused --------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross": 1.5}, "cross is the share"),
        ({"self_attention": -0.1}, "self_attention is the share"),
        ({"alignment": "refined"}, 'did you mean "refine"'),
        ({"factors": [1.0, float("nan")]}, "factors holds 1 values"),
        ({"shown": ["up.1.cross"]}, 'did you mean "up.1.cross.attend"'),
    ],
)
def test_prompt_to_prompt_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        PromptToPrompt(DENOISE, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 2}, "features is the share"),
        ({"attention": -1}, "attention is the share"),
        ({"feature_blocks": ["up.1.conv3"]}, 'did you mean "up.1.conv'),
        ({"attention_blocks": ["up.1.attend"]}, "did you mean"),
    ],
)
def test_plug_and_play_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        PlugAndPlay(DENOISE, **options)


def test_pairs_that_are_none():
    pair = PromptToPrompt(DENOISE)
    with pytest.raises(ValueError, match="even batch, got 3"):
        pair(noise(3), 0.5, caption=SOURCE[:1].expand(3, 4))
    with pytest.raises(ValueError, match="each picture of a pair"):
        pair(twins(), 0.5, caption=SOURCE)
    with pytest.raises(ValueError, match="at one time"):
        pair(twins(), torch.tensor([0.1, 0.2, 0.1, 0.2]), caption=captions())
    with pytest.raises(ValueError, match="threshold lies"):
        LocalBlend(pair, captions() > 0, 1.2)
    with pytest.raises(ValueError, match="nothing was looked at"):
        samplers.ddim(
            DENOISE,
            twins(),
            TIMES,
            caption=captions(),
            after=LocalBlend(PromptToPrompt(DENOISE), captions() > 0),
        )


# Measures -----------------------------------------------------------------------


def test_objects_of_real_images_are_found_with_their_hues():
    drawn = ShapeWorld(32, "plain_rotated").batch(200, 10_000)
    mask = object_mask(drawn.images)
    assert overlap(mask, drawn.parts > 0).mean() > 0.9
    hue = object_hue(drawn.images, mask)
    right = hue_bucket(hue) == hue_bucket(drawn.factors["hue"])
    assert right.float().mean() > 0.9
    assert object_hue(drawn.images, torch.zeros_like(mask)).isnan().all()
    with pytest.raises(ValueError, match="images need shape"):
        object_mask(drawn.images[:, :1])


def test_overlap_is_the_jaccard_index():
    a, b = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    ours = overlap(a, b)
    for i in range(3):
        theirs = jaccard_score(a[i].ravel(), b[i].ravel())
        assert ours[i].item() == pytest.approx(theirs)
    empty = torch.zeros_like(a)
    assert torch.equal(overlap(empty, empty), torch.zeros(3))
    with pytest.raises(ValueError, match="a has shape"):
        overlap(a, b[:, :4])


def test_background_change_is_blind_inside_the_mask():
    a = torch.zeros(1, 3, 4, 4)
    b, mask = a.clone(), torch.zeros(1, 4, 4, dtype=torch.bool)
    b[..., 0, 0], b[..., 1, 1] = 1.0, 0.5
    mask[0, 0, 0] = True
    assert background_change(a, b, mask).item() == pytest.approx(0.5 / 15)
    assert background_change(a, b, torch.ones_like(mask)).item() == 0
