# %% [markdown]
# # Exercises 6: few steps, distillation and cost
#
# Six exercises on [chapter 6](../notebooks/ch06_few_steps.ipynb). All tensors have
# the batch first. After each check a cell uses your function.

# %%
import torch

from diffedu import GaussianMixture, recipes, samplers, schedules
from diffedu.checks import ch06 as check
from diffedu.worlds import toys

# %% [markdown]
# ## Exercise 1. DDIM from the marginals, in DDPM's letters
#
# *Difficulty 2 of 5 · 25 minutes*
#
# Survey A's posterior (its eq. 5, corrected) belongs to a chain. Let go of the
# chain, keep the marginals $\mathcal N(\sqrt{\bar\alpha}\,x_0, (1-\bar\alpha) I)$,
# and a step from level $\bar\alpha_t$ to the cleaner $\bar\alpha_s$ is
#
# $$x_s = \sqrt{\bar\alpha_s}\,\hat x_0
# + \sqrt{1-\bar\alpha_s-\tau^2}\;\hat\varepsilon + \tau z,\qquad
# \tau^2 = \eta^2\,\frac{1-\bar\alpha_s}{1-\bar\alpha_t}
# \Big(1-\frac{\bar\alpha_t}{\bar\alpha_s}\Big)$$
#
# (2010.02502, eq. 12 and 16). Write `eta_step(x, eps, abar_t, abar_s, eta, z)`:
# `x`, `eps` and `z` of shape (B, D), `abar_t` and `abar_s` of shape (B,), `eta` a
# number from 0 to 1, result of shape (B, D). What you should see below: whatever
# $\eta$, one step takes the marginal at $t$ to the marginal at $s$.
#
# <details><summary>Hint 1: a nudge</summary>
#
# You are not given $\hat x_0$. What does $\hat\varepsilon$ say about it?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\hat x_0 = (x - \sqrt{1-\bar\alpha_t}\,\hat\varepsilon)/\sqrt{\bar\alpha_t}$.
# The variances of the two noises must add up to $1-\bar\alpha_s$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Give both levels an axis with `[:, None]`; compute `x0` and `tau_squared`, then
# return a sum of three terms, two of which have a root.
#
# </details>

# %% tags=["solution:eta_step"]
def eta_step(x, eps, abar_t, abar_s, eta, z):
    """One step of DDIM's family from level abar_t to abar_s."""
    ### BEGIN SOLUTION
    a_t, a_s = abar_t[:, None], abar_s[:, None]
    x0 = (x - (1 - a_t).sqrt() * eps) / a_t.sqrt()
    var = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
    return a_s.sqrt() * x0 + (1 - a_s - var).sqrt() * eps + var.sqrt() * z
    ### END SOLUTION

# %% tags=["check:eta_step", "points:2"]
check.eta_step(eta_step)

# %% [markdown]
# A test without any network: data at one point, so that $\hat\varepsilon$ is the
# true noise. The spread at $s$ must be $\sqrt{1-0.6}$ for each $\eta$.

# %%
generator = torch.Generator().manual_seed(0)
eps, z = torch.randn(2, 50_000, 1, generator=generator)
low, high = torch.full((50_000,), 0.2), torch.full((50_000,), 0.6)
x = 0.2**0.5 * 1.5 + 0.8**0.5 * eps
for eta in (0.0, 0.5, 1.0):
    moved = eta_step(x, eps, low, high, eta, z)
    print(f"eta {eta}: spread {moved.std():.2f}, exact {0.4**0.5:.2f}")

# %% [markdown]
# ## Exercise 2. A step in lambda with a straight line
#
# *Difficulty 3 of 5 · 35 minutes*
#
# With $\lambda=\log(\alpha/\sigma)$ and $h=\lambda_s-\lambda_t$ the ODE is
#
# $$x_s = \frac{\sigma_s}{\sigma_t}x_t
# + \sigma_s\int_{\lambda_t}^{\lambda_s}e^{\lambda}\,\hat x_0(\lambda)\,d\lambda .$$
#
# Suppose that $\hat x_0$ is a straight line, $\hat x_0(\lambda) = m +
# (\lambda-\lambda_t)\,d$, and integrate *exactly*. Write `line_step(x, m, d, at_t,
# at_s)`: `x`, `m`, `d` of shape (B, D), and `at_t`, `at_s` of shape (2,), holding
# $\alpha$ and $\sigma$ at both times. Result of shape (B, D). What you should see
# below: with the last two looks in `m` and `d`, errors fall fourfold when steps
# double.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Put $\ell=\lambda-\lambda_t$ and pull $e^{\lambda_s}=\alpha_s/\sigma_s$ out of
# the integral. What is left under it has $e^{\ell-h}$.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\int_0^h e^{\ell-h}d\ell = 1-e^{-h}$ and, by parts,
# $\int_0^h \ell\,e^{\ell-h}d\ell = h-(1-e^{-h})$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Unpack both pairs, make `h` from two logarithms, `flat = 1 - exp(-h)`, and return
# a scaled `x` plus `alpha_s` times a sum of two terms.
#
# </details>

