# %% [markdown]
# # Exercises 1: adding noise
#
# Six exercises on the chain, its schedules, and the best denoiser. Write each
# function in its cell, then run the check below it: it tries your function on
# fresh inputs and tells you what kind of mistake it finds. Hints unfold one at
# a time; take the first before the second. A picture or a number after each
# check shows what your function is good for.

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import schedules, style
from diffedu.checks import ch01 as check

style.use()

# %% [markdown]
# ## Exercise 1. Two steps are one
#
# *Difficulty 2 of 5 · 15 minutes*
#
# A step of any Gaussian chain is a pair $(a, b)$: it takes $x$ to
# $a\,x + b\,\varepsilon$, with fresh standard normal noise. Two steps, first
# $(a, b)$ and then $(c, d)$, are again *one* step of this kind. Which one?
# This is the induction step of the closed form (2006.11239, eq. 4) as a
# function.
#
# Write `compose(first, second)`. Both arguments are tuples `(scale, std)` of
# tensors of shape (B,), and so is the result. `std` is a standard deviation,
# not a variance.
#
# What you should see: folded over DDPM's thousand steps, your function gives
# $\sqrt{\bar\alpha}$ and $\sqrt{1-\bar\alpha}$ of the last one, to 14 digits.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Write down $x$ after both steps. It has one term with $x$ and two with noise.
# The second step scales everything that it is given, noise as well.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $c\,(a x + b\,\varepsilon) + d\,\varepsilon'$. The noises are independent, so
# their variances $c^2 b^2$ and $d^2$ add.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Unpack the pairs with `(a, b), (c, d) = first, second`, then return a product
# and the square root of a sum of two squares.
#
# </details>

# %% tags=["solution:compose"]
def compose(first, second):
    """One step (scale, std) that does what two steps do, first `first`."""
    ### BEGIN SOLUTION
    (a, b), (c, d) = first, second
    return c * a, (c**2 * b**2 + d**2).sqrt()
    ### END SOLUTION

# %% tags=["check:compose", "points:2"]
check.compose(compose)

# %%
from functools import reduce

chain = schedules.linear().chain(1000)
all_steps = [((1 - beta).sqrt(), beta.sqrt()) for beta in chain.betas]
scale, std = reduce(compose, all_steps)
kept = chain.alpha_bar[-1]
print("scale and std agree to 14 digits:", torch.allclose(
    torch.stack([scale, std]), torch.stack([kept, 1 - kept]).sqrt(), rtol=1e-14))

# %% [markdown]
# ## Exercise 2. A schedule of your own
#
# *Difficulty 3 of 5 · 25 minutes*
#
# Design a chain whose log-SNR falls in a straight line: at index $k = 0$ it is
# `highest`, at the last index it is `lowest`, and the steps between are equal.
# On such a chain each step divides the SNR by the same factor.
#
# Write `log_linear_betas(steps, highest, lowest)`: an integer and two floats
# go in, the betas of shape (steps,) come out. Before index 0 stand the data,
# with $\bar\alpha = 1$.
#
# What you should see: a straight line, where the linear and the cosine chain
# bend.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Work backwards. From the log-SNR at each index follows $\bar\alpha_k$, and
# from two neighbours $\bar\alpha_{k-1}$ and $\bar\alpha_k$ follows $\beta_k$.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\log\frac{\bar\alpha}{1-\bar\alpha} = \ell$ means
# $\bar\alpha = \mathrm{sigmoid}(\ell)$, and
# $\beta_k = 1 - \bar\alpha_k / \bar\alpha_{k-1}$ with $\bar\alpha_{-1} = 1$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.linspace(…, dtype=torch.float64)`, `torch.sigmoid(…)`, then
# `torch.cat` with a one in front to shift by one index, and one minus a ratio.
#
# </details>

