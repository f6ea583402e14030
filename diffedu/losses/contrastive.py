"""Features without labels: two views of one image agree, those of others do not.

SimCLR and VICReg differ in what keeps all images from getting one answer: other
images push away, or the spread of each feature is held up. What the views (views.py)
have in common is what can be learned.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.errors import require, require_same_shape
from diffedu.losses.views import augment, move, recolour, two_views

__all__ = [
    "VICRegTerms",
    "augment",
    "move",
    "nt_xent",
    "projector",
    "recolour",
    "simclr_loss",
    "two_views",
    "vicreg",
    "vicreg_loss",
    "vicreg_terms",
]

TEMPERATURE = 0.2


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """SimCLR's loss: find the other view of an image among all views of the batch.

    The mean over all 2B views of the cross-entropy, in nats, of choosing the partner
    from the 2B - 1 other views by cosine similarity / temperature. It couples the
    samples of a batch.

    Args:
        z1, z2: projections of the two views, shape (B, D); row i of both is image i.
        temperature: above 0; the smaller, the more the nearest views count.

    Returns:
        shape ().

    Raises:
        ValueError: if the shapes are unequal or not (B, D) with B >= 2, or the
            temperature is not above 0.

    Source: (2002.05709, eq. 1).
    """
    _check_projections(z1, z2)
    require(temperature > 0, f"temperature is {temperature}; it must be above 0")
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarity = similarity.masked_fill(itself, -torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(z1))
    return F.cross_entropy(similarity, partner)


class VICRegTerms(NamedTuple):
    """The three terms of VICReg before their weights, each of shape ()."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg_terms(
    z1: Tensor, z2: Tensor, target: float = 1.0, eps: float = 1e-4
) -> VICRegTerms:
    """What VICReg adds up; variance and covariance are summed over the two views.

    invariance: the mean over images of |z1 - z2|^2. variance: the mean over features
    of how far sqrt(var + eps) falls short of the target. covariance: the squares of
    all covariances of two different features, summed, / D.

    Args:
        z1, z2: projections of the two views, shape (B, D); row i of both is image i.
        target: the standard deviation that every feature should have.
        eps: keeps the root smooth at 0.

    Returns:
        the three terms.

    Raises:
        ValueError: if the shapes are unequal or not (B, D) with B >= 2.

    Source: (2105.04906, eqs. 1 to 5). The released code takes the mean over features
    in the invariance too, and half of the variance.
    """
    _check_projections(z1, z2)
    variance = covariance = z1.new_zeros(())
    for z in (z1, z2):
        spread = (z.var(0) + eps).sqrt()
        variance = variance + F.relu(target - spread).mean()
        centred = z - z.mean(0)
        c = centred.T @ centred / (len(z) - 1)
        apart = c.square().sum() - c.diagonal().square().sum()
        covariance = covariance + apart / z.shape[1]
    invariance = (z1 - z2).square().sum(1).mean()
    return VICRegTerms(invariance, variance, covariance)


def vicreg(
    z1: Tensor,
    z2: Tensor,
    weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
) -> Tensor:
    """VICReg's loss: views agree, features spread, and no two say the same.

    It couples the samples of a batch.

    Args:
        z1, z2: projections of the two views, shape (B, D); row i of both is image i.
        weights: of the terms (see `vicreg_terms`), in their order.

    Returns:
        shape ().

    Raises:
        ValueError: as `vicreg_terms`, or if there are not three weights of 0 or more.

    Source: (2105.04906, eq. 6).
    """
    require(
        len(weights) == 3 and min(weights) >= 0,
        f"weights is {weights}; give three numbers of 0 or more: for invariance, "
        "variance and covariance",
    )
    terms = vicreg_terms(z1, z2)
    return sum((w * term for w, term in zip(weights, terms, strict=True)), z1.sum() * 0)


def projector(
    dim: int, hidden: int = 128, outputs: int = 64, standardise: bool = True
) -> nn.Sequential:
    """The head between features (B, dim) and the loss, (B, outputs); dropped later.

    What the loss throws away is thrown away here, and the features before it keep
    more (2002.05709, section 4.2). It standardises over the batch, always the one at
    hand: at first all images look nearly alike, and a loss of angles sees nothing
    until their mean is taken off. So it couples the samples of a batch.

    Args:
        dim: numbers a feature vector.
        hidden: units of the layer between.
        outputs: numbers a projection.
        standardise: also the outputs; not for VICReg, which holds up their spread.
    """
    head = nn.Sequential(
        nn.Linear(dim, hidden, bias=False),
        nn.BatchNorm1d(hidden, track_running_stats=False),
        nn.SiLU(),
        nn.Linear(hidden, outputs, bias=False),
    )
    if standardise:
        head.append(nn.BatchNorm1d(outputs, affine=False, track_running_stats=False))
    return head


def simclr_loss(
    encoder: nn.Module,
    x0: Tensor,
    generator: torch.Generator | None = None,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """NT-Xent of an encoder on two views of images; no label is asked for.

    Args:
        encoder: has `features(x)` and a `projector`.
        x0: images in [-1, 1], shape (B, C, H, W).
        generator: source of the augmentations.
        temperature: as `nt_xent`.

    Returns:
        shape (), nats.
    """
    return nt_xent(*_projections(encoder, x0, generator), temperature)


def vicreg_loss(
    encoder: nn.Module, x0: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """VICReg of an encoder on two views of images; arguments as `simclr_loss`.

    Its projector does not standardise its outputs, or no variance could be missed.
    """
    return vicreg(*_projections(encoder, x0, generator))


def _projections(
    encoder: nn.Module, x0: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Both views' projections, from one pass through the encoder: (B, D) each."""
    views = torch.cat(two_views(x0, generator))
    first, second = encoder.projector(encoder.features(views)).chunk(2)
    return first, second


def _check_projections(z1: Tensor, z2: Tensor) -> None:
    require_same_shape(z1, z2, "z1 and z2")
    require(
        z1.dim() == 2 and len(z1) >= 2,
        f"projections have shape {tuple(z1.shape)}; they are (B, D) with B of 2 or "
        "more: an image is told apart from others",
    )
