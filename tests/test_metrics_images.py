"""PSNR and SSIM: closed forms, torchmetrics, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffedu import metrics


def images(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1


def test_psnr_in_closed_form_one_value_an_image():
    a = torch.zeros(3, 1, 4, 4)
    offsets = torch.tensor([0.1, 0.2, 0.0]).reshape(3, 1, 1, 1)
    value = metrics.psnr(a, a + offsets)
    expected = [20 * math.log10(2 / 0.1), 20 * math.log10(2 / 0.2), math.inf]
    assert value.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_wrong_range_costs_six_decibels():
    a, b = images(0, 2, 3, 8, 8), images(1, 2, 3, 8, 8)
    gap = metrics.psnr(a, b, data_range=2.0) - metrics.psnr(a, b, data_range=1.0)
    torch.testing.assert_close(gap, torch.full_like(gap, 20 * math.log10(2)))
    assert round(float(gap[0]), 2) == 6.02
    assert (metrics.ssim(a, b, 2.0, 7) != metrics.ssim(a, b, 1.0, 7)).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.floats(-100, 100))
def test_ssim_symmetric_one_on_itself_and_alike_when_flipped(seed, low):
    a, b = images(seed, 2, 2, 12, 13), images(seed + 1, 2, 2, 12, 13)
    value = metrics.ssim(a, b)
    assert value.shape == (2,) and (value.abs() <= 1).all()
    torch.testing.assert_close(metrics.ssim(b, a), value)
    torch.testing.assert_close(metrics.ssim(a.flip(3), b.flip(3)), value)
    torch.testing.assert_close(metrics.ssim(a.mT, b.mT), value)
    torch.testing.assert_close(metrics.ssim(a, a), torch.ones_like(value))
    # Both in another unit, range named: the same value.
    torch.testing.assert_close(metrics.ssim(50 * a, 50 * b, 100.0), value)


def test_ssim_of_flat_images_is_their_luminance_term():
    a, b = torch.full((1, 1, 11, 11), 0.5), torch.full((1, 1, 11, 11), 0.25)
    c1 = 0.02**2
    expected = (2 * 0.5 * 0.25 + c1) / (0.5**2 + 0.25**2 + c1)
    assert float(metrics.ssim(a, b)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_agreement_with_torchmetrics(data_range):
    library = pytest.importorskip("torchmetrics.functional.image")
    a = images(0, 3, 2, 17, 20)
    b = (a + 0.3 * images(1, 3, 2, 17, 20)).clamp(-1, 1)
    options = {"reduction": "none", "data_range": data_range}
    # Its mean is taken over a mirrored margin too; inside, the maps agree.
    _, full = library.structural_similarity_index_measure(
        a, b, return_full_image=True, **options
    )
    inside = full[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(metrics.ssim(a, b, data_range), inside)
    psnr = library.peak_signal_noise_ratio(a, b, dim=(1, 2, 3), **options)
    torch.testing.assert_close(metrics.psnr(a, b, data_range), psnr)


def test_a_window_of_seven_for_digits_and_half_precision():
    a, b = images(0, 2, 1, 8, 8), images(1, 2, 1, 8, 8)
    value = metrics.ssim(a, b, window=7)
    assert value.dtype == torch.float64
    half = metrics.ssim(a.half(), b.half(), window=7)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), value, rtol=0, atol=2e-3)


def test_ssim_gradient():
    a, b = images(0, 1, 1, 7, 7).requires_grad_(), images(1, 1, 1, 7, 7)
    assert torch.autograd.gradcheck(lambda x: metrics.ssim(x, b, window=5), a)


GOOD = torch.zeros(2, 1, 16, 16)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
@pytest.mark.parametrize(
    "a, b, says",
    [
        (GOOD, GOOD[:1], "must be equal"),
        (GOOD[0], GOOD[0], "images are"),
        (GOOD[:0], GOOD[:0], "none empty"),
        (GOOD * torch.nan, GOOD, "NaN"),
        (GOOD, GOOD + torch.inf, "NaN or infinite"),
    ],
)
def test_bad_images(metric, a, b, says):
    with pytest.raises(ValueError, match=says):
        metric(a, b)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_bad_types_devices_and_ranges(metric):
    with pytest.raises(TypeError, match="uint8"):
        metric(GOOD.to(torch.uint8), GOOD)
    with pytest.raises(TypeError, match="as_tensor"):
        metric(GOOD.numpy(), GOOD)
    for data_range in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"2 for images in \[-1, 1\]"):
            metric(GOOD, GOOD, data_range=data_range)


def test_bad_windows():
    with pytest.raises(ValueError, match="window=7"):
        metrics.ssim(GOOD[..., :8], GOOD[..., :8])
    with pytest.raises(ValueError, match="window=3"):
        metrics.ssim(GOOD[..., :4], GOOD[..., :4], window=5)
    for window in (4, 0, -3, 7.0):
        with pytest.raises(ValueError, match="odd"):
            metrics.ssim(GOOD, GOOD, window=window)
    with pytest.raises(ValueError, match="sigma"):
        metrics.ssim(GOOD, GOOD, sigma=0)
