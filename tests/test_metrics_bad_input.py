"""What the feature metrics refuse, and that they say why."""

from __future__ import annotations

import math

import pytest
import torch

from diffedu import metrics

GOOD = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
PAIRED = {"cka": metrics.cka, "cknna": metrics.cknna}
UNPAIRED = {
    "frechet": metrics.frechet_distance,
    "extrapolated": metrics.frechet_extrapolated,
    "kid": metrics.kid,
    "kid_subsets": lambda a, b: metrics.kid_subsets(a, b, 2, 5),
    "mmd": metrics.mmd,
    "energy": metrics.energy_distance,
    "sliced": metrics.sliced_wasserstein,
    "precision": metrics.precision_recall,
}
ALL = {**PAIRED, **UNPAIRED}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "bad, says",
    [
        (GOOD[0], "features are"),
        (GOOD[None], "flatten"),
        (GOOD[:, :0], "features are"),
        (GOOD[:0], "has 0 samples"),
        (GOOD[:1], "has 1 samples"),
        (GOOD * torch.nan, "NaN"),
        (GOOD + torch.inf, "60 values"),
    ],
)
def test_bad_features_on_either_side(name, bad, says):
    for a, b in ((GOOD, bad), (bad, GOOD)):
        with pytest.raises(ValueError, match=says):
            ALL[name](a, b)


@pytest.mark.parametrize("name", ALL)
def test_bad_types(name):
    with pytest.raises(TypeError, match="int64"):
        ALL[name](GOOD.long(), GOOD)
    with pytest.raises(TypeError, match="ndarray"):
        ALL[name](GOOD, GOOD.numpy())


@pytest.mark.parametrize("name", UNPAIRED)
def test_different_widths(name):
    with pytest.raises(ValueError, match="3 columns but .* has 2"):
        UNPAIRED[name](GOOD, GOOD[:, :2])


@pytest.mark.parametrize("name", PAIRED)
def test_different_numbers_of_paired_samples(name):
    with pytest.raises(ValueError, match="20 rows but b has 15"):
        PAIRED[name](GOOD, GOOD[:15])
    with pytest.raises(ValueError, match="at least 4"):
        PAIRED[name](GOOD[:3], GOOD[:3])


@pytest.mark.parametrize("name", ALL)
def test_different_devices(name):
    with pytest.raises(ValueError, match="on cpu but"):
        ALL[name](GOOD, GOOD.to("meta"))


@pytest.mark.parametrize("k", [0, -1, 20, 99, 2.5])
def test_neighbours_out_of_range(k):
    for metric in (metrics.precision_recall, metrics.cknna):
        with pytest.raises(ValueError, match="from 1 to 19"):
            metric(GOOD, GOOD, k=k)


def test_options_out_of_range():
    for bandwidth in (0, -1.0, [], [1.0, math.nan], math.inf):
        with pytest.raises(ValueError, match="above 0"):
            metrics.mmd(GOOD, GOOD, bandwidth=bandwidth)
    for p in (0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="at least 1"):
            metrics.sliced_wasserstein(GOOD, GOOD, p=p)
    for projections in (0, torch.ones(4, 2), torch.ones(3), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="projections|direction"):
            metrics.sliced_wasserstein(GOOD, GOOD, projections)
    with pytest.raises(ValueError, match="points"):
        metrics.frechet_extrapolated(GOOD, GOOD, points=1)
    with pytest.raises(ValueError, match="2 to 20"):
        metrics.kid_subsets(GOOD, GOOD)
    with pytest.raises(ValueError, match="at least 2 neighbours"):
        metrics.cknna(GOOD, GOOD, k=1)
    with pytest.raises(ValueError, match='did you mean "linear"'):
        metrics.cka(GOOD, GOOD, kernel="liner")
    with pytest.raises(ValueError, match="bandwidth"):
        metrics.cka(GOOD, GOOD, kernel="rbf", bandwidth=0.0)


def test_nothing_to_compare():
    same = torch.full((20, 3), 0.1)
    for metric in PAIRED.values():
        with pytest.raises(ValueError, match="all rows of b are equal"):
            metric(GOOD, same)
    same[:5] = 1.0
    with pytest.raises(ValueError, match="no width"):
        metrics.cka(same, GOOD, kernel="rbf")


def test_bad_gaussians():
    zero, eye = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match="below 0"):
        metrics.frechet_gaussian(zero, eye, zero, torch.diag(torch.tensor([1.0, -1])))
    with pytest.raises(ValueError, match="symmetric"):
        metrics.frechet_gaussian(zero, eye, zero, eye + eye[0])
    with pytest.raises(ValueError, match=r"it is \(2, 2\)"):
        metrics.frechet_gaussian(zero, eye, zero, torch.eye(3))
    with pytest.raises(ValueError, match="both must be"):
        metrics.frechet_gaussian(zero, eye, torch.zeros(3), torch.eye(3))
    for bad in ((zero * torch.nan, eye), (zero, eye * torch.inf)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            metrics.frechet_gaussian(zero, eye, *bad)


def test_bad_lines():
    a = torch.zeros(2, 5)
    with pytest.raises(ValueError, match="only the last axis"):
        metrics.wasserstein_1d(a, a[:1])
    with pytest.raises(ValueError, match="last axis holds"):
        metrics.wasserstein_1d(a, a[:, :0])
    with pytest.raises(ValueError, match="NaN"):
        metrics.wasserstein_1d(a, a * torch.nan)


def test_bad_modes():
    with pytest.raises(ValueError, match="D must be equal"):
        metrics.mode_coverage(GOOD, torch.zeros(4, 2), 1.0)
    with pytest.raises(ValueError, match="radius"):
        metrics.mode_coverage(GOOD, torch.zeros(4, 3), 0.0)
    with pytest.raises(ValueError, match="modes has 0 samples"):
        metrics.mode_coverage(GOOD, torch.zeros(0, 3), 1.0)
