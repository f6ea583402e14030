"""Likelihoods: the ODE's and the bound against closed forms, codes, probes, scipy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import PATHS, mixture, oracle, within
from torch.testing import assert_close

from diffedu import Denoiser, GaussianMixture, likelihood, losses, nets, schedules

EVERY_PATH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int = 40) -> torch.Tensor:
    return mixture().sample(n, seeded(3))


def gaussian(std: float = 0.5, dim: int = 3) -> GaussianMixture:
    mean = torch.linspace(-1, 1, dim).double()[None]
    return GaussianMixture([1.0], mean, [std])


def twist(x: torch.Tensor) -> torch.Tensor:
    """A field with an easy Jacobian: (B, 2), divergence cos(x1) + 3 x2^2."""
    return torch.stack([x[:, 0].sin() + x[:, 1], x[:, 1] ** 3 - 2 * x[:, 0]], 1)


# --- divergence -------------------------------------------------------------------


def test_exact_divergence_is_the_trace() -> None:
    x = torch.randn(7, 2, generator=seeded()).double()
    u, found = likelihood.exact_divergence(twist, x)
    assert_close(u, twist(x))
    assert_close(found, x[:, 0].cos() + 3 * x[:, 1] ** 2)
    assert not u.requires_grad and not found.requires_grad


def test_divergence_of_images_counts_every_pixel() -> None:
    x = torch.randn(3, 2, 4, 4, generator=seeded()).double()
    _, found = likelihood.exact_divergence(lambda x: 0.5 * x.square(), x)
    assert_close(found, x.flatten(1).sum(1))


@pytest.mark.parametrize("kind", likelihood.PROBES)
def test_hutchinson_is_unbiased(kind: str) -> None:
    x = torch.tensor([[0.3, 0.8]]).double().expand(20_000, 2)
    probes = likelihood.draw_probes(x, 2, kind, seeded(1))
    u, each = likelihood.hutchinson_divergence(twist, x, probes)
    _, exact = likelihood.exact_divergence(twist, x[:1])
    assert_close(u, twist(x))
    assert each.shape == (2, 20_000)
    assert within(each.mean(), exact, each.std() / 40_000**0.5)


def test_variance_of_both_kinds_of_probes() -> None:
    """||S||^2 / 2 with S = J + J^T for normal probes; the diagonal drops out of signs.

    Here S has the diagonal 2 (cos x1, 3 x2^2) and 1 - 2 beside it.
    """
    x = torch.tensor([[0.3, 0.8]]).double().expand(40_000, 2)
    diagonal = torch.tensor([math.cos(0.3), 3 * 0.64])
    want = {"rademacher": 1.0, "gaussian": 1.0 + 2 * diagonal.square().sum().item()}
    for kind, variance in want.items():
        probes = likelihood.draw_probes(x, 1, kind, seeded(2))
        _, each = likelihood.hutchinson_divergence(twist, x, probes)
        assert each.var().item() == pytest.approx(variance, rel=0.06)


def test_signs_are_signs_and_normal_probes_are_normal() -> None:
    x = torch.zeros(5, 3)
    signs = likelihood.draw_probes(x, 200, "rademacher", seeded())
    assert signs.shape == (200, 5, 3) and (signs.abs() == 1).all()
    assert abs(signs.mean().item()) < 5 / 3000**0.5
    normal = likelihood.draw_probes(x, 200, "gaussian", seeded())
    assert len(normal.unique()) > 2900


def test_bad_fields_and_probes_are_refused() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="answers the shape of x"):
        likelihood.exact_divergence(lambda x: x[:, :1], x)
    with pytest.raises(ValueError, match="no gradient in x"):
        likelihood.exact_divergence(lambda x: x.detach(), x)
    with pytest.raises(ValueError, match=r"\(P, 4, 2\)"):
        likelihood.hutchinson_divergence(twist, x, torch.ones(4, 2))
    with pytest.raises(ValueError, match='did you mean "gaussian"'):
        likelihood.draw_probes(x, 1, "gausian")
    with pytest.raises(ValueError, match="at least 1 probe"):
        likelihood.draw_probes(x, 0)


# --- log_prob ---------------------------------------------------------------------


@EVERY_PATH
def test_ode_gives_the_exact_log_likelihood(path) -> None:
    """On every path, with the exact score: the flow's density is the mixture's."""
    x0 = points()
    found = likelihood.log_prob(mixture().denoiser(path), x0, steps=100)
    gap = (found.log_prob - mixture().log_prob(x0)).abs().mean()
    assert gap < 0.02
    assert_close(found.log_prob, found.prior + found.volume)
    assert (found.standard_error == 0).all()


@pytest.mark.parametrize("predicts", ["eps", "v", "edm"])
def test_it_is_the_same_for_every_parametrisation(predicts: str) -> None:
    path, x0 = schedules.cosine(), points(5)
    exact = likelihood.log_prob(mixture().denoiser(path), x0, steps=12)
    found = likelihood.log_prob(oracle(path, predicts), x0, steps=12)
    assert_close(found.log_prob, exact.log_prob)


def test_errors_fall_with_the_methods_order() -> None:
    path, x0 = schedules.cosine(), points(10)
    denoise, errors = mixture().denoiser(path), {}
    best = likelihood.log_prob(denoise, x0, steps=500).log_prob
    for method in ("euler", "heun"):
        found = [
            likelihood.log_prob(denoise, x0, steps=n, method=method).log_prob - best
            for n in (35, 70)
        ]
        errors[method] = [f.abs().mean().item() for f in found]
    assert 1.6 < errors["euler"][0] / errors["euler"][1] < 2.6
    assert 3.0 < errors["heun"][0] / errors["heun"][1] < 5.5


def test_against_an_adaptive_solver_of_scipy() -> None:
    """scipy's RK45 on x and its log-density at once, the divergence by differences."""
    integrate = pytest.importorskip("scipy.integrate")
    path, x0 = schedules.linear(), points(2)
    denoise = mixture().denoiser(path)

    def velocity(t, x):
        return denoise(torch.as_tensor(x)[None], float(t)).velocity[0].numpy()

    def slope(t, y):
        h, x = 1e-5, y[:2]
        ahead, back = (
            [
                velocity(t, x + sign * h * e)[i]
                for i, e in enumerate(torch.eye(2).numpy())
            ]
            for sign in (1, -1)
        )
        grown = sum(a - b for a, b in zip(ahead, back, strict=True)) / (2 * h)
        return [*velocity(t, x), grown]

    found = likelihood.log_prob(denoise, x0, steps=200)
    ends, start = (path.t_min, path.t_max), path.alpha(path.t_min).item()
    for each, x in enumerate(x0):
        begin = [*(start * x).tolist(), 2 * math.log(start)]
        end = integrate.solve_ivp(slope, ends, begin, rtol=1e-6, atol=1e-7).y[:, -1]
        assert found.latent[each].tolist() == pytest.approx(end[:2], abs=2e-3)
        assert found.volume[each].item() == pytest.approx(end[2], abs=5e-3)


