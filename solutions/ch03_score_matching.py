# %% [markdown]
# # Exercises 3: score matching, Langevin dynamics and energy-based models
#
# Six exercises on [chapter 3](../notebooks/ch03_score_matching.ipynb). Every
# function takes and returns tensors with the batch first, and no function draws
# noise of its own: where noise is needed it is an argument. After each check a
# cell uses your function.

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import GaussianMixture, losses, nets, schedules, style
from diffedu.checks import ch03 as check

style.use()

# %% [markdown]
# ## Exercise 1. Denoising score matching on any path
#
# *Difficulty 2 of 5 · 25 minutes*
#
# The chapter's paths had $\alpha = 1$. On any path
# $x_t = \alpha x_0 + \sigma\varepsilon$, and the loss for one pair
# $(x_0, \varepsilon)$ is
#
# $$\tfrac12\,\Big\| s_\theta(x_t) - \nabla_{x_t} \log q(x_t \mid x_0) \Big\|^2,
# \qquad q(x_t\mid x_0) = \mathcal N(\alpha x_0,\ \sigma^2 I).$$
#
# Write `dsm_loss(score, x0, alpha, sigma, eps)`. `score` maps (B, D) to (B, D);
# `x0` and `eps` have shape (B, D), `alpha` and `sigma` shape (B,), one noise
# level a sample. Return the mean over the batch, a tensor of shape (). What you
# should see below: the gradient of your loss is that of explicit score matching
# for the noised data, within 5 standard errors, though the losses differ.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Which way does the score point: towards the clean data or towards the noise?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# The gradient of $-\|x_t - \alpha x_0\|^2 / (2\sigma^2)$ in $x_t$, written with
# $\varepsilon$, is $-\varepsilon/\sigma$. The $\alpha$ cancels there, but not
# in $x_t$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Give `alpha` and `sigma` a second axis with `[:, None]`, make `x_t`, and
# square `score(x_t)` minus the target. Sum over the last axis, then take the
# mean.
#
# </details>

# %% tags=["solution:dsm_loss"]
def dsm_loss(score, x0, alpha, sigma, eps):
    """Denoising score matching at each sample's own noise level."""
    ### BEGIN SOLUTION
    alpha, sigma = alpha[:, None], sigma[:, None]
    target = -eps / sigma
    return 0.5 * (score(alpha * x0 + sigma * eps) - target).square().sum(1).mean()
    ### END SOLUTION

# %% tags=["check:dsm_loss", "points:2"]
check.dsm_loss(dsm_loss)

# %% [markdown]
# Now the theorem, by experiment. A linear score model, 100 batches, and at each
# the gradient of your loss minus the gradient of the explicit one for the
# noised mixture. The mean difference should be zero, to within 5 of its
# standard errors.

# %%
spots = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
world = GaussianMixture([0.4, 0.6], spots, [0.3, 0.3])
noised = world.noised(0.8, 0.6)
W = torch.tensor([[-0.7, 0.2], [0.1, -0.9]], requires_grad=True)
generator = torch.Generator().manual_seed(0)
losses_seen, gaps = [], []
for _ in range(100):
    x0 = world.sample(1000, generator)
    eps = torch.randn(1000, 2, generator=generator)
    alpha, sigma = torch.full((1000,), 0.8), torch.full((1000,), 0.6)
    mine = dsm_loss(lambda x: x @ W, x0, alpha, sigma, eps)
    other = noised.sample(1000, generator)
    theirs = losses.explicit_score_matching(lambda x: x @ W, other, noised.score)
    gaps.append(torch.autograd.grad(mine - theirs, W)[0].flatten())
    losses_seen.append((mine - theirs).item())
gaps = torch.stack(gaps)
z = (gaps.mean(0) / (gaps.std(0) / 10)).abs().max()
print(f"gradients agree: {bool(z < 5)}, losses differ by {sum(losses_seen) / 100:.1f}")

