# %% [markdown]
# # 3. Score matching, Langevin dynamics and energy-based models
#
# Chapter 2 trained a network to name the noise, and derived that from a bound
# on the likelihood. This chapter arrives at the same network from another side:
# from the gradient of the log-density. After it you will be able to
#
# - write four losses for a score, three of which need only samples and no
#   normalising constant, and say why the fourth, denoising, is the one in use;
# - sample with that gradient, see where this goes wrong, and mend it with
#   noise;
# - tell a score from an arbitrary vector field, combine two models by adding
#   their scores, and say what that addition gets wrong.
#
# | | |
# |---|---|
# | surveys | A 2.1, eq. 10; B II |
# | needs | ch01, ch02 |
# | study | 6 hours |
# | figures | F08, F09, F10, F13, F13b |
# | receipt | 59 seconds on one CPU thread, 500 MB |

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import GaussianMixture, Prediction, losses, samplers, schedules, style
from diffedu.claims import claim, report

style.use()

# %% [markdown]
# ## 3.1 The score, and what it does without
#
# Any positive function can be made into a density. Write it as $e^{-E(x)}$ and
# divide by its integral $Z$:
#
# $$p(x) = \frac{e^{-E(x)}}{Z}, \qquad Z = \int e^{-E(x)}\,dx .$$
#
# $E$ is the **energy**: low where the density is high. In two dimensions $Z$
# can be computed on a grid. For a digit of $8\times8$ pixels a grid of ten
# points an axis has $10^{64}$ cells, and nobody computes $Z$. This is the
# reason for the whole chapter, because
#
# $$\nabla_x \log p(x) = -\nabla_x E(x) - \nabla_x \log Z = -\nabla_x E(x).$$
#
# $Z$ does not depend on $x$, so it is gone. The gradient of the log-density is
# called the **score**. (It is a gradient in $x$. Statisticians use the word for
# the gradient in the parameters.)
#
# Our data are a mixture of three Gaussian spots, about which everything is
# known.

# %%
from torch.testing import assert_close

weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
means = torch.tensor([[-1.2, -0.8], [1.2, -0.6], [0.0, 1.3]], dtype=torch.float64)
spot = 0.25  # standard deviation of each spot, along each axis
world = GaussianMixture(weights, means, torch.full((3,), spot))
x = world.sample(1000, torch.Generator().manual_seed(0))

# %% [markdown]
# For one Gaussian,
# $\log p = -\|x-\mu\|^2 / (2\,\mathrm{std}^2) + \text{const}$, and the score is
# a pull towards the mean, $(\mu - x)/\mathrm{std}^2$. A mixture averages the
# pulls of its components: the score is $\nabla p/p$, and the share of component
# $i$ in $p$ is the probability $p(i\mid x)$ that $x$ came from it,
#
# $$\nabla_x\log p(x) = \sum_i p(i \mid x)\,\frac{\mu_i - x}{\mathrm{std}^2}.$$

# %%
def mixture_score(x):
    pull = (means - x[:, None]) / spot**2
    return (world.responsibilities(x)[:, :, None] * pull).sum(1)


assert_close(mixture_score(x), world.score(x))

# %% [markdown]
# Now the point about $Z$. The energy below is off by a constant of our own
# invention, so that $e^{-E}$ integrates to something other than 1. Its
# gradient, by automatic differentiation, gives the score all the same.