def test_probes_estimate_the_volume_with_a_true_standard_error() -> None:
    path, x0 = schedules.cosine(), points(60)
    denoise = mixture().denoiser(path)
    exact = likelihood.log_prob(denoise, x0, steps=25)
    for kind in likelihood.PROBES:
        found = likelihood.log_prob(
            denoise, x0, steps=25, divergence=kind, probes=16, generator=seeded(5)
        )
        assert_close(found.latent, exact.latent)
        z = (found.log_prob - exact.log_prob) / found.standard_error
        assert z.abs().max() < 8 and 0.6 < z.std() < 1.7


def test_one_probe_has_no_standard_error() -> None:
    denoise = mixture().denoiser(schedules.cosine())
    found = likelihood.log_prob(denoise, points(4), steps=3, divergence="gaussian")
    assert found.standard_error.isnan().all() and found.log_prob.isfinite().all()


@settings(max_examples=8, deadline=None)
@given(std=st.floats(0.1, 1.5), dim=st.integers(1, 4))
def test_a_gaussian_of_any_width_and_dimension(std: float, dim: int) -> None:
    data, path = gaussian(std, dim), schedules.log_linear()
    x0 = data.sample(6, seeded(1))
    found = likelihood.log_prob(data.denoiser(path), x0, steps=60)
    # the prior is right for unit variance only: what is missing is of order alpha^2
    assert_close(found.log_prob, data.log_prob(x0), rtol=0, atol=0.02)