# %% tags=["solution:line_step"]
def line_step(x, m, d, at_t, at_s):
    """The exact step where x0 is m + (lambda - lambda_t) d."""
    ### BEGIN SOLUTION
    (alpha_t, sigma_t), (alpha_s, sigma_s) = at_t, at_s
    h = (alpha_s / sigma_s).log() - (alpha_t / sigma_t).log()
    flat = 1 - (-h).exp()
    return sigma_s / sigma_t * x + alpha_s * (flat * m + (h - flat) * d)
    ### END SOLUTION

# %% tags=["check:line_step", "points:3"]
check.line_step(line_step)

# %% [markdown]
# Now your step as a solver of order two, on wide spots whose denoiser is exact.

# %%
path = schedules.linear()
spots = GaussianMixture(*toys.eight_gaussians_parameters()[:2], torch.full((8,), 0.5))
oracle = spots.denoiser(path)
noise = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)).double()


def two_looks(steps):
    times = samplers.time_grid(path, steps, "log_snr", end=0.02)
    x, before = noise, None
    for t, s in zip(times[:-1], times[1:], strict=True):
        now, x0 = path.log_snr(t) / 2, oracle(x, t).x0
        d = 0 * x0 if before is None else (x0 - before[1]) / (now - before[0])
        pairs = (torch.stack(path.coefficients(time)) for time in (t, s))
        x, before = line_step(x, x0, d, *pairs), (now, x0)
    return x


fine = two_looks(1024)
errors = [(two_looks(n) - fine).square().mean().sqrt() for n in (32, 64, 128)]
ratios = [a / b for a, b in zip(errors[:-1], errors[1:], strict=True)]
print("ratios:", " ".join(f"{ratio:.1f}" for ratio in ratios))

# %% [markdown]
# ## Exercise 3. Between two codes
#
# *Difficulty 2 of 5 · 25 minutes*
#
# Codes $x_T$ of images are normal noise in $D$ dimensions, whose length is close
# to $\sqrt D$. A straight line between two of them passes through shorter vectors:
# in the middle the length is $\sqrt{D/2}$. The network has never seen such noise.
# The great circle keeps the length:
#
# $$\mathrm{slerp}(a,b;u) = \frac{\sin((1-u)\theta)}{\sin\theta}\,a
# + \frac{\sin(u\theta)}{\sin\theta}\,b,\qquad
# \cos\theta=\frac{a\cdot b}{\|a\|\,\|b\|}$$
#
# (2010.02502, section 5.3). Write `slerp(a, b, u)`: `a` and `b` of shape (B, D),
# `u` a number from 0 to 1, result of shape (B, D), with an angle for each sample.
# What you should see below: halfway codes on the circle give as much variety as
# fresh ones; those on the line give less.
#
# <details><summary>Hint 1: a nudge</summary>
#
# The angle is between the two *directions*. Their lengths must not enter it.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\theta_i=\arccos\big(a_i\cdot b_i/(\|a_i\|\|b_i\|)\big)$, the sum running over
# the last axis.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.cosine_similarity(a, b, dim=1).acos()` has shape (B,); give it an axis.
# Then one line with three sines.
#
# </details>

# %% tags=["solution:slerp"]
def slerp(a, b, u):
    """Along the great circle from a to b."""
    ### BEGIN SOLUTION
    angle = torch.cosine_similarity(a, b, dim=1).acos()[:, None]
    return (((1 - u) * angle).sin() * a + (u * angle).sin() * b) / angle.sin()
    ### END SOLUTION

# %% tags=["check:slerp", "points:1"]
check.slerp(slerp)

# %% [markdown]
# Decoded with 20 steps of DDIM: how much do the images of halfway codes differ from
# each other? (They are not worse as digits. Short codes lie nearer the middle of
# the noise, and lead to more typical images.)

# %%
digits = recipes.load("digits_unet")
times = samplers.time_grid(digits.schedule, 20)
a, b = torch.randn(2, 100, 64, generator=torch.Generator().manual_seed(2))
for name, code in {"start": a, "circle": slerp(a, b, 0.5), "line": (a + b) / 2}.items():
    image = samplers.ddim(digits, code.reshape(-1, 1, 8, 8), times)
    print(f"{name:7s} length of the code {code.norm(dim=1).mean():.1f}, "
          f"spread among the images {image.std(0).mean():.2f}")

