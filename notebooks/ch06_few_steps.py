# %% [markdown]
# # 6. Few steps: fast samplers, distillation and cost
#
# A diffusion model calls its network once for every step of a walk, and the
# first ones took a thousand. This chapter gets down to ten, and then to one.
# After it you will be able to
#
# - derive DDIM, DPM-Solver and its multistep forms from one integral, and say
#   which order each has and where it is of no use;
# - distil a model of 64 steps into one of a single step, by halving, and train
#   a consistency model, with a teacher or without;
# - count what a sample costs, and when a distillation has paid for itself.
#
# | | |
# |---|---|
# | surveys | A 2.1, eq. 5, 6, 8; A 4.1; B II |
# | needs | ch01, ch02, ch03, ch04, ch05 |
# | study | 7 hours |
# | figures | F18, F19, F20, F21, F100 |
# | receipt | 1.6 minutes on one CPU thread, 587 MB |

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import GaussianMixture, samplers, schedules, style
from diffedu.claims import claim, report

# %% [markdown]
# ## 6.1 The family that DDIM belongs to
#
# Chapter 2's ancestral step draws $x_s$ from $q(x_s\mid x_t, x_0)$, with the
# network's $\hat x_0$ in the place of $x_0$ (A, eq. 5 and 6). That distribution
# came from a Markov chain. But the network was trained on the *marginals*
# $q(x_t\mid x_0)$ alone, and the loss knows nothing of a chain. So any step will
# do that takes one marginal to the next. For every $\tau\le\sigma_s$
#
# $$x_s = \alpha_s\, x_0 + \sqrt{\sigma_s^2-\tau^2}\;\varepsilon + \tau z$$
#
# has mean $\alpha_s x_0$ and variance $\sigma_s^2$, if $\varepsilon$ is the noise
# in $x_t$ and $z$ is fresh: two independent normal terms, whose variances add up
# (2010.02502, eq. 12). It is usual to set $\tau$ by a number $\eta$ from 0 to 1,
#
# $$\tau=\eta\,\sigma_s\sqrt{1-\mathrm{snr}_t/\mathrm{snr}_s},\qquad
# \mathrm{snr}=\alpha^2/\sigma^2 .$$
#
# $\eta=1$ is DDPM's own step. For $\eta=0$ nothing is drawn at all. That one is
# called **DDIM**.

# %%
style.use()
path = schedules.linear()

# %%
def ddim_by_hand(denoise, x, t, s, eta, z):
    (alpha, sigma), (alpha_s, sigma_s) = path.coefficients(t), path.coefficients(s)
    seen = denoise(x, t)
    ratio = alpha * sigma_s / (alpha_s * sigma)  # the root of snr_t / snr_s
    tau = eta * sigma_s * (1 - ratio**2).sqrt()
    kept = (sigma_s**2 - tau**2).sqrt()
    return alpha_s * seen.x0 + kept * seen.eps + tau * z

# %% [markdown]
# Our oracle is a ring of eight spots, whose best denoiser is known in closed
# form. The library's step is the same.

# %%
from torch.testing import assert_close

from diffedu import cost, distillation, losses, metrics, nets, recipes, training
from diffedu.worlds import toys

world = GaussianMixture(*toys.eight_gaussians_parameters())
oracle = world.denoiser(path)


def seeded(seed):
    return torch.Generator().manual_seed(seed)

# %%
x, z = torch.randn(2, 100, 2, generator=seeded(0), dtype=torch.float64)
for eta in (0.0, 0.5, 1.0):
    ours = ddim_by_hand(oracle, x, 0.8, 0.6, eta, z)
    assert_close(ours, samplers.ddim_step(oracle, x, 0.8, 0.6, eta=eta, noise=z))

# %% [markdown]
# ### The noise becomes a code
#
# Without fresh noise the end is a function of the start, and $x_T$ is a code of
# the image. If the walk follows an ODE, that code should mean the same whether
# we take 20 steps or 100. The digits' network of chapter 2 was trained
# beforehand; `recipes.card("digits_unet")` says how.
#
# How alike are two images? All digits share a dark border and a bright middle,
# which alone correlates any two of them. So the mean digit is subtracted first,
# and both numbers are shown.

# %%
digits = recipes.load("digits_unet")
noise = digits.schedule.prior_sample((64, 1, 8, 8), digits.schedule.t_max, seeded(0))


def walk_digits(steps):
    return samplers.ddim(digits, noise, samplers.time_grid(digits.schedule, steps))


walked = {steps: walk_digits(steps) for steps in (5, 10, 20, 50, 100)}

# %%
def correlation(a, b, centre=0.0):
    """The mean correlation of image with image, over their pixels."""
    a, b = ((images - centre).flatten(1) for images in (a, b))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return torch.cosine_similarity(a, b).mean().item()


mean_digit = walked[100].mean(0)
same = {n: correlation(walked[n], walked[100], mean_digit) for n in walked}
others = walked[100].roll(1, 0)
different = correlation(walked[20], others, mean_digit)
different_raw = correlation(walked[20], others)

# %% [markdown]
# The second question is quality. A network of two dimensions will be the
# chapter's teacher: the checkerboard, $v$-prediction, 2,000 steps of training.

# %%
cosine = schedules.cosine()
squares = toys.checkerboard(20_000, seeded(100))


def batches(seed):
    return training.batches(squares, 256, seeded(seed))

# %%
from diffedu import Denoiser

torch.manual_seed(0)
teacher = Denoiser(nets.MLP(2, width=96, depth=3), cosine, "v")



def loss_fn(x0, g):
    return losses.denoising(teacher, x0, generator=g)


recipe = {"lr": 2e-3, "ema": 0.995}
*_, state = training.fit(
    teacher, loss_fn, batches(10), steps=2000, generator=seeded(20), **recipe)
teacher = state.ema

# %% [markdown]
# Quality is the sliced Wasserstein distance of 4,000 samples to 8,000 points of
# the board. All walks start from the same noise `x_T`. Two sets of true points
# are 0.01 apart in this measure; no sampler can be told from the truth below
# that.

# %%
board = toys.checkerboard(8000, seeded(200))
directions = torch.randn(128, 2, generator=seeded(5))
x_T = torch.randn(4000, 2, generator=seeded(7))


