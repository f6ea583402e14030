"""Which noise level to look at, chosen image by image: RepFusion's policy.

The levels are the arms of a contextual bandit. A network sees the image, draws an arm,
is paid with minus the loss of a task, and climbs the expected pay by REINFORCE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.errors import lookup, require, require_finite, require_same_shape

# The gradient of the expected reward


def leave_one_out(rewards: Tensor) -> Tensor:
    """For each sample the mean reward of the others.

    A sample's own reward stays out, so that its baseline does not depend on its arm
    and the gradient stays unbiased.

    Args:
        rewards: shape (B,), B at least 2.

    Returns:
        shape (B,).

    Raises:
        ValueError: if there is one reward alone, or another shape.
    """
    require(
        rewards.dim() == 1 and len(rewards) >= 2,
        f"rewards must have shape (B,) with B of 2 or more, got {tuple(rewards.shape)}",
    )
    return (rewards.sum() - rewards) / (len(rewards) - 1)


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.zeros_like,
    "leave_one_out": leave_one_out,
}


def reinforce_loss(
    log_probs: Tensor,
    arms: Tensor,
    rewards: Tensor,
    baseline: str = "leave_one_out",
    entropy: float = 0.0,
) -> Tensor:
    """A loss whose gradient is minus an unbiased estimate of that of E[reward].

    Its value means nothing. -(mean over samples) (R - b) log pi(a | x), where no
    gradient goes through R - b.

    Args:
        log_probs: log pi(. | x), shape (B, K).
        arms: which arm was drawn from it, shape (B,), int64.
        rewards: what it paid, shape (B,).
        baseline: "leave_one_out", or "none" for b = 0.
        entropy: weight of the policy's entropy (nats), added to the objective so
            that it goes on trying all arms.

    Returns:
        shape ().

    Raises:
        ValueError: if shapes differ, a reward is not finite, or the baseline is
            unknown.

    Source: REINFORCE (Williams, 1992), as (arXiv 2308.10916) uses it.
    """
    require(
        log_probs.dim() == 2 and arms.shape == log_probs.shape[:1],
        f"log_probs {tuple(log_probs.shape)} and arms {tuple(arms.shape)} must be "
        "(B, K) and (B,)",
    )
    require_same_shape(rewards, arms, "rewards and arms")
    rewards = rewards.detach()
    require_finite(rewards, "rewards")
    advantage = rewards - lookup(BASELINES, baseline, "baseline")(rewards)
    loss = -(advantage * log_probs.gather(1, arms[:, None])[:, 0]).mean()
    if entropy:
        loss = loss + entropy * (log_probs.exp() * log_probs).sum(1).mean()
    return loss


def expected_reward(log_probs: Tensor, rewards: Tensor) -> Tensor:
    """The mean over samples of sum_k pi(k | x) R_k, where all rewards are known.

    Args:
        log_probs: log pi(. | x), shape (B, K).
        rewards: what each arm pays, shape (B, K).

    Returns:
        shape (), with a gradient.
    """
    require_same_shape(log_probs, rewards, "log_probs and rewards")
    return (log_probs.exp() * rewards).sum(1).mean()


def exact_gradient(log_probs: Tensor, rewards: Tensor) -> Tensor:
    """The gradient of `expected_reward` in the logits: pi_k (R_k - V(x)) / B.

    Args, Raises: as of `expected_reward`.

    Returns:
        shape (B, K); each row sums to 0.
    """
    require_same_shape(log_probs, rewards, "log_probs and rewards")
    shares = log_probs.exp()
    value = (shares * rewards).sum(1, keepdim=True)
    return shares * (rewards - value) / len(rewards)


# The policy, and its oracle


class Policy(nn.Module):
    """pi(arm | x): a network's K numbers a sample, made into probabilities.

    Args:
        net: maps what is seen, (B, ...), to (B, K).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """log pi(. | x), shape (B, K), of x (B, ...)."""
        return F.log_softmax(self.net(x), dim=1)

    @torch.no_grad()
    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """An arm for each sample, drawn: (B, ...) to (B,)."""
        return draw(self(x), generator)

    @torch.no_grad()
    def best(self, x: Tensor) -> Tensor:
        """The likeliest arm of each sample: (B, ...) to (B,)."""
        return self(x).argmax(1)


def draw(log_probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One arm (B,) for each row of log-probabilities (B, K)."""
    shares = log_probs.detach().exp()
    return torch.multinomial(shares, 1, generator=generator)[:, 0]


@dataclass(frozen=True)
class Bandit:
    """A contextual bandit whose truth is known: the oracle of this room.

    Args:
        means: the mean reward of each arm in each context, shape (C, K).
        std: standard deviation of the noise on a reward.
    """

    means: Tensor
    std: float = 0.0

    def contexts(self) -> Tensor:
        """The contexts as the policy sees them: one-hot, shape (C, C)."""
        return torch.eye(len(self.means), dtype=self.means.dtype)

    def pay(self, rows: Tensor, arms: Tensor, generator: torch.Generator) -> Tensor:
        """Rewards (B,) of arms (B,) in contexts (B,)."""
        noise = torch.randn(arms.shape, generator=generator, dtype=self.means.dtype)
        return self.means[rows, arms] + self.std * noise

    def best(self) -> Tensor:
        """The best arm of each context, shape (C,)."""
        return self.means.argmax(1)