def test_labels_reach_the_denoiser() -> None:
    path, data = schedules.cosine(), mixture()
    x0, y = data.sample(10, seeded(4), labelled=True)
    found = likelihood.log_prob(data.denoiser(path), x0, steps=100, label=y)
    exact = torch.stack(
        [
            data.condition(int(k)).log_prob(x[None])[0]
            for x, k in zip(x0, y, strict=True)
        ]
    )
    assert_close(found.log_prob, exact, rtol=0, atol=0.02)


def test_bits_per_dim_of_a_density_and_of_levels() -> None:
    found = likelihood.log_prob(
        gaussian().denoiser(schedules.cosine()), gaussian().sample(3, seeded()), steps=4
    )
    bits = -found.log_prob / (3 * math.log(2))
    assert_close(found.bits_per_dim(), bits)
    assert_close(found.bits_per_dim(0.125), bits + 3)


def test_networks_keep_their_dtype_and_get_no_gradient() -> None:
    net = nets.MLP(2, width=8, depth=1)
    denoise = Denoiser(net, schedules.cosine(), "v")
    x0 = torch.randn(4, 2, generator=seeded())
    found = likelihood.log_prob(denoise, x0, steps=3)
    assert found.log_prob.dtype == torch.float32 and not found.log_prob.requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_bad_requests_are_refused() -> None:
    denoise, x0 = mixture().denoiser(schedules.cosine()), points(2)
    with pytest.raises(ValueError, match="NaN"):
        likelihood.log_prob(denoise, x0 * math.nan)
    with pytest.raises(ValueError, match='did you mean "rademacher"'):
        likelihood.log_prob(denoise, x0, divergence="rademacker")
    with pytest.raises(ValueError, match='method "rk4" is unknown'):
        likelihood.log_prob(denoise, x0, method="rk4", steps=2)
    with pytest.raises(ValueError, match="let times end at"):
        likelihood.encode(denoise, x0, times=torch.tensor([0.9, 0.0]))
    with pytest.raises(ValueError, match="method"):
        likelihood.decode(denoise, x0, method="rk4")


# --- codes ------------------------------------------------------------------------


@EVERY_PATH
def test_encode_then_decode_is_the_identity(path) -> None:
    denoise, x0 = mixture().denoiser(path), points()
    errors = []
    for steps in (50, 100):
        latent = likelihood.encode(denoise, x0, steps=steps)
        back = likelihood.decode(denoise, latent, steps=steps)
        errors.append((back - x0).abs().max().item())
    # the far ends of VE and EDM take more steps: sigma runs over 5 decades
    assert errors[1] < 0.01 and errors[1] < 0.5 * errors[0]


def test_codes_of_the_data_are_normal() -> None:
    path = schedules.cosine()
    x0 = mixture().sample(4000, seeded(6))
    latent = likelihood.encode(mixture().denoiser(path), x0, steps=40)
    assert within(latent.mean(0), torch.zeros(2).double(), 1 / 4000**0.5)
    assert within(latent.var(0), torch.ones(2).double(), (2 / 4000) ** 0.5)


def test_the_code_is_that_of_log_prob_and_of_a_known_gaussian() -> None:
    """For one Gaussian the ODE is a straight rescaling: (x - mean) / std."""
    data, path = gaussian(0.4, 3), schedules.cosine()
    x0 = data.sample(8, seeded(7))
    latent = likelihood.encode(data.denoiser(path), x0, steps=100)
    assert_close(latent, likelihood.log_prob(data.denoiser(path), x0, steps=100).latent)
    assert_close(latent, (x0 - data.means) / 0.4, rtol=0, atol=0.02)


def test_encode_carries_gradients_only_if_asked() -> None:
    denoise, x0 = mixture().denoiser(schedules.cosine()), points(3)
    assert not likelihood.encode(denoise, x0, steps=3).requires_grad
    x0 = x0.requires_grad_()
    assert likelihood.encode(denoise, x0, steps=3).requires_grad