def apart(points):
    return metrics.sliced_wasserstein(points, board, directions).item()

# %%
def walk_board(denoise, steps, eta=0.0):
    times = samplers.time_grid(cosine, steps)
    return apart(samplers.ddim(denoise, x_T, times, eta=eta, generator=seeded(3)))


counts = [1, 2, 3, 4, 5, 8, 16, 32, 64]
by_eta = {eta: [walk_board(teacher, n, eta) for n in counts] for eta in (0.0, 1.0)}
floor = apart(toys.checkerboard(4000, seeded(201)))

# %% tags=["F18"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), width_ratios=[1.1, 1])
rows = torch.cat([walked[n][:10] for n in (5, 10, 20, 100)])
style.images(left, rows, 10, "One noise, one digit: 5, 10, 20, 100 steps")
for eta, name in ((0.0, "ddim"), (1.0, "ancestral")):
    right.loglog(counts, by_eta[eta], "o-", color=style.colour(name),
                 label=rf"$\eta$ = {eta:.0f}")
right.axhline(floor, color=style.colour("truth"), ls=":", lw=1)
right.set(xlabel="evaluations", ylabel="distance to the board")
right.set_title(r"3 to 8 steps: $\eta=0$ is closer")
right.legend()
style.show(fig, "Left, four rows of ten digits that hardly differ from row to row. "
           "Right, distance over steps for eta 0 and 1: from 3 to 32 steps eta 0 lies "
           "below, at 64 the two meet.")
few = [i for i, n in enumerate(counts) if n in (3, 4, 5)]
claim("F18", "20 and 100 steps agree on the image; at 3 to 5 steps eta 0 beats eta 1",
      same[20] > 0.9 and different < 0.3
      and all(by_eta[0.0][i] < by_eta[1.0][i] for i in few),
      same=same[20], control_other_noise=different, other_noise_raw=different_raw,
      eta_0=[by_eta[0.0][i] for i in few], eta_1=[by_eta[1.0][i] for i in few])

# %% [markdown]
# The order held on each of three trainings. It is no law: with one step the two are
# the same (the last step never adds noise), with two $\eta=1$ was a little closer,
# and with many steps $\eta=1$ may win, because fresh noise washes out earlier mistakes
# (chapter 5's churn).
#
# ## 6.2 One integral
#
# Which steps are possible at $\eta=0$? Chapter 4's ODE is
# $\dot x = \dot\alpha\,\hat x_0 + \dot\sigma\,\hat\varepsilon$. Put
# $\hat\varepsilon = (x-\alpha \hat x_0)/\sigma$ into it, divide by $\sigma$, and
# take the term with $x$ to the left:
#
# $$\frac{d}{dt}\frac{x}{\sigma} = \frac{\dot x}{\sigma}
# - \frac{\dot\sigma}{\sigma^2}\,x
# = \Big(\frac{\dot\alpha}{\sigma} - \frac{\alpha\dot\sigma}{\sigma^2}\Big)\hat x_0
# = \hat x_0\;\frac{d}{dt}\frac{\alpha}{\sigma} .$$
#
# So $x/\sigma$ moves only as $\alpha/\sigma = e^{\lambda}$ does, where
# $\lambda=\log(\alpha/\sigma)$ is half the log-SNR. Integrate from $t$ to $s$:
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\,x_t
# + \sigma_s\int_{\lambda_t}^{\lambda_s} e^{\lambda}\,\hat x_0(\lambda)\,d\lambda .$$
#
# This is exact, on any path (2211.01095, proposition 4.1). Everything that is
# known about the path has been integrated; what is left to approximate is the
# network along the way. Solvers built like this are **exponential integrators**.
# Take $\hat x_0$ as constant, and the integral is
# $\hat x_0\,(e^{\lambda_s}-e^{\lambda_t})$: one line, and it is DDIM.

# %%
def constant_x0(denoise, x, t, s):
    (alpha, sigma), (alpha_s, sigma_s) = path.coefficients(t), path.coefficients(s)
    moved = alpha_s / sigma_s - alpha / sigma
    return sigma_s * (x / sigma + moved * denoise(x, t).x0)


assert_close(constant_x0(oracle, x, 0.8, 0.6), samplers.ddim_step(oracle, x, 0.8, 0.6))

# %% [markdown]
# The same with the roles of signal and noise exchanged is
# $d(x/\alpha) = \hat\varepsilon\;d(\sigma/\alpha)$, and for constant
# $\hat\varepsilon$ it is DDIM once more. **DPM-Solver-2** (2206.00927,
# algorithm 1) starts there and does what the midpoint rule does: half a step in
# $\lambda$ to ask for $\hat\varepsilon$ in the middle, then the whole step with
# the answer. Two evaluations a step, order two.

# %%
def constant_eps(x, eps, t, s):
    (alpha, sigma), (alpha_s, sigma_s) = path.coefficients(t), path.coefficients(s)
    return alpha_s * (x / alpha + (sigma_s / alpha_s - sigma / alpha) * eps)


def dpm_solver_2_step(denoise, x, t, s):
    middle = path.time_of_log_snr((path.log_snr(t) + path.log_snr(s)) / 2)
    halfway = constant_eps(x, denoise(x, t).eps, t, middle)
    return constant_eps(x, denoise(halfway, middle).eps, t, s)

# %%
pair = torch.tensor([0.8, 0.6]).double()
ours = dpm_solver_2_step(oracle, x, 0.8, 0.6)
assert_close(ours, samplers.dpm_solver_2(oracle, x, pair))