# %% [markdown]
# ## Exercise 2. Hutchinson's estimate of implicit score matching
#
# *Difficulty 3 of 5 · 25 minutes*
#
# Implicit score matching needs the trace of the score's Jacobian. With random
# signs $\xi$, several of them for each point,
#
# $$L_\mathrm{ISM} \approx \frac1B\sum_{b}\Big[\tfrac12\|s_\theta(x_b)\|^2 +
# \frac1P\sum_p \xi_{pb}^\top\,\nabla s_\theta(x_b)\,\xi_{pb}\Big].$$
#
# Write `ism_estimate(score, x, probes)`: `x` of shape (B, D), `probes` of shape
# (P, B, D) with the signs, result of shape (). The loss must be trainable: its
# gradient has to flow into the network's weights through the trace too.
#
# <details><summary>Hint 1: a nudge</summary>
#
# `torch.autograd.grad` of one number gives one row. Which number has the
# gradient $\xi^\top\nabla s$?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\nabla_x (\xi\cdot s) = (\nabla s)^\top\xi$, and one more product with $\xi$
# makes it a number. The points of a batch do not mix, so the sum over the batch
# may be differentiated at once.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Start with `x = x.detach().requires_grad_()`. Loop over `probes`, call
# `torch.autograd.grad(..., x, create_graph=True)[0]`, multiply by the probe
# again, sum over the last axis; average the results over the loop.
#
# </details>

# %% tags=["solution:ism_estimate"]
def ism_estimate(score, x, probes):
    """Implicit score matching with the trace estimated from random signs."""
    ### BEGIN SOLUTION
    x = x.detach().requires_grad_()
    s = score(x)
    trace = 0
    for xi in probes:
        row = torch.autograd.grad((s * xi).sum(), x, create_graph=True)[0]
        trace = trace + (row * xi).sum(1) / len(probes)
    return (0.5 * s.square().sum(1) + trace).mean()
    ### END SOLUTION

# %% tags=["check:ism_estimate", "points:2"]
check.ism_estimate(ism_estimate)

# %% [markdown]
# What do more probes buy? The spread of the estimate in 32 dimensions, against
# the exact trace, falls like $1/\sqrt P$: four times the probes, half the
# error.

# %%
torch.manual_seed(1)
layers = torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, 32)
net = torch.nn.Sequential(*layers)
x = torch.randn(20, 32, generator=torch.Generator().manual_seed(2))
exact = losses.implicit_score_matching(net, x)
for count in (1, 4, 16):
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(count, 20, 32, generator=generator).sign() for _ in range(60)]
    errors = torch.stack([ism_estimate(net, x, signs) for signs in draws]) - exact
    print(f"{count:2d} probes: spread {errors.std().item():.3f}")

# %% [markdown]
# ## Exercise 3. Annealing with a tenth of the steps
#
# *Difficulty 4 of 5 · 40 minutes*
#
# The chapter's annealed Langevin took 1,000 steps to find the weights of two
# spots: ten levels from 20 to 0.1, 100 steps at each,
# $\delta_\sigma = 0.1\,\sigma^2$. Do it with **100 steps in all**, and still
# miss the weight 0.8 by at most 0.06. The spots must come out right as well:
# along each axis the heavy one has a standard deviation between 0.8 and 1.2,
# where 1 is exact.
#
# Write `annealing_plan()` without arguments. It returns three things: the
# noise levels (a list or tensor of falling numbers, the last at most 0.5), the
# number of steps (one whole number, the same for every level), and `step`, the
# step size in units of $\sigma^2$, between 0 and 1. The check runs 16,000
# chains from a uniform start on $[-8, 8]^2$ with the exact score. (There are
# many right answers; the chapter's plan cut to ten steps a level gets a weight
# of about 0.68.)
#
# <details><summary>Hint 1: a nudge</summary>
#
# At which noise levels do points still change sides? The spots stand
# $\sqrt{200}\approx 14$ apart. Steps taken far above or far below those levels
# change nothing about the weight.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# One step at level $\sigma$ moves a point by noise of size
# $\sigma\sqrt{2\cdot\text{step}}$ and shrinks the distance to equilibrium by a
# factor of about $1-\text{step}$. A larger `step` forgets the start sooner.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.linspace(high, low, n)` from about 9 down to 0.5. A sudden drop below
# 2 leaves the spots too wide. Few steps a level at many levels is better than
# the reverse, since neighbouring levels are then close.
#
# </details>

