# %% [markdown]
# # 1. The Markov chain that adds noise
#
# A diffusion model is built around a process that destroys data. Nothing in
# that process is learned, so all of it can be known exactly, and this chapter
# knows it exactly. After it you will be able to
#
# - walk data into noise one step at a time, and jump to any step at once, and
#   show that the two agree;
# - read any noise schedule as two numbers, $\alpha_t$ and $\sigma_t$, and as
#   one: the signal-to-noise ratio;
# - say what stood behind a noisy image as well as anyone can: compute the
#   posterior mean, prove that nothing beats it, and get it from a score by
#   Tweedie's formula.
#
# | | |
# |---|---|
# | surveys | A 2.1, eq. 1-3 |
# | needs | nothing |
# | study | 4 hours |
# | figures | F01, F02 |
# | receipt | 9 seconds on one CPU thread, 422 MB |

# %%
import matplotlib.pyplot as plt
import torch
from torch.testing import assert_close

from diffedu import EmpiricalDenoiser, GaussianMixture, schedules, style
from diffedu.claims import claim

style.use()

# %% [markdown]
# ## 1.1 Why anyone would destroy data
#
# Turning noise into an image in one go asks a network for everything at once.
# A diffusion model asks for little, many times: it learns to undo a small
# amount of noise, and repeats that. For this there must be a path from data to
# noise that is made of small steps, and whose end is a distribution that we
# can draw from. We choose that path ourselves, and the simplest useful choice
# is Gaussian noise.
#
# The data are 1,297 real handwritten digits of 8x8 pixels, with ink at 1 and
# paper at -1. All arithmetic in this chapter is done in float64, so that a
# disagreement means a wrong formula and not a rounding.

# %%
# NBVAL_CHECK_OUTPUT
from diffedu.worlds import digits

images = digits.load("train")[0].double()
print(tuple(images.shape), f"from {images.min():.0f} to {images.max():.0f}")

# %% [markdown]
# One step takes $x_{k-1}$, shrinks it a little and adds a little noise
# (1503.03585; 2006.11239, eq. 2):
#
# $$q(x_k \mid x_{k-1}) =
# \mathcal N\big(\sqrt{1-\beta_k}\,x_{k-1},\ \beta_k I\big).$$
#
# This is the **transition kernel**. $\beta_k$ is the *variance* of the noise
# that step $k$ adds. The process is a **Markov chain**: $x_k$ depends on
# $x_{k-1}$ and on nothing before it. DDPM takes $T = 1000$ steps, and lets
# $\beta_k$ rise evenly from $10^{-4}$ to $0.02$.
#
# To draw from $\mathcal N(m, \beta I)$, take $m$ and add $\sqrt\beta$ times
# standard normal noise $\varepsilon$. The kernel becomes one line:
#
# $$x_k = \sqrt{1-\beta_k}\;x_{k-1} + \sqrt{\beta_k}\;\varepsilon.$$

# %%
steps = 1000
betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)


def forward_step(x, k, eps):
    """One draw from q(x_k | x_{k-1})."""
    return (1 - betas[k]).sqrt() * x + betas[k].sqrt() * eps

# %% [markdown]
# The library has the same chain. It never takes single steps, but it knows
# them: between two neighbouring times, $q(x_k \mid x_{k-1})$ must keep the
# fraction $\sqrt{1-\beta_k}$ of the signal and add the variance $\beta_k$.
#
# A convention that holds in the whole course: index $k$ runs from 0 to $T-1$,
# and the state at $k = 0$ **has noise already**. The data stand before the
# chain. Papers that count $t = 1, \dots, T$ have $t = k + 1$.
#
# The symbol $x_0$ always means the clean data, never the state at $k = 0$. The
# first step starts from it, so $x_{k-1}$ at $k = 0$ is $x_0$, and
# $\bar\alpha_{-1} = 1$ for the share of variance that section 1.3 introduces.
# The last state, $k = T - 1$, is called $x_T$ as in the papers, and its
# $\bar\alpha$ is $\bar\alpha_T$.

# %%
chain = schedules.linear().chain(steps)
times = torch.arange(1, steps + 1, dtype=torch.float64) / steps  # of each k
before = times - 1 / steps

assert_close(betas, chain.betas)
kept = chain.schedule.alpha(times) / chain.schedule.alpha(before)
assert_close(kept, (1 - betas).sqrt())
assert_close(chain.schedule.transition_variance(times, before), betas)

# %% [markdown]
# Now walk some digits through all thousand steps, and stop to look at seven of
# them. Noise comes from a generator with a seed of its own, here and in the
# whole course, so that you see what we see.

# %%
from diffedu.tensors import normal_like  # standard normal noise, shaped like x


def seeded(number):
    return torch.Generator().manual_seed(number)


def walk(x, stops, generator):
    """Take the steps one after another; the states at some of them."""
    seen = {}
    for k in range(max(stops) + 1):
        x = forward_step(x, k, normal_like(x, generator))
        if k in stops:
            seen[k] = x
    return seen

# %%
stops = (9, 49, 99, 199, 299, 499, 999)
chosen = images[[0, 1, 3, 4]]
seen = walk(chosen, stops, seeded(0))
rows = torch.stack([chosen, *seen.values()], dim=1).flatten(0, 1)

# %%
fig, ax = plt.subplots(figsize=(7.2, 4.2))
style.images(ax, rows, columns=8)
fig.suptitle("By k = 299 the digits are hard to read, by k = 499 they are gone",
             x=0.01, ha="left")
for column, name in enumerate(["data", *(f"k = {k}" for k in stops)]):
    ax.text(9 * column + 3.5, -1.5, name, ha="center", fontsize=10)
style.show(fig, "Four handwritten digits in rows, from clean on the left through "
           "seven steps of the chain; in the last two columns only noise is seen.")

# %% [markdown]
# Look at the last two columns. At $k = 499$ the chain is half done, and
# nothing is left that a person could read. Was the second half worth walking?
# Section 1.4 asks that, and it is the reason why other schedules were
# invented. How much a *machine* could still read is a number too: you will
# compute it in exercise 4.
#
# ## 1.2 Why the square root of $1 - \beta$
#
# Adding noise needs only $+\sqrt{\beta_k}\,\varepsilon$. Why shrink the signal
# as well? Follow one number through a step, the variance. Noise is independent
# of $x_{k-1}$, so variances add, and a factor $c$ on a variable is a factor
# $c^2$ on its variance:
#
# $$\mathrm{Var}[x_k] = (1-\beta_k)\,\mathrm{Var}[x_{k-1}] + \beta_k.$$
#
# If the variance is 1, it stays 1. If it is not, subtract 1 on both sides:
# $\mathrm{Var}[x_k] - 1 = (1-\beta_k)\,(\mathrm{Var}[x_{k-1}] - 1)$. Each step
# takes the variance a little closer to 1, wherever it started.

# %%
def variance_along(start, shrink):
    """The variance before the chain and after each step."""
    out = [torch.tensor(start, dtype=torch.float64)]
    for beta in betas:
        out.append((1 - beta if shrink else 1) * out[-1] + beta)
    return torch.stack(out)

# %%
shrinking, plain = style.colour("linear"), style.colour("ve")

fig, ax = plt.subplots()
for start in (0.25, 1.0, 4.0):
    ax.plot(variance_along(start, shrink=True), color=shrinking)
    ax.plot(variance_along(start, shrink=False), color=plain)
ax.set(xlabel="steps taken", ylabel="variance of $x_k$", xlim=(0, steps),
       title="Shrinking brings every variance to 1; without it none stays")
ax.text(650, 1.6, "with $\\sqrt{1-\\beta_k}$", color=shrinking)
ax.text(430, 8, "without", color=plain)
style.show(fig, "Variance against steps taken for data of variance 0.25, 1 and 4. "
           "With shrinking all meet at 1; without it they rise side by side by ten.")

# %%
# NBVAL_CHECK_OUTPUT
for start in (0.25, 1.0, 4.0):
    shrunk = variance_along(start, shrink=True)[-1]
    grown = variance_along(start, shrink=False)[-1]
    print(f"variance {start:4}: {shrunk:.4f} with shrinking, {grown:.2f} without")