# %% [markdown]
# ## 6.3 Looks that were paid for already
#
# The second evaluation can be saved. Earlier steps have asked the network
# already; a polynomial through those answers says how $\hat x_0$ bends. Write
# $\hat x_0(\lambda)$ as its Taylor series at $\lambda_t$. With
# $h=\lambda_s-\lambda_t$ and $\ell=\lambda-\lambda_t$, each derivative in $\lambda$
# has a weight that is known in closed form:
#
# $$\frac{x_s}{\alpha_s} = \frac{\sigma_s}{\alpha_s\sigma_t}\,x_t
# + \sum_{n} \hat x_0^{(n)}\,\phi_n,\qquad
# \phi_n=\int_0^h e^{\ell-h}\,\frac{\ell^n}{n!}\,d\ell,$$
#
# $\phi_0=1-e^{-h}$, and by parts $\phi_{n}=h^n/n!-\phi_{n-1}$. Call one evaluation
# a look. One look gives DDIM, two give **DPM-Solver++(2M)** (2211.01095,
# algorithm 2), three a method of third order. The derivatives come from Newton's
# divided differences. With $f=\hat x_0$ at the last three values $a>b>c$ of
# $\lambda$, whose gaps need not be equal,
#
# $$f[a,b]=\frac{f_a-f_b}{a-b},\qquad f[a,b,c]=\frac{f[a,b]-f[b,c]}{a-c},$$
#
# and at $a$ the slope is $f[a,b]+(a-b)f[a,b,c]$, the second derivative
# $2f[a,b,c]$.

# %%
def slope_and_bend(looks, twice=2.0):
    """First and second derivative at the last of (lambda, x0) pairs."""
    (a, fa), *rest = looks[::-1]
    if not rest:
        return []
    b, fb = rest[0]
    first = (fa - fb) / (a - b)
    if len(rest) == 1:
        return [first]
    c, fc = rest[1]
    second = (first - (fb - fc) / (b - c)) / (a - c)
    return [first + (a - b) * second, twice * second]

# %%
def multistep(denoise, x, times, order, twice=2.0):
    looks = []
    for t, s in zip(times[:-1], times[1:], strict=True):
        (_, sigma), (alpha_s, sigma_s) = path.coefficients(t), path.coefficients(s)
        now, then = path.log_snr(t) / 2, path.log_snr(s) / 2
        looks = [*looks, (now, denoise(x, t).x0)][-order:]
        h, power = then - now, 1.0
        phi = 1 - (-h).exp()
        moved = phi * looks[-1][1]
        for n, derivative in enumerate(slope_and_bend(looks, twice), 1):
            power = power * h / n
            phi = power - phi
            moved = moved + phi * derivative
        x = sigma_s / sigma * x + alpha_s * moved
    return x

# %%
times = samplers.time_grid(path, 12, "log_snr", start=1.0, end=1e-3)
x = torch.randn(200, 2, generator=seeded(1), dtype=torch.float64)
assert_close(multistep(oracle, x, times, 1), samplers.ddim(oracle, x, times))
third = samplers.dpm_solver_pp_3m(oracle, x, times)
assert_close(multistep(oracle, x, times, 3), third)

# %% [markdown]
# The library's 2M has one small freedom that is worth knowing. It also carries
# $\hat x_0$ on in a straight line, but evaluates it in the *middle* of the step
# and takes that as constant: a weight of $\frac h2\phi_0$ for the slope, where we
# have $\phi_1$. The two differ by a term of third order in $h$ and have the same
# order.
#
# **A trap in released code.** The multistep solver of order 3 that comes with the
# paper's code, and with a widely used library, gives the second derivative the
# weight of $f[a,b,c]$ instead of $2f[a,b,c]$. A factor of two in the last term:
# is it third order then? We measure it. On a ring of wide spots, from log-SNR
# spacing that ends at $t=0.02$, the error against a very fine walk should fall
# with slope $-3$ in a log-log plot.

# %%
wide = GaussianMixture(world.weights, world.means, torch.full((8,), 0.5).double())
smooth = wide.denoiser(path)
x_wide = wide.at(path, path.t_max).sample(16, seeded(4))


def grid(steps):
    return samplers.time_grid(path, steps, "log_snr", end=0.02)


exact = samplers.dpm_solver_pp_3m(smooth, x_wide, grid(2048))

# %%
methods = {
    "ddim": samplers.ddim,
    "dpm_solver_2": samplers.dpm_solver_2,
    "dpm_solver_pp_2m": samplers.dpm_solver_pp_2m,
    "dpm_solver_pp_3m": samplers.dpm_solver_pp_3m,
    "3m as released": lambda d, x, t: multistep(d, x, t, 3, twice=1.0),
}
many = torch.tensor([32, 64, 128, 256])

# %%
def rms(a, b):
    return (a - b).square().mean().sqrt().item()


def slope(errors):
    """Of log error over log N, by least squares."""
    u, v = many.double().log(), torch.tensor(errors).double().log()
    return ((u - u.mean()) @ (v - v.mean()) / (u - u.mean()).square().sum()).item()


errors = {name: [rms(f(smooth, x_wide, grid(n)), exact) for n in many.tolist()]
          for name, f in methods.items()}
slopes = {name: slope(e) for name, e in errors.items()}

# %%
fig, ax = plt.subplots(figsize=(6.6, 3.6))
for name, e in errors.items():
    released = name == "3m as released"
    colour = style.colour("dpm_solver_pp_3m" if released else name)
    ax.loglog(many, e, "x--" if released else "o-", color=colour,
              label=f"{name}: {slopes[name]:.2f}")
ax.set(xlabel="steps $N$", ylabel="error to the exact walk", xticks=many.tolist(),
       xticklabels=many.tolist())
ax.minorticks_off()
ax.legend(title="slope", loc="center left", bbox_to_anchor=(1, 0.5))
ax.set_title("Order 3 needs the whole bend")
style.show(fig, "Error over steps for five solvers: DDIM falls with slope -1, "
           "DPM-Solver-2 and 2M with -2 on one line, 3M with -3, and 3M as released "
           "with -2.")
claim("ch06", "the three-look solver is third order; with half its bend it is second",
      abs(slopes["dpm_solver_pp_3m"] + 3) < 0.3
      and abs(slopes["3m as released"] + 2) < 0.2,
      third=slopes["dpm_solver_pp_3m"], control_released=slopes["3m as released"],
      two_looks=slopes["dpm_solver_pp_2m"], ddim=slopes["ddim"])

# %% [markdown]
# It is second order, though with a smaller constant than 2M's, so that in pictures
# one would hardly notice. An order is measured, not read off a name. (On the
# library's seven paths our slopes are $-2.78$ to $-3.03$.)
#
# ### Does it matter at ten evaluations?
#
# An order describes what happens for small steps. The steps in use are large.
# F19 compares errors at equal *evaluations*, on the paper's interval from $t=1$
# to $t=10^{-3}$ with equal steps in $\lambda$; DPM-Solver-2 and Heun then take
# half as many steps. Beside it stands the digits' network, on uniform times down
# to 0; there the reference is a walk of 100 steps.

