# %% [markdown]
# # 5. The design space (EDM)
#
# Chapters 1 to 4 made one choice after another: a path, a list of times, a
# solver, how much noise to add, what the network predicts, which noise levels
# it trains on. This chapter takes the choices apart, as Karras et al. did in
# "Elucidating the design space of diffusion-based generative models"
# (2206.00364, EDM for short), and asks of each what it is good for. After it
# you will be able to
#
# - sample from any denoiser with Heun's method on a sensible list of noise
#   levels, and say when plain Euler is better;
# - derive the scalings that a network needs around it, and say what fails
#   without them;
# - say what noise during sampling mends, and what it does not.
#
# | | |
# |---|---|
# | surveys | A 2.1; B II |
# | needs | ch01, ch02, ch03, ch04 |
# | study | 6 hours |
# | figures | F14, F15, F16, F17 |
# | receipt | 51 seconds on one CPU thread, 432 MB |

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import GaussianMixture, losses, samplers, schedules, style
from diffedu.claims import claim, report

style.use()

# %% [markdown]
# ## 5.1 One curve, many descriptions
#
# A path $x_t = \alpha x_0 + \sigma\varepsilon$ can be divided by $\alpha$. What
# is left has one number, the noise level $\sigma/\alpha$, and all paths of the
# course become the same one. So take the path on which nothing has to be
# divided: $\alpha = 1$, and $\sigma$ itself is the time. In this chapter
# $\sigma$ always means that level.
#
# On it the probability-flow ODE of chapter 4 is short. The slope of $x$ in
# $\sigma$ is the noise as the denoiser sees it (2206.00364, eqs. 1 and 3, with
# $\sigma(t) = t$):
#
# $$\frac{dx}{d\sigma} = -\sigma\,\nabla_x \log q_\sigma(x)
# = \frac{x - \hat x_0(x;\sigma)}{\sigma} = \hat\varepsilon(x;\sigma).$$
#
# The library's `edm()` has $\sigma = 80\,t$, so that $t$ still ends at 1. A
# world with two modes in one dimension, its exact denoiser, and the slope:

# %%
from torch.testing import assert_close

path = schedules.edm()
line = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
pair = GaussianMixture([0.5, 0.5], line, [0.2, 0.2])

# %%
def slope(denoise, x, sigma):
    """dx/dsigma, for x of shape (B, D) and a number sigma."""
    x0 = denoise(x, sigma / 80).x0
    return (x - x0) / sigma


x = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
assert_close(slope(pair.denoiser(path), x, 1.5), pair.denoiser(path)(x, 1.5 / 80).eps)

# %% [markdown]
# Is it the same curve on another path? Start 21 points on `edm()` and on
# chapter 1's cosine path, at places that are equal after division by $\alpha$,
# walk both down in many small steps, and divide the second by its $\alpha$.
# The list of log-SNRs is the same for both. (`dpm_solver_2` is a solver of
# chapter 6; any accurate one would do.)

# %%
log_snr = torch.linspace(-6.0, 7.0, 400, dtype=torch.float64)
begin = torch.linspace(-60, 60, 21, dtype=torch.float64)[:, None]

# %%
def curves(path):
    """Times, and the states (steps, 21) on the way down."""
    times = path.time_of_log_snr(log_snr)
    x = path.alpha(times[0]) * begin
    walk = samplers.walk(samplers.dpm_solver_2, pair.denoiser(path), x, times)
    return times, torch.cat([x.T, *(step.x.T for step in walk)])

# %%
cosine = schedules.cosine()
(t_edm, on_edm), (t_cosine, on_cosine) = curves(path), curves(cosine)
undone = on_cosine / cosine.alpha(t_cosine)[:, None]

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
axes[0].plot(path.sigma(t_edm), on_edm, color=style.colour("edm"), lw=1)
axes[1].plot(t_cosine, on_cosine, color=style.colour("cosine"), lw=1)
axes[0].set(xlim=(3, 0), ylim=(-2.5, 2.5), xlabel=r"noise level $\sigma$")
axes[1].set(xlim=(1, 0), ylim=(-2.5, 2.5), xlabel="time $t$")
axes[0].set_title(r"In $\sigma$: straight, then a bend near 1", fontsize=11)
axes[1].set_title("On the cosine path: the same ends", fontsize=11)
axes[0].set_ylabel("$x$")
style.show(fig, "Left: curves in sigma run nearly straight and bend near level 1 "
           "into one of two modes. Right: the same curves on the cosine path "
           "are flat at first, bend later, and end in the same places.")
gap = (undone - on_edm).abs().max()
claim("ch05", "divided by alpha, the cosine path's curves are those of the EDM path",
      gap < 1e-3, agree_within_1e3=bool(gap < 1e-3),
      control_undivided=(on_cosine - on_edm).abs().max())

# %% [markdown]
# A path does not change which image comes out of which noise. It changes where
# the way there is bent, and a solver pays for bends. This is the paper's first
# point: with $\sigma(t) = t$ and no scaling, the line along the slope meets
# $\sigma = 0$ exactly in $\hat x_0$. That changes little both at large noise
# (where it is near the data's mean) and at small noise (where it is near $x$),
# so the curve is almost straight there. The bending sits in between.
#
# A network trained on one path can be sampled on another, with no training.
# That is what `denoise.on(schedules.edm())` does, and we use it on the digits
# in 5.7.

# %% [markdown]
# ## 5.2 Euler and Heun
#
# Euler's method follows the slope for one step down from $\sigma$ to
# $\sigma' < \sigma$. Heun's method (2206.00364, algorithm 1) looks again at the
# place where Euler arrives, and takes the mean of both slopes:
#
# $$x' = x + (\sigma'-\sigma)\,\hat\varepsilon(x;\sigma),\qquad
# x_\mathrm{Heun} = x + (\sigma'-\sigma)\,\tfrac12\big(\hat\varepsilon(x;\sigma)
# + \hat\varepsilon(x';\sigma')\big).$$
#
# The slope divides by $\sigma$, so at $\sigma' = 0$ there is no second look:
# the last step is Euler's, which lands on $\hat x_0$.

# %%
def heun_step(denoise, x, sigma, lower):
    first = slope(denoise, x, sigma)
    guess = x + (lower - sigma) * first
    if lower == 0:
        return guess
    second = slope(denoise, guess, lower)
    return x + (lower - sigma) * (first + second) / 2

# %% [markdown]
# For the rest of the chapter the world is a ring of eight narrow spots, and its
# denoiser is exact, so that what is measured is the solver's error alone.

# %%
from diffedu.worlds import toys

ring = GaussianMixture(*toys.eight_gaussians_parameters())
exact = ring.denoiser(path)
generator = torch.Generator().manual_seed(0)
start = path.prior_sample((128, 2), 1.0, generator, torch.float64)

