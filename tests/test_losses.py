"""Losses: the bound, the weightings, score matching, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import NAMES, PATHS, mixture, oracle, within
from torch import Tensor
from torch.testing import assert_close

from diffedu import Denoiser, EmpiricalDenoiser, GaussianMixture, losses, schedules
from diffedu.losses import WEIGHTINGS

MEAN, SPREAD = 0.3, 0.6


def gaussian(dim: int = 1) -> GaussianMixture:
    means = torch.full((1, dim), MEAN, dtype=torch.float64)
    return GaussianMixture(torch.ones(1), means, torch.tensor([SPREAD]).double())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- denoising --------------------------------------------------------------------


@pytest.mark.parametrize("path", ["cosine", "edm", "flow", "ddpm_chain"])
@pytest.mark.parametrize("predicts", NAMES)
def test_simple_is_the_error_of_what_the_net_predicts(path: str, predicts: str):
    """A net that answers 0 is charged the mean square of its target."""
    path = PATHS[path]
    denoise = Denoiser(lambda x, t: 0 * x, path, predicts)
    x0, eps = torch.randn(2, 6, 3, generator=generator()).double()
    t = torch.linspace(0.1, 0.9, 6).double()
    loss = losses.denoising(denoise, x0, t=t, noise=eps, per_sample=True)
    seen = denoise(path.add_noise(x0, t, eps), t)
    target = {
        "eps": eps,
        "x0": x0,
        "v": path.alpha(t)[:, None] * eps - path.sigma(t)[:, None] * x0,
        "score": -eps / path.sigma(t)[:, None],
        "velocity": path.rates(t)[0][:, None] * x0 + path.rates(t)[1][:, None] * eps,
        "edm": seen.kind.target(x0, eps, seen.at),
    }[predicts]
    if predicts == "score":  # its network's output is weighed as eps: sigma times it
        target = target * path.sigma(t)[:, None]
    assert_close(loss, target.square().mean(1))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("predicts", NAMES)
def test_other_weightings_do_not_depend_on_the_parametrisation(weighting, predicts):
    path = schedules.cosine()
    x0, eps = torch.randn(2, 6, 2, generator=generator()).double()
    t = torch.linspace(0.05, 0.95, 6).double()
    arguments = {"weighting": weighting, "t": t, "noise": eps, "per_sample": True}
    ours = losses.denoising(oracle(path, predicts), x0, **arguments)
    assert_close(ours, losses.denoising(oracle(path, "v"), x0, **arguments), rtol=1e-5,
                 atol=1e-9)  # fmt: skip


def test_each_weight_is_its_formula() -> None:
    path, t = schedules.edm(), torch.tensor([0.01]).double()
    sigma = path.sigma(t).item()
    x0 = torch.ones(1, 1).double()
    denoise = Denoiser(lambda x, t: 0 * x, path, "x0")
    weights = {
        "x0": 1.0,
        "snr": sigma**-2,
        "min_snr": min(sigma**-2, 5.0),
        "edm": (sigma**2 + 0.25) / (0.5 * sigma) ** 2,
        "likelihood": 80 / sigma**3,  # -d(sigma^-2)/dt / 2
    }
    for name, weight in weights.items():
        loss = losses.denoising(denoise, x0, name, t=t, noise=x0)
        assert loss.item() == pytest.approx(weight)
    small = torch.tensor([1e-3]).double()
    assert losses.denoising(denoise, x0, "min_snr", t=small, noise=x0) == 5


def test_snr_weighting_is_the_error_of_eps() -> None:
    path = schedules.cosine()
    x0, eps = torch.randn(2, 6, 2, generator=generator()).double()
    t = torch.linspace(0.05, 0.95, 6).double()
    denoise = oracle(path, "x0")
    ours = losses.denoising(denoise, x0, "snr", t=t, noise=eps)
    theirs = losses.denoising(oracle(path, "eps"), x0, t=t, noise=eps)
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["linear", "cosine", "log_linear"])
def test_the_likelihood_weighting_integrates_to_the_bound(name: str) -> None:
    """On one Gaussian the integral of -SNR' mmse / 2 is known between two SNRs.

    With mmse = c^2 / (1 + c^2 SNR) it is log((1 + c^2 S1) / (1 + c^2 S0)) / 2.
    """
    path, data, n = PATHS[name], gaussian(), 400_000
    x0 = data.sample(n, generator())
    terms = losses.denoising(
        data.denoiser(path), x0, "likelihood", generator=generator(1), per_sample=True
    )
    high, low = (path.snr(t).item() for t in (path.t_min, path.t_max))
    want = 0.5 * math.log((1 + SPREAD**2 * high) / (1 + SPREAD**2 * low))
    assert abs(terms.mean() - want) < 5 * terms.std() / n**0.5


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("shape", [(), (5,)])
def test_weightings_are_finite_where_nothing_is_left_of_the_data(weighting, shape):
    """At alpha = 0, on paths and on a chain of zero terminal SNR: no 0 / 0."""
    chain = schedules.linear().chain(50).with_zero_terminal_snr()
    x0, t = torch.randn(5, 2, generator=generator()).double(), torch.ones(shape)
    for path in (schedules.cosine(), schedules.flow(), chain.schedule):
        denoise = gaussian(2).denoiser(path)
        loss = losses.denoising(denoise, x0, weighting, t=t.double(), noise=x0)
        assert loss.isfinite()
        assert (loss == 0) == (weighting in ("snr", "min_snr", "likelihood"))


def test_min_snr_keeps_double_precision_at_one_time() -> None:
    path, x0 = schedules.cosine(), torch.ones(2, 3).double()
    snr, capped = (
        losses.denoising(gaussian(3).denoiser(path), x0, name, t=t, noise=x0)
        for name, t in (("snr", 0.7), ("min_snr", 0.7))
    )
    assert torch.equal(snr, capped)


@pytest.mark.parametrize(
    ("x0", "drop", "message"),
    [
        (torch.ones(2, 2).long(), 0.0, "must be floating"),
        (torch.ones(2, 2), -0.1, "drop is a chance"),
        (torch.ones(2, 2), 1.1, "drop is a chance"),
        (torch.ones(2, 2), float("nan"), "drop is a chance"),
    ],
)
def test_bad_data_and_chances_are_refused(x0, drop: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.denoising(mixture().denoiser(schedules.cosine()), x0, drop=drop)


def test_the_best_denoiser_has_the_least_loss() -> None:
    """Any other denoiser does worse, on the data it was made from."""
    path = schedules.cosine()
    data = torch.randn(20, 2, generator=generator()).double()
    x0, eps = data.repeat(200, 1), torch.randn(4000, 2, generator=generator(1)).double()
    t = torch.rand(4000, generator=generator(2)).double().clamp(0.05, 0.95)

    def loss(denoise) -> float:
        return losses.denoising(denoise, x0, "x0", t=t, noise=eps).item()

    best = EmpiricalDenoiser(data, path)
    least = loss(best)
    for shift in (0.05, -0.05):
        assert loss(Denoiser(lambda x, t, s=shift: best(x, t).x0 + s, path, "x0")) > (
            least
        )
    assert loss(mixture().denoiser(path)) > least


def test_mask_drop_and_per_sample() -> None:
    path, seen = schedules.cosine(), []

    def net(x, t, label=None, keep=None):
        seen.append((label, keep))
        return 0 * x

    denoise = Denoiser(net, path, "x0")
    x0 = torch.arange(8.0).reshape(2, 4)
    mask = torch.tensor([1.0, 0, 0, 1])
    loss = losses.denoising(denoise, x0, mask=mask, per_sample=True)
    assert_close(loss, torch.tensor([(0 + 9) / 2, (16 + 49) / 2]))
    assert_close(losses.denoising(denoise, x0, mask=mask), loss.mean())
    x0, label = torch.zeros(10_000, 1), torch.zeros(10_000).long()
    losses.denoising(denoise, x0, drop=0.2, label=label, generator=generator())
    kept = seen[-1][1].float().mean()
    assert abs(kept - 0.8) < 5 * (0.16 / 10_000) ** 0.5
    keep = torch.zeros(10_000, dtype=torch.bool)
    losses.denoising(denoise, x0, drop=0.2, label=label, keep=keep)
    assert not seen[-1][1].any()


def test_times_are_drawn_where_the_path_lives() -> None:
    for path in PATHS.values():
        t = losses.random_times(2000, path, generator())
        assert t.min() >= min(path.t_min, 1e-3) and t.max() <= 1
        if path.steps:
            assert_close(t * path.steps, (t * path.steps).round(), rtol=0, atol=1e-3)
            assert set((t * path.steps).round().tolist()) <= set(range(1, 1001))
    path, n = schedules.edm(), 50_000
    t = losses.edm_times(n, path, generator(), torch.zeros(1).double())
    level = path.sigma(t).log()
    assert abs(level.mean() + 1.2) < 5 * 1.2 / n**0.5
    assert abs(level.std() - 1.2) < 5 * 1.2 / (2 * n) ** 0.5


@settings(max_examples=15, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    weighting=st.sampled_from(["simple", *WEIGHTINGS]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_losses_keep_dtype_and_are_one_number(shape, weighting, dtype) -> None:
    denoise = Denoiser(lambda x, t: 0.5 * x, schedules.cosine(), "v")
    x0 = torch.ones(shape, dtype=dtype)
    loss = losses.denoising(denoise, x0, weighting, generator=generator())
    assert loss.shape == () and loss.dtype == dtype and loss >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weighting": "simpel"}, 'did you mean "simple"'),
        ({"x0": torch.zeros(0, 2)}, "x0 needs"),
        ({"x0": torch.zeros(3)}, "x0 needs"),
        ({"noise": torch.zeros(2, 3)}, "x0 has shape"),
        ({"drop": 1.5}, "drop is a chance"),
        ({"mask": torch.zeros(2)}, "without any element"),
        ({"t": torch.tensor([0.5, 0.5, 0.5])}, "one value a sample"),
    ],
)
def test_bad_losses_are_refused(arguments: dict, message: str) -> None:
    denoise = Denoiser(lambda x, t, **c: x, schedules.cosine())
    with pytest.raises(ValueError, match=message):
        losses.denoising(denoise, **({"x0": torch.zeros(2, 2)} | arguments))


# --- the bound --------------------------------------------------------------------


def exact_bound(chain, variance: str) -> float:
    """The bound's expectation on one Gaussian with the exact denoiser, in nats."""
    abar, before, betas = chain.alpha_bar, chain.alpha_bar_previous, chain.betas
    mmse = SPREAD**2 * (1 - abar) / (abar * SPREAD**2 + 1 - abar)
    true = torch.cat([chain.posterior_variance[1:2], chain.posterior_variance[1:]])
    used = {"small": true, "large": betas}[variance]
    gap = before * betas**2 / (1 - abar) ** 2 * mmse
    kl = 0.5 * (true / used - 1 - (true / used).log() + gap / used)
    decoder = 0.5 * (mmse[0] / used[0] + used[0].log() + math.log(2 * math.pi))
    last, second = abar[-1], MEAN**2 + SPREAD**2
    prior = 0.5 * (last * second + (1 - last) - 1 - (1 - last).log())
    return (prior + kl[1:].sum() + decoder).item()


