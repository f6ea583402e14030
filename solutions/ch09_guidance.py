# %% [markdown]
# # Exercises 9: conditioning and guidance
#
# Six exercises on [chapter 9](../notebooks/ch09_guidance.ipynb). No function
# draws noise of its own, and shapes are given with each. After each check a cell
# uses your function.

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import GaussianMixture, guidance, nets, samplers, schedules, style
from diffedu.checks import ch09 as check

style.use()

# %% [markdown]
# ## Exercise 1. Both conventions
#
# *Difficulty 1 of 5 · 15 minutes*
#
# This course names the strength of guidance by a `scale`, 1 for the plain
# conditional model, and mixes $u + \text{scale}\,(c-u)$. The survey
# (2407.00783, eq. 13) and the paper (2207.12598, eq. 6) write
# $(1+w)\,c - w\,u$.
#
# Write `guide(u, c, amount, convention)`: `u` and `c` of shape (B, D), `amount`
# a number, and `convention` one of the words `"scale"` and `"w"`, which says
# what the number is. Result of shape (B, D). At scale 1 it must be `c` bit by
# bit. What you should see below: one line, under two names.
#
# <details><summary>Hint 1: a nudge</summary>
#
# What is $w$ for a model without guidance? What is the scale?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $(1+w)\,c - w\,u = u + (1+w)(c - u)$, so $\text{scale} = 1 + w$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Translate `amount` into a scale first. Then one call of `torch.lerp`, whose
# third argument says how far to go from the first to the second.
#
# </details>

# %% tags=["solution:guide"]
def guide(u, c, amount, convention):
    """The guided prediction, with its strength in either convention."""
    ### BEGIN SOLUTION
    strength = amount if convention == "scale" else 1 + amount
    return torch.lerp(u, c, strength)
    ### END SOLUTION

# %% tags=["check:guide", "points:1"]
check.guide(guide)

# %% [markdown]
# A recipe says "guidance 4" and not which kind. Between the two readings lies
# one whole push:

# %%
u, c = torch.zeros(1, 2), torch.ones(1, 2)
for convention in ("scale", "w"):
    pushes = guide(u, c, 4.0, convention)[0, 0]
    print(f"{convention:5s} 4 goes {pushes:.0f} pushes away from u")

# %% [markdown]
# ## Exercise 2. The overshoot in closed form
#
# *Difficulty 4 of 5 · 45 minutes*
#
# Let the data of a class be $\mathcal N(0, v_c)$ and all data
# $\mathcal N(0, v_u)$ with $v_u > v_c$. On the path $x_t = x_0 + \sigma\varepsilon$
# write $v = \sigma^2$. Both noised densities are Gaussian with variances
# $v_c + v$ and $v_u + v$, and the guided ODE, from $v = \infty$ down to 0, is
#
# $$\frac{dx}{dv} = -\tfrac12\big(\text{scale}\cdot\nabla\log p(x\mid c)
# + (1-\text{scale})\cdot\nabla\log p(x)\big)
# = \frac x2\Big(\frac{\text{scale}}{v_c+v} + \frac{1-\text{scale}}{v_u+v}\Big).$$
#
# It starts with variance $v$ (all of it noise). With which variance does it end?
# And which variance has the tilted density
# $p(x\mid c)^{\text{scale}}\, p(x)^{1-\text{scale}}$? Write
# `two_gaussians(scale, var_c, var_u)`, which returns both variances, the ODE's
# first (2408.09000 has a case of this). All are numbers or tensors of shape ().
# What you should see below: your first number is what a sampler gives, and above
# scale 1 it is the smaller one.
#
# <details><summary>Hint 1: a nudge</summary>
#
# The equation is linear in $x$, so divide by $x$: the left side becomes the
# derivative of $\log x$. A variance is $x^2$ times a constant.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\log\frac{x_0^2}{x_V^2} = -\text{scale}\log\frac{v_c+V}{v_c}
# - (1-\text{scale})\log\frac{v_u+V}{v_u}$. Multiply by the variance $V$ of the
# start, and let $V$ grow: the powers of $V$ cancel.
#
# For the tilted density add the exponents $-x^2/(2v)$ with their weights.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# The first is a product of two powers, one of each variance, whose exponents
# sum to 1. The second is 1 over a weighted sum of two inverse variances.
#
# </details>