# %%
def gradient(f, x):
    """df/dx for each row of x; f maps (B, D) to (B,)."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]

# %%
def energy(x):
    return -world.log_prob(x) + 7.3


assert_close(-gradient(energy, x), world.score(x))

# %% [markdown]
# Seen from above, the score is a wind that blows uphill on the density. Far
# from all spots it points home and is strong (the picture shortens it there).
# On top of a spot it is zero, and it is zero once more on the pass between two
# of them. Look for the places where neighbouring arrows disagree.

# %%
axis = torch.linspace(-2.5, 2.5, 61, dtype=torch.float64)
grid = torch.cartesian_prod(axis, axis)

# %%
def on_grid(values):
    """(3721,) values of the grid, as the picture that contour and pcolormesh take."""
    return values.reshape(61, 61).T

# %% [markdown]
# Arrows on a coarser grid. The long ones are shortened, or they would hide all
# others.

# %%
places = grid.reshape(61, 61, 2)[2::4, 2::4].reshape(-1, 2)
arrows = world.score(places)
arrows = arrows / arrows.norm(dim=1, keepdim=True).clamp(min=1) ** 0.7

# %%
fig, ax = plt.subplots(figsize=(4.6, 4.2))
ax.contourf(axis, axis, on_grid(world.log_prob(grid).exp()), levels=8, cmap="Greys")
ax.quiver(*places.T, *arrows.T, color=style.colour("score"), scale=55, width=0.004)
ax.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
ax.set_title("The score points uphill on the density")
style.show(fig, "Density of three spots in grey, with arrows of the score on a "
           "grid. Arrows point towards the spots; between two spots "
           "neighbouring arrows part. Long ones are shortened.")

# %% [markdown]
# ## 3.2 Four losses for one thing
#
# A model $s_\theta(x)$ of the score should be close to the truth where data
# are. That is **explicit score matching**, an ordinary regression (Hyvärinen
# 2005):
#
# $$L_\mathrm{ESM}
# = \tfrac12\, \mathbb E_{p(x)} \big\| s_\theta(x) - \nabla\log p(x) \big\|^2 .$$
#
# To have something to measure, `model` is a small network that nobody has
# trained.

# %%
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
).double().requires_grad_(False)

# %%
def esm(score, x):
    return 0.5 * (score(x) - world.score(x)).square().sum(1).mean()


assert_close(esm(model, x), losses.explicit_score_matching(model, x, world.score))

# %% [markdown]
# With real data $\nabla\log p$ is exactly what we do not have. Hyvärinen's idea
# was to get rid of it by integrating by parts. Multiply the square out. The
# term $\|s_\theta\|^2$ needs only samples, $\|\nabla\log p\|^2$ is a constant
# for $\theta$, and the cross term is, since $p\,\nabla\log p = \nabla p$,
#
# $$-\int p\; s_\theta\cdot\nabla\log p\;dx = -\int s_\theta\cdot\nabla p\;dx
# = \int p\;\operatorname{tr}\!\big(\nabla s_\theta\big)\,dx ,$$
#
# if $p\,s_\theta$ vanishes far out. What is left is **implicit score matching**
# (Hyvärinen 2005, theorem 1), in which no true score occurs:
#
# $$L_\mathrm{ISM} = \mathbb E_{p(x)}\Big[\tfrac12\|s_\theta(x)\|^2
# + \operatorname{tr}\!\big(\nabla s_\theta(x)\big)\Big]
# = L_\mathrm{ESM} - \tfrac12\mathbb E\|\nabla\log p\|^2 .$$
#
# The trace is $\sum_i \partial s_i/\partial x_i$. Each term is one pass
# backwards, of which one column is kept. `create_graph=True` lets us
# differentiate this derivative once more, in $\theta$.

# %%
def trace(s, x):
    """sum_i ds_i/dx_i for each row, by one pass backwards a dimension."""
    total = 0
    for i in range(x.shape[1]):
        row = torch.autograd.grad(s[:, i].sum(), x, create_graph=True)[0]
        total = total + row[:, i]
    return total

# %%
def ism(score, x):
    x = x.detach().requires_grad_()
    s = score(x)
    return (0.5 * s.square().sum(1) + trace(s, x)).mean()


assert_close(ism(model, x), losses.implicit_score_matching(model, x))

# %% [markdown]
# Does it differ from the explicit loss by a constant, as claimed? For two
# models that have nothing in common, and one large sample, ESM minus ISM should
# be $\frac12\mathbb E\|\nabla\log p\|^2$ both times.

# %%
# NBVAL_CHECK_OUTPUT
many = world.sample(200_000, torch.Generator().manual_seed(1))
constant = 0.5 * world.score(many).square().sum(1).mean()
for name, score in {"network": model, "pull to 0": lambda x: -x}.items():
    gap = esm(score, many) - ism(score, many)
    print(f"{name:10s} ESM - ISM = {gap:.1f}, E|score|^2 / 2 = {constant:.1f}")

# %% [markdown]
# An exact trace costs $D$ passes backwards: two here, 3,072 for an image of
# $32\times32$ in colour. **Hutchinson's estimator** needs one. For a random
# vector $\xi$ with $\mathbb E[\xi \xi^\top] = I$,
#
# $$\mathbb E\big[\xi^\top A\, \xi\big]
# = \operatorname{tr}\big(A\,\mathbb E[\xi \xi^\top]\big) = \operatorname{tr} A ,$$
#
# and $\xi^\top \nabla s$ is the gradient of the single number $\xi\cdot s$.
# Random signs have $\xi_i^2 = 1$, so with them the diagonal comes out exactly,
# and only what stands beside it adds noise.

# %%
def along(s, x, xi):
    """xi^T (grad s) xi for each row, by one pass backwards."""
    row = torch.autograd.grad((s * xi).sum(), x, create_graph=True)[0]
    return (row * xi).sum(1)

# %% [markdown]
# With it, implicit score matching costs one pass more than a plain loss, in any
# dimension:

# %%
def ism_hutchinson(score, x, xi):
    x = x.detach().requires_grad_()
    s = score(x)
    return (0.5 * s.square().sum(1) + along(s, x, xi)).mean()

# %% [markdown]
# The library draws its signs from a generator. With a generator of the same
# seed we draw the same ones.

# %%
def seeded():
    return torch.Generator().manual_seed(3)


xi = torch.randn(x.shape, generator=seeded(), dtype=x.dtype)
ours = ism_hutchinson(model, x, xi.sign())
theirs = losses.implicit_score_matching(model, x, probes=1, generator=seeded())
assert_close(ours, theirs)

# %% [markdown]
# **Sliced score matching** goes one step further and compares the two scores
# only along a random direction $\xi$. The same integration by parts then gives
# (1905.07088)
#
# $$L_\mathrm{SSM} = \mathbb E\,\Big[\xi^\top\nabla s_\theta(x)\,\xi
# + \tfrac12\big(\xi^\top s_\theta(x)\big)^2\Big].$$
#
# Averaged over $\xi$ it is $L_\mathrm{ISM}$ again, because
# $\mathbb E(\xi^\top s)^2 = \|s\|^2$. Here $\xi$ is normal.

# %%
def ssm(score, x, xi):
    x = x.detach().requires_grad_()
    s = score(x)
    return (along(s, x, xi) + 0.5 * (xi * s).sum(1).square()).mean()


theirs = losses.sliced_score_matching(model, x, generator=seeded())
assert_close(ssm(model, x, xi), theirs)

# %% [markdown]
# Implicit and sliced score matching differentiate the network in $x$, and then
# in $\theta$, which is slow, and neither trains the diffusion models in use.
# **Denoising score matching** does (Vincent 2011; 1907.05600, eq. 5). It gives
# up on $p$ itself and asks for the score of the data *with noise*: of
# $q_\sigma$, the distribution of $x_t = x_0 + \sigma\varepsilon$. In exchange
# no derivative is left:
#
# $$L_\mathrm{DSM} = \tfrac12\,\mathbb E_{x_0,\,\varepsilon} \Big\| s_\theta(x_0
# + \sigma\varepsilon) + \frac{\varepsilon}{\sigma} \Big\|^2 .$$
#
# Where does $-\varepsilon/\sigma$ come from? It is the score of the noise that
# we added: $q(x_t\mid x_0)$ is a Gaussian around $x_0$, so
# $\nabla_{x_t}\log q(x_t\mid x_0) = -(x_t - x_0)/\sigma^2 = -\varepsilon/\sigma$.

# %%
def dsm(score, x0, sigma, eps):
    x_t = x0 + sigma * eps
    return 0.5 * (score(x_t) + eps / sigma).square().sum(1).mean()


eps = torch.randn(x.shape, generator=seeded(), dtype=x.dtype)
theirs = losses.denoising_score_matching(model, x, sigma=0.5, noise=eps)
assert_close(dsm(model, x, 0.5, eps), theirs)

# %% [markdown]
# ## 3.3 Why denoising is score matching
#
# The target $-\varepsilon/\sigma$ is a single random draw. It is not the score
# of $q_\sigma$ at $x_t$. Why may we regress on it? Because it is right *on
# average*. From $q_\sigma(x_t) = \int p(x_0)\,q(x_t\mid x_0)\,dx_0$ follows
#
# $$\nabla q_\sigma(x_t) = \int p(x_0)\,q(x_t\mid x_0)\,
# \nabla\log q(x_t\mid x_0)\,dx_0,$$
#
# and dividing by $q_\sigma(x_t)$ turns $p(x_0)\,q(x_t\mid x_0)$ into the
# posterior of $x_0$:
#
# $$\nabla\log q_\sigma(x_t)
# = \mathbb E\Big[-\frac{\varepsilon}{\sigma}\,\Big|\, x_t\Big].$$
#
# A regression learns the mean of its targets. So $L_\mathrm{DSM}$ is
# $L_\mathrm{ESM}$ for $q_\sigma$ plus the variance of the targets, on which
# $\theta$ has no influence (Vincent 2011). The losses differ by a constant;
# their gradients in $\theta$ are the same.
#
# That can be measured. Take the linear model $s_\theta(x) = Wx + b$ with six
# parameters. The gradient of half a squared residual is the residual times the
# input, so each sample gives one draw of it, and the mean has error bars. The
# losses get independent samples. As a control, a third one aims at the score of
# the *clean* data at the noisy points: the mistake of forgetting that noise
# changed the density.

# %%
sigma, n = 0.5, 200_000
linear = torch.tensor([[-0.6, 0.3, 0.1], [0.2, -0.9, -0.4]], dtype=torch.float64)

# %%
def gradients(target, seed):
    """Mean and standard error of d loss / d (W, b), each of shape (6,)."""
    generator = torch.Generator().manual_seed(seed)
    x0 = world.sample(n, generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    x_t = x0 + sigma * eps
    inputs = torch.cat([x_t, torch.ones(n, 1)], 1)
    residual = inputs @ linear.T - target(x_t, eps)
    each = (residual[:, :, None] * inputs[:, None]).flatten(1)
    return each.mean(0), each.std(0) / n**0.5

# %% [markdown]
# How far apart are two such means, in standard errors of their difference? Five
# is the bound of this course: chance alone goes beyond it once in 1.7 million.

# %%
noised = world.noised(1.0, sigma)
explicit = gradients(lambda x_t, eps: noised.score(x_t), seed=2)

# %%
def apart(one, two):
    return (one[0] - two[0]).abs() / (one[1] ** 2 + two[1] ** 2).sqrt()


z_dsm = apart(gradients(lambda x_t, eps: -eps / sigma, seed=1), explicit)
z_clean = apart(gradients(lambda x_t, eps: world.score(x_t), seed=3), explicit)

# %% [markdown]
# The same equation settles **Tweedie's formula** of chapter 1 for this path.
# Multiply it by $\sigma^2$ and use $\sigma\varepsilon = x_t - x_0$:
#
# $$\hat x_0 = \mathbb E[x_0 \mid x_t] = x_t + \sigma^2\,\nabla\log q_\sigma(x_t).$$
#
# The left side can be had from Bayes' rule without any score: given component
# $k$, the posterior mean lies at
# $\mu_k + \frac{\mathrm{std}^2}{\mathrm{std}^2+\sigma^2}(x_t - \mu_k)$, and the
# components are averaged by their probability.

# %%
def posterior_mean(x_t, sigma):
    share = spot**2 / (spot**2 + sigma**2)
    of_each = means + share * (x_t[:, None] - means)
    likely = world.noised(1.0, sigma).responsibilities(x_t)
    return (likely[:, :, None] * of_each).sum(1)

# %%
line = torch.stack([axis, 0 * axis], 1)
by_bayes = {s: posterior_mean(line, s) for s in (0.2, 0.5, 1.5)}
by_score = {s: line + s**2 * world.noised(1.0, s).score(line) for s in by_bayes}
tweedie_error = max((by_bayes[s] - by_score[s]).abs().max() for s in by_bayes)

# %%
def draw_tweedie(ax):
    for shade, s in zip((0.35, 0.65, 1.0), by_bayes, strict=True):
        mean, dots = by_bayes[s][:, 0], by_score[s][::6, 0]
        ax.plot(axis, mean, color=style.colour("truth"), alpha=shade)
        ax.plot(axis[::6], dots, "o", ms=4, alpha=shade, color=style.colour("score"))
        ax.annotate(rf"$\sigma={s}$", (2.6, mean[-1]), annotation_clip=False)
    ax.set(xlabel="$x_{t,1}$, where $x_{t,2} = 0$", ylabel=r"$\hat x_{0,1}$")
    ax.set_title("Bayes (lines) is Tweedie (dots)")

# %% tags=["F10"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.5))
left.semilogy(z_clean, "x", ms=9, color=style.colour("learned"))
left.semilogy(z_dsm, "o", color=style.colour("dsm"))
left.axhline(5, color=style.colour("truth"), lw=1, ls=":")
left.annotate("target: clean score", (1.2, 60), color=style.colour("learned"))
left.annotate(r"target: $-\varepsilon/\sigma$", (0.1, 0.1), color=style.colour("dsm"))
names = "W_{11} W_{12} b_1 W_{21} W_{22} b_2".split()
left.set_xticks(range(6), [f"${name}$" for name in names])
left.set(ylim=(0.02, 400), ylabel="distance from ESM's, in s.e.")
left.set_title("Denoising has ESM's gradient")
draw_tweedie(right)
style.show(fig, "Left: distance of six gradients from those of explicit score "
           "matching, in standard errors: below 5 for the denoising target, "
           "above 100 for two of the control's. Right: posterior means at "
           "three noise levels; dots of Tweedie's formula lie on curves from "
           "Bayes' rule.")
claim("F10", "the gradients agree within 5 s.e.; the denoiser is x + sigma^2 score",
      z_dsm.max() < 5 and tweedie_error < 1e-5, z=z_dsm.max(),
      control_z=z_clean.max(), tweedie_below_1e5=bool(tweedie_error < 1e-5))

# %% [markdown]
# Two of the six parameters do not notice the control's mistake: a test of one
# number could miss it.
#
# Now the dictionary between the chapters is complete. Two numbers of the path,
# $\alpha_t$ and $\sigma_t$, translate all of it:
#
# $$s_\theta(x_t, t) = -\frac{\hat\varepsilon}{\sigma_t} =
# \frac{\alpha_t\,\hat x_0 - x_t}{\sigma_t^2} .$$
#
# The network of chapter 2 that names the noise *is* a score network, and
# chapter 1's best denoiser is one too. The right-hand side is also the end of
# the survey's eq. 10. The path in this chapter is the variance-exploding one:
# $\alpha = 1$, and $\sigma$ rises geometrically with $t$.

# %%
ve = schedules.ve(sigma_min=0.05, sigma_max=5.0)


def time_of(sigma):
    """The time at which the path has that much noise: log-SNR is -2 log sigma."""
    return ve.time_of_log_snr(-2 * torch.tensor(sigma, dtype=torch.float64).log())

# %% [markdown]
# The library's denoiser of our mixture answers under every name at once:

# %%
seen = world.denoiser(ve)(line, time_of(0.5))
assert_close(seen.x0, by_bayes[0.5])
assert_close(seen.score, -seen.eps / 0.5)
assert_close(seen.score, noised.score(line))

# %% [markdown]
# ## 3.4 One noise level is not enough
#
# So far the truth was known. Now networks learn from samples. All of them
# predict $\hat\varepsilon$, and it is worth asking which score loss that is.
# Insert $s_\theta = -\hat\varepsilon/\sigma$ into $L_\mathrm{DSM}$ and multiply
# by $\sigma^2$:
#
# $$\sigma^2\, L_\mathrm{DSM}
# = \tfrac12\,\mathbb E\,\big\|\varepsilon - \hat\varepsilon\big\|^2 .$$
#
# NCSN, the paper that started score-based generation, trains one network on
# many levels and weighs each by $\lambda(\sigma) = \sigma^2$ (1907.05600, eq.
# 6). DDPM drops the weights of its bound and calls the rest $L_\mathrm{simple}$
# (2006.11239, eq. 14). It is the same loss on two lists of levels. One line
# confirms it. (The library's loss is a mean over the $D$ elements, where NCSN
# has half a sum: a factor of $2/D$.)

# %%
from diffedu import Denoiser, nets

torch.manual_seed(0)
untrained = Denoiser(nets.MLP(2, width=64, depth=3), ve, predicts="eps")

# %%
x0, t = x.float(), time_of(0.5)
ncsn = 0.5**2 * dsm(lambda x_t: untrained(x_t, t).score, x0, 0.5, eps.float())
ddpm = losses.denoising(untrained, x0, "simple", t=t, noise=eps.float())
assert_close(2 / x0.shape[1] * ncsn, ddpm)

# %% [markdown]
# Training is chapter 2's: draw data, noise and times, and step down the loss.
# `train` returns the network with averaged weights.

# %%
from diffedu import training


def train(net, data, t=None, steps=1500):
    """A denoiser on the path, trained at time t, or at all times if t is None."""
    denoise = Denoiser(net, ve, predicts="eps")
    draws = torch.Generator().manual_seed(1)
    states = training.fit(
        denoise,
        lambda x0, generator: losses.denoising(denoise, x0, t=t, generator=generator),
        lambda step: data(256, draws),
        steps=steps, lr=2e-3, progress=False,
        generator=torch.Generator().manual_seed(2),
    )
    *_, last = states
    return last.ema.requires_grad_(False)

# %% [markdown]
# Two networks of the same size get 1,500 steps each, from the same first
# weights. The first sees one level, $\sigma = 0.1$, which is close to clean
# data: the choice of someone who wants the score of the data and has never
# heard of diffusion. The second sees all levels from 0.05 to 5.

# %%
def world_data(n, generator):
    return world.sample(n, generator).float()

# %%
torch.manual_seed(0)
single = train(nets.MLP(2, width=64, depth=3), world_data, t=time_of(0.1))
torch.manual_seed(0)
free = train(nets.MLP(2, width=64, depth=3), world_data)

# %% [markdown]
# The loss weighs errors by the density: where no data fall, nobody corrects the
# network (1907.05600, section 3.2.1). So look at the error by density. Take a
# grid over the square, sort its points by $q_\sigma$, and compare the quarter
# of lowest density with the quarter of highest. In each, the relative error is
# the root of the summed squared error over that of the true score.

# %%
def errors(denoise, sigma):
    """The true density and score on the grid, and how far off the network is."""
    truth = world.noised(1.0, sigma)
    score = truth.score(grid)
    off = denoise(grid.float(), time_of(sigma)).score - score
    return truth.log_prob(grid), score, off

# %%
def relative_error(denoise, sigma):
    """In the quarter of lowest and the quarter of highest density."""
    log_q, score, off = errors(denoise, sigma)
    order, quarter = log_q.argsort(), len(grid) // 4
    parts = order[:quarter], order[-quarter:]
    return [(off[part].norm() / score[part].norm()).item() for part in parts]

# %%
levels = [0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 4.0]
by_level = [relative_error(free, sigma) for sigma in levels]
one = relative_error(single, 0.1)
control = relative_error(untrained, 0.1)

# %% [markdown]
# The picture: two maps of the error, in units of the score's root mean square,
# and both quarters over the noise level.

# %%
def draw_error(ax, denoise, sigma, title):
    log_q, score, off = errors(denoise, sigma)
    size = off.norm(dim=1) / score.square().sum(1).mean().sqrt()
    shown = ax.pcolormesh(axis, axis, on_grid(size), vmin=0, vmax=0.6, cmap="magma_r")
    ax.contour(axis, axis, on_grid(log_q.exp()), 4, colors="k", linewidths=0.6)
    ax.set(aspect="equal", title=title, xlabel="$x_1$", xticks=[-2, 0, 2])
    return shown


def draw_quarters(ax):
    names = {"rarest quarter": "learned", "densest quarter": "simple"}
    for k, (name, colour) in enumerate(names.items()):
        shade = style.colour(colour)
        ax.loglog(levels, [pair[k] for pair in by_level], "-o", color=shade)
        ax.plot([0.1], [one[k]], "*", ms=14, mfc="none", color=shade)
        ax.annotate(name, [(0.45, 0.25), (0.12, 0.047)][k], color=shade)
    ax.set_yticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
    ax.set_yticks([], minor=True)
    ax.set(xlabel=r"noise level $\sigma$", ylabel="relative error")

# %% tags=["F09"]
fig, (a, b, c) = plt.subplots(1, 3, figsize=(10, 3.2), width_ratios=[1, 1.1, 1.3])
draw_error(a, single, 0.1, "Trained and asked at 0.1")
a.set_ylabel("$x_2$")
shown = draw_error(b, free, 1.0, "All levels, asked at 1")
fig.colorbar(shown, ax=b, label="error / r.m.s. score")
draw_quarters(c)
c.set_title("Noise helps where data are rare")
style.show(fig, "Two maps of the score's error and a plot over the noise level. "
           "Near clean data the error is large between the spots; from level "
           "0.7 on the rarest quarter is no worse than the densest. Stars: the"
           " net of one level.")
ratio = [low / high for low, high in (one, by_level[0], by_level[4], control)]
claim("F09", "near clean data a score is worst where data are rare; at noise 1 not",
      ratio[0] > 1 and ratio[2] < ratio[0], low=one[0], high=one[1], ratio=ratio[0],
      ratio_at_noise_1=ratio[2], all_levels_at_0_1=ratio[1], control_untrained=ratio[3])

# %% [markdown]
# The error on the right is relative to the score. At the centre the score is
# small, so that a small error counts more there, which is why the densest
# quarter's curve rises. Read the numbers with care. *At the level 0.1*, the
# network of all levels is hardly better in the rare places than the other one
# (a relative error of 0.26 to 0.30 against 0.29 to 0.32 on ten seeds): noise
# does not repair the score of clean data. What it does is give us other
# densities, $q_1$ for one, for which these places are not rare. A sampler can
# use them for the part of its way that leads through the empty regions, and
# ask for the fine level only when it has arrived. That is the plan of 3.6. (On
# ten seeds the ratio of the two quarters was 2.6 to 3.1 for the single level,
# and 0.4 to 0.9 at noise 1.)

# %% [markdown]
# ## 3.5 Langevin dynamics
#
# How does one sample from a score? Climbing it ends on top of a spot.
# **Langevin dynamics** climbs and shakes, with a step size $\delta$ and fresh
# normal noise $z$ in each step:
#
# $$x \leftarrow x + \delta\,\nabla\log p(x) + \sqrt{2\delta}\;z .$$
#
# As $\delta\to0$, $p$ is the one distribution that this leaves as it is
# (checked for a Gaussian below). (1907.05600, eq. 4 writes $\epsilon/2$ for
# our $\delta$; then the noise is $\sqrt{\epsilon}\,z$. Both are right. Mixing
# them is the second panel of the failure gallery.)

# %%
def langevin(score, x, step, steps, generator):
    for _ in range(steps):
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x + step * score(x) + (2 * step) ** 0.5 * z
    return x

# %% [markdown]
# For a finite $\delta$ the result is biased, and on a standard Gaussian we can
# say by how much. Its score is $-x$, so a step is
# $x \leftarrow (1-\delta)x + \sqrt{2\delta}\,z$. A variance $V$ that no longer
# changes fulfils
#
# $$V = (1-\delta)^2\, V + 2\delta \quad\Rightarrow\quad V = \frac{1}{1 - \delta/2},$$
#
# which is too wide, and infinite at $\delta = 2$.
#
# If $p$ is known up to a constant, the bias can be removed. Treat the step as a
# *proposal* $y$, and refuse some of them: accept with probability
#
# $$\min\left(1,\
# \frac{p(y)\,r(x\mid y)}{p(x)\,r(y\mid x)}\right),\qquad r(y\mid x)
# = \mathcal N\big(y;\ x + \delta\nabla\log p(x),\ 2\delta I\big).$$
#
# This is the rule of Metropolis and Hastings on Langevin's proposal, called
# **MALA** (Roberts & Tweedie 1996). It leaves $p$ exactly as it is, for any
# $\delta$, because $p(x)\,r(y\mid x)$ times the chance of acceptance is the
# same with $x$ and $y$ exchanged: as much mass goes as comes back. Note what
# it asks for: a *ratio of densities*, that is a difference of energies. A
# network that outputs only a score does not know it.

# %%
def mala(log_p, score, x, step, generator):
    """One step from x (B, D); a refused proposal stays where it was."""
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    ahead = x + step * score(x)
    y = ahead + (2 * step) ** 0.5 * z
    back = y + step * score(y)
    log_ratio = ((y - ahead).square() - (x - back).square()).sum(1) / (4 * step)
    log_accept = log_p(y) - log_p(x) + log_ratio
    chance = torch.rand(len(x), generator=generator, dtype=x.dtype)
    return torch.where((chance.log() < log_accept)[:, None], y, x)

# %% [markdown]
# Twenty thousand independent chains of 100 steps, at each of five step sizes.

# %%
normal = GaussianMixture([1.0], torch.zeros(1, 1, dtype=torch.float64), [1.0])
chains, generator = 20_000, torch.Generator().manual_seed(4)
start = normal.sample(chains, generator)

# %%
deltas = torch.tensor([0.1, 0.4, 0.8, 1.2, 1.6], dtype=torch.float64)
biased, corrected = [], []
for delta in deltas:
    biased.append(langevin(normal.score, start, delta, 100, generator).var())
    y = start
    for _ in range(100):
        y = mala(normal.log_prob, normal.score, y, delta, generator)
    corrected.append(y.var())

# %%
fine = torch.linspace(0.02, 1.65, 100)

# %%
fig, ax = plt.subplots(figsize=(5.6, 3.2))
ax.plot(fine, 1 / (1 - fine / 2), color=style.colour("truth"), lw=1)
ax.plot(deltas, biased, "o", color=style.colour("langevin"))
ax.plot(deltas, corrected, "s", color=style.colour("mala"))
ax.annotate("Langevin", (0.95, 2.7), color=style.colour("langevin"))
ax.annotate(r"$1/(1-\delta/2)$", (1.28, 4.3), color=style.colour("truth"))
ax.annotate("MALA", (1.3, 1.2), color=style.colour("mala"))
ax.set(xlabel=r"step size $\delta$", ylabel="variance of the samples", ylim=(0, 5.5))
ax.set_title("Finite steps widen the samples; MALA corrects it")
style.show(fig, "Variance over step size: Langevin's dots rise along the curve 1/(1"
           " - step/2) from 1 to 5, MALA's squares stay at 1.")

# %% [markdown]
# The standard error of a variance $V$ from $n$ independent normal samples is
# $V\sqrt{2/n}$, so both predictions can be held to five of them.

# %%
def off_by(variances, expected):
    """The largest distance from what is expected, in standard errors."""
    return ((torch.stack(variances) / expected - 1).abs() / (2 / chains) ** 0.5).max()

# %%
z = [off_by(biased, 1 / (1 - deltas / 2)), off_by(corrected, torch.ones(5))]
claim("ch03", "Langevin's variance is 1 / (1 - delta/2), MALA's is 1, within 5 s.e.",
      max(z) < 5, z_langevin=z[0], z_mala=z[1], control=off_by(biased, torch.ones(5)))

# %% [markdown]
# ### Langevin does not find the weights of modes
#
# Small steps cure the bias. They do not cure what comes next. Put 80 % of the
# mass into one round spot and 20 % into another, fourteen standard deviations
# away. Then look at the score inside the small one, with the weights as they
# are and with the weights exchanged.

# %%
def two_spots(weights):
    centres = torch.tensor([[-5.0, -5.0], [5.0, 5.0]], dtype=torch.float64)
    return GaussianMixture(weights, centres, torch.ones(2))

# %%
# NBVAL_CHECK_OUTPUT
far = two_spots([0.2, 0.8])
inside = torch.tensor([[-4.0, -5.5]], dtype=torch.float64)
change = (far.score(inside) - two_spots([0.8, 0.2]).score(inside)).abs().max()
print(f"exchanging the weights changes the score by less than 1e-30: {change < 1e-30}")

# %% [markdown]
# The weight is a factor of $p$, hence a constant in $\log p$ wherever one
# component rules, and a derivative does not see constants. The score is blind
# to it, except on the thin ridge between the spots, which no chain visits
# (1907.05600, section 3.2.2). A chain stays in the spot that it was born next
# to.
#
# ## 3.6 Annealing
#
# Add a lot of noise, and the two spots become one cloud, whose score *does*
# know the weights: it points to the common centre of mass. Then take the noise
# away bit by bit. **Annealed Langevin dynamics** (1907.05600, algorithm 1) runs
# Langevin at each level of a falling list of $\sigma$, starting from where the
# level before ended. The smallest features of $q_\sigma$ have a size of about
# $\sigma$, so a step that suits it is
#
# $$\delta_\sigma = \text{step}\cdot\sigma^2 ,$$
#
# where `step` is the paper's $\alpha_i/(2\sigma_i^2)$, the same at every
# level. The last thing is one denoising, $x + \sigma^2 s_\theta$, which takes
# off the smallest noise (2009.05475). The grid of times ends at $t = 0$, the
# data, where no step is taken; `times[-2]` is the lowest level.

# %%
def annealed(denoise, x, times, step, noise):
    """noise has shape (levels, steps a level, *x.shape)."""
    for t, zs in zip(times[:-1], noise, strict=True):
        delta = step * denoise.schedule.sigma(t).item() ** 2
        for z in zs:
            x = x + delta * denoise(x, t).score + (2 * delta) ** 0.5 * z
    return denoise(x, times[-2]).x0

# %% [markdown]
# Ten levels from $\sigma=20$ to $0.1$, and the library's sampler on the same
# recorded noise:

# %%
wide = schedules.ve(sigma_min=0.1, sigma_max=20.0)
times = samplers.time_grid(wide, steps=10, spacing="log_snr", start=1.0)
oracle = far.denoiser(wide)

# %%
five = 16 * torch.rand(5, 2, generator=seeded(), dtype=torch.float64) - 8
noise = torch.randn(10, 4, 5, 2, generator=seeded(), dtype=torch.float64)
options = dict(steps_per_level=4, step=0.1)
theirs = samplers.annealed_langevin(oracle, five, times, noise=noise, **options)
assert_close(annealed(oracle, five, times, 0.1, noise), theirs)

# %% [markdown]
# The race: 4,000 chains, started uniformly in a square that holds both spots,
# and 1,000 steps for each method. Both get the *exact* score, so that whatever
# goes wrong is the dynamics' fault and not a network's.

# %%
generator = torch.Generator().manual_seed(0)
start = 16 * torch.rand(4000, 2, generator=generator, dtype=torch.float64) - 8
options = dict(steps_per_level=100, step=0.1, generator=generator)
clouds = {
    "truth": far.sample(4000, generator),
    "langevin": langevin(far.score, start, 0.05, 1000, generator),
    "annealed_langevin": samplers.annealed_langevin(oracle, start, times, **options),
}

# %%
def share(x):
    """The share of points on the side of the heavy spot."""
    return (x.sum(1) > 0).double().mean().item()

# %% tags=["F08"]
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.3), sharex=True, sharey=True)
titles = ["Truth", "Langevin", "Annealed"]
for ax, title, (name, points) in zip(axes, titles, clouds.items(), strict=True):
    title = f"{title}: {share(points):.2f} up right"
    style.scatter(ax, points[:1500], name, size=3, limit=9, title=title)
    ax.set_xlabel("$x_1$")
axes[0].set_ylabel("$x_2$")
style.show(fig, "Three clouds of two spots each. The truth has 0.8 of its points up"
           " right, plain Langevin half of them, annealed Langevin close to "
           "0.8.")
error = {name: abs(share(points) - 0.8) for name, points in clouds.items()}
claim("F08", "Langevin misses a mode's weight by 0.2 or more, annealed by 0.06 or less",
      error["langevin"] >= 0.2 and error["annealed_langevin"] <= 0.06, truth=0.8,
      start=share(start), langevin=share(clouds["langevin"]),
      annealed=share(clouds["annealed_langevin"]))

# %% [markdown]
# Plain Langevin reports where the chains were *started*, which is half and
# half. Annealing does not reach 0.8 either: each level hands on its points
# before they have settled, and below some level nobody changes sides any more.
# On ten seeds it gave 0.77 to 0.79, Langevin 0.50 to 0.53. Exercise 3 asks for
# as much with a tenth of the steps.
#
# ### NCSN: the learned version
#
# Now with samples and a network: the swiss roll, all noise levels, the loss of
# 3.4.

# %%
from diffedu.worlds import toys

torch.manual_seed(0)
roll = train(nets.MLP(2, width=96, depth=3), toys.swiss_roll, steps=2000)

# %% [markdown]
# That one network is then walked in three ways. First by Langevin at the lowest
# level alone, and by annealing through twenty levels:

# %%
generator = torch.Generator().manual_seed(5)
prior = ve.prior_sample((3000, 2), ve.t_max, generator)
twenty = samplers.time_grid(ve, steps=20, spacing="log_snr")
lowest = twenty[-2:]

# %%
walks = {}
plans = {"langevin": (lowest, 200), "annealed_langevin": (twenty, 10)}
for name, (times, count) in plans.items():
    walks[name] = samplers.annealed_langevin(
        roll, prior, times, steps_per_level=count, step=0.1, generator=generator
    )

# %% [markdown]
# Third, by DDPM's ancestral sampler on chapter 2's cosine path, on which this
# network was never trained. `roll.on(cosine)` asks it the same question in
# other units: at equal signal-to-noise ratio, $x_t$ of one path is $x_t$ of the
# other up to a factor. The walk stays within the ratios that the network has
# seen. An untrained network is the control.

# %%
cosine = schedules.cosine()
ends = cosine.time_of_log_snr(ve.log_snr(torch.tensor([0.999, 0.001])))
down = samplers.time_grid(cosine, 200, "log_snr", start=ends[0], end=ends[1])
down = torch.cat([down, torch.zeros(1)])
start = cosine.prior_sample((3000, 2), down[0], generator)

# %%
for name, denoise in {"ancestral": roll, "untrained": untrained}.items():
    on_cosine = denoise.on(cosine)
    walks[name] = samplers.ancestral(on_cosine, start, down, generator=generator)

# %% [markdown]
# The sliced Wasserstein distance to fresh data measures how good they are; the
# distance between two samples of the data is the floor.

# %%
from diffedu import metrics

held_out, again = (toys.swiss_roll(3000, generator) for _ in range(2))
distance = {name: metrics.sliced_wasserstein(points, held_out).item()
            for name, points in (walks | {"floor": again}).items()}

# %%
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.3), sharex=True, sharey=True)
titles = ["Langevin, one level", "Annealed", "Ancestral"]
for ax, title, (name, points) in zip(axes, titles, walks.items(), strict=False):
    style.scatter(ax, points[:2000], name, 2, 2.2, f"{title}: {distance[name]:.2f}")
    ax.set_xlabel("$x_1$")
axes[0].set_ylabel("$x_2$")
style.show(fig, "Samples of one network. Langevin at the lowest level leaves many "
           "points scattered; annealed Langevin and ancestral sampling both "
           "draw the swiss roll.")
claim("ch03", "one network serves NCSN's and DDPM's samplers; without levels it fails",
      2 * max(distance["annealed_langevin"], distance["ancestral"])
      < min(distance["langevin"], distance["untrained"]), **distance)

# %% [markdown]
# With the exact score each step at one level covers a tenth of the way to the
# data, and 200 of them bring every point onto the roll. What strays on the
# left is the network's fault: it was asked where it had seen no data at that
# level.
#
# NCSN and DDPM grew up apart. They train the same network with the same loss,
# and one network serves both samplers. What differs is bookkeeping (variance
# exploding against variance preserving), the list of levels, and the walk.
# Chapter 4 puts both into one equation (2011.13456).

# %% [markdown]
# ## 3.7 Energy-based models
#
# A network with two outputs can be any vector field. A score cannot: it is a
# gradient, and mixed derivatives agree,
#
# $$\frac{\partial s_2}{\partial x_1} =
# \frac{\partial^2\log p}{\partial x_1\,\partial x_2} =
# \frac{\partial s_1}{\partial x_2}.$$
#
# So the **curl** $\partial s_2/\partial x_1 - \partial s_1/\partial x_2$ is
# zero everywhere. Such a field is called **conservative**. To have this by
# construction, let a network output one number, the energy, and differentiate
# it (Salimans & Ho 2021):
#
# $$s_\theta(x) = -\nabla_x E_\theta(x).$$
#
# At many noise levels it helps to let the gradient be
# $\hat\varepsilon = \nabla_x E_\theta(x, t)$, whose size is about 1 everywhere.
# Then $\log q_\sigma = -E_\theta/\sigma + \text{const}$.

# %%
class EnergyNet(torch.nn.Module):
    """eps_hat = dE/dx for a network with a single output."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            E = self.net(x, t)
            return torch.autograd.grad(E.sum(), x, create_graph=True)[0]