# %% tags=["solution:annealing_plan"]
def annealing_plan():
    """Noise levels, steps at each, and the step size in units of sigma squared."""
    ### BEGIN SOLUTION
    middle = torch.linspace(8.0, 2.2, 20)
    return torch.cat([middle, torch.tensor([1.5, 1.0, 0.7, 0.5, 0.4])]), 4, 0.3
    ### END SOLUTION

# %% tags=["check:annealing_plan", "points:3"]
check.annealing_plan(annealing_plan)

# %% [markdown]
# Your plan as a picture: where along the noise levels are the steps spent?
# Points change sides in the grey band: above it there is one cloud, below it
# the ridge between the two is too thin to cross.

# %%
sigmas, steps, step = annealing_plan()
fig, ax = plt.subplots(figsize=(6, 2.6))
ax.axvspan(2, 8, color="#dddddd", lw=0)
plans = {"yours": (sigmas, steps, "annealed_langevin"),
         "the chapter's": (torch.logspace(1.3, -1, 10), 100, "langevin")}
for name, (levels, count, colour) in plans.items():
    spent = (torch.arange(len(levels)) + 1) / len(levels)
    label = f"{name}: {len(levels) * count} steps"
    ax.step(levels, spent, where="post", color=style.colour(colour), label=label)
ax.set(xscale="log", xlabel=r"noise level $\sigma$", ylabel="share of steps spent")
ax.invert_xaxis()
ax.legend()
ax.set_title("Where a curve is steep, steps are spent")
style.show(fig, "Share of the steps spent so far over falling noise level, for your "
           "plan and the chapter's, with a grey band from 8 to 2.")

# %% [markdown]
# ## Exercise 4. "p1 and not p2"
#
# *Difficulty 2 of 5 · 20 minutes*
#
# The density $p_1(x)\,/\,p_2(x)^{\text{strength}}$ keeps what $p_1$ allows and
# $p_2$ does not. Write one step of Langevin dynamics on it,
# `and_not_step(x, score_1, score_2, strength, step, z)`: `x` and the fresh
# noise `z` of shape (B, D), `score_1` and `score_2` functions from (B, D) to
# (B, D), `strength` and `step` numbers, result of shape (B, D). The step is
#
# $$x \leftarrow x + \delta\,\nabla\log p(x) + \sqrt{2\delta}\;z,\qquad \delta
# = \text{step}.$$
#
# What you should see below: samples with a mean of about $-0.8$, away from what
# is excluded.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Take the logarithm of the density first. What becomes of the division, and of
# the power?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\nabla\log\frac{p_1}{p_2^{\,a}} = \nabla\log p_1 - a\,\nabla\log p_2$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Two lines: the combined score, then the step. The noise is multiplied by
# `(2 * step) ** 0.5`.
#
# </details>

# %% tags=["solution:and_not_step"]
def and_not_step(x, score_1, score_2, strength, step, z):
    """One Langevin step on p1 / p2^strength."""
    ### BEGIN SOLUTION
    combined = score_1(x) - strength * score_2(x)
    return x + step * combined + (2 * step) ** 0.5 * z
    ### END SOLUTION

# %% tags=["check:and_not_step", "points:1"]
check.and_not_step(and_not_step)

# %% [markdown]
# A case with a known end: a quotient of two Gaussians is a Gaussian, if its
# precision stays above zero. Here it is $1/0.6^2 - 0.8/0.9^2 = 1.79$, and the
# mean moves away from what is excluded, to $-0.83$.