# %% [markdown]
# Two families of paths begin here. With shrinking the process is **variance
# preserving** (VP): data of variance 1 keep it at every step, so a network
# always sees inputs of the same size, and the end is $\mathcal N(0, I)$
# whatever the data were. Without shrinking it is **variance exploding** (VE):
# the signal stays as large as it was and the noise outgrows it.
#
# VE is not a mistake. It is a mistake only if the rest of the program believes
# in VP: a sampler would start from variance 1 where training ended at 11.
# Section 1.6 shows that both carry the same knowledge in different units.
#
# ## 1.3 One jump instead of $k$ steps
#
# Training will need $x_k$ for random $k$, millions of times. Walking there
# costs 500 steps on average. It can be had in one. Write
# $\bar\alpha_k = \prod_{i \le k} (1-\beta_i)$ for the product up to and with
# step $k$. Then
#
# $$q(x_k \mid x_0) =
# \mathcal N\big(\sqrt{\bar\alpha_k}\,x_0,\ (1-\bar\alpha_k) I\big)$$
#
# (2006.11239, eq. 4). This is proved by **induction**. It holds at $k = 0$,
# where it is the kernel of the first step, which starts from the data. Let it
# hold for $k - 1$, with some standard normal
# $\varepsilon$, and take one more step with fresh noise $\varepsilon'$:
#
# $$x_k = \sqrt{1-\beta_k}\,\big(\sqrt{\bar\alpha_{k-1}}\,x_0 +
# \sqrt{1-\bar\alpha_{k-1}}\,\varepsilon\big) + \sqrt{\beta_k}\,\varepsilon'.$$
#
# The factor of $x_0$ is
# $\sqrt{(1-\beta_k)\,\bar\alpha_{k-1}} = \sqrt{\bar\alpha_k}$. The two noises
# are independent Gaussians, and a sum of independent Gaussians is a Gaussian
# whose **variances** add:
#
# $$(1-\beta_k)(1-\bar\alpha_{k-1}) + \beta_k
# \;=\; 1 - (1-\beta_k)\,\bar\alpha_{k-1} \;=\; 1-\bar\alpha_k.$$
#
# So it holds for $k$ as well. The whole walk has become one line:
#
# $$x_k = \sqrt{\bar\alpha_k}\;x_0 + \sqrt{1-\bar\alpha_k}\;\varepsilon.$$

# %%
alpha_bar = (1 - betas).cumprod(0)


def jump(x0, k, eps):
    """One draw from q(x_k | x_0)."""
    return alpha_bar[k].sqrt() * x0 + (1 - alpha_bar[k]).sqrt() * eps

# %% [markdown]
# The library says the same in two ways: as a chain with an index $k$, and as a
# path with a time $t = (k+1)/T$. Both must equal our line to the last digits.
# (`chain.schedule` is a table through the chain's own points. The smooth limit
# `schedules.linear()` differs slightly: section 1.6.)

# %%
assert_close(alpha_bar, chain.alpha_bar)
eps = normal_like(images, seeded(1))
for k in (0, 299, 999):
    assert_close(jump(images, k, eps), chain.add_noise(images, k, eps))
    path = chain.schedule.add_noise(images, (k + 1) / steps, eps)
    assert_close(jump(images, k, eps), path)

# %% [markdown]
# An induction on paper can hide a wrong sign; a thousand real steps can not.
# We take 20,000 points of a two-dimensional toy, the swiss roll, moved off
# centre so that there is a mean to get wrong. We walk them through the chain,
# and subtract what the closed form says of the mean:
# $x_k - \sqrt{\bar\alpha_k}\,x_0$. What is left must have mean 0 and variance
# $1 - \bar\alpha_k$.
#
# "Must have" means within chance. The mean of $n$ draws with variance $V$
# misses by about $\sqrt{V/n}$, and the variance of $n$ Gaussian draws by about
# $V\sqrt{2/n}$: these are the **standard errors**. We divide each miss by its
# standard error, and ask that none of the twenty is above 5.

# %%
def misses(x, x0, alpha, sigma):
    """How far mean and variance are off, in standard errors: shape (2, D)."""
    left, n = x - alpha * x0, len(x)
    mean = left.mean(0) / (sigma / n**0.5)
    variance = (left.var(0) / sigma**2 - 1) / (2 / (n - 1)) ** 0.5
    return torch.stack([mean, variance]).abs()

# %%
from diffedu.worlds import toys

generator = seeded(0)
points = toys.swiss_roll(20_000, generator, torch.float64)
points = points + torch.tensor([1.5, 0.0])
five = (19, 99, 249, 499, 999)
walked = walk(points, five, generator)

# %%
right, rootless = [], []
for k in five:
    alpha, sigma = alpha_bar[k].sqrt(), (1 - alpha_bar[k]).sqrt()
    right.append(misses(walked[k], points, alpha, sigma).max())
    rootless.append(misses(walked[k], points, alpha**2, sigma).max())

# %% tags=["F01"]
fig, axes = plt.subplots(2, 5, figsize=(8.4, 3.7), sharex=True, sharey=True)
shades = (points[:600] - points.mean(0)).norm(dim=1)  # how far out it began
for (top, bottom), k in zip(axes.T, five, strict=True):
    jumped = jump(points, k, normal_like(points, generator))
    for ax, x in ((top, walked[k]), (bottom, jumped)):
        ax.scatter(*x[:600].T, s=3, c=shades, cmap="viridis", linewidths=0)
        ax.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[-2, 0, 2], yticks=[-2, 0, 2])
    top.set_title(f"k = {k}", fontsize=10)
    bottom.set_xlabel("first coord.")
axes[0, 0].set_ylabel("walked\nsecond coord.")
axes[1, 0].set_ylabel("one jump\nsecond coord.")
fig.suptitle("k steps or one jump: the clouds are the same", x=0.01, ha="left")
style.show(fig, "A swiss roll dissolving into a round cloud at five steps. The top "
           "row was walked, the bottom row jumped; the clouds look alike.")
claim("F01", "the walk has the mean and variance of the closed form within 5 "
      "standard errors at five times, and the last alpha_bar is below 1e-4",
      max(right) < 5 and alpha_bar[-1] < 1e-4, worst=max(right),
      last_alpha_bar=alpha_bar[-1], control_alpha_without_root=min(rootless[:4]))

# %% [markdown]
# The control in the last line is a wrong closed form, with $\bar\alpha_k$
# where $\sqrt{\bar\alpha_k}$ belongs. At the first four of the five times it
# misses by 8 standard errors or more, so the test can fail. (At $k = 999$
# hardly any signal is left, and no test could tell the two apart there.) On
# ten seeds the worst miss of the right form was 2.5 standard errors.
#
# The jump has the right *cloud* at each $k$. It does not have the right
# *path*: two jumps with fresh noise are strangers to each other, while two
# steps of a walk share almost all their noise. This matters as soon as two
# neighbouring states are compared, as chapter 2 does.

# %%
def noise_of(x, k):
    """The standard normal noise that x_k holds, beside sqrt(alpha_bar) x_0."""
    return (x - alpha_bar[k].sqrt() * points) / (1 - alpha_bar[k]).sqrt()


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()

# %%
pair = walk(points, (299, 300), seeded(2))
jumped = {k: jump(points, k, normal_like(points, generator)) for k in pair}
for name, x in (("walked", pair), ("jumped", jumped)):
    shared = correlation(noise_of(x[299], 299), noise_of(x[300], 300))
    print(f"{name}: correlation of the noise at k = 299, 300 is {shared:+.2f}")