# %%
times = samplers.time_grid(path, steps=12, spacing="karras")
x = start
for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
    x = heun_step(exact, x, 80 * t, 80 * s)
assert_close(x, samplers.heun(exact, start, times))

# %% [markdown]
# The **order** of a method says how its error falls when the steps get smaller.
# One Euler step of length $h$ misses the curve by about $h^2$ times its
# bending; $N \sim 1/h$ steps add up to an error of order $h$. Heun's mean of
# two slopes also gets the bending right, and is left with $h^2$. On a log-log
# plot over the number of steps $N$ these are lines of slope $-1$ and $-2$.
#
# Beside them run the library's DPM-Solver-2 and DPM-Solver++(2M), which
# chapter 6 builds. All walk from $\sigma = 80$ to $0.002$ on the list of levels
# that 5.3 explains. The step to 0 is left out: it is the same for all. The
# truth is Heun with 1,000 steps.

# %%
names = ["euler", "heun", "dpm_solver_2", "dpm_solver_pp_2m"]
counts = [8, 16, 32, 64, 128, 256]
low = 0.002 / 80
fine = samplers.time_grid(path, 1000, "karras", end=low)
truth = samplers.heun(exact, start, fine)

# %%
def error(x, truth):
    """The root of the mean squared distance between pairs of points."""
    return (x - truth).square().sum(1).mean().sqrt().item()


def errors_of(name, spacing="karras"):
    """The solver's error for each number of steps."""
    grids = [samplers.time_grid(path, n, spacing, end=low) for n in counts]
    solver = samplers.SAMPLERS[name]
    return [error(solver(exact, start, times), truth) for times in grids]

# %%
def order(errors):
    """The slope of log error over log N, from N = 32 on (least squares)."""
    n = torch.tensor(counts[2:]).double().log()
    e = torch.tensor(errors[2:]).double().log()
    n = n - n.mean()
    return ((n @ e) / (n @ n)).item()


karras = {name: errors_of(name) for name in names}
uniform = {name: errors_of(name, "uniform") for name in ("euler", "heun")}
orders = {name: order(errors) for name, errors in karras.items()}

# %% [markdown]
# Steps are not the price. The price is the number of times the network is
# called, the NFE (number of function evaluations), and Heun calls it twice a
# step. So the middle panel plots the two over the NFE. The third one is a
# warning: the same two methods on a list of levels with equal steps in $t$.

# %%
def draw_orders(ax):
    for name in names:
        ax.loglog(counts, karras[name], "-o", ms=4, color=style.colour(name))
    words = {"euler": (60, 0.03), "heun": (9, 0.5), "dpm_solver_2": (8, 1.3e-3),
             "dpm_solver_pp_2m": (60, 3.5e-3)}
    labels = ["Euler", "Heun", "DPM-Solver-2", "++(2M)"]
    for (name, place), label in zip(words.items(), labels, strict=True):
        ax.annotate(label, place, color=style.colour(name), fontsize=10)
    ax.set(xlabel="steps $N$", ylabel="error", ylim=(2e-5, 2))
    ax.set_title("Slope $-1$, and three of $-2$", fontsize=11)


def draw_price(ax):
    ax.loglog(counts, karras["euler"], "-o", ms=4, color=style.colour("euler"))
    twice = [2 * n for n in counts]
    ax.loglog(twice, karras["heun"], "-o", ms=4, color=style.colour("heun"))
    ax.annotate("Euler", (90, 0.02), color=style.colour("euler"))
    ax.annotate("Heun", (18, 0.3), color=style.colour("heun"))
    ax.set(xlabel="network calls (NFE)", ylim=(2e-5, 2))
    ax.set_title("Heun pays from about 32 calls on", fontsize=11)

# %% tags=["F14"]
fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True)
draw_orders(axes[0])
draw_price(axes[1])
for name, errors in uniform.items():
    axes[2].loglog(counts, errors, "-o", ms=4, color=style.colour(name))
axes[2].annotate("Heun", (14, 5), color=style.colour("heun"))
axes[2].annotate("Euler", (9, 0.4), color=style.colour("euler"))
axes[2].set(xlabel="steps $N$", ylim=(2e-5, 20))
axes[2].set_title("Equal steps in $t$: order lost", fontsize=11)
style.show(fig, "Three log-log plots of the error. Left: Euler falls with slope -1,"
           " three other solvers with slope -2. Middle: over network calls, "
           "Heun is worse than Euler at 16 and better from 32 on. Right: with "
           "equal steps in t Heun is worse than Euler up to 32 steps, and then "
           "no better.")
ratio = [h / e for h, e in zip(karras["heun"], karras["euler"][1:], strict=False)]
second = [orders[name] for name in names[1:]]
claim("F14", "Euler's error falls with slope -1, the others' with -2",
      abs(orders["euler"] + 1) < 0.15 and all(abs(s + 2) < 0.3 for s in second),
      euler=orders["euler"], heun=second[0], dpm_solver_2=second[1],
      dpm_solver_pp_2m=second[2], control_heun_uniform=order(uniform["heun"]))
claim("F14", "at 16 calls Heun is worse than Euler, from 64 on at most half as far off",
      ratio[0] > 1 and max(ratio[2:]) <= 0.5, heun_over_euler_at_16=ratio[0],
      at_32=ratio[1], at_64=ratio[2], at_128=ratio[3])
claim("F14", "with equal steps in t, 256 Heun steps are over 50 times worse",
      uniform["heun"][-1] > 50 * karras["heun"][-1], uniform=uniform["heun"][-1],
      karras=karras["heun"][-1])

# %% [markdown]
# (Other starts give the same: on ten seeds Euler's slope was $-0.99$ to
# $-1.02$ and Heun's $-2.04$ to $-2.11$; at 16 calls Heun's error was 2.7 to
# 3.1 times Euler's, at 64 calls 0.31 to 0.36 times.)
#
# Two things to keep. *The order is a promise about small steps.* At eight steps
# Heun's second look is taken so far away that it says little about the way in
# between, and it costs as much as a step. And *the order needs a good list of
# levels.* With equal steps in $t$ on this path Heun is worse than Euler up to
# 32 steps, and no better after that. All but the last few steps are spent
# where nothing happens, between $\sigma = 80$ and $1$; for the bend below 1 no
# step is left until $N$ exceeds 80. Exercise 3 looks into the first, the next
# section into the second.