def test_dequantize_stays_in_its_bin() -> None:
    x0 = torch.linspace(-1, 1, 17)[None].repeat(500, 1)
    noisy = likelihood.dequantize(x0, 1 / 8, seeded())
    away = noisy - x0
    assert away.abs().max() <= 1 / 16 + 1e-6
    assert abs(away.mean().item()) < 5 * (1 / 8) / 12**0.5 / 8500**0.5
    with pytest.raises(ValueError, match="bin_width"):
        likelihood.dequantize(x0, 0.0)


# --- the bound --------------------------------------------------------------------


@EVERY_PATH
def test_with_the_exact_score_the_bound_is_tight(path) -> None:
    data, n = mixture(), 400
    x0 = data.sample(n, seeded(8))
    bound = likelihood.continuous_bound(
        data.denoiser(path), x0, looks=40, generator=seeded(9)
    )
    gap = bound.total + data.log_prob(x0)
    assert gap.mean().abs() < 5 * gap.std() / n**0.5
    assert (bound.prior >= 0).all() and bound.prior.mean() < 1e-3


def test_a_worse_denoiser_pays_for_its_errors() -> None:
    """With x0_hat off by c everywhere, it grows by (snr high - snr low) c^2 / 2."""
    data, path, n = mixture(), schedules.log_linear(6.0, -12.0), 2000

    class Off(torch.nn.Module):
        schedule = path

        def forward(self, x, t):
            seen = data.denoiser(path)(x, t)
            from diffedu import Prediction

            return Prediction(x, seen.t, path, "x0", seen.x0 + 0.05)

    x0 = data.sample(n, seeded(10))
    right, wrong = (
        likelihood.continuous_bound(d, x0, looks=40, generator=seeded(11))
        for d in (data.denoiser(path), Off())
    )
    # the highest level is t_min's, 1e-5 below the path's own end
    snr = path.snr(path.t_min) - path.snr(path.t_max)
    extra = wrong.diffusion - right.diffusion
    want = 0.5 * snr.item() * 2 * 0.05**2
    assert within(extra.mean(), want, extra.std() / n**0.5)


def test_the_bound_knows_only_the_ends_of_the_path() -> None:
    data, n, ends = mixture(), 500, (-7.5, 9.0)
    x0, found = data.sample(n, seeded(12)), {}
    for name in ("linear", "cosine", "flow", "ve", "sub_vp"):
        denoise = data.denoiser(schedules.by_name(name))
        found[name] = likelihood.continuous_bound(
            denoise, x0, looks=20, ends=ends, generator=seeded(13)
        ).diffusion
    # the same levels and noise: equal sample by sample, not on average alone
    for name in ("cosine", "flow", "sub_vp", "ve"):
        assert_close(found[name], found["linear"], rtol=1e-6, atol=1e-6)


def test_it_is_the_loss_named_likelihood() -> None:
    """Uniform log-SNR and uniform time estimate one integral."""
    data, path, n = mixture(), schedules.log_linear(8.0, -8.0), 4000
    denoise, x0 = data.denoiser(path), data.sample(n, seeded(14))
    bound = likelihood.continuous_bound(denoise, x0, looks=4, generator=seeded(15))
    loss = losses.denoising(
        denoise, x0, "likelihood", per_sample=True, generator=seeded(16)
    )
    loss = 2 * loss * (path.t_max - path.t_min)
    error = (loss.var() / n + bound.diffusion.var() / n) ** 0.5
    assert within(loss.mean(), bound.diffusion.mean(), error)


def test_a_chains_kl_terms_come_down_to_the_integral() -> None:
    """Their sum is the integral's upper Riemann sum, between the chain's own ends."""
    data, path, n = gaussian(0.5, 2), schedules.log_linear(9.0, -12.0), 400
    x0, denoise, extra = data.sample(n, seeded(17)), data.denoiser(path), []
    for steps in (10, 100):
        chain = path.chain(steps)
        bound = losses.variational_bound(denoise, x0, chain, generator=seeded(19))
        ends = [(a / (1 - a)).log().item() for a in chain.alpha_bar[[-1, 0]]]
        integral = likelihood.continuous_bound(
            denoise, x0, looks=100, ends=tuple(ends), generator=seeded(18)
        )
        gap = 2 * bound.steps[:, 1:].sum(1) - integral.diffusion
        extra.append((gap.mean().item(), gap.std().item() / n**0.5))
    assert extra[0][0] > 1.0 and extra[0][0] > 4 * extra[1][0]
    assert -5 * extra[1][1] < extra[1][0] < 0.3 + 5 * extra[1][1]