# %%
keep = GaussianMixture([1.0], torch.tensor([[0.0, 0.0]]), [0.6])
avoid = GaussianMixture([1.0], torch.tensor([[1.5, 0.0]]), [0.9])
generator = torch.Generator().manual_seed(4)
x = keep.sample(5000, generator)
for _ in range(600):
    z = torch.randn(x.shape, generator=generator)
    x = and_not_step(x, keep.score, avoid.score, 0.8, 0.01, z)
precision = 1 / 0.6**2 - 0.8 / 0.9**2
exact = -0.8 * 1.5 / 0.9**2 / precision
print(f"mean {x[:, 0].mean():.1f} (exact {exact:.1f}), "
      f"std {x[:, 0].std():.1f} (exact {precision**-0.5:.1f})")

# %% [markdown]
# ## Exercise 5. How far a field is from a gradient, in any dimension
#
# *Difficulty 3 of 5 · 25 minutes*
#
# A field is the gradient of something only if its Jacobian
# $J_{ij} = \partial s_i/\partial x_j$ is symmetric. In the plane the one number
# that matters is the curl, $J_{21} - J_{12}$. In $D$ dimensions there is one
# such number for each pair of axes, and together they measure (in the plane
# this is $\sqrt2$ times the size of the curl)
#
# $$\big\| J - J^\top \big\|_F = \sqrt{\textstyle\sum_{ij} (J_{ij} - J_{ji})^2} .$$
#
# Write `asymmetry(score, x)`: `score` maps (B, D) to (B, D), row by row; `x`
# has shape (B, D); the result has shape (B,). What you should see below: a free
# network has curl, the gradient of an energy has none but rounding.
#
# <details><summary>Hint 1: a nudge</summary>
#
# You need one pass backwards for each component of the score. Each gives one
# row of all $B$ Jacobians.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# The gradient of $\sum_b s_i(x_b)$ in $x$ has shape (B, D), and its row $b$ is
# $(J_{i1}, \dots, J_{iD})$ at $x_b$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Make `x` require a gradient, compute the score once, and collect
# `torch.autograd.grad(s[:, i].sum(), x, retain_graph=True)[0]` for each `i`.
# `torch.stack(rows, 1)` has shape (B, D, D); `.mT` transposes its last two
# axes.
#
# </details>

# %% tags=["solution:asymmetry"]
def asymmetry(score, x):
    """The Frobenius norm of J - J^T at each point."""
    ### BEGIN SOLUTION
    x = x.detach().requires_grad_()
    s = score(x)
    rows = []
    for i in range(x.shape[1]):
        rows.append(torch.autograd.grad(s[:, i].sum(), x, retain_graph=True)[0])
    J = torch.stack(rows, 1)
    return (J - J.mT).square().sum((1, 2)).sqrt()
    ### END SOLUTION

# %% tags=["check:asymmetry", "points:2"]
check.asymmetry(asymmetry)

# %% [markdown]
# In float64, in eight dimensions, without any training: whether a field has
# curl is a matter of how the network is built.

# %%
torch.manual_seed(5)
points = torch.randn(200, 8, generator=torch.Generator().manual_seed(6)).double()
t = torch.full((200,), 0.5, dtype=torch.float64)
free = nets.MLP(8, width=32, depth=2).double()
tied = nets.Energy(nets.MLP(8, width=32, depth=2, outputs=1), "scalar").double()
for name, net in {"free": free, "energy": tied}.items():
    found = asymmetry(lambda x, net=net: net(x, t), points).mean()
    print(f"{name:6s} net: mean asymmetry is below 1e-12: {bool(found < 1e-12)}")