# %% [markdown]
# ## 5.3 Where to put the steps
#
# The bends sit at small $\sigma$, so the steps should. The paper lets the
# levels fall in equal steps of $\sigma^{1/\rho}$ (2206.00364, eq. 5):
#
# $$\sigma_i = \Big(\sigma_\mathrm{max}^{1/\rho} + \frac{i}{N-1}\big(
# \sigma_\mathrm{min}^{1/\rho} - \sigma_\mathrm{max}^{1/\rho}\big)\Big)^\rho,
# \quad i = 0,\dots,N-1, \qquad \sigma_N = 0 .$$
#
# $\rho = 1$ means equal steps in $\sigma$. As $\rho\to\infty$ they become equal
# in $\log\sigma$. The paper recommends $\rho = 7$.

# %%
def levels(n, rho, sigma_min=0.002, sigma_max=80.0):
    i = torch.arange(n, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigma = (high + i / (n - 1) * (low - high)) ** rho
    return torch.cat([sigma, torch.zeros(1, dtype=torch.float64)])


for rho in (1.0, 3.0, 7.0):
    grid = samplers.time_grid(path, 24, "karras", rho=rho)
    assert_close(levels(24, rho), path.sigma(grid))

# %% [markdown]
# The experiment: 24 Heun steps, the last one to 0, for eight exponents. The
# truth is the fine walk from before, with its own step to 0.

# %%
rhos = [1, 2, 3, 5, 7, 9, 12, 20]
clean = samplers.ddim_step(exact, truth, low, 0.0)
by_rho = []
for rho in rhos:
    times = samplers.time_grid(path, 24, "karras", rho=rho)
    by_rho.append(error(samplers.heun(exact, start, times), clean))

# %% tags=["F15"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
for height, rho in enumerate((1, 3, 7, 20)):
    left.plot(levels(24, rho)[:-1], torch.full((24,), height), "|", ms=12,
              color=style.colour("heun"))
left.axvspan(0.1, 1, color="#dddddd", lw=0)
left.set_yticks(range(4), [rf"$\rho={rho}$" for rho in (1, 3, 7, 20)])
left.set(xscale="log", xlabel=r"noise level $\sigma$", ylim=(-0.6, 3.6))
left.set_title("A large exponent puts steps low", fontsize=11)
right.loglog(rhos, by_rho, "-o", color=style.colour("heun"))
right.set_xticks(rhos[:5] + [12, 20], [str(r) for r in rhos[:5] + [12, 20]])
right.minorticks_off()
right.set(xlabel=r"exponent $\rho$", ylabel="error, 24 Heun steps")
right.set_title("From 5 on it hardly matters", fontsize=11)
style.show(fig, "Left: positions of 24 levels for four exponents; with 1 nearly "
           "all lie above 3, with 7 and 20 many lie in a grey band from 0.1 to"
           " 1. Right: the error falls steeply from exponent 1 to 5 and is "
           "flat after.")
claim("F15", "rho = 7 is within 1.2 of the best exponent; rho = 1 is 50 times worse",
      by_rho[4] <= 1.2 * min(by_rho) and by_rho[0] >= 50 * by_rho[4], rho=rhos,
      error=by_rho)

# %% [markdown]
# The grey band is where this world bends: from the width of a spot, 0.1, to the
# radius of the ring, 1. On ten seeds $\rho=7$ was within a factor of 1.08 to
# 1.11 of the best. The best was always the largest exponent that we tried: *in
# this toy there is no optimum inside*, only a plateau. The paper found that
# $\rho = 3$ makes the errors of all steps about equal, and that images are
# better for 5 to 10: errors made near $\sigma_\mathrm{min}$ count more
# (2206.00364, section 3). A larger $\rho$ buys short steps there with long ones
# at high noise.
#
# ### How far up, how far down
#
# A walk starts from $\mathcal N(0, \sigma_\mathrm{max}^2)$, as if there were no
# data in it. For one Gaussian with mean $m$ and standard deviation $d$ the ODE
# can be solved by hand: $x$ keeps its place in units of the spread,
#
# $$\frac{x_0 - m}{d} = \frac{x - m}{\sqrt{d^2+\sigma_\mathrm{max}^2}} ,$$
#
# so a start of mean 0 ends at $m\,\big(1 - d/\sqrt{d^2+\sigma_\mathrm{max}^2}
# \big)$. The image comes out too close to zero. What does that cost?

# %%
# NBVAL_CHECK_OUTPUT
m, d = 1.0, 0.5
for sigma_max in (1.0, 5.0, 20.0, 80.0):
    mean = m * (1 - d / (d**2 + sigma_max**2) ** 0.5)
    print(f"sigma_max {sigma_max:4.0f}: samples have mean {mean:.3f}, not 1")

# %% [markdown]
# Eighty is generous for data of this size, and for images in $[-1, 1]$. At the
# lower end $\sigma_\mathrm{min}$ must be small against the finest detail: the
# step to 0 returns $\hat x_0(x;\sigma_\mathrm{min})$, a mean over everything
# that looks alike at that level. The paper takes 0.002 (2206.00364, table 1).

# %% [markdown]
# ## 5.4 Preconditioning
#
# Now the network. It should see inputs of the same size at every level, and it
# should be asked for answers of the same size. But $x = x_0 + \sigma\varepsilon$
# is about 80 at one end and about $x_0$ at the other. So wrap the raw network
# $F_\theta$ in four scalings (2206.00364, eq. 7):
#
# $$\hat x_0(x;\sigma) = c_\mathrm{skip}\,x + c_\mathrm{out}\,
# F_\theta\big(c_\mathrm{in}\,x;\ c_\mathrm{noise}\big).$$
#
# They need not be guessed. Let the data have mean square $\sigma_\mathrm{data}^2$
# in each coordinate, so that $x$ has $\sigma_\mathrm{data}^2+\sigma^2$.
#
# **Input.** $c_\mathrm{in}\,x$ should have mean square 1:
# $c_\mathrm{in} = 1/\sqrt{\sigma^2 + \sigma_\mathrm{data}^2}$.
#
# **Target.** Solve the equation for $F$ with the true $x_0$ on the left. The
# network should answer
#
# $$F^* = \frac{x_0 - c_\mathrm{skip}(x_0 + \sigma\varepsilon)}{c_\mathrm{out}},
# \qquad \mathbb E\,(F^*)^2 =
# \frac{(1-c_\mathrm{skip})^2\sigma_\mathrm{data}^2 +
# c_\mathrm{skip}^2\sigma^2}{c_\mathrm{out}^2}.$$
#
# Setting this to 1 gives $c_\mathrm{out}$ for any $c_\mathrm{skip}$.
#
# **Skip.** Whatever the network gets wrong is multiplied by $c_\mathrm{out}$. So
# take the $c_\mathrm{skip}$ that makes $c_\mathrm{out}$ smallest. The
# derivative of the numerator is zero where
# $(1-c_\mathrm{skip})\,\sigma_\mathrm{data}^2 = c_\mathrm{skip}\,\sigma^2$, so
#
# $$c_\mathrm{skip} = \frac{\sigma_\mathrm{data}^2}{\sigma^2+\sigma_\mathrm{data}^2},
# \qquad c_\mathrm{out} =
# \frac{\sigma\,\sigma_\mathrm{data}}{\sqrt{\sigma^2+\sigma_\mathrm{data}^2}} .$$
#
# **Noise level.** $c_\mathrm{noise} = \frac14\ln\sigma$ was found by trial; it
# brings the levels to a range of about 3.

# %%
def scalings(sigma, sigma_data):
    total = sigma**2 + sigma_data**2
    c_skip = sigma_data**2 / total
    c_out = sigma * sigma_data / total.sqrt()
    return c_skip, c_out, 1 / total.sqrt(), sigma.log() / 4

# %% [markdown]
# The library has them under `predicts="edm"`. Ask it with an arbitrary network
# that mixes its two inputs, so that an error in any of the four would show:

# %%
from diffedu import Denoiser, nets, training


def any_net(x, c):
    return torch.tanh(x + c[:, None])


wrapped = Denoiser(any_net, path, predicts="edm", sigma_data=0.5)

# %%
sigma = torch.logspace(-2, 1.9, 128, dtype=torch.float64)
c_skip, c_out, c_in, c_noise = scalings(sigma, 0.5)
ours = c_skip[:, None] * start
ours = ours + c_out[:, None] * any_net(c_in[:, None] * start, c_noise)
assert_close(wrapped(start, sigma / 80).x0, ours)

# %% [markdown]
# What do the two ends mean? At small $\sigma$, $c_\mathrm{skip}\to1$ and
# $c_\mathrm{out}\to\sigma$: the network is asked for the noise. At large
# $\sigma$, $c_\mathrm{skip}\to0$ and $c_\mathrm{out}\to\sigma_\mathrm{data}$: it
# is asked for the data. In between it is a mixture, and we have met it: for
# data of variance 1 on a variance-preserving path, $F$ is chapter 2's $v$ with
# the opposite sign.

# %%
from diffedu import Prediction
from diffedu.prediction import edm

t = torch.tensor(0.4, dtype=torch.float64)
seen = Prediction(start, t, cosine, edm(sigma_data=1.0), torch.tanh(start))
assert_close(seen.v, -torch.tanh(start))

# %% [markdown]
# Now measure. Our ring has mean 0 and mean square 0.51 in each coordinate. The
# left panel below holds the mean squares over $\sigma$ of the input and the
# target of EDM's network, and of the input of a plain one that gets $x$ and
# names $\varepsilon$ (its target, $\varepsilon$, has 1).

# %%
sigma_data = 0.51**0.5
sigmas = torch.logspace(-2, 1.9, 9, dtype=torch.float64)
generator = torch.Generator().manual_seed(1)
x0 = ring.sample(50_000, generator)
eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)

