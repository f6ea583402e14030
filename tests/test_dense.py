"""Pixel features, k-means and the depth reader."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as SklearnKMeans
from torch import nn

from diffedu import (
    Denoiser,
    GaussianMixture,
    claims,
    features,
    metrics,
    nets,
    schedules,
)
from diffedu import representations as rep


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(vocabulary: int | None = None) -> Denoiser:
    torch.manual_seed(0)
    net = nets.UNet(
        3, 16, width=8, multipliers=(1, 2), attention=(8,), vocabulary=vocabulary
    )
    for p in net.parameters():  # no layer that starts at zero
        nn.init.normal_(p, std=0.1)
    return Denoiser(net, schedules.cosine(), "v").eval()


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([8, 16, 32]))
def test_enlarged_coordinates_are_the_pixels_coordinates(n: int, size: int) -> None:
    step = size / n
    centres = step * torch.arange(n) + (step - 1) / 2
    row = rep.upsample(centres.expand(1, 1, n, n), size)[0, 0, 0]
    expected = torch.arange(float(size)).clamp(centres[0], centres[-1])
    torch.testing.assert_close(row, expected)


def test_nearest_copies_each_place() -> None:
    h = torch.randn(1, 2, 4, 4, generator=dice())
    wide = h.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(rep.upsample(h, 8, "nearest"), wide)


def test_upsample_refuses_tokens_and_unknown_modes() -> None:
    with pytest.raises(ValueError, match="unflatten"):
        rep.upsample(torch.zeros(1, 4, 3), 8)
    with pytest.raises(ValueError, match="bilinear"):
        rep.upsample(torch.zeros(1, 1, 4, 4), 8, "bilinaer")
    with pytest.raises(ValueError, match="size is 0"):
        rep.upsample(torch.zeros(1, 1, 4, 4), 0)


def test_pixel_features_are_the_recorded_states_in_order() -> None:
    denoise, x0 = small(), torch.randn(3, 3, 16, 16, generator=dice())
    noise = torch.randn(x0.shape, generator=dice(1))
    maps = rep.pixel_features(denoise, x0, [0.2, 0.5], ["up.1", "middle"], noise=noise)
    at = 0
    for t in (0.2, 0.5):
        x_t = denoise.schedule.add_noise(x0, t, noise)
        with features.record(denoise, ["up.1", "middle"]) as seen, torch.no_grad():
            denoise(x_t, t)
        for name in ("up.1", "middle"):
            h = seen[name]
            part = maps[:, at : at + h.shape[1]]
            torch.testing.assert_close(part, rep.upsample(h, 16))
            at += h.shape[1]
    assert at == maps.shape[1]


def test_pixel_features_do_not_depend_on_the_batch_and_average_noises() -> None:
    denoise, x0 = small(), torch.randn(4, 3, 16, 16, generator=dice())
    noise = torch.randn(2, *x0.shape, generator=dice(1))
    both = rep.pixel_features(denoise, x0, 0.3, "up.1", draws=2, noise=noise)
    each = [
        rep.pixel_features(denoise, x0, 0.3, "up.1", noise=n, batch_size=3)
        for n in noise
    ]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


def test_pixels_and_maps_are_inverses() -> None:
    maps = torch.randn(3, 5, 4, 4, generator=dice())
    rows = rep.as_pixels(maps)
    assert torch.equal(rows[4 + 2], maps[0, :, 1, 2])
    assert torch.equal(rep.as_maps(rows, 4).permute(0, 3, 1, 2), maps)
    with pytest.raises(ValueError, match="whole number of images"):
        rep.as_maps(rows[1:], 4)
    with pytest.raises(ValueError, match="N, D, H, W"):
        rep.as_pixels(rows)


def test_a_step_of_kmeans_is_sklearns() -> None:
    x = torch.randn(300, 3, generator=dice(), dtype=torch.float64)
    start = x[:5]
    theirs = SklearnKMeans(5, init=start.numpy(), n_init=1, tol=0).fit(x.numpy())
    centres = start
    for _ in range(100):
        labels, centres = rep.kmeans_step(x, centres)
    torch.testing.assert_close(centres, torch.tensor(theirs.cluster_centers_))
    assert torch.equal(labels, torch.tensor(theirs.labels_).long())


def test_kmeans_finds_the_mixtures_components() -> None:
    means = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0]])
    world = GaussianMixture([0.25] * 4, means.double(), [0.7] * 4)
    x, truth = world.sample(1000, dice(), labelled=True)
    found = rep.kmeans(x, 4, generator=dice(1))
    ideal = world.class_posterior(x).argmax(1)
    assert metrics.adjusted_rand_index(found.labels, ideal) > 0.99
    assert torch.equal(found.predict(x), found.labels)
    theirs = SklearnKMeans(4, n_init=4, random_state=0).fit(x.numpy())
    assert found.inertia == pytest.approx(theirs.inertia_, rel=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_no_step_of_kmeans_climbs(seed: int, k: int) -> None:
    x = torch.randn(40, 2, generator=dice(seed), dtype=torch.float64)
    centres, last = x[:k], math.inf
    for _ in range(6):
        height = float(torch.cdist(x, centres).amin(1).square().sum())
        assert height <= last + 1e-9
        last, (_, centres) = height, rep.kmeans_step(x, centres)


def test_kmeans_with_equal_rows_and_an_empty_centre() -> None:
    x = torch.ones(10, 2)
    assert rep.kmeans(x, 3, generator=dice()).inertia == 0.0
    far = torch.tensor([[1.0, 1.0], [9.0, 9.0]])
    assert torch.equal(rep.kmeans_step(x, far)[1], far)


@pytest.mark.parametrize(
    ("x", "k", "words"),
    [
        (torch.zeros(4, 2), 5, "take 1 to 4"),
        (torch.zeros(4, 2), 0, "take 1 to 4"),
        (torch.zeros(4, 2, 2), 1, "as_pixels"),
        (torch.full((4, 2), math.nan), 1, "NaN"),
    ],
)
def test_kmeans_refuses(x, k, words) -> None:
    with pytest.raises(ValueError, match=words):
        rep.kmeans(x, k)


def test_word_maps_are_distributions_over_the_words_that_stand() -> None:
    denoise, x = small(10), torch.randn(2, 3, 16, 16, generator=dice())
    caption = torch.tensor([[3, 4, 0, 0], [1, 2, 5, 6]])
    with torch.no_grad():
        maps = rep.word_maps(denoise, x, 0.2, caption)
    assert maps
    for each in maps.values():
        torch.testing.assert_close(each.sum(1), torch.ones_like(each[:, 0]))
        assert (each[0, 2:] == 0).all()
    with pytest.raises(ValueError, match="no captions"):
        rep.word_maps(small(), x, 0.2, caption)


def test_reading_changes_nothing_and_only_head_and_adapter_learn() -> None:
    denoise, x = small(10), torch.randn(2, 3, 16, 16, generator=dice())
    denoise.requires_grad_(False)
    caption = torch.tensor([[3, 4, 0, 0], [1, 2, 5, 6]])
    blocks = ["up.0", "up.1"]
    plain = rep.DepthReader(denoise, None, blocks).pyramid(x, caption)
    sizes = [h.shape[1] for h in plain]
    bare = rep.DepthReader(denoise, None, blocks, maps=False).pyramid(x, caption)
    assert sum(sizes) > sum(h.shape[1] for h in bare)
    adapter = rep.TextAdapter(denoise.net.condition.words.token.weight.shape[1])
    head = rep.PyramidHead(sizes, 16, 8)
    model = rep.DepthReader(denoise, head, blocks, adapter)
    answer = model(x, caption)
    assert answer.shape == (2, 16, 16)
    answer.square().mean().backward()
    assert adapter.gamma.grad.abs().max() > 0
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"head", "adapter"}
    for h, other in zip(plain, model.pyramid(x, caption), strict=True):
        torch.testing.assert_close(h, other, atol=1e-2, rtol=1e-2)


def test_an_adapter_starts_as_nearly_the_identity() -> None:
    words = torch.randn(2, 4, 8, generator=dice())
    torch.testing.assert_close(rep.TextAdapter(8)(words), words, atol=1e-3, rtol=0)


def test_depth_parts_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="at least one"):
        rep.PyramidHead([], 8)
    with pytest.raises(ValueError, match="1 or more"):
        rep.TextAdapter(0)
    with pytest.raises(ValueError, match="no captions"):
        rep.DepthReader(small(), None)
    zero = torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="no pixel"):
        rep.root_mean_square(zero, zero, zero.bool())


def test_root_mean_square_counts_the_mask_alone() -> None:
    truth, mask = torch.zeros(1, 2, 2), torch.tensor([[[True, True], [False, False]]])
    guess = torch.tensor([[[3.0, 1.0], [100.0, 0.0]]])
    assert rep.root_mean_square(guess, truth, mask) == pytest.approx(5**0.5)


def test_the_recorded_run_learns_from_more_labels() -> None:
    run = claims.recorded("f35")
    scores = torch.tensor(run["results"]["mean_iou"])
    assert scores.shape == (len(run["results"]["counts"]), len(run["seeds"]))
    assert bool((scores[-1] > scores[0]).all())
    assert bool((scores > 0.25).all() and (scores < 1).all())