# %%
start = torch.randn(300, 2, generator=seeded(2), dtype=torch.float64)
ode = ["ddim", "heun", "dpm_solver_2", "dpm_solver_pp_2m", "dpm_solver_pp_3m"]


def paper_grid(steps):
    return samplers.time_grid(path, steps, "log_snr", start=1.0, end=1e-3)


reference = samplers.dpm_solver_pp_3m(oracle, start, paper_grid(600))

# %%
def error_on_oracle(name, nfe):
    steps = nfe // cost.LOOKS_A_STEP.get(name, 1)
    walk = samplers.SAMPLERS[name]
    return rms(walk(oracle, start, paper_grid(steps)), reference)


budgets = [6, 8, 10, 14, 20, 30, 50]
on_oracle = {name: [error_on_oracle(name, n) for n in budgets] for name in ode}

# %% [markdown]
# For the digits, `cost.scoreboard` does the same and counts: each sampler at each
# budget, from the same noise, with the evaluations that it really took.

# %%
few_digits = noise[:32]
fine = samplers.dpm_solver_pp_3m(
    digits, few_digits, samplers.time_grid(digits.schedule, 100))
on_digits = cost.scoreboard(
    {name: samplers.SAMPLERS[name] for name in ode}, digits, few_digits,
    [5, 7, 10, 15, 21], lambda end: rms(end, fine), spacing="uniform")

# %%
def draw_entries(ax, entries, dashed=()):
    for name in dict.fromkeys(e.name for e in entries):
        mine = [e for e in entries if e.name == name]
        mark = "s--" if name in dashed else "o-"
        ax.loglog([e.nfe for e in mine], [e.error for e in mine], mark, ms=4,
                  color=style.colour(name), label=name)


def mark_counts(ax, counts):
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)

# %% tags=["F19"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7))
for name in ode:
    left.loglog(budgets, on_oracle[name], "o-", ms=4, color=style.colour(name))
draw_entries(right, on_digits)
left.set(xlabel="evaluations", ylabel="RMS error")
left.set_title("Exact score: two looks pay late")
right.set(xlabel="evaluations", title="Digits' net: memory pays at once")
mark_counts(left, [6, 10, 20, 50])
mark_counts(right, [5, 10, 20])
right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
style.show(fig, "Error over evaluations. On the exact score DPM-Solver-2 and Heun "
           "start far above DDIM. Heun meets it at 10, DPM-Solver-2 crosses it between "
           "14 and 20; the multistep solvers lie below it from 8 on. On the digits the "
           "multistep solvers lie lowest.")
at = {n: {name: on_oracle[name][budgets.index(n)] for name in ode} for n in (10, 20)}
claim("F19", "++2M beats DDIM at 10 evaluations; DPM-Solver-2 does at 20, not at 10",
      at[10]["dpm_solver_pp_2m"] < at[10]["ddim"]
      and at[20]["dpm_solver_2"] < at[20]["ddim"] < at[10]["dpm_solver_2"],
      ddim_10=at[10]["ddim"], pp_2m_10=at[10]["dpm_solver_pp_2m"],
      dpm_2_10=at[10]["dpm_solver_2"], ddim_20=at[20]["ddim"],
      dpm_2_20=at[20]["dpm_solver_2"], pp_3m_20=at[20]["dpm_solver_pp_3m"])

# %% [markdown]
# On twelve seeds each of these inequalities held, and no number was more than an
# eighth away from the one above. Two things to keep:
#
# - **The interval is part of the method.** Walked down to log-SNR $13$ and then to
#   0, as our `log_snr` grid does by default, DPM-Solver-2 still loses at 20
#   evaluations and passes DDIM before 30: steps in $\lambda$ are then longer, and
#   more of them lie where nothing happens.
# - **High order can hurt at few steps.** With six evaluations a parabola through
#   three far-off looks is a wild guess. On the exact score the third-order solver
#   is then worse than DDIM.
#
# A network adds an error of its own, on which no solver has any influence. On the
# digits all of these solvers approach the same 100-step images, good or bad.
#
# ## 6.4 Progressive distillation
#
# No solver reaches one step: a single step from pure noise lands on
# $\hat x_0 = \mathbb E[x_0\mid x_T]$, the mean of all data. The mean is right, as
# a denoiser's answer. To do better in one step the *network* must answer
# something else. **Progressive distillation** (2202.00512) teaches it, two steps
# at a time.
#
# The teacher walks from $t$ over a middle time to $s$, by two steps of DDIM. The
# student shall get there in one. A DDIM step of a student that says $\tilde x$ is
#
# $$x_s = \alpha_s\tilde x + \frac{\sigma_s}{\sigma_t}\,(x_t-\alpha_t\tilde x),
# \qquad\text{so}\qquad \tilde x = \frac{x_s
# - (\sigma_s/\sigma_t)\,x_t}{\alpha_s-(\sigma_s/\sigma_t)\,\alpha_t}$$
#
# is what it should say (algorithm 2). That is a regression on a target without
# noise: where many data were possible, the teacher's two steps have chosen.

# %%
def target_by_hand(denoise, x_t, t, middle, s):
    landed = samplers.ddim_step(denoise, x_t, t, middle)
    landed = samplers.ddim_step(denoise, landed, middle, s)
    (alpha, sigma), (alpha_s, sigma_s) = path.coefficients(t), path.coefficients(s)
    ratio = sigma_s / sigma
    return (landed - ratio * x_t) / (alpha_s - ratio * alpha)


mine = target_by_hand(oracle, x, 0.8, 0.7, 0.6)
assert_close(mine, distillation.two_step_target(oracle, x, 0.8, 0.7, 0.6))

# %% [markdown]
# Does one DDIM step with this target land there? And is it something new? On the
# oracle both can be measured: the target differs from the teacher's $\hat x_0$.

# %%
# NBVAL_CHECK_OUTPUT
t, s = torch.tensor([0.8, 0.6]).double()
landed = samplers.ddim(oracle, x, torch.tensor([0.8, 0.7, 0.6]).double())
alpha, sigma = path.coefficients(t)
alpha_s, sigma_s = path.coefficients(s)
jump = alpha_s * mine + sigma_s / sigma * (x - alpha * mine)
print(f"lands where the teacher's two steps do: {rms(jump, landed) < 1e-6}")
print(f"target and teacher's x0 differ by {rms(mine, oracle(x, t).x0):.2f}")