# %%
sizes = {"input": [], "target": [], "plain input": []}
for sigma in sigmas:
    c_skip, c_out, c_in, _ = scalings(sigma, sigma_data)
    x = x0 + sigma * eps
    sizes["input"].append((c_in * x).square().mean().item())
    sizes["target"].append(((x0 - c_skip * x) / c_out).square().mean().item())
    sizes["plain input"].append(x.square().mean().item())

# %% [markdown]
# Does it matter? Train the same small network four ways, on the same noise
# levels (equally likely in $\log\sigma$), the same number of steps, each with
# the plain squared error of what it predicts: $\varepsilon$ from raw inputs,
# $\varepsilon$ from inputs of unit size (which is what a variance-preserving
# path gives it), $x_0$ from raw inputs, and EDM's $F$. All this for three
# seeds. The first and the third are told $t = \sigma/80$, the other two a
# number linear in $\log\sigma$: the fourth scaling is compared along with the
# first.

# %%
even = schedules.log_linear()  # variance-preserving, sigma/alpha from e^-6 to e^6
kinds = {
    "eps": (path, "eps"), "eps, unit input": (even, "eps"),
    "x0": (path, "x0"), "edm": (path, "edm"),
}


def log_even(n, generator):
    """n levels, equally likely in log sigma between 0.01 and 80."""
    low, high = torch.tensor([0.01, 80.0]).log()
    return (low + (high - low) * torch.rand(n, generator=generator)).exp()

# %%
def train(kind, seed, levels=log_even, steps=300):
    """A denoiser of the ring, with averaged weights."""
    torch.manual_seed(seed)
    on, predicts = kinds[kind]
    denoise = Denoiser(nets.MLP(2, width=64, depth=3), on, predicts, sigma_data)

    def loss(x0, generator):
        t = on.time_of_log_snr(-2 * levels(len(x0), generator).log())
        return losses.denoising(denoise, x0, t=t, generator=generator)

    draws = torch.Generator().manual_seed(seed + 100)
    states = training.fit(
        denoise, loss, lambda step: toys.eight_gaussians(256, draws), steps=steps,
        lr=2e-3, ema=0.98, progress=False,
        generator=torch.Generator().manual_seed(seed + 200))
    *_, last = states
    return last.ema.requires_grad_(False)

# %% [markdown]
# The measure is the distance of $\hat x_0$ from the true posterior mean, which
# the oracle knows, as a root mean square.

# %%
def off_by(denoise):
    """The error of x0 at each of the nine levels."""
    out = []
    for sigma in sigmas:
        x = (x0 + sigma * eps)[:2000]
        t = (sigma / 80).float()
        gap = denoise(x.float(), t).x0 - exact(x, sigma / 80).x0
        out.append(gap.square().mean().sqrt().item())
    return out

# %%
learned = {}
for kind in kinds:
    nets_of_kind = [train(kind, seed).on(path) for seed in (0, 1, 2)]
    learned[kind] = torch.tensor([off_by(net) for net in nets_of_kind])

# %%
def draw_sizes(ax):
    ax.loglog(sigmas, sizes["plain input"], "-o", ms=4, color=style.colour("eps"))
    ax.loglog(sigmas, sizes["input"], "-o", ms=9, color=style.colour("edm"))
    ax.loglog(sigmas, sizes["target"], "x", ms=5, color=style.colour("truth"))
    ax.annotate("plain input", (0.5, 200), color=style.colour("eps"))
    words = "EDM: input (dots)\nand target (crosses)"
    ax.annotate(words, (2, 0.17), fontsize=9)
    ax.set(xlabel=r"noise level $\sigma$", ylabel="mean square")
    ax.set_ylim(0.1, 2e4)
    ax.set_title("Unit size at every level", fontsize=11)


def draw_errors(ax):
    colours = ["eps", "score", "x0", "edm"]
    for (kind, values), colour in zip(learned.items(), colours, strict=True):
        ax.loglog(sigmas, values.T, color=style.colour(colour), lw=1.3)
        ax.plot([], [], color=style.colour(colour), label=kind)
    ax.legend()
    ax.set(xlabel=r"noise level $\sigma$", ylabel=r"error of $\hat x_0$")
    ax.set_title("EDM's network is good at both ends", fontsize=11)