def test_bins_turn_the_last_term_into_that_of_levels() -> None:
    """At a noise far below the bin's width, the level is certain."""
    x0 = torch.randint(0, 17, (50, 4), generator=seeded(20)) / 8.0 - 1.0
    denoise = mixture().denoiser(schedules.cosine())
    wide = GaussianMixture([1.0], torch.zeros(1, 4), [0.6]).denoiser(denoise.schedule)
    bound = likelihood.continuous_bound(
        wide, x0, looks=2, bin_width=1 / 8, generator=seeded(21)
    )
    assert bound.reconstruction.abs().max() < 1e-4
    assert_close(bound.bits_per_dim, bound.total / (4 * math.log(2)))


def test_the_bound_can_be_trained_on() -> None:
    net = nets.MLP(2, width=8, depth=1)
    denoise = Denoiser(net, schedules.cosine(), "v")
    x0 = torch.randn(4, 2, generator=seeded())
    likelihood.continuous_bound(denoise, x0, looks=2).total.mean().backward()
    assert all(p.grad is not None for p in net.stem.parameters())


def test_bad_bounds_are_refused() -> None:
    denoise, x0 = mixture().denoiser(schedules.cosine()), points(2)
    with pytest.raises(ValueError, match="at least 1 look"):
        likelihood.continuous_bound(denoise, x0, looks=0)
    with pytest.raises(ValueError, match="lowest, highest"):
        likelihood.continuous_bound(denoise, x0, ends=(3.0, -3.0))
    with pytest.raises(ValueError, match="NaN"):
        likelihood.continuous_bound(denoise, x0 * math.nan)
    narrow = mixture().denoiser(schedules.ve())
    with pytest.raises(ValueError, match="log-SNR from"):
        likelihood.continuous_bound(narrow, x0, ends=(-3.0, 30.0))


# --- the SDE of a path ------------------------------------------------------------


def test_sde_of_the_papers_paths() -> None:
    """f and g as printed for VP, VE and sub-VP (arXiv 2011.13456, eqs. 9, 11, 12)."""
    t = torch.linspace(0.01, 1, 50).double()
    beta, total = 0.1 + 19.9 * t, 0.1 * t + 9.95 * t**2
    sigma = 0.01 * 5000**t
    want = {
        "linear": (-beta / 2, beta.sqrt()),
        "sub_vp": (-beta / 2, (beta * (1 - (-2 * total).exp())).sqrt()),
        "ve": (0 * t, sigma * (2 * math.log(5000)) ** 0.5),
    }
    for name, (f, g) in want.items():
        found = schedules.by_name(name).sde(t)
        assert_close(found[0], f)
        assert_close(found[1], g)


@EVERY_PATH
def test_sde_moves_mean_and_variance_as_the_path_does(path) -> None:
    """alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2."""
    t = torch.linspace(0.05, 0.9 * path.t_max, 20).double()
    (alpha, sigma), (f, g) = path.coefficients(t), path.sde(t)
    alpha_rate, sigma_rate = path.rates(t)
    assert_close(f * alpha, alpha_rate)
    assert_close(2 * f * sigma**2 + g**2, 2 * sigma * sigma_rate)


def test_sde_is_refused_where_no_signal_is_left() -> None:
    with pytest.raises(ValueError, match="alpha is 0"):
        schedules.flow().sde(1.0)


def test_sub_vp_lies_below_vp_and_meets_it_at_the_ends() -> None:
    t = torch.linspace(0, 1, 200).double()
    vp, below = schedules.linear(), schedules.sub_vp()
    assert_close(below.alpha(t), vp.alpha(t))
    assert (below.sigma(t)[1:] < vp.sigma(t)[1:]).all()
    assert_close(below.sigma(1.0), vp.sigma(1.0), rtol=0, atol=1e-4)
