"""Transfer losses against closed forms, and students that learn what they are shown."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from diffedu import representations as rep
from diffedu.nets import Encoder

SHAPES = [(3, 4, 8, 8), (3, 6, 4, 4)]


@pytest.fixture
def dice() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def maps(dice: torch.Generator, shapes=SHAPES, dtype=torch.float64) -> list:
    return [torch.randn(s, generator=dice, dtype=dtype) for s in shapes]


# What is compared


def test_whitened_places_have_mean_0_and_variance_1_over_channels(dice):
    h = 5 + 3 * torch.randn(4, 16, 3, 3, generator=dice, dtype=torch.float64)
    white = rep.whiten(h, eps=0.0)
    assert_close(white.mean(1), torch.zeros(4, 3, 3, dtype=h.dtype))
    assert_close(white.var(1, correction=0), torch.ones(4, 3, 3, dtype=h.dtype))


def test_whiten_is_a_layer_norm_without_weights(dice):
    h = torch.randn(4, 16, 3, 3, generator=dice)
    norm = nn.LayerNorm(16, elementwise_affine=False)
    assert_close(rep.whiten(h), norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    flat = torch.randn(4, 16, generator=dice)
    assert_close(rep.whiten(flat), norm(flat))


def test_regression_is_the_mean_of_levels_whatever_their_sizes(dice):
    teacher, noise = maps(dice), maps(dice)
    predicted = [rep.whiten(h) + 0.5 * e for h, e in zip(teacher, noise, strict=True)]
    each = [0.25 * e.square().mean() for e in noise]
    loss = rep.regression_loss(predicted, teacher)
    assert_close(loss, (each[0] + each[1]) / 2)
    assert float(rep.regression_loss(predicted[:1], teacher[:1])) == pytest.approx(
        float(each[0])
    )


def test_whitening_makes_the_loss_blind_to_the_teachers_scale(dice):
    predicted, teacher = maps(dice), maps(dice)
    scaled = [100 * h + 7 for h in teacher]
    white = [rep.regression_loss(predicted, h) for h in (teacher, scaled)]
    raw = [
        rep.regression_loss(predicted, h, normalise=False) for h in (teacher, scaled)
    ]
    assert_close(white[0], white[1], rtol=1e-3, atol=1e-3)
    assert raw[1] > 1000 * raw[0]


@pytest.mark.parametrize(
    "loss",
    [
        rep.regression_loss,
        rep.attention_loss,
        rep.dream_loss,
        lambda a, b: rep.hint_loss(a[0], b[0], nn.Identity()),
        lambda a, b: rep.soft_label_loss(a[0].flatten(1), b[0].flatten(1)),
    ],
)
def test_gradients_reach_the_student_and_never_the_teacher(loss, dice):
    student = [h.requires_grad_() for h in maps(dice)]
    teacher = [h.requires_grad_() for h in maps(dice)]
    loss(student, teacher).backward()
    assert student[0].grad.abs().sum() > 0
    assert all(h.grad is None for h in teacher)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 10), st.floats(1, 4), st.integers(0, 1000))
def test_attention_maps_have_length_one_and_no_scale(scale, power, seed):
    h = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(seed))
    ours = rep.attention_map(h, power)
    assert ours.shape == (2, 9)
    assert_close(ours.norm(dim=1), torch.ones(2))
    assert_close(rep.attention_map(-scale * h, power), ours, rtol=1e-3, atol=1e-4)


def test_attention_loss_knows_its_ends():
    left, right = torch.zeros(2, 1, 3, 2, 2)
    left[:, :, 0, 0], right[:, :, 1, 1] = 2.0, 5.0
    assert float(rep.attention_loss([left], [left])) == 0
    assert float(rep.attention_loss([left], [right])) == 2
    wide = left.repeat(1, 1, 1, 1).expand(1, 3, 2, 2).repeat(1, 4, 1, 1)
    assert float(rep.attention_loss([left], [wide])) == pytest.approx(0, abs=1e-12)


def test_dream_loss_is_the_sum_of_its_parts(dice):
    a, b = maps(dice), maps(dice)
    parts = rep.regression_loss(a, b), rep.attention_loss(a, b)
    assert_close(rep.dream_loss(a, b, attention=3.0), parts[0] + 3 * parts[1])
    assert_close(rep.dream_loss(a, b, attention=0.0), parts[0])


def test_hint_is_half_the_mean_square_after_the_regressor(dice):
    student, teacher = maps(dice)[0], torch.zeros(3, 2, 8, 8, dtype=torch.float64)
    regressor = nn.Conv2d(4, 2, 1).double()
    want = regressor(student).square().mean() / 2
    assert_close(rep.hint_loss(student, teacher, regressor), want)


def test_soft_labels_equal_the_divergence_and_vanish_where_equal(dice):
    a, b = torch.randn(2, 6, 5, generator=dice, dtype=torch.float64)
    p, q = F.softmax(b / 3, 1), F.softmax(a / 3, 1)
    want = 9 * (p * (p / q).log()).sum(1).mean()
    assert_close(rep.soft_label_loss(a, b, 3.0), want)
    assert float(rep.soft_label_loss(a, a + 4, 3.0)) == pytest.approx(0, abs=1e-12)


def test_at_high_temperature_soft_labels_match_centred_logits(dice):
    a, b = torch.randn(2, 6, 5, generator=dice, dtype=torch.float64)
    a.requires_grad_()
    rep.soft_label_loss(a, b, 1e4).backward()
    gap = (a - b).detach()
    centred = gap - gap.mean(1, keepdim=True)
    assert_close(a.grad, centred / 5 / 6, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a, b: rep.regression_loss(a, b[:1]), "2 levels and teacher 1"),
        (lambda a, b: rep.regression_loss([], []), "0 levels"),
        (lambda a, b: rep.regression_loss(a, b[::-1]), "level 0.*must agree"),
        (lambda a, b: rep.attention_loss(a, b[::-1]), "level 0.*must agree"),
        (lambda a, b: rep.attention_map(a[0], 0), "power"),
        (lambda a, b: rep.hint_loss(a[0], b[1], nn.Identity()), "must be equal"),
        (lambda a, b: rep.soft_label_loss(a[0], b[0], 0.0), "temperature"),
        (lambda a, b: rep.soft_label_loss(a[0], b[1]), "must be equal"),
        (lambda a, b: rep.FeatureRegressor([4, 6], [8]), "2 levels"),
    ],
)
def test_bad_input_is_explained(call, words, dice):
    with pytest.raises(ValueError, match=words):
        call(maps(dice), maps(dice))


# Students


def test_regressor_answers_every_level_and_hands_context_down(dice):
    torch.manual_seed(0)
    regressor = rep.FeatureRegressor([4, 6], [7, 9], width=8)
    fine, coarse = (h.float() for h in maps(dice))
    out = regressor([fine, coarse])
    assert [tuple(h.shape) for h in out] == [(3, 7, 8, 8), (3, 9, 4, 4)]
    moved = regressor([fine, coarse + 1])
    assert (moved[0] - out[0]).abs().max() > 1e-3
    same = regressor([fine + 1, coarse])
    assert_close(same[1], out[1])


def test_pyramid_pooling_sees_the_whole_map():
    torch.manual_seed(0)
    pool = rep.PyramidPooling(6)
    h = torch.randn(1, 6, 8, 8)
    far = h.clone()
    far[..., 7, 7] += 10
    change = (pool(far) - pool(h)).abs().sum(1)[0]
    assert change[0, 0] > 0


def taught(**options):
    """A student taught by another encoder's stages, and how the loss went."""
    torch.manual_seed(0)
    teacher = Encoder(size=16, width=8)
    student = Encoder(size=16, width=8, outputs=3)
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        aims = teacher.stages(images)
    pairs = {name: name for name in teacher.blocks()[1:]}
    dice = torch.Generator().manual_seed(2)
    losses = rep.pretrain(
        student, images, aims, pairs, width=16, generator=dice,
        **{"steps": 20, "batch_size": 8} | options,
    )  # fmt: skip
    return student, losses


