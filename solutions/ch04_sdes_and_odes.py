# %% [markdown]
# # Exercises 4: SDEs, ODEs and the family of generative models
#
# Six exercises on [chapter 4](../notebooks/ch04_sdes_and_odes.py). Tensors have the
# batch first, and no function draws noise of its own: where noise is needed it is an
# argument. After each check a cell uses your function.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from diffedu import GaussianMixture, likelihood, samplers, schedules, style
from diffedu.checks import ch04 as check

style.use()

# %% [markdown]
# ## Exercise 1. The sub-VP SDE
#
# *Difficulty 2 of 5 · 30 minutes*
#
# The sub-VP SDE (2011.13456, eq. 12) has a linear rate
# $\beta(t) = \beta_{\min} + (\beta_{\max}-\beta_{\min})\,t$ and
#
# $$dx = -\tfrac12\beta(t)\,x\,dt + \sqrt{\beta(t)\,\big(1-e^{-2\Gamma(t)}\big)}\;dw,
# \qquad \Gamma(t) = \int_0^t\beta(s)\,ds .$$
#
# Solve $\dot m = f m$ and $\dot V = 2fV + g^2$ with $m(0)=1$, $V(0)=0$, and write
# `sub_vp(t, beta_min, beta_max)`: `t` of shape (N,) in [0, 1], the rates numbers.
# Return three tensors of shape (N,): $\alpha(t)$, the *standard deviation*
# $\sigma(t)$, and $g(t)$. What you should see below: its variance stays under that
# of the VP path everywhere, and simulated paths have it.
#
# <details><summary>Hint 1: a nudge</summary>
#
# The drift is VP's, so $\alpha$ is too. For $V$, guess: what would $V$ be if it were
# a power of $1-e^{-\Gamma}$?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\Gamma = \beta_{\min}t + \tfrac12(\beta_{\max}-\beta_{\min})t^2$,
# $\alpha = e^{-\Gamma/2}$, and $V = (1-e^{-\Gamma})^2$ solves the second equation: both
# sides are $2\beta e^{-\Gamma}(1-e^{-\Gamma})$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# One line each for `beta`, `total`, and the three results. `-torch.expm1(-total)` is
# $1-e^{-\Gamma}$ without loss of digits near $t=0$.
#
# </details>

# %% tags=["solution:sub_vp"]
def sub_vp(t, beta_min, beta_max):
    """alpha, sigma and g of the sub-VP SDE."""
    ### BEGIN SOLUTION
    beta = beta_min + (beta_max - beta_min) * t
    total = beta_min * t + 0.5 * (beta_max - beta_min) * t**2
    g = (beta * -torch.expm1(-2 * total)).sqrt()
    return (-0.5 * total).exp(), -torch.expm1(-total), g
    ### END SOLUTION

# %% tags=["check:sub_vp", "points:2"]
check.sub_vp(sub_vp)

# %% [markdown]
# Your formula against VP's, and against a simulation of 4,000 copies of $x_0 = 1$
# in 500 steps.

# %%
t = torch.linspace(0, 1, 501, dtype=torch.float64)
alpha, sigma, g = sub_vp(t, 0.1, 20.0)
x = torch.ones(4000, dtype=torch.float64)
generator, seen = torch.Generator().manual_seed(0), []
for i in range(500):
    z = torch.randn(4000, generator=generator, dtype=torch.float64)
    drift = -0.5 * (0.1 + 19.9 * t[i]) * x
    x = x + drift / 500 + g[i] * z / 500**0.5
    seen.append(x.var().item())
fig, ax = plt.subplots(figsize=(5.6, 3))
vp_variance = schedules.linear().sigma(t) ** 2
ax.plot(t, vp_variance, color=style.colour("linear"), label="VP")
ax.plot(t, sigma**2, color=style.colour("sub_vp"), label="sub-VP")
ax.plot(t[1::20], seen[::20], ".", color=style.colour("truth"), label="simulated")
ax.set(xlabel="time $t$", ylabel="variance of the noise", title="Sub-VP stays below VP")
ax.legend()
style.show(fig, "Variance over time: VP's curve rises to 1, sub-VP's lies below it and "
           "reaches 1 as well; dots of a simulation lie on it.")