# %% tags=["solution:log_linear_betas"]
def log_linear_betas(steps, highest, lowest):
    """The betas of a chain whose log-SNR falls evenly from highest to lowest."""
    ### BEGIN SOLUTION
    line = torch.linspace(highest, lowest, steps, dtype=torch.float64)
    alpha_bar = line.sigmoid()
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    return 1 - alpha_bar / previous
    ### END SOLUTION

# %% tags=["check:log_linear_betas", "points:3"]
check.log_linear_betas(log_linear_betas)

# %%
yours = schedules.Chain(log_linear_betas(1000, 9.0, -10.0))
times = torch.arange(1, 1001, dtype=torch.float64) / 1000
fig, ax = plt.subplots()
others = {name: schedules.by_name(name).chain(1000) for name in ("linear", "cosine")}
for name, each in {"log_linear": yours, **others}.items():
    level = each.schedule.log_snr(times)[:-1]
    ax.plot(level, color=style.colour(name), label=name)
ax.set(xlabel="k", ylabel="log-SNR", title="Yours falls evenly; the others bend")
style.label_lines(ax, {"log_linear": "yours"})
style.show(fig, "Log-SNR against k: a straight line for the reader's chain, curves "
           "that are steep at the start for linear and at both ends for cosine.")

# %% [markdown]
# ## Exercise 3. How long does forgetting take?
#
# *Difficulty 3 of 5 · 30 minutes*
#
# Data are $\mathcal N(0, V)$ in one dimension. The betas rise evenly from
# $10^{-4}$ to $0.02$, *whatever $T$ is*: `torch.linspace(1e-4, 0.02, T)`. Find
# the smallest number of steps $T$ for which the chain's end is close to noise,
#
# $$\mathrm{KL}\big(q(x_T)\,\|\,\mathcal N(0, 1)\big) < \text{tolerance},$$
#
# in nats. Write the divergence yourself:
# $\mathrm{KL}(\mathcal N(0, v)\,\|\,\mathcal N(0, 1)) = \frac12(v - 1 - \log v)$.
#
# Write `steps_needed(variance, tolerance)`: two floats go in, an integer comes
# out. The answer is below 3,000 in all checks; compute in float64.
#
# What you should see: data of variance 4 and a tolerance of $10^{-3}$ need 380
# steps.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Which distribution is $q(x_T)$? It is Gaussian with mean 0; its variance
# mixes the data's variance with the noise's.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $v = \bar\alpha_T V + 1 - \bar\alpha_T$, where
# $\bar\alpha_T = \prod(1-\beta_k)$ over all $T$ betas. Each $T$ has its own
# table of betas.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# A `for steps in range(2, 3000)` that makes the betas, `(1 - betas).prod()`,
# the variance and the divergence, and returns `steps` the first time that the
# divergence is small.
#
# </details>

# %% tags=["solution:steps_needed"]
def steps_needed(variance, tolerance):
    """The smallest T whose end is within `tolerance` nats of N(0, 1)."""
    ### BEGIN SOLUTION
    for steps in range(2, 3000):
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
        alpha_bar = (1 - betas).prod()
        v = alpha_bar * variance + 1 - alpha_bar
        if 0.5 * (v - 1 - v.log()) < tolerance:
            return steps
    ### END SOLUTION

# %% tags=["check:steps_needed", "points:3"]
check.steps_needed(steps_needed)

# %%
for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
    steps = steps_needed(4.0, tolerance)
    print(f"variance 4, tolerance {tolerance:.0e}: T = {steps}")

# %% [markdown]
# Each factor of ten costs about as many steps as the one before: the
# divergence falls as $\bar\alpha^2$, and $\log\bar\alpha$ is nearly a straight
# line in $T$.