@pytest.mark.parametrize("variance", ["small", "large"])
def test_bound_against_the_exact_likelihood_of_a_gaussian(variance: str) -> None:
    """It has its exact expectation, lies above the truth, and falls with more steps."""
    data, n = gaussian(2), 4_000
    x0 = data.sample(n, generator())
    entropy = 0.5 * math.log(2 * math.pi * math.e * SPREAD**2)
    totals = []
    for steps in (50, 200):
        chain = schedules.linear().chain(steps)
        denoise = data.denoiser(chain.schedule)
        bound = losses.variational_bound(
            denoise, x0, chain, variance, generator=generator(1)
        )
        total, want = bound.total, exact_bound(chain, variance)
        assert abs(total.mean() - want) < 5 * total.std() / n**0.5
        assert want > entropy
        assert bound.steps.shape == (n, steps)
        assert_close(bound.bits_per_dim, total / math.log(2))
        totals.append(want)
    assert totals[1] < totals[0]


def test_the_bound_moves_a_denoiser_to_the_chains_path() -> None:
    """The same denoiser on any path knows as much of the chain's states."""
    data, chain = gaussian(2), schedules.linear().chain(30)
    x0, k = data.sample(50, generator()), torch.arange(50) % 30
    terms = [
        losses.bound_term(data.denoiser(path), x0, chain, k, generator=generator(1))
        for path in (chain.schedule, schedules.cosine(), schedules.flow())
    ]
    assert_close(terms[1], terms[0])
    assert_close(terms[2], terms[0])
    again = schedules.linear().chain(30).schedule  # an equal chain needs no moving
    same = losses.bound_term(data.denoiser(again), x0, chain, k, generator=generator(1))
    assert torch.equal(same, terms[0])