# %% [markdown]
# Three choices make it work, all from the paper. The student starts with its
# teacher's weights. The loss is on $\tilde x$ with weight $\max(\mathrm{snr}_t,
# 1)$, since at few steps most of the walk is at small SNR, where the weight of
# the $\varepsilon$-loss would vanish. And the network predicts $v$: near pure
# noise $\hat x_0$ cannot be read from $\hat\varepsilon$, and the one-step student
# has only that.
#
# The loss for one batch, by hand. Student times are every second one of the
# teacher's.

# %%
teacher_times = samplers.time_grid(cosine, 64)
x0, eps = squares[:256], torch.randn(256, 2, generator=seeded(8))
index = torch.randint(32, (256,), generator=seeded(9))

# %%
t, middle, s = (teacher_times[2 * index + k].float() for k in range(3))
x_t = cosine.add_noise(x0, t, eps)
wanted = distillation.two_step_target(teacher, x_t, t, middle, s)
missed = (teacher(x_t, t).x0 - wanted).square().mean(1)
by_hand = (cosine.snr(t).clamp(min=1) * missed).mean()
theirs = distillation.progressive_loss(
    teacher, teacher, x0, teacher_times, index=index, noise=eps)
assert_close(by_hand, theirs)

# %% [markdown]
# Then halve: 64 to 32, to 16, and so on to 1, with 300 training steps each.
# `progressive` yields a `Stage` after every halving; its `student` is a
# `Denoiser` like any other.

# %%
stages = list(distillation.progressive(
    teacher, batches(30), teacher_times, train_steps=300, lr=1e-3,
    generator=seeded(40)))
students = {stage.steps: stage.student for stage in stages}

# %%
ends = {stage.steps: samplers.ddim(stage.student, x_T, stage.times) for stage in stages}
halved = {n: apart(end) for n, end in ends.items()}
undistilled = {n: by_eta[0.0][counts.index(n)] for n in (1, 2, 4, 8, 16, 32, 64)}

# %% tags=["F20"]
fig, axes = plt.subplots(1, 3, figsize=(10, 3.5), width_ratios=[1, 1, 1.3])
once = samplers.ddim(teacher, x_T, samplers.time_grid(cosine, 1))
style.scatter(axes[0], once[:2000], "ddim", 3, 1.3, "Teacher, 1 step")
style.scatter(axes[1], ends[1][:2000], "progressive", 3, 1.3, "Student, 1 step")
axes[2].loglog(undistilled.keys(), undistilled.values(), "o-",
               color=style.colour("ddim"), label="teacher (DDIM)")
axes[2].loglog(halved.keys(), halved.values(), "s-",
               color=style.colour("progressive"), label="students")
axes[2].axhline(floor, color=style.colour("truth"), ls=":", lw=1)
axes[2].set(xlabel="steps", ylabel="distance to the board")
axes[2].set_title("Students stay near the 64 steps")
mark_counts(axes[2], [1, 4, 16, 64])
axes[2].legend()
style.show(fig, "One teacher step gives a blob in the middle, one student step the "
           "outline of the board with blurred squares. Distance over steps: the "
           "teacher's rises steeply towards one step, the students' only a little.")
claim("F20", "with k steps the student beats its teacher with k steps, k = 1, 2, 4, 8",
      all(halved[k] < undistilled[k] for k in (1, 2, 4, 8)),
      student=[halved[k] for k in (1, 2, 4, 8)], teacher_64=undistilled[64],
      control_teacher=[undistilled[k] for k in (1, 2, 4, 8)])

# %% [markdown]
# On three trainings of teacher and students (seeds 0 to 2) all four inequalities
# held: with one step the students were 0.039 to 0.040 from the board, their
# teachers 0.54 to 0.56. Look at the middle panel, though: the points have the
# outline of the board and hardly its squares. Sliced distances see edges poorly,
# so a small number is not yet a good picture.
#
# A student has no reason to be better than its teacher with 64 steps: the steps
# of the teacher are its only targets. And each student belongs to *its* times.
# The gallery shows what happens on others.
#
# ## 6.5 Consistency models
#
# Every point $x_t$ of an ODE's way leads to one end. Call it $f(x_t, t)$. If we
# had $f$, one evaluation would do. Two facts define it (2303.01469):
#
# - **self-consistency**: two points of one way have one end,
#   $f(x_t,t)=f(x_s,s)$;
# - **the boundary**: at the smallest noise $f$ is the identity.
#
# The first alone is worth nothing, since a constant has it. The second is built
# into the network, so that it can't be violated. In this section $x$ and $\sigma$
# are $x_t$ and $\sigma_t$ divided by $\alpha_t$, as in EDM, $\sigma_d$ is the
# data's standard deviation, $\epsilon=0.002$ the smallest noise, and $F$ a free
# network:
#
# $$f = c_\mathrm{skip}\,x + c_\mathrm{out}\,F,\qquad
# c_\mathrm{skip}=\frac{\sigma_d^2}{(\sigma-\epsilon)^2+\sigma_d^2},\qquad
# c_\mathrm{out}=\frac{\sigma_d(\sigma-\epsilon)}{\sqrt{\sigma^2+\sigma_d^2}} .$$
#
# As with EDM, $F$ sees $x/\sqrt{\sigma^2+\sigma_d^2}$, which has size one, and
# the noise level as $\frac14\log\sigma$. The factor 0.02 before it makes $F$
# smooth in the level: neighbours must agree. The board's $\sigma_d$ is 0.58.

# %%
def consistency_by_hand(net, x, level, sigma_data=0.58, sigma_min=0.002):
    above = level - sigma_min
    spread = (level**2 + sigma_data**2).sqrt()
    c_skip = sigma_data**2 / (above**2 + sigma_data**2)
    c_out = sigma_data * above / spread
    told = (0.02 * level.log() / 4).expand(len(x))
    return c_skip * x + c_out * net(x / spread, told)

# %%
def new_model(seed):
    torch.manual_seed(seed)
    net = nets.MLP(2, width=96, depth=3)
    return distillation.ConsistencyModel(net, cosine, sigma_data=0.58)