# %% tags=["solution:two_gaussians"]
def two_gaussians(scale, var_c, var_u):
    """The variance at the end of the guided ODE, and that of the tilted density."""
    ### BEGIN SOLUTION
    end_of_walk = var_c**scale * var_u ** (1 - scale)
    precision = scale / var_c + (1 - scale) / var_u
    return end_of_walk, 1 / precision
    ### END SOLUTION

# %% tags=["check:two_gaussians", "points:3"]
check.two_gaussians(two_gaussians)

# %% [markdown]
# `Autoguidance` is the same mix of any two denoisers, so it can walk this ODE.
# The variances are 1 and 2.

# %%
ve = schedules.ve(sigma_min=0.005, sigma_max=200.0)
origin = torch.zeros(1, 1, dtype=torch.float64)
narrow = GaussianMixture([1.0], origin, [1.0]).denoiser(ve)
wide = GaussianMixture([1.0], origin, [2**0.5]).denoiser(ve)
times = samplers.time_grid(ve, 200, spacing="log_snr")
start = origin + 200.0  # one standard deviation
for scale in (1.0, 2.0, 4.0):
    guided = guidance.Autoguidance(narrow, wide, scale)
    walked = samplers.heun(guided, start, times).item() ** 2
    ode, tilted = two_gaussians(scale, 1.0, 2.0)
    print(f"scale {scale:g}: walked {walked:.3f}, ODE {ode:.3f}, tilted {tilted:.3f}")

# %% [markdown]
# ## Exercise 3. An interval for each sample
#
# *Difficulty 2 of 5 · 20 minutes*
#
# In a batch with a time for each sample (as in training, or when walks of
# different lengths share a batch) guidance may be on for some samples and off
# for others. Write `interval_guided(u, c, level, scale, low, high)`: `u` and `c`
# of shape (B, D), `level` of shape (B,) with each sample's $\sigma/\alpha$, and
# three numbers. Guide where $\text{low} < \text{level} \le \text{high}$
# (2404.07724); elsewhere the plain conditional prediction stands. Result of
# shape (B, D).
#
# <details><summary>Hint 1: a nudge</summary>
#
# "Plain conditional" is guidance, too, at a certain scale.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $u + s_b\,(c - u)$ with $s_b = \text{scale}$ inside of the interval and
# $s_b = 1$ outside.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Two comparisons joined by `&` give a mask of shape (B,). `torch.where` makes a
# scale of it; `[:, None]` lets it multiply (B, D).
#
# </details>

# %% tags=["solution:interval_guided"]
def interval_guided(u, c, level, scale, low, high):
    """Guidance for the samples whose level lies in the interval."""
    ### BEGIN SOLUTION
    active = (level > low) & (level <= high)
    return torch.where(active[:, None], torch.lerp(u, c, scale), c)
    ### END SOLUTION

# %% tags=["check:interval_guided", "points:2"]
check.interval_guided(interval_guided)

# %%
level = torch.tensor([0.1, 0.3, 0.31, 3.0, 3.1])
u, c = torch.zeros(5, 1), torch.ones(5, 1)
mixed = interval_guided(u, c, level, 5.0, 0.3, 3.0)[:, 0]
print("levels 0.1, 0.3, 0.31, 3, 3.1 have scale", mixed.tolist())

# %% [markdown]
# ## Exercise 4. A classifier that has seen noise
#
# *Difficulty 3 of 5 · 30 minutes*
#
# Classifier guidance needs $p(c\mid x_t)$ at every noise level. Write the loss
# that trains it, `noisy_loss(classifier, x0, label, t, alpha, sigma, eps)`:
# noise the data to each sample's own level,
# $x_t = \alpha\,x_0 + \sigma\,\varepsilon$, show the classifier $x_t$ *and* $t$,
# and return the mean cross-entropy in nats, a tensor of shape () that can be
# differentiated. `classifier(x, t)` answers logits (B, classes); `x0` and `eps`
# have shape (B, D), `label`, `t`, `alpha` and `sigma` shape (B,).
#
# <details><summary>Hint 1: a nudge</summary>
#
# What would the classifier learn if it never saw $x_t$?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $-\frac1B\sum_b \log\operatorname{softmax}(\text{logits}_b)[\text{label}_b]$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Give `alpha` and `sigma` a second axis. `torch.nn.functional.cross_entropy`
# takes logits and integer labels, and does its own log-softmax.
#
# </details>