# %% [markdown]
# The library's has the same content, and the network then trains like any
# other: same data, same loss, and as many steps as `free` had. Its forward
# pass holds a backward pass, which makes a step cost more.

# %%
torch.manual_seed(0)
scalar = nets.MLP(2, width=64, depth=3, outputs=1)
energy_net = nets.Energy(scalar, "scalar", predicts="eps")
half = torch.full((len(x0),), 0.5)
assert_close(EnergyNet(scalar)(x0, half), energy_net(x0, half))
tied = train(energy_net, world_data)

# %% [markdown]
# The curl, by two passes backwards. Both networks are asked at $\sigma = 0.3$,
# at points where the noised data lie, and in float64: in float32 rounding alone
# would leave something like $10^{-7}$.

# %%
def curl(score, x):
    """ds_2/dx_1 - ds_1/dx_2 for each row of x (B, 2)."""
    x = x.detach().requires_grad_()
    s = score(x)
    of_1 = torch.autograd.grad(s[:, 0].sum(), x, retain_graph=True)[0]
    of_2 = torch.autograd.grad(s[:, 1].sum(), x)[0]
    return of_2[:, 0] - of_1[:, 1]


# %%
hazy, t = world.noised(1.0, 0.3), time_of(0.3)
x_t = hazy.sample(2000, torch.Generator().manual_seed(6))
pair = {"free": free.double(), "energy": tied.double()}
swirl = {name: curl(lambda x, net=net: net(x, t).score, x_t).abs().mean().item()
         for name, net in pair.items()}

