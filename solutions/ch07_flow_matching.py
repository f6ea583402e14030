# %% [markdown]
# # Exercises 7: flow matching and rectified flow
#
# Six exercises on [chapter 7](../notebooks/ch07_flow_matching.ipynb). Time runs
# from 0, data, to 1, noise or a second data set; a velocity is $dx_t/dt$ with
# this direction. Tensors have the batch first, and no function draws noise of
# its own.

# %%
import torch

from diffedu import Denoiser, GaussianMixture, flows, nets, samplers, schedules
from diffedu.checks import ch07 as check
from diffedu.worlds import toys

# %% [markdown]
# ## Exercise 1. A diffusion path is a flow path
#
# *Difficulty 2 of 5 · 20 minutes*
#
# A noise-predicting network looks at $x_t = \alpha x_0 + \sigma\varepsilon$ and
# answers $\hat\varepsilon$. Say the same on the flow path: where does the point
# stand there, at which time, and with which velocity?
#
# Write `to_flow(x, eps, alpha, sigma)`: `x` and `eps` of shape (B, D), `alpha`
# and `sigma` of shape (B,), on any path (nothing says
# $\alpha^2+\sigma^2 = 1$). Return three things: the point on the flow path,
# shape (B, D), its time, shape (B,), and the velocity there, shape (B, D). What
# you should see below: the velocity of the flow path's own oracle.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Scaling a point does not change what it knows. Which scale makes its two
# weights add up to 1?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\frac{x_t}{\alpha+\sigma} = (1-\tau)\,x_0 + \tau\,\varepsilon$ with $\tau =
# \frac{\sigma}{\alpha+\sigma}$, and the velocity is $\hat\varepsilon - \hat
# x_0$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Keep `total = alpha + sigma`. Give numbers of a sample a second axis with
# `[:, None]`. The clean estimate is `(x - sigma * eps) / alpha`.
#
# </details>

# %% tags=["solution:to_flow"]
def to_flow(x, eps, alpha, sigma):
    """The point, its time and its velocity on the flow path."""
    ### BEGIN SOLUTION
    total = alpha + sigma
    x0 = (x - sigma[:, None] * eps) / alpha[:, None]
    return x / total[:, None], sigma / total, eps - x0
    ### END SOLUTION

# %% tags=["check:to_flow", "points:2"]
check.to_flow(to_flow)

# %%
world = GaussianMixture(*toys.eight_gaussians_parameters())
cosine, path = schedules.cosine(), schedules.flow()
times = torch.linspace(0.1, 0.9, 50).double()
points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
seen = world.denoiser(cosine)(points, times)
moved, tau, velocity = to_flow(points, seen.eps, *cosine.coefficients(times))
gap = (world.denoiser(path)(moved, tau).velocity - velocity).abs().max()
print(f"the velocity is the flow oracle's: {bool(gap < 1e-8)}")

# %% [markdown]
# ## Exercise 2. Straightness, and the error of a single step
#
# *Difficulty 3 of 5 · 25 minutes*
#
# An Euler walk from $t=1$ to $t=0$ went through velocities $u_0, u_1, \dots$,
# with $u_k$ held from `times[k]` to `times[k + 1]`. Two numbers say how far the
# path is from a straight one:
#
# $$S = \sum_k h_k\,\big\| (x_1 - x_0) - u_k \big\|^2 ,\qquad
# e = \big\| x_0^{\text{one step}} - x_0 \big\| ,$$
#
# where $h_k > 0$ are the lengths of the steps (they need not be equal), $x_1$
# and $x_0$ the ends of the walk, and the one step uses $u_0$ all the way.
#
# Write `bend(velocities, times)`: shapes (N, B, D) and (N + 1,), `times`
# falling from 1 to 0. Return $S$ and $e$, each of shape (B,). What you should
# see below: both fall together with reflow's second flow, made here from exact
# pairs.
#
# <details><summary>Hint 1: a nudge</summary>
#
# You don't need the states. What is $x_1 - x_0$, given the velocities and how
# long each was held?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $x_1 - x_0 = \sum_k h_k u_k$. The single step ends at $x_1 - u_0$, so
# $e = \|u_0 - (x_1-x_0)\|$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `h = -times.diff()`, then `h[:, None, None] * velocities` summed over the
# first axis. Norms go over the last axis alone.
#
# </details>