def test_each_kl_term_is_its_closed_form() -> None:
    """Exact denoiser of one Gaussian: E KL = weight^2 mmse / (2 variance)."""
    data, n = gaussian(), 200_000
    chain = schedules.cosine().chain(50)
    x0 = data.sample(n, generator())
    for index in (1, 10, 40):
        k = torch.full((n,), index)
        terms = losses.bound_term(
            data.denoiser(chain.schedule), x0, chain, k, generator=generator(2)
        )
        abar, before = chain.alpha_bar[index], chain.alpha_bar_previous[index]
        mmse = SPREAD**2 * (1 - abar) / (abar * SPREAD**2 + 1 - abar)
        weight = before.sqrt() * chain.betas[index] / (1 - abar)
        want = weight**2 * mmse / (2 * chain.posterior_variance[index])
        assert abs(terms.mean() - want) < 5 * terms.std() / n**0.5


def test_gaussian_kl_against_torch() -> None:
    means, logs = torch.randn(2, 2, 5, generator=generator()).double()
    q, p = (
        torch.distributions.Normal(m, (v / 2).exp())
        for m, v in zip(means, logs, strict=True)
    )
    ours = losses.gaussian_kl(means[0], logs[0], means[1], logs[1])
    assert_close(ours, torch.distributions.kl_divergence(q, p))


