# %% [markdown]
# # Exercises 5: the design space
#
# Six exercises on [chapter 5](../notebooks/ch05_design_space.ipynb). Every
# function takes and returns tensors with the batch first, and no function draws
# noise of its own: where noise is needed it is an argument. $\sigma$ is the
# noise level of the path with $\alpha = 1$. After each check a cell uses your
# function.

# %%
import torch

from diffedu import Denoiser, GaussianMixture, nets, samplers, schedules, style
from diffedu.checks import ch05 as check

style.use()

# %% [markdown]
# ## Exercise 1. The four scalings, for data that are not centred
#
# *Difficulty 3 of 5 · 30 minutes*
#
# The chapter asked for a *mean square* of 1. A network likes its input and its
# target centred as well. So let each coordinate of the data have mean $m$ and
# standard deviation $d$ about it, and wrap the network as
#
# $$\hat x_0(x;\sigma) = m + c_\mathrm{skip}\,(x-m) + c_\mathrm{out}\,
# F_\theta\big(c_\mathrm{in}\,(x-m);\,c_\mathrm{noise}\big).$$
#
# Derive the four numbers again: input and target should have *variance* 1 (and
# mean 0), $c_\mathrm{out}$ should be as small as possible, and
# $c_\mathrm{noise} = \frac14\ln\sigma$. Then write
# `wrapped(F, x, sigma, mean, std)`, which returns $\hat x_0$: `F` maps (B, D)
# and (B,) to (B, D); `x` has shape (B, D), `sigma` shape (B,); `mean` and `std`
# are numbers. What you should see below: unit variance at all levels, for
# digits too.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Call $y_0 = x_0 - m$ and $y = x - m$. What do the equations of section 5.4 say
# about them?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $y = y_0 + \sigma\varepsilon$ has variance $d^2+\sigma^2$. So
# $c_\mathrm{skip} = d^2/(\sigma^2+d^2)$ and
# $c_\mathrm{out}^2 = \sigma^2d^2/(\sigma^2+d^2)$, as in the chapter with
# $\sigma_\mathrm{data} = d$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Keep `sigma` of shape (B,) for `F`'s second argument and make a copy with
# `[:, None]` for the rest. Three lines: the total variance, the network's
# answer, the sum.
#
# </details>

# %% tags=["solution:wrapped"]
def wrapped(F, x, sigma, mean, std):
    """The clean data as the preconditioned network sees them."""
    ### BEGIN SOLUTION
    level = sigma[:, None]
    total = level**2 + std**2
    answer = F((x - mean) / total.sqrt(), sigma.log() / 4)
    return mean + std**2 / total * (x - mean) + level * std / total.sqrt() * answer
    ### END SOLUTION

# %% tags=["check:wrapped", "points:2"]
check.wrapped(wrapped)

# %% [markdown]
# What a network inside your function sees, on the digits:

# %%
from diffedu.worlds import digits

pixels = digits.load("train")[0].flatten(1)
noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
inputs = []


def spy(seen, c):
    inputs.append(seen)
    return seen


for sigma in (0.01, 0.5, 50.0):
    level, noisy = torch.full((len(pixels),), sigma), pixels + sigma * noise
    wrapped(spy, noisy, level, pixels.mean(), pixels.std())
    print(f"sigma {sigma:5.2f}: mean {inputs[-1].mean().abs():.1f}, "
          f"variance {inputs[-1].var():.1f}")