# %% [markdown]
# ## Exercise 4. How much is left to know?
#
# *Difficulty 4 of 5 · 30 minutes*
#
# The **mutual information** $I(x_0; x_t)$ says how many nats about $x_0$ are
# still in $x_t$. It is the entropy of $x_t$ minus the entropy that $x_t$ has
# when $x_0$ is known, which is the entropy of the noise. A Gaussian of
# variance $v$ has the entropy $\frac12\log(2\pi e\,v)$, and the entropies of
# independent directions add.
#
# Write `information(variances, alpha_bar)` for Gaussian data with independent
# directions of variance $V_i$, on a variance-preserving path: `variances` has
# shape (D,), `alpha_bar` shape (B,), the result shape (B,), in nats.
#
# What you should see: with the variances of the real digits, DDPM's chain has
# less than one nat left from $k = 472$ on.
#
# <details><summary>Hint 1: a nudge</summary>
#
# What is the variance of $x_t$ in direction $i$? And what is it when $x_0$ is
# known?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $$\frac12\sum_i\log\frac{\bar\alpha V_i + 1 - \bar\alpha}{1-\bar\alpha} \;=\;
# \frac12\sum_i\log(1 + \mathrm{snr}\,V_i).$$
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `snr[:, None] * variances` has shape (B, D); then `torch.log1p`, a sum over
# the last axis, and one half.
#
# </details>

# %% tags=["solution:information"]
def information(variances, alpha_bar):
    """I(x_0; x_t) in nats for independent Gaussian directions: shape (B,)."""
    ### BEGIN SOLUTION
    snr = alpha_bar / (1 - alpha_bar)
    return 0.5 * torch.log1p(snr[:, None] * variances).sum(1)
    ### END SOLUTION

# %% tags=["check:information", "points:3"]
check.information(information)

# %%
from diffedu.worlds import digits

images = digits.load("train")[0].double()
spectrum = torch.linalg.eigvalsh(torch.cov(images.flatten(1).T)).clamp(min=0)
fig, ax = plt.subplots()
for name in ("linear", "cosine"):
    each = schedules.by_name(name).chain(1000)
    left = information(spectrum, each.alpha_bar)
    ax.semilogy(left[:-1], color=style.colour(name))
    first = (left < 1).nonzero()[0].item()
    print(f"{name}: less than one nat from k = {first} on")
ax.axhline(torch.tensor(1297.0).log(), color="#767676", ls=":")
ax.text(520, 9, "log 1297: names a training digit", color="#767676")
ax.text(560, 0.05, "linear", color=style.colour("linear"))
ax.text(860, 0.9, "cosine", color=style.colour("cosine"))
ax.set(xlabel="k", ylabel="I($x_0$; $x_k$), nats, at most", ylim=(1e-3, 300),
       title="The cosine chain spreads the loss of knowledge over more steps")
style.show(fig, "Nats left against k, logarithmic, for linear and cosine; both fall "
           "from some 150; the linear chain falls below one near k = 472.")

# %% [markdown]
# Digits are not Gaussian, but among all data with the same covariance the
# Gaussian has the *most* entropy in $x_t$, so the curves are upper bounds.

# %% [markdown]
# ## Exercise 5. The best denoiser of bits
#
# *Difficulty 4 of 5 · 35 minutes*
#
# Let each coordinate of $x_0$ be $+1$ with probability $p_i$, else $-1$,
# independently of the others. You see $x_t = \alpha x_0 + \sigma\varepsilon$.
# What is the best denoiser, $\mathrm E[x_0 \mid x_t]$?
#
# Write `denoise_bits(x, alpha, sigma, p)`: `x` of shape (B, D), `alpha` and
# `sigma` of shape (B,), `p` of shape (D,), and the result of shape (B, D).
#
# What you should see: bitmaps of digits that come back out of the noise, grey
# where the noise leaves a doubt.
#
# <details><summary>Hint 1: a nudge</summary>
#
# For one coordinate there are two possible values of $x_0$. Bayes' rule gives
# the probability $P$ of $+1$ given $x_t$; the mean is then $P - (1 - P)$.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# The log-odds are
#
# $$\log\frac{P}{1-P} = \log\frac{p}{1-p} +
# \frac{(x+\alpha)^2 - (x-\alpha)^2}{2\sigma^2}.$$
#
# Expand the squares. And $2P - 1 = \tanh(\text{log-odds}/2)$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.tanh(… + 0.5 * torch.logit(p))`, with `alpha[:, None]` and
# `sigma[:, None]` to broadcast over the coordinates.
#
# </details>

