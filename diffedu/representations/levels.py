"""Climbing the expected reward: a policy on a bandit, and one over noise levels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu import training
from diffedu.errors import require
from diffedu.representations.policy import Policy, draw, reinforce_loss

Pay = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def improve(
    policy: Policy,
    contexts: Tensor,
    pay: Pay,
    *,
    steps: int = 300,
    batch_size: int = 64,
    lr: float = 1e-2,
    baseline: str = "leave_one_out",
    entropy: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Climb the expected reward of a bandit, in place.

    Args:
        policy: the policy.
        contexts: what it sees, shape (N, ...).
        pay: called as `pay(rows, arms, generator)`, both (B,): the rewards (B,).
        steps, batch_size, lr: of the training.
        baseline, entropy: as of `reinforce_loss`.
        generator: source of contexts, arms and rewards, on the CPU.

    Returns:
        the mean reward of each step's batch.
    """
    generator = generator or torch.Generator()
    got: list[float] = []

    def loss(rows: Tensor, _: torch.Generator) -> Tensor:
        log_probs = policy(contexts[rows])
        arms = draw(log_probs, generator)
        rewards = pay(rows, arms, generator)
        got.append(float(rewards.mean()))
        return reinforce_loss(log_probs, arms, rewards, baseline, entropy)

    _climb(policy, loss, len(contexts), steps, batch_size, lr, generator)
    return got


def choose_levels(
    policy: Policy,
    head: nn.Module,
    images: Tensor,
    features: Tensor,
    labels: Tensor,
    *,
    steps: int = 400,
    batch_size: int = 64,
    lr: float = 3e-3,
    baseline: str = "leave_one_out",
    entropy: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Train a policy over noise levels and the head it is paid by, in place.

    Each step draws a level for each image; the head learns from the features there,
    and the policy is paid with minus the head's cross-entropy.

    Args:
        policy: sees the clean images.
        head: maps features (B, D) to logits (B, classes); one for all levels.
        images: shape (N, C, H, W).
        features: of every level, (K, N, D); bring the levels to one scale first.
        labels: shape (N,), int64.
        steps, batch_size, lr, baseline, entropy, generator: as of `improve`.

    Returns:
        the mean reward of each step's batch, in nats.

    Raises:
        ValueError: if the features are not (K, N, D) for N images, or a reward is
            not finite.

    Source: RepFusion's first stage (arXiv 2308.10916).
    """
    require(
        features.dim() == 3 and features.shape[1] == len(images) == len(labels),
        f"features must be (K, {len(images)}, D) and labels ({len(images)},), got "
        f"{tuple(features.shape)} and {tuple(labels.shape)}",
    )
    generator = generator or torch.Generator()
    got: list[float] = []

    def loss(rows: Tensor, _: torch.Generator) -> Tensor:
        log_probs = policy(images[rows])
        arms = draw(log_probs, generator)
        costs = F.cross_entropy(
            head(features[arms, rows]), labels[rows], reduction="none"
        )
        got.append(-float(costs.detach().mean()))
        climb = reinforce_loss(log_probs, arms, -costs, baseline, entropy)
        return costs.mean() + climb

    _climb([policy, head], loss, len(images), steps, batch_size, lr, generator)
    return got


def _climb(
    modules: nn.Module | list[nn.Module],
    loss: Callable[..., Tensor],
    samples: int,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
) -> None:
    """Train to the end on batches of row numbers."""
    rows = training.batches(torch.arange(samples), batch_size, generator=generator)
    for _ in training.fit(
        modules, loss, rows, steps=steps, lr=lr, ema=None, progress=False,
        capture=False, generator=torch.Generator().manual_seed(0),
    ):  # fmt: skip
        pass