# %% tags=["solution:bend"]
def bend(velocities, times):
    """Straightness S and the error of one Euler step, a value a sample."""
    ### BEGIN SOLUTION
    h = -times.diff()[:, None, None]
    whole = (h * velocities).sum(0)
    S = (h * (whole - velocities).square()).sum((0, 2))
    return S, (velocities[0] - whole).norm(dim=1)
    ### END SOLUTION

# %% tags=["check:bend", "points:2"]
check.bend(bend)

# %% [markdown]
# The exact flow of the ring, and a small network after one reflow of it.

# %%
from diffedu import training

oracle, g = world.denoiser(path), torch.Generator().manual_seed(1)
noise = torch.randn(4000, 2, generator=g).double()
pairs = flows.reflow_pairs(oracle, noise, steps=30)
pairs = [x.float() for x in pairs]
torch.manual_seed(0)
second = Denoiser(nets.MLP(2, width=64, depth=3), path, predicts="velocity")
for _ in training.fit(
    second, lambda batch, g: flows.flow_matching(second, *batch, generator=g),
    training.batches(tuple(pairs), 256, g), steps=500, lr=2e-3, progress=False,
    generator=torch.Generator().manual_seed(2),
):
    pass
for name, model in (("flow", oracle), ("reflow", second.double())):
    trip = flows.travel(model, points, steps=50)
    S, error = bend(trip.velocities, trip.times)
    print(f"{name:6s} S below 0.1: {bool(S.mean() < 0.1)}, "
          f"one-step error below 0.3: {bool(error.mean() < 0.3)}")

# %% [markdown]
# ## Exercise 3. A soft coupling that does not underflow
#
# *Difficulty 3 of 5 · 25 minutes*
#
# Sinkhorn's algorithm starts from $P_{ij} = e^{-C_{ij}/\tau}$ and repeats: scale
# each *row* of $P$ to sum to $1/N$, then each *column* to sum to $1/M$. With a
# small temperature $\tau$ the entries of the start are 0 in floating point, so
# it is done in logarithms.
#
# Write `sinkhorn(cost, temperature, rounds)`: `cost` of shape (N, M), the plan
# $P$ of shape (N, M) after `rounds` repetitions. The check also tries
# temperatures a thousand times smaller than the costs. `cost` need not be
# square, as it was in the chapter. What you should see below: the plan's cost
# falls towards that of the best assignment as the temperature falls.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Dividing a row by its sum is subtracting one number from each logarithm in it.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\log P_{ij} \leftarrow \log P_{ij} - \log\sum_j P_{ij} - \log N$, then the
# same along the other axis with $M$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.logsumexp(log_P, 1, keepdim=True)` is the logarithm of the row sums.
# One `exp` at the very end.
#
# </details>

# %% tags=["solution:sinkhorn"]
def sinkhorn(cost, temperature, rounds):
    """The plan after `rounds` scalings of rows, then columns."""
    ### BEGIN SOLUTION
    log_P = -cost / temperature
    n, m = cost.shape
    for _ in range(rounds):
        log_P = log_P - log_P.logsumexp(1, keepdim=True) - torch.tensor(n).log()
        log_P = log_P - log_P.logsumexp(0, keepdim=True) - torch.tensor(m).log()
    return log_P.exp()
    ### END SOLUTION

# %% tags=["check:sinkhorn", "points:2"]
check.sinkhorn(sinkhorn)