# %% [markdown]
# ## Exercise 2. What the network should answer
#
# *Difficulty 2 of 5 · 20 minutes*
#
# Training compares the raw network with a target. For $x = x_0+\sigma\varepsilon$
# and a network that answers $F$, EDM's loss of one sample is
# $\|F - F^*\|^2$, averaged over its elements. Write
# `raw_loss(F, x0, eps, sigma, sigma_data)` for a batch: `F` maps (B, D) and
# (B,) to (B, D); `x0` and `eps` have shape (B, D), `sigma` shape (B,). Return
# the losses of the samples, shape (B,). The scalings are those of section 5.4,
# with data of mean square $\sigma_\mathrm{data}^2$. What you should see below:
# $F=0$ has a loss of 1 at every level.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Which answer $F$ would make $\hat x_0$ equal to $x_0$?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Put $c_\mathrm{skip}$ and $c_\mathrm{out}$ into
# $F^* = (x_0 - c_\mathrm{skip}\,x)/c_\mathrm{out}$. After a line of algebra it
# is $F^* = (\sigma\,x_0/\sigma_\mathrm{data} - \sigma_\mathrm{data}\,\varepsilon)
# \big/ \sqrt{\sigma^2+\sigma_\mathrm{data}^2}$, which divides by nothing small.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `level = sigma[:, None]`, `root = (level**2 + sigma_data**2).sqrt()`, the
# target, then `(F(x / root, ...) - target).square().mean(1)`.
#
# </details>

# %% tags=["solution:raw_loss"]
def raw_loss(F, x0, eps, sigma, sigma_data):
    """The squared error of the raw network, one value a sample."""
    ### BEGIN SOLUTION
    level = sigma[:, None]
    root = (level**2 + sigma_data**2).sqrt()
    target = (level / sigma_data * x0 - sigma_data * eps) / root
    given = F((x0 + level * eps) / root, sigma.log() / 4)
    return (given - target).square().mean(1)
    ### END SOLUTION

# %% tags=["check:raw_loss", "points:2"]
check.raw_loss(raw_loss)

# %% [markdown]
# Unit variance at work. A ring of spots has mean square 0.51 a coordinate.

# %%
from diffedu.worlds import toys

generator = torch.Generator().manual_seed(1)
x0 = toys.eight_gaussians(20_000, generator)
eps = torch.randn(x0.shape, generator=generator)
for sigma in (0.01, 0.3, 10.0):
    level = torch.full((20_000,), sigma)
    zero = raw_loss(lambda x, c: 0 * x, x0, eps, level, 0.51**0.5).mean()
    print(f"sigma {sigma:5.2f}: loss of F = 0 is {zero:.1f}")

# %% [markdown]
# ## Exercise 3. Where Heun loses to Euler, and why
#
# *Difficulty 3 of 5 · 40 minutes*
#
# No check can judge this one; it is graded by hand. The cell below prints, for
# the ring's exact denoiser and two lists of levels, the errors of Euler and Heun
# at equal numbers of network calls. Change it as you like (other $\rho$, other
# starts, other worlds), and answer: **(a)** up to how many calls does Euler win?
# **(b)** Does the crossing move when the levels change? **(c)** Why does a method
# of higher order lose at all? Use a picture or a number of your own: for
# example, how far Heun's second slope is from the first, step by step.
#
# <details><summary>Hint 1: a nudge</summary>
#
# With `samplers.walk` you can look at the state of each step. Compute both
# slopes there. In which steps do they differ most, and by how much?
#
# </details>

# %%
path = schedules.edm()
ring = GaussianMixture(*toys.eight_gaussians_parameters())
exact = ring.denoiser(path)
start = path.prior_sample((128, 2), 1.0, generator, torch.float64)
fine = samplers.heun(exact, start, samplers.time_grid(path, 400, "karras"))
for rho in (3.0, 7.0):
    for n in (5, 8, 12, 18, 30):
        far = []
        for sampler, count in ((samplers.euler, 2 * n - 1), (samplers.heun, n)):
            times = samplers.time_grid(path, count, "karras", rho=rho)
            away = sampler(exact, start, times) - fine
            far.append(away.square().sum(1).mean().sqrt())
        print(f"rho {rho:.0f}, {2 * n - 1:2d} calls: "
              f"Euler {far[0]:.3f}, Heun {far[1]:.3f}")

