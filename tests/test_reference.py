"""Chains and samplers against diffusers, on networks in closed form: no weights.

diffusers keeps its tables in float32. They are compared as they are, to float32; for
the walks they are replaced by ours in float64, so that the steps are what is compared.
Its timestep k is our t = (k + 1) / T.
"""

from __future__ import annotations

import pytest
import torch
from oracle import mixture, oracle
from torch import Tensor, nn
from torch.testing import assert_close

diffusers = pytest.importorskip("diffusers")

# numpy's complaint about how diffusers makes arrays of tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

from diffedu import Denoiser, samplers, schedules  # noqa: E402
from diffedu.schedules import Chain  # noqa: E402

T = 1000
CHAINS = {
    "linear": schedules.linear().chain(T),
    "squaredcos_cap_v2": schedules.cosine().chain(T),
}
TYPES = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
EVERY_CHAIN = pytest.mark.parametrize("name", CHAINS)
EVERY_TYPE = pytest.mark.parametrize("kind", TYPES)
NEAR = dict(rtol=1e-5, atol=1e-5)


def start(n: int = 5) -> Tensor:
    """Where all walks begin: standard noise, in float64."""
    return torch.randn(n, 2, generator=seeded(), dtype=torch.float64)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(8)


def in_float64(scheduler, chain: Chain):
    """The scheduler with a chain's tables in place of its own float32 ones."""
    scheduler.alphas_cumprod = chain.alpha_bar
    return scheduler


def their_walk(
    scheduler, net: nn.Module, x: Tensor, steps: int | None = None, **options
) -> Tensor:
    """diffusers' loop, its timesteps told to the network as our times."""
    for k in scheduler.timesteps[:steps]:
        t = (k.double() + 1) / scheduler.config.num_train_timesteps
        x = scheduler.step(net(x, t.expand(len(x))), k, x, **options).prev_sample
    return x


def our_times(scheduler) -> Tensor:
    """The times of a scheduler's timesteps, and a final 0."""
    return torch.cat([(scheduler.timesteps.double() + 1) / T, torch.zeros(1)])


# --- tables -----------------------------------------------------------------------


@EVERY_CHAIN
def test_chains_are_theirs_to_float32(name: str) -> None:
    chain, theirs = CHAINS[name], diffusers.DDPMScheduler(beta_schedule=name)
    assert_close(chain.betas, theirs.betas.double(), rtol=1e-6, atol=1e-7)
    # their product of 1000 factors in float32 drifts by about 1e-5 of its value
    assert_close(chain.alpha_bar, theirs.alphas_cumprod.double(), rtol=5e-5, atol=1e-7)


@EVERY_CHAIN
def test_posterior_and_transition_variances_are_theirs(name: str) -> None:
    chain = CHAINS[name]
    theirs = in_float64(diffusers.DDPMScheduler(), chain)
    ks = range(1, T)
    small = torch.stack([theirs._get_variance(k) for k in ks])
    large = torch.stack([theirs._get_variance(k, None, "fixed_large") for k in ks])
    # they take 1 - abar by subtraction, which costs digits where abar is near 1
    assert_close(chain.posterior_variance[1:], small, rtol=1e-10, atol=0)
    assert_close(chain.betas[1:], large, rtol=1e-10, atol=0)


@EVERY_CHAIN
def test_zero_terminal_snr_is_theirs(name: str) -> None:
    chain = CHAINS[name]
    ours = chain.with_zero_terminal_snr()
    rescale = diffusers.schedulers.scheduling_ddpm.rescale_zero_terminal_snr
    assert_close(ours.betas, rescale(chain.betas), rtol=1e-9, atol=1e-12)
    assert ours.betas[-1] == 1 and ours.alpha_bar[-1] == 0
    theirs = diffusers.DDPMScheduler(beta_schedule=name, rescale_betas_zero_snr=True)
    assert_close(ours.alpha_bar, theirs.alphas_cumprod.double(), **NEAR)


@pytest.mark.parametrize("steps", (7, 10, 50, 1000))
@pytest.mark.parametrize("spacing", ("trailing", "leading"))
def test_time_grids_are_theirs(spacing: str, steps: int) -> None:
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    path = CHAINS["linear"].schedule
    assert_close(samplers.time_grid(path, steps, spacing, 1.0), our_times(theirs))


# --- walks ------------------------------------------------------------------------