# %%
g = torch.Generator().manual_seed(1)
data, noise = world.sample(60, g), torch.randn(60, 2, generator=g).double()
cost = torch.cdist(data, noise).square()
best = cost[range(60), flows.assignment(cost)].mean()
print(f"random pairs {cost.mean() / best:.1f} times the cheapest cost")
for temperature in (1.0, 0.3, 0.1):
    ratio = (sinkhorn(cost, temperature, 500) * cost).sum() / best
    print(f"temperature {temperature}: {ratio:.1f} times")

# %% [markdown]
# ## Exercise 4. The loss between two data sets
#
# *Difficulty 2 of 5 · 20 minutes*
#
# To lead one set of images into another, $x_1$ is a second data set, and
# everything else stays. Write `bridge_loss(model, x0, x1, t)`. `model(x, t)`
# takes images of shape (B, C, H, W) and times (B,) and answers a velocity of
# x's shape; `x0` and `x1` are images, `t` has shape (B,). Return the mean
# squared error over all elements, a tensor of shape () with a gradient. What
# you should see below: moons become rings.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Three things to get right: what the network sees, what it should say, and how
# `t` meets four axes.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\big\|\,\text{model}\big((1-t)x_0 + t\,x_1,\ t\big) - (x_1 - x_0)\big\|^2$,
# averaged.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `s = t.reshape(-1, *[1] * (x0.dim() - 1))` serves any number of axes. The
# model gets `t` itself, of shape (B,).
#
# </details>

# %% tags=["solution:bridge_loss"]
def bridge_loss(model, x0, x1, t):
    """Flow matching from x1 at t = 1 to x0 at t = 0."""
    ### BEGIN SOLUTION
    s = t.reshape(-1, *[1] * (x0.dim() - 1))
    x_t = (1 - s) * x0 + s * x1
    return (model(x_t, t) - (x1 - x0)).square().mean()
    ### END SOLUTION

# %% tags=["check:bridge_loss", "points:2"]
check.bridge_loss(bridge_loss)

# %%
torch.manual_seed(0)
net = nets.MLP(2, width=64, depth=3)
draws = torch.Generator().manual_seed(2)


def ends(step):
    return toys.eight_gaussians(256, draws), toys.moons(256, draws)


*_, state = training.fit(
    net, lambda pair, g: bridge_loss(net, *pair, torch.rand(256, generator=g)), ends,
    steps=600, lr=2e-3, ema=0.99, progress=False, generator=draws)
start = toys.moons(2000, draws)
end = flows.travel(Denoiser(state.ema, path, "velocity"), start, steps=50).x0.detach()



def near(x):
    return ((x.norm(dim=1) - 1).abs() < 0.3).double().mean()


print(f"near the ring: over 0.8 after the flow: {bool(near(end) > 0.8)}, "
      f"before: {bool(near(start) > 0.8)}")

# %% [markdown]
# ## Exercise 5. D-Flow by gradient descent
#
# *Difficulty 3 of 5 · 25 minutes*
#
# An observation is $y = A x_0$ with noise of standard deviation `width`. D-Flow
# changes the *source* $x_1$ of an ODE until its end $x_0 = \text{solve}(x_1)$
# agrees with it. Each sample has the cost
#
# $$\ell(x_1) = \frac{\big\|A\,\text{solve}(x_1) - y\big\|^2}
# {2\,\text{width}^2}.$$
#
# Write `steer(solve, x1, A, y, width, rate)`, one step of gradient descent on
# the source, $x_1 \leftarrow x_1 - \text{rate}\cdot\nabla_{x_1}\ell$: `solve`
# maps (B, D) to (B, D), `x1` has shape (B, D), `A` (M, D), `y` (M,), result (B,
# D) without a gradient. Samples must not influence each other, and `x1` must
# not change, nor collect a gradient in `x1.grad`. What you should see below:
# after 40 steps the observation is met, and across it the points are spread as
# widely as the data.
#
# <details><summary>Hint 1: a nudge</summary>
#
# The gradient must pass through `solve`. And what is the gradient of a *sum*
# over the batch, for one sample?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\nabla_{x_1}\ell = J^\top A^\top (A x_0 - y)/\text{width}^2$ with the Jacobian
# $J$ of the solve, which autograd applies for you.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `x1 = x1.detach().requires_grad_()`, the cost summed over everything,
# `torch.autograd.grad(cost, x1)[0]`, and the step on detached tensors.
#
# </details>