# %% [markdown]
# ## Exercise 2. One step of the whole family
#
# *Difficulty 2 of 5 · 20 minutes*
#
# Between the reverse SDE ($\kappa = 1$) and the probability-flow ODE ($\kappa = 0$)
# lies a family with the same marginals. Downwards from $t$ to $t-\Delta$, with
# $\Delta > 0$,
#
# $$x \leftarrow x - \Big[f x - \tfrac{1+\kappa^2}{2}\,g^2\,\nabla\log p_t(x)\Big]
# \Delta + \kappa\,g\,\sqrt{\Delta}\;z .$$
#
# Write `family_step(x, score, f, g, length, kappa, z)`: `x`, the score there and the
# noise `z` have shape (B, D), the others are numbers, the result has shape (B, D).
# What you should see below: three values of $\kappa$, one spread.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Time runs down. Which terms change their sign against the forward equation, and
# which don't?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# It stands above. With $\kappa=1$ the score's factor is $g^2$, with $\kappa=0$ half
# of it and no noise is left.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `drift = f * x - ...` in one line, then `x - drift * length + ...`.
#
# </details>

# %% tags=["solution:family_step"]
def family_step(x, score, f, g, length, kappa, z):
    """One Euler-Maruyama step down the family of reverse equations."""
    ### BEGIN SOLUTION
    drift = f * x - (1 + kappa**2) / 2 * g**2 * score
    return x - drift * length + kappa * g * length**0.5 * z
    ### END SOLUTION

# %% tags=["check:family_step", "points:2"]
check.family_step(family_step)

# %% [markdown]
# No Girsanov, no Fokker-Planck: a Gaussian of standard deviation 0.5, whose noised
# score is known, and 600 steps from noise. All three should end with a standard
# deviation of 0.5, and at $t=0.5$ with the one that the path has there.

# %%
vp, data = schedules.linear(), GaussianMixture([1.0], torch.zeros(1, 1).double(), [0.5])
times = samplers.time_grid(vp, 600, end=0.005)
halfway = data.at(vp, 0.5).spectrum.sqrt().item()
for kappa in (0.0, 0.5, 1.0):
    generator, spreads = torch.Generator().manual_seed(1), {}
    x = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    for t, s in pairwise(times):
        f, g = (c.item() for c in vp.sde(t))
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        score = data.at(vp, t).score(x)
        x = family_step(x, score, f, g, (t - s).item(), kappa, z)
        spreads[s.item()] = x.std().item()
    middle = min(spreads, key=lambda s: abs(s - 0.5))
    print(f"kappa {kappa}: std {spreads[middle]:.2f} at t = 0.5 (exact {halfway:.2f}), "
          f"{x.std():.2f} at the end")

# %% [markdown]
# ## Exercise 3. A likelihood with probes
#
# *Difficulty 4 of 5 · 40 minutes*
#
# Estimate the log-volume along a walk: the integral of the divergence of the
# velocity, by **Euler's method** in rising times, with Hutchinson's probes that stay
# the same for the whole walk,
#
# $$\int \nabla\cdot u\,dt\ \approx\ \sum_i (t_{i+1}-t_i)\;\xi^\top\,
# \nabla u(x_i, t_i)\,\xi,\qquad x_{i+1} = x_i + (t_{i+1}-t_i)\,u(x_i, t_i).$$
#
# Write `volume(velocity, x, times, probes)`. `velocity(x, t)` maps (B, D) and a time
# of shape () to (B, D); `x` has shape (B, D), `times` (N + 1,), rising; `probes` has
# shape (P, B, D). Return the mean over the probes, shape (B,), and its standard
# error, shape (B,): the standard deviation over the P probes (with P - 1 below the
# sum, as `torch.std` has it) over $\sqrt P$. Gradients need not flow through the
# result. What you should see below: the error falls like $1/\sqrt P$, and no number
# of probes shifts the mean.
#
# <details><summary>Hint 1: a nudge</summary>
#
# All probes see the same walk. So walk once, and keep one running sum for each
# probe. The spread is taken of the *sums*, at the end.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\xi^\top\nabla u$ is the gradient in $x$ of the number $\xi\cdot u$. Once more
# times $\xi$, summed over the components, gives one number a sample.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# In each step: `x = x.detach().requires_grad_()`, `u = velocity(x, t)`, then for each
# probe `torch.autograd.grad((u * xi).sum(), x, retain_graph=True)[0]`, times `xi`,
# `.sum(1)`. Stack to (P, B), add times the step's length, and move `x`.
#
# </details>

# %% tags=["solution:volume"]
def volume(velocity, x, times, probes):
    """The integral of the divergence by Euler's method: mean and standard error."""
    ### BEGIN SOLUTION
    total = torch.zeros(probes.shape[:2], dtype=x.dtype)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = x.detach().requires_grad_()
        u = velocity(x, t)
        rows = [torch.autograd.grad((u * xi).sum(), x, retain_graph=True)[0]
                for xi in probes]
        total = total + (s - t) * (torch.stack(rows) * probes).sum(2)
        x = (x + (s - t) * u).detach()
    return total.mean(0), total.std(0) / len(probes) ** 0.5
    ### END SOLUTION