# %% [markdown]
# ## 1.4 The schedule: how fast to destroy
#
# The list of betas is a design choice, called the **schedule**. DDPM's rises
# evenly, and is called *linear*. Nichol & Dhariwal (2102.09672, eq. 17) choose
# $\bar\alpha$ instead, as a squared cosine that falls gently at both ends, and
# compute the betas from it:
#
# $$\bar\alpha(u) = \frac{f(u)}{f(0)},\qquad
# f(u) = \cos^2\!\Big(\frac{u+0.008}{1.008} \cdot\frac\pi2\Big),\qquad
# \beta_k = 1 - \frac{\bar\alpha_k}{\bar\alpha_{k-1}} \le 0.999.$$
#
# with $u = (k+1)/T$, and $\bar\alpha_{-1} = \bar\alpha(0) = 1$.
# The offset 0.008 keeps the first betas from being vanishingly small; the
# bound 0.999 keeps the last one away from 1, where $f$ reaches 0 and nothing
# of the data would be left.

# %%
def cosine_betas(steps, offset=0.008):
    """The betas of the cosine chain, from alpha_bar at 0, 1/T, ..., 1."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    f = torch.cos((u + offset) / (1 + offset) * torch.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)

# %%
cosine_chain = schedules.cosine().chain(steps)
assert_close(cosine_betas(steps), cosine_chain.betas)

# %% [markdown]
# How much of the data is left is not $\bar\alpha$ alone, nor the noise alone,
# but their ratio: the **signal-to-noise ratio**, a ratio of powers, and its
# logarithm (2107.00630, eq. 2):
#
# $$\mathrm{snr}_k = \frac{\bar\alpha_k}{1-\bar\alpha_k},\qquad
# \log\mathrm{snr}_k = \log\bar\alpha_k - \log(1-\bar\alpha_k).$$
#
# At log-SNR 0 there is as much signal as noise; each 2.3 further is a factor
# of ten.

# %%
def log_snr(alpha_bar):
    """log(alpha_bar / (1 - alpha_bar)), falling along the chain."""
    return alpha_bar.log() - (1 - alpha_bar).log()

# %%
from diffedu.palette import BLUE, GREEN, GREY, VERMILION

for each in (chain, cosine_chain):
    assert_close(log_snr(each.alpha_bar), each.schedule.log_snr(times))

every = torch.arange(99, 1000, 100)
one_digit = images[4:5].expand(10, -1, -1, -1)
eps = normal_like(one_digit, seeded(3))
strips = [each.add_noise(one_digit, every, eps) for each in (chain, cosine_chain)]

# %% tags=["F02"]
fig = plt.figure(figsize=(8, 5.2))
cells = fig.add_gridspec(2, 2, height_ratios=(3, 2))
left, right = fig.add_subplot(cells[0, 0]), fig.add_subplot(cells[0, 1])
for name, each in (("linear", chain), ("cosine", cosine_chain)):
    left.plot(each.alpha_bar, color=style.colour(name))
    right.plot(log_snr(each.alpha_bar)[:-1], color=style.colour(name))
left.set(title="Cosine keeps the signal longer", ylabel=r"$\bar\alpha_k$")
right.set(title="Log-SNR -4 comes at k = 629\n(linear) and k = 913 (cosine)",
          ylabel="log-SNR")
for ax, low, high in ((left, (60, 0.3), (480, 0.6)), (right, (230, -5), (560, 1))):
    ax.text(*low, "linear", color=style.colour("linear"))
    ax.text(*high, "cosine", color=style.colour("cosine"))
    ax.set_xlabel("k")
left.axhline(0.02, color=GREY, lw=1, ls=":")
left.text(0, 0.04, "0.02", color=GREY, fontsize=9)
strip = fig.add_subplot(cells[1, :])
style.images(strip, torch.cat(strips), columns=10,
             title="One digit at k = 99, 199, … , 999: linear above, cosine below")
style.show(fig, "Left, alpha-bar against k: linear falls below 0.02 near step 620, "
           "cosine near 908. Right, log-SNR. Below, one digit at ten steps of each "
           "chain: under the linear one it is lost about two images earlier.")

# %%
def wasted(chain):
    """The share of a chain's steps with alpha_bar below 0.02."""
    return (chain.alpha_bar < 0.02).double().mean().item()

# %% tags=["F02"]
control = wasted(schedules.sigmoid().chain(steps)) / wasted(cosine_chain)
claim("F02", "the linear chain spends over three times as many steps near noise",
      wasted(chain) > 3 * wasted(cosine_chain), linear=wasted(chain),
      cosine=wasted(cosine_chain), ratio=wasted(chain) / wasted(cosine_chain),
      control_sigmoid_over_cosine=control)

# %% [markdown]
# Below $\bar\alpha = 0.02$ less than 2 % of the variance is signal (for data
# of variance 1). The linear chain spends 38 % of its steps there, the cosine
# chain 9 %. A network that learns on evenly drawn steps spends the same share
# of its effort there, and a sampler that visits every step wastes them too.
# Chapter 2 tries what happens if those steps are left out. The control is a
# third schedule, the sigmoid, for which the statement is false: it spends
# fewer such steps than the cosine.
#
# ## 1.5 Where the chain ends
#
# Sampling will start from $\mathcal N(0, I)$, without data. That is right only
# if the chain has really arrived there. How far $q(x_T)$ is from it is
# measured by the **Kullback-Leibler divergence** (KL), in nats: 0 for equal
# distributions, and larger the more they differ. If the data are Gaussian
# with mean $m$ and variance $V$, then $x_k$ is Gaussian too, with mean
# $\sqrt{\bar\alpha_k}\,m$ and variance $\bar\alpha_k V + 1 - \bar\alpha_k$,
# and torch knows the KL of two Gaussians.

# %%
from torch.distributions import Normal, kl_divergence


def to_noise(mean, variance, alpha_bar):
    """KL(q(x_k) || N(0, 1)) in nats, for Gaussian data in one dimension."""
    spread = alpha_bar * variance + 1 - alpha_bar
    return kl_divergence(Normal(alpha_bar.sqrt() * mean, spread.sqrt()),
                         Normal(0.0 * spread, torch.ones_like(spread)))

# %%
# NBVAL_CHECK_OUTPUT
print("data              k = 249    k = 499    k = 749    k = 999")
for mean, variance in ((0.0, 4.0), (0.0, 0.25), (2.0, 1.0)):
    row = to_noise(mean, variance, alpha_bar[249::250])
    print(f"mean {mean:.0f}, var {variance:<5}", *(f"{kl:10.1e}" for kl in row))

# %% [markdown]
# $\mathcal N(0, 1)$ is where the chain is at rest: once there, a step does not
# change it. That is called the **stationary** distribution, and every row goes
# there. Rows one and two, where only the variance is wrong, fall as
# $\bar\alpha^2$; row three, where the mean is wrong, as $\bar\alpha$: for small
# $\bar\alpha$, $\mathrm{KL} \approx \bar\alpha^2 (V-1)^2/4 + \bar\alpha m^2/2$.
# Means are forgotten last. Keep this in mind for a page.
#
# Digits are not Gaussian, and their $q(x_k)$ is a mixture of 1,297 of them. A
# bound still holds: the KL of a mixture is at most the average KL of its
# parts (KL is convex). For each digit $q(x_T \mid x_0)$ is Gaussian, so the
# bound is a formula. With $D$ values an image,
#
# $$\mathrm{KL}\big(q(x_T\mid x_0)\,\|\,\mathcal N(0, I)\big) =
# \tfrac12\big(\bar\alpha_T\|x_0\|^2 - D\bar\alpha_T -
# D\log(1-\bar\alpha_T)\big),$$
#
# averaged over the $x_0$. It is also one of the terms of the loss in chapter 2.

# %%
# NBVAL_CHECK_OUTPUT
def prior_term(x0, alpha_bar):
    """Mean over the data of KL(q(x_k | x_0) || N(0, I)), in nats an image."""
    power = x0.flatten(1).square().sum(1).mean()
    dims = x0[0].numel()
    return 0.5 * (alpha_bar * (power - dims) - dims * torch.log1p(-alpha_bar))


for name, each in (("linear", chain), ("cosine", cosine_chain)):
    print(f"{name}: at most {prior_term(images, each.alpha_bar[-1]):.1e} nats")

