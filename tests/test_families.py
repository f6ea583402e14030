"""The other families: VAE, RealNVP, GAN and EBM against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from diffedu import GaussianMixture, families, training
from diffedu.families import GAN, VAE, Chains, Coupling, EnergyModel, RealNVP


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int = 7, dim: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=dice(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# --- what they share --------------------------------------------------------------


def test_flops_are_those_of_the_matrix_products():
    net = families.mlp(3, 5, width=8, depth=2)
    x = torch.randn(10, 3)
    forward = 2 * 10 * (3 * 8 + 8 * 8 + 8 * 5)
    assert families.count(lambda: net(x), net) == (forward, 1)
    # backwards every layer costs twice as much, but x needs no gradient
    both = families.count(lambda: net(x).sum().backward(), net)
    assert both == (3 * forward - 2 * 10 * 3 * 8, 1)


def test_flops_are_those_of_torchs_counter():
    from torch.utils.flop_counter import FlopCounterMode

    model, x = RealNVP(3, 4, width=8), torch.randn(10, 3)
    with FlopCounterMode(display=False) as counter:
        model.loss(x).backward()
    cost = families.count(lambda: model.loss(x).backward())
    assert cost.flops == counter.get_total_flops() > 0


def test_a_gradient_inside_of_a_loss_is_counted():
    """A step of Langevin goes forwards, and backwards to x alone."""
    model = EnergyModel(3, width=8, depth=1)
    cost = families.count(lambda: families.langevin(model, torch.randn(10, 3), 0.1, 4))
    assert cost.flops == 4 * 2 * (2 * 10 * (3 * 8 + 8))


def test_calls_are_counted_and_the_hook_goes():
    net = families.mlp(2, 2)
    cost = families.count(lambda: [net(torch.zeros(1, 2)) for _ in range(4)], net)
    assert cost.calls == 4 and not net._forward_hooks
    with pytest.raises(TypeError, match="lambda"):
        families.count(net(torch.zeros(1, 2)))
    with pytest.raises(ZeroDivisionError):
        families.count(lambda: 1 / 0, net)
    assert not net._forward_hooks


@pytest.mark.parametrize("make", [VAE, RealNVP, GAN, EnergyModel])
@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": 0}, {"width": 1.5}])
def test_sizes_are_whole_and_positive(make, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**wrong)


@pytest.mark.parametrize("make", [VAE, RealNVP, GAN])
def test_samples_have_their_shape_and_follow_the_generator(make):
    model = make(dim=3)
    x = model.sample(5, dice(1))
    assert x.shape == (5, 3) and not x.requires_grad
    assert_close(x, model.sample(5, dice(1)), rtol=0, atol=0)
    assert not torch.equal(x, model.sample(5, dice(2)))
    with pytest.raises(ValueError, match="cannot draw 0"):
        model.sample(0)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: VAE().elbo(x),
        lambda x: RealNVP().log_prob(x),
        lambda x: EnergyModel()(x),
        lambda x: RealNVP().couplings[0].inverse(x),
    ],
)
@pytest.mark.parametrize(
    "x", [torch.zeros(4, 3), torch.zeros(2), torch.zeros(4, 2).int()]
)
def test_points_of_another_shape_are_refused(ask, x):
    with pytest.raises(ValueError, match=r"needs shape \(B, 2\)"):
        ask(x)


# --- VAE --------------------------------------------------------------------------


def test_gaussian_log_prob_and_kl_are_torchs():
    x, mean, log_std = points(), points(seed=1), 0.3 * points(seed=2)
    q = Independent(Normal(mean, log_std.exp()), 1)
    assert_close(families.gaussian_log_prob(x, mean, log_std), q.log_prob(x))
    p = Normal(torch.zeros(()).double(), torch.ones(()).double())
    expected = kl_divergence(Normal(mean, log_std.exp()), p)
    assert_close(families.standard_kl(mean, log_std), expected)


class Linear(VAE):
    """x = W z + std eps, whose exact posterior is the encoder's answer."""

    def __init__(self, exact: bool = True) -> None:
        super().__init__(std=0.5)
        self.double()
        # orthogonal columns, or the posterior's covariance would not be diagonal
        self.W = torch.tensor([[1.0, -0.6], [0.5, 1.2]], dtype=torch.float64)
        self.decoder = nn.Linear(2, 2, bias=False)
        self.decoder.weight = nn.Parameter(self.W)
        self.exact = exact

    def encode(self, x):
        precision = self.W.square().sum(0) / 0.25 + 1
        mean = x @ self.W / 0.25 / precision
        log_std = -0.5 * precision.log().expand_as(mean)
        return (mean, log_std) if self.exact else (0.8 * mean, log_std + 0.3)

    def truth(self, x):
        cov = self.W @ self.W.T + 0.25 * torch.eye(2)
        return MultivariateNormal(torch.zeros(2).double(), cov).log_prob(x)