def test_prior_term_is_its_closed_form() -> None:
    chain = schedules.linear().chain(1000)
    x0 = torch.tensor([[1.0, -1.0]]).double()
    last = chain.alpha_bar[-1].double()
    want = 0.5 * (last * 1 + (1 - last) - 1 - torch.log1p(-last))
    assert_close(losses.prior_kl(x0, chain), want.reshape(1))


@pytest.mark.parametrize("width", [2 / 255, 1 / 8])
def test_decoder_sums_to_one_over_the_levels(width: float) -> None:
    levels = torch.arange(-1, 1 + width / 2, width).double()[:, None]
    for mean, log_variance in ((0.2, -3.0), (-0.99, -6.0), (3.0, 0.0), (0.0, -11.0)):
        nll = losses.decoder_nll(
            levels, torch.tensor(mean).double(), torch.tensor(log_variance), width
        )
        assert_close((-nll).exp().sum(), torch.tensor(1.0).double(), rtol=1e-5, atol=0)


def test_decoder_density_and_bins_differ_by_the_offset() -> None:
    """For a wide Gaussian a bin's mass is its density times its width."""
    x0 = torch.tensor([[0.0, 0.25, -0.5]]).double()
    mean, log_variance = torch.zeros(1).double(), torch.tensor(1.0).double()
    density = losses.decoder_nll(x0, mean, log_variance, None)
    bins = losses.decoder_nll(x0, mean, log_variance, 1 / 8)
    offset = losses.bits_offset(1 / 8) * math.log(2)
    assert losses.bits_offset(1 / 8) == 3
    assert_close(bins, density + offset, rtol=0, atol=1e-3)


def test_decoder_far_out_is_finite_and_has_gradients() -> None:
    mean = torch.tensor([50.0, -50.0, 0.0], requires_grad=True)
    nll = losses.decoder_nll(torch.zeros(3), mean, torch.tensor(-6.0), 1 / 8)
    nll.sum().backward()
    assert torch.isfinite(nll).all() and torch.isfinite(mean.grad).all()


