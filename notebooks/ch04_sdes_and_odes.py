# %% [markdown]
# # 4. SDEs, ODEs and the family of generative models
#
# Chapter 2 had a chain of steps, chapter 3 a list of noise levels. Here both
# lists become continuous, and two things appear that no list has: a random and a
# deterministic way back that agree at every time, and an exact likelihood. After
# this chapter you will be able to
#
# - write the stochastic differential equation of any noising path, turn it round,
#   and turn it into an ordinary one with the same marginals;
# - compute log-likelihoods along that ODE, exactly or with random probes, and say
#   what each costs;
# - bound the likelihood by an integral in which the schedule no longer occurs, and
#   say how diffusion models relate to flows, autoencoders and energies.
#
# | | |
# |---|---|
# | surveys | A 2.1, eq. 9-10; B II |
# | needs | ch01, ch02, ch03 |
# | study | 7 hours |
# | figures | F11, F12 |
# | receipt | 48 seconds on one CPU thread, 743 MB |

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import GaussianMixture, likelihood, losses, samplers, schedules, style
from diffedu.claims import claim, report

style.use()

# %% [markdown]
# ## 4.1 From a chain to a stochastic differential equation
#
# One step of DDPM's chain is
# $x_k = \sqrt{1-\beta_k}\,x_{k-1} + \sqrt{\beta_k}\,z$ with fresh normal $z$. Let
# the chain have $T$ steps in a time from 0 to 1, so that a step takes
# $\Delta = 1/T$, and look at what is left of $\beta_k$ if it is divided by that
# length.

# %%
# NBVAL_CHECK_OUTPUT
for T in (100, 1000, 10_000):
    betas = schedules.linear().chain(T).betas
    ends = betas[0].item(), betas[-1].item()
    print(f"T = {T:5d}: beta from {ends[0]:.0e} to {ends[1]:.0e},"
          f" T beta from {T * ends[0]:.1f} to {T * ends[1]:.1f}")

# %% [markdown]
# Each $\beta_k$ vanishes as the steps become more, but $T\beta_k$ does not: it is
# a rate, $\beta(t)$ with $\beta(k/T) = T\beta_k$. (Survey A writes
# $\beta(t) = \beta_t$ as $T\to\infty$. Without the factor $T$ that limit is
# zero.) Put $\beta_k = \beta(t)\Delta$ into the step and keep the first power of
# $\Delta$ in each part, which makes
# $\sqrt{1-\beta\Delta} \approx 1-\tfrac12\beta\Delta$:
#
# $$x(t+\Delta) = x(t) - \tfrac12\beta(t)\,x(t)\,\Delta
# + \sqrt{\beta(t)}\;\sqrt{\Delta}\,z .$$
#
# The first change is an ordinary derivative times $\Delta$. The second goes with
# $\sqrt\Delta$, because *variances* of independent draws add up: a hundred draws of
# variance $\Delta/100$ make one of variance $\Delta$. In the limit one writes $dw$
# for $\sqrt{dt}\,z$ ($w$ is called Brownian motion), and has a **stochastic
# differential equation**, SDE for short (2011.13456, eqs. 5 and 11):
#
# $$dx = f(t)\,x\,dt + g(t)\,dw,\qquad
# f = -\tfrac12\beta,\quad g = \sqrt\beta .$$
#
# $f\,x$ is called the drift, $g$ the diffusion coefficient. Walking it in small
# steps is the **Euler-Maruyama** method. As $g$ depends on time alone, the two
# usual readings of such an equation, Itô's and Stratonovich's, agree here.
#
# Which $f$ and $g$ belong to an arbitrary path
# $x_t = \alpha x_0 + \sigma\varepsilon$? Under the SDE a mean $m$ and a variance
# $V$ move by
#
# $$\dot m = f\,m,\qquad \dot V = 2f\,V + g^2 .$$
#
# (Over one step the mean is multiplied by $1+f\Delta$ and the variance by its
# square, and $g^2\Delta$ is added.) We want $m = \alpha x_0$ and $V = \sigma^2$.
# The first gives $f = \dot\alpha/\alpha$, and then the second gives
# $g^2 = 2\sigma(\dot\sigma - f\sigma)$.

# %%
def forward_sde(path, t):
    """f and g of dx = f x dt + g dw, for any path."""
    alpha, sigma = path.coefficients(t)
    alpha_rate, sigma_rate = path.rates(t)
    f = alpha_rate / alpha
    return f, (2 * sigma * (sigma_rate - f * sigma)).sqrt()

# %% [markdown]
# The library has this as `path.sde(t)`. Three paths carry names in the literature.
# **VP**, variance preserving, is the one above. **VE**, variance exploding, has
# $\alpha = 1$ and therefore no drift: $f=0$, $g=\sqrt{2\sigma\dot\sigma}$
# (2011.13456, eq. 9). The third, **sub-VP**, gave that paper its best likelihoods
# (eq. 12). It has the drift of VP and a smaller $\sigma = 1-\alpha^2$ in place of
# $\sqrt{1-\alpha^2}$, and its $g^2$ is $\beta\,(1-\alpha^4)$. Is it, by our formula?

# %%
from torch.testing import assert_close

vp, ve, sub_vp = schedules.linear(), schedules.ve(), schedules.sub_vp()
t = torch.linspace(0.01, 1, 200).double()
beta = 0.1 + 19.9 * t
assert_close(vp.sde(t)[1], beta.sqrt())
assert_close(sub_vp.sde(t)[1], (beta * (1 - vp.alpha(t) ** 4)).sqrt())

# %%
for path in (vp, ve, sub_vp):
    assert_close(forward_sde(path, t), path.sde(t))

# %% [markdown]
# Now simulate: many copies of one number, $x_0 = 1$, 1,000 steps, and compare with
# the band $\alpha x_0 \pm 2\sigma$ that the closed form promises. (For the picture,
# the VE path ends at $\sigma = 5$.) Watch how VP forgets where it started, while VE
# drowns it.

# %%
def simulate(path, x, steps, generator):
    """Euler-Maruyama up the forward SDE: the states at all times, (steps + 1, n)."""
    states, dt = [x], 1 / steps
    for t in torch.linspace(0, 1, steps + 1)[:-1]:
        f, g = path.sde(t.double().clamp(min=1e-5))
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x + f * x * dt + g * dt**0.5 * z
        states.append(x)
    return torch.stack(states)

# %%
shown = {"VP": vp, "VE": schedules.ve(0.01, 5.0), "sub-VP": sub_vp}
start = torch.ones(10_000, dtype=torch.float64)
generator = torch.Generator().manual_seed(0)
runs = {name: simulate(path, start, 1000, generator) for name, path in shown.items()}

# %%
titles = {"VP": "VP forgets the start", "VE": "VE drowns it",
          "sub-VP": "sub-VP: quieter at first"}
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.1))
clock = torch.linspace(0, 1, 1001).double()
for ax, (name, path) in zip(axes, shown.items(), strict=True):
    ax.plot(clock[::5], runs[name][::5, :12], color=style.colour("data"), lw=0.6)
    alpha, sigma = path.coefficients(clock)
    shade = style.colour(path.name)
    ax.plot(clock, alpha, color=shade)
    ax.fill_between(clock, alpha - 2 * sigma, alpha + 2 * sigma, color=shade,
                    alpha=0.25)
    ax.set(xlabel="time $t$", title=titles[name])