def test_with_the_exact_posterior_both_bounds_are_the_likelihood():
    model, x = Linear(), points()
    assert_close(model.importance_bound(x, 3, dice()), model.truth(x))
    many = torch.stack([model.elbo(x, dice(k)) for k in range(4000)])
    gap = (many.mean(0) - model.truth(x)).abs() / (many.std(0) / 4000**0.5)
    assert gap.max() < 5


def test_a_wrong_posterior_loosens_the_bound_and_draws_tighten_it():
    model, x = Linear(exact=False), points(2000)
    bounds = [model.importance_bound(x, k, dice(k)).mean() for k in (1, 4, 32)]
    truth = model.truth(x).mean()
    assert bounds[0] + 0.05 < bounds[1] and bounds[1] + 0.02 < bounds[2]
    assert bounds[2] < truth and truth - bounds[2] < 0.02


def test_one_draw_is_the_elbo_on_average():
    model, x = Linear(exact=False), points(5000)
    gap = model.importance_bound(x, 1, dice(1)) - model.elbo(x, dice(2))
    assert gap.mean().abs() < 5 * gap.std() / 5000**0.5


def test_recorded_noise_is_used_and_checked():
    model, x, noise = Linear(), points(), points(seed=3)
    mean, log_std = model.encode(x)
    z = mean + log_std.exp() * noise
    seen = families.gaussian_log_prob(x, model.decoder(z), model.log_std)
    expected = seen - families.standard_kl(mean, log_std).sum(1)
    assert_close(model.elbo(x, noise=noise), expected)
    with pytest.raises(ValueError, match="the latent has shape"):
        model.elbo(x, noise=noise[:3])
    with pytest.raises(ValueError, match="draws must be at least 1"):
        model.importance_bound(x, 0)
    with pytest.raises(ValueError, match="std must be above 0"):
        VAE(std=0.0)


def test_a_vae_samples_its_own_density():
    model = Linear()
    x = model.sample(40_000, dice())
    cov = model.W @ model.W.T + 0.25 * torch.eye(2)
    assert_close(x.T.cov(), cov, rtol=0, atol=5 * 2 * (2 / 40_000) ** 0.5)


def test_a_given_std_is_not_trained():
    assert VAE(learn_std=True).log_std.requires_grad
    assert not VAE(learn_std=False).log_std.requires_grad


# --- RealNVP ----------------------------------------------------------------------


def flow(dim: int = 2, layers: int = 4) -> RealNVP:
    """A flow far from the identity, in float64."""
    model = RealNVP(dim, layers, width=8, depth=1).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.7)
    return model


@settings(max_examples=25, deadline=None)
@given(
    dim=st.integers(2, 6), layers=st.integers(1, 5), n=st.integers(1, 5),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_inverse_is_exact_and_the_log_determinant_is_autograds(
    dim, layers, n, seed
):
    torch.manual_seed(seed)
    model, x = flow(dim, layers), points(n, dim, seed)
    z, log_det = model(x)
    assert_close(model.inverse(z), x, rtol=1e-7, atol=1e-7)
    for row, found in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda each: model(each[None])[0][0], row
        )
        assert_close(torch.linalg.slogdet(jacobian).logabsdet, found)


