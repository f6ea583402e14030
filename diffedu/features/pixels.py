"""An ensemble of small networks, each reading one pixel's features: DDPM-Seg's head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from diffedu.errors import lookup, require
from diffedu.features.learners import check_features, check_labels, own
from diffedu.metrics.inputs import at_least_float32
from diffedu.metrics.logistic import standard
from diffedu.training import fit


@dataclass(frozen=True)
class PixelEnsemble:
    """Networks that vote on every pixel's class (2112.03126).

    `members`: how many, each with its own start and its own batches. `hidden`:
    widths of their layers, each followed by ReLU and batch normalisation. `vote`:
    "majority" as in the paper (of equals the class of the highest mean probability)
    or "average" of probabilities. `steps`, `batch`, `lr`: of the training, by Adam's
    rule; features are standardised, which the paper leaves to the first layer.
    """

    members: int = 10
    hidden: tuple[int, ...] = (128, 32)
    steps: int = 400
    batch: int = 64
    lr: float = 1e-3
    vote: str = "majority"

    def fit(
        self, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> FittedPixels:
        """Fit to labelled pixels.

        Args:
            x: features, (N, C, H, W) or (pixels, C).
            y: integer labels, (N, H, W) or (pixels,).
            generator: draws the weights and the batches.

        Raises:
            TypeError: if features are no floating-point tensor or labels no integers.
            ValueError: if a shape, a value or a setting does not fit.
        """
        lookup(VOTES, self.vote, "vote")
        require(self.members >= 1, f"members is {self.members}; give 1 or more")
        check_features(x, y, (2, 4), "(N, C, H, W) or (pixels, C)")
        classes, y = check_labels(y, (len(x), *x.shape[2:]))
        rows, y = _pixels(at_least_float32(x.detach())), y.flatten()
        generator, (mean, scale) = own(generator), standard(rows)
        widths = [rows.shape[1], *self.hidden, len(classes)]
        net = Members(self.members, widths, generator).to(rows)
        rows = (rows - mean) / scale

        def draw(step: int) -> Tensor:
            shape = self.members, min(self.batch, len(rows))
            return torch.randint(len(rows), shape, generator=generator).to(rows.device)

        def loss_fn(chosen: Tensor, _: torch.Generator) -> Tensor:
            logits = net(rows[chosen])
            loss = cross_entropy(logits.flatten(0, 1), y[chosen].flatten())
            return self.members * loss  # each member's own loss, summed

        for _ in fit(
            net, loss_fn, draw, steps=self.steps, lr=self.lr, ema=None, clip=None,
            capture=False, progress=False, generator=torch.Generator(rows.device),
        ):  # fmt: skip
            pass
        return FittedPixels(net, mean, scale, classes, self.vote)


@dataclass(frozen=True)
class FittedPixels:
    """A fitted ensemble; features are (N, C, H, W) or (pixels, C).

    `net`: the `Members`. `mean`, `scale` (C,): of the features fitted to. `classes`
    (K,): the labels. `vote`: how they decide.
    """

    net: Members
    mean: Tensor
    scale: Tensor
    classes: Tensor
    vote: str

    @torch.no_grad()
    def members(self, x: Tensor) -> Tensor:
        """Every member's probabilities, (M, N, K, H, W) or (M, pixels, K)."""
        check_features(x, self.mean, (2, 4), "(N, C, H, W) or (pixels, C)")
        parts = [
            self.net(((rows.to(self.mean) - self.mean) / self.scale)[None])
            for rows in _pixels(x).split(8192)
        ]
        p = torch.cat(parts, 1).softmax(-1)
        if x.dim() == 2:
            return p
        grid = p.unflatten(1, (len(x), *x.shape[2:]))
        return grid.movedim(-1, 2)

    def logits(self, x: Tensor) -> Tensor:
        """Log of the mean probability, (N, K, H, W) or (pixels, K)."""
        return self.members(x).mean(0).clamp_min(1e-30).log()

    def votes(self, x: Tensor) -> Tensor:
        """The share of the members for each class, (N, K, H, W) or (pixels, K)."""
        return _shares(self.members(x))

    def predict(self, x: Tensor) -> Tensor:
        """The label of every pixel, (N, H, W) or (pixels,)."""
        return self.classes[VOTES[self.vote](self.members(x)).argmax(1)]

    def disagreement(self, x: Tensor) -> Tensor:
        """How much of the uncertainty is the members' disagreement, in nats.

        Jensen-Shannon divergence: entropy of the mean less the mean entropy, at
        least 0 and at most the log of the number of members.

        Args:
            x: features, (N, C, H, W) or (pixels, C).

        Returns:
            shape (N, H, W) or (pixels,).
        """
        p = self.members(x)
        return (_entropy(p.mean(0), 1) - _entropy(p, 2).mean(0)).clamp_min(0)


class Members(nn.Module):
    """Several networks of one shape, computed at once.

    Args:
        members: how many, M.
        widths: of input, hidden layers and output.
        generator: draws the weights.
    """

    def __init__(
        self, members: int, widths: list[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.norms = nn.ModuleList()
        for a, b in zip(widths, widths[1:], strict=False):
            bound = a**-0.5
            drawn = torch.rand(members, a, b, generator=generator)
            self.weights.append(bound * (2 * drawn - 1))
            self.biases.append(torch.zeros(members, 1, b))
        self.norms.extend(nn.BatchNorm1d(members * width) for width in widths[1:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (M, B, K) of features (M, B, C), or of the same (1, B, C) for all."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if i < len(self.norms):
                x = self._normal(self.norms[i], x.relu())
        return x

    @staticmethod
    def _normal(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
        """Batch normalisation of each member's units over its own batch."""
        flat = x.transpose(0, 1).flatten(1)
        return norm(flat).unflatten(1, (len(x), -1)).transpose(0, 1)


def _pixels(x: Tensor) -> Tensor:
    """Features (N, C, H, W) or (pixels, C) as (pixels, C)."""
    return x.movedim(1, -1).flatten(0, -2) if x.dim() == 4 else x


def _shares(p: Tensor) -> Tensor:
    """The share of members with that first choice; probabilities (M, n, K, ...)."""
    first = p.argmax(2, keepdim=True)
    return torch.zeros_like(p).scatter_(2, first, 1.0).mean(0)


def _majority(p: Tensor) -> Tensor:
    """Votes, and a share of less than one vote from the mean probability."""
    return _shares(p) * len(p) + p.mean(0) / 2


def _average(p: Tensor) -> Tensor:
    return p.mean(0)


VOTES = {"majority": _majority, "average": _average}


def _entropy(p: Tensor, axis: int) -> Tensor:
    """In nats."""
    return -torch.xlogy(p, p).sum(axis)