# %% [markdown]
# About a thousandth of a nat: nobody could tell such an image from noise. The
# ratio $\bar\alpha/(1-\bar\alpha)$ at the last step has a name, the **terminal
# SNR**, and it is worth a look in every program that you meet. A small one is
# not always small enough.
#
# Say that each image is black or white as a whole, $\pm b$ in all $D$ values.
# Average the values of $x_T$: the signal stays, and the noise shrinks by
# $\sqrt D$. The sign of the average is right with probability
# $\Phi\big(b\sqrt{D\,\mathrm{snr}_T}\big)$, where $\Phi$ is the normal
# distribution function. This is Lin et al.'s finding (2305.08891): large
# images leak their brightness.
#
# The second chain below has betas whose *square roots* rise evenly from
# $\sqrt{0.00085}$ to $\sqrt{0.012}$, as widely used latent diffusion models do
# (2305.08891 takes one of them as its case).

# %%
# NBVAL_CHECK_OUTPUT
roots = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64)
kept = (1 - roots**2).prod()
sizes = torch.tensor([64, 3 * 32**2, 3 * 256**2], dtype=torch.float64)
print("terminal SNR     ", *(f"D = {d:<8.0f}" for d in sizes))
for name, snr in (("DDPM  ", chain.terminal_snr), ("latent", kept / (1 - kept))):
    right = torch.special.ndtr((sizes * snr).sqrt())
    print(f"{name} {snr:.1e}  ", *(f"{p:.3f}       " for p in right))

# %% [markdown]
# With 64 values DDPM's chain hides the sign: 0.52 is close to a coin. With
# 196,608 it gives it away almost always, and the second chain gives it away at
# every size above the smallest. A model trained on such ends learns to read
# the brightness off what it takes for noise. When it is then started from real
# noise, whose mean is close to 0, it reads "medium grey", and paints that. The
# cure is to rescale the chain so that its last $\bar\alpha$ is exactly 0
# (2305.08891, algorithm 1): **zero-terminal SNR**. You will write it in
# exercise 6; the library has it.

# %%
# NBVAL_CHECK_OUTPUT
fixed = chain.with_zero_terminal_snr()
print(f"sqrt(alpha_bar): first {fixed.alpha_bar[0].sqrt():.5f}, as before "
      f"{alpha_bar[0].sqrt():.5f}; last {fixed.alpha_bar[-1].sqrt():.1f}, "
      f"before {alpha_bar[-1].sqrt():.4f}")

# %% [markdown]
# ## 1.6 From a chain to a path
#
# In the jump, only two numbers matter: what is left of the data and how much
# noise there is. Call them $\alpha_t$ and $\sigma_t$, let $t$ run through all
# of $[0, 1]$, and forget the steps:
#
# $$x_t = \alpha_t\,x_0 + \sigma_t\,\varepsilon.$$
#
# On a variance-preserving chain $\alpha = \sqrt{\bar\alpha}$ and
# $\sigma = \sqrt{1 - \bar\alpha}$. To find the path that a chain of ever more
# steps becomes, each step must do ever less: $\beta_k = \beta(t)/T$ for a
# fixed function $\beta(t)$. Then
# $\log\bar\alpha = \sum\log(1-\beta_k) \to -\int_0^t\beta$. DDPM's chain has
# $\beta(t) = 0.1 + 19.9\,t$, so $\bar\alpha(1) \to e^{-10.05}$.
#
# The main survey (2407.00783, section 2.1) says that $\beta(t) = \beta_t$ in
# the limit, without the factor $T$. The table shows both.

# %%
# NBVAL_CHECK_OUTPUT
print("     T   betas / T   betas kept")
for T in (100, 1000, 10_000, 100_000):
    beta = torch.linspace(0.1, 20, T, dtype=torch.float64)
    scaled = torch.log1p(-beta / T).sum().exp()
    as_printed = torch.log1p(-beta / 1000).sum().exp()
    print(f"{T:6d}  {scaled:10.4e}  {as_printed:10.3e}")
print(f" limit  {torch.exp(torch.tensor(-10.05)).item():10.4e}")

# %% [markdown]
# With the factor the end converges, to $4.32 \cdot 10^{-5}$; with a thousand
# steps it is $4.04 \cdot 10^{-5}$, so **a chain is close to its path, and not
# the same**. Without the factor (third column) there is no limit: few steps
# leave signal, many steps leave none, and the same betas mean another schedule
# for every $T$. Remember that when a program lowers $T$ and keeps its betas.
#
# Since a path is two functions, all schedules in use fit in one table.
# Variance-preserving ones are given by $\bar\alpha(t)$ alone.

# %%
def preserving(alpha_bar):
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def sigmoid_alpha_bar(t, z=3.0):
    fall = torch.sigmoid(-(2 * z * t - z))
    low, high = torch.sigmoid(torch.tensor([-z, z], dtype=torch.float64))
    return (fall - low) / (high - low)


def cosine_alpha_bar(t):
    def f(u):
        return torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2

    return f(t) / f(torch.zeros_like(t))

# %%
paths = {
    "linear": lambda t: preserving(torch.exp(-(0.1 * t + 9.95 * t**2))),
    "cosine": lambda t: preserving(cosine_alpha_bar(t)),
    "sigmoid": lambda t: preserving(sigmoid_alpha_bar(t)),
    "log_linear": lambda t: preserving(torch.sigmoid(12 - 24 * t)),
    "ve": lambda t: (torch.ones_like(t), 0.01 * 5000**t),
    "edm": lambda t: (torch.ones_like(t), 80 * t),
    "flow": lambda t: (1 - t, t),
}
t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
for name, path in paths.items():
    assert_close(path(t), schedules.by_name(name).coefficients(t))

# %% [markdown]
# | path | idea | source |
# |---|---|---|
# | linear | betas rise evenly | 2006.11239; as an SDE 2011.13456 |
# | cosine | gentle at both ends | 2102.09672, eq. 17 |
# | sigmoid | a piece of a sigmoid, with a temperature | 2301.10972, algorithm 1 |
# | log-linear | log-SNR falls in a straight line | 2107.00630 |
# | VE | signal stays, noise grows geometrically | 2011.13456 |
# | EDM | signal stays, noise grows evenly | 2206.00364, table 1 |
# | flow | a straight line from data to noise | 2210.02747; 2209.03003 |
#
# Draw $\alpha$ across and $\sigma$ upwards: each schedule is a curve that
# starts at $(1, 0)$, where the data are. VP paths lie on the unit circle, the
# flow on a chord, and VE and EDM go straight up. The direction from the origin
# has the slope $\sigma/\alpha$, so **each ray is one log-SNR**.

# %%
def draw_rays(ax):
    """Rays from the origin, each the place of one log-SNR."""
    for level in (4, 2, 0, -2):
        ratio = torch.tensor(-level / 2.0).exp().item()  # sigma / alpha
        scale = min(1.25, 1.35 / ratio)
        ax.plot([0, scale], [0, scale * ratio], color=GREY, lw=0.8, ls=":")
        name = f" log-SNR {level}"
        ax.text(scale, scale * ratio, name, color=GREY, fontsize=9)

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.9))
t = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
draw_rays(left)
for name, spot, words in (("linear", (0.03, 1.06), "all VP paths"),
                          ("flow", (0.12, 0.6), "flow"),
                          ("edm", (1.03, 0.75), "VE, EDM")):
    alpha, sigma = paths[name](t)
    left.plot(alpha[sigma < 1.4], sigma[sigma < 1.4], color=style.colour(name))
    left.text(*spot, words, color=style.colour(name))
left.set(xlim=(0, 1.6), ylim=(0, 1.45), aspect="equal", title="A ray is a noise level",
         xlabel=r"$\alpha_t$, signal", ylabel=r"$\sigma_t$, noise")
for name, path in paths.items():
    alpha, sigma = path(t)
    right.plot(t, 2 * (alpha / sigma).log(), color=style.colour(name), label=name)
right.set(xlabel="t", ylabel="log-SNR", xlim=(0, 1), ylim=(-14, 14),
          title="Paths share out time differently\namong noise levels")