# %% tags=["F16"]
fig, axes = plt.subplots(1, 2, figsize=(9.4, 3.6))
draw_sizes(axes[0])
draw_errors(axes[1])
style.show(fig, "Left: the mean square of EDM's input and target is 1 at all "
           "levels; the plain input's rises to 6,000. Right: error of x0 of "
           "four networks over the noise level, three seeds each. Both that "
           "name eps rise steeply at large noise, the one that names x0 is "
           "worst at small noise, EDM's is low at both ends.")
spread = max(abs(v - 1) for v in sizes["input"] + sizes["target"])
ends = {kind: values[:, -1].tolist() for kind, values in learned.items()}
claim("F16", "input and target of EDM's network have unit size within 5 %",
      spread < 0.05, largest_gap=spread, control_plain_input=sizes["plain input"][-1])
claim("F16", "at the largest noise a network of eps is over ten times worse in x0",
      min(ends["eps"]) > 10 * max(ends["edm"]), eps=ends["eps"], edm=ends["edm"])
report("F16", "unit input alone at the largest noise, and x0 at the least",
       eps_unit_input=ends["eps, unit input"], x0=learned["x0"][:, 0].tolist(),
       edm=learned["edm"][:, 0].tolist())

# %% [markdown]
# A network that names the noise answers $\hat x_0 = x - \sigma\hat\varepsilon$.
# An error of one per cent in $\hat\varepsilon$ at $\sigma = 80$ is an error of
# 0.8 in $\hat x_0$, more than the size of the data. Scaling the input, and
# telling the level on a logarithmic scale, helps and does not cure it: the
# factor $\sigma$ is still there. A network that names
# $x_0$ has the opposite trouble. At small noise it must copy its input to
# several digits, which $c_\mathrm{skip}\,x$ does for free.
#
# Is a large error at $\sigma=80$ bad for samples? Less than it looks. In the
# ODE only $\hat\varepsilon$ counts, and one per cent of it is one per cent of a
# slope. That is why DDPM works. It does hurt what reads $\hat x_0$ early:
# clipping, guidance, and the restoration methods of part IV.

# %% [markdown]
# ## 5.5 Which noise levels to train on
#
# With $F$ of unit size, equal weights are natural: the plain squared error of
# $F$. In terms of $\hat x_0$ it is the weight $w = 1/c_\mathrm{out}^2$
# (2206.00364, table 1), since $\hat x_0 - x_0 = c_\mathrm{out}(F - F^*)$.

# %%
def edm_loss(denoise, x0, sigma, eps, sigma_data):
    """The weighted error of x0, for a number sigma or one a sample (B,)."""
    x_t = x0 + sigma[..., None] * eps
    _, c_out, _, _ = scalings(sigma, sigma_data)
    away = (denoise(x_t, sigma / 80).x0 - x0).square().mean(1)
    return (away / c_out**2).mean()

# %% [markdown]
# For a network under `predicts="edm"` this is the library's `"simple"`; for any
# denoiser and $\sigma_\mathrm{data} = 0.5$ it is its weighting `"edm"`:

# %%
some = torch.logspace(-2, 1.5, 128, dtype=torch.float64)
noise = eps[:128]
ours = edm_loss(wrapped, x0[:128], some, noise, 0.5)
for weighting in ("simple", "edm"):
    theirs = losses.denoising(wrapped, x0[:128], weighting, t=some / 80, noise=noise)
    assert_close(ours, theirs)

# %% [markdown]
# A network that answers $F = 0$ has loss 1 at every level: that is what unit
# variance means. How far down can it go? The best denoiser knows. At small
# $\sigma$ the noise is hidden within the data's own blur and cannot be seen. At
# large $\sigma$ the data are hidden in the noise. In both cases the best loss
# is near 1 as well: beyond the answer 0 there is next to nothing to learn, and
# training time spent there is lost. Only the middle has something to teach, so
# the paper draws
# $\ln\sigma$ from a normal distribution,
#
# $$\ln\sigma \sim \mathcal N(P_\mathrm{mean}, P_\mathrm{std}^2),\qquad
# P_\mathrm{mean} = -1.2,\quad P_\mathrm{std} = 1.2 .$$

# %%
def log_normal(n, generator, mean=-1.2, std=1.2):
    """n levels whose logarithm is normal."""
    return (mean + std * torch.randn(n, generator=generator)).exp()


generators = [torch.Generator().manual_seed(7) for _ in range(2)]
theirs = losses.edm_times(1000, path, generators[0])
assert_close(log_normal(1000, generators[1]).clamp(0.002, 80) / 80, theirs,
             rtol=1e-4, atol=1e-6)

# %%
net = train("edm", 0, log_normal, steps=800)
fine_sigmas = torch.logspace(-2.5, 1.9, 40, dtype=torch.float64)
best = [edm_loss(exact, x0[:4000], s, eps[:4000], sigma_data) for s in fine_sigmas]
data, draws = x0[:4000].float(), eps[:4000].float()
reached = [edm_loss(net, data, s.float(), draws, sigma_data) for s in fine_sigmas]

# %%
fig, ax = plt.subplots(figsize=(6.4, 3.4))
ax.axhline(1, color=style.colour("untrained"), lw=1.2)
ax.semilogx(fine_sigmas, reached, color=style.colour("learned"))
ax.semilogx(fine_sigmas, best, "--", color=style.colour("truth"))
bell = (-0.5 * ((fine_sigmas.log() + 1.2) / 1.2) ** 2).exp()
ax.fill_between(fine_sigmas, 0, 0.5 * bell, color="#dddddd", lw=0)
ax.annotate("answers $F=0$", (0.004, 1.04), color=style.colour("untrained"))
ax.annotate("learned", (4, 0.85), color=style.colour("learned"))
ax.annotate("best possible", (0.004, 0.86))
ax.annotate("trained here", (0.12, 0.08))
ax.set(xlabel=r"noise level $\sigma$", ylabel="loss of $F$", ylim=(0, 1.25))
ax.set_title("Only the middle has something to teach")
style.show(fig, "The loss over the noise level: a line at 1 for F = 0; the best "
           "possible loss is near 1 at both ends and dips in the middle; the "
           "learned one lies just above it, and climbs over 1 above level 10. A "
           "grey bell shows where training draws its levels.")
dip = min(best).item()
claim("ch05", "the best loss is within 5 % of 1 at both ends, and far below between",
      abs(best[0] - 1) < 0.05 and abs(best[-1] - 1) < 0.05 and dip < 0.6,
      low_end=best[0], high_end=best[-1], dip=dip, learned_dip=min(reached))