# %% tags=["solution:noisy_loss"]
def noisy_loss(classifier, x0, label, t, alpha, sigma, eps):
    """Mean cross-entropy of a classifier on data noised to each sample's level."""
    ### BEGIN SOLUTION
    seen = alpha[:, None] * x0 + sigma[:, None] * eps
    return torch.nn.functional.cross_entropy(classifier(seen, t), label)
    ### END SOLUTION

# %% tags=["check:noisy_loss", "points:2"]
check.noisy_loss(noisy_loss)

# %% [markdown]
# Train with it on four spots that form two classes like a chessboard, once with
# noise and once without (alpha 1, sigma 0), and compare with the best possible
# accuracy at $\bar\alpha = 0.3$.

# %%
from diffedu import training

path = schedules.cosine()
corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
chess = GaussianMixture([0.4, 0.1, 0.1, 0.4], corners, [0.3] * 4,
                        torch.tensor([0, 0, 1, 1]))


def trained(noisy):
    torch.manual_seed(0)
    model = nets.MLP(dim=2, width=32, depth=2, outputs=2)

    def loss(step, dice):
        x0, label = chess.sample(256, dice, labelled=True)
        t = path.t_max * torch.rand(256, generator=dice)
        alpha, sigma = path.coefficients(t if noisy else 0 * t)
        return noisy_loss(model, x0, label, t, alpha, sigma, torch.randn(256, 2,
                          generator=dice))
    dice = torch.Generator().manual_seed(0)
    for _ in training.fit(model, loss, lambda step: corners, steps=400, lr=3e-3,
                          ema=None, generator=dice, progress=False):
        pass
    return model

# %%
dice = torch.Generator().manual_seed(1)
x0, label = chess.sample(4000, dice, labelled=True)
t = path.time_of_log_snr(torch.logit(torch.tensor(0.3)))
x_t = path.add_noise(x0, t, torch.randn(4000, 2, generator=dice))
best = guidance.ExactClassifier(chess, path)
models = {"best": best, "aware": trained(True), "clean": trained(False)}
for name, model in models.items():
    right = (model(x_t, t.expand(4000)).argmax(1) == label).double().mean()
    print(f"{name:6s} reads {right:.2f} of the noisy points")

# %% [markdown]
# ## Exercise 5. Fuse the windows
#
# *Difficulty 3 of 5 · 30 minutes*
#
# MultiDiffusion (2302.08113) looks for the strip $z$ that minimises
#
# $$\sum_i \sum_p \text{weight}_p\,
# \big(z_{\text{left}_i + p} - \text{answer}_{i,p}\big)^2 ,$$
#
# where $p$ runs over the columns of a window. Write
# `fuse(answers, lefts, weight)`: `answers` of shape (N, B, H, size), one a
# window; `lefts` a list of N whole numbers, rising from 0 in steps that may
# differ, where each window begins; `weight` of shape (size,), above 0. The
# strip is as wide as the last window's end, and every column lies in some
# window. Result of shape (B, H, width). What you should see below: with a
# weight that is small at the edges of a window the borders become smoother.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Each column of $z$ occurs in squares of its own only. Set the derivative in one
# column to zero.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $z_q = \sum_i \text{weight}_{q-\text{left}_i}\,\text{answer}_{i,q-\text{left}_i}
# \big/ \sum_i \text{weight}_{q-\text{left}_i}$, over the windows that hold $q$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Two tensors of zeros, one for the weighted sum and one of shape (width,) for
# the weights. Loop over `zip(lefts, answers)` and add to a slice of each. Divide
# at the end.
#
# </details>

# %% tags=["solution:fuse"]
def fuse(answers, lefts, weight):
    """The weighted least-squares strip of overlapping windows."""
    ### BEGIN SOLUTION
    size = len(weight)
    width = lefts[-1] + size
    top = answers.new_zeros(*answers.shape[1:3], width)
    bottom = answers.new_zeros(width)
    for left, window in zip(lefts, answers, strict=True):
        top[..., left : left + size] += weight * window
        bottom[left : left + size] += weight
    return top / bottom
    ### END SOLUTION

# %% tags=["check:fuse", "points:2"]
check.fuse(fuse)

# %% [markdown]
# Five windows, each of one grey level. With equal weights the strip is a
# staircase, with a triangle it is a ramp.