# %% [markdown] tags=["answer:heun_loses", "points:3"]
# (a) On the ring with $\rho=7$ Euler wins up to about 30 calls. (b) The crossing
# moves with the list of levels, since what counts is the size of the steps in
# the band where the curves bend, from $\sigma = 0.1$ to $1$.
#
# (c) The order says how fast the error falls once steps are small against the
# scale on which the slope changes. With few steps they are not. Heun's second
# look is taken at the end of an Euler step that went past the curve, though
# never past $\hat x_0$, so its slope belongs to another place, even to another
# mode. Half of that wrong slope is then taken
# over the whole step. Each term of the Taylor series comes with a higher power
# of the step: if the step is larger than the scale, the higher-order method has
# the larger error. And it pays two calls a step, so that at equal calls its
# steps are twice as long. Euler's error there is bounded by the step itself: it
# moves towards $\hat x_0$, a mean of data, and stops at it or before.

# %% [markdown]
# ## Exercise 4. Retune the noise distribution
#
# *Difficulty 3 of 5 · 30 minutes*
#
# Section 5.5 found where a network has something to learn: the gap between the
# loss of $F=0$, which is 1, and the best possible loss. A sensible log-normal
# distribution has the mean and the standard deviation of $\ln\sigma$ *under that
# gap*, taken as weights over $\ln\sigma$:
#
# $$P_\mathrm{mean} = \frac{\int g\,\ln\sigma\;d\ln\sigma}{\int g\;d\ln\sigma},
# \qquad P_\mathrm{std}^2 = \frac{\int g\,(\ln\sigma-P_\mathrm{mean})^2\,
# d\ln\sigma}{\int g\;d\ln\sigma}, \qquad g = 1 - \text{best loss}.$$
#
# Write `matched(sigmas, best)`, which returns the pair ($P_\mathrm{mean}$,
# $P_\mathrm{std}$) from rising levels (n,) and the best losses (n,). The levels
# are **not** evenly spaced in $\ln\sigma$: use the trapezoidal rule. A best loss
# above 1 by chance counts as a gap of 0. What you should see below: for the ring
# the bell moves down, to the width of its spots, and gets narrower.
#
# <details><summary>Hint 1: a nudge</summary>
#
# All three integrals are over $\ln\sigma$, so start with `sigmas.log()`.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# The trapezoidal rule for $f$ at points $u_1 < \dots < u_n$ is
# $\sum_i \frac12 (f_i + f_{i+1})(u_{i+1}-u_i)$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.trapezoid(values, u)` is that rule. Clamp the gap at 0, compute the
# total, the mean, and the root of the mean squared distance from it.
#
# </details>

# %% tags=["solution:matched"]
def matched(sigmas, best):
    """Mean and standard deviation of log sigma where there is something to learn."""
    ### BEGIN SOLUTION
    u, gap = sigmas.log(), (1 - best).clamp(min=0)
    total = torch.trapezoid(gap, u)
    mean = torch.trapezoid(gap * u, u) / total
    variance = torch.trapezoid(gap * (u - mean) ** 2, u) / total
    return mean, variance.sqrt()
    ### END SOLUTION

# %% tags=["check:matched", "points:2"]
check.matched(matched)

# %% [markdown]
# The ring's own numbers, from its exact denoiser. (One seed and few samples, so
# expect the second digit to be uncertain.)

# %%
sigmas = torch.logspace(-2.5, 1.5, 60, dtype=torch.float64)
sigma_data, best = 0.51**0.5, []
for sigma in sigmas:
    x_t = x0[:4000].double() + sigma * eps[:4000]
    off = (exact(x_t, sigma / 80).x0 - x0[:4000]).square().mean()
    best.append(off * (1 / sigma**2 + 1 / sigma_data**2))
mean, std = matched(sigmas, torch.stack(best))
print(f"P_mean {mean:.1f} (the paper's -1.2), P_std {std:.1f} (1.2)")