# %% tags=["solution:denoise_bits"]
def denoise_bits(x, alpha, sigma, p):
    """E[x_0 | x_t] for independent coordinates of +1 (probability p) and -1."""
    ### BEGIN SOLUTION
    pull = alpha[:, None] * x / sigma[:, None] ** 2
    return torch.tanh(pull + 0.5 * torch.logit(p))
    ### END SOLUTION

# %% tags=["check:denoise_bits", "points:3"]
check.denoise_bits(denoise_bits)

# %%
bitmaps = torch.where(images > 0, 1.0, -1.0).double().flatten(1)
p = ((bitmaps + 1) / 2).mean(0).clamp(0.01, 0.99)  # how often each pixel is ink
generator = torch.Generator().manual_seed(0)
cosine, shown = schedules.cosine(), bitmaps[[1, 3, 4, 7, 9, 12]]
eps = torch.randn(shown.shape, dtype=shown.dtype, generator=generator)
t = torch.full((6,), 0.4, dtype=torch.float64)
noisy = cosine.add_noise(shown, t, eps)
answers = denoise_bits(noisy, *cosine.coefficients(t), p)

fig, ax = plt.subplots(figsize=(6, 3.2))
rows = torch.cat([shown, noisy, answers]).reshape(-1, 1, 8, 8)
style.images(ax, rows, columns=6,
             title="Bits, the same under noise, the best guess pixel by pixel")
style.show(fig, "Six bitmaps of digits, the same under noise, and the pixelwise "
           "posterior mean, which resembles the bitmaps with some grey pixels.")

# %% [markdown]
# This denoiser knows each pixel's prior and nothing of how pixels go together.
# The difference between it and a good denoiser is what a network has to learn.

# %% [markdown]
# ## Exercise 6. No signal at the end
#
# *Difficulty 3 of 5 · 25 minutes*
#
# A chain that ends with $\bar\alpha_T > 0$ leaks the brightness of large
# images. Rescale it (2305.08891, algorithm 1): shift $\sqrt{\bar\alpha}$ so
# that its last value is 0, then stretch it so that its first value is what it
# was before, and turn the result into betas.
#
# Write `zero_terminal(betas)`: shape (T,) in, shape (T,) out.
#
# What you should see: the last beta is 1, and an image's brightness can no
# longer be told from $x_T$: the sign of an image of $\pm 1$ is right in half
# of the cases.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Shift and stretch make $r \mapsto (r - \text{last}) \cdot \text{factor}$ of
# $r = \sqrt{\bar\alpha}$. Which factor leaves the first value alone?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $r_k' = (r_k - r_{T-1})\,\frac{r_0}{r_0 - r_{T-1}}$. Then
# $\bar\alpha_k' = r_k'^2$, and
# $\beta_k' = 1 - \bar\alpha_k'/\bar\alpha_{k-1}'$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `cumprod`, `sqrt`, one line for shift and stretch, `square`, then the ratio
# of neighbours as in exercise 2.
#
# </details>

# %% tags=["solution:zero_terminal"]
def zero_terminal(betas):
    """Betas of the same chain, stretched so that no signal is left at the end."""
    ### BEGIN SOLUTION
    root = (1 - betas).cumprod(0).sqrt()
    kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    return 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])
    ### END SOLUTION

# %% tags=["check:zero_terminal", "points:2"]
check.zero_terminal(zero_terminal)

# %%
latent = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
for name, betas in (("before", latent), ("after", zero_terminal(latent))):
    kept = (1 - betas).prod()
    right = torch.special.ndtr((3 * 32**2 * kept / (1 - kept)).sqrt())
    print(f"{name}: last beta {betas[-1]:.3f}, sign of a 32x32 image of +-1 right in "
          f"{right:.2f}")
