"""REINFORCE against the exact gradient, and policies that find the best level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from diffedu import representations as rep


def case(seed: int, samples: int = 4, arms: int = 3):
    """Logits and rewards (B, K), the rewards far from zero."""
    dice = torch.Generator().manual_seed(seed)
    logits, rewards = torch.randn(2, samples, arms, generator=dice, dtype=torch.float64)
    return logits.requires_grad_(), rewards + 3


def estimates(logits, rewards, baseline: str, draws: int = 800):
    """Gradient estimates of E[reward] in the logits, shape (draws, B, K)."""
    dice = torch.Generator().manual_seed(1)
    log_probs = F.log_softmax(logits.detach(), 1).repeat(draws, 1).requires_grad_()
    arms = rep.draw(log_probs, dice).reshape(draws, -1)
    found = []
    for each in arms:
        paid = rewards.gather(1, each[:, None])[:, 0]
        log_probs = F.log_softmax(logits, 1)
        loss = rep.reinforce_loss(log_probs, each, paid, baseline)
        found.append(-torch.autograd.grad(loss, logits)[0])
    return torch.stack(found)


# The gradient


@pytest.mark.parametrize("seed", range(10))
def test_exact_gradient_is_that_of_the_expected_reward(seed):
    logits, rewards = case(seed)
    log_probs = F.log_softmax(logits, 1)
    (want,) = torch.autograd.grad(rep.expected_reward(log_probs, rewards), logits)
    assert_close(rep.exact_gradient(log_probs.detach(), rewards), want)
    assert_close(want.sum(1), torch.zeros(4, dtype=want.dtype))


@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
def test_reinforce_is_unbiased(baseline):
    # two samples: a baseline with their own reward in it would halve the gradient
    logits, rewards = case(0, samples=2)
    found = estimates(logits, rewards, baseline)
    truth = rep.exact_gradient(F.log_softmax(logits.detach(), 1), rewards)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - truth).abs() < 5 * error).all()


@pytest.mark.parametrize("seed", range(2))
def test_the_baseline_lowers_the_variance(seed):
    logits, rewards = case(seed)
    plain, better = (
        estimates(logits, rewards, name, draws=200).var(0).sum()
        for name in ("none", "leave_one_out")
    )
    assert better < 0.5 * plain


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.floats(-5, 5), st.integers(0, 1000))
def test_leave_one_out_does_not_see_its_own_reward(samples, change, seed):
    rewards = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    before = rep.leave_one_out(rewards)
    rewards[0] += change
    after = rep.leave_one_out(rewards)
    assert_close(after[0], before[0], rtol=1e-4, atol=1e-5)
    shift = torch.full((samples - 1,), change / (samples - 1))
    assert_close(after[1:] - before[1:], shift, rtol=1e-3, atol=1e-4)


def test_no_gradient_goes_through_the_reward():
    logits, _ = case(0)
    paid = torch.ones(4, dtype=torch.float64, requires_grad=True)
    log_probs = F.log_softmax(logits, 1)
    rep.reinforce_loss(log_probs, torch.zeros(4).long(), paid * 2, "none").backward()
    assert paid.grad is None and logits.grad.abs().sum() > 0


def test_entropy_pushes_towards_uniform():
    logits, _ = case(0)
    log_probs = F.log_softmax(logits, 1)
    same = torch.ones(4, dtype=torch.float64)
    arms = torch.zeros(4).long()
    loss = rep.reinforce_loss(log_probs, arms, same, entropy=0.7)
    entropy = -(log_probs.exp() * log_probs).sum(1).mean()
    assert_close(loss, -0.7 * entropy)


# Policies


def test_draws_follow_the_policy():
    shares = torch.tensor([0.1, 0.2, 0.7])
    dice = torch.Generator().manual_seed(0)
    arms = rep.draw(shares.log().expand(20000, 3), dice)
    found = torch.bincount(arms, minlength=3) / 20000
    assert ((found - shares).abs() < 5 * (shares * (1 - shares) / 20000).sqrt()).all()


def bandit(seed: int) -> rep.Bandit:
    """Four contexts, five arms; the best leads by half a reward."""
    dice = torch.Generator().manual_seed(seed)
    means = torch.rand(4, 5, generator=dice)
    best = torch.randint(5, (4,), generator=dice)
    means[range(4), best] = 1.5
    return rep.Bandit(means, std=0.3)


@pytest.mark.parametrize("seed", range(3))
def test_reinforce_finds_the_best_arm_of_each_context(seed):
    world = bandit(seed)
    torch.manual_seed(seed)
    policy = rep.Policy(nn.Linear(4, 5, bias=False))
    dice = torch.Generator().manual_seed(seed)
    got = rep.improve(
        policy, world.contexts(), world.pay, steps=150, lr=0.1, generator=dice
    )
    assert torch.equal(policy.best(world.contexts()), world.best())
    assert sum(got[-20:]) / 20 > 1.3 > sum(got[:5]) / 5
    drawn = policy.sample(world.contexts(), dice)
    assert drawn.shape == (4,) and drawn.dtype == torch.long


def levels(seed: int = 0):
    """Images whose brightness says at which of three levels the label can be read."""
    dice = torch.Generator().manual_seed(seed)
    labels = torch.arange(240) % 2
    told = torch.arange(240) // 2 % 3
    features = torch.randn(3, 240, 4, generator=dice)
    features[told, range(240), 0] = 6.0 * labels - 3
    images = told.float()[:, None, None, None].expand(240, 1, 2, 2)
    return images, features, labels, told


def seer() -> rep.Policy:
    torch.manual_seed(0)
    parts = nn.Flatten(), nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)
    return rep.Policy(nn.Sequential(*parts))


def test_levels_are_chosen_by_what_the_image_shows():
    images, features, labels, told = levels()
    policy, head = seer(), nn.Linear(4, 2)
    dice = torch.Generator().manual_seed(0)
    got = rep.choose_levels(
        policy, head, images, features, labels, steps=200, lr=5e-2, generator=dice
    )
    assert (policy.best(images) == told).double().mean() > 0.9
    assert sum(got[-20:]) > sum(got[:20])


def test_shuffled_labels_leave_nothing_to_choose_by():
    images, features, labels, told = levels()
    order = torch.randperm(240, generator=torch.Generator().manual_seed(3))
    policy, head = seer(), nn.Linear(4, 2)
    dice = torch.Generator().manual_seed(0)
    got = rep.choose_levels(
        policy, head, images, features, labels[order], steps=100, generator=dice
    )
    assert sum(got[-50:]) / 50 < -0.5


# Bad input


LOGS = torch.full((3, 2), 0.5).log()
ARMS = torch.zeros(3).long()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rep.leave_one_out(torch.ones(1)), "2 or more"),
        (lambda: rep.leave_one_out(torch.ones(2, 2)), "2 or more"),
        (lambda: rep.reinforce_loss(LOGS, ARMS[:2], torch.ones(2)), r"\(B, K\)"),
        (lambda: rep.reinforce_loss(LOGS, ARMS, torch.ones(2)), "must be equal"),
        (lambda: rep.reinforce_loss(LOGS, ARMS, torch.ones(3), "mean"), "baseline"),
        (lambda: rep.reinforce_loss(LOGS, ARMS, torch.ones(3) / 0), "infinite"),
        (lambda: rep.expected_reward(LOGS, torch.ones(3)), "must be equal"),
        (lambda: rep.exact_gradient(LOGS, torch.ones(3)), "must be equal"),
    ],
)
def test_bad_input_is_explained(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_levels_must_fit_the_images():
    images, features, labels, _ = levels()
    with pytest.raises(ValueError, match=r"features must be \(K, 240, D\)"):
        rep.choose_levels(seer(), nn.Linear(4, 2), images, features[:, :9], labels)