# %% [markdown]
# ## Exercise 5. Churn with a learned score
#
# *Difficulty 4 of 5 · 45 minutes*
#
# First the step. Write `raise_level(x, sigma, steps, knobs, z)`, the first half
# of EDM's algorithm 2. `x` and the standard noise `z` have shape (B, D);
# `sigma` is a number, `steps` the number $N$ of steps of the whole walk, and
# `knobs` holds the four numbers $(S_\mathrm{churn}, S_\mathrm{tmin},
# S_\mathrm{tmax}, S_\mathrm{noise})$. Return the pair $(\hat x, \hat\sigma)$,
# with both limits included in the range. Then run the experiment below, which
# walks with your function, and say what a *learned* score does with churn (that
# part is graded by hand).
#
# <details><summary>Hint 1: a nudge</summary>
#
# Two independent noises add up to a third. Do their standard deviations add?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\gamma = \min(S_\mathrm{churn}/N, \sqrt2-1)$ inside the range and 0 outside,
# $\hat\sigma = (1+\gamma)\sigma$,
# $\hat x = x + \sqrt{\hat\sigma^2-\sigma^2}\,S_\mathrm{noise}\,z$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Unpack `knobs`, compute `gamma` with an `if`, then `raised`, then return both.
# $S_\mathrm{noise}$ scales the noise and not the level.
#
# </details>

# %% tags=["solution:raise_level"]
def raise_level(x, sigma, steps, knobs, z):
    """Noise up to a higher level: the new state and the new level."""
    ### BEGIN SOLUTION
    s_churn, s_tmin, s_tmax, s_noise = knobs
    inside = s_tmin <= sigma <= s_tmax
    gamma = min(s_churn / steps, 2**0.5 - 1) if inside else 0.0
    raised = (1 + gamma) * sigma
    return x + (raised**2 - sigma**2) ** 0.5 * s_noise * z, raised
    ### END SOLUTION

# %% tags=["check:raise_level", "points:2"]
check.raise_level(raise_level)

# %% [markdown]
# The chapter's two modes, three quarters of the mass on the left, and a small
# network that learns them from samples: once for 300 steps, once for only 40, so
# that its score is wrong somewhere. Nobody chose where. (The world's mean square
# is $(1+0.3^2)$ in one coordinate and $0.3^2$ in the other, so
# $\sigma_\mathrm{data} = \sqrt{(1.09+0.09)/2} \approx 0.77$.)

# %%
from diffedu import losses, training

means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
world = GaussianMixture([0.75, 0.25], means, [0.3, 0.3])


def learn(steps):
    torch.manual_seed(0)
    net = Denoiser(nets.MLP(2, width=48, depth=2), path, "edm", sigma_data=0.77)
    draws = torch.Generator().manual_seed(2)
    states = training.fit(
        net, lambda x0, g: losses.denoising(
            net, x0, t=losses.edm_times(len(x0), path, g, x0), generator=g),
        lambda step: world.sample(256, draws), steps=steps, lr=2e-3, ema=0.9,
        progress=False, generator=torch.Generator().manual_seed(3))
    *_, last = states
    return last.ema.requires_grad_(False)

# %% [markdown]
# The walk starts at $\sigma = 2$ from right states or from half-and-half ones,
# with and without churn, and the error of the left mode's weight is printed. The
# sampling error of one number is about 0.01.

# %%
def weight_error(denoise, state, s_churn, steps=32):
    """How far the left mode's share of 2,000 points ends from 3/4."""
    generator = torch.Generator().manual_seed(4)
    x = state.noised(1.0, 2.0).sample(2000, generator)
    levels = (80 * samplers.time_grid(path, steps, "karras", start=2 / 80)).tolist()
    for sigma, lower in zip(levels[:-1], levels[1:], strict=True):
        z = torch.randn(x.shape, generator=generator)
        x, raised = raise_level(x, sigma, steps, (s_churn, 0.05, 50.0, 1.0), z)
        x = samplers.heun(denoise, x, torch.tensor([raised / 80, lower / 80]).double())
    return (x[:, 0] < 0).float().mean() - 0.75


even = GaussianMixture([0.5, 0.5], means, [0.3, 0.3])
models = {"exact": world.denoiser(path), "300 steps": learn(300), "40 steps": learn(40)}
for name, denoise in models.items():
    for state_name, state in {"right": world, "wrong": even}.items():
        row = [f"{weight_error(denoise, state, c):+.2f}" for c in (0.0, 20.0)]
        print(f"{name:9s}, {state_name} state: error without churn, with: {row}")

