# %% [markdown]
# # Exercises 2: learning to reverse
#
# Chapter 2 built DDPM from the posterior to the sampler. Here you write its
# pieces yourself. $k$ runs from 0 to $T-1$, $\bar\alpha_k$ includes step $k$,
# and the data stand before index 0, where $\bar\alpha = 1$. Functions take and
# return tensors; a value for each sample has shape (B,) and needs an axis,
# `[:, None]`, before it meets (B, D).

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import samplers, schedules, style
from diffedu.checks import ch02 as check

style.use()

# %% [markdown]
# ## Exercise 1. The posterior, and two misprints
#
# *Difficulty 2 of 5 · 25 minutes*
#
# Survey A prints the mean of $q(x_{k-1}\mid x_k, x_0)$ as its eq. 5
# (2407.00783), here in this course's letters,
#
# $$\frac{\sqrt{\bar\alpha_{k-1}}\,(1-\bar\alpha_{k-1})\,x_k
# + \sqrt{\bar\alpha_{k-1}}\,\beta_k\,x_0}{1-\bar\alpha_k},$$
#
# and $v = \bar\alpha_k\,\varepsilon - (1-\bar\alpha_k)\,x_k$ as its eq. 8. Both
# are misprinted. Find out what the first should be by hand, before you look back:
# multiply the two Gaussians $q(x_k\mid x_{k-1})$ and $q(x_{k-1}\mid x_0)$. (The
# second is for exercise 2.) Write `posterior(x0, x_k, betas, k)`: `x0` and
# `x_k` of shape (B, D), `betas` of shape (T,), `k` of shape (B,), integers;
# returns the mean (B, D) and the variance (B,). What you should see: at $k = 0$
# the mean is $x_0$ and the variance 0.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Each Gaussian is an opinion on $x_{k-1}$ with a precision (one over the
# variance). Precisions add; means are averaged with the precisions as weights.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# The first opinion is $x_k/\sqrt{1-\beta_k}$ with precision
# $(1-\beta_k)/\beta_k$, the second $\sqrt{\bar\alpha_{k-1}}\,x_0$ with
# precision $1/(1-\bar\alpha_{k-1})$. Their sum is
# $(1-\bar\alpha_k)/\big(\beta_k(1-\bar\alpha_{k-1})\big)$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Two tables, `abar` by `cumprod` and `before` by putting a 1 in front and
# dropping the last; pick row `k` of each and give it an axis; then two lines
# for mean and variance.
#
# </details>

# %% tags=["solution:posterior"]
def posterior(x0, x_k, betas, k):
    """The mean (B, D) and variance (B,) of q(x_{k-1} | x_k, x0)."""
    ### BEGIN SOLUTION
    abar = torch.cumprod(1 - betas, dim=0)
    before = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    beta, now, past = (table[k][:, None] for table in (betas, abar, before))
    mean = past.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - past) * x_k
    return mean / (1 - now), (beta * (1 - past) / (1 - now))[:, 0]
    ### END SOLUTION

# %% tags=["check:posterior", "points:3"]
check.posterior(posterior)

# %% [markdown]
# ## Exercise 2. One answer, four names
#
# *Difficulty 2 of 5 · 20 minutes*
#
# From $x = \alpha x_0 + \sigma\varepsilon$ and any one of $\varepsilon$, $x_0$,
# $v = \alpha\varepsilon - \sigma x_0$ and the score $s = -\varepsilon/\sigma$
# the other three follow (2202.00512). Write
# `convert(x, value, kind, alpha, sigma)`: `x` and `value` of shape (B, D),
# `kind` one of `"eps"`, `"x0"`, `"v"`, `"score"`, `alpha` and `sigma` of shape
# (B,) with $\alpha^2+\sigma^2=1$. Return `x0, eps, v, score`, each (B, D). What
# you should see: the value you were given comes back under its own name.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Go by way of $x_0$: four ways in, and one way out for all.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Multiply $v$ by $\sigma$ and $x$ by $\alpha$, and look at the difference. With
# $\alpha^2+\sigma^2=1$ it is $x_0$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `x0 = {"eps": …, "x0": value, "v": …, "score": …}[kind]`, then `eps` from `x`
# and `x0`, then `v` and the score from `eps`.
#
# </details>

