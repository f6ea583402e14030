"""Chapter 9's check of the loss that teaches a classifier to read noisy data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from diffedu.checks.ch03_fields import whole
from diffedu.checks.machinery import Exercise, Function, Property

Inputs = dict[str, Any]
Classifier = Callable[[Tensor, Tensor], Tensor]


def _classifier(dim: int, classes: int, g: Generator) -> Classifier:
    """Smooth logits of points and times: (B, dim), (B,) to (B, classes)."""
    into = torch.randn(6, dim + 1, generator=g)
    out = 2 * torch.randn(classes, 6, generator=g)

    def logits(x: Tensor, t: Tensor) -> Tensor:
        seen = torch.cat([x, 3 * t[:, None].to(x)], 1)
        return torch.tanh(seen @ into.T.to(x)) @ out.T.to(x)

    return logits


def _labelled(g: Generator) -> Inputs:
    size, dim, classes = whole(5, 9, g), whole(2, 5, g), whole(3, 6, g)
    x0, eps = torch.randn(2, size, dim, generator=g)
    t = 0.1 + 0.8 * torch.rand(size, generator=g)
    label = torch.randint(classes, (size,), generator=g)
    return {
        "classifier": _classifier(dim, classes, g), "x0": x0, "label": label, "t": t,
        "alpha": (1.3 * t).cos(), "sigma": (1.3 * t).sin(), "eps": eps,
    }  # fmt: skip


def _loss(
    classifier: Classifier, x0: Tensor, label: Tensor, t: Tensor, alpha: Tensor,
    sigma: Tensor, eps: Tensor, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    x_t = alpha[:, None] * x0 + sigma[:, None] * eps
    return cross_entropy(classifier(x_t, t), label, reduction=reduction)


def _by_logit(f: Classifier, x0, label, t, alpha, sigma, eps) -> Tensor:
    logits = f(alpha[:, None] * x0 + sigma[:, None] * eps, t)
    return -logits.gather(1, label[:, None]).mean()


def _by_softmax(f: Classifier, x0, label, t, alpha, sigma, eps) -> Tensor:
    return _loss(lambda x, t: f(x, t).softmax(1), x0, label, t, alpha, sigma, eps)


def _over_batch(f: Classifier, x0, label, t, alpha, sigma, eps) -> Tensor:
    logits = f(alpha[:, None] * x0 + sigma[:, None] * eps, t)
    return -logits.log_softmax(0).gather(1, label[:, None]).mean()


def _trains(answer: Function, g: Generator) -> bool:
    inputs = _labelled(g)
    net = torch.nn.Linear(inputs["x0"].shape[1], 6)
    inputs["classifier"] = lambda x, t: net(x)
    loss = answer(*inputs.values())
    return isinstance(loss, Tensor) and loss.shape == () and loss.requires_grad


noisy_loss = Exercise(
    "noisy_loss",
    draw=_labelled,
    truth=_loss,
    mistakes={
        "the classifier is shown the clean data":
            lambda f, x0, y, t, a, s, e: _loss(f, x0, y, t, a**0, 0 * s, e),
        "the classifier is told no time, or always the same one":
            lambda f, x0, y, t, a, s, e: _loss(f, x0, y, 0 * t, a, s, e),
        "the data are noised without being scaled by alpha":
            lambda f, x0, y, t, a, s, e: _loss(f, x0, y, t, a**0, s, e),
        "the data are scaled, and no noise is added":
            lambda f, x0, y, t, a, s, e: _loss(f, x0, y, t, a, 0 * s, e),
        "the classifier is shown the noise alone":
            lambda f, x0, y, t, a, s, e: _loss(f, x0, y, t, 0 * a, s**0, e),
        "all samples get the first one's level":
            lambda f, x0, y, t, a, s, e: _loss(f, x0, y, t, *(
                v[:1].expand(len(t)) for v in (a, s)), e),
        "alpha is taken for alpha_bar: both factors have a root too many":
            lambda f, x0, y, t, a, s, e: _loss(f, x0, y, t, a.sqrt(),
                                               (1 - a).sqrt(), e),
        "the noise is not scaled by sigma":
            lambda f, x0, y, t, a, s, e: _loss(f, x0, y, t, a, s**0, e),
        "sigma is squared: it is a standard deviation":
            lambda f, x0, y, t, a, s, e: _loss(f, x0, y, t, a, s**2, e),
        "alpha and sigma are exchanged":
            lambda f, x0, y, t, a, s, e: _loss(f, x0, y, t, s, a, e),
        "logits are treated as log-probabilities; log_softmax is missing":
            _by_logit,
        "the softmax runs over the batch, where it runs over the classes":
            _over_batch,
        "the logits pass a softmax before a cross-entropy that has one of its own":
            _by_softmax,
        "a sum is taken over the batch, where a mean is asked":
            lambda *a: _loss(*a, reduction="sum"),
        "the log-likelihood is returned; a loss has the other sign":
            lambda *a: -_loss(*a),
    },
    properties=(
        Property(
            "its value is right, but a loss is one tensor of shape () whose gradient "
            "reaches the classifier; look for detach, item or no_grad",
            _trains,
        ),
    ),
)  # fmt: skip