axes[0].set_ylabel("$x_t$ from $x_0 = 1$")
style.show(fig, "Twelve simulated paths for each of VP, VE and sub-VP, mostly in a "
           "band of two standard deviations around the mean. VP and sub-VP fall to 0 "
           "with a spread of 1; VE stays around 1 and spreads to 5.")
spread = {name: run[-1].std().item() for name, run in runs.items()}
exact = {name: path.sigma(1.0).item() for name, path in shown.items()}
off = [abs(spread[name] / exact[name] - 1) for name in shown]
claim("ch04", "simulated SDEs end with the spread of the closed form, within 4 %",
      max(off) < 0.04, **spread)

# %% [markdown]
# (10,000 copies know a standard deviation to 0.7 %, so 4 % is more than five
# standard errors.)
#
# ## 4.2 Turning it round
#
# What undoes a small step of noise? Bayes' rule. The state one step earlier, at
# $t-\Delta$, has the density
#
# $$q(x_{t-\Delta}\mid x_t)\ \propto\ p_{t-\Delta}(x_{t-\Delta})\;
# \mathcal N\big(x_t;\ x_{t-\Delta} + f x_{t-\Delta}\Delta,\ g^2\Delta\big).$$
#
# For a tiny $\Delta$ the two states are close, so the first factor may be replaced
# by its straight-line approximation in the logarithm,
#
# $$\log p_{t-\Delta}(x_{t-\Delta}) \approx c
# + (x_{t-\Delta}-x_t)\cdot\nabla\log p_t(x_t) ,$$
#
# where $c$ does not depend on $x_{t-\Delta}$. The exponent is then a square plus
# a linear term, thus a Gaussian. Completing the square moves its centre by
# (variance) times (slope):
#
# $$x_{t-\Delta} \approx x_t - \big[f\,x_t - g^2\,\nabla\log p_t(x_t)\big]\Delta
# + g\sqrt\Delta\;z .$$
#
# This is the **reverse-time SDE** of Anderson (1982), as used in (2011.13456,
# eq. 6),
#
# $$dx = \big[f\,x - g^2\,\nabla\log p_t(x)\big]\,dt + g\,d\bar w ,$$
#
# where $dt$ is negative and $\bar w$ is Brownian motion as time runs down. The
# noise stays, and beside the old drift there is a new term with the score. Survey A
# has the VE case as its equation 10. Everything except the score is known, and the
# score is what a denoiser says.
#
# As always, first where the truth is known: three spots in the plane.

# %%
weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
means = torch.tensor([[-1.2, -0.8], [1.2, -0.6], [0.0, 1.3]], dtype=torch.float64)
world = GaussianMixture(weights, means, torch.full((3,), 0.25))
exact = world.denoiser(vp)

# %%
def reverse_step(denoise, x, t, s, z):
    """Euler-Maruyama down the reverse SDE, from t to s < t."""
    f, g = denoise.schedule.sde(t)
    length = t - s
    drift = f * x - g**2 * denoise(x, t).score
    return x - drift * length + g * length.sqrt() * z

# %% [markdown]
# Walk it down a list of times, with noise that we record, so that the library's
# sampler can be given the same. The last step goes to $t=0$ and returns the
# denoiser's $\hat x_0$, as every sampler's does.

# %%
times = samplers.time_grid(vp, 50)
generator = torch.Generator().manual_seed(1)
x_T = vp.prior_sample((200, 2), 1.0, generator, torch.float64)
z = torch.randn(50, 200, 2, generator=generator, dtype=torch.float64)

# %%
x = x_T
for i in range(49):
    x = reverse_step(exact, x, times[i], times[i + 1], z[i])
x = exact(x, times[49]).x0
assert_close(x, samplers.euler_maruyama(exact, x_T, times, noise=z))

# %% [markdown]
# ## 4.3 The same marginals without noise
#
# Noise pushes a density apart, and so does a suitable wind. Which wind does the same
# as the noise? Points that move with a velocity $u$ carry a density that changes by
# the **continuity equation**, $\partial p/\partial t = -\nabla\cdot(u\,p)$: what
# flows out of a small volume is missing there. Noise spreads a density as heat
# spreads. An SDE does both, and its density obeys the **Fokker-Planck equation**,
#
# $$\frac{\partial p}{\partial t}
# = -\nabla\cdot(f x\,p) + \tfrac12 g^2\,\nabla\cdot\nabla p .$$
#
# (Why one half? Take one dimension and no drift, multiply by $x^2$ and integrate by
# parts twice: the variance grows at twice the factor of $p''$, and that has to be
# $g^2$.) Write $\nabla p = p\,\nabla\log p$, and both terms have one form:
#
# $$\frac{\partial p}{\partial t}
# = -\nabla\cdot\Big(\big[f x - \tfrac12 g^2\,\nabla\log p\big]\,p\Big).$$
#
# This is the continuity equation of points that move *without noise*, with the
# bracket as their velocity. So the **probability-flow ODE** (2011.13456, eq. 13)
#
# $$\frac{dx}{dt} = f\,x - \tfrac12 g^2\,\nabla\log p_t(x) = u(x, t)$$
#
# carries the same density at every time. Mind the half: the reverse SDE has the
# full $g^2$, as it must also make up for the noise that it adds itself. The right
# side has been in the library all along: it is the velocity
# $\dot\alpha\hat x_0 + \dot\sigma\hat\varepsilon$, on which Euler and Heun step.
# (Put in $x = \alpha\hat x_0 + \sigma\hat\varepsilon$, the score
# $-\hat\varepsilon/\sigma$, and $f$ and $g^2$ of 4.1.)

# %%
def flow_velocity(denoise, x, t):
    f, g = denoise.schedule.sde(t)
    return f * x - 0.5 * g**2 * denoise(x, t).score


for path in (vp, ve, sub_vp):
    ours = flow_velocity(world.denoiser(path), x_T, 0.4)
    assert_close(ours, world.denoiser(path)(x_T, 0.4).velocity)

# %% [markdown]
# In one dimension the difference can be seen. A mixture of two spots, six starts,
# and both ways down; the grey ground is the density $p_t(x)$ at each time.

# %%
line = GaussianMixture([0.35, 0.65], torch.tensor([[-1.0], [1.0]]).double(), [0.2, 0.2])
down = samplers.time_grid(vp, 400, end=0.001)
six = torch.linspace(-1.5, 1.5, 6, dtype=torch.float64)[:, None]
tracks = {}
for name in ("euler_maruyama", "heun"):
    walk = samplers.walk(samplers.SAMPLERS[name], line.denoiser(vp), six, down,
                         generator=torch.Generator().manual_seed(8))
    tracks[name] = torch.stack([six, *(step.x for step in walk)])[:, :, 0]

# %%
heights = torch.linspace(-2.5, 2.5, 120, dtype=torch.float64)
ground = torch.stack(
    [line.at(vp, t).log_prob(heights[:, None]).exp() for t in down[::8]], 1
)

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
titles = {"euler_maruyama": "SDE: paths are rough and cross",
          "heun": "ODE: paths are smooth and never cross"}
