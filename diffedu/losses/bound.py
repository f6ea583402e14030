"""The variational bound of a chain, term by term, and the hybrid loss.

-log p(x0) <= prior + sum of KL terms + decoder, each a mean over elements, in nats;
divided by log 2 they are bits a dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import lookup, require
from diffedu.losses.denoising import denoising
from diffedu.prediction import Prediction
from diffedu.schedules import Chain, Table
from diffedu.tensors import batch_mean, normal_like


@dataclass
class Bound:
    """The terms of the bound, each in nats per element.

    Attributes:
        prior: KL(q(x_T | x0) || N(0, I)), shape (B,).
        steps: shape (B, T): for k >= 1 KL(q(x_{k-1} | x_k, x0) || p), and at k = 0 the
            decoder's -log p(x0 | x_0 of the chain).
    """

    prior: Tensor
    steps: Tensor

    @property
    def total(self) -> Tensor:
        """The whole bound on -log p(x0), nats per element, shape (B,)."""
        return self.prior + self.steps.sum(1)

    @property
    def bits_per_dim(self) -> Tensor:
        """The whole bound in bits per element, shape (B,)."""
        return self.total / log(2)


def gaussian_kl(
    mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor
) -> Tensor:
    """KL(N(mean_q, var_q) || N(mean_p, var_p)) of each element, in nats.

    The four tensors broadcast; log-variances of -inf are not allowed.
    """
    ratio = log_var_q - log_var_p
    gap = (mean_q - mean_p).square() * torch.exp(-log_var_p)
    return 0.5 * (torch.expm1(ratio) - ratio + gap)


def _log_small(chain: Chain) -> Tensor:
    """log posterior variance, the first replaced by the second, as 0 has no log."""
    variance = chain.posterior_variance
    return torch.cat([variance[1:2], variance[1:]]).log()


def _small(chain: Chain, k: Tensor, seen: Prediction) -> Tensor:
    return chain.read(_log_small(chain), k, seen.x)


def _large(chain: Chain, k: Tensor, seen: Prediction) -> Tensor:
    return chain.read(chain.betas.log(), k, seen.x)


def _learned(chain: Chain, k: Tensor, seen: Prediction) -> Tensor:
    given = seen.variance_fraction is not None
    require(given, 'variance="learned" needs a Denoiser with learns_variance=True')
    low, high = _small(chain, k, seen), _large(chain, k, seen)
    return low + (high - low) * seen.variance_fraction


LOG_VARIANCES = {"small": _small, "large": _large, "learned": _learned}


def decoder_nll(
    x0: Tensor, mean: Tensor, log_variance: Tensor, bin_width: float | None
) -> Tensor:
    """-log p(x0) of each element under N(mean, variance), in nats.

    Args:
        x0: data in [-1, 1], shape (B, ...).
        mean: shape of x0.
        log_variance: broadcasts with x0.
        bin_width: the distance of two neighbouring levels (2/255 for bytes, 1/8 for
            the digits), whose bin is integrated over, the outer two to infinity;
            None for the density itself.

    Source: (arXiv 2006.11239, eq. 13).
    """
    std = torch.exp(0.5 * log_variance)
    if bin_width is None:
        return 0.5 * (((x0 - mean) / std).square() + log_variance + log(2 * pi))
    require(bin_width > 0, f"bin_width must be above 0, got {bin_width}")
    edge = 1 - bin_width / 4
    high = ((x0 - mean + bin_width / 2) / std).masked_fill(x0 > edge, torch.inf)
    low = ((x0 - mean - bin_width / 2) / std).masked_fill(x0 < -edge, -torch.inf)
    return -_log_normal_mass(low, high)


def _log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)), accurate far out in either tail."""
    # mirrored so that both ends lie in the lower tail, where log_ndtr keeps its digits
    mirrored = low + high > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    top, bottom = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    # the distance is held above rounding, so that no gradient is infinite
    gap = (bottom - top).clamp(max=-1e-6)
    return top + torch.log(-torch.expm1(gap))