# %% tags=["solution:convert"]
def convert(x, value, kind, alpha, sigma):
    """All four readings of one prediction: x0, eps, v and score, each (B, D)."""
    ### BEGIN SOLUTION
    alpha, sigma = alpha[:, None], sigma[:, None]
    x0 = {
        "eps": (x - sigma * value) / alpha,
        "x0": value,
        "v": alpha * x - sigma * value,
        "score": (x + sigma**2 * value) / alpha,
    }[kind]
    eps = (x - alpha * x0) / sigma
    return x0, eps, alpha * eps - sigma * x0, -eps / sigma
    ### END SOLUTION

# %% tags=["check:convert", "points:2"]
check.convert(convert)

# %% [markdown]
# ## Exercise 3. Bits per dimension
#
# *Difficulty 3 of 5 · 25 minutes*
#
# The last term of the bound is $-\log p(x_0\mid x_{k=0})$. The digits have 17
# levels, $-1, -\tfrac78, \dots, 1$, so the model must give a *probability* to
# each level: the mass of $\mathcal N(\mu, \sigma^2)$ in the bin that reaches
# $\tfrac1{16}$ to either side. The bins of the lowest and the highest level
# reach to infinity (2006.11239, eq. 13). Write
# `bits_per_dim(x0, mean, log_variance)`, all of shape (B, D); the result has
# shape (B,): the mean over elements of $-\log_2$ of the mass. What you should
# see: a model without any knowledge of the data pays about 4 bits, since
# $\log_2 17 = 4.09$.
#
# <details><summary>Hint 1: a nudge</summary>
#
# The mass of an interval is a difference of the normal distribution function
# $\Phi$ at its two ends; `torch.special.ndtr` is $\Phi$.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\Phi\big((x_0 + \tfrac1{16} - \mu)/\sigma\big) - \Phi\big((x_0 - \tfrac1{16}
# - \mu)/\sigma\big)$, with 1 for the first where $x_0 = 1$ and 0 for the second
# where $x_0 = -1$. From the logarithm of a variance $\sigma$ is
# `exp(log_variance / 2)`.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `top = ndtr(…)`, `bottom = ndtr(…)`, two `torch.where`, then
# `-(top - bottom).log2().mean(1)`.
#
# </details>

# %% tags=["solution:bits_per_dim"]
def bits_per_dim(x0, mean, log_variance):
    """Bits per dimension of levels x0 (B, D) under binned Gaussians: (B,)."""
    ### BEGIN SOLUTION
    std = (log_variance / 2).exp()
    top = torch.special.ndtr((x0 + 1 / 16 - mean) / std)
    bottom = torch.special.ndtr((x0 - 1 / 16 - mean) / std)
    top = torch.where(x0 > 1 - 1 / 16, torch.ones_like(top), top)
    bottom = torch.where(x0 < -1 + 1 / 16, torch.zeros_like(bottom), bottom)
    return -(top - bottom).log2().mean(1)
    ### END SOLUTION

# %% tags=["check:bits_per_dim", "points:3"]
check.bits_per_dim(bits_per_dim)

# %% [markdown]
# The sharper the model's Gaussian, the fewer bits it pays while it is right.
# The next cell asks your function what a guess costs that is off by 0.1, as a
# function of how sure the model is of it. Being too sure costs far more than
# being too careful.

# %%
stds = torch.linspace(0.015, 0.6, 100)
level = torch.zeros(100, 1)
cost = bits_per_dim(level, level + 0.1, 2 * stds[:, None].log())

fig, ax = plt.subplots()
ax.plot(stds, cost, color=style.colour("vlb"))
ax.axvline(0.1, color=style.colour("data"), lw=1, ls="--")
ax.text(0.11, 7, "as wide as the error is large")
ax.set(xlabel="standard deviation of the model", ylabel="bits per dimension",
       ylim=(0, 8), title="Too sure costs more than too careful")
style.show(fig, "Bits paid for an error of 0.1 against the model's standard deviation: "
           "a steep wall for small ones, a minimum near 0.1, and a slow rise beyond.")

# %% [markdown]
# ## Exercise 4. Two outputs, blended
#
# *Difficulty 2 of 5 · 10 minutes*
#
# A network that says $\varepsilon$ is a poor judge of $x_0$ at the noisy end,
# one that says $x_0$ a poor judge of $\varepsilon$ at the clean end.
# Dual-output models (2203.04304) say both and blend the two means of the step,
# $\mu = r\,\mu_\varepsilon + (1-r)\,\mu_{x_0}$. Since the mean is linear in the
# estimate of $x_0$, this is the same as blending the two estimates of $x_0$.
# Write `dual_x0(x, eps_hat, x0_hat, r, alpha, sigma)`: the first three of shape
# (B, D), the others (B,), result (B, D). What you should see: in the plot below
# the best blend is never worse than either output.
#
# <details><summary>Hint 1: a nudge</summary>
#
# What does $\hat\varepsilon$ say of $x_0$? $r$ is the weight of that opinion.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $r\,(x - \sigma\hat\varepsilon)/\alpha + (1-r)\,\hat x_0$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Give `r`, `alpha` and `sigma` an axis; one line for the estimate from
# `eps_hat`, one for the blend.
#
# </details>