def test_a_flow_is_a_density():
    model = RealNVP(2, 4, width=8).double()
    axis = -10 + 20 * (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    with torch.no_grad():
        inside = model.log_prob(torch.cartesian_prod(axis, axis)).exp().sum()
    assert (inside * (20 / 500) ** 2).item() == pytest.approx(1.0, abs=1e-3)


def test_a_flow_samples_what_its_density_says():
    model = flow().requires_grad_(False)
    x = model.sample(20_000, dice())
    z, log_det = model(x)
    assert_close(z.mean(0), torch.zeros(2).double(), rtol=0, atol=5 / 20_000**0.5)
    normal = Independent(Normal(torch.zeros(2).double(), 1.0), 1)
    assert_close(model.log_prob(x), normal.log_prob(z) + log_det)


def test_the_masks_alternate_and_kept_coordinates_stay():
    model = RealNVP(3, 2)
    first, second = (c.mask for c in model.couplings)
    assert torch.equal(first, ~second)
    x = torch.randn(4, 3)
    z, _ = model.couplings[0](x)
    assert torch.equal(z[:, first], x[:, first])
    assert not torch.equal(z[:, ~first], x[:, ~first])


@pytest.mark.parametrize("mask", [[1, 1], [0, 0], [[1, 0]]])
def test_masks_that_couple_nothing_are_refused(mask):
    with pytest.raises(ValueError, match="the mask"):
        Coupling(torch.tensor(mask))


def test_a_flow_of_one_dimension_is_refused():
    with pytest.raises(ValueError, match="at least 2 coordinates"):
        RealNVP(dim=1)


# --- GAN --------------------------------------------------------------------------


def test_losses_are_cross_entropies():
    real, fake = points()[:, 0], points(5, seed=1)[:, 0]
    ones, zeros = torch.ones_like, torch.zeros_like
    entropy = binary_cross_entropy_with_logits
    judged = entropy(real, ones(real)) + entropy(fake, zeros(fake))
    assert_close(families.discriminator_loss(real, fake), judged)
    assert_close(families.generator_loss(fake), entropy(fake, ones(fake)))
    minimax = -entropy(fake, zeros(fake))
    assert_close(families.generator_loss(fake, saturating=True), minimax)


def test_the_minimax_gradient_fades_and_the_other_does_not():
    sure = torch.full((1,), -12.0, requires_grad=True)
    for saturating, size in ((True, 6.1e-6), (False, 1.0)):
        loss = families.generator_loss(sure, saturating)
        (slope,) = torch.autograd.grad(loss, sure)
        assert_close(slope.abs().item(), size, rtol=0.02, atol=0)
        assert slope < 0  # both push the logit up


def test_the_penalty_is_the_squared_slope():
    judge = nn.Linear(3, 1)
    found = families.gradient_penalty(judge, torch.randn(6, 3))
    assert_close(found, judge.weight.square().sum())
    (slope,) = torch.autograd.grad(found, judge.weight)
    assert_close(slope, 2 * judge.weight.detach())
    with torch.no_grad():
        assert families.gradient_penalty(judge, torch.randn(6, 3)) > 0


def spot(n: int, generator: torch.Generator) -> Tensor:
    return torch.tensor([1.0, -0.5]) + 0.3 * torch.randn(n, 2, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_game_moves_the_generator_to_the_data(seed):
    torch.manual_seed(seed)
    gan, draws = GAN(width=16, depth=1), dice(seed)
    before = (gan.sample(500, dice()).mean(0) - torch.tensor([1.0, -0.5])).norm()
    *_, turn = families.play(gan, lambda step: spot(64, draws), 400, generator=draws)
    after = (turn.model.sample(500, dice()).mean(0) - torch.tensor([1.0, -0.5])).norm()
    assert turn.step == 400 and after < 0.4 < before


def test_a_round_moves_both_players_and_is_repeatable():
    def two_rounds(**options):
        torch.manual_seed(3)
        gan, draws = GAN(width=8), dice(4)
        rounds = list(
            families.play(gan, lambda s: spot(8, draws), 2, generator=draws, **options)
        )
        return gan, rounds

    torch.manual_seed(3)
    start = GAN(width=8)
    gan, rounds = two_rounds()
    assert_close(two_rounds()[0].state_dict(), gan.state_dict(), rtol=0, atol=0)
    for name, p in gan.named_parameters():
        assert not torch.equal(p, start.state_dict()[name]), name
    assert rounds[0].penalty > 0 and two_rounds(gamma=0)[1][0].penalty == 0
    assert two_rounds(saturating=True)[1][0].generator_loss < 0


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"gamma": -1.0}])
def test_a_game_without_sense_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        families.play(GAN(), lambda step: torch.zeros(4, 2), **wrong)


# --- EBM --------------------------------------------------------------------------


def bowl(variance: float):
    return lambda x: x.square().sum(1) / (2 * variance)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_partition_function_of_a_gaussian(dim):
    model = EnergyModel(dim).double()
    nn.init.zeros_(model.net[-1].weight)
    nn.init.constant_(model.net[-1].bias, 0.7)
    expected = dim / 2 * math.log(2 * math.pi) - 0.7
    assert model.log_partition(6.0).item() == pytest.approx(expected, abs=1e-6)


