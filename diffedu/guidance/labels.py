"""Guidance towards a label: by a classifier's gradient, or by two looks of one net."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from diffedu.denoiser import DenoiserBase, checked_inputs
from diffedu.errors import require
from diffedu.guidance.base import (
    Guidance,
    Scale,
    as_batch,
    checked_scale,
    mixed,
    scale_for,
    score_added,
)
from diffedu.prediction import Prediction
from diffedu.schedules import Schedule
from diffedu.tensors import per_sample
from diffedu.worlds.mixtures import GaussianMixture


class ClassifierFree(Guidance):
    """Classifier-free guidance: u + scale (c - u), with and without the condition.

    Args:
        inner: a denoiser trained with and without its condition.
        scale: 0 unconditional, 1 conditional, above 1 guided; a number or shape (B,).
            The papers' w is scale - 1.
        instead: the condition of u, such as `{"label": other}` (a negative prompt);
            None leaves every condition out.

    Source: (arXiv 2207.12598, eq. 6).
    """

    def __init__(
        self,
        inner: DenoiserBase,
        scale: Scale,
        instead: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(inner)
        self.scale, self.instead = checked_scale(scale), dict(instead or {})

    def forward(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> Prediction:
        """Look at x_t of shape (B, ...) at t of shape () or (B,), twice."""
        told = self.inner(x, t, **condition)
        return mixed(self.inner(x, t, **self.instead), told, self.scale)


class ClassifierGuidance(Guidance):
    """Classifier guidance: score + scale grad log p(label | x_t).

    Args:
        inner: any denoiser.
        classifier: called as `classifier(x, t)` with x (B, ...) and t (B,); logits of
            shape (B, classes). It has to know noisy images, at every noise level.
        scale: 0 unconditional; 1 conditional, if the classifier is exact; a number or
            shape (B,). It is the papers' s of an unconditional net, not w + 1.
        tell_inner: also hand the label to the inner denoiser.

    The label may be -1, or left out by `keep`, for samples that are not guided.
    Gradients are turned on inside, so samplers that run without them can use it.

    Source: (arXiv 2105.05233, algorithm 2).
    """

    def __init__(
        self,
        inner: DenoiserBase,
        classifier: Callable[[Tensor, Tensor], Tensor],
        scale: Scale,
        tell_inner: bool = False,
    ) -> None:
        super().__init__(inner)
        require(callable(classifier), f"a classifier is called, got {classifier!r}")
        self.classifier, self.scale = classifier, checked_scale(scale)
        self.tell_inner = tell_inner

    def plain(
        self, x: Tensor, t: Tensor | float, label: Tensor | None = None,
        keep: Tensor | None = None, **condition: Tensor | None,
    ) -> Prediction:  # fmt: skip
        """What x (B, ...) at t () or (B,) looks like without the classifier."""
        told = {"label": label, "keep": keep} if self.tell_inner else {}
        return self.inner(x, t, **told, **condition)

    def forward(
        self, x: Tensor, t: Tensor | float, label: Tensor | None = None,
        keep: Tensor | None = None, **condition: Tensor | None,
    ) -> Prediction:  # fmt: skip
        """Look at x_t of shape (B, ...) at t () or (B,), with labels () or (B,)."""
        seen = self.plain(x, t, label=label, keep=keep, **condition)
        if label is None:
            return seen
        push = self.gradient(x, t, label, keep)
        return score_added(seen, scale_for(self.scale, x) * push)

    def gradient(
        self, x: Tensor, t: Tensor | float, label: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """grad_x log p(label | x_t), shape (B, ...); 0 for a sample without a label.

        Args:
            x: x_t, shape (B, ...).
            t: its time, shape () or (B,).
            label: class numbers, shape () or (B,); -1 for none.
            keep: who keeps its label, shape () or (B,), bool.
        """
        asked = label >= 0 if keep is None else (label >= 0) & keep
        asked, label = asked.expand(len(x)), label.clamp(min=0).expand(len(x))
        training = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            x = x if training else x.detach().requires_grad_()
            logits = self.classifier(x, as_batch(t, x))
            ok = logits.dim() == 2 and len(logits) == len(x)
            require(ok, f"logits need shape ({len(x)}, classes), got {logits.shape}")
            chosen = logits.log_softmax(1).gather(1, label[:, None])[:, 0]
            total = (chosen * asked).sum()
            return torch.autograd.grad(total, x, create_graph=training)[0]


class ExactClassifier(nn.Module):
    """The classifier of a mixture's noisy points, exact at every noise level.

    Args:
        mixture: the data, with their labels.
        schedule: the path that the points lie on.
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule) -> None:
        super().__init__()
        self.mixture, self.schedule = mixture, schedule

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log p(x_t, label) + const, (B, classes), for x (B, D) and t () or (B,)."""
        t, data = checked_inputs(x, t), self.mixture
        alpha, sigma = (per_sample(c.to(x), x) for c in self.schedule.coefficients(t))
        alpha, sigma = (c.reshape(-1, 1, 1) for c in (alpha, sigma))
        spread = alpha**2 * data.spectrum + sigma**2
        away = x[:, None] - alpha * data.means
        if data.axes is not None:
            away = torch.einsum("kde,nkd->nke", data.axes, away)
        cost = (away.square() / spread + spread.log()).sum(-1)
        each = data.weights.log() - 0.5 * cost
        classes = range(int(data.labels.max()) + 1)
        return torch.stack(
            [each[:, data.labels == k].logsumexp(1) for k in classes], dim=1
        )
