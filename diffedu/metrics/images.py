"""PSNR and SSIM, one value an image.

Both depend on the range of the pixels: 2 for images in [-1, 1]. With 1 instead, the
PSNR of the same two images is 6.02 dB lower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import require, require_finite, require_same_device, require_same_shape
from ..tensors import batch_mean
from .inputs import at_least_float32, check_tensor, like_input


def psnr(a: Tensor, b: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio, 10 log10(data_range^2 / mean squared error).

    Args:
        a, b: images, shape (B, C, H, W).
        data_range: largest minus smallest pixel value possible.

    Returns:
        shape (B,), in dB; infinite for equal images.

    Raises:
        TypeError: if the images are no floating-point tensors.
        ValueError: if their shapes differ or aren't (B, C, H, W), the batch is empty,
            a value is not finite, or data_range is not above 0.
    """
    _check_images(a, b, data_range)
    error = batch_mean((at_least_float32(a) - at_least_float32(b)).square())
    return like_input(10 * torch.log10(data_range**2 / error), a, b)


def ssim(
    a: Tensor,
    b: Tensor,
    data_range: float = 2.0,
    window: int = 11,
    sigma: float = 1.5,
) -> Tensor:
    """Structural similarity with a Gaussian window over the valid region.

    Every channel by itself, then the mean over channels and places. Constants are the
    paper's: (0.01 data_range)^2 and (0.03 data_range)^2. Differentiable. (Libraries
    that mirror the margin and average over it too give another value.)

    Args:
        a, b: images, shape (B, C, H, W), H and W at least `window`.
        data_range: largest minus smallest pixel value possible.
        window: side of the window in pixels, odd. Images smaller than 11 need a
            smaller one by name: values with different windows can't be compared.
        sigma: the window's standard deviation in pixels.

    Returns:
        shape (B,), from -1 to 1; 1 for equal images.

    Raises:
        TypeError: if the images are no floating-point tensors.
        ValueError: if their shapes differ or aren't (B, C, H, W), the batch is empty,
            a value is not finite, data_range or sigma is not above 0, or the window
            is even or larger than the image.

    Source: (Wang et al., IEEE Trans. Image Process. 13, 2004, eq. 13).
    """
    _check_images(a, b, data_range)
    _check_window(window, sigma, min(a.shape[-2:]))
    x, y = at_least_float32(a), at_least_float32(b)
    weights = _gaussian(window, sigma, x)
    mean_x, mean_y = _smooth(x, weights), _smooth(y, weights)
    variances = _smooth(x * x + y * y, weights) - mean_x**2 - mean_y**2
    covariance = _smooth(x * y, weights) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return like_input(batch_mean(luminance * structure), a, b)


def _smooth(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of (B, C, H, W) over every window that lies inside the image."""
    planes = x.flatten(0, 1)[:, None]
    rows = torch.nn.functional.conv2d(planes, weights[None, None, :, None])
    both = torch.nn.functional.conv2d(rows, weights[None, None, None, :])
    return both.reshape(*x.shape[:2], *both.shape[-2:])


def _gaussian(window: int, sigma: float, like: Tensor) -> Tensor:
    """Gaussian weights (window,) that sum to 1."""
    # A softmax of the exponents is the Gaussian, already normalised.
    places = torch.arange(window, dtype=like.dtype, device=like.device)
    return torch.softmax(-((places - window // 2) ** 2) / (2 * sigma**2), dim=0)


def _check_images(a: Tensor, b: Tensor, data_range: float) -> None:
    for x, name in ((a, "a"), (b, "b")):
        check_tensor(x, name)
        require(
            x.dim() == 4 and x.numel() > 0,
            f"{name} has shape {tuple(x.shape)}; images are (B, C, H, W), none empty",
        )
        require_finite(x, name)
    require_same_shape(a, b, "a and b")
    require_same_device(a, b, "a and b")
    require(
        0 < data_range < float("inf"),
        f"data_range is {data_range}; it is largest minus smallest pixel value: "
        "2 for images in [-1, 1]",
    )


def _check_window(window: int, sigma: float, side: int) -> None:
    require(
        isinstance(window, int) and window >= 1 and window % 2 == 1,
        f"window is {window}; its side must be odd, as 11 or 7",
    )
    largest = side - 1 + side % 2
    require(
        window <= side,
        f"a window of {window} doesn't fit images whose smaller side is {side}; "
        f"name a smaller one, as window={min(7, largest)}, and print it with the value",
    )
    require(0 < sigma < float("inf"), f"sigma is {sigma}; it must be above 0")