def time_of(level):
    return cosine.time_of_log_snr(torch.as_tensor(level).double().log() * -2)

# %% [markdown]
# The library's model lives on any path: it divides $x_t$ by $\alpha_t$ first. At
# $\sigma=\epsilon$ it returns its input, whatever the weights.

# %%
model = new_model(0)
for level in (0.5, 0.002):
    alpha = cosine.alpha(time_of(level)).float()
    ours = consistency_by_hand(model.net, x_T, torch.tensor(level))
    assert_close(ours, model(alpha * x_T, time_of(level)).x0, rtol=1e-4, atol=1e-5)
assert_close(ours, x_T)

# %% [markdown]
# Training needs pairs of neighbours on one way. Draw data and noise, make
# $x = x_0+\sigma_{n+1}\varepsilon$, and find the lower neighbour
#
# - by one step of a solver on a *teacher's* ODE: **consistency distillation**, or
# - as $x_0+\sigma_n\varepsilon$, same data, same noise: **consistency training**.
#   No teacher: averaged over all $(x_0,\varepsilon)$ that make this $x$, the
#   direction $\varepsilon$ is the ODE's own (Tweedie again), so that as the
#   levels come close both have the same gradient (2303.01469, theorem 2).
#
# The lower point's end is the target, without gradient. Which recipe? We take the
# settings of the improved one (2310.14189) where they matter here: no average of
# weights in the target, the pseudo-Huber distance
# $\sqrt{\|a-b\|^2+c^2}-c$, the weight $1/(\sigma_{n+1}-\sigma_n)$, noise levels
# drawn log-normally, and a number of levels that doubles as training goes on.

# %%
levels = distillation.noise_levels(11).float()
index = torch.randint(10, (256,), generator=seeded(10))
low, high = levels[index], levels[index + 1]


def end_of(points, level):
    t = time_of(level)
    return model(cosine.alpha(t).float()[:, None] * points, t).x0

# %%
goal = end_of(x0 + low[:, None] * eps, low).detach()
gap = end_of(x0 + high[:, None] * eps, high) - goal
c = 0.00054 * 2**0.5
huber = (gap.square().sum(1) + c**2).sqrt() - c
theirs = distillation.consistency_loss(model, x0, levels, index=index, noise=eps)
assert_close((huber / (high - low)).mean(), theirs, rtol=1e-4, atol=1e-5)

# %% [markdown]
# Why several numbers of levels? Few levels mean long jumps: little noise in the
# target, but a bias, as the neighbour is not on the same way. Many levels have
# little bias and a long chain of targets from $\epsilon$ to $\sigma_\max=80$,
# each learned from the one below. So begin coarse and refine. In distillation the
# neighbour leaves the way only by the solver's error; there we keep 18 levels, as
# 2303.01469 does for CIFAR-10.

# %%
# NBVAL_CHECK_OUTPUT
[distillation.curriculum(step, 1200, last=80) for step in (0, 299, 300, 600, 1199)]

# %%
*_, state = distillation.fit_consistency(
    new_model(1), batches(50), steps=1200, last=80, generator=seeded(60), **recipe)
trained = state.ema

# %%
*_, state = distillation.fit_consistency(
    new_model(1), batches(50), steps=1000, teacher=teacher, first=17, last=17,
    generator=seeded(60), **recipe)
distilled = state.ema

# %% [markdown]
# One step is one evaluation: $f(x_T, T)$. More steps are possible (algorithm 1):
# add fresh noise to the end, up to a middle level, and jump again. In
# `samplers.consistency` the levels come as times. The middle one here is
# $\sigma=2$, about three times the data's width.

# %%
one_jump = torch.stack([time_of(80.0), torch.tensor(0.0).double()])
two_jumps = torch.stack([time_of(80.0), time_of(2.0), torch.tensor(0.0).double()])


def jump(model, times):
    return samplers.consistency(model, x_T, times, generator=seeded(3))

# %%
once, twice = jump(trained, one_jump), jump(trained, two_jumps)
z = torch.randn(x_T.shape, generator=seeded(3))
alpha, sigma = cosine.coefficients(time_of(2.0))
again = alpha * (once + (2.0**2 - 0.002**2) ** 0.5 * z)
assert_close(trained(again.float(), time_of(2.0)).x0, twice, rtol=1e-4, atol=1e-4)

# %%
models = {"consistency_training": trained, "consistency_distillation": distilled}
jumped = {name: [apart(jump(m, times)) for times in (one_jump, two_jumps)]
          for name, m in models.items()}
raw = apart(jump(new_model(1), one_jump))

# %% tags=["F21"]
fig, axes = plt.subplots(1, 3, figsize=(10, 3.5), width_ratios=[1, 1, 1.3])
style.scatter(axes[0], once[:2000], "consistency_training", 3, 1.3, "Trained, 1 step")
style.scatter(axes[1], twice[:2000], "consistency_training", 3, 1.3, "Trained, 2 steps")
for name, values in jumped.items():
    axes[2].plot([1, 2], values, "o-", color=style.colour(name), label=name)
axes[2].plot([1, 2], [undistilled[1], undistilled[2]], "o-", color=style.colour("ddim"),
             label="DDIM")
axes[2].axhline(floor, color=style.colour("truth"), ls=":", lw=1)
axes[2].set(xlabel="steps", ylabel="distance to the board", xticks=[1, 2], yscale="log",
            ylim=(None, 2), title="A second jump mends the first")
axes[2].legend(fontsize=8, loc="upper right")
style.show(fig, "Points of a consistency model after one and two steps, both with "
           "the board's diagonals and blurred squares; distances of two "
           "consistency models fall from one step to two, far below DDIM's.")
claim("F21", "one jump beats one step of DDIM, and two jumps are no worse than one",
      all(v[0] < undistilled[1] and v[1] <= v[0] for v in jumped.values()),
      ct=jumped["consistency_training"], cd=jumped["consistency_distillation"],
      ddim_1=undistilled[1], control_untrained=raw)

