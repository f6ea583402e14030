"""Checks of chapter 4b's exercises: ELBO, coupling layer, GAN losses, contrast.

Networks are drawn afresh as small random functions, so that nothing but the right
formula fits all draws.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from diffedu.checks.ch03_fields import Field, whole
from diffedu.checks.ch04b_contrast import ebm_loss
from diffedu.checks.ch04b_coupling import coupling
from diffedu.checks.machinery import Exercise, Function, Property

__all__ = ["coupling", "ebm_loss", "elbo", "gan_losses"]

Inputs = dict[str, Any]


# The reparametrised bound


def _decoder(latent: int, dim: int, g: Generator) -> Field:
    """A smooth map from R^latent to R^dim: (B, latent) -> (B, dim)."""
    into = torch.randn(5, latent, generator=g)
    out = torch.randn(dim, 5, generator=g)
    return lambda z: torch.tanh(z @ into.T.to(z)) @ out.T.to(z)


def _encoded(g: Generator) -> Inputs:
    size, dim, latent = whole(4, 9, g), whole(2, 5, g), whole(2, 5, g)
    if latent == dim:
        latent += 1
    mean, log_std, eps = torch.randn(3, size, latent, generator=g)
    x = torch.randn(size, dim, generator=g)
    std = 0.4 + 0.4 * torch.rand((), generator=g)
    return {
        "x": x, "mean": mean, "log_std": 0.5 * log_std - 0.7, "eps": eps,
        "decode": _decoder(latent, dim, g), "std": std,
    }  # fmt: skip


def _fit(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    squares = ((x - mean) / std).square().sum(1)
    return -0.5 * squares - x.shape[1] * (std.log() + 0.5 * math.log(2 * math.pi))


def _kl(mean: Tensor, log_std: Tensor) -> Tensor:
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)


def _elbo(
    x: Tensor, mean: Tensor, log_std: Tensor, eps: Tensor, decode: Field, std: Tensor,
    width: Function = torch.exp, fit: Function = _fit, kl: Function = _kl,
) -> Tensor:  # fmt: skip
    z = mean + width(log_std) * eps
    return fit(x, decode(z), std) - kl(mean, log_std)


def _elbo_with(**changes: Function) -> Function:
    return lambda *inputs: _elbo(*inputs, **changes)


def _variance_for_std(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return _fit(x, mean, std.square())


def _no_normaliser(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -0.5 * ((x - mean) / std).square().sum(1)


def _no_pi(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return _no_normaliser(x, mean, std) - x.shape[1] * std.log()


def _one_normaliser(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    constant = std.log() + 0.5 * math.log(2 * math.pi)
    return _no_normaliser(x, mean, std) - constant


def _log_std_added(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return _fit(x, mean, std) + 2 * x.shape[1] * std.log()


def _distance_with(factor: Function) -> Function:
    """The density with its squared distance times factor(x, std)."""
    return lambda x, mean, std: (
        _fit(x, mean, std) + (1 - factor(x, std)) * -_no_normaliser(x, mean, std)
    )


def _elbo_trains(answer: Function, g: Generator) -> bool:
    inputs = _encoded(g)
    leaves = [inputs[name].requires_grad_() for name in ("mean", "log_std")]
    slopes = []
    for bound in (answer(*inputs.values()), _elbo(*inputs.values())):
        if not bound.requires_grad:
            return False
        slopes.append(torch.autograd.grad(bound.sum(), leaves, allow_unused=True))
    return all(
        a is not None and torch.allclose(a, b, rtol=1e-3, atol=1e-4)
        for a, b in zip(*slopes, strict=True)
    )


elbo = Exercise(
    "elbo",
    draw=_encoded,
    truth=_elbo,
    mistakes={
        "the sign of the KL term is wrong: it is a price":
            _elbo_with(kl=lambda m, s: -_kl(m, s)),
        "the KL term is missing":
            _elbo_with(kl=lambda m, s: 0.0),
        "the noise is scaled by log_std itself: an exponential is missing":
            _elbo_with(width=lambda s: s),
        "log_std is taken for the log of a variance where z is made":
            _elbo_with(width=lambda s: (0.5 * s).exp()),
        "the noise is scaled by the variance: it needs the standard deviation":
            _elbo_with(width=lambda s: (2 * s).exp()),
        "the decoder is asked at the mean: the noise is not used":
            _elbo_with(width=lambda s: 0 * s),
        "the noise is not scaled by the encoder's width":
            _elbo_with(width=torch.ones_like),
        "the noise is scaled by the decoder's std: z has the encoder's":
            lambda *inputs: _elbo(*inputs, width=lambda _: inputs[-1]),
        "log_std is taken for the log of a variance, in z and in the KL term":
            lambda x, m, s, *rest: _elbo(x, m, 0.5 * s, *rest),
        "log_std is taken for the log of a variance in the KL term":
            _elbo_with(kl=lambda m, s: _kl(m, 0.5 * s)),
        "the KL term lacks its factor one half":
            _elbo_with(kl=lambda m, s: 2 * _kl(m, s)),
        "the KL term lacks the logarithm of the encoder's width":
            _elbo_with(kl=lambda m, s: _kl(m, s) + s.sum(1)),
        "the KL term lacks the 1 that makes it 0 at the prior":
            _elbo_with(kl=lambda m, s: _kl(m, s) + 0.5 * m.shape[1]),
        "the KL term is a mean over the latents, where they add up":
            _elbo_with(kl=lambda m, s: _kl(m, s) / m.shape[1]),
        "the decoder's density is not normalised: log std and log 2 pi are missing":
            _elbo_with(fit=_no_normaliser),
        "the decoder's density lacks log 2 pi":
            _elbo_with(fit=_no_pi),
        "the decoder's density is normalised once, not once for each element of x":
            _elbo_with(fit=_one_normaliser),
        "std is squared twice in the decoder's density":
            _elbo_with(fit=_variance_for_std),
        "std is taken for a variance: it is not squared in the decoder's density":
            _elbo_with(fit=lambda x, m, std: _fit(x, m, std.sqrt())),
        "the logarithm of std has the wrong sign in the decoder's density":
            _elbo_with(fit=_log_std_added),
        "the squared distance lacks its factor one half":
            _elbo_with(fit=_distance_with(lambda x, std: 2.0)),
        "the squared distance is a mean over the elements of x, where they add up":
            _elbo_with(fit=_distance_with(lambda x, std: 1 / x.shape[1])),
        "the squared distance is not divided by the square of std":
            _elbo_with(fit=_distance_with(lambda x, std: std.square())),
        "a plain squared error stands where the decoder's density is asked":
            _elbo_with(fit=lambda x, m, std: -(x - m).square().sum(1)),
        "a loss, the negative of the bound":
            lambda *inputs: -_elbo(*inputs),
        "one number for the batch, where one a sample is asked":
            lambda *inputs: _elbo(*inputs).mean().expand(len(inputs[0])),
    },
    properties=(
        Property(
            "its value is right, but its gradient does not reach mean and log_std; "
            "look for detach or no_grad",
            _elbo_trains,
        ),
    ),
)  # fmt: skip


# The two losses of a GAN


def _logits(g: Generator) -> Inputs:
    real = 2 * torch.randn(whole(4, 9, g), generator=g)
    fake = 2 * torch.randn(whole(4, 9, g), generator=g)
    return {"real": real, "fake": fake}


def _gan(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    judge = softplus(-real).mean() + softplus(fake).mean()
    return judge, softplus(-fake).mean()


def _judge_with(judge: Function) -> Function:
    return lambda real, fake: (judge(real, fake), softplus(-fake).mean())


def _maker_with(maker: Function) -> Function:
    return lambda real, fake: (_gan(real, fake)[0], maker(fake))


def _steady(answer: Function, g: Generator) -> bool:
    real, fake = torch.tensor([150.0, -150.0]), torch.tensor([150.0, -150.0])
    found = [torch.as_tensor(each) for each in answer(real, fake)]
    right = _gan(real, fake)
    return all(
        bool(torch.isfinite(a)) and torch.allclose(a.double(), b.double(), rtol=1e-3)
        for a, b in zip(found, right, strict=True)
    )


def _gan_trains(answer: Function, g: Generator) -> bool:
    logits = [each.requires_grad_() for each in _logits(g).values()]
    for loss, right in zip(answer(*logits), _gan(*logits), strict=True):
        if not (isinstance(loss, Tensor) and loss.requires_grad):
            return False
        found, expected = (
            torch.autograd.grad(
                each, logits, allow_unused=True, materialize_grads=True,
                retain_graph=True,
            )
            for each in (loss, right)
        )  # fmt: skip
        if not all(
            torch.allclose(a, b, rtol=1e-3, atol=1e-4)
            for a, b in zip(found, expected, strict=True)
        ):
            return False
    return True


gan_losses = Exercise(
    "gan_losses",
    draw=_logits,
    truth=_gan,
    returns=("judge", "maker"),
    mistakes={
        "the labels are exchanged: the judge is paid for taking data for samples":
            _judge_with(lambda r, f: softplus(r).mean() + softplus(-f).mean()),
        "the judge's two terms are averaged, where they add up":
            _judge_with(lambda r, f: (softplus(-r).mean() + softplus(f).mean()) / 2),
        "the judge takes one mean over all logits: data and samples have one each":
            _judge_with(
                lambda r, f: torch.cat([softplus(-r), softplus(f)]).mean()
            ),
        "the samples' term of the judge has the wrong sign":
            _judge_with(lambda r, f: softplus(-r).mean() - softplus(f).mean()),
        "the judge never sees samples":
            _judge_with(lambda r, f: softplus(-r).mean()),
        "the judge never sees data":
            _judge_with(lambda r, f: softplus(f).mean()),
        "the judge's loss has the wrong sign: it would grow worse":
            _judge_with(lambda r, f: -softplus(-r).mean() - softplus(f).mean()),
        "the generator's loss is the minimax one, which saturates":
            _maker_with(lambda f: -softplus(f).mean()),
        "the generator helps its judge":
            _maker_with(lambda f: softplus(f).mean()),
        "the generator's loss has the wrong sign":
            _maker_with(lambda f: -softplus(-f).mean()),
        "the generator's loss is the judge's with its sign turned; it sees no data":
            lambda r, f: (_gan(r, f)[0], -_gan(r, f)[0]),
        "the loss of a critic without a sigmoid, as in Wasserstein GANs":
            lambda r, f: (f.mean() - r.mean(), -f.mean()),
        "the logits are taken for probabilities after a second sigmoid":
            lambda r, f: _gan(r.sigmoid(), f.sigmoid()),
        "sums over the batch, where means are asked":
            lambda r, f: (softplus(-r).sum() + softplus(f).sum(), softplus(-f).sum()),
        "the two losses are exchanged: the judge's comes first":
            lambda r, f: _gan(r, f)[::-1],
    },
    properties=(
        Property(
            "it is right for moderate logits and overflows for large ones; look for "
            "log(sigmoid(...)) or a clamp, and for a function that does both at once",
            _steady,
        ),
        Property(
            "its values are right, but no gradient, or another one, reaches the "
            "logits; look for detach, item or no_grad",
            _gan_trains,
        ),
    ),
)  # fmt: skip