# %% [markdown]
# Do the samples care? Both networks are walked from the same noise, with the
# same noise on the way.

# %%
start = ve.prior_sample((3000, 2), ve.t_max, torch.Generator().manual_seed(7)).double()
fresh, again = (world.sample(3000, torch.Generator().manual_seed(s)) for s in (8, 9))

# %%
swd = {"floor": metrics.sliced_wasserstein(again, fresh).item()}
for name, net in pair.items():
    draws = torch.Generator().manual_seed(10)
    y = samplers.ancestral(net, start, twenty, generator=draws)
    swd[name] = metrics.sliced_wasserstein(y, fresh).item()

# %% [markdown]
# And the energy has something that the free network lacks: a value. The
# difference of two energies is the **log-ratio** of two densities,
# $\log q_\sigma(x) - \log q_\sigma(y) = (E(y) - E(x))/\sigma$, with no $Z$ in
# it. All log-ratios are right if $-E/\sigma$ and the true log-density differ by
# one constant.

# %%
learned = -tied.net.energy(x_t, t.expand(2000)) / 0.3
true = hazy.log_prob(x_t)
learned = learned + (true - learned).mean()
log_error = (learned - true).std()

# %% tags=["F13b"]
field = curl(lambda x: pair["free"](x, t).score, grid)
fig, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.5))
shown = left.pcolormesh(axis, axis, on_grid(field), cmap="RdBu_r", vmin=-1, vmax=1)
density = on_grid(hazy.log_prob(grid).exp())
left.contour(axis, axis, density, 4, colors="k", linewidths=0.6)
fig.colorbar(shown, ax=left, label="curl of the free net")
left.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title="A free net has curl")
right.plot(true[:800], learned[:800], ".", ms=3, color=style.colour("learned"))
right.axline((-2, -2), slope=1, color=style.colour("truth"), lw=1)
right.set(xlabel="true log-density", ylabel="minus the energy, shifted")
right.set_title("An energy knows the log-density")
style.show(fig, "Left: map of the curl of the free network, far from zero between "
           "the spots. Right: minus the learned energy over the true log "
           "density; the points lie along the diagonal.")