# %% [markdown]
# The diagonals of the board show, its single squares don't yet: this is a quarter
# of a minute of training. On three trainings each (seeds 0 to 2) both
# inequalities held. Trained from data: 0.032 to 0.034 with one jump, 0.028 to 0.033
# with two; the gain was once as small as 0.001. Distilled: 0.060 to 0.067, then
# 0.034 to 0.042. That training came out ahead is no ranking: both recipes are
# short, and neither was tuned much.
#
# The middle level is a choice; 2303.01469 searches for it. We tried 0.5, 0.8, 1.2,
# 2 and 4. The smallest distance came from 0.5 or 0.8 in each of the six trainings,
# but 0.8 also made one of them worse than a single jump.
#
# A consistency model is a `Denoiser` to any sampler. But its `x0` is the end of the
# way and not the posterior mean, so its `eps` and `score` are not those of the
# noised data.
#
# ## 6.6 What a sample costs
#
# Evaluations are a fair measure only between walks of one network. Across
# networks count operations; on your own machine, seconds; on your bill, energy.
# The first can be counted exactly. A linear layer makes each output number with
# one product and one sum for each of its inputs, which are two operations:

# %%
# NBVAL_CHECK_OUTPUT
layer = torch.nn.Linear(10, 7)
with cost.meter(layer) as seen:
    layer(torch.zeros(5, 10))
print(seen.calls, "call,", seen.flops, "operations,", 5 * 7 * 10 * 2, "by hand")

# %% [markdown]
# `cost.meter` watches a network through hooks and adds up linear layers,
# convolutions and the products of attention. Norms and activations are left out,
# as usual. Now the walks on the digits, for one image.

# %%
one = noise[:1]
with cost.meter(digits) as seen:
    digits(one, digits.schedule.t_max)
each_call = seen.flops


def measured(name, steps):
    times = samplers.time_grid(digits.schedule, steps)
    with cost.meter(digits) as seen:
        samplers.SAMPLERS[name](digits, one, times)
    return seen

# %%
walks = {name: {n: measured(name, n) for n in (1, 2, 5, 10, 20)}
         for name in ("ddim", "heun", "dpm_solver_pp_2m")}

# %% tags=["F100"]
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
for (name, of_steps), mark in zip(walks.items(), ("o", "s", "x"), strict=True):
    flops = [m.flops / 1e6 for m in of_steps.values()]
    how = {"color": style.colour(name), "marker": mark, "ls": "none"}
    axes[0].plot([m.calls for m in of_steps.values()], flops, **how, label=name)
    axes[1].plot(of_steps.keys(), flops, **how)
axes[0].plot([0, 40], [0, 40 * each_call / 1e6], color=style.colour("truth"), lw=0.8)
axes[0].set(xlabel="evaluations", ylabel="million operations an image")
axes[0].set_title("Cost is evaluations …")
axes[1].set(xlabel="steps", title="… and not steps")
axes[0].legend()
style.show(fig, "Operations over evaluations: the points of three samplers lie on one "
           "line through 0. Over steps, Heun's lie nearly twice as high as the others.")
every = [m for of_steps in walks.values() for m in of_steps.values()]
claim("F100", "counted operations are proportional to evaluations for each sampler",
      all(m.flops == m.calls * each_call for m in every),
      million_a_call=each_call / 1e6, ddim_20=walks["ddim"][20].calls,
      control_heun_20_steps=walks["heun"][20].flops / walks["ddim"][20].flops)

# %% [markdown]
# **Energy** is operations times the joules that one takes, or seconds times
# watts. Both figures belong to your machine: read them off a wattmeter or a
# label, and enter them. The library has no default, and we print no number for a
# machine that we don't have. What does not depend on the figure is a ratio.
# Measured energies of many published models are in 2311.16863; among them image
# generators take by far the most per answer.

# %%
# NBVAL_CHECK_OUTPUT
mine = 1.0  # joules an operation: enter your own; ratios don't change
joules = {n: cost.energy_joules(walks["ddim"][n].flops, mine) for n in (1, 20)}
print(f"20 steps take {joules[20] / joules[1]:.0f} times the energy of 1")

# %% [markdown]
# **When has a distillation paid for itself?** Training costs operations too. A
# pass backwards is about two passes forwards (that is the usual rule; it is not
# counted here). A step of progressive distillation has two forward passes of the
# teacher, and one forward and one backward of the student: 5 units a sample of
# the batch. Every sample drawn later saves $64-1$ units.

# %%
# NBVAL_CHECK_OUTPUT
halvings, steps, batch = 6, 300, 256
spent = halvings * steps * batch * (2 + 1 + 2)
print(f"{spent} units spent, paid back after {spent / (64 - 1):.0f} samples")

# %% [markdown]
# For a toy that is asked for 4,000 points, distilling was a waste, unless you want
# them at once. For a model that serves millions it is not. That a cheaper sample
# is asked for more often is not in the ledger.
#
# ## 6.7 The scoreboard
#
# Everything on one picture. Left, the oracle: how well the ODE is solved, with
# the log-SNR grid of the library down to 0. Right, the checkerboard's network:
# how good the samples are, distilled models included. The two errors are
# different things. A distilled model can look bad by the first and good by the
# second: its points may end elsewhere than the ODE's and lie well all the same.

# %%
runners = {name: samplers.SAMPLERS[name] for name in ode}
answer = samplers.dpm_solver_pp_3m(
    oracle, start, samplers.time_grid(path, 600, "log_snr"))
oracle_board = cost.scoreboard(
    runners, oracle, start, [5, 10, 20, 40], lambda end: rms(end, answer))
net_board = cost.scoreboard(
    {"ancestral": samplers.ancestral, **runners}, teacher, x_T, [1, 2, 4, 8, 16, 32],
    apart, "uniform", seeded(3))

# %%
net_board += [cost.enter("progressive", samplers.ddim, s.student, x_T, s.times, apart)
              for s in stages]
net_board += [cost.enter(name, samplers.consistency, m, x_T, times, apart,
                         generator=seeded(3))
              for name, m in models.items() for times in (one_jump, two_jumps)]

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
draw_entries(left, oracle_board)
draw_entries(right, net_board, ["progressive", *models])
right.axhline(floor, color=style.colour("truth"), ls=":", lw=1)
left.set(xlabel="evaluations", ylabel="RMS error to the exact walk")
left.set_title("Oracle: memory wins from 10 on")
right.set(xlabel="evaluations", ylabel="distance to the board")
right.set_title("Trained net: below 8, distil")
mark_counts(left, [5, 10, 20, 40])
mark_counts(right, [1, 2, 4, 8, 16, 32])
right.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
style.show(fig, "Two plots of error over evaluations for all samplers; on the right "
           "the distilled models lie low at 1 and 2 evaluations, and the samplers "
           "reach them between 8 and 32.")
