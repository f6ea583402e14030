"""The 2-D toys: their stated moments, supports and errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffedu.worlds import toys

STDS = {
    "eight_gaussians": ((0.5 + 0.01) ** 0.5, (0.5 + 0.01) ** 0.5),
    "moons": (
        (0.25 + 0.5 + 0.08**2) ** 0.5,
        # lower and upper mean differ by 2 (2/pi - 1/4): variance within plus between
        (0.5 - 4 / math.pi**2 + (2 / math.pi - 0.25) ** 2 + 0.08**2) ** 0.5,
    ),
    "checkerboard": (3**-0.5, 3**-0.5),
    "pinwheel": ((0.5 * (1 + 0.3**2 + 0.1**2)) ** 0.5,) * 2,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", toys.TOYS)
def test_mean_is_zero_within_five_standard_errors(name):
    x = toys.sample(name, 40_000, seeded(), torch.float64)
    error = x.std(0) / 200
    assert (x.mean(0).abs() < 5 * error).all()


@pytest.mark.parametrize("name", STDS)
def test_std_is_the_exact_one(name):
    x = toys.sample(name, 40_000, seeded(), torch.float64)
    square = x.square()
    wanted = torch.tensor(STDS[name], dtype=torch.float64).square()
    error = square.std(0) / 200
    assert ((square.mean(0) - wanted).abs() < 5 * error).all()


@pytest.mark.parametrize("name", toys.TOYS)
def test_std_lies_in_the_documented_range(name):
    std = toys.sample(name, 20_000, seeded()).std(0)
    assert ((std > 0.48) & (std < 0.92)).all()


def test_eight_gaussians_fit_their_parameters():
    weights, means, stds = toys.eight_gaussians_parameters()
    assert weights.shape == (8,) and means.shape == (8, 2) and stds.shape == (8,)
    x = toys.eight_gaussians(40_000, seeded(), torch.float64)
    distance = torch.cdist(x, means)
    nearest = distance.argmin(1)
    share = nearest.bincount(minlength=8) / 40_000
    assert ((share - 1 / 8).abs() < 5 * math.sqrt(7 / 64 / 40_000)).all()
    squared = (x - means[nearest]).square().mean()
    # a point that strays to the next spot is 3.8 std away: the loss is below 1e-4
    assert abs(squared - stds[0] ** 2) < 5 * 0.01 * math.sqrt(2 / 80_000) + 1e-4


def test_checkerboard_stays_on_dark_squares():
    x = toys.checkerboard(20_000, seeded())
    assert x.abs().max() <= 1
    square = ((x + 1) * 2).floor().clamp(0, 3).long()
    assert (square.sum(1) % 2 == 0).all()
    assert square.mul(torch.tensor([4, 1])).sum(1).unique().numel() == 8


def test_moons_have_two_halves_and_swiss_roll_its_radii():
    upper = toys.moons(4000, seeded())[:, 1] > 0
    assert 0.4 < upper.float().mean() < 0.6
    centre = torch.tensor([2.0, 2 / (3 * math.pi)]) / 10
    radius = (toys.swiss_roll(4000, seeded()) + centre).norm(dim=1)
    assert 0.3 < radius.min() < 0.5 and 1.35 < radius.max() < 1.6


@given(st.sampled_from(list(toys.TOYS)), st.integers(1, 50), st.booleans())
def test_shape_dtype_and_seed(name, n, double):
    dtype = torch.float64 if double else torch.float32
    x = toys.sample(name, n, seeded(3), dtype)
    assert x.shape == (n, 2) and x.dtype == dtype and x.isfinite().all()
    assert torch.equal(x, toys.TOYS[name](n, seeded(3), dtype))


def test_no_seed_is_hidden():
    assert not torch.equal(toys.moons(5), toys.moons(5))


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match='"moon" is unknown; did you mean "moons"'):
        toys.sample("moon", 5)


@pytest.mark.parametrize("n", [0, -3, 2.5, True, "ten", None])
@pytest.mark.parametrize("name", toys.TOYS)
def test_bad_counts_are_refused(name, n):
    with pytest.raises(ValueError, match="whole number from 1"):
        toys.sample(name, n)


def test_bad_generator_and_dtype_are_refused():
    with pytest.raises(TypeError, match=r"pass a torch\.Generator"):
        toys.moons(5, generator=0)
    for dtype in (torch.int64, torch.float16, "float32"):
        with pytest.raises(ValueError, match="not float32 or float64"):
            toys.moons(5, dtype=dtype)