# %% [markdown]
# The bell of the paper was fitted to images, and is not far off. For this ring
# it sits a little too high and is too wide: its upper part lies where the best
# loss is close to 1, and the dip is at the width of the spots. Exercise 4
# moves it. There is a price on the other side: above $\sigma=10$, where fewer than
# one draw in 500 falls, the learned network is worse than one that answers 0.
# Samples hardly suffer, because the slope there is nearly $x/\sigma$ whatever
# $F$ says. Samples from the learned network, with 18 Heun steps (35 calls, the
# paper's number for images of $32\times32$):

# %%
from diffedu import metrics

torch.manual_seed(0)
untrained = Denoiser(nets.MLP(2, width=64, depth=3), path, "edm", sigma_data)
untrained = untrained.requires_grad_(False)
times = samplers.time_grid(path, 18, "karras")
begin = path.prior_sample((2000, 2), 1.0, torch.Generator().manual_seed(3))

# %%
clouds = {"truth": ring.sample(2000, torch.Generator().manual_seed(4)).float()}
for name, denoise in {"learned": net, "untrained": untrained}.items():
    clouds[name] = samplers.heun(denoise, begin, times)
fresh = ring.sample(2000, torch.Generator().manual_seed(5)).float()

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 3.6), sharex=True, sharey=True)
distance = {}
for ax, (name, points) in zip(axes, clouds.items(), strict=True):
    style.scatter(ax, points, name, 2, 1.9, name.capitalize())
    directions = torch.Generator().manual_seed(6)
    distance[name] = metrics.sliced_wasserstein(points, fresh, generator=directions)
    ax.set_xlabel("$x_1$")
axes[0].set_ylabel("$x_2$")
style.show(fig, "Three clouds of points: the true ring of eight spots, the learned "
           "one, which looks alike, and a structureless cloud from the "
           "untrained network.")
claim("ch05", "the learned samples are closer to the ring than half of the control",
      distance["learned"] < 0.5 * distance["untrained"], **distance)

# %% [markdown]
# ## 5.6 Churn: noise during sampling
#
# The ODE adds no noise after the start. Stochastic samplers do, and on images
# they often gave better results. EDM's own (2206.00364, algorithm 2) puts the
# two things apart. Before each step it **raises** the noise level by a share
# $\gamma$, adding just the noise that is missing, and then takes Heun's step
# down from there:
#
# $$\hat\sigma = (1+\gamma)\,\sigma,\qquad
# \hat x = x + \sqrt{\hat\sigma^2 - \sigma^2}\;S_\mathrm{noise}\,z,\qquad
# z\sim\mathcal N(0, I).$$
#
# Variances add, hence the root of a difference of squares. Raising the level
# is a step of the *forward* process: if $x$ was distributed like data with
# noise $\sigma$, then $\hat x$ is like data with noise $\hat\sigma$. How much
# is set by one number for the whole walk, and only within a range of levels:
#
# $$\gamma = \min\!\big(S_\mathrm{churn}/N,\ \sqrt2-1\big)
# \text{ if } S_\mathrm{tmin}\le\sigma\le S_\mathrm{tmax},\text{ else } 0 .$$
#
# The cap says that no step adds more new noise than there is.

# %%
def raise_level(x, sigma, n, s_churn, s_noise, z, s_tmin=0.05, s_tmax=50.0):
    inside = s_tmin <= sigma <= s_tmax
    gamma = min(s_churn / n, 2**0.5 - 1) if inside else 0.0
    raised = (1 + gamma) * sigma
    return x + (raised**2 - sigma**2) ** 0.5 * s_noise * z, raised

# %%
def stochastic(denoise, x, sigmas, noise, s_churn, s_noise=1.0):
    n = len(sigmas) - 1
    for sigma, lower, z in zip(sigmas[:-1], sigmas[1:], noise, strict=True):
        x, raised = raise_level(x, sigma, n, s_churn, s_noise, z)
        x = heun_step(denoise, x, raised, lower)
    return x

# %%
noise = torch.randn(20, *start.shape, generator=generator, dtype=start.dtype)
ours = stochastic(exact, start, levels(20, 7.0).tolist(), noise, 10.0, 1.003)
times = samplers.time_grid(path, 20, "karras")
theirs = samplers.edm_stochastic(
    exact, start, times, s_churn=10.0, s_noise=1.003, noise=noise)
assert_close(ours, theirs)

# %% [markdown]
# What is it for? The paper's answer is that churn corrects errors made in
# earlier steps. Errors of what? There are two things that can be wrong, and
# with an oracle we can break one at a time. The world has two modes, with
# three quarters of its mass on the left. At $\sigma = 2$ the modes overlap.
#
# - **A wrong state.** The denoiser is exact, but the points that arrive at
#   $\sigma=2$ come from a world with *half* the mass on the left: something
#   went wrong on the way.
# - **A wrong score.** The points that arrive are right, but from there on the
#   denoiser is that of the half-and-half world.

# %%
def modes(weight):
    centres = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    return GaussianMixture([weight, 1 - weight], centres, [0.3, 0.3])


right, wrong = modes(0.75), modes(0.5)
cases = {  # name: (the state's world, the denoiser's world)
    "wrong state": (wrong, right), "wrong score": (right, wrong),
    "both right": (right, right),
}

# %%
def left_share(state, model, s_churn):
    """The left mode's share at the end, for 4,000 points that start at sigma 2."""
    generator = torch.Generator().manual_seed(8)
    x = state.at(path, 2 / 80).sample(4000, generator)
    times = samplers.time_grid(path, 64, "karras", start=2 / 80)
    x = samplers.edm_stochastic(
        model.denoiser(path), x, times, s_churn=s_churn, generator=generator)
    return x, (x[:, 0] < 0).double().mean().item()

# %%
churns = [0, 5, 10, 20, 40]
ends = {name: [left_share(*case, c) for c in churns] for name, case in cases.items()}
missed = {name: [abs(share - 0.75) for _, share in end] for name, end in ends.items()}

# %%
def draw_missed(ax):
    colours = {"wrong state": "edm_stochastic", "wrong score": "dpm_solver_2",
               "both right": "truth"}
    for name, colour in colours.items():
        ax.plot(churns, missed[name], "-o", color=style.colour(colour), label=name)
    style.label_lines(ax)
    ax.set(xlabel=r"$S_\mathrm{churn}$", ylabel="error of the weight", xlim=(-1, 56))
    ax.set_title("Churn mends a state, not a score", fontsize=11)