best = {n: min((e for e in net_board if e.nfe <= n), key=lambda e: e.error)
        for n in (1, 2, 4)}
report("ch06", "the best of the trained net's scoreboard at 1, 2 and 4 evaluations",
       names=[e.name for e in best.values()], errors=[e.error for e in best.values()],
       million_operations=[e.flops / 1e6 for e in best.values()])

# %% [markdown]
# Colours come back in the right panel: dashed curves with squares are the distilled
# models, full ones the samplers of the undistilled net.
#
# One network and one seed: differences of a few thousandths between the low curves
# are not settled by this picture, so it is a report and no claim. What is settled
# is the gap between the distilled and all others at one and two evaluations.
# `net_board[0].seconds` has the seconds a sample; they are not printed, because
# they are yours.
#
# ## 6.8 Failure gallery
#
# Four mistakes that run without an error.

# %%
def too_much_noise(steps):
    """eta = 1 with sigma_s, not its remainder, before eps."""
    x, g, times = x_T, seeded(3), samplers.time_grid(cosine, steps).tolist()
    for t, s in zip(times[:-1], times[1:], strict=True):
        r = (cosine.snr(t) / cosine.snr(s)) if s > 0 else torch.tensor(1.0)
        extra = cosine.sigma(s) * (1 - r).sqrt()
        z = torch.randn(x.shape, generator=g)
        x = (samplers.ddim_step(teacher, x, t, s) + extra * z).float()
    return x

# %% [markdown]
# The second walks the one-step student with eight steps, at times that it was
# never trained for. The third gives the consistency sampler an ordinary denoiser.
# The fourth trains a consistency model without its boundary: $f=F$. Nothing says
# where the ways end, and one constant would have no loss at all.

# %%
from diffedu import Prediction


class NoBoundary(distillation.ConsistencyModel):
    def forward(self, x, t, **condition):
        alpha, sigma = cosine.coefficients(torch.as_tensor(t))
        told = (0.02 * (sigma / alpha).log() / 4).float().expand(len(x))
        return Prediction(x, torch.as_tensor(t), cosine, "x0", self.net(x, told))


torch.manual_seed(2)
free = NoBoundary(nets.MLP(2, width=96, depth=3), cosine)
*_, state = distillation.fit_consistency(
    free, batches(70), steps=300, last=80, generator=seeded(80), **recipe)

# %%
eight_jumps = samplers.time_grid(cosine, 8)
failures = {
    "Noise on top of all of eps": too_much_noise(10),
    "1-step student, 8 steps": samplers.ddim(students[1], x_T, eight_jumps),
    "Posterior mean, re-noised": jump(teacher, eight_jumps),
    "No boundary": jump(state.ema, one_jump),
}
wrong = {name: apart(points) for name, points in failures.items()}

# %%
fig, axes = plt.subplots(1, 4, figsize=(11, 3.1))
for ax, (name, points) in zip(axes, failures.items(), strict=True):
    style.scatter(ax, points[:2000], "learned", 3, 1.6)
    ax.set_title(name, fontsize=10)
    ax.set_xlabel(f"distance {wrong[name]:.2f}")
style.show(fig, "Four failures: a blurred board, one that is too wide, points drawn "
           "to the middle, and points along a line that leaves the frame.")
claim("ch06", "each of the four mistakes is at least twice as far off as a right model",
      min(wrong.values()) > 2 * halved[1], **{f"error_{i}": v for i, v in
                                              enumerate(wrong.values(), 1)},
      control_one_step_student=halved[1])

# %% [markdown]
# | what you see | look for |
# |---|---|
# | blurred at $\eta>0$, right at $\eta=0$ | the root before $\hat\varepsilon$ |
# | a distilled model gets *worse* with more steps | times that it wasn't trained for |
# | samples drawn to the middle | $\hat x_0$ used as if it were a sample |
# | a consistency model's samples are nowhere near the data | the boundary |
# | a "third-order" solver with slope $-2$ | a factor in the last derivative |
#
# ## 6.9 What was scaled down, and what is left out
#
# - Progressive distillation was run on CIFAR-10 and larger images with tens of
#   thousands of training steps a halving (2202.00512); ours are 300 on two
#   dimensions. Distilling the digits' network is left out for time. The code
#   takes it as it is.
# - Consistency models (2303.01469) used LPIPS, a learned distance, and averaged
#   targets; we took the improved recipe (2310.14189) with at most 81 levels
#   where it has 1,281, and 18 fixed levels for distillation. Its dropout is left
#   out, as our net has none.
# - *Multistep consistency* (2403.06807) splits the way into a few segments and
#   wants consistency within each: between one segment, which is this chapter's
#   consistency model, and very many, which is diffusion. *Diff-Instruct*
#   (2305.18455), *moment matching* (2406.04103) and *adversarial* distillation in
#   latent space (2403.12015) match distributions and not ways. They are cited
#   here and not built.
# - What a few-step student *knows*, beside how to sample, is an open question of
#   survey A (4.1). The exercises leave it to you, after chapter 10.
#
# ## 6.10 Summary
#
# - A denoiser fixes the marginals. Steps between them may be chosen, from
#   ancestral ($\eta=1$) to deterministic ($\eta=0$).
# - $d(x/\sigma)=\hat x_0\,d(\alpha/\sigma)$ is exact. Constant $\hat x_0$ is
#   DDIM; a line or a parabola through earlier looks gives order two and three for
#   nothing. At few steps a high order can hurt.
# - Below about eight evaluations no solver helps: one step lands on a mean.
#   Distillation changes what the network answers. Two teacher steps become one
#   student step, again and again; or all points of one way are sent to its end.
# - Cost is evaluations times operations. Energy needs your own figures. A
#   distillation pays after enough samples, and that number can be computed.
#
# Do the [exercises](../exercises/ch06_few_steps.ipynb) next. Chapter 7 asks
# another question: can the ways themselves be made straight?