style.label_lines(right)
style.show(fig, "Left, paths in the plane of alpha and sigma: a quarter circle for VP, "
           "a chord for flow, a vertical line for VE and EDM, crossed by rays of equal "
           "log-SNR. Right, log-SNR against t for seven paths, all falling.")

# %% [markdown]
# If two paths cross the same ray, then one $x$ is the other, multiplied by a
# number that we know. Whatever can be said of $x_0$ from the one can be said
# from the other. So a schedule decides two things only: how the time is
# *shared out* among noise levels, and in which *units* the network sees them.
# It does not decide what can be known.
#
# Here is the crossing of the EDM path with the log-SNR that the cosine path
# has at $t = 0.5$. The cell after it tests what all schedules have in common:
# the log-SNR falls from data to noise, and never turns back. Programs whose
# time runs the other way fail there.

# %%
cosine, edm = schedules.cosine(), schedules.edm()
t_edm = edm.time_of_log_snr(cosine.log_snr(0.5))
eps = normal_like(points, seeded(4))
on_cosine = cosine.add_noise(points, 0.5, eps)
on_edm = edm.add_noise(points, t_edm, eps)
assert_close(on_cosine, cosine.alpha(0.5) * on_edm)

# %%
falls = {name: path(t)[0].log().sub(path(t)[1].log()).diff().max().item()
         for name, path in paths.items()}
claim("ch01", "log-SNR falls strictly in t on all seven paths",
      max(falls.values()) < 0, slowest_step=max(falls.values()),
      control_reversed=-falls["flow"])

# %% [markdown]
# ## 1.7 What was there?
#
# Turn around. You are shown $x_t$, and asked for $x_0$. There is no single
# answer: many $x_0$ may stand behind one $x_t$, some more likely than others.
# All there is to know is the **posterior**, and Bayes' rule gives it:
#
# $$q(x_0 \mid x_t) \propto q(x_0)\;\mathcal N(x_t;\ \alpha x_0,\ \sigma^2 I).$$
#
# For real images nobody knows $q(x_0)$. So take data whose density we do know,
# a mixture of Gaussians: component $i$ has weight $\pi_i$, mean $\mu_i$ and
# standard deviation $\tau_i$. This is the **oracle** of the course: everything
# about it has a closed form, and every method is tried on it before it meets
# real data.

# %%
pi = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
mu = torch.tensor([[-1.0], [0.2], [1.0]], dtype=torch.float64)
tau = torch.tensor([0.1, 0.15, 0.3], dtype=torch.float64)
mixture = GaussianMixture(pi, mu, tau)

# %% [markdown]
# If component $i$ made $x_0$, then $x_t$ is Gaussian with mean $\alpha\mu_i$
# and variance $\alpha^2\tau_i^2 + \sigma^2$. That says how well each component
# explains $x_t$, and within one component the posterior of $x_0$ is again
# Gaussian. Three lines are the textbook rule for a Gaussian seen through
# Gaussian noise:
#
# $$\text{weight}_i \propto
# \pi_i\,\mathcal N(x_t;\ \alpha\mu_i,\ \alpha^2\tau_i^2 + \sigma^2),\qquad
# \text{mean}_i = \mu_i + \frac{\alpha\tau_i^2}{\alpha^2\tau_i^2 +
# \sigma^2}(x_t - \alpha\mu_i),$$
#
# $$\text{variance}_i = \frac{\tau_i^2\,\sigma^2}{\alpha^2\tau_i^2+\sigma^2}.$$
#
# The fraction in the middle is the **gain**: how far to trust the observation.
# It is $1/\alpha$ where there is no noise, and 0 where there is nothing else.

# %%
def posterior(x, alpha, sigma):
    """Weights (N, K), means (N, K), variances (K,) of q(x_0 | x_t), x (N, 1)."""
    spread = alpha**2 * tau**2 + sigma**2
    away = x - alpha * mu[:, 0]
    logits = pi.log() - 0.5 * spread.log() - 0.5 * away**2 / spread
    means = mu[:, 0] + alpha * tau**2 / spread * away
    return logits.softmax(1), means, tau**2 * sigma**2 / spread

# %% [markdown]
# The library answers the same question in two ways.
# `mixture.posterior(A, y, noise_std)` is the mixture left over after a
# measurement $y = A x_0 + \text{noise}$; adding noise is a measurement with
# $A = \alpha$. And `mixture.denoiser(schedule)` gives the mean of that
# posterior, as any denoiser in this course does. Compare with both.

# %%
alpha, sigma = cosine.coefficients(0.4)
x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
weights, means, variances = posterior(x, alpha, sigma)
posterior_mean = (weights * means).sum(1, keepdim=True)
assert_close(posterior_mean, mixture.denoiser(cosine)(x, 0.4).x0)

# %%
one = mixture.posterior(alpha.reshape(1, 1), x[5], sigma.item())
assert_close(weights[5], one.weights)
assert_close(means[5], one.means[:, 0])
assert_close(variances, one.covariances[:, 0, 0])

# %%
def draw_posterior(ax, level, seen=0.6):
    """Data and posterior at a log-SNR, where x_t / alpha is `seen`."""
    alpha, sigma = cosine.coefficients(cosine.time_of_log_snr(level))
    left = mixture.posterior(alpha.reshape(1, 1), seen * alpha[None], sigma.item())
    where = torch.linspace(-1.8, 2, 400, dtype=torch.float64)[:, None]
    ax.fill_between(where[:, 0], mixture.log_prob(where).exp(), color="#d9d9d9")
    ax.plot(where, left.log_prob(where).exp(), color=BLUE)
    ax.axvline(left.weights @ left.means[:, 0], color=style.colour("truth"), ls="--")
    ax.plot(seen, 0, "^", color=GREEN, clip_on=False, ms=9)
    ax.set(title=f"log-SNR {level:.0f}", xlabel="$x_0$", ylim=(0, 4.6))

# %%
fig, axes = plt.subplots(1, 4, figsize=(8.6, 2.9), sharey=True)
for ax, level in zip(axes, (-4.0, 0.0, 2.0, 5.0), strict=True):
    draw_posterior(ax, level)
axes[0].set_ylabel("density")
names = "mean", "posterior", "data", "$x_t/\\alpha$"
for row, shade in enumerate(("black", BLUE, GREY, GREEN)):
    axes[3].text(-1.7, 4.2 - 0.4 * row, names[row], color=shade)
fig.suptitle("As noise falls, the posterior leaves the data's shape and closes in",
             x=0.01, ha="left")
style.show(fig, "Four panels from much noise to little. The posterior begins equal to "
           "the data's three-peaked density and ends as one narrow peak; its mean, a "
           "dashed line, lies between the peaks at first.")

# %% [markdown]
# Read the panels from left to right. Under much noise the observation says
# nothing and the posterior *is* the data's density. With less noise it drops
# the components that don't fit, and in the end it is one narrow peak. Samplers
# decide in this order, too: first which group, then which member of it.
#
# The dashed line is the posterior's mean. In the first panel it lies
# between two peaks, where there are hardly any data. It need **not be a
# likely** $x_0$; it is an average of likely ones. On images an average of
# sharp pictures is a blurred one.
#
# ## 1.8 The best denoiser is the posterior mean
#
# Why care about the mean then? Because it is what least squares finds. Let
# $m(x) = \mathrm E[x_0 \mid x_t = x]$, and let $f$ be any other function of
# $x_t$. Then
#
# $$\mathrm E\|f - x_0\|^2 = \mathrm E\|f - m\|^2 +
# 2\,\mathrm E\langle f - m,\ m - x_0\rangle + \mathrm E\|m - x_0\|^2.$$
#
# In the middle, hold $x_t$ fixed: $f$ and $m$ are then constants, and the mean
# of $m - x_0$ over the posterior is 0 by the definition of $m$. The middle
# term vanishes, so
#
# $$\mathrm E\|f - x_0\|^2 =
# \mathrm E\|f - m\|^2 + \mathrm E\|m - x_0\|^2 \ \ge\ \mathrm E\|m - x_0\|^2.$$
#
# No function of $x_t$ is better than $m$, and what another one loses is its
# squared distance to $m$. See it in numbers, on 100,000 pairs $(x_0, x_t)$,
# against three rivals: undo the scaling ($x_t/\alpha$), name the mean of the
# likeliest component, and the best straight line (the rule of section 1.7 with
# one component, which has the mean and the variance of all data).