for ax, (name, title) in zip(axes, titles.items(), strict=True):
    ax.pcolormesh(down[::8], heights, ground.clamp(max=0.9), cmap="Greys", vmax=1.4)
    ax.plot(down, tracks[name], color=style.colour(name), lw=1.1)
    ax.set(xlabel="time $t$ (sampling runs to the left)", title=title)
axes[0].set_ylabel("$x$")
style.show(fig, "Six paths of the reverse SDE and of the ODE over the density of x at "
           "each time, from one broad peak at t = 1 to two narrow ones at t = 0. "
           "SDE paths are jagged and cross; ODE paths are smooth and keep "
           "their order.")
ordered = {name: bool((path.diff(dim=1) > 0).all()) for name, path in tracks.items()}
claim("ch04", "paths of the ODE keep their order, those of the SDE do not",
      ordered["heun"] and not ordered["euler_maruyama"], **ordered)

# %% [markdown]
# That paths of an ODE never meet is a theorem (two through one point would be one),
# and 4.5 rests on it: the map from noise to data has an inverse.
#
# Same marginals is a claim about *every* time. We check four: the sliced
# Wasserstein distance (chapter 2) between samples of the SDE and of the ODE, beside
# the **floor**, the distance between two samples of the exact $p_t$ of the same
# size. Both fluctuate, so each is a mean over eight pairs of 2,000 points. As a
# control, the ODE with the half forgotten (two pairs, since it is far off).

# %%
grid, looks_at = samplers.time_grid(vp, 400), (0.75, 0.5, 0.25, 0.0)
generator = torch.Generator().manual_seed(3)
starts = vp.prior_sample((16_000, 2), 1.0, generator, torch.float64)

# %%
def snapshots(steps):
    """The states of a walk at the four times."""
    found = {round(step.s.item(), 6): step.x for step in steps}
    return {t: found[t] for t in looks_at}


coarse = samplers.time_grid(vp, 80)
by_sde = snapshots(samplers.walk(samplers.euler_maruyama, exact, starts, grid,
                                 generator=generator))
by_ode = snapshots(samplers.walk(samplers.heun, exact, starts, coarse))