def test_learned_variance_reaches_both_ends_and_only_it_is_taught() -> None:
    chain = schedules.linear().chain(100)
    x0 = torch.randn(8, 2, generator=generator()).double()
    k, noise = torch.arange(8) * 12, torch.randn(8, 2, generator=generator(1)).double()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def net(fraction: Tensor):
        def answer(x, t):
            return torch.cat([scale * x, (2 * fraction - 1).expand_as(x)], 1)

        return Denoiser(answer, chain.schedule, learns_variance=True)

    fixed = Denoiser(lambda x, t: x, chain.schedule)
    for name, fraction in (("small", 0.0), ("large", 1.0)):
        asked = torch.tensor(fraction).double()
        got = losses.bound_term(net(asked), x0, chain, k, "learned", noise=noise)
        assert_close(got, losses.bound_term(fixed, x0, chain, k, name, noise=noise))
    fraction = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    bound = losses.bound_term(
        net(fraction), x0, chain, k, "learned", noise=noise, stop_mean=True
    )
    bound.sum().backward()
    assert scale.grad == 0 and fraction.grad != 0
    loss = losses.hybrid(net(fraction), x0, chain, generator=generator())
    loss.backward()
    assert scale.grad != 0
    with pytest.raises(ValueError, match="learns_variance"):
        losses.bound_term(fixed, x0, chain, k, "learned")


def test_hybrid_is_simple_plus_a_thousandth_of_the_bound() -> None:
    chain = schedules.linear().chain(100)

    def net(x, t):
        return torch.cat([0.2 * x, 0 * x], 1)

    denoise = Denoiser(net, chain.schedule, learns_variance=True)
    x0 = torch.randn(64, 2, generator=generator()).double()
    loss = losses.hybrid(denoise, x0, chain, weight=0.0, generator=generator(1))
    g = generator(1)
    k = torch.randint(100, (64,), generator=g)
    noise = torch.randn(64, 2, generator=g, dtype=torch.float64)
    t = chain.times(k)
    assert_close(loss, losses.denoising(denoise, x0, t=t, noise=noise))
    both = losses.hybrid(denoise, x0, chain, weight=0.01, generator=generator(1))
    bound = losses.bound_term(denoise, x0, chain, k, "learned", noise=noise)
    assert_close(both, loss + 0.01 * 100 * bound.mean())


def test_bad_bounds_are_refused() -> None:
    chain = schedules.cosine().chain(10)
    denoise, x0 = Denoiser(lambda x, t: x, chain.schedule), torch.zeros(2, 2)
    k = torch.zeros(2).long()
    with pytest.raises(ValueError, match='did you mean "small"'):
        losses.bound_term(denoise, x0, chain, k, "smal")
    with pytest.raises(ValueError, match="from 0 to 9"):
        losses.bound_term(denoise, x0, chain, k + 10)
    with pytest.raises(ValueError, match="bin_width"):
        losses.bound_term(denoise, x0, chain, k, bin_width=0.0)
    with pytest.raises(ValueError, match="bin_width"):
        losses.bits_offset(-1.0)


# --- score matching -----------------------------------------------------------------


def wrong_score(x: Tensor, shift: float | Tensor = 0.3) -> Tensor:
    return mixture().score(x) + shift * torch.stack([x[:, 1].sin(), x[:, 0] ** 2], 1)


def test_implicit_is_explicit_up_to_a_constant() -> None:
    """Differences between two models agree, within 5 standard errors."""
    data, n = mixture(), 20_000
    x = data.sample(n, generator())

    def difference(loss) -> Tensor:
        return loss(lambda x: wrong_score(x, 0.6)) - loss(wrong_score)

    explicit = difference(lambda s: losses.explicit_score_matching(s, x, data.score))
    implicit = difference(lambda s: losses.implicit_score_matching(s, x))
    # the spread of one point's difference is below 3
    assert abs(explicit - implicit) < 5 * 3 / n**0.5
    assert explicit > 10 * 3 / n**0.5