# %% [markdown]
# ## Exercise 6. From an energy to log-ratios, and to MALA
#
# *Difficulty 4 of 5 · 40 minutes*
#
# An energy gives the log-ratio of two densities for free,
# $\log p(y) - \log p(x) = E(x) - E(y)$, and its gradient gives the score,
# $-\nabla E$. That is all that one step of MALA needs. For a proposal $y$ that
# Langevin made from $x$, write `accept_probability(energy, x, y, step)`,
#
# $$\min\left(1,\
# \frac{p(y)\,r(x\mid y)}{p(x)\,r(y\mid x)}\right),\qquad r(y\mid x)
# = \mathcal N\big(y;\ x - \delta\nabla E(x),\ 2\delta I\big),\quad
# \delta=\text{step}.$$
#
# `energy` maps (B, D) to (B,); `x` and `y` have shape (B, D); the result has
# shape (B,). What you should see below: chains with a large step have the right
# variance.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Work with logarithms to the end. The two normalising constants of $r$ are
# equal.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\log r(y\mid x) = -\|y - x + \delta\nabla E(x)\|^2 / (4\delta) + \text{const}$,
# and for $r(x\mid y)$ the roles of $x$ and $y$ are exchanged, in the gradient
# too.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# A helper for the gradient of the energy, a helper for $\log r$, then
# `(E(x) - E(y) + there - here).clamp(max=0).exp()` with the right names.
#
# </details>

# %% tags=["solution:accept_probability"]
def accept_probability(energy, x, y, step):
    """The chance that Langevin's proposal y from x is accepted."""
    ### BEGIN SOLUTION
    def log_r(end, start):
        start = start.detach().requires_grad_()
        slope = torch.autograd.grad(energy(start).sum(), start)[0]
        away = end - start.detach() + step * slope
        return -away.square().sum(1) / (4 * step)

    log_ratio = energy(x) - energy(y)
    return (log_ratio + log_r(x, y) - log_r(y, x)).clamp(max=0).exp()
    ### END SOLUTION

# %% tags=["check:accept_probability", "points:3"]
check.accept_probability(accept_probability)

# %% [markdown]
# Ten thousand chains on a standard Gaussian with $\delta = 1.2$, where the
# chapter found a variance of 2.5 without a correction.

# %%
def bowl(x):
    return 0.5 * x.square().sum(1)


generator, step = torch.Generator().manual_seed(7), 1.2
x = torch.randn(10_000, 1, generator=generator)
for _ in range(60):
    z = torch.randn(x.shape, generator=generator)
    y = x - step * x + (2 * step) ** 0.5 * z
    chance = torch.rand(len(x), generator=generator)
    accept = chance < accept_probability(bowl, x, y, step)
    x = torch.where(accept[:, None], y, x)
print(f"variance {x.var().item():.1f}, accepted {accept.float().mean().item():.1f}")

# %% [markdown]
# And the log-ratio itself, from a *learned* energy. The chapter's energy
# network, trained for a short while on two spots, is asked at $\sigma = 0.3$
# for $\log q(y) - \log q(x)$ between random pairs, and compared with the truth.
# With `predicts="eps"` the energy stands for $-\sigma\log q$, so that its
# differences are divided by $\sigma$.

# %%
from diffedu import Denoiser, training

ve = schedules.ve(sigma_min=0.05, sigma_max=5.0)
torch.manual_seed(8)
inner = nets.MLP(2, width=32, depth=2, outputs=1)
denoise = Denoiser(nets.Energy(inner, "scalar", predicts="eps"), ve, predicts="eps")
draws = torch.Generator().manual_seed(9)
*_, last = training.fit(
    denoise, lambda x, generator: losses.denoising(denoise, x, generator=generator),
    lambda step: world.sample(256, draws), steps=700, lr=3e-3, progress=False,
    generator=torch.Generator().manual_seed(10),
)
level = 0.3
t = ve.time_of_log_snr(-2 * torch.tensor(level).log()).float().expand(1000)
hazy = world.noised(1.0, level)
one, two = hazy.sample(1000, draws), hazy.sample(1000, draws)
value = last.ema.net.energy
learned = ((value(one, t) - value(two, t)) / level).detach()
true = hazy.log_prob(two) - hazy.log_prob(one)
like = torch.corrcoef(torch.stack([learned, true]))[0, 1]
print(f"correlation of learned and true log-ratios above 0.9: {bool(like > 0.9)}")