# %%
def without_half(denoise, x, times):
    """A mistake: the reverse SDE's drift, and no noise."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        f, g = vp.sde(t)
        x = x - (f * x - g**2 * denoise(x, t).score) * (t - s)
        yield samplers.Step(0, t, s, x, x, None)


wrong = snapshots(without_half(exact, starts[:4000], grid))

# %%
from diffedu import metrics

directions = torch.randn(32, 2, generator=generator)


def apart(a, b):
    """The mean sliced Wasserstein distance over pairs of 2,000 points."""
    pairs = zip(a.split(2000), b.split(2000), strict=False)
    found = [metrics.sliced_wasserstein(one, two, directions) for one, two in pairs]
    return torch.stack(found).mean().item()

# %%
def truth(t):
    return (world.at(vp, t) if t > 0 else world).sample(16_000, generator)


floor = [apart(truth(t), truth(t)) for t in looks_at]
between = [apart(by_sde[t], by_ode[t]) for t in looks_at]
control = [apart(wrong[t], by_ode[t]) for t in looks_at]

# %% tags=["F11"]
fig, axes = plt.subplots(2, 4, figsize=(9.6, 5), sharex=True, sharey=True)
for column, t in zip(axes.T, looks_at, strict=True):
    for ax, points, name in zip(column, (by_sde, by_ode), titles, strict=True):
        style.scatter(ax, points[t][:1500], name, 2, 3)
    column[0].set_title(f"t = {t:g}")
    column[1].set_xlabel("$x_1$")
for ax, name in zip(axes[:, 0], ("SDE, 400 steps", "ODE, 80 Heun steps"), strict=True):
    ax.set_ylabel(f"{name}\n$x_2$")
style.show(fig, "Samples of the SDE above and of the ODE below at four times: one "
           "round cloud turns into three spots, and the two rows look alike.")
claim("F11", "SDE and ODE samples are at most 1.5 floors apart at four times",
      all(b <= 1.5 * f for b, f in zip(between, floor, strict=True)),
      between=between, floor=floor, control=control)

# %% [markdown]
# Between the two lies a whole family. Take a share $\kappa$ of the noise,
#
# $$dx = \Big[f x - \tfrac{1+\kappa^2}{2}\,g^2\,\nabla\log p_t\Big]dt
# + \kappa\, g\, d\bar w ,$$
#
# downwards: $\kappa=1$ is Anderson's SDE, $\kappa=0$ the ODE, and each has the
# same marginals by the same calculation (exercise 2 measures three). With the
# exact score and small steps nothing distinguishes them. With errors something
# does: noise forgets past errors, at the price of more steps. Chapter 5 measures
# that.
#
# ## 4.4 Predictor and corrector
#
# If noise mends errors, one can add more of it on purpose. A **predictor-corrector**
# sampler (2011.13456, algorithms 1 to 5) first steps from $t$ to $s$, then takes
# Langevin steps *at* $s$, which leave the density $p_s$ as it is and pull towards
# it what is not (chapter 3). Its step size is set by lengths: with a constant $r$,
#
# $$x \leftarrow x + \delta\,\nabla\log p_s(x) + \sqrt{2\delta}\,z,\qquad
# \delta = 2\,\Big(r\,\frac{\|z\|}{\|\nabla\log p_s(x)\|}\Big)^{2}.$$
#
# Both lengths are means over the batch, as in the paper. On a VE path the score's
# length is about $\sqrt D/\sigma$, so $\delta\approx 2r^2\sigma^2$: the scaling of
# NCSN's levels, found without being told $\sigma$.

# %%
def length(x):
    return x.norm(dim=1).mean()


def corrected(denoise, x, s, z, r=0.16):
    """One Langevin step at level s."""
    score = denoise(x, s).score
    delta = 2 * (r * length(z) / length(score)) ** 2
    return x + delta * score + (2 * delta).sqrt() * z

# %% [markdown]
# The predictor is the ancestral step, which draws from $q(x_s\mid x_t,\hat x_0)$.
# Each step takes two draws of noise, so the recorded noise has one axis more.

# %%
path = schedules.ve(0.02, 10.0)
spots = world.denoiser(path)
times = samplers.time_grid(path, 12, "log_snr", start=1.0)
start = path.prior_sample((300, 2), 1.0, generator, torch.float64)
z = torch.randn(12, 2, 300, 2, generator=generator, dtype=torch.float64)

# %%
x = start
for i in range(11):
    t, s = times[i], times[i + 1]
    mean, variance = path.posterior(spots(x, t).x0, x, t, s)
    x = corrected(spots, mean + variance.sqrt() * z[i, 0], s, z[i, 1])
x = spots(x, times[11]).x0
assert_close(x, samplers.predictor_corrector(spots, start, times, noise=z))

# %% [markdown]
# Is it worth its price? A corrector costs a look at every level, so the fair rival
# is a predictor with twice the steps. The distance to exact samples for three seeds:
# 20 steps of the predictor alone, and the two rivals, which look about 40 times
# each. Beside them the floor, as above.

# %%
def error_of(sampler, steps, seed, **options):
    generator = torch.Generator().manual_seed(seed)
    times = samplers.time_grid(path, steps, "log_snr", start=1.0)
    x = path.prior_sample((16_000, 2), 1.0, generator, torch.float64)
    x = sampler(spots, x, times, generator=generator, **options)
    return apart(x, world.sample(16_000, generator))


def floor_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return apart(world.sample(16_000, generator), world.sample(16_000, generator))

# %%
rivals = {"predictor_20": (samplers.ancestral, 20),
          "predictor_40": (samplers.ancestral, 40),
          "with_corrector_20": (samplers.predictor_corrector, 20)}
found = {name: [error_of(*how, seed) for seed in range(3)]
         for name, how in rivals.items()}
found["floor"] = [floor_of(seed) for seed in range(3)]
report("ch04", "distance to the truth on a VE path, three seeds", **found)

# %% [markdown]
# Not here: on average the corrector improves on the same predictor, but twice
# the steps do so as well or better for the same price. (Not much better can be
# shown here: both come near the floor, which scatters by as much as they differ.)
# With exact scores there is little to mend but the size of the steps. The paper's
# gains (2011.13456, table 1) are for trained networks on images, where the
# corrector wins at equal cost on VE paths.

# %% [markdown]
# ## 4.5 A likelihood without a normalising constant
#
# The ODE maps data to noise, one to one, and of the noise we know the density. A
# model of this kind, an invertible map to a simple density, is called a
# **normalizing flow**, and one that is an ODE a **continuous normalizing flow**
# (1806.07366). (The web page that started this course asks for the link to flows
# and to energy-based models. Survey A, the main survey, has no section on either;
# the likelihood below is that of 2011.13456, section 4.3.)
#
# How does a density change on the way? One Euler step maps $x$ to $x + h\,u(x)$,
# and a small volume there is multiplied by the determinant of the map's Jacobian.
# With $\nabla u$ for the matrix of all $\partial u_i/\partial x_j$,
#
# $$\det\!\big(I + h\,\nabla u\big) = 1 + h\operatorname{tr}\nabla u + O(h^2).$$
#
# Where volume grows, density falls by the same factor. With
# $\operatorname{tr}\nabla u = \nabla\cdot u$, the divergence, it follows for a point
# that moves along (1806.07366, eq. 8)
#
# $$\frac{d}{dt}\log p_t(x_t) = -\nabla\cdot u(x_t, t).$$
#
# Start at $x_{t_{\min}} = \alpha x_0$, go up to $t_{\max}$, and add up:
#
# $$\log p(x_0) = \log\mathcal N(x_{t_{\max}})
# + \int_{t_{\min}}^{t_{\max}} \nabla\cdot u(x_t, t)\,dt + D\log\alpha(t_{\min}).$$
#
# (The last term is the volume change of the first rescaling. It is tiny. At
# $t_{\min}$ the noise is $\sigma/\alpha = e^{-6.5}$ and at $t_{\max}$ the signal is
# almost gone; between these two every likelihood of the course is computed, unless
# other ends are named.)
#
# $Z$ never occurs. In chapter 3 an energy gave the score but not $\log p$, since $Z$
# was unknown. The scores of *all noise levels together* do give it: they connect
# the unknown density to one whose constant is known.
#
# The exact divergence takes a pass backwards for each of the $D$ components.

# %%
def divergence(field, x):
    """u and its divergence, (B, D) and (B,), by D passes backwards."""
    x = x.detach().requires_grad_()
    u, total = field(x), 0
    for i in range(x.shape[1]):
        row = torch.autograd.grad(u[:, i].sum(), x, retain_graph=True)[0]
        total = total + row[:, i]
    return u.detach(), total

# %% [markdown]
# Now $x$ and its log-volume climb together. Heun's method takes the slopes of both
# at the two ends of a step and averages them. Compare with the equation: `volume`
# is the integral and the last term, and the latent's density is added at the end.
# (It is the standard normal one on VP paths; the library takes each path's own.)

# %%
def log_likelihood(denoise, x0, times):
    """log p(x0) along rising times."""
    path = denoise.schedule
    x = path.alpha(times[0]) * x0
    volume = x0.shape[1] * path.alpha(times[0]).log() * torch.ones(len(x0))
    for t, s in zip(times[:-1], times[1:], strict=True):
        u, rate = divergence(lambda y, t=t: denoise(y, t).velocity, x)
        ahead = x + (s - t) * u
        u_s, rate_s = divergence(lambda y, s=s: denoise(y, s).velocity, ahead)
        x = x + (s - t) / 2 * (u + u_s)
        volume = volume + (s - t) / 2 * (rate + rate_s)
    noise = torch.distributions.Normal(0.0, 1.0)
    return noise.log_prob(x).sum(1) + volume

# %%
data = world.sample(300, torch.Generator().manual_seed(4))
times = samplers.time_grid(vp, 50, "log_snr", end=vp.t_min)
ours = log_likelihood(exact, data, times.flip(0))
assert_close(ours, likelihood.log_prob(exact, data, times=times).log_prob)

# %% [markdown]
# With the exact score two errors are left: the solver's, and a small one at the far
# end, since $p_{t_{\max}}$ is not quite the normal density that is taken for it
# ($\alpha$ is 0.007 there, not 0). The figure below compares two numbers with
# nothing in common: the mixture's own $\log p$ is a sum of three Gaussians at $x_0$,
# the ODE's comes from a walk to pure noise.
#
# ### Hutchinson's probe
#
# $D$ passes backwards are two here and 3,072 for a small colour image. Hutchinson's
# estimator (chapter 3) needs one: $\xi^\top\nabla u\,\xi$ with random signs, where
# $\xi$ is drawn once for each image and kept for the whole walk (1810.01367). It is
# right on average, and its noise has nothing to do with the solver's.

# %%
counts = [25, 50, 100, 200]
true = world.log_prob(data)


def error(steps, **how):
    found = likelihood.log_prob(exact, data, steps=steps, **how).log_prob
    return (found - true).abs().mean().item()

# %%
by_trace = [error(n) for n in counts]
by_euler = [error(n, method="euler") for n in counts]
by_probe = [error(n, divergence="rademacher", probes=1,
                  generator=torch.Generator().manual_seed(5)) for n in counts]

# %% tags=["F12"]
fig, ax = plt.subplots(figsize=(6.4, 3.5))
lines = {"one probe": (by_probe, "data"), "exact, Euler": (by_euler, "euler"),
         "exact, Heun": (by_trace, "heun")}
for name, (errors, colour) in lines.items():
    ax.loglog(counts, errors, "-o", color=style.colour(colour), label=name)
ax.axhline(0.02, color=style.colour("truth"), ls=":", lw=1)
ax.set(xlabel="steps", ylabel="mean error of log p, nats", xticks=counts)
ax.set_xticks(counts, counts)
ax.minorticks_off()
style.label_lines(ax)
ax.set_title("Heun reaches the exact value; a probe's noise stays")
style.show(fig, "Mean error of the log-likelihood against the number of steps from "
           "25 to 200, on logarithmic axes. With the exact trace Heun's falls from "
           "0.04 to 0.002 and flattens; Euler's falls from 0.4 to 0.04; with one "
           "probe it stays at 0.4. A dotted line marks 0.02 nat.")
claim("F12", "from 100 Heun steps on the ODE's log p is within 0.02 nat of the truth",
      max(by_trace[2:]) < 0.02, exact_trace=by_trace, control_one_probe=by_probe)

# %% [markdown]
# (Heun's curve flattens near 0.002: that is the far end's error. The dotted line is
# the 0.02 nat of the claim.)
#
# How many probes, and of what kind? Let $S = \tfrac12(\nabla u + \nabla u^\top)$.
# For normal probes the estimate has the variance $2\sum_{ij} S_{ij}^2$, for random
# signs $2\sum_{i\ne j} S_{ij}^2$: signs lose the diagonal. The library returns a
# standard error for each sample, from the spread over its own probes. It can be
# checked here as nowhere else, because the true error is known.

# %%
coarse = likelihood.log_prob(exact, data, steps=40).log_prob
for kind in ("rademacher", "gaussian"):
    for probes in (2, 8, 32):
        found = likelihood.log_prob(exact, data, steps=40, divergence=kind,
                                    probes=probes,
                                    generator=torch.Generator().manual_seed(6))
        real = (found.log_prob - coarse).square().mean().sqrt()
        told = found.standard_error.square().mean().sqrt()
        print(f"{kind:10s} {probes:2d} probes: error {real:.2f}, said {told:.2f}")

# %% [markdown]
# For normal probes, four times the probes make half the error. For signs too,
# but a few of the 300 points make up much of their error, so that single numbers
# scatter about the rule; with 32 probes error and promise agree. (In the plane a
# probe of signs has two values only, as $\xi_1\xi_2 = \pm1$. Two probes agree
# half of the time, and then claim an error of 0: believe the mean of many such
# errors, not one.) For the mean over a data set one probe an image is enough:
# the errors of different images are independent and average out. For a statement
# about one image it is not.
#
# ## 4.6 Infinitely many steps of the bound
#
# Chapter 2's bound had $T$ terms. For two times $s<t$ of a chain, with the same
# variance on both sides, its KL term is
#
# $$\tfrac12\big(\mathrm{snr}_s - \mathrm{snr}_t\big)\,\|x_0-\hat x_0(x_t)\|^2 .$$
#
# (The posterior's mean has the weight $\alpha_s(1-r)$ on $x_0$, with
# $r=\mathrm{snr}_t/\mathrm{snr}_s$, and the variance $\sigma_s^2(1-r)$; the square of
# the first over twice the second is the factor above.) Let the steps shrink. The sum
# of differences becomes an integral, and because
# $\mathrm{snr}\,\|x_0-\hat x_0\|^2 = \|\varepsilon-\hat\varepsilon\|^2$ and
# $d\,\mathrm{snr} = \mathrm{snr}\;d\log\mathrm{snr}$,
#
# $$L_\infty = \tfrac12\int
# \mathbb E\,\|\varepsilon-\hat\varepsilon\|^2\;d\log\mathrm{snr} .$$
#
# This is the continuous bound of variational diffusion models, VDM (2107.00630,
# section 5). Look at what is missing: $t$. The schedule says *when* a noise level is
# visited, and the integral over levels does not ask. Only the two ends are left. A
# schedule changes the variance of the estimate and the speed of learning, not the
# bound.
#
# To estimate the integral, draw log-SNR evenly. One draw from each of `looks` equal
# parts is steadier than as many free draws.

# %%
def diffusion_term(denoise, x0, looks, generator):
    """L_infinity for each sample, in nats."""
    path = denoise.schedule
    low, high = path.log_snr(path.t_max), path.log_snr(path.t_min)
    total = 0
    for j in range(looks):
        part = (j + torch.rand(len(x0), generator=generator).double()) / looks
        t = path.time_of_log_snr(high + (low - high) * part)
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        missed = eps - denoise(path.add_noise(x0, t, eps), t).eps
        total = total + missed.square().sum(1)
    return 0.5 * (high - low) * total / looks

# %% [markdown]
# Two more terms complete the bound: the prior's KL at $t_{\max}$, and at $t_{\min}$
# the reconstruction $-\log p(x_0\mid x_{t_{\min}})$ with
# $\mathcal N(x_t/\alpha, (\sigma/\alpha)^2)$. The library returns all three.

# %%
def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


bound = likelihood.continuous_bound(exact, data, looks=8, generator=seeded())
assert_close(bound.diffusion, diffusion_term(exact, data, 8, seeded()))

# %% [markdown]
# Now the invariance. For four schedules between the same two log-SNRs, -9 and 9,
# the picture shows what the integral over $t$ sees: half the error of
# $\hat\varepsilon$ times the speed $-\tfrac{d}{dt}\log\mathrm{snr}$, which is
# $g^2/\sigma^2$ on every path (put $f$ and $g$ of 4.1 in). The curves have nothing
# in common but the area beneath. Each schedule gets noise of its own. As a control,
# take the mean over uniform $t$ without the weight, which is $L_\mathrm{simple}$.

# %%
many = world.sample(4000, seeded(8))
levels = torch.linspace(9, -9, 73, dtype=torch.float64)


def eps_error(denoise, generator):
    """E |eps - eps_hat|^2 at each level, (73,)."""
    path, found = denoise.schedule, []
    for t in path.time_of_log_snr(levels):
        eps = torch.randn(many.shape, generator=generator, dtype=many.dtype)
        missed = eps - denoise(path.add_noise(many, t, eps), t).eps
        found.append(missed.square().sum(1).mean())
    return torch.stack(found)

# %%
names = ["linear", "cosine", "flow", "sub_vp"]
over_time, over_level, area, simple = {}, {}, {}, {}
for seed, name in enumerate(names):
    path = schedules.by_name(name)
    missed = eps_error(world.denoiser(path), seeded(20 + seed))
    t = path.time_of_log_snr(levels)
    speed = (path.sde(t)[1] / path.sigma(t)) ** 2
    over_time[name], over_level[name] = (t, 0.5 * missed * speed), 0.5 * missed
    area[name] = torch.trapezoid(*reversed(over_time[name])).item()
    simple[name] = (torch.trapezoid(missed, t) / (t[-1] - t[0])).item()

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4))
for name, (t, height) in over_time.items():
    label = f"{name}: {area[name]:.2f}"
    left.semilogy(t, height, color=style.colour(name), label=label)
    right.plot(levels, over_level[name], color=style.colour(name))
left.legend(title="area beneath, nats")
left.set(xlabel="time $t$", ylabel="nats per unit of time", ylim=(0.01, None))
right.set(xlabel="log-SNR", ylabel="nats per unit of log-SNR")
left.set_title("Over time: four shapes, one area")
right.set_title("Over log-SNR: one shape")
style.show(fig, "Left, four curves over time on a logarithmic axis, one for each "
           "schedule, all different, with equal areas in the legend. Right, the "
           "same over log-SNR, where the four lie on each other.")
wide = max(area.values()) / min(area.values())
control = max(simple.values()) / min(simple.values())
claim("ch04", "between equal ends four schedules have one bound, not one L_simple",
      wide < 1.03 < 1.2 < control, **area, largest_over_smallest=wide, control=control)

# %% [markdown]
# The other road to $L_\infty$ starts from the chain. First its KL term as it stands
# above, against chapter 2's bound, at one step of a chain of 100.

# %%
vdm = schedules.log_linear(13.0, -12.0)
deep, chain = world.denoiser(vdm), vdm.chain(100)
snr = chain.alpha_bar / (1 - chain.alpha_bar)
eps = torch.randn(data.shape, generator=seeded(), dtype=data.dtype)

# %%
k = torch.full((len(data),), 40)
x_k = chain.add_noise(data, k, eps)
missed = (data - deep(x_k, 0.41).x0).square().sum(1)
theirs = 2 * losses.bound_term(deep, data, chain, k, noise=eps)
assert_close(0.5 * (snr[39] - snr[40]) * missed, theirs)

# %% [markdown]
# (The library's terms are means over the two elements, hence the 2.) A chain of
# $T$ steps is a hierarchical **variational autoencoder**: an encoder from data to
# latents and a decoder back, which are trained on a bound of this kind. Here there
# are $T$ layers of latents, and the encoder is fixed, since it only adds noise.
# The chain's sum of terms is an upper Riemann sum of the integral, since
# $\mathrm{snr}_s-\mathrm{snr}_t$ is paid for the error of $\hat x_0$ at the
# *noisier* end, where it is larger. More layers therefore tighten the bound, and
# the limit is an infinitely deep autoencoder (2106.02808, 2107.00630). With the
# exact denoiser nothing but depth is missing. Where the error of
# $\hat\varepsilon$ hardly changes within a step, one that divides the snr by
# $e^h$ costs $(e^h - 1)/h$ times its part of the integral. For small $h$ this is
# about $1 + h/2$: few steps are very costly, and the excess of many falls
# like $1/T$.

# %%
def chain_term(denoise, x0, T, generator):
    """The KL terms of a chain of T equal steps of time, in nats, for each sample."""
    path, total = denoise.schedule, 0
    times = torch.linspace(path.t_min, path.t_max, T + 1, dtype=torch.float64)
    for s, t in zip(times[:-1], times[1:], strict=True):
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        missed = x0 - denoise(path.add_noise(x0, t, eps), t).x0
        gain = 0.5 * (path.snr(s) - path.snr(t))
        total = total + gain * missed.square().sum(1)
    return total

# %%
depths = [5, 10, 20, 40, 80, 160, 320]
deepest = likelihood.continuous_bound(deep, many, looks=40, generator=seeded(9))
ends = deepest.prior + deepest.reconstruction
nats = [(ends + chain_term(deep, many, T, seeded(T))).mean().item() for T in depths]
entropy = -world.log_prob(many).mean().item()
excess = [n - entropy for n in nats]
left_over = deepest.total.mean().item() - entropy

# %%
fig, ax = plt.subplots(figsize=(6.2, 3.3))
ax.loglog(depths, excess, "-o", color=style.colour("vlb"))
guide = [excess[-1] * depths[-1] / T for T in depths[2:]]
ax.loglog(depths[2:], guide, ":", color=style.colour("truth"))
ax.set(xlabel="steps $T$", ylabel="bound minus exact value, nats")
ax.set_xticks(depths, depths)
ax.minorticks_off()
ax.set_title("Twice the steps, half the excess of the bound")
style.show(fig, "The excess of the bound over the exact value against the number of "
           "steps from 5 to 320, on logarithmic axes. It falls ever more like one over "
           "the steps, which is drawn as a dotted line.")
claim("ch04", "the last doubling of the steps halves the bound's excess within 20 %",
      0.4 < excess[-1] / excess[-2] < 0.6, steps=depths, excess=excess,
      continuous_bound=left_over)

# %% [markdown]
# ## 4.7 Three numbers that must agree, and then do not
#
# With the exact score, the SDE's model, the ODE's model and the data are the same
# distribution. So three numbers computed in three ways must agree: the continuous
# bound, the ODE's $-\log p$, and the mixture's formula. They are compared sample by
# sample, since what the samples share cancels in the differences.

# %%
bound = likelihood.continuous_bound(exact, data, looks=200, generator=seeded(10))
ode = likelihood.log_prob(exact, data, steps=100)
gap_bound, gap_ode = bound.total + true, -ode.log_prob + true
sure = (gap_bound.std() / len(data) ** 0.5).item()
claim("ch04", "with the exact score bound, ODE and closed form agree",
      abs(gap_bound.mean()) < 5 * sure and abs(gap_ode.mean()) < 0.02,
      exact=-true.mean(), ode_minus_exact=gap_ode.mean(),
      bound_minus_exact=gap_bound.mean(), standard_error=sure)

# %% [markdown]
# A trained network is another matter. Its $\hat\varepsilon$ need not be the
# score of any density, and the SDE and the ODE that use it are then *two
# different models*. The bound speaks about the SDE's model, the ODE's likelihood
# about the ODE's. Two small networks, each trained on 2-D points from its own
# seed, with data of its own; they differ in size as well.

# %%
from diffedu import Denoiser, nets, training


def train(seed, width, steps=700):
    torch.manual_seed(seed)
    denoise = Denoiser(nets.MLP(2, width=width, depth=3), schedules.cosine(), "v")
    source = torch.Generator().manual_seed(100 + seed)

    def loss(x0, generator):
        return losses.denoising(denoise, x0, "simple", generator=generator)

    def batches(step):
        return world.sample(256, source).float()

    for _ in training.fit(denoise, loss, batches, steps=steps, lr=3e-3, ema=0.99,
                          generator=torch.Generator().manual_seed(200 + seed)):
        pass
    return denoise

# %%
first, second = train(0, 64), train(1, 96)
fresh = world.sample(1000, seeded(11))
exact_nats = -world.log_prob(fresh)

# %%
def two_models(denoise, x0):
    """The ODE's -log p and the SDE's bound, in nats, for each sample."""
    ode = -likelihood.log_prob(denoise, x0.float(), steps=60).log_prob
    with torch.no_grad():
        bound = likelihood.continuous_bound(denoise, x0.float(), looks=200,
                                            generator=seeded(12))
    return ode, bound.total


for name, denoise in {"first": first, "second": second}.items():
    ode_nats, bound_nats = two_models(denoise, fresh)
    report("ch04", f"{name} trained net: nats on fresh data",
           exact=exact_nats.mean(), ode=ode_nats.mean(), bound=bound_nats.mean(),
           error_of_bound=(bound_nats - exact_nats).std() / 1000**0.5)

# %% [markdown]
# The exact value is minus the mean log-density of these points. On average no
# model can be below it, and both numbers lie above: that is what training has
# not reached. That they differ from each other is no mistake in either. Training
# can aim at the bound, with the weights of 4.6 (2101.09258). Nothing in it looks
# at the ODE's likelihood; what can be done for that one is the subject of
# 2305.03935.
#
# ## 4.8 Codes
#
# Walked upwards, the ODE is an encoder: each $x_0$ has one latent, from which the
# walk down leads back. `likelihood.encode` and `decode` do this with Heun's steps
# (DDIM's way, `samplers.ddim_invert`, is chapter 6's).
#
# And this code is *not arbitrary*. The ODE depends on the path and the data's
# scores alone: two networks that learned the same distribution along the same
# path, whatever their size or seed, must give a point the same code.
# Autoencoders have nothing of the kind: two trainings give two unrelated latent
# spaces.

# %%
def code(denoise, x0):
    return likelihood.encode(denoise, x0.float(), steps=40)


def correlation(a, b):
    """The mean correlation of matching coordinates."""
    a, b = a - a.mean(0), b - b.mean(0)
    return ((a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0))).mean().item()

# %% [markdown]
# A plain correlation is too mild a test in the plane. Codes lie roughly where their
# points lie, so any two maps that only rescale would agree well. We therefore also
# take off what a straight line in $x_0$ explains, and correlate the rest: where
# within its spot a point ends, and how spots are bent to fill a round cloud. As
# controls, the second code shuffled, and that of an untrained network.

# %%
def bent(z, x0):
    """What is left of the code after the best straight-line fit in x0."""
    inputs = torch.cat([x0, torch.ones(len(x0), 1, dtype=x0.dtype)], 1).to(z)
    return z - inputs @ torch.linalg.lstsq(inputs, z).solution

# %%
torch.manual_seed(2)
untrained = Denoiser(nets.MLP(2, width=64, depth=3), schedules.cosine(), "v")
codes = [code(denoise, fresh) for denoise in (first, second, untrained)]
shuffled = codes[1][torch.randperm(1000, generator=seeded(13))]
rest = [bent(z, fresh) for z in codes]
back = likelihood.decode(first, codes[0], steps=40)

# %% tags=["F11"]
fig, axes = plt.subplots(1, 4, figsize=(11, 3.1))
which = world.responsibilities(fresh).argmax(1)
clouds = {"Data": fresh, "Codes, first net": codes[0], "Codes, second net": codes[1]}
for ax, (name, points) in zip(axes, clouds.items(), strict=False):
    for spot in range(3):
        style.scatter(ax, points[which == spot], str(spot), 3, title=name)
    ax.set_xlabel("first coordinate")
axes[0].set_ylabel("second coordinate")
for spot in range(3):
    axes[3].scatter(codes[0][which == spot, 0], codes[1][which == spot, 0], s=3,
                    color=style.colour(str(spot)), linewidths=0)
axes[3].set(xlabel="first net", ylabel="second net", title="First coordinates",
            aspect="equal")
style.show(fig, "Data in three spots; the codes of two networks, a round cloud in "
           "three sectors, alike in both; and one network's first coordinate against "
           "the other's, close to the diagonal.")
corr, beyond = correlation(codes[0], codes[1]), correlation(rest[0], rest[1])
claim("F11", "two nets give a point nearly the same code",
      corr > 0.9 and beyond > 0.8, correlation=corr, beyond_a_line=beyond,
      shuffled=correlation(codes[0], shuffled),
      untrained_beyond_a_line=correlation(rest[0], rest[2]),
      way_back=(back - fresh).abs().max())

# %% [markdown]
# The second number is the one that counts. An untrained network's codes may have
# something in common with a trained one's beyond a line (on three pairs of seeds 0.07
# to 0.52), but never what two trained ones have (0.996 and more on these pairs). And
# the way back returns each point; exercise 5 asks how much that proves.
#
# ## 4.9 On the digits
#
# Now 64 dimensions and real data. Two things are new. A pixel has one of 17 levels,
# 1/8 apart, and a density on levels can be infinite; so uniform noise of one level's
# width is added first (**dequantisation**, 1511.01844), and
# $-\log_2 p/64 + 3$ bits is then a bound on the bits of the levels, on average. And
# the exact trace would take 64 passes a look, so we take a probe an image. The
# network is the one that the library ships, and the images are ones that it was not
# trained on.

# %%
from diffedu import recipes, worlds

digits, labels = worlds.digits.load("test")
unet = recipes.load("digits_unet")
chosen = digits[:24]
soft = likelihood.dequantize(chosen, 1 / 8, seeded(14))

# %%
def digit_bits(images):
    """Bits a pixel by the ODE with one probe, for each image."""
    found = likelihood.log_prob(unet, images, steps=25, divergence="rademacher",
                                generator=seeded(15))
    return found.bits_per_dim(1 / 8)


def bound_bits(images, **how):
    """The continuous bound in bits an element, for each image."""
    with torch.no_grad():
        found = likelihood.continuous_bound(unet, images, looks=40,
                                            generator=seeded(16), **how)
    return found.bits_per_dim


by_ode = digit_bits(soft)
report("ch04", "bits a pixel of 24 test digits by the ODE (even levels: 4.09)",
       ode=by_ode.mean(), standard_error=by_ode.std() / 24**0.5)
claim("ch04", "test digits cost fewer bits than 17 equally likely levels",
      by_ode.mean() + 5 * by_ode.std() / 24**0.5 < 4.087)

# %% [markdown]
# The bound can do without dequantisation: give it the clean images and the width of a
# bin, and its last term is the probability of the right level. Either kind is a valid
# bound wherever it ends, and where it ends matters:

# %%
ends = (5.0, 6.0, 7.0, 10.0, 13.0)
levels_bits = [bound_bits(chosen, bin_width=1 / 8, ends=(-12.0, high)).mean().item()
               for high in ends]
soft_bits = [bound_bits(soft, ends=(-12.0, high)).mean().item() + 3 for high in ends]
report("ch04", "bits a pixel by the bound, for the log-SNR where it ends", log_snr=ends,
       levels=levels_bits, dequantised=soft_bits)

# %% [markdown]
# At a log-SNR of 6 or 7 the noise is not much narrower than a bin, and both
# bounds stand near the ODE's number. (That one stands on the side of the ODE's
# model and of dequantised images, so a bound for the SDE's model may well lie
# below it.) Later they grow. On levels, $\hat\varepsilon$ could be exact (round,
# and subtract), but this network was hardly shown such small noise, and goes on
# paying. On dequantised images nobody can tell the noise so far down, and the
# last term makes up for that. But this network was trained on levels: it takes
# the spread *within* a bin for noise of the path, and does worse than not to
# guess.
#
# VDM's network learns to round, with the help of sines of the pixels' values
# (Fourier features), and can afford to end late. Papers quote such numbers for images
# of 256 levels, where the offset is 7 instead of 3 (8 bits is then what equally likely
# levels cost). Numbers at different levels or sizes cannot be compared.
#
# The codes of digits: reconstruct some from their latents, and walk between two
# latents along the great circle. (Latents have length about $\sqrt{64}$. A straight
# line between two of them passes through points that are too short to be noise.)

# %%
def between(a, b, share):
    """Along the great circle from a to b: share of shape (N, 1, 1, 1)."""
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    parts = torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b
    return parts / angle.sin()

# %%
shares = torch.linspace(0, 1, 8)[:, None, None, None]
latents = likelihood.encode(unet, digits[:8], steps=25)
bridge = between(latents[0], latents[1], shares)
with torch.no_grad():
    again = likelihood.decode(unet, latents, steps=25)
    bridge = likelihood.decode(unet, bridge, steps=25)

# %%
fig, axes = plt.subplots(4, 1, figsize=(6.4, 4.6))
rows = {"Test digits": digits[:8], "Their codes": latents / 2, "Decoded again": again,
        "From the first code to the second": bridge}
for ax, (name, batch) in zip(axes, rows.items(), strict=True):
    style.images(ax, batch, 8, name)
style.show(fig, "Four rows of eight images: test digits, their codes, which look like "
           "noise, the digits decoded from them, the same as above, and a row "
           "that turns the first digit into the second.")
far = (digits[:8] - digits[8:16]).square().mean().sqrt().item()
off = (again - digits[:8]).square().mean().sqrt().item()
claim("ch04", "decoding the code returns the digit, an order closer than another digit",
      off < 0.1 * far, error=off, control_other_digit=far)

# %% [markdown]
# ## 4.10 The family
#
# Where does all this put diffusion models among their relatives?
#
# | kind | map from latent to data | likelihood | what it shares with diffusion |
# |---|---|---|---|
# | flow (RealNVP, Glow) | invertible layers | exact | 4.5: the ODE is one |
# | variational autoencoder | a decoder | a bound | 4.6: a chain is a deep one |
# | energy-based model | a Markov chain | up to $Z$ | the score is $-\nabla E$ |
# | GAN | one network call | none | nothing but the task |
#
# The ODE may use *any* network, since only the trace of its Jacobian is needed,
# where a flow needs each layer's determinant. It also is trained differently: a
# flow maximises its likelihood and has to run the map for it, a denoiser regresses
# and runs nothing. The price is paid when sampling. Chapter 4b, which is optional,
# trains one of each on the same data and measures quality, coverage and speed, the
# "trilemma" of (2112.07804).
#
# ## 4.11 Failure gallery
#
# Six mistakes. The first three are samplers, drawn one step before $t=0$ from the
# same start; the other three are likelihoods, whose mean error is drawn beside the
# correct one's.

# %%
def walk_with(score_share, noise_share):
    """Down the reverse equation with wrong shares of the score and of the noise."""
    generator, x = seeded(18), starts[:1500]
    for t, s in zip(grid[:-2], grid[1:-1], strict=True):
        f, g = vp.sde(t)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        drift = f * x - score_share * g**2 * exact(x, t).score
        x = x - drift * (t - s) + noise_share * g * (t - s).sqrt() * z
    return x


failures = {
    "ODE without the half:\none point": walk_with(1.0, 0.0),
    "SDE with the half:\nspots too wide": walk_with(0.5, 1.0),
    "Noise with $dt$ for $\\sqrt{dt}$:\nnearly the same": walk_with(1.0, 0.05),
}

# %% [markdown]
# (The first is a climb to the top of the density, which at large noise has one peak:
# all points end in the heaviest spot. $\sqrt{dt}$ is 0.05 here, so the third noise is
# that fraction of the right one, and the result nearly the first.) The likelihoods:
# the sign of the divergence reversed, the divergence left out, and the walk begun at
# large noise, as if $x_0$ were $x_t$ at $t = 0.1$.

# %%
right = likelihood.log_prob(exact, data, steps=50)
late = samplers.time_grid(vp, 50, "log_snr", end=0.1)
late = likelihood.log_prob(exact, data / vp.alpha(0.1), times=late)
wrong_logs = {"correct": right.log_prob, "sign reversed": right.prior - right.volume,
              "no divergence": right.prior, "begun at t = 0.1": late.log_prob}
wrong_logs = {name: (found - true).abs().mean() for name, found in wrong_logs.items()}

# %%
fig, axes = plt.subplots(1, 4, figsize=(11.4, 3.1))
for ax, (name, points) in zip(axes, failures.items(), strict=False):
    style.scatter(ax, points, "euler_maruyama", 3, 2.4)
    for place in means:
        ax.add_patch(plt.Circle(place, 0.5, fill=False, lw=0.8))
    ax.set_title(name, fontsize=10)
    ax.set_xlabel("$x_1$")
axes[0].set_ylabel("$x_2$")
axes[3].barh(list(wrong_logs), [float(v) for v in wrong_logs.values()],
             color=style.colour("learned"))
axes[3].invert_yaxis()
axes[3].set_xlabel("mean error of log p, nats")
axes[3].set_title("Three wrong likelihoods", fontsize=10)
style.show(fig, "Samples of three wrong samplers beside circles of two standard "
           "deviations: all in one point, too wide, and all in one point again; and "
           "bars of the mean error of the log-likelihood, zero for the correct one.")
claim("ch04", "each of the wrong likelihoods is off by more than 0.5 nat",
      min(list(wrong_logs.values())[1:]) > 0.5, names=list(wrong_logs),
      errors=list(wrong_logs.values()))

# %% [markdown]
# A walk to $t=0$ itself is refused: $\sigma$ is 0 there, so that log-SNR is infinite
# and the score, $-\hat\varepsilon/\sigma$, is not defined.

# %%
try:
    likelihood.log_prob(exact, data, times=samplers.time_grid(vp, 50))
except ValueError as refused:
    print(refused)

# %% [markdown]
# | what you see | look for |
# |---|---|
# | samples too tight, modes lost | the half before $g^2$ in the ODE; $\sqrt{dt}$ |
# | samples too wide | the half in the SDE, where it does not belong |
# | a likelihood far off | the sign of the divergence; the direction of time |
# | bits off by a constant | the offset of the levels; natural or binary logarithms |
# | likelihoods that grow as $t_{\min}$ falls | levels that were not dequantised |
#
# ## 4.12 What was scaled down, and what is left out
#
# - 2011.13456 uses images of $32\times32$ pixels and more, an adaptive Runge-Kutta
#   solver (its tolerance is the error you choose) and averages several runs over
#   the dequantisation noise. We take fixed steps, which makes the order visible,
#   and 24 digits.
# - VDM also *learns* the schedule, to reduce the variance of the loss, and gives the
#   network Fourier features of $x_t$ (2107.00630). Better training for the ODE's
#   likelihood: 2101.09258, 2305.03935.
# - Proofs. The reversal needs conditions on $p_t$ (Anderson 1982); for the bound in
#   continuous time see 2106.02808.
# - SDEs whose noise depends on $x$ do not occur in this course.
#
# ## 4.13 Summary
#
# - A path has one SDE of the form $dx = f\,x\,dt + g\,dw$:
#   $f=\dot\alpha/\alpha$, $g^2 = 2\sigma(\dot\sigma-f\sigma)$. VP, VE and sub-VP
#   are three choices.
# - Turned round it needs the score with the factor $g^2$; without noise, half of
#   that. Both have the same marginals, and so has every mixture of the two.
# - The ODE is a normalizing flow: $\log p$ is the latent's, plus the integral of the
#   divergence. The trace can be exact, or from probes whose error you can name.
# - The bound with infinitely many steps is an integral over log-SNR and knows only
#   its ends.
# - With the exact score bound, ODE and truth agree. With a network, SDE and ODE are
#   two models.
# - The code of a point belongs to the data, not to the network.
#
# Do the [exercises](../exercises/ch04_sdes_and_odes.ipynb) next. Chapter 5 asks which
# of the many choices made so far (paths, times, solvers, noise) are worth making.