def bound_term(
    denoise: DenoiserBase,
    x0: Tensor,
    chain: Chain,
    k: Tensor,
    variance: str = "small",
    bin_width: float | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    stop_mean: bool = False,
    **condition: Tensor | None,
) -> Tensor:
    """One term of the bound for each sample: (B,), nats per element.

    Args:
        denoise: a denoiser; on another path than the chain's it is moved there.
        x0: clean data, shape (B, ...).
        chain: the Markov chain.
        k: which term, shape (B,): at 0 the decoder, above it the KL.
        variance: small, large or learned.
        bin_width: see `decoder_nll`.
        noise: standard noise, shape of x0; fresh unless given.
        generator: source of fresh noise.
        stop_mean: whether gradients reach the variance alone.
        **condition: passed to the denoiser.

    Raises:
        ValueError: for an unknown variance, or k out of range.

    Source: (arXiv 2006.11239, eq. 5).
    """
    log_variance = lookup(LOG_VARIANCES, variance, "variance")
    noise = normal_like(x0, generator) if noise is None else noise
    x = chain.add_noise(x0, k, noise)
    seen = _on_chain(denoise, chain)(x, chain.times(k.to(x0.device)), **condition)
    log_var_p = log_variance(chain, k, seen)
    seen_x0 = seen.x0.detach() if stop_mean else seen.x0
    mean_q, _ = chain.posterior(x0, x, k)
    mean_p, _ = chain.posterior(seen_x0, x, k)
    kl = gaussian_kl(mean_q, _small(chain, k, seen), mean_p, log_var_p)
    first = decoder_nll(x0, seen_x0, log_var_p, bin_width)
    return torch.where(k.to(x0.device) == 0, batch_mean(first), batch_mean(kl))


def _on_chain(denoise: DenoiserBase, chain: Chain) -> DenoiserBase:
    """The denoiser as the chain's x_k needs it: on the path through its table."""
    path = denoise.schedule
    same = isinstance(path, Table) and torch.equal(path.chain().betas, chain.betas)
    return denoise if same else denoise.on(chain.schedule)


def variational_bound(
    denoise: DenoiserBase,
    x0: Tensor,
    chain: Chain,
    variance: str = "small",
    bin_width: float | None = None,
    generator: torch.Generator | None = None,
    **condition: Tensor | None,
) -> Bound:
    """All terms of the bound: T looks, each with its own fresh noise.

    Arguments as for `bound_term`.

    Returns:
        a Bound, whose terms are nats per element and whose bits_per_dim is the total.

    Source: (arXiv 2006.11239, eq. 5; the terms by step as in arXiv 2102.09672).
    """
    terms = []
    for index in range(chain.steps):
        k = torch.full((len(x0),), index, device=x0.device)
        terms.append(
            bound_term(
                denoise, x0, chain, k, variance, bin_width,
                generator=generator, **condition,
            )
        )  # fmt: skip
    return Bound(prior_kl(x0, chain), torch.stack(terms, 1))


def prior_kl(x0: Tensor, chain: Chain) -> Tensor:
    """KL(q(x_T | x0) || N(0, I)), nats per element: (B,) for x0 of shape (B, ...)."""
    signal = chain.read(chain.alpha_bar.sqrt(), chain.steps - 1, x0)
    log_var = chain.read(torch.log1p(-chain.alpha_bar), chain.steps - 1, x0)
    zero = x0.new_zeros(())
    return batch_mean(gaussian_kl(signal * x0, log_var, zero, zero))


def hybrid(
    denoise: DenoiserBase,
    x0: Tensor,
    chain: Chain,
    weight: float = 0.001,
    bin_width: float | None = None,
    generator: torch.Generator | None = None,
    **condition: Tensor | None,
) -> Tensor:
    """L_simple + weight T L_vlb, the bound teaching the variance alone: shape ().

    Args:
        denoise: a denoiser with learns_variance on chain.schedule.
        x0: clean data, shape (B, ...).
        chain: the Markov chain.
        weight: of the bound.
        bin_width: see `decoder_nll`.
        generator: source of indices and noise.
        **condition: passed to the denoiser.

    Source: (arXiv 2102.09672, eq. 16).
    """
    device = generator.device if generator is not None else x0.device
    k = torch.randint(chain.steps, (len(x0),), device=device, generator=generator)
    k = k.to(x0.device)
    noise = normal_like(x0, generator)
    t = chain.times(k).to(x0)
    simple = denoising(denoise, x0, t=t, noise=noise, **condition)
    bound = bound_term(
        denoise, x0, chain, k, "learned", bin_width, noise, stop_mean=True, **condition
    )
    return simple + weight * chain.steps * bound.mean()


def bits_offset(bin_width: float) -> float:
    """What turns a density's bits a dimension into those of levels bin_width apart.

    3 for the digits, whose levels are 1/8 apart; 6.99 for bytes, 2/255 apart, which
    papers round to 7.
    """
    require(bin_width > 0, f"bin_width must be above 0, got {bin_width}")
    return -log(bin_width) / log(2)