# %% tags=["solution:dual_x0"]
def dual_x0(x, eps_hat, x0_hat, r, alpha, sigma):
    """The blend of two estimates of x0, r being the weight of the one from eps."""
    ### BEGIN SOLUTION
    r, alpha, sigma = (each[:, None] for each in (r, alpha, sigma))
    from_eps = (x - sigma * eps_hat) / alpha
    return r * from_eps + (1 - r) * x0_hat
    ### END SOLUTION

# %% tags=["check:dual_x0", "points:2"]
check.dual_x0(dual_x0)

# %% [markdown]
# Suppose both outputs of a network miss their targets by independent errors of
# size 0.2. The estimate of $x_0$ from $\hat\varepsilon$ is then wrong by
# $0.2\,\sigma/\alpha$. Two independent estimates are best blended with weights
# in inverse proportion to their variances,
# $r = 1/(1 + \sigma^2/\alpha^2) = \alpha^2$.

# %%
path = schedules.cosine()
dice = torch.Generator().manual_seed(0)
t = torch.linspace(0.02, 0.95, 60)
alpha, sigma = path.coefficients(t)
x0, eps, miss_eps, miss_x0 = torch.randn(4, 60, 2000, generator=dice)
x = alpha[:, None] * x0 + sigma[:, None] * eps
blends = {"eps": torch.ones(60), "x0": torch.zeros(60), "v": alpha**2}
errors = {}
for name, r in blends.items():
    guess = dual_x0(x, eps + 0.2 * miss_eps, x0 + 0.2 * miss_x0, r, alpha, sigma)
    errors[name] = (guess - x0).square().mean(1).sqrt()

fig, ax = plt.subplots()
words = {"eps": "eps alone", "x0": "x0 alone", "v": "best blend"}
for name, error in errors.items():
    ax.plot(t, error, color=style.colour(name), label=words[name])
ax.set(xlabel="time $t$", ylabel="error of $\\hat x_0$", yscale="log",
       title="Blended, two outputs are never worse than one")
ax.legend()
style.show(fig, "Error of the estimated x0 over time: from eps alone it grows from "
           "0.01 to above 1, from x0 alone it stays at 0.2, and the best blend lies "
           "below both everywhere.")

# %% [markdown]
# The best blend's weights $\alpha^2$ and $\sigma^2$ are those of a network that
# predicts $v$: by $x_0 = \alpha x - \sigma v$ its error of $x_0$ is $\sigma$
# times that of $v$, and $\sigma\cdot 0.2$ is the lowest curve.

# %% [markdown]
# ## Exercise 5. One step of the sampler, with a learned variance
#
# *Difficulty 3 of 5 · 30 minutes*
#
# Walk from $x_k$ to $x_{k-1}$ with a predicted noise and a variance that the
# network places between the posterior's and the step's, in the logarithm
# (2102.09672, eq. 15): $\log s_k^2 = f\log\beta_k + (1-f)\log\tilde\beta_k$
# with $f$ in [0, 1]. Write `ancestral_step(x, eps, f, betas, k, z)`: `x`,
# `eps`, `f` and the fresh noise `z` of shape (B, D), `betas` of shape (T,), `k`
# one integer; result (B, D). The last step, $k=0$, goes to the data and adds no
# noise. What you should see: your function walks all the way in the plot below.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Three things in turn: the mean, the variance, the noise. At $k=0$ only the
# first.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# The mean is $\big(x_k - \beta_k\,\hat\varepsilon/\sqrt{1-\bar\alpha_k}\big) /
# \sqrt{1-\beta_k}$ (2006.11239, eq. 11), and $\tilde\beta_k =
# \beta_k(1-\bar\alpha_{k-1})/(1-\bar\alpha_k)$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `mean = …`, then `if k == 0: return mean`; `small = …`; `log_variance = …`;
# return the mean plus `(log_variance / 2).exp() * z`. With the `if` first,
# `abar[k - 1]` is safe.
#
# </details>