claim("F13b", "a free score net has curl, the gradient of an energy only rounding",
      swirl["free"] > 1e-3 and swirl["energy"] < 1e-9, free=swirl["free"],
      energy_below_1e9=swirl["energy"] < 1e-9, swd_free=swd["free"],
      swd_energy=swd["energy"], swd_floor=swd["floor"], log_ratio_error=log_error)

# %% [markdown]
# The samples of the energy net are a little farther from the data than those
# of the free one (the printed distances, with the floor beside them). On ten
# seeds they were closer in six, while the mean curl was 0.18 to 0.33: it does
# no visible harm there. The same was found on images (Salimans & Ho 2021). The
# points on the right lie on parallel strands, one a spot: the
# *relative height* of two spots is learned only through the rare region
# between them, which is where every score net is weakest.
#
# The curl hurts where a density is wanted. To get a log-ratio from a free field
# one would integrate it along a path from one point to the other, and with curl
# the result depends on the path. On a closed one it should be zero.

# %%
angle = torch.arange(400, dtype=torch.float64) * (2 * torch.pi / 400)
circle = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
stride = circle.roll(-1, 0) - circle

# %%
# NBVAL_CHECK_OUTPUT
for name, net in pair.items():
    gain = (net(circle + stride / 2, t).score * stride).sum().abs()
    print(f"{name:6s} log-density gained on a round trip: over 0.1 is {gain > 0.1}")