# %% tags=["solution:steer"]
def steer(solve, x1, A, y, width, rate):
    """One step of gradient descent on the source of an ODE."""
    ### BEGIN SOLUTION
    x1 = x1.detach().requires_grad_()
    missed = solve(x1) @ A.T - y
    cost = missed.square().sum() / (2 * width**2)
    (slope,) = torch.autograd.grad(cost, x1)
    return (x1 - rate * slope).detach()
    ### END SOLUTION

# %% tags=["check:steer", "points:2"]
check.steer(steer)

# %% [markdown]
# On a Gaussian the posterior is known: with this cost alone, D-Flow finds the
# points that meet $y$, and leaves the direction that was not measured to the
# noise it began with.

# %%
blob = GaussianMixture([1.0], torch.zeros(1, 2).double(), [0.5])
grid = samplers.time_grid(path, 8, start=1.0)
A, y = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([0.8]).double()
x1 = torch.randn(300, 2, generator=torch.Generator().manual_seed(3)).double()


def solve(x):
    return samplers.heun(blob.denoiser(path), x, grid)


for _ in range(40):
    x1 = steer(solve, x1, A, y, 0.3, 0.1)
x0 = solve(x1)
across, exact = (x0[:, 0] - x0[:, 1]).std(), 0.5 * 2**0.5
print(f"y is met: {bool((x0 @ A.T - y).abs().max() < 0.01)}; "
      f"spread across: {across:.1f}, exact {exact:.1f}")

# %% [markdown]
# ## Exercise 6. Do a flow's features know as much as a diffusion model's?
#
# *Difficulty 4 of 5 · 45 minutes*
#
# (Graded by hand.) Part II probes the hidden states of diffusion models. Suppose
# you train two U-Nets of one size on the same images, one with flow matching on
# the straight path, one that predicts the noise on the cosine path. Design an
# experiment that says whether the *path* makes a difference to what their
# features know. In at most 200 words: at which times do you compare the two,
# and why not at equal $t$? What else differs between the two trainings that you
# must hold fixed or measure? Which controls would convince a sceptic? What
# outcome do you expect from section 7.4, and what would surprise you?
#
# <details><summary>Hint 1: a nudge</summary>
#
# Two points that carry the same knowledge have the same log-SNR. The two losses
# do not weigh log-SNRs alike.
#
# </details>

# %% [markdown] tags=["answer:features", "points:4"]
# Compare at equal log-SNR, and scale each input as its own network expects:
# $t = 0.5$ on the flow path has log-SNR 0, and so has another time on another
# path. At equal $t$ one would compare different amounts of noise.
#
# The path by itself is only units and a clock, so the best possible denoiser is
# the same for both. What can differ is what training made of it: the weight of
# each log-SNR (weight times density of the times drawn), the network's output
# (velocity or noise, which asks it for other things at the two ends), and the
# input's scale. To isolate the path, train a third network on the cosine path
# with flow matching's weights and its distribution of log-SNR, and a fourth
# that predicts the velocity there.
#
# Probe with a linear classifier, block by block and log-SNR by log-SNR, tuned
# on a validation set; three seeds. Controls: an untrained network, raw pixels,
# shuffled labels (chance), and equal denoising loss, since a network that is
# trained better has better features for reasons that have nothing to do with
# the path.
#
# Expected: curves over log-SNR of the same shape, the difference explained by
# the weights. A surprise: a gap that remains in the third network.