# %% tags=["check:volume", "points:3"]
check.volume(volume)

# %% [markdown]
# On a mixture in four dimensions, against the library's exact trace with the same
# steps: the error of single points falls with the probes, the mean over many points
# is right from the first.

# %%
centres = torch.tensor([[1.0, 0, 0.5, 0], [-1, 0.5, 0, 0]], dtype=torch.float64)
world = GaussianMixture([0.5, 0.5], centres, [0.4, 0.5])
denoise, x0 = world.denoiser(vp), world.sample(200, torch.Generator().manual_seed(2))
rising = samplers.time_grid(vp, 40, "log_snr", end=vp.t_min).flip(0)
exact = likelihood.log_prob(denoise, x0, times=rising.flip(0), method="euler").volume
for count in (2, 8, 32):
    generator = torch.Generator().manual_seed(3)
    probes = likelihood.draw_probes(x0, count, generator=generator)
    found, error = volume(lambda x, t: denoise(x, t).velocity, x0, rising, probes)
    off, told = (v.square().mean().sqrt() for v in (found - exact, error))
    print(f"{count:2d} probes: error of one point {off:.2f}, said {told:.2f}, "
          f"error of the mean {(found - exact).mean().abs():.2f}")

# %% [markdown]
# ## Exercise 4. A bound that knows only its ends
#
# *Difficulty 3 of 5 · 25 minutes*
#
# The diffusion term of the continuous bound is
#
# $$L_\infty = \tfrac12\int \mathrm{snr}\;\|x_0-\hat x_0\|^2\;d\log\mathrm{snr} .$$
#
# Someone evaluated a denoiser at $N$ times of some schedule and noted, for each, the
# log-SNR and $\hat x_0$. Write `diffusion_term(x0, x0_hats, log_snr)`: `x0` of shape
# (B, D), `x0_hats` (N, B, D), `log_snr` (N,) *falling* as time rises, by unequal
# steps. Return the integral by the trapezoidal rule in log-SNR, in nats, summed over
# the D components: shape (B,). What you should see below: three schedules, one
# number.
#
# <details><summary>Hint 1: a nudge</summary>
#
# The list runs from high to low log-SNR. What sign would a blind trapezoidal rule
# give?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# With $h_i = \tfrac12\,e^{l_i}\,\|x_0-\hat x_0^{(i)}\|^2$ at log-SNR $l_i$, it is
# $\sum_i \tfrac12(h_i+h_{i+1})(l_i - l_{i+1})$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `height` has shape (N, B): `.square().sum(2)` times `log_snr.exp()[:, None]` over 2.
# Then `torch.trapezoid(height, log_snr, dim=0)` with the right sign.
#
# </details>

# %% tags=["solution:diffusion_term"]
def diffusion_term(x0, x0_hats, log_snr):
    """Half the integral of snr |x0 - x0_hat|^2 over log-SNR, for each sample."""
    ### BEGIN SOLUTION
    height = 0.5 * log_snr.exp()[:, None] * (x0_hats - x0).square().sum(2)
    return -torch.trapezoid(height, log_snr, dim=0)
    ### END SOLUTION

# %% tags=["check:diffusion_term", "points:2"]
check.diffusion_term(diffusion_term)

# %% [markdown]
# Three schedules visit different levels at their 80 equal steps of time; all begin
# and end at the same ones. Mean over 2,000 points of the mixture:

# %%
x0 = world.sample(2000, torch.Generator().manual_seed(4))
for name in ("linear", "cosine", "flow"):
    path, generator = schedules.by_name(name), torch.Generator().manual_seed(5)
    ends = path.time_of_log_snr(torch.tensor([8.0, -9.0], dtype=torch.float64))
    answers, times = [], torch.linspace(*ends.tolist(), 80, dtype=torch.float64)
    for t in times:
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        answers.append(world.denoiser(path)(path.add_noise(x0, t, eps), t).x0)
    term = diffusion_term(x0, torch.stack(answers), path.log_snr(times))
    print(f"{name:7s} {term.mean():.1f} nats")

# %% [markdown]
# ## Exercise 5. There and back
#
# *Difficulty 3 of 5 · 30 minutes*
#
# An encoder walks the ODE up, a decoder down, and each makes an error. Does the error
# of a round trip measure it? Write `ode_walk(velocity, x, times)`: Heun's method along
# `times` of shape (N + 1,), *in whichever direction they run*,
#
# $$\tilde x = x + (s-t)\,u(x, t),\qquad
# x_s = x + \tfrac{s-t}{2}\,\big[u(x,t) + u(\tilde x, s)\big].$$
#
# `velocity(x, t)` maps (B, D) and a time of shape () to (B, D); return the state at
# the last time, shape (B, D). What you should see below: doubling the steps divides
# the error of the code by about four, and that of the round trip by about eight.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Does the formula care whether $s$ is above or below $t$?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# The second slope is taken at the Euler guess *and* at the new time.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# A loop over `zip(times[:-1], times[1:])` with four lines: `h`, `u`, `guess`, `x`.
#
# </details>