# %% [markdown]
# ### Learning an energy by likelihood: recovery, a sketch
#
# Before score matching, energies were trained by maximum likelihood: lower the
# energy of data, raise that of the model's own samples (2101.03288). Those
# samples need long chains, which fail to mix, as 3.5 showed. **Diffusion
# recovery likelihood** (2012.08125) asks for less: recover $x_0$ from a noisy
# $x_t$. Its model of that is
#
# $$p_\theta(x_0\mid x_t) \propto \exp\Big(-E_\theta(x_0) -
# \frac{\|x_0 - x_t\|^2}{2\sigma^2}\Big),$$
#
# which has one bump if $\sigma$ is small, because the square dominates. Short
# Langevin chains from $x_t$ are enough. The whole idea, with an energy of two
# parameters:

# %%
theta = torch.tensor([0.0, 0.0], requires_grad=True)  # mean and log-precision


def parabola(x):
    return 0.5 * theta[1].exp() * (x - theta[0]) ** 2

# %%
def recover(x_t, sigma, delta, generator):
    """Thirty Langevin steps on the energy plus the square."""
    y = x_t
    for _ in range(30):
        slope = theta[1].exp() * (y - theta[0]) + (y - x_t) / sigma**2
        z = torch.randn(y.shape, generator=generator)
        y = y - delta * slope.detach() + (2 * delta) ** 0.5 * z
    return y

# %% [markdown]
# The gradient of the *negative* log-likelihood is the energy's mean gradient
# in $\theta$ at the data minus that at the recovered points; the second term
# comes from $\nabla_\theta\log Z = -\mathbb E_{p_\theta}[\nabla_\theta E]$.
# Data are from $\mathcal N(2, 0.5^2)$.

# %%
optimiser = torch.optim.Adam([theta], lr=0.03)
generator = torch.Generator().manual_seed(10)
for _ in range(300):
    clean = 2 + 0.5 * torch.randn(500, generator=generator)
    x_t = clean + 0.5 * torch.randn(500, generator=generator)
    recovered = recover(x_t, 0.5, 0.02, generator)
    optimiser.zero_grad()
    (parabola(clean) - parabola(recovered)).mean().backward()
    optimiser.step()

# %%
mean, std = theta[0].item(), (-0.5 * theta[1]).exp().item()
report("ch03", "recovery likelihood finds mean 2 and std 0.5", mean=round(mean, 1),
       std=round(std, 1))

# %% [markdown]
# What is missing from this sketch: a network for $E_\theta$, one energy for
# each of several noise levels that hand on to each other, the scaling between
# them, and the sampling that walks them down. The paper has all of it, and
# generates images with six levels.