# %%
def rivals(x, alpha, sigma):
    """Other functions of x_t (N, 1) that a person might try."""
    weights, _, _ = posterior(x, alpha, sigma)
    centre = (pi[:, None] * mu).sum()
    variance = (pi * (tau**2 + mu[:, 0] ** 2)).sum() - centre**2
    slope = alpha * variance / (alpha**2 * variance + sigma**2)
    return {
        "x / alpha": x / alpha,
        "likeliest component": mu[weights.argmax(1)],
        "straight line": centre + slope * (x - alpha * centre),
    }


def in_errors(values):
    """The mean of values (N, 1), in standard errors."""
    return (values.mean() / (values.std() / len(values) ** 0.5)).item()

# %%
def pairs(level, generator):
    """100,000 clean values, their noisy ones, the posterior means, and rivals."""
    t = cosine.time_of_log_snr(level)
    x0 = mixture.sample(100_000, generator)
    x = cosine.add_noise(x0, t, normal_like(x0, generator))
    m = mixture.denoiser(cosine)(x, t).x0
    return x0, x, m, rivals(x, *cosine.coefficients(t))

# %%
excess, middle = [], []
for level in (4.0, 2.0, 0.0):
    x0, x, m, others = pairs(level, seeded(0))
    print(f"log-SNR {level:.0f}:", end=" ")
    for name, f in {"posterior mean": m, **others}.items():
        print(f"{name} {(f - x0).square().mean():.3f}", end="  ")
    print()
    for f in others.values():
        excess.append(in_errors((f - x0).square() - (m - x0).square()))
        middle.append(abs(in_errors((f - m) * (m - x0))))

# %% [markdown]
# A claim on random numbers has to survive another draw. With ten seeds in
# place of one, the smallest excess was 32 standard errors, and the largest
# middle term 2.3. As a control, let the straight line play the part of $m$:
# then the middle term is far from 0, since a line is no posterior mean.

# %%
line = others["straight line"]
claim("ch01", "no rival has a smaller squared error than the posterior mean, and "
      "the middle term is zero, within 5 standard errors",
      min(excess) > 5 and max(middle) < 5, smallest_excess=min(excess),
      largest_middle_term=max(middle),
      control_line_for_m=abs(in_errors((m - line) * (line - x0))))

# %% [markdown]
# The proof says more. Anything that minimises the squared error *finds* $m$,
# without being told any density. The plainest learner is an average: cut the
# axis of $x_t$ into 40 bins, and in each take the mean of the $x_0$ that fell
# there. A neural network trained with squared error does the same with softer
# bins.

# %%
bins = ((x[:, 0] + 2.5) / 5 * 40).long().clamp(0, 39)
counts = torch.bincount(bins, minlength=40)
full = counts > 200


def average(value):
    """The mean of a value (N, 1) in each bin that holds enough pairs."""
    return (torch.bincount(bins, value[:, 0], 40) / counts)[full]

# %%
error = (average((x0 - m) ** 2) / counts[full]).sqrt()
worst = ((average(x0) - average(m)) / error).abs().max()
print(f"{full.sum()} bins hold over 200 pairs; the worst misses by {worst:.1f} "
      "standard errors")