# %% [markdown] tags=["answer:churn_learned", "points:2"]
# A well-trained network behaves like the exact denoiser: churn takes the error
# of the wrong state from 0.10 to within two sampling errors. For it the paper's
# claim is reproduced. The network of 40 steps has a wrong score. With churn it
# ends off by about 0.08 from *both* starts: churn moved the wrong state past the
# truth to the network's own weight, and it moved the right state there as well,
# which was better off without. So "stochastic sampling corrects errors" is right
# about errors of the state and wrong about errors of the score.

# %% [markdown]
# ## Exercise 6. A multistep method of third order
#
# *Difficulty 4 of 5 · 45 minutes*
#
# Heun looks twice a step and throws the second look away. A **multistep** method
# looks once and remembers. Put a parabola through the last three slopes
# $\hat\varepsilon_0,\hat\varepsilon_1,\hat\varepsilon_2$, seen at
# $\sigma_0 > \sigma_1 > \sigma_2$, and integrate it from $\sigma_2$ down to the
# next level $\sigma_3$:
#
# $$x_3 = x_2 + \sum_{j=0}^{2} \hat\varepsilon_j \int_{\sigma_2}^{\sigma_3}
# \prod_{i\ne j}\frac{u - \sigma_i}{\sigma_j-\sigma_i}\;du .$$
#
# This is the method of Adams and Bashforth for steps of unequal length. Write
# `multistep(x, slopes, sigmas)`: `x` of shape (B, D) is the state at
# $\sigma_2$, `slopes` of shape (3, B, D) the slopes from the oldest to the
# newest, `sigmas` of shape (4,). What you should see below: an error that falls
# with a slope of about $-3$, at one call a step (doubling the steps at slope
# $-3$ gives a factor of 8).
#
# <details><summary>Hint 1: a nudge</summary>
#
# Each integrand is a parabola in $u$. There is a rule with three points that
# integrates parabolas exactly.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Simpson: $\int_a^b f = \frac{b-a}{6}\big(f(a) + 4f(\frac{a+b}2) + f(b)\big)$,
# exact for polynomials up to degree three. Here $a=\sigma_2$, $b=\sigma_3$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# For each `j`, a function of `u` that multiplies the two fractions over
# `i != j`; Simpson's rule gives its weight; add weight times `slopes[j]` to
# `x`.
#
# </details>

# %% tags=["solution:multistep"]
def multistep(x, slopes, sigmas):
    """From sigmas[2] to sigmas[3], along the parabola through three slopes."""
    ### BEGIN SOLUTION
    a, b = sigmas[2], sigmas[3]
    for j in range(3):
        one, two = [sigmas[i] for i in range(3) if i != j]
        scale = (sigmas[j] - one) * (sigmas[j] - two)
        ends = (a - one) * (a - two) + (b - one) * (b - two)
        middle = ((a + b) / 2 - one) * ((a + b) / 2 - two)
        x = x + (b - a) / 6 * (ends + 4 * middle) / scale * slopes[j]
    return x
    ### END SOLUTION

# %% tags=["check:multistep", "points:3"]
check.multistep(multistep)

# %% [markdown]
# Its order on a ring of wide spots, from $\sigma=80$ to 0.3. The first two steps
# have no three slopes yet, and are Heun's.

# %%
wide = GaussianMixture(torch.ones(8), ring.means, torch.full((8,), 0.5)).denoiser(path)
end, counts, errors = 0.3 / 80, (32, 64, 128), []
truth = samplers.heun(wide, start, samplers.time_grid(path, 1500, "karras", end=end))
for count in counts:
    times = samplers.time_grid(path, count, "karras", end=end)
    x, slopes = start, []
    for i, t in enumerate(times[:-1]):
        slopes = [*slopes, wide(x, t).eps][-3:]
        if i < 2:
            x = samplers.heun(wide, x, times[i : i + 2])
        else:
            x = multistep(x, torch.stack(slopes), 80 * times[i - 2 : i + 2])
    errors.append((x - truth).square().sum(1).mean().sqrt())
errors = torch.stack(errors)
print("errors fall by factors of",
      [f"{ratio:.0f}" for ratio in (errors[:-1] / errors[1:]).tolist()])