# %% [markdown]
# ## 3.8 Adding scores: products and exclusions
#
# Energies can be added. If $p_1$ knows one requirement and $p_2$ another, then
# $p_1(x)\,p_2(x) \propto e^{-E_1(x) - E_2(x)}$ is large where both are content,
# and its score is the sum of the scores, without any training. It is tempting
# to add at every noise level and sample as usual. That is *wrong* (2302.11552):
#
# $$\nabla\log\,(p_1\, p_2)_\sigma \ \neq\ \nabla\log q_{1,\sigma}
# + \nabla\log q_{2,\sigma} \qquad\text{for } \sigma > 0 .$$
#
# (On the left is the product, normalised and *then* noised.) Two standard
# Gaussians show it. Their product has variance $1/2$, and with noise
# $1/2+\sigma^2$. The sum of the noised scores belongs to a Gaussian of
# variance $(1+\sigma^2)/2$. The two agree at $\sigma=0$ alone; at $\sigma = 1$
# it is 1.5 against 1.
#
# For a test we want a product that is known. Two round Gaussians of equal width
# multiply to one in the middle, weighed down by the distance of their centres;
# so the product of two mixtures is a mixture of all pairs.

# %%
def product_of(p, q):
    """The exact product of two mixtures of round spots, all of one width."""
    variance = p.spectrum[0, 0]  # of every spot
    gap = (p.means[:, None] - q.means).square().sum(-1)
    weights = p.weights[:, None] * q.weights * (-gap / (4 * variance)).exp()
    centres = ((p.means[:, None] + q.means) / 2).reshape(-1, 2)
    stds = (variance / 2).sqrt().expand(len(centres))
    return GaussianMixture(weights.flatten(), centres, stds)

# %% [markdown]
# Our two mixtures have two spots each. The left spots agree, the right ones are
# a unit apart, so that the left mode of the product holds most of the mass. The
# log-densities must add up, to one constant everywhere: the product's own
# $\log Z$.

# %%
centres = torch.tensor([[[-1, 0], [1, 0]], [[-1, 0], [1, 1]]], dtype=torch.float64)
first, second = (GaussianMixture([0.5, 0.5], c, [0.35, 0.35]) for c in centres)
exact = product_of(first, second)

# %%
# NBVAL_CHECK_OUTPUT
rest = exact.log_prob(grid) - first.log_prob(grid) - second.log_prob(grid)
assert_close(rest, rest.mean().expand_as(rest))
print(f"left mode {exact.weights[0]:.3f}, right mode {exact.weights[3]:.3f}")

# %% [markdown]
# Now the summed score as a denoiser. Anything that answers a `Prediction` is
# one, and every sampler of the library takes it.

# %%
class Composed(torch.nn.Module):
    """The sum of strength_i * score_i, at every noise level."""

    def __init__(self, denoisers, strengths):
        super().__init__()
        self.parts = list(zip(strengths, denoisers, strict=True))
        self.schedule = denoisers[0].schedule

    def forward(self, x, t):
        score = sum(strength * part(x, t).score for strength, part in self.parts)
        return Prediction(x, torch.as_tensor(t), self.schedule, "score", score)

# %%
path = schedules.ve(sigma_min=0.02, sigma_max=10.0)
both = Composed([first.denoiser(path), second.denoiser(path)], [1.0, 1.0])

# %% [markdown]
# The remedy of (2302.11552): do not believe that the walk lands on
# $q_{1,\sigma}\,q_{2,\sigma}$. Make that product the *target* of MALA at each
# level, where the summed score is right by definition, and let the walk only
# hand the points on from level to level. Samplers take a function `after(x,
# step)` for such purposes; `step.s` is the time where the step arrives. MALA's
# step size follows the width of the spots at that level, for the reason given
# in 3.6.

# %%
def correction(count, generator):
    """After each step of a walk, MALA on the product of the noised densities."""
    def after(x, step):
        if step.s == 0:
            return x
        sigma = path.sigma(step.s).item()
        p, q = first.noised(1.0, sigma), second.noised(1.0, sigma)
        delta = 0.25 * (sigma**2 + 0.35**2)
        for _ in range(count):
            x = mala(lambda y: p.log_prob(y) + q.log_prob(y),
                     lambda y: p.score(y) + q.score(y), x, delta, generator)
        return x
    return after

# %% [markdown]
# At $\sigma = 10$ both mixtures are nearly one Gaussian, and the product of two
# has half its variance: that is the start. Thirty levels, with 0, 3 and 10
# steps of MALA at each.

# %%
def compose(count, seed=0, n=8000):
    generator = torch.Generator().manual_seed(seed)
    times = samplers.time_grid(path, steps=30, spacing="log_snr", start=1.0)
    start = 50**0.5 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    after = correction(count, generator)
    return samplers.ancestral(both, start, times, after=after, generator=generator)

# %%
counts = [0, 3, 10]
drawn = [compose(count) for count in counts]

# %%
def width_and_weight(x):
    """The mean std within the modes, and the share of points in the left one."""
    left = x[:, 0] < 0
    variances = [x[side].var(0).mean() for side in (left, ~left)]
    return (sum(variances) / 2).sqrt().item(), left.double().mean().item()

# %%
width, weight = zip(*map(width_and_weight, drawn), strict=True)
true_width, true_weight = exact.spectrum[0, 0].sqrt().item(), exact.weights[0].item()

# %%
def draw_counts(ax):
    ax.plot(counts, weight, "-s", color=style.colour("ancestral"))
    ax.plot(counts, width, "-o", color=style.colour("mala"))
    ax.axhline(true_weight, color=style.colour("ancestral"), ls=":", lw=1.2)
    ax.axhline(true_width, color=style.colour("mala"), ls=":", lw=1.2)
    ax.annotate("left weight", (4, 0.48), color=style.colour("ancestral"))
    ax.annotate("width", (6, 0.12), color=style.colour("mala"))
    ax.annotate("dotted: exact", (3, 0.77))
    ax.set(xlabel="MALA steps a level", ylim=(0, 1), xticks=counts)
    ax.set_title("Width mended, weight not", fontsize=10)

# %% tags=["F13"]
fig, axes = plt.subplots(1, 4, figsize=(11, 3.1))
sure = exact.sample(8000, torch.Generator().manual_seed(1))
panels = {"truth": sure, "ancestral": drawn[0], "mala": drawn[2]}
titles = ["Exact product", "Summed scores", "With MALA, 10 a level"]
for ax, title, (name, points) in zip(axes, titles, panels.items(), strict=False):
    style.scatter(ax, points[:1500], name, 2, title=title)
    ax.set(xlim=(-2, 2), ylim=(-1.7, 2.3), xlabel="$x_1$")
axes[0].set_ylabel("$x_2$")
draw_counts(axes[3])
style.show(fig, "Samples of the exact product, of summed scores and with MALA, and "
           "a plot of width and weight. Summed scores make tight spots of "
           "nearly equal weight; MALA gives the right width, and a weight that"
           " is still too low.")
gap = [abs(w - true_width) for w in width]
claim("F13", "summed scores make modes too narrow; 3 MALA steps at least halve it",
      gap[0] >= 2 * gap[1], width=width, exact_width=true_width, weight=weight,
      exact_weight=true_weight)

# %% [markdown]
# The widths are right after three steps a level. (On ten seeds they were 0.187
# to 0.191 without, and within 0.003 of the exact 0.247 with three.) The
# weights are *not*, even after ten: the result is still biased, and by a lot.
# It is the trouble of 3.5 again. MALA keeps the product if it has it, but
# reaches it only after many steps, and at the low levels no chain crosses
# over. At the high levels chains do cross, but there noise hides that the
# right spots disagree, and the weights settle near a half. More steps at the
# middle levels should help; no finite number makes it exact.
#
# ### "This, and not that"
#
# A negative strength excludes. $p_1(x)\,/\,p_2(x)^{\text{strength}}$ is large
# where $p_1$ is and $p_2$ is not, and its score is
# $\nabla\log p_1 - \text{strength}\cdot\nabla\log p_2$ (2302.11552). Below:
# eight spots on a ring, and *not* a broad blob on the right.
#
# There is a catch that products do not have. A quotient may fail to be a
# density: if $p_2^{\text{strength}}$ falls faster than $p_1$ far out, the
# quotient grows without bound. With much noise the two become alike, so we take
# a strength below 1 and start from a moderate level.

# %%
ring = GaussianMixture(*toys.eight_gaussians_parameters())
blob = GaussianMixture([1.0], torch.tensor([[1.0, 0.0]], dtype=torch.float64), [0.6])
mild = schedules.ve(sigma_min=0.02, sigma_max=1.5)
strength = 0.8
without = Composed([ring.denoiser(mild), blob.denoiser(mild)], [1.0, -strength])