def draw_marginals(ax):
    walks = {"without churn": (0, "heun"), "with churn": (-1, "edm_stochastic")}
    for name, (k, colour) in walks.items():
        points, share = ends["wrong state"][k]
        ax.hist(points[:, 0].numpy(), 40, density=True, histtype="step",
                label=f"{name}: {share:.2f} left", color=style.colour(colour))
    grid = torch.linspace(-2.2, 2.2, 200, dtype=torch.float64)[:, None]
    line = GaussianMixture([0.75, 0.25], right.means[:, :1], [0.3, 0.3])
    ax.plot(grid, line.log_prob(grid).exp(), color=style.colour("truth"), lw=1)
    ax.annotate("truth: 0.75", (-0.7, 0.95))
    ax.legend()
    ax.set(xlabel="$x_1$", ylabel="density", ylim=(0, 1.45))
    ax.set_title("Wrong state, exact score", fontsize=11)

# %% tags=["F17"]
fig, axes = plt.subplots(1, 2, figsize=(9.4, 3.4))
draw_missed(axes[0])
draw_marginals(axes[1])
style.show(fig, "Left: error of the mode's weight over the amount of churn. It "
           "falls from 0.1 to near 0 for a wrong state and rises from 0.16 to"
           " 0.25 for a wrong score. Right: histograms of the wrong state's "
           "samples; with churn they follow the true density.")
state, score = missed["wrong state"], missed["wrong score"]
claim("F17", "churn mends at least two thirds of the state's error",
      state[-1] < state[0] / 3, without=state[0], with_churn=state[-1],
      control_both_right=missed["both right"][-1])
claim("F17", "it does not mend a wrong score: the error grows",
      score[-1] > score[0], without=score[0], with_churn=score[-1])

# %% [markdown]
# The wrong state would be off by 0.25 if nothing happened to it; the exact
# denoiser alone takes that to about 0.1 on the way down, and churn does the
# rest. (On ten seeds the first error went from 0.07 to 0.105 down to 0 to
# 0.014, the second from 0.145 to 0.164 up to 0.24 to 0.255. The sampling error of a
# share of 4,000 points is 0.007. "Both right" starts at 0.016, over two of
# these: the start of this seed is off by chance, and on nine other seeds the
# error was at most 0.006.)
#
# Both halves have one explanation. Raising the level and stepping down again
# leaves one distribution as it is: the *denoiser's own* (if there is one: a
# network's answers at all levels need not fit one distribution; then read
# "where its churn settles"). Repeated, it forgets
# the state that it was given and draws towards that distribution, as
# Langevin dynamics did in chapter 3. If the denoiser is right, errors of the
# state are forgotten. If it is wrong, what is forgotten is the *correct* state,
# and the error of the score is installed in full: the half-and-half denoiser
# alone would be off by 0.25. Without churn its influence was limited to the
# steps that were left.
#
# So "stochastic samplers correct errors" is half of the truth. Whether churn
# helps a given network depends on which error is larger, the solver's or the
# network's, and has to be tried. The paper tuned the four numbers by grid
# search for each network; its best networks gained nothing from churn on
# CIFAR-10, and still gained on ImageNet (2206.00364, section 5). Exercise 5
# tries it with a learned score.

# %% [markdown]
# ## 5.7 On digits
#
# Chapter 2's kind of network, trained on the cosine path to predict $v$, has
# never heard of EDM. Move it to the path of this chapter, and sample.

# %%
from diffedu import recipes

digit_net = recipes.load("digits_unet").on(path)

# %% [markdown]
# Nobody knows the true samples here, but a fine walk of the same network from
# the same noise is the truth for the *solver*. Three groups of 16 starts; Heun
# with $n$ steps calls the network $2n-1$ times, and Euler gets as many calls.

# %%
steps = [5, 9, 18, 30]
calls = [2 * n - 1 for n in steps]
noise = torch.Generator().manual_seed(0)
noise = path.prior_sample((48, 1, 8, 8), 1.0, noise)

# %%
def digits_by(sampler, n):
    return sampler(digit_net, noise, samplers.time_grid(path, n, "karras"))


reference = digits_by(samplers.heun, 80)
by_euler = [digits_by(samplers.euler, n) for n in calls]
by_heun = [digits_by(samplers.heun, n) for n in steps]

# %%
def by_group(images):
    """The r.m.s. error of a pixel in each of the three groups."""
    off = (images - reference).square().flatten(1).mean(1)
    return off.reshape(3, 16).mean(1).sqrt()


euler = torch.stack([by_group(x) for x in by_euler], 1)
heun = torch.stack([by_group(x) for x in by_heun], 1)

# %%
fig, axes = plt.subplots(1, 5, figsize=(11, 3), width_ratios=[1.9, 1, 1, 1, 1])
axes[0].loglog(calls, euler.T, color=style.colour("euler"))
axes[0].loglog(calls, heun.T, color=style.colour("heun"))
axes[0].annotate("Euler", (30, 0.08), color=style.colour("euler"))
axes[0].annotate("Heun", (12, 0.4), color=style.colour("heun"))
axes[0].set_xticks(calls, [str(n) for n in calls])
axes[0].minorticks_off()
axes[0].set(xlabel="network calls", ylabel="r.m.s. error of a pixel")
axes[0].set_title("Heun wins late", fontsize=11)
titles = ["Euler, 9 calls", "Heun, 9 calls", "Heun, 35", "Heun, 159"]
shown = by_euler[0], by_heun[0], by_heun[2], reference
for ax, title, batch in zip(axes[1:], titles, shown, strict=True):
    style.images(ax, batch[:16], 4)
    ax.set_title(title, fontsize=10)
style.show(fig, "Left: error over network calls on digits. Heun is far worse than "
           "Euler at 9 calls, about equal at 17 and better at 35 and 59. "
           "Right: digits of both at 9 calls, soft for Euler and harsh and torn "
           "for Heun, and of Heun with 35 and 159 calls, which look alike.")
claim("ch05", "on digits Heun is worse at 9 calls and at most half as far off at 59",
      bool((heun[:, 0] > euler[:, 0]).all() and (heun[:, 3] < euler[:, 3] / 2).all()),
      euler_at_9=euler[:, 0], heun_at_9=heun[:, 0], euler_at_59=euler[:, 3],
      heun_at_59=heun[:, 3])

# %% [markdown]
# The same picture as on the ring, now with a learned network in 64 dimensions,
# and with the crossing near 17 calls instead of 30: where it lies depends on
# the data and on the list of levels. Chapter 6 is about what to do to the left
# of it.
#
# One number of preconditioning should not be copied from the paper:
# $\sigma_\mathrm{data}$. Its 0.5 belongs to its images. What counts in the
# derivation is the mean square, which includes the square of the mean, and
# digits on a dark ground have a mean far from 0:

# %%
# NBVAL_CHECK_OUTPUT
from diffedu.worlds import digits

images, _ = digits.load("train")
mean_square = images.square().mean()
print(f"root mean square {mean_square.sqrt():.3f}, deviation {images.std():.3f}")