# %%
levels = torch.tensor([-0.8, 0.6, -0.2, 0.9, 0.0])
answers = levels[:, None, None, None].expand(5, 1, 4, 8)
lefts = [0, 4, 8, 12, 16]
triangle = torch.tensor([1.0, 3, 5, 7, 7, 5, 3, 1])
fig, ax = plt.subplots(figsize=(6.4, 2.6))
for name, weight in {"equal": torch.ones(8), "triangle": triangle}.items():
    ax.plot(fuse(answers, lefts, weight)[0, 0], "-o", ms=3, label=name)
ax.set(xlabel="column", ylabel="grey level")
ax.set_title("A triangle of weights turns steps into ramps")
ax.legend()
style.show(fig, "Two curves over 24 columns: a staircase for equal weights, and "
           "slopes for triangular ones.")

# %% [markdown]
# ## Exercise 6. Ask for a colour
#
# *Difficulty 4 of 5 · 35 minutes*
#
# Training-free guidance by mean colour (after 2303.09833). The energy of a
# clean image is the squared distance of its mean colour to a target, summed over
# the three channels:
#
# $$E(x_0) = \sum_c \big(\text{mean}(x_{0,c}) - \text{target}_c\big)^2 .$$
#
# Write `colour_push(clean, x_t, target, scale)`, what guidance adds to the
# score: $-\text{scale}\,\nabla_{x_t} E(\hat x_0(x_t))$. `clean` maps (B, 3, H, W)
# to $\hat x_0$ of the same shape, `target` has shape (3,). The push has x_t's
# shape, no sample's push depends on another sample, and it has to work where a
# sampler has turned gradients off.
#
# <details><summary>Hint 1: a nudge</summary>
#
# The energy knows $\hat x_0$ only. Through what does $x_t$ enter?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\nabla_{x_t}E = J^\top\,\nabla_{\hat x_0}E$ with the Jacobian $J$ of $\hat x_0$
# in $x_t$. Automatic differentiation of the *sum* of the batch's energies gives
# each sample its own gradient.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Inside `with torch.enable_grad():` detach `x_t` and let it require gradients,
# call `clean`, take the mean over the last two axes, and the energy. Then
# `torch.autograd.grad(energy.sum(), x_t)[0]`, outside times `-scale`.
#
# </details>

# %% tags=["solution:colour_push"]
def colour_push(clean, x_t, target, scale):
    """What guidance by mean colour adds to the score."""
    ### BEGIN SOLUTION
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        colour = clean(x_t).mean((2, 3))
        energy = (colour - target).square().sum()
        slope = torch.autograd.grad(energy, x_t)[0]
    return -scale * slope
    ### END SOLUTION

# %% tags=["check:colour_push", "points:3"]
check.colour_push(colour_push)

# %% [markdown]
# A world of four-pixel images in one colour each, red, green or blue, and a
# little noise. Nothing was trained and nobody told the model about colours.

# %%
hues = 1.6 * torch.eye(3) - 0.8
flat = GaussianMixture([1.0] * 3, hues.repeat_interleave(4, 1), [0.2] * 3)
know = flat.denoiser(path)
times = samplers.time_grid(path, 40, spacing="log_snr")


def paint(target, scale):
    x = torch.randn(60, 12, generator=torch.Generator().manual_seed(2))
    for t, s in zip(times[:-1], times[1:], strict=True):
        def clean(x_t, t=t):
            return know(x_t.flatten(1), t).x0.reshape(-1, 3, 2, 2)
        seen = know(x, t)
        push = colour_push(clean, x.reshape(-1, 3, 2, 2), target, scale).flatten(1)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = map(path.coefficients, (t, s))
        eps = seen.eps - sigma_t.float() * push
        x0 = (x - sigma_t.float() * eps) / alpha_t.float()
        x = alpha_s.float() * x0 + sigma_s.float() * eps
    return x.reshape(-1, 3, 2, 2)

# %%
asked = torch.tensor([0.8, -0.8, -0.8])  # red
fig, axes = plt.subplots(1, 2, figsize=(8.4, 2.2))
for ax, scale in zip(axes, (0.0, 20.0), strict=True):
    made = paint(asked, scale)
    reds = (made.mean((2, 3)).argmax(1) == 0).double().mean()
    style.images(ax, made, 20, f"Scale {scale:g}: {reds:.0%} red")
style.show(fig, "Sixty small tiles twice: in all three colours without guidance, "
           "nearly all red with it.")