class WithVariance(nn.Module):
    """A net's answer beside a fraction in [-1, 1] that varies with x."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([self.net(x, t), x.flip(1).sin()], 1)


VARIANCES = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}


@pytest.mark.parametrize("respaced", (False, True))
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("path", (schedules.linear(), schedules.cosine()), ids=CHAINS)
def test_ancestral_walks_are_theirs(path, variance: str, respaced: bool) -> None:
    chain, steps = path.chain(100), 30 if respaced else 100
    net, learned = oracle(chain.schedule, "v").net, variance == "learned_range"
    net = WithVariance(net) if learned else net
    denoise = Denoiser(net, chain.schedule, "v", learns_variance=learned)
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=100,
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        variance_type=variance,
    )
    in_float64(theirs, chain).set_timesteps(steps)
    times = samplers.time_grid(chain.schedule, steps, "trailing", start=1.0)
    if respaced:  # their last step would add noise to the clean data; ours never does
        steps, times = steps - 1, times[:-1]
    want = their_walk(theirs, net, start(), steps, generator=seeded())
    options = dict(variance=VARIANCES[variance], generator=seeded())
    assert_close(samplers.ancestral(denoise, start(), times, **options), want, **NEAR)


@pytest.mark.parametrize("eta", (0.0, 0.4, 1.0))
@pytest.mark.parametrize("spacing", ("trailing", "leading"))
@EVERY_TYPE
@EVERY_CHAIN
def test_ddim_walks_are_theirs(name: str, kind: str, spacing: str, eta: float) -> None:
    chain, denoise = CHAINS[name], oracle(CHAINS[name].schedule, TYPES[kind])
    theirs = diffusers.DDIMScheduler(
        clip_sample=False, prediction_type=kind, timestep_spacing=spacing
    )
    in_float64(theirs, chain).set_timesteps(20)
    want = their_walk(theirs, denoise.net, start(), eta=eta, generator=seeded())
    times = samplers.time_grid(chain.schedule, 20, spacing, start=1.0)
    ours = samplers.ddim(denoise, start(), times, eta=eta, generator=seeded())
    assert_close(ours, want, **NEAR)


def test_ddim_from_pure_noise_is_theirs() -> None:
    chain = CHAINS["linear"].with_zero_terminal_snr()
    theirs = diffusers.DDIMScheduler(
        clip_sample=False, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    in_float64(theirs, chain).set_timesteps(25)

    def at_the_mean(x: Tensor, t: Tensor) -> Tensor:
        """The v of x0 = (0.3, -0.6), known at t = 1 too, where x = eps."""
        alpha, sigma = (c[:, None] for c in chain.schedule.coefficients(t))
        x0 = x.new_tensor([0.3, -0.6])
        return (alpha * x - x0) / sigma

    denoise = Denoiser(at_the_mean, chain.schedule, "v")
    times = samplers.time_grid(chain.schedule, 25, "trailing", start=1.0)
    want = their_walk(theirs, at_the_mean, start())
    assert_close(samplers.ddim(denoise, start(), times), want, **NEAR)
    # at the end this model gives its one x0 whatever the steps: look halfway too
    halfway = samplers.ddim(denoise, start(), times[:13])
    assert_close(halfway, their_walk(theirs, at_the_mean, start(), 12), **NEAR)


@pytest.mark.parametrize("steps", (10, 40))
@EVERY_TYPE
@EVERY_CHAIN
def test_dpm_solver_pp_walks_are_theirs(name: str, kind: str, steps: int) -> None:
    chain, denoise = CHAINS[name], oracle(CHAINS[name].schedule, TYPES[kind])
    theirs = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        prediction_type=kind,
        lambda_min_clipped=-5.1,  # the cosine chain's end has no signal to speak of
    )
    in_float64(theirs, chain)
    theirs.lambda_t = 0.5 * (chain.alpha_bar / (1 - chain.alpha_bar)).log()
    theirs.set_timesteps(steps)
    sigmas = ((1 - chain.alpha_bar) / chain.alpha_bar).sqrt()[theirs.timesteps]
    theirs.sigmas = torch.cat([sigmas, torch.zeros(1)])
    # each of their steps rounds x to float32
    want = their_walk(theirs, denoise.net, start())
    ours = samplers.dpm_solver_pp_2m(denoise, start(), our_times(theirs))
    assert_close(ours, want, **NEAR)


@pytest.mark.parametrize("kind", ("epsilon", "sample"))
def test_heun_on_edms_path_is_theirs(kind: str) -> None:
    theirs = diffusers.HeunDiscreteScheduler(
        beta_start=1e-4, beta_end=0.02, prediction_type=kind, use_karras_sigmas=True
    )
    theirs.set_timesteps(18)
    theirs.sigmas = theirs.sigmas.double()
    levels = torch.cat([theirs.sigmas[:1], theirs.sigmas[1::2]])
    path = schedules.edm(sigma_max=levels[0].item())
    times, denoise = levels / path.sigma_max, oracle(path, TYPES[kind])
    x = want = start() * path.sigma_max
    # every level but the first and the last 0 is looked at twice
    looks = torch.cat([times[:1], times[1:-1].repeat_interleave(2)])
    for k, t in zip(theirs.timesteps, looks, strict=True):
        out = denoise.net(want, t.expand(len(want)))
        want = theirs.step(out, k, want).prev_sample
    assert_close(samplers.heun(denoise, x, times), want, **NEAR)


def test_karras_grid_is_theirs() -> None:
    theirs = diffusers.HeunDiscreteScheduler(use_karras_sigmas=True)
    levels = theirs._convert_to_karras(torch.tensor([80.0, 0.002]), 18)
    path = schedules.edm()
    ours = path.sigma(samplers.time_grid(path, 18, "karras"))
    assert_close(ours[:-1], torch.from_numpy(levels), **NEAR)


def test_the_comparison_can_fail() -> None:
    """A walk on the wrong chain ends elsewhere, by far more than the tolerance."""
    denoise = oracle(CHAINS["linear"].schedule, "eps", mixture())
    theirs = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    in_float64(theirs, CHAINS["squaredcos_cap_v2"]).set_timesteps(20)
    want = their_walk(theirs, denoise.net, start())
    times = samplers.time_grid(denoise.schedule, 20, start=1.0)
    assert (samplers.ddim(denoise, start(), times) - want).abs().max() > 1e-3