# %% [markdown]
# With 0.5 in its place, what would the target's mean square be at a small, a
# middle and a large level? The formula of 5.4 says, with the digits' mean
# square in the place where it stands for the data. At small noise the
# network is asked for the noise alone, which has variance 1 whatever the data.

# %%
# NBVAL_CHECK_OUTPUT
for sigma in torch.tensor([0.01, 0.5, 50.0]):
    c_skip, c_out, _, _ = scalings(sigma, 0.5)
    size = ((1 - c_skip) ** 2 * mean_square + c_skip**2 * sigma**2) / c_out**2
    print(f"sigma {sigma:5.2f}: the target's mean square is {size:.2f}")

# %% [markdown]
# ## 5.8 Failure gallery
#
# Six ways to get it nearly right, on the ring with 18 Heun steps and, but for
# the last, its exact denoiser. The programmer's errors come from one function
# with three switches.

# %%
def faulty(stale=False, unraised=False, linear=False, s_churn=18.0):
    """18 steps with one thing wrong, for 1,000 points."""
    generator = torch.Generator().manual_seed(9)
    x, sigmas = begin[:1000].double(), levels(18, 7.0).tolist()
    for sigma, lower in zip(sigmas[:-1], sigmas[1:], strict=True):
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        raised_x, raised = raise_level(x, sigma, 18, s_churn, 1.0, z)
        x = x + (raised - sigma) * z if linear else raised_x
        raised = sigma if unraised else raised
        first = slope(exact, x, raised)
        guess = x + (lower - raised) * first
        looked = x if stale else guess
        second = slope(exact, looked, lower) if lower > 0 else first
        x = x + (lower - raised) * (first + second) / 2
    return x

# %% [markdown]
# The last failure is a constant. The network of 5.5 was trained with
# $\sigma_\mathrm{data} = 0.71$ and is loaded with the default, 0.5.

# %%
careless = Denoiser(net.net, path, "edm")
times = samplers.time_grid(path, 18, "karras")
too_loud = dict(s_churn=18.0, s_noise=1.1, s_tmin=0.0, generator=generator)

# %%
gallery = {
    "Equal steps in $\\sigma$": samplers.heun(
        exact, begin[:1000].double(), samplers.time_grid(path, 18, "karras", rho=1.0)),
    "Second look at the old $x$": faulty(stale=True, s_churn=0.0),
    "Level not raised: too wide": faulty(unraised=True),
    r"$\hat\sigma-\sigma$ for the root: tight": faulty(linear=True),
    "$S_{noise}=1.1$ down to 0: wide": samplers.edm_stochastic(
        exact, begin[:1000].double(), times, **too_loud),
    r"Loaded with $\sigma_{data}=0.5$": samplers.heun(careless, begin[:1000], times),
}

# %%
def width(x):
    """The r.m.s. distance, an axis, to the nearest of the eight centres."""
    nearest = torch.cdist(x.double(), ring.means).min(1).values
    return (nearest.square().mean() / 2).sqrt().item()


widths = {name: width(x) for name, x in gallery.items()}
widths["right"] = width(faulty())

# %%
fig, axes = plt.subplots(2, 3, figsize=(9.4, 6), sharex=True, sharey=True)
for ax, (name, points) in zip(axes.flat, gallery.items(), strict=True):
    style.scatter(ax, points, "learned", 3, 2.2)
    for centre in ring.means:
        ax.add_patch(plt.Circle(centre, 0.2, fill=False, lw=0.8))
    ax.set_title(name, fontsize=10)
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
style.show(fig, "Six clouds with circles around the true spots: equal steps in "
           "sigma leave scattered points; a second look at the old point misses "
           "the spots; a level that is not raised and noise that is too loud make "
           "spots too wide; the wrong root makes them tight; the wrong constant "
           "shrinks the ring.")
radius = [x.norm(dim=1).mean() for x in (clouds["learned"], [*gallery.values()][-1])]
report("ch05", "mean radius of the learned ring, right and with the wrong constant",
       right=radius[0], wrong=radius[1])
report("ch05", "width of the spots, where 0.1 is right",
       right=widths["right"], level_not_raised=widths["Level not raised: too wide"],
       no_root=widths[r"$\hat\sigma-\sigma$ for the root: tight"],
       s_noise_1_1=widths["$S_{noise}=1.1$ down to 0: wide"])

# %% [markdown]
# Even the right algorithm has a bias with 18 steps and this much noise: 0.113 for
# the width of 0.1. Two faults move it far; loud noise adds about as much as the
# bias. All three go in the direction that the equation predicts. The wrong
# constant shrinks the ring by about $k = 0.5/0.71$, since with
# $k\,\sigma_\mathrm{data}$ the three scalings fit data $k$ times as large; only
# $c_\mathrm{noise}$ does not know.
#
# | what you see | look for |
# |---|---|
# | scattered samples that gather only with hundreds of steps | the list of levels |
# | Heun worse than Euler; a ring too small | where the second look is taken |
# | samples too noisy, the more churn the noisier | the level told to the network |
# | samples too smooth with churn | the root of the difference of squares |
# | right in shape and wrong in size | the checkpoint's $\sigma_\mathrm{data}$ |

# %% [markdown]
# ## 5.9 What was scaled down, and what is left out
#
# - EDM trained large networks on images of $32\times32$ and $64\times64$ for
#   days on several GPUs. Ours have two dimensions and seconds. The truncation
#   errors do not depend on that; what churn does for a large network does, and
#   is not shown here.
# - The paper judges samplers by Fréchet distance. With an oracle the distance
#   to the true curve can be measured, and was.
# - Its non-leaky augmentation of training data, its choice of dropout and its
#   U-Nets are left out. The follow-up (2312.02696) normalises the network's
#   own weights and activations in the same spirit.
# - `samplers.edm_stochastic` never raises the level above the largest one of
#   its path; in the paper the network may be asked above
#   $\sigma_\mathrm{max}$.
#
# ## 5.10 Summary
#
# - After division by $\alpha$ there is one path. The path you sample on is a
#   choice, apart from the one you trained on.
# - The bends sit at small noise, so the steps should: $\rho = 7$ is a safe
#   choice, equal steps are not.
# - Heun has order 2 and wins from about 17 (digits) or 32 (ring) calls on;
#   with fewer, Euler does.
# - The scalings around a network follow from unit variance of input and
#   target and the least amplification of its errors. The network is asked for
#   noise where noise is small, for data where noise is large.
# - Train where something can be learned: between the scale of the finest
#   detail and the size of the data.
# - Churn leads to the denoiser's own distribution. It mends a wrong state and
#   installs a wrong score.
#
# Do the [exercises](../exercises/ch05_design_space.ipynb) next. Chapter 6 asks
# what can be done with ten calls, or one.
