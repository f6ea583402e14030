"""Heads: what is fitted to frozen features, from a linear one to a transformer.

A head holds settings. Its `fit(x, y, generator)` makes every choice on a validation
split of those rows and answers a fitted head with `.logits(x)` and `.predict(x)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffedu.features.fusion import Fusion, token_sets
from diffedu.features.learners import (
    Fitted,
    check_features,
    check_labels,
    draw_weights,
    own,
    train,
)
from diffedu.features.pixels import PixelEnsemble
from diffedu.metrics.inputs import at_least_float32
from diffedu.metrics.logistic import logistic, standard
from diffedu.metrics.probe import STRENGTHS, check_strengths, split_rows

__all__ = ["AttentionFusion", "Fitted", "Linear", "MLP", "PixelEnsemble"]


@dataclass(frozen=True)
class Linear:
    """Logistic regression by L-BFGS on standardised features, as `linear_probe` has it.

    `strengths`: of the L2 penalty strength / 2 * |weight|^2 beside the mean
    cross-entropy; the one with the best accuracy on a validation split is chosen,
    of equals the strongest, and all rows are fitted with it. One alone is taken
    as it is. `validation`: the share of the rows that choose, of every class.
    """

    strengths: Sequence[float] = STRENGTHS
    validation: float = 0.2

    def fit(
        self, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Fitted:
        """Fit to features (N, D) and integer labels (N,).

        Raises:
            TypeError: if features are no floating-point tensor or labels no integers.
            ValueError: if a shape, a value or a setting does not fit.
        """
        x, classes, y = _vectors(x, y)
        rows, held = split_rows(y, self.validation, generator)
        tried = self.try_on(x, y, len(classes), rows, held)
        best = max(tried, key=lambda s: (_accuracy(tried[s], y[held]), s))
        return Fitted(
            _linear(logistic(x, y, len(classes), best)),
            classes,
            _accuracy(tried[best], y[held]),
            best,
        )

    def try_on(
        self, x: Tensor, y: Tensor, classes: int, rows: Tensor, held: Tensor
    ) -> dict[float, Tensor]:
        """Class scores (M, C) of held-out rows, for each strength fitted to the others.

        Args:
            x: features, shape (N, D).
            y: numbers of classes, shape (N,).
            classes: how many there are, C.
            rows, held: indices of the rows to fit and of the M others.
        """
        check_strengths(self.strengths)
        probes = {s: logistic(x[rows], y[rows], classes, s) for s in self.strengths}
        return {s: _linear(probe)(x[held]) for s, probe in probes.items()}


@dataclass(frozen=True)
class MLP:
    """A small network on standardised features: GDC's head (2307.08702).

    `hidden`: widths of its layers, each followed by ReLU. `steps`, `batch`, `lr`,
    `weight_decay`: of AdamW, the rate falling along a cosine. `validation`: share of
    the rows that choose after how many steps it is kept.
    """

    hidden: tuple[int, ...] = (128,)
    steps: int = 1000
    batch: int = 128
    lr: float = 3e-3
    weight_decay: float = 1e-2
    validation: float = 0.2

    def fit(
        self, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Fitted:
        """Fit to features (N, D) and integer labels (N,). Raises: as `Linear.fit`."""
        x, classes, y = _vectors(x, y)
        generator, (mean, scale) = own(generator), standard(x)
        widths = [x.shape[1], *self.hidden, len(classes)]
        layers = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        net = nn.Sequential(*[f for layer in layers for f in (layer, nn.ReLU())][:-1])
        draw_weights(net.to(x), generator)
        scaled = _First(net)
        accuracy, step = train(
            scaled, [(x - mean) / scale], y, steps=self.steps, batch=self.batch,
            lr=self.lr, weight_decay=self.weight_decay, validation=self.validation,
            generator=generator,
        )  # fmt: skip
        return Fitted(
            lambda x: net((x.to(mean) - mean) / scale), classes, accuracy, step
        )


@dataclass(frozen=True)
class AttentionFusion:
    """One transformer over the features of several blocks: DifFormer (2311.17921).

    Each block's features become tokens, at most `grid` x `grid` of them (the mean
    over cells), are normalised, projected to `width` and given a learned place. A
    learned query looks at all of them through `layers` layers and is read by a
    linear classifier. `heads`: of attention. `steps` to `validation`: as `MLP`.
    """

    width: int = 64
    layers: int = 1
    heads: int = 4
    grid: int = 4
    steps: int = 1000
    batch: int = 128
    lr: float = 3e-3
    weight_decay: float = 1e-2
    validation: float = 0.2

    def fit(
        self,
        x: Mapping[str, Tensor] | Sequence[Tensor],
        y: Tensor,
        generator: torch.Generator | None = None,
    ) -> Fitted:
        """Fit to several blocks' features and labels.

        Args:
            x: a dict or sequence of features, each (N, C, H, W), (N, tokens, C) or
                (N, C); C and the places may differ from block to block.
            y: integer labels, shape (N,).
            generator: draws the split, the weights and the batches.

        Raises:
            TypeError, ValueError: as `Linear.fit`.
        """
        sets, generator = token_sets(x, self.grid), own(generator)
        for tokens in sets:
            check_features(tokens, y, (3,), "(N, C, H, W), (N, tokens, C) or (N, C)")
        classes, y = check_labels(y, (len(sets[0]),))
        net = Fusion(
            [tuple(tokens.shape[1:]) for tokens in sets], self.width, len(classes),
            self.layers, self.heads, generator,
        ).to(sets[0])  # fmt: skip
        accuracy, step = train(
            net, sets, y, steps=self.steps, batch=self.batch, lr=self.lr,
            weight_decay=self.weight_decay, validation=self.validation,
            generator=generator,
        )  # fmt: skip
        return Fitted(lambda x: net(token_sets(x, self.grid)), classes, accuracy, step)


class _First(nn.Module):
    """A network of one input that is given a list of one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        """net of x[0] (B, D)."""
        return self.net(x[0])


def _vectors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, D) of 32 bits or more, classes (C,), numbers of classes (N,)."""
    classes, numbers = check_labels(y, tuple(x.shape[:1]))
    check_features(x, y, (2,), "(N, D), one row a sample: pool or .flatten(1)")
    return at_least_float32(x.detach()), classes, numbers


def _linear(probe: tuple[Tensor, Tensor, Tensor, Tensor]):
    """The function from features (N, D) to class scores (N, C)."""
    mean, scale, weight, bias = probe
    return lambda x: (x.to(mean) - mean) / scale @ weight.T + bias


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return int((logits.argmax(1) == y).sum()) / len(y)