# %% [markdown]
# ## Exercise 4. Distil 64 steps into 4
#
# *Difficulty 4 of 5 · 45 minutes*
#
# The teacher has walked from $x_t$ to $x_s$, in two steps or however it liked.
# Which $\tilde x$ would take a student there in *one* step of DDIM? Write
# `student_target(x_t, x_s, at_t, at_s)`: `x_t` and `x_s` of shape (B, D), and
# `at_t`, `at_s` of shape (2, B) with $\alpha$ and $\sigma$ of each sample at both
# times. Result of shape (B, D). At $s=0$, where $\alpha=1$ and $\sigma=0$, it must
# be right too. What you should see below: a student of 4 steps that is closer to
# the board than its teacher with 4.
#
# <details><summary>Hint 1: a nudge</summary>
#
# DDIM keeps $\hat\varepsilon$. Write the student's step with $\tilde x$ as its
# only unknown.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $x_s=\alpha_s\tilde x+\sigma_s\,(x_t-\alpha_t\tilde x)/\sigma_t$. Collect the
# terms with $\tilde x$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Unpack, e.g. `alpha_t, sigma_t = at_t[:, :, None]`. Then a ratio of two sigmas,
# and one fraction.
#
# </details>

# %% tags=["solution:student_target"]
def student_target(x_t, x_s, at_t, at_s):
    """The x0 whose single DDIM step from x_t lands on x_s."""
    ### BEGIN SOLUTION
    alpha_t, sigma_t = at_t[:, :, None]
    alpha_s, sigma_s = at_s[:, :, None]
    ratio = sigma_s / sigma_t
    return (x_s - ratio * x_t) / (alpha_s - ratio * alpha_t)
    ### END SOLUTION

# %% tags=["check:student_target", "points:3"]
check.student_target(student_target)

# %% [markdown]
# Four halvings with your target: 64, 32, 16, 8, 4. The teacher is a small network
# trained for a few seconds.

# %%
from copy import deepcopy

from diffedu import Denoiser, losses, metrics, nets, training

cosine = schedules.cosine()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


board = toys.checkerboard(10_000, seeded(0))


def train(denoise, loss, steps, lr):
    batches = training.batches(board, 256, seeded(1))
    *_, state = training.fit(denoise, loss, batches, steps=steps, lr=lr, ema=0.99,
                             generator=seeded(2))
    return deepcopy(state.ema)

# %%
torch.manual_seed(0)
denoise = Denoiser(nets.MLP(2, width=64, depth=3), cosine, "v")
teacher = train(denoise, lambda x, g: losses.denoising(denoise, x, generator=g), 800,
                2e-3)

# %%
def halve(teacher, times):
    student, N = deepcopy(teacher).requires_grad_(True), (len(times) - 1) // 2

    def loss(x0, generator):
        index = torch.randint(N, (len(x0),), generator=generator)
        t, middle, s = (times[2 * index + k].float() for k in range(3))
        x_t = cosine.add_noise(x0, t, torch.randn(x0.shape, generator=generator))
        with torch.no_grad():
            x_s = samplers.ddim_step(teacher, x_t, t, middle)
            x_s = samplers.ddim_step(teacher, x_s, middle, s)
            levels = (torch.stack(cosine.coefficients(time)) for time in (t, s))
            aim = student_target(x_t, x_s, *levels)
        missed = (student(x_t, t).x0 - aim).square().mean(1)
        return (cosine.snr(t).clamp(min=1) * missed).mean()

    return train(student, loss, 150, 1e-3)

# %%
times, student = samplers.time_grid(cosine, 64), teacher
while len(times) > 5:
    student, times = halve(student, times), times[::2]
x_T = torch.randn(3000, 2, generator=seeded(3))
truth = toys.checkerboard(6000, seeded(4))
for name, model in {"teacher": teacher, "student": student}.items():
    end = samplers.ddim(model, x_T, times)
    far = metrics.sliced_wasserstein(end, truth, 128, seeded(5))
    print(f"{name} with 4 steps: {far:.2f} from the board")

# %% [markdown]
# ## Exercise 5. The boundary of a consistency model
#
# *Difficulty 3 of 5 · 30 minutes*
#
# Build the boundary into the network (2303.01469, appendix C):
#
# $$f(x,\sigma)=c_\mathrm{skip}\,x+c_\mathrm{out}\,F,\quad
# c_\mathrm{skip}=\frac{\sigma_d^2}{(\sigma-\epsilon)^2+\sigma_d^2},\quad
# c_\mathrm{out}=\frac{\sigma_d\,(\sigma-\epsilon)}{\sqrt{\sigma^2+\sigma_d^2}} .$$
#
# Write `consistency_f(x, F, sigma, sigma_data, sigma_min)`: `x` and the network's
# answer `F` of shape (B, D), `sigma` of shape (B,), `sigma_data` ($\sigma_d$) and
# `sigma_min` ($\epsilon$) numbers; result of shape (B, D). What you should see
# below: at $\sigma=\epsilon$ the answer is $x$, whatever $F$ says; EDM's own
# coefficients miss that.
#
# <details><summary>Hint 1: a nudge</summary>
#
# EDM's coefficients give the identity at $\sigma=0$. Where must it be now?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\sigma-\epsilon$ stands in two places, and $\sigma$ alone in one: under the
# root.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `sigma = sigma[:, None]`, then one line for each coefficient, then the sum.
#
# </details>