def test_hutchinson_and_slices_agree_with_the_exact_trace() -> None:
    """On a linear score, where each probe's spread is known from the matrix."""
    A = torch.tensor([[-1.0, 0.5], [0.2, -2.0]]).double()
    n = 50_000
    x = torch.randn(n, 2, generator=generator()).double()
    exact = losses.implicit_score_matching(lambda x: x @ A.T, x)
    noisy = losses.implicit_score_matching(lambda x: x @ A.T, x, 1, generator(1))
    # sign^T A sign = trace + (a01 + a10) s0 s1
    assert 0 < abs(noisy - exact) < 5 * 0.7 / n**0.5
    sliced = losses.sliced_score_matching(lambda x: x @ A.T, x, 1, generator(2))
    assert abs(sliced - exact) < 5 * 12 / n**0.5
    many = losses.sliced_score_matching(lambda x: x @ A.T, x, 3, generator(2))
    assert abs(many - exact) < 5 * 12 / n**0.5


def test_denoising_score_matching_is_explicit_on_the_noised_data() -> None:
    """Gradients of both with respect to a linear score model agree."""
    data, n, sigma = mixture(), 200_000, 0.7
    x0 = data.sample(n, generator())
    eps = torch.randn(n, 2, generator=generator(1)).double()
    noised = data.noised(1.0, sigma)
    x = x0 + sigma * eps
    W = torch.tensor([[-0.5, 0.1], [0.0, -0.8]]).double().requires_grad_()
    denoising = losses.denoising_score_matching(lambda x: x @ W.T, x0, sigma, eps)
    explicit = losses.explicit_score_matching(lambda x: x @ W.T, x, noised.score)
    ours, theirs = (torch.autograd.grad(v, W)[0] for v in (denoising, explicit))
    # each gradient is the mean of residual x^T; their difference has this spread
    gap = (eps / sigma + noised.score(x))[:, :, None] * x[:, None]
    assert within(ours, theirs, gap.std(0) / n**0.5)


def scaled(score, factor: float):
    """The same score, too long or too short."""
    return lambda x: factor * score(x)


def test_exact_score_is_a_minimum_of_all_four() -> None:
    data, n = mixture(), 20_000
    x = data.sample(n, generator())
    noised = data.noised(1.0, 0.5)
    noise = torch.randn(n, 2, generator=generator(3)).double()
    objectives = {
        "explicit": (lambda s: losses.explicit_score_matching(s, x, data.score), 0),
        "implicit": (lambda s: losses.implicit_score_matching(s, x), 0),
        "sliced": (
            lambda s: losses.sliced_score_matching(s, x, 1, generator(5)),
            0,
        ),
        "denoising": (
            lambda s: losses.denoising_score_matching(s, x, 0.5, noise),
            1,
        ),
    }
    for name, (objective, on_noised) in objectives.items():
        truth = noised.score if on_noised else data.score
        at = [objective(scaled(truth, 1 + c)) for c in (-0.3, 0.0, 0.3)]
        assert at[1] < at[0] and at[1] < at[2], name


def test_score_matching_has_gradients_for_its_parameters() -> None:
    net = torch.nn.Linear(2, 2)
    x = torch.randn(16, 2, generator=generator())
    for loss in (
        losses.implicit_score_matching(net, x),
        losses.implicit_score_matching(net, x, 2, generator()),
        losses.sliced_score_matching(net, x, 1, generator()),
        losses.denoising_score_matching(net, x, torch.full((16,), 0.5)),
    ):
        (gradient,) = torch.autograd.grad(loss, net.weight)
        assert gradient.abs().sum() > 0


def test_bad_score_matching_is_refused() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="points need shape"):
        losses.implicit_score_matching(lambda x: x, torch.zeros(0, 2))
    with pytest.raises(ValueError, match="points need shape"):
        losses.explicit_score_matching(lambda x: x, torch.zeros(4), lambda x: x)
    with pytest.raises(ValueError, match="probes"):
        losses.implicit_score_matching(lambda x: x, x, probes=0)
    with pytest.raises(ValueError, match="projections"):
        losses.sliced_score_matching(lambda x: x, x, 0)
    with pytest.raises(ValueError, match="sigma must be"):
        losses.denoising_score_matching(lambda x: x, x, 0.0)
    with pytest.raises(ValueError, match="score\\(x\\)"):
        losses.sliced_score_matching(lambda x: x[:, :1], x)
    with pytest.raises(ValueError, match="x needs"):
        losses.denoising_score_matching(lambda x: x, torch.zeros(0, 2), 0.1)