# %%
times = samplers.time_grid(mild, steps=20, spacing="log_snr", start=1.0)
generator = torch.Generator().manual_seed(11)
start = 1.5 * torch.randn(4000, 2, generator=generator, dtype=torch.float64)
kept = samplers.annealed_langevin(without, start, times, generator=generator)

# %% [markdown]
# The truth, for once without a sampler: draw from the ring, and draw again from
# these points with weights $1/p_2^{\text{strength}}$.

# %%
plenty = ring.sample(100_000, generator)
odds = (-strength * blob.log_prob(plenty)).softmax(0)
target = plenty[torch.multinomial(odds, 4000, replacement=True, generator=generator)]

# %%
def on_right(x):
    """The share of points in the three spots that the blob covers."""
    return (x[:, 0] > 0.35).double().mean().item()

# %%
shares = {"before": plenty, "exact": target, "sampled": kept}
shares = {name: on_right(points) for name, points in shares.items()}

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.4, 3.7), sharex=True, sharey=True)
titles = {"exact": "Exact", "sampled": "Subtracted"}
for ax, points, (name, title) in zip(axes, (target, kept), titles.items(), strict=True):
    colour = {"exact": "truth", "sampled": "annealed_langevin"}[name]
    title = f"{title}: {shares[name]:.2f} on the right"
    style.scatter(ax, points[:2000], colour, 3, 1.9, title)
    shade = style.colour("learned")
    ax.add_patch(plt.Circle((1, 0), 0.6, fill=False, ls="--", color=shade))
    ax.axvline(0.35, color=style.colour("truth"), lw=0.8, ls=":")
    ax.set_xlabel("$x_1$")
axes[0].set_ylabel("$x_2$")
style.show(fig, "Two rings of spots whose mass lies on the left; the dashed circle "
           "is the excluded blob, and a dotted line marks where the right "
           "side begins. Few exact samples lie in it, and a few more "
           "of subtracted scores.")
claim("ch03", "subtracting a score takes over two thirds off the excluded side",
      shares["sampled"] < shares["before"] / 3, **shares)

# %% [markdown]
# Most of the mass has moved, but less than should have (0.066 to 0.078 is left
# on ten seeds). One reason: a difference of noised scores is no more the score
# of the noised quotient than a sum is. Exclusion returns in chapter 9 as the
# negative prompt of guidance, where $u + \text{scale}\,(c - u)$ is a sum of
# scores in which one strength, $1 - \text{scale}$, is below zero if the scale
# is above 1. What was said here holds there as well.

# %% [markdown]
# ## 3.9 Failure gallery
#
# Six classics, drawn on purpose. Circles mark two standard deviations around
# each mean. Four of the failures start from perfect samples of `world` and
# take 200 Langevin steps with the exact score, so that every fault is the
# programmer's own.

# %%
def misstep(delta, noise_size, sign=1.0):
    generator = torch.Generator().manual_seed(12)
    y = world.sample(1500, generator)
    for _ in range(200):
        z = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        y = y + sign * delta * world.score(y) + noise_size * z
    return y

# %%
too_tight = misstep(0.005, 0.005**0.5)
failures = {
    "Step too large: spots swell": misstep(0.11, 0.22**0.5),
    r"$\sqrt{\delta}$ for $\sqrt{2\delta}$: too tight": too_tight,
    "No noise: three points": misstep(0.005, 0.0),
    "Sign of the score: all flee": misstep(0.0006, 0.0012**0.5, sign=-1.0),
}

# %% [markdown]
# The second is the hardest to see, so measure it. Samples of one spot should
# have a standard deviation of 0.25; with half the noise power it is smaller by
# $\sqrt2$.

# %%
# NBVAL_CHECK_OUTPUT
top = too_tight[too_tight[:, 1] > 0.4]
print(f"standard deviation of the top spot: {top.std(0).mean():.2f}, not {spot}")

# %% [markdown]
# The fifth failure is a step that does not follow $\sigma^2$: small enough for
# the lowest level, it is far too small for all others.

# %%
generator, delta = torch.Generator().manual_seed(14), 0.1 * 0.05**2
y = ve.prior_sample((1500, 2), ve.t_max, generator).double()
for t in twenty[:-1].repeat_interleave(10):
    z = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    y = y + delta * world.denoiser(ve)(y, t).score + (2 * delta) ** 0.5 * z
failures[r"Step not scaled by $\sigma^2$: stuck"] = y

# %% [markdown]
# The sixth is the loss. With the *perfect* score, what is left of
# $L_\mathrm{DSM}$ is the variance of the target $-\varepsilon/\sigma$, which
# grows like $1/\sigma^2$ as $\sigma\to0$. Unweighted, a few samples at tiny
# noise drown all others, and training jumps about. Times $\sigma^2$ it is tame.

# %%
sigmas = torch.logspace(-2, 1, 13, dtype=torch.float64)
left_over = torch.stack(
    [dsm(world.noised(1.0, s.item()).score, x, s, eps) for s in sigmas]
)

# %%
fig, axes = plt.subplots(2, 3, figsize=(9.6, 6))
for ax, (name, points) in zip(axes.flat, failures.items(), strict=False):
    style.scatter(ax, points[:800], "langevin", 5, 2.8)
    for place in means:
        ax.add_patch(plt.Circle(place, 2 * spot, fill=False, lw=0.8))
    ax.set_title(name, fontsize=11)
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
last = axes.flat[-1]
last.loglog(sigmas, left_over, color=style.colour("learned"))
last.loglog(sigmas, left_over * sigmas**2, color=style.colour("simple"))
last.annotate("unweighted", (0.07, 800), color=style.colour("learned"))
last.annotate(r"times $\sigma^2$", (0.015, 0.12), color=style.colour("simple"))
last.set(xlabel=r"noise level $\sigma$", ylabel="loss")
last.set_title("Unweighted loss explodes", fontsize=11)
style.show(fig, "Six failures: a large step swells the spots, half the noise power "
           "makes them tight, no noise leaves three points, the wrong sign "
           "drives all away, an unscaled step leaves the noise where it was, "
           "and the unweighted loss of the perfect score rises a hundredfold "
           "for each tenth of the noise level.")

# %% [markdown]
# | what you see | look for |
# |---|---|
# | spots swell, or NaN | a step above the variance of the narrowest spot |
# | samples too tight | the 2 under the root |
# | samples collapse onto a few points | noise left out of the step |
# | points fly apart or pile up between spots | the sign of the score |
# | samples look like the start | a step that is not scaled by $\sigma^2$ |
# | a loss of huge, jumping values | the weight $\sigma^2$; $\sigma$ too close to 0 |

# %% [markdown]
# ## 3.10 What was scaled down, and what is left out
#
# - NCSN trained on images of $32\times32$ pixels with ten levels and 100 steps
#   a level (1907.05600, section 5). We have two dimensions, and 20 levels of
#   ten steps. How to choose levels and step sizes for larger images is the
#   subject of 2006.09011.
# - Our networks saw fresh samples at every step. On a finite set the best
#   denoiser repeats that set, as chapter 1 showed, and so does the best score.
# - The product used exact scores and energies. With networks, MALA needs energy
#   networks, or line integrals of a free score (2307.14012), whose price is the
#   curl of 3.7.
# - Maximum likelihood for energies appears as a sketch only. Other remedies for
#   slow mixing (tempering, Hamiltonian steps) are left out.
#
# ## 3.11 Summary
#
# - The score is the gradient of the log-density; the normalising constant drops
#   out.
# - Explicit, implicit and sliced score matching have one gradient. Denoising
#   score matching has it too, for the *noised* density, and needs no derivative
#   in $x$: $-\varepsilon/\sigma$ is the score on average.
# - A score is learned where data are. Noise spreads the data, and many levels
#   lead a sampler from a density that is learned well to the one that is
#   wanted. A network that predicts $\hat\varepsilon$ at many levels is NCSN and
#   DDPM at once.
# - Langevin dynamics is biased by its step, and blind to the weights of
#   separated modes.
# - Energies can be compared, corrected and added; free nets have curl. A sum of
#   noised scores is not the score of the noised product.
#
# Do the [exercises](../exercises/ch03_score_matching.ipynb) next. In chapter 4
# the list of noise levels becomes continuous, and Langevin's noise turns into a
# stochastic differential equation that can be run backwards.