# %% tags=["solution:consistency_f"]
def consistency_f(x, F, sigma, sigma_data, sigma_min):
    """A consistency model's answer from the free network's answer F."""
    ### BEGIN SOLUTION
    sigma = sigma[:, None]
    above = sigma - sigma_min
    c_skip = sigma_data**2 / (above**2 + sigma_data**2)
    c_out = sigma_data * above / (sigma**2 + sigma_data**2).sqrt()
    return c_skip * x + c_out * F
    ### END SOLUTION

# %% tags=["check:consistency_f", "points:2"]
check.consistency_f(consistency_f)

# %% [markdown]
# How far from the identity at the boundary, for a network that shouts?

# %%
x, F = torch.randn(2, 100, 2, generator=seeded(6))
at_boundary = torch.full((100,), 0.002)
for name, smallest in {"yours": 0.002, "EDM's (identity at 0)": 0.0}.items():
    away = (consistency_f(x, 1000 * F, at_boundary, 0.5, smallest) - x).abs().max()
    print(f"{name}: {away:.1f}")

# %% [markdown]
# ## Exercise 6. The ledger, and an open question
#
# *Difficulty 2 of 5 · 40 minutes*
#
# When has a distillation paid for itself? Count in passes forward of the network
# for one sample; a pass backward counts as two of these. In each of `halvings`
# rounds of progressive distillation, `steps` training steps are taken with
# batches of `batch` samples. For a sample of a batch the teacher takes two passes
# forward, and the student one forward and one backward. Later, a sample costs
# `nfe_after` passes where it used to cost `nfe_before`.
#
# Write `pays_after(halvings, steps, batch, nfe_before, nfe_after)`, all whole
# numbers: how many samples must be drawn until what was saved equals what was
# spent? Return that number unrounded, as a float or a tensor. What you should see
# below: the larger run costs 111 times as much as the toy, but pays back after
# only 7 times as many samples.
#
# <details><summary>Hint 1: a nudge</summary>
#
# What is spent does not depend on how many samples are drawn; what is saved is
# proportional to it.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# spent $=$ halvings $\cdot$ steps $\cdot$ batch $\cdot\,(2+1+2)$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# One product, divided by one difference. No other numbers are needed.
#
# </details>

# %% tags=["solution:pays_after"]
def pays_after(halvings, steps, batch, nfe_before, nfe_after):
    """How many samples pay back a progressive distillation."""
    ### BEGIN SOLUTION
    spent = halvings * steps * batch * (2 + 1 + 2)
    return spent / (nfe_before - nfe_after)
    ### END SOLUTION

# %% tags=["check:pays_after", "points:1"]
check.pays_after(pays_after)

# %% [markdown]
# The chapter's toy, and a run with 50,000 steps a halving and batches of 128 (our
# own round numbers), from 1,024 steps to 4.

# %%
print(f"toy: {pays_after(6, 300, 256, 64, 1):,.0f} samples")
print(f"larger: {pays_after(8, 50_000, 128, 1024, 4):,.0f} samples")

# %% [markdown]
# Now the open question (survey A, 4.1), graded by hand. Chapter 10 will show that
# the hidden states of a denoiser know a good deal about what is in an image. Do
# they survive distillation? Write in about ten sentences: what do you expect for a
# one-step student's features, at which noise level would you read them, and why?
# Which experiment would convince a doubter, and with which two controls?

# %% [markdown] tags=["answer:open_question", "points:2"]
# There is no settled answer; a good one argues from what the student was asked
# to do. A teacher's features at a middle noise level describe what can be
# concluded from a noisy image. A one-step student is only ever called on pure
# noise, so nothing trains its features at other levels, and one should expect
# them to drift there, though it began as a copy; short training on small
# differences may leave them nearly as they were. A student of several steps is
# still called at several levels and should keep more. At its own level the
# student's features may even be richer than the teacher's, since it must decide
# on an image where the teacher only says the mean.
#
# An experiment: linear probes with labels, one at each noise level and block, on
# the teacher and on students of 16, 4 and 1 steps, three seeds. Controls: an
# untrained network of the same shape, and labels that are shuffled; and, so that
# distillation itself is tested, a copy of the teacher trained on with the
# ordinary loss for as many steps.