def test_pretraining_lowers_the_loss_and_repeats():
    student, losses = taught()
    again, same = taught()
    assert losses[-1] < 0.8 * losses[0]
    assert losses == same
    assert_close(student.state_dict(), again.state_dict())


def test_pretraining_leaves_the_head_alone():
    torch.manual_seed(0)
    Encoder(size=16, width=8)
    fresh = Encoder(size=16, width=8, outputs=3)
    student, _ = taught(steps=2)
    assert_close(student.head.weight, fresh.head.weight)
    assert (student.stem.weight - fresh.stem.weight).abs().max() > 0


def test_another_grid_is_averaged_to_the_stages():
    torch.manual_seed(0)
    student, images = Encoder(size=16, width=8), torch.rand(8, 3, 16, 16)
    aims = {"wide": torch.randn(8, 5, 16, 16)}
    losses = rep.pretrain(student, images, aims, {"stage.2": "wide"}, steps=2)
    assert len(losses) == 2


@pytest.mark.parametrize(
    ("teacher", "pairs", "words"),
    [
        ({"a": torch.ones(8, 2, 4, 4)}, {}, "pairs is empty"),
        ({"a": torch.ones(8, 2, 4, 4)}, {"stage.9": "a"}, 'stage "stage.9" is unknown'),
        ({"a": torch.ones(8, 2, 4, 4)}, {"stage.2": "b"}, 'block "b" is unknown'),
        ({"a": torch.ones(7, 2, 4, 4)}, {"stage.2": "a"}, "for 8 images"),
        ({"a": torch.ones(8, 2)}, {"stage.2": "a"}, "pool='none'"),
        ({"a": torch.full((8, 2, 4, 4), torch.nan)}, {"stage.2": "a"}, "NaN"),
    ],
)
def test_pretraining_explains_what_does_not_fit(teacher, pairs, words):
    with pytest.raises(ValueError, match=words):
        rep.pretrain(Encoder(width=8), torch.ones(8, 3, 32, 32), teacher, pairs)


def test_fine_tuning_learns_labels_and_accuracy_counts_them():
    torch.manual_seed(0)
    net = Encoder(size=16, width=8, outputs=2)
    labels = torch.arange(16) % 2
    images = torch.rand(16, 3, 16, 16) * 0.2 + labels[:, None, None, None]
    losses = rep.fine_tune(net, images, labels, steps=25, batch_size=16)
    assert losses[-1] < 0.5 * losses[0]
    assert rep.accuracy(net, images, labels) == 1.0
    assert rep.accuracy(net, images, 1 - labels, chunk=5) == 0.0
    with pytest.raises(ValueError, match="labels have shape"):
        rep.fine_tune(net, images, labels[:3])