def test_the_partition_function_needs_few_dimensions():
    with pytest.raises(ValueError, match=r"400\^3 cells"):
        EnergyModel(3).log_partition()
    with pytest.raises(ValueError, match="above 0"):
        EnergyModel(2).log_partition(limit=0)


def test_the_contrastive_gradient_is_that_of_the_likelihood():
    """With the model's own expectation, from a grid, in place of samples."""
    model = EnergyModel(2, width=6, depth=1).double()
    axis = torch.linspace(-7, 7, 141, dtype=torch.float64)
    grid, data = torch.cartesian_prod(axis, axis), points(50)
    parameters = list(model.parameters())[:-1]  # the last bias cancels
    exact = model(data).mean() + (-model(grid)).logsumexp(0)
    density = (-model(grid)).softmax(0).detach()
    # the same as contrastive_loss with samples drawn with these weights
    loss = model(data).mean() - (density * model(grid)).sum()
    for one, two in zip(
        torch.autograd.grad(exact, parameters),
        torch.autograd.grad(loss, parameters),
        strict=True,
    ):
        assert_close(one, two)
    many = grid[torch.multinomial(density, 100_000, True, generator=dice())]
    sampled = families.contrastive_loss(model, data, many)
    slopes = torch.autograd.grad(sampled, parameters)
    right = torch.autograd.grad(
        model(data).mean() - (density * model(grid)).sum(), parameters
    )
    assert_close(slopes, right, rtol=0.05, atol=0.02)


def test_langevin_has_the_variance_that_its_step_predicts():
    start = 0.6 * points(40_000)
    x = families.langevin(bowl(0.36), start, 0.1, 60, dice())
    expected = 0.36 / (1 - 0.1 / (2 * 0.36))
    assert abs(x.var() / expected - 1) < 5 * (2 / 80_000) ** 0.5


def test_recorded_noise_gives_one_step_by_hand():
    x, noise = points(), points(seed=1)[None]
    by_hand = x - 0.1 * x / 0.5 + 0.2**0.5 * noise[0]
    assert_close(families.langevin(bowl(0.5), x, 0.1, 1, noise=noise), by_hand)
    with pytest.raises(ValueError, match="the chains has shape"):
        families.langevin(bowl(0.5), x, 0.1, 2, noise=noise)
    with pytest.raises(ValueError, match="above 0"):
        families.langevin(bowl(0.5), x, 0.0, 1)


def test_langevin_follows_a_mixture():
    world = GaussianMixture([0.5, 0.5], [[-0.5, 0.0], [0.5, 0.3]], [0.4, 0.4])
    x = families.langevin(
        lambda x: -world.log_prob(x), torch.zeros(4000, 2), 0.01, 300, dice()
    )
    # the mean log-density under the truth, whose bias at this step is below 0.05
    gap = world.log_prob(x).mean() - world.log_prob(world.sample(4000, dice(1))).mean()
    assert abs(gap) < 0.1


def test_chains_go_on_unless_they_restart():
    walk = {"energy": bowl(1.0), "step": 1e-6, "steps": 1}
    kept = Chains(500, restart=0.0, generator=dice())
    before = kept.x.clone()
    assert (kept.walk(**walk) - before).abs().max() < 0.02
    anew = Chains(500, restart=1.0, generator=dice())
    before = anew.x.clone()
    assert (anew.walk(**walk) - before).abs().mean() > 0.5
    some = Chains(4000, restart=0.25, generator=dice())
    before = some.x.clone()
    moved = ((some.walk(**walk) - before).abs().amax(1) > 0.02).double().mean()
    assert abs(moved - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"size": 0}, "size=0"), ({"box": 0}, "box"), ({"restart": 1.5}, "a share")],
)
def test_chains_without_sense_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Chains(**{"size": 4, **wrong})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_persistent_chains_fit_a_gaussian(seed):
    torch.manual_seed(seed)
    model, draws = EnergyModel(width=16, depth=1), dice(seed)
    chains = Chains(128, generator=draws)
    states = training.fit(
        model,
        lambda x, _: families.contrastive_loss(model, x, chains.walk(model, 0.02, 5)),
        lambda step: spot(128, draws),
        steps=300, lr=1e-2, ema=0.98, progress=False,
    )  # fmt: skip
    *_, last = states
    fitted, test = last.ema, spot(2000, dice(9))
    log_prob = -fitted(test) - fitted.log_partition()
    truth = Independent(Normal(torch.tensor([1.0, -0.5]), 0.3), 1).log_prob(test)
    gap = (truth - log_prob).mean()
    assert 0 < gap < 0.1