# %% tags=["solution:ode_walk"]
def ode_walk(velocity, x, times):
    """Heun's method along a list of times, up or down."""
    ### BEGIN SOLUTION
    for t, s in zip(times[:-1], times[1:], strict=True):
        h, u = s - t, velocity(x, t)
        guess = x + h * u
        x = x + h / 2 * (u + velocity(guess, s))
    return x
    ### END SOLUTION

# %% tags=["check:ode_walk", "points:2"]
check.ode_walk(ode_walk)

# %% [markdown]
# Codes of the mixture against those of 400 steps, and the round trip. The round trip
# is of third order, better than the method: a step's leading error goes with the cube
# of its length, which is negative on the way down, so that the errors of the two ways
# cancel. A small round-trip error therefore does *not* prove that the codes are right.
# (A *tolerance* for the error translates into a number of steps; an adaptive solver
# would choose it for you.)

# %%
x0 = world.sample(100, torch.Generator().manual_seed(6))
best, errors = likelihood.encode(denoise, x0, steps=400), {}
for steps in (20, 40, 80, 160):
    down = samplers.time_grid(vp, steps, "log_snr", end=vp.t_min)
    start = vp.alpha(vp.t_min) * x0
    up = ode_walk(lambda x, t: denoise(x, t).velocity, start, down.flip(0))
    back = ode_walk(lambda x, t: denoise(x, t).velocity, up, down)
    gaps = up - best, back - start
    errors[steps] = [gap.norm(dim=1).mean().item() for gap in gaps]
fig, ax = plt.subplots(figsize=(5.8, 3.2))
for label, shade, values in zip(("code", "round trip"), ("ddim", "heun"),
                                zip(*errors.values(), strict=True), strict=True):
    ax.loglog(list(errors), values, "-o", color=style.colour(shade), label=label)
ax.set(xlabel="steps each way", ylabel="error")
ax.set_xticks(list(errors), list(errors))
ax.minorticks_off()
ax.set_title("A round trip looks better than its codes are")
style.label_lines(ax)
style.show(fig, "Errors of the code and of the round trip against steps on logarithmic "
           "axes; the code's falls with a slope of about -2, the round trip's is "
           "smaller and falls with about -3.")

# %% [markdown]
# ## Exercise 6. Which model wins on which axis?
#
# *Difficulty 3 of 5 · 40 minutes*
#
# Graded by hand. The "generative learning trilemma" (2112.07804) asks of a model
# three things at once: samples of high quality, coverage of all modes, and fast
# sampling. Chapter 4b measures a variational autoencoder, a flow (RealNVP), a GAN,
# an energy-based model and a diffusion model on the same data. In 150 to 250 words:
# (a) place the five kinds on the three axes, with the reason *in the construction*
# of each; (b) say which of them give an exact likelihood, a bound, or none; (c) name
# one thing from chapter 4 that moves diffusion on the weakest of its axes, and what
# it costs.
#
# <details><summary>Hint 1: what to look at</summary>
#
# How many network calls make one sample? What does the training loss punish: a data
# point that the model misses, or a sample that the data lack? Must the network be
# invertible?
#
# </details>

# %% [markdown] tags=["answer:trilemma", "points:4"]
# (a) A GAN is fast (one call), and its samples are sharp, since a discriminator
# punishes samples that look wrong; nothing in its loss punishes a mode that is never
# sampled, so coverage is its weak axis. A VAE is fast and covers: its bound punishes
# every missed data point; its decoder averages over what the code doesn't say, so
# samples are blurred. A flow is fast and covers for the same reason, but each layer
# must be invertible with a cheap determinant, which limits quality at a given size.
# An energy-based model may use any network; sampling is a long Markov chain, and
# chains that don't mix lose mode weights. Diffusion covers (a regression at every
# data point and noise level, and a bound on the likelihood) and has quality (any
# network, small steps); it pays with tens to thousands of calls a sample.
#
# (b) Exact: the flow, and the diffusion model read as an ODE, up to the solver's
# error (with probes: up to noise). A bound: VAE, and diffusion as an SDE. None: GAN;
# an energy only up to its constant.
#
# (c) Speed: the ODE in place of the SDE is smooth and takes tens of steps instead of
# hundreds with the same marginals. It costs the self-correction that noise gives, so
# errors of the score add up; distillation (chapter 6) goes further and costs a second
# training.