# %%
fig, ax = plt.subplots(figsize=(6.8, 4))
order = x[:, 0].argsort()[:: len(x) // 300]
ax.plot(x[:2500], x0[:2500], ".", color="#c8c8c8", ms=2)
for name, f in others.items():
    dashed = "--" if name == "straight line" else "-"
    ax.plot(x[order], f[order], dashed, lw=1.2, color=GREY)
ax.plot(x[order], m[order], color=style.colour("truth"), lw=2.5)
ax.plot(average(x), average(x0), "o", color=VERMILION, ms=5)
for spot, name, shade in (((0.75, 1.7), "$x_t/\\alpha$", GREY),
                          ((-2.15, -1.65), "straight line", GREY),
                          ((0.95, 1.15), "likeliest component", GREY),
                          ((-2.1, -0.75), "posterior mean", "black"),
                          ((-2.1, -0.45), "averages in bins", VERMILION)):
    ax.text(*spot, name, color=shade, bbox={"fc": "white", "ec": "none", "pad": 1})
ax.set(xlim=(-2.2, 2.2), ylim=(-2, 2), xlabel="$x_t$, at log-SNR 0", ylabel="$x_0$",
       title="Averaging pairs finds the posterior mean, without any density")
style.show(fig, "Pairs of noisy and clean values as grey dots in three bands. A black "
           "S-shaped curve, the posterior mean, runs through orange dots, the averages "
           "in bins; a diagonal, a flatter line and a staircase miss them.")

# %% [markdown]
# The black curve is the best that any network can do, of any size. If yours
# reaches it, more training can not help; a training error below the curve's
# own error is overfitting to the pairs at hand.
#
# ## 1.9 Tweedie's formula: the score is the same knowledge
#
# The posterior mean needs a posterior, and a posterior needs $q(x_0)$. There
# is a way around. Write the density of noisy data,
# $q(x_t) = \int q(x_0)\,\mathcal N(x_t;\ \alpha x_0,\ \sigma^2 I)\,dx_0$, and
# take its gradient in $x_t$. The Gaussian gives a factor
# $(\alpha x_0 - x_t)/\sigma^2$; then divide by $q(x_t)$:
#
# $$\nabla\log q(x_t) = \frac{\nabla q(x_t)}{q(x_t)} = \int
# \bigg[\frac{q(x_0)\,\mathcal N(x_t;\ \alpha x_0,\ \sigma^2 I)}{q(x_t)}\bigg]
# \,\frac{\alpha x_0 - x_t}{\sigma^2}\;dx_0.$$
#
# The bracket is the posterior, so the integral is a mean over it:
#
# $$\nabla\log q(x_t) = \frac{\alpha\,\mathrm E[x_0\mid x_t] - x_t}{\sigma^2}
# \quad\Longleftrightarrow\quad
# \mathrm E[x_0\mid x_t] = \frac{x_t + \sigma^2\,\nabla\log q(x_t)}{\alpha}.$$
#
# This is **Tweedie's formula** (Efron 2011; with $\alpha = 1$ in 2206.00364,
# eq. 3). The gradient is called the **score**. On the right there is no $x_0$
# and no posterior: if you know how the density of *noisy* points slopes, you
# know the best guess at the clean one. Test it with a score that autograd
# takes from the density, and nothing else.
#
# The data are eight small Gaussians on a circle. Noise turns each into a
# Gaussian of mean $\alpha\mu_i$ and variance $\alpha^2\tau_i^2 + \sigma^2$, and
# `ring.at(cosine, t)` is that mixture: $q(x_t)$.

# %%
ring = GaussianMixture(*toys.eight_gaussians_parameters())


def tweedie(x, t):
    """E[x_0 | x_t] from the slope of log q(x_t) alone."""
    alpha, sigma = cosine.coefficients(t)
    x = x.detach().requires_grad_()
    log_density = ring.at(cosine, t).log_prob(x).sum()
    score = torch.autograd.grad(log_density, x)[0]
    return ((x + sigma**2 * score) / alpha).detach()

# %%
x0 = ring.sample(1000, seeded(5))
eps = normal_like(x0, seeded(6))
for t in (0.05, 0.3, 0.6, 0.9):
    x = cosine.add_noise(x0, t, eps)
    assert_close(tweedie(x, t), ring.denoiser(cosine)(x, t).x0)

# %%
side = torch.linspace(-1.6, 1.6, 9, dtype=torch.float64)
x = torch.cartesian_prod(side, side)
fig, axes = plt.subplots(1, 3, figsize=(8.4, 3.1), sharex=True, sharey=True)
for ax, level in zip(axes, (-1.0, 1.0, 3.0), strict=True):
    alpha, _ = cosine.coefficients(cosine.time_of_log_snr(level))
    answer = tweedie(alpha * x, cosine.time_of_log_snr(level))
    ways = torch.stack([x, answer]).permute(2, 0, 1)
    ax.plot(*ways, color=style.colour("score"), lw=1)
    ax.plot(*answer.T, ".", color=style.colour("truth"), ms=5)
    ax.set(title=f"log-SNR {level:.0f}", xlabel="first coordinate")
    ax.set_aspect("equal")
axes[0].set_ylabel("second coordinate")
fig.suptitle("The score leads from $x_t/\\alpha$ to the best guess (dots): "
             "the middle, a ring, the spots", x=0.01, ha="left")
style.show(fig, "Lines from a grid of points to their posterior means for eight spots "
           "on a circle. Under much noise all end near the centre, with less on a "
           "ring, with little noise in the eight spots.")

# %% [markdown]
# All that can be said of $x_t$ has now been said in several languages, and
# they translate without loss, because $x_t = \alpha x_0 + \sigma\varepsilon$
# is known. With hats for means given $x_t$:
#
# $$\hat\varepsilon = \frac{x_t - \alpha\hat x_0}{\sigma},\qquad
# \text{score} = -\frac{\hat\varepsilon}{\sigma},\qquad
# \hat v = \alpha\hat\varepsilon - \sigma\hat x_0.$$
#
# The last one, $v$, is from progressive distillation (2202.00512) and will be
# useful soon. The library keeps them in one object, a `Prediction`: give it
# any one reading, and ask for any other.

# %%
t = torch.tensor(0.6, dtype=torch.float64)
alpha, sigma = cosine.coefficients(t)
x = cosine.add_noise(x0, t, eps)
x0_hat = tweedie(x, t)
eps_hat = (x - alpha * x0_hat) / sigma
v_hat = alpha * eps_hat - sigma * x0_hat

# %%
from diffedu import Prediction

for kind, value in (("x0", x0_hat), ("eps", eps_hat), ("v", v_hat)):
    out = Prediction(x, t, cosine, kind, value)
    assert_close((out.x0, out.eps, out.v), (x0_hat, eps_hat, v_hat))
    assert_close(out.score, -eps_hat / sigma)

# %% [markdown]
# Exact knowledge translates without loss. A network's output is never exact,
# and then the language matters: its error is multiplied on the way. Give each
# reading an error of 0.01 and see what becomes of it in the other two.

# %%
# NBVAL_CHECK_OUTPUT
print("log-SNR  error 0.01 in   error in x0  error in eps")
for level in (8.0, 0.0, -8.0):
    t = cosine.time_of_log_snr(level)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    for kind in ("x0", "eps", "v"):
        out = Prediction(zero, t, cosine, kind, zero + 0.01)
        print(f"{level:7.0f}  {kind:14}  {out.x0.abs().item():11.4f}  "
              f"{out.eps.abs().item():12.4f}")

# %% [markdown]
# Near the data (log-SNR 8), predicting $x_0$ ruins $\varepsilon$; near the
# noise (-8), predicting $\varepsilon$ ruins $x_0$, by a factor of 55 each
# ($e^4$, which is $\alpha/\sigma$ at the one and $\sigma/\alpha$ at the other).
# On VP paths $\hat x_0 = \alpha x_t - \sigma\hat v$ and
# $\hat\varepsilon = \sigma x_t + \alpha\hat v$; both factors of $\hat v$ are at
# most 1, so predicting $v$ never enlarges an error there. Which one to *train*
# on is chapter 2's subject.
#
# ## 1.10 The best denoiser of a finite data set
#
# A training set is a finite list of images. As a distribution it is a mixture
# like the one above, with $\tau_i = 0$ and all weights equal. So the best
# denoiser *on the training set* is known in closed form (2206.00364, eq. 57):
# compare $x_t$ with each noise-free image $\alpha x_i$, turn squared distances
# into weights, and average.
#
# $$\hat x_0 = \sum_i w_i\,x_i,\qquad w = \mathrm{softmax}_i\Big(-\frac{\|x_t -
# \alpha x_i\|^2}{2\sigma^2}\Big).$$

# %%
data = images.flatten(1)


def empirical_weights(x, alpha, sigma):
    """How likely each training image stands behind x_t (B, D): shape (B, N)."""
    distance = (x[:, None] - alpha * data).square().sum(-1)
    return (-distance / (2 * sigma**2)).softmax(1)

# %%
unseen = digits.load("test")[0].double()
best = EmpiricalDenoiser(images, cosine)
eps = normal_like(unseen, seeded(0))
for t in (0.1, 0.5, 0.9):
    x = cosine.add_noise(unseen[:8], t, eps[:8])
    ours = empirical_weights(x.flatten(1), *cosine.coefficients(t)) @ data
    assert_close(ours.reshape(x.shape), best(x, t).x0)

# %% [markdown]
# Now show it digits that it has **never seen**: the 500 of the test set. For
# comparison take a denoiser that knows far less, only the mean and the
# covariance of the training digits, as if they were one big Gaussian in 64
# dimensions. Its answer is the best straight line of section 1.8.
#
# Both are asked at twelve noise levels, about 500 training digits and about
# the test digits, for the mean squared error a pixel.

# %%
centre, covariance = data.mean(0, keepdim=True), torch.cov(data.T)
whole = GaussianMixture(torch.ones(1), centre, covariances=covariance[None])
empirical, gaussian = EmpiricalDenoiser(data, cosine), whole.denoiser(cosine)
new = unseen.flatten(1)


def squared_error(denoise, x0, level):
    """Mean squared error a pixel on the digits x0 (N, 64) at a log-SNR."""
    t = cosine.time_of_log_snr(level)
    x = cosine.add_noise(x0, t, normal_like(x0, seeded(0)))
    return (denoise(x, t).x0 - x0).square().mean().item()

# %%
levels = torch.linspace(8, -6, 12, dtype=torch.float64)
curves = {
    (denoise, own): [squared_error(denoise, x0, level) for level in levels]
    for denoise in (empirical, gaussian)
    for own, x0 in ((True, data[:500]), (False, new))
}

# %%
shown = (6.0, 4.0, 2.0, 0.0, -1.0, -2.0, -4.0)
ts = [cosine.time_of_log_snr(level) for level in shown]
strips = []
for digit, seed in ((unseen[:1], 1), (unseen[3:4], 2)):
    eps = normal_like(digit, seeded(seed))
    noisy = [cosine.add_noise(digit, t, eps) for t in ts]
    answers = [best(x, t).x0 for x, t in zip(noisy, ts, strict=True)]
    strips += [digit, *noisy, torch.ones_like(digit), *answers]

# %%
def draw_answers(ax):
    """Two digits, noisy above and answered below; a column is a noise level."""
    style.images(ax, torch.cat(strips), columns=8)
    for column, name in enumerate(["unseen digit", *map(int, shown), "log-SNR"]):
        ax.text(9 * column + 3.5, -1.2, name, ha="center", fontsize=10)
    for row in (13, 31):
        ax.text(7.5, row, "answers", ha="right", fontsize=10)


def draw_curves(ax):
    for (denoise, own), values in curves.items():
        shade = style.colour("empirical") if denoise is empirical else GREEN
        ax.plot(levels, values, color=shade, ls="--" if own else "-")
    ax.text(7.8, 0.085, "empirical, new digits", color=style.colour("empirical"))
    ax.text(0.5, 0.012, "its own digits (dashed)", color=style.colour("empirical"))
    ax.text(0.9, 0.13, "Gaussian, new and own digits", color=GREEN, ha="right")
    ax.set(xlim=(8, -6), ylim=(0, 0.31), ylabel="squared error a pixel",
           xlabel="log-SNR (much noise on the right)",
           title="Little noise: perfect on its own digits, stuck on new ones")

# %%
fig, (top, bottom) = plt.subplots(2, 1, figsize=(7.4, 7))
draw_answers(top)
draw_curves(bottom)
fig.suptitle("The best denoiser of a data set repeats it", x=0.01, ha="left")
style.show(fig, "Above, two unseen digits under seven noise levels and the answers of "
           "the empirical denoiser: with little noise a training digit that resembles "
           "them, with much noise a grey average. Below, its error: zero for its own "
           "digits, never below 0.07 for new ones, where a Gaussian one goes to zero.")

# %% [markdown]
# Read the pictures from right to left. Under much noise the answer is the grey
# average of all digits; then an average of a few alike; then one digit, sharp
# and wrong. At log-SNR 4 to 6 you can read the input yourself, and still the
# answer is *another* image: the training digit that resembles it most. As the
# noise falls, its error on new digits stays at their squared distance to the
# nearest training digit, while the humble Gaussian's goes on to zero.

# %%
def largest_weight(level):
    """The weight of the likeliest training digit, mean over noisy new digits."""
    t = cosine.time_of_log_snr(level)
    x = cosine.add_noise(new, t, normal_like(new, seeded(0)))
    return empirical.weights(x, t).max(1).values.mean().item()


floor = torch.cdist(new, data).min(1).values.square().mean().item() / 64
print(f"nearest training digit: squared error a pixel {floor:.4f}")

# %%
repeats, smooth = (squared_error(each, new, 4.0) for each in (empirical, gaussian))
claim("ch01", "at log-SNR 4 the optimum of the training set gives over 0.9 of the "
      "weight to one training digit, and a Gaussian fit has under half its error",
      largest_weight(4.0) > 0.9 and smooth < 0.5 * repeats,
      weight_of_one_digit=largest_weight(4.0), empirical=repeats, gaussian=smooth,
      nearest_digit=floor, control_weight_in_noise=largest_weight(-6.0))

# %% [markdown]
# (On ten seeds the weight was never below 0.97, and the Gaussian's error never
# above a sixth of the other.)
#
# Sit with this for a minute, because it turns the usual view around. The
# denoising loss on a training set has a known minimum, and a network that
# reached it would answer with training images. A diffusion model that makes
# new images has *not* reached it: the network's shape and its training have
# kept it away. Later chapters report trained models next to this limit.
#
# ## 1.11 A gallery of failures
#
# These are mistakes that people really make. Each row noises the same digit.

# %%
def gallery(x0, k, eps):
    """The right jump to index k, and four wrong ones."""
    kept = alpha_bar[k]
    short = (1 - betas[:: steps // 100]).cumprod(0)[k // 10]  # 100 of the betas
    return {
        "right": kept.sqrt() * x0 + (1 - kept).sqrt() * eps,
        "root of 1 - alpha_bar forgotten": kept.sqrt() * x0 + (1 - kept) * eps,
        "1 - beta in place of alpha_bar": forward_step(x0, k, eps),
        "no sqrt(1 - beta)": x0 + betas[: k + 1].sum().sqrt() * eps,
        "100 steps, betas kept": short.sqrt() * x0 + (1 - short).sqrt() * eps,
    }

# %%
eps = normal_like(images, seeded(6))
spoiled = {k: gallery(images, k, eps) for k in (99, 299, 599, 999)}
names = list(spoiled[99])
rows = torch.cat([spoiled[k][name][4:5] for name in names for k in spoiled])

# %%
fig, ax = plt.subplots(figsize=(6.6, 4.8))
style.images(ax, rows, columns=4)
for row, name in enumerate(names):
    ax.text(37, 9 * row + 3.5, name, va="center", fontsize=10)
for column, k in enumerate(spoiled):
    ax.text(9 * column + 3.5, -1.2, f"k = {k}", ha="center", fontsize=10)
ax.set_xlim(-0.5, 62)
fig.suptitle("Only the first row is the process that you meant", x=0.01, ha="left")
style.show(fig, "One digit at four steps in five rows. Right: it dissolves by k = 599. "
           "Root forgotten: too little noise early. 1 - beta for alpha-bar: the digit "
           "never disappears. No shrinking: saturated noise. 100 steps: the end looks "
           "like k = 299 of the right row.")

# %% [markdown]
# - **The root forgotten.** The noise has standard deviation $1 - \bar\alpha$
#   in place of its root. At the end both are 1, so the last column looks
#   right; in between the images are too clean, and the network is trained on
#   noise that sampling never meets.
# - **$1-\beta_k$ for $\bar\alpha_k$.** One step's noise in place of $k$
#   steps'. Every image is nearly clean.
# - **No shrinking.** The pixels end at a standard deviation of 3.3, which
#   the picture clips to $[-1, 1]$. It is the variance-exploding path under a
#   variance-preserving name.
# - **Fewer steps with the same betas.** (Column $k$ shows step $k/10$ of 100.)
#   The end of the chain is as clean as $k = 299$ of the right one, so pure
#   noise, where sampling starts, is something that training never showed.
#
# By eye the first row and the second are close. A test is not so lenient. On
# data with variance $V$, $\mathrm{Var}[x_t] = \alpha^2 V + \sigma^2$; and what
# is left after $\alpha x_0$ is taken away has variance $\sigma^2$.

# %%
for name in names:
    k = 999 if "100" in name else 299
    x, x0 = spoiled[k][name].reshape(-1, 1), images.reshape(-1, 1)
    miss = misses(x, x0, alpha_bar[k].sqrt(), (1 - alpha_bar[k]).sqrt())[1].item()
    verdict = "fine" if miss < 5 else "wrong"
    print(f"{name:32} variance off by {miss:5.1f} standard errors: {verdict}")

# %% [markdown]
# Two more that make no picture. **Negative indices**: in Python
# `alpha_bar[k - 1]` at $k = 0$ does not fail; it reads the *last* entry, so
# "the data before the first step" become pure noise. And **too few steps**:
# the library looks at the terminal SNR of each chain and speaks up.

# %%
# NBVAL_CHECK_OUTPUT
import warnings

print(f"alpha_bar[0 - 1] = {alpha_bar[0 - 1]:.1e}, wanted 1")
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    schedules.Chain(torch.linspace(1e-4, 0.02, 100, dtype=torch.float64))
print(heard[0].message)

# %% [markdown]
# ## 1.12 What was made smaller, and what is left out
#
# The schedules are those of the papers, with their own constants; nothing
# about them is smaller. The images are: 64 pixels in place of 3,072 and more,
# which makes the empirical denoiser quick and the brightness leak invisible.
# Left out are noise that is not Gaussian (masks, blur and categories come in
# chapter 24), noise that differs from pixel to pixel, and schedules that are
# learned (2107.00630). That the *reverse* of a small Gaussian step is nearly
# Gaussian too, on which all samplers rest, is chapter 2's first point.
#
# ## Summary
#
# - One step is
#   $x_k = \sqrt{1-\beta_k}\,x_{k-1} + \sqrt{\beta_k}\,\varepsilon$; $k$ steps
#   are $x_k = \sqrt{\bar\alpha_k}\,x_0 + \sqrt{1-\bar\alpha_k}\,\varepsilon$.
#   Variances add, so the roots matter.
# - Every schedule is a path $x_t = \alpha_t x_0 + \sigma_t\varepsilon$, and
#   its natural clock is the log-SNR. Equal log-SNR means equal knowledge.
# - The chain forgets: it ends in $\mathcal N(0, I)$ up to the terminal SNR,
#   which has to be looked at, and matters more for larger images.
# - The best guess at $x_0$ in squared error is the posterior mean. Least
#   squares finds it without knowing a density.
# - Tweedie: $\hat x_0 = (x_t + \sigma^2\,\text{score})/\alpha$. Score,
#   $\hat\varepsilon$, $\hat x_0$ and $\hat v$ are one knowledge.
# - On a finite data set the best denoiser is known, and it repeats the data.
#
# **Now do the [exercises](../exercises/ch01_adding_noise.ipynb)**: compose two
# steps into one, design a schedule, find how long a chain must be, count the
# nats that are left, denoise bits, and close the brightness leak.
#
# **Next**: chapter 2 turns the chain around, and trains a network to be the
# black curve.