# %% tags=["solution:ancestral_step"]
def ancestral_step(x, eps, f, betas, k, z):
    """One step back, from x_k to x_{k-1}: (B, D)."""
    ### BEGIN SOLUTION
    abar = torch.cumprod(1 - betas, dim=0)
    beta = betas[k]
    mean = (x - beta / (1 - abar[k]).sqrt() * eps) / (1 - beta).sqrt()
    if k == 0:
        return mean
    small = beta * (1 - abar[k - 1]) / (1 - abar[k])
    log_variance = f * beta.log() + (1 - f) * small.log()
    return mean + (log_variance / 2).exp() * z
    ### END SOLUTION

# %% tags=["check:ancestral_step", "points:3"]
check.ancestral_step(ancestral_step)

# %% [markdown]
# Eight spots and their exact denoiser, as in the chapter. With $f = 0$ your
# walk must arrive where the library's does.

# %%
from diffedu import GaussianMixture
from diffedu.worlds import toys

chain = schedules.linear().chain(100)
eye = GaussianMixture(*toys.eight_gaussians_parameters()).denoiser(chain.schedule)
start, *noise = torch.randn(101, 1000, 2, generator=dice).double()
x = start
for k, z in zip(reversed(range(100)), noise, strict=True):
    seen = eye(x, chain.times(k)).eps
    x = ancestral_step(x, seen, torch.zeros_like(x), chain.betas, k, z)
times = samplers.time_grid(chain.schedule, steps=100)
theirs = samplers.ancestral(eye, start, times, noise=torch.stack(noise))
print("the same points as the library's:", torch.allclose(x, theirs, atol=1e-6))

fig, ax = plt.subplots(figsize=(3.6, 3.6))
style.scatter(ax, x, style.colour("ancestral"), limit=1.6, title="Your sampler")
ax.set(xlabel="first coordinate", ylabel="second coordinate")
style.show(fig, "A thousand samples of the reader's sampler: eight round spots on a "
           "circle of radius one.")

# %% [markdown]
# ## Exercise 6. What the simple loss leaves out
#
# *Difficulty 3 of 5 · 25 minutes*
#
# For $k\ge1$ and the small variance, a term of the bound is
# $w_k\,\|\varepsilon - \hat\varepsilon\|^2$: a divergence of two Gaussians with
# one variance $s_k^2 = \tilde\beta_k$, whose means differ in proportion to
# $\varepsilon - \hat\varepsilon$. $L_\mathrm{simple}$ puts 1 in the place of $w_k$.
# Write `vlb_weight(betas)`: `betas` of shape (T,), result of shape (T - 1,),
# the weights for $k = 1, \dots, T-1$. What you should see: for DDPM's chain the
# weight falls about a hundredfold from its first value and rises a little at
# the end.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Two Gaussians of one variance $s_k^2$ whose means are $d$ apart have the
# divergence $d^2/(2s_k^2)$. How far does the mean move if
# $\hat\varepsilon$ moves by 1?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $w_k = \beta_k^2 \,/\, \big(2\tilde\beta_k\,(1-\beta_k)(1-\bar\alpha_k)\big)$
# (2006.11239, eq. 12).
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `abar` and `before` as in exercise 1, the small variance, the quotient, and
# `[1:]` at the very end.
#
# </details>

# %% tags=["solution:vlb_weight"]
def vlb_weight(betas):
    """The bound's weights of the squared error of eps for k from 1: (T - 1,)."""
    ### BEGIN SOLUTION
    abar = torch.cumprod(1 - betas, dim=0)
    previous = torch.cat([abar.new_ones(1), abar[:-1]])
    small = betas * (1 - previous) / (1 - abar)
    return (betas**2 / (2 * small * (1 - betas) * (1 - abar)))[1:]
    ### END SOLUTION

# %% tags=["check:vlb_weight", "points:2"]
check.vlb_weight(vlb_weight)

# %%
fig, ax = plt.subplots()
for name in ("linear", "cosine"):
    weights = vlb_weight(schedules.by_name(name).chain(1000).betas)
    ax.plot(range(1, 1000), weights, color=style.colour(name), label=name)
ax.axhline(1, color=style.colour("simple"), ls="--", lw=1)
ax.text(500, 1.3, "$L_{simple}$", ha="center")
ax.set(yscale="log", xlabel="step $k$", ylabel="weight of the error of $\\varepsilon$",
       title="Linear: the first steps weigh most; cosine: the very last too",
       ylim=(1e-3, 1e3))
ax.legend(loc="upper center")
style.show(fig, "Weights of the bound over the steps for the linear and the cosine "
           "chain: both start near one, fall about a hundredfold within a few hundred "
           "steps, and rise at the end, the cosine chain's by far.")
