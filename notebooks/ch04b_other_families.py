# %% [markdown]
# # 4b. Four other families, one table
#
# An optional chapter. Before diffusion models there were other ways to learn a
# distribution from samples. Four of them are built here. All are still in use,
# some of them inside diffusion models. After this chapter you will be able to
#
# - build a small VAE, RealNVP, GAN and energy-based model from their equations;
# - say which of them knows its likelihood: exactly, as a bound, up to a
#   constant, or not at all;
# - set all of them and a diffusion model side by side, on five axes that are
#   counted or measured in one way, and name what each pays for what it gets.
#
# | | |
# |---|---|
# | surveys | A 2.1; B II |
# | needs | ch04 |
# | study | 3 hours |
# | receipt | 41 seconds on one CPU thread, 738 MB |

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import GaussianMixture, families, metrics, style, training
from diffedu.claims import budget, claim, recorded, report, save_recorded

style.use()

# %% [markdown]
# ## 4b.1 One world, and how samples are judged
#
# All five models learn the same data: five round spots on a circle, of unequal
# weight. They stand nine of their own standard deviations apart, so there is
# nothing between them. That is hard on a model which maps a connected cloud of
# noise to data by a continuous function, as all but one of our five do: such a
# function cannot tear, it can only make the bridges between the spots thin.

# %%
weights = torch.tensor([0.30, 0.25, 0.20, 0.15, 0.10])
angle = 2 * torch.pi * torch.arange(5) / 5
centres = 1.2 * torch.stack([angle.cos(), angle.sin()], 1)
spot = 0.15  # standard deviation of each spot, along each axis
world = GaussianMixture(weights, centres, torch.full((5,), spot))

# %% [markdown]
# Since the truth is known, samples can be judged without a second network.
# Three numbers, each blind to something that the others see:
#
# - **quality**: the share of samples within three standard deviations of a
#   centre. The truth itself has 0.989;
# - **coverage**: take the samples that are near a centre, and compare their
#   shares with the weights, $\sum_k \min(\text{share}_k, \text{weight}_k)$. It
#   is 1 if all shares are right, and falls by what is missing;
# - **spread**: their standard deviation around their centre, in units of the
#   true one. Below 1 the samples huddle, which quality *rewards*.

# %%
def judge(x):
    """Quality, coverage and spread of samples (N, 2)."""
    found = metrics.mode_coverage(x, centres, 3 * spot)
    shares = found.shares / found.quality.clamp_min(1e-9)
    distance = torch.cdist(x, centres).amin(1)
    inside = distance[distance < 3 * spot]
    spread = (inside.square().mean() / 2).sqrt() / spot
    coverage = torch.minimum(shares, weights).sum()
    return {"quality": found.quality.item(), "coverage": coverage.item(),
            "spread": spread.item()}  # fmt: skip

# %% [markdown]
# The fourth number is the likelihood: the mean of $\log p_\theta(x)$ over test
# data, in nats. No model beats the truth there, because
#
# $$\mathbb E_p[\log p(x)] - \mathbb E_p[\log p_\theta(x)]
# = \mathrm{KL}(p\,\|\,p_\theta) \ge 0 ,$$
#
# so what a model falls short of it is a distance in nats. It punishes whoever
# puts no mass where data are. It hardly minds mass where none are: half of it
# wasted costs $\log 2 = 0.69$ nats.

# %%
def dice(seed):
    return torch.Generator().manual_seed(seed)


test = world.sample(2000, dice(1))
truth = world.log_prob(test).mean().item()
oracle = judge(world.sample(2000, dice(2)))
print({k: round(v, 2) for k, v in oracle.items()}, f"truth {truth:.2f} nats")

# %% [markdown]
# This is the **oracle's row**. Coverage is not quite 1, since 2,000 draws do
# not have exact shares, and spread is a little below 1, since tails were cut
# off at three standard deviations. A model can't be told from the truth by
# differences of that size.
#
# Four of the five models are trained by one loop, the course's own: 1,000 steps
# of 256 fresh samples, and the averaged weights at the end.

# %%
def batches(seed):
    draws = dice(seed)
    return lambda step: world.sample(256, draws)


def train(model, loss, seed, steps=1000, lr=5e-3):
    states = training.fit(
        model, loss, batches(seed), steps=steps, lr=lr, ema=0.995, progress=False,
        capture=False, generator=dice(seed + 100),
    )  # fmt: skip
    *_, last = states
    return last.ema.requires_grad_(False)

# %% [markdown]
# ## 4b.2 The variational autoencoder
#
# Let the data come from hidden causes. Draw $z\sim\mathcal N(0,I)$, send it
# through a network, the **decoder** $g$, and add noise:
#
# $$p_\theta(x) = \int \mathcal N\big(x;\ g(z),\ \sigma^2 I\big)\,
# \mathcal N(z;\ 0, I)\,dz .$$
#
# The integral has no closed form, and a mean over random $z$ is hopeless, since
# nearly all of them explain a given $x$ badly. So a second network, the
# **encoder**, proposes good ones: $q(z\mid x)=\mathcal N(z;\ m(x), S(x)^2)$.
# It answers a mean $m$ and a standard deviation $S$ for each element of $z$.
# Write the integral as a mean over its draws,
#
# $$\log p_\theta(x) = \log\,\mathbb E_{q}\Big[
# \frac{p_\theta(x\mid z)\,\mathcal N(z; 0, I)}{q(z\mid x)}\Big],$$
#
# and pull the logarithm inside. By Jensen's inequality that can only lower it.
# The result is the bound that chapter 2 met on its chain (1312.6114, eq. 3),
#
# $$\log p_\theta(x) \;\ge\; \mathbb E_{q}\big[\log p_\theta(x\mid z)\big] -
# \mathrm{KL}\big(q(z\mid x)\,\|\,\mathcal N(0,I)\big) = \mathrm{ELBO}(x).$$
#
# (Chapter 2's model *is* this, with $T$ hidden variables of the shape of $x$
# and an encoder that has no parameters: it adds noise.) Both distributions of
# the second term are Gaussian, so it is known; for each element
# $\frac12(m^2 + S^2 - 1) - \log S$.

# %%
from torch.testing import assert_close


def normal_log_prob(x, mean, std):
    """Summed over the last axis; std may be one number."""
    z = (x - mean) / std
    return -(0.5 * z**2 + std.log() + 0.5 * torch.tensor(2 * torch.pi).log()).sum(-1)

# %% [markdown]
# To train the encoder, gradients must pass through a random draw. The trick is
# to draw noise that does not depend on the encoder and to move it:
# $z = m(x) + S(x)\,\varepsilon$. It is called the **reparametrisation**
# (1312.6114, section 2.4). One draw is enough for training.

# %%
def elbo(model, x, eps):
    mean, log_std = model.encoder(x).chunk(2, dim=1)
    z = mean + log_std.exp() * eps
    fit = normal_log_prob(x, model.decoder(z), model.log_std.exp())
    kl = 0.5 * (mean**2 + (2 * log_std).exp() - 1) - log_std
    return fit - kl.sum(1)

# %%
torch.manual_seed(0)
blank = families.VAE()
eps = torch.randn(2000, 2, generator=dice(3))
assert_close(elbo(blank, test, eps), blank.elbo(test, noise=eps))

# %% [markdown]
# The decoder's $\sigma$ is learned with the rest (2006.13202). It sets the
# price of a bad reconstruction against that of a long message in $z$ (the KL
# term), a choice that is often made by hand under the name of $\beta$. It must
# start small, for a reason that the failure gallery shows; the library's starts
# at 0.2.

# %%
def make_vae(seed):
    torch.manual_seed(seed)
    model = families.VAE()
    return train(model, model.loss, seed)


vae = make_vae(0)

# %% [markdown]
# How loose is the bound? Average the ratio $p_\theta(x, z)/q(z\mid x)$ over
# several draws *before* the logarithm is taken. The **importance-weighted
# bound** (1509.00519) with $R$ draws is
#
# $$\mathbb E\,\log\frac1R\sum_{r=1}^{R}
# \frac{p_\theta(x\mid z_r)\,\mathcal N(z_r; 0, I)}{q(z_r\mid x)}
# \;\le\; \log p_\theta(x).$$
#
# It is the ELBO for $R=1$, and it can only rise with $R$, up to the likelihood
# itself. (The ratio is an unbiased estimate of $p_\theta(x)$, and the logarithm
# of an estimate is too low on average: less so, the less the estimate varies.)

# %%
def importance_bound(model, x, eps):
    """eps has shape (R, B, latent)."""
    mean, log_std = model.encode(x)
    z = mean + log_std.exp() * eps
    zero, one = torch.zeros(()), torch.ones(())
    log_p = normal_log_prob(x, model.decoder(z), model.log_std.exp())
    log_ratio = log_p + normal_log_prob(z, zero, one)
    log_ratio = log_ratio - normal_log_prob(z, mean, log_std.exp())
    return log_ratio.logsumexp(0) - torch.tensor(float(len(eps))).log()

# %%
noise = torch.randn(16, 2000, 2, generator=dice(4))
ours = importance_bound(vae, test, noise)
assert_close(ours, vae.importance_bound(test, 16, noise=noise))

# %%
draws = [1, 2, 4, 8, 16, 32, 64, 128]
bounds = [vae.importance_bound(test, k, dice(5)).mean().item() for k in draws]
single = vae.elbo(test, dice(6)).mean().item()

# %% [markdown]
# In two dimensions there is a witness. The decoder is a function of two
# numbers, so the integral over $z$ can be done on a grid after all.

# %%
def by_grid(model, x, limit=5.0, points=120):
    """log p(x) with the integral over z as a sum over cells: (B,)."""
    side = torch.linspace(-limit, limit, points)
    z = torch.cartesian_prod(side, side)
    prior = normal_log_prob(z, torch.zeros(()), torch.ones(()))
    mean, std = model.decoder(z), model.log_std.exp()
    terms = normal_log_prob(x[:, None], mean, std) + prior
    return terms.logsumexp(1) + 2 * (side[1] - side[0]).log()


exact = torch.cat([by_grid(vae, x) for x in test.split(250)]).mean().item()

# %%
fig, ax = plt.subplots(figsize=(5.8, 3.2))
ax.semilogx(draws, bounds, "o-", color=style.colour("vae"), base=2)
ax.axhline(exact, color=style.colour("vae"), ls=":", lw=1.2)
ax.axhline(truth, color=style.colour("truth"), lw=1)
ax.annotate("the truth's own", (1, truth - 0.1))
ax.annotate("the VAE's, by grid", (1, exact + 0.03), color=style.colour("vae"))
ax.annotate("bound", (8, bounds[3] - 0.13), color=style.colour("vae"))
ax.set(xlabel="draws of z for each x", ylabel="nats a sample")
ax.set_title("More draws tighten the bound, up to log p")
style.show(fig, "The bound in nats over the number of draws rises from the ELBO to "
           "the VAE's likelihood by grid, a dotted line; the truth's own "
           "likelihood, a line, lies above both.")
draws_256 = dice(7)
same = torch.cat([vae.importance_bound(x, 256, draws_256) for x in test.split(500)])
claim("ch04b", "ELBO < bound with 128 draws < truth; 256 draws come within 0.03 nats "
      "of the grid's log p",
      single < bounds[-1] < truth and abs(same.mean() - exact) < 0.03,
      elbo=single, one_draw=bounds[0], bound_128=bounds[-1], bound_256=same.mean(),
      grid=exact, truth=truth)

# %% [markdown]
# (The ELBO and the bound with one draw estimate one number. They differ by the
# noise of their draws.)
#
# Two gaps, then. From the ELBO up to the dotted line is the encoder's fault:
# the true posterior of $z$ is not the Gaussian it proposes. From there to the
# truth is the decoder's. Ordinary VAEs report the first number and cannot say
# which part of it is which.
#
# ## 4b.3 RealNVP: a network with an inverse
#
# If $z = f(x)$ is invertible, the likelihood is exact, by the change of
# variables (1605.08803, eq. 3):
#
# $$\log p_\theta(x) = \log\mathcal N\big(f(x);\ 0, I\big) +
# \log\Big|\det\frac{\partial f}{\partial x}\Big| .$$
#
# Two things stand in the way: ordinary networks have no inverse, and a
# determinant costs $D^3$. The **affine coupling** removes both. Hold some
# coordinates fixed (the mask $b$ is 1 there), and let them decide how the
# others are stretched and shifted (eq. 9; the paper writes $s$ and $t$, which
# are times here):
#
# $$z = b\,x + (1-b)\,\big(x\,e^{a(bx)} + c(bx)\big).$$
#
# The networks $a$ and $c$ may be anything. The inverse is a subtraction and a
# division, since what $a$ and $c$ look at has not changed. The Jacobian is
# triangular, so that its log-determinant is the sum of $(1-b)\,a$.

# %%
def couple(x, mask, net):
    """Forward: z (B, D) and log |det| (B,); net answers a and c at once."""
    a, c = net(x * mask).chunk(2, dim=1)
    return mask * x + (1 - mask) * (x * a.exp() + c), ((1 - mask) * a).sum(1)

# %%
def uncouple(z, mask, net):
    a, c = net(z * mask).chunk(2, dim=1)
    return mask * z + (1 - mask) * (z - c) * (-a).exp()

# %% [markdown]
# Test both claims, with an untrained network in double precision: there and
# back, and the determinant by automatic differentiation.

# %%
torch.manual_seed(0)
net, mask = families.mlp(2, 4).double(), torch.tensor([1.0, 0.0]).double()
x = test[:50].double()
z, log_det = couple(x, mask, net)
assert_close(uncouple(z, mask, net), x)
one = torch.autograd.functional.jacobian(lambda v: couple(v[None], mask, net)[0], x[0])
assert_close(torch.linalg.slogdet(one.squeeze()).logabsdet, log_det[0])

# %% [markdown]
# One coupling leaves a coordinate as it is, so the next one exchanges the
# roles. The library's layer also puts $a$ through $\tanh$, times a learned
# factor: with a free exponent, one wild step early in training is enough to
# overflow.

# %%
def reached(layer):
    """The layer's own a and c, as one network."""
    def net(kept):
        raw, c = layer.net(kept).chunk(2, dim=1)
        return torch.cat([layer.reach * raw.tanh(), c], 1)
    return net

# %%
torch.manual_seed(0)
blank, z, total = families.RealNVP(layers=6), test, 0
for layer in blank.couplings:
    z, log_det = couple(z, layer.mask.float(), reached(layer))
    total = total + log_det
log_p = normal_log_prob(z, torch.zeros(()), torch.ones(())) + total
assert_close(log_p, blank.log_prob(test))

# %% [markdown]
# Training is maximum likelihood, without a bound and without noise.

# %%
def make_flow(seed):
    torch.manual_seed(seed)
    model = families.RealNVP(layers=6)
    return train(model, model.loss, seed)


flow = make_flow(0)

# %% [markdown]
# "Exact" can be checked. The density must integrate to 1, which an unnormalised
# one or a bound does not, and samples must come back to the noise that made
# them.

# %%
cell = 8 / 400
side = -4 + cell * (torch.arange(400) + 0.5)
grid = torch.cartesian_prod(side, side)


def mass(log_p):
    """The integral of exp(log_p) over the square, by cells."""
    return log_p(grid).double().exp().sum().item() * cell**2

# %%
z = torch.randn(2000, 2, generator=dice(8))
back, _ = flow(flow.inverse(z))
exact_flow = flow.log_prob(test).mean().item()
claim("ch04b", "RealNVP's density integrates to 1, and lies below the truth's in nats",
      abs(mass(flow.log_prob) - 1) < 0.01 and exact_flow < truth,
      mass=mass(flow.log_prob), nats=exact_flow, truth=truth,
      there_and_back=bool((back - z).abs().max() < 1e-2))

# %% [markdown]
# ### The link to chapter 4
#
# A diffusion model's probability-flow ODE is an invertible map too. Walk it
# from data to noise in $N$ Euler steps of length $h$. Each is a layer
# $x\mapsto x + h\,u(x,t)$, and for a small enough $h$ it has an inverse. Its
# determinant, with the Jacobian $J=\partial u/\partial x$, is
#
# $$\log\det(I + hJ) = h\operatorname{tr}J -
# \tfrac{h^2}{2}\operatorname{tr}J^2 + \dots$$
#
# For $h\to0$ only the trace is left, and the sum over layers becomes an
# integral: $\log p(x_0) = \log p(x_1) + \int_0^1 \operatorname{tr}J\,dt$, the
# continuous flow (1806.07366, theorem 1; 2011.13456, eq. 39). A *trace* may be
# had of any network. So no coupling is needed any more, and no mask.
#
# With the exact denoiser we can watch the two sums meet. The walk starts at
# $t=0.02$.

# %%
from diffedu import schedules

path = schedules.cosine()


def velocity_and_jacobian(denoise, x, t):
    """u (B, D) and du/dx (B, D, D) of the probability-flow ODE."""
    x = x.detach().requires_grad_()
    u = denoise(x, t).velocity
    rows = [torch.autograd.grad(u[:, i].sum(), x, retain_graph=True)[0]
            for i in range(x.shape[1])]  # fmt: skip
    return u.detach(), torch.stack(rows, 1)

# %% [markdown]
# `layers` runs the walk once and keeps both sums: of the layers' own
# log-determinants, and of the traces.

# %%
def layers(denoise, x, times):
    """The end, the sum of log |det(I + h J)|, and the sum of h tr J."""
    exact, traces = torch.zeros(len(x)).to(x), torch.zeros(len(x)).to(x)
    for s, t in zip(times[:-1], times[1:], strict=True):
        u, J = velocity_and_jacobian(denoise, x, s)
        h = (t - s).item()
        exact += torch.linalg.slogdet(torch.eye(2).to(x) + h * J).logabsdet
        traces += h * J.diagonal(dim1=1, dim2=2).sum(1)
        x = x + h * u
    return x, exact, traces

# %%
from diffedu import samplers

best = world.denoiser(path)
inner = world.at(path, 0.02).sample(200, dice(9)).double()
counts, apart, off = [32, 64, 128, 256], [], []
for n in counts:
    times = samplers.time_grid(path, n, "log_snr", end=0.02).flip(0)
    end, exact, traces = layers(best, inner, times)
    apart.append((exact - traces).abs().mean().item())
    log_p = normal_log_prob(end, torch.zeros(()), torch.ones(())) + traces
    off.append((log_p - world.at(path, 0.02).log_prob(inner)).abs().mean().item())

# %%
fig, ax = plt.subplots(figsize=(5.8, 3.2))
ax.loglog(counts, apart, "o-", color=style.colour("realnvp"))
ax.loglog(counts, off, "s-", color=style.colour("diffusion"))
for x, y, words, name in ((34, 0.25 * apart[0], "log det - trace", "realnvp"),
                          (70, 1.4 * off[1], "log p - truth", "diffusion")):
    ax.annotate(words, (x, y), color=style.colour(name))
ax.set_xticks(counts, [str(n) for n in counts])
ax.set_xticks([], minor=True)
ax.set(xlabel="layers N", ylabel="mean error in nats")
ax.set_title("Many thin layers: a determinant becomes a trace")
style.show(fig, "Two falling lines over the number of layers on logarithmic axes: the "
           "difference of log-determinants and traces, and the error of log p, "
           "both halved when the number of layers doubles.")
slope = (torch.tensor(apart[-1] / apart[-2]).log() / torch.tensor(2.0).log()).item()
claim("ch04b", "twice the layers, half the gap between determinants and traces",
      abs(slope + 1) < 0.15, slope=slope, gap=apart[-1], log_p_error=off[-1])

# %% [markdown]
# A continuous flow can have any layer and any Jacobian, and pays with the number
# of layers. RealNVP does the same in six, and pays with the form of the layer.
#
# ## 4b.4 The GAN: no likelihood at all
#
# A **generator** maps noise to samples, $x=g(z)$, with no noise added. Nobody
# asks for its density (if $z$ has fewer dimensions than $x$ there is none).
# Instead a second network, the **discriminator**, learns to tell its samples
# from data. With $d(x)$ its logit, $D=\operatorname{sigmoid}(d)$ says how sure
# it is of "data" (1406.2661, eq. 1):
#
# $$L_d = -\mathbb E_{p}\log D(x) - \mathbb E_{z}\log\big(1 - D(g(z))\big).$$
#
# The best discriminator knows the log-ratio, $d(x) = \log p(x) - \log p_g(x)$,
# and where the two agree it can only guess: $L_d = 2\log2 = 1.39$. The
# generator moves its samples so as to fool it. In the minimax game it would go
# *down* $\mathbb E\log(1 - D(g(z)))$. The same paper advises to go down
# $-\mathbb E\log D(g(z))$ instead, the **non-saturating** loss. It pushes each
# sample in the same direction, but with another strength. The failure gallery
# shows what that saves.
#
# With logits, every one of these is a softplus,
# $-\log\operatorname{sigmoid}(d) = \log(1 + e^{-d})$, which doesn't overflow.

# %%
from torch.nn.functional import softplus


def judge_loss(real, fake):
    return softplus(-real).mean() + softplus(fake).mean()


def maker_loss(fake):
    return softplus(-fake).mean()

# %% [markdown]
# If the generator makes one Gaussian blob, both densities are known, so the best
# discriminator is known too. What it pays is the lowest $L_d$ there is.

# %%
blob = GaussianMixture([1.0], [[0.0, 0.0]], [0.9])
fake = blob.sample(2000, dice(10))


def best_logit(x):
    return world.log_prob(x) - blob.log_prob(x)


real, made = best_logit(test), best_logit(fake)
assert_close(judge_loss(real, made), families.discriminator_loss(real, made))
assert_close(maker_loss(made), families.generator_loss(made))
print(f"the best judge of a blob: {judge_loss(real, made):.2f}, blind: 1.39")

# %% [markdown]
# Near the end of the game the two players circle around each other. What calms
# them is a penalty on the discriminator's slope *at the data*: where the samples
# are right it must be flat. This is **R1** (1801.04406):
#
# $$R_1 = \frac\gamma2\,\mathbb E_p\big\|\nabla_x d(x)\big\|^2 .$$
#
# The function leaves the factor $\gamma/2$ to whoever calls it.

# %%
def r1(net, real):
    x = real.detach().requires_grad_()
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    return slope.square().sum(1).mean()


torch.manual_seed(0)
gan = families.GAN()
assert_close(r1(gan.discriminator, test),
             families.gradient_penalty(gan.discriminator, test))

# %% [markdown]
# The training loop cannot be the course's own. `training.fit` lowers *one* loss
# in *all* parameters; here each player has its own, and a sum of the two would
# have the generator help its judge. One round, by hand. Note where gradients are
# cut: the judge's step must not move the generator, and the generator's step
# passes through the judge but must not move it.

# %%
def one_round(gan, real, judge, maker, gamma, generator):
    fake = gan.sample(len(real), generator)  # no gradient
    d_loss = judge_loss(gan.discriminator(real), gan.discriminator(fake))
    judge.zero_grad()
    (d_loss + gamma / 2 * r1(gan.discriminator, real)).backward()
    judge.step()
    g_loss = maker_loss(gan.discriminator(gan(len(real), generator)))
    maker.zero_grad()
    g_loss.backward()
    maker.step()
    return d_loss.item(), g_loss.item()

# %% [markdown]
# Both optimisers are Adam with a $\beta_1$ of 0, since momentum would turn the
# circling into swings. Our round and the library's `play` take the same steps:

# %%
import copy


def adam(player):
    return torch.optim.Adam(player.parameters(), lr=4e-3, betas=(0.0, 0.99), fused=True)


def play(gan, seed, rounds, gamma=0.1, **options):
    """The library's game with the settings of this chapter."""
    return families.play(gan, batches(seed), rounds, lr=4e-3, gamma=gamma,
                         generator=dice(seed + 100), **options)  # fmt: skip

# %%
twin, data, noise = copy.deepcopy(gan), batches(0), dice(100)
players = adam(twin.discriminator), adam(twin.generator)
ours = [one_round(twin, data(i), *players, 0.1, noise) for i in range(3)]
theirs = [(r.discriminator_loss, r.generator_loss) for r in play(gan, 0, 3)]
assert_close(torch.tensor(ours), torch.tensor(theirs))

# %%
def make_gan(seed):
    torch.manual_seed(seed)
    *_, last = play(families.GAN(), seed, rounds=1000)
    return last


final = make_gan(0)
gan = final.model
report("ch04b", "the judge is nearly blind, and yet the samples are far from right",
       judge_loss=final.discriminator_loss, blind=2 * torch.tensor(2.0).log(),
       **judge(gan.sample(2000, dice(11))))

# %% [markdown]
# That report is the everyday trouble with GANs: the loss says who is ahead in
# the game, not how good the samples are. A judge near $1.39$ may face perfect
# samples, or be too small, or be held flat by its penalty.
#
# ## 4b.5 The energy-based model
#
# Chapter 3 learned the *score* of an energy, so as not to need $Z$. Here is the
# older way, by maximum likelihood. With $p_\theta = e^{-E_\theta}/Z_\theta$,
#
# $$-\nabla_\theta\log p_\theta(x) = \nabla_\theta E_\theta(x) +
# \nabla_\theta\log Z_\theta
# = \nabla_\theta E_\theta(x) - \mathbb E_{p_\theta}\big[\nabla_\theta
# E_\theta\big],$$
#
# because $\nabla\log Z = \frac1Z\int -\nabla E\; e^{-E}dx$. Lower the energy of
# data, raise that of the model's own samples. A loss with this gradient is
# $\frac1B\sum E(x) - \frac1M\sum E(\tilde x)$, where $\tilde x$ counts as a
# constant.

# %%
def contrastive(energy, real, fake):
    return energy(real).mean() - energy(fake.detach()).mean()

# %% [markdown]
# In two dimensions we can hold the identity to the truth: on the left the
# gradient of the likelihood, with $Z$ as a sum over a grid, on the right the
# contrast, with the expectation as a weighted sum over the same grid.

# %%
torch.manual_seed(0)
energy = families.EnergyModel().double()
places, x = grid.double()[::7], test[:200].double()
loss = energy(x).mean() + (-energy(places)).logsumexp(0)
share = (-energy(places)).softmax(0).detach()
other = energy(x).mean() - (share * energy(places)).sum()
learned = [p for n, p in energy.named_parameters() if n != "net.4.bias"]
pairs = zip(*(torch.autograd.grad(f, learned) for f in (loss, other)), strict=True)
gap = max((a - b).abs().max().item() for a, b in pairs)
claim("ch04b", "the contrast's gradient is the likelihood's, to rounding", gap < 1e-10,
      below_1e10=bool(gap < 1e-10))

# %% [markdown]
# (The last bias is left out: a constant in $E$ cancels in both.) The library's
# energy is a network plus $\|x\|^2/2$. Without the bowl nothing keeps $Z$
# finite, and samples drift off to wherever the network happens to fall.
#
# In higher dimensions the expectation needs samples of the model, so each step
# of training runs chapter 3's Langevin dynamics,
# $x \leftarrow x - \delta\nabla E(x) + \sqrt{2\delta}\,z$:

# %%
def langevin(energy, x, delta, noise):
    for z in noise:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(energy(x).sum(), x)
        x = (x - delta * slope + (2 * delta) ** 0.5 * z).detach()
    return x

# %%
energy = families.EnergyModel()
noise = torch.randn(5, 2000, 2, generator=dice(12))
theirs = families.langevin(energy, test, 0.006, 5, noise=noise)
assert_close(langevin(energy, test, 0.006, noise), theirs)
assert_close(contrastive(energy, test, theirs),
             families.contrastive_loss(energy, test, theirs))

# %% [markdown]
# Five steps lead nowhere if they start from noise. So the chains are
# **persistent** (Tieleman 2008): they go on where the last step of training
# left them, and since the energy has changed only a little they keep up with
# it. `Chains` holds them. It can also start a small share anew at each step, so
# that no region is forgotten (1903.08689). We don't: a chain that has just
# started is no sample of the model, and the likelihood pays for taking it for
# one. The loss moves the chains as a side effect, which `fit` allows, except in
# a captured CUDA graph.

# %%
def make_energy(seed, steps=1000, restart=0.0, walk=5):
    torch.manual_seed(seed)
    model = families.EnergyModel()
    chains = families.Chains(256, restart=restart, generator=dice(seed + 200))

    def loss(x, _):
        return contrastive(model, x, chains.walk(model, 0.006, walk))

    return train(model, loss, seed, steps)


energy = make_energy(0)

# %% [markdown]
# To sample, 300 steps from uniform noise. And the likelihood, by a grid: the
# honest way, which exists in very few dimensions only.

# %%
def sample_energy(model, n, seed, steps=300):
    start = families.Chains(n, generator=dice(seed)).x
    return families.langevin(model, start, 0.006, steps, dice(seed + 1))


def energy_nats(model):
    return (-model(test).mean() - model.log_partition()).item()

# %%
log_z = energy.log_partition()
report("ch04b", "the energy's constant, on two grids", fine=log_z,
       wide=energy.log_partition(6.0, 300), nats=energy_nats(energy), truth=truth)

# %% [markdown]
# A grid also tells how the density shares out its mass: the sum over the cells
# that are nearest to each spot. Chains do not cross between spots that lie far
# apart (chapter 3), so the shares have to come right early in training, while
# the energy is still one valley around the circle. They come out in the right
# order, but the heavy spots get too much and the light ones too little.

# %%
def masses(model):
    """The share of the density at each spot, by grid: (5,)."""
    share = (-model(grid)).softmax(0)
    return torch.zeros(5).index_add(0, torch.cdist(grid, centres).argmin(1), share)


report("ch04b", "weights of the spots: true, and of the density", true=weights,
       density=[round(v.item(), 2) for v in masses(energy)])

# %% [markdown]
# ## 4b.6 A small diffusion model
#
# Nothing new here: chapter 2's loss on chapter 1's path, as many steps of
# training, and 20 steps of DDIM. The network has the others' width, but one layer
# more, and must take in the time: it is the largest of the five, as a count will
# show. Its likelihood is chapter 4's: the trace along the ODE, here with Heun
# steps and the exact trace.

# %%
from diffedu import Denoiser, losses, nets


def make_diffusion(seed):
    torch.manual_seed(seed)
    denoise = Denoiser(nets.MLP(2, width=64, depth=3), path, predicts="v")
    return train(denoise, lambda x, g: losses.denoising(denoise, x, generator=g), seed)


def sample_diffusion(denoise, n, seed, steps=20):
    times = samplers.time_grid(path, steps)
    start = path.prior_sample((n, 2), times[0], dice(seed)).float()
    return samplers.ddim(denoise, start, times)

# %%
def ode_nats(denoise, x, steps=40):
    """log p(x) in nats by Heun's rule from t_min to t_max: (B,)."""
    times = samplers.time_grid(path, steps, "log_snr", end=path.t_min).flip(0)
    total = torch.zeros(len(x)).to(x)
    for s, t in zip(times[:-1], times[1:], strict=True):
        h = (t - s).item()
        u, J = velocity_and_jacobian(denoise, x, s)
        v, K = velocity_and_jacobian(denoise, x + h * u, t)
        x = x + h / 2 * (u + v)
        total += h / 2 * (J + K).diagonal(dim1=1, dim2=2).sum(1)
    return normal_log_prob(x, torch.zeros(()), torch.ones(())) + total

# %%
few = test[:500]
diffusion = make_diffusion(0)
gap = (ode_nats(best, few) - world.log_prob(few)).abs().mean().item()
claim("ch04b", "with the exact denoiser the ODE gives log p within 0.05 nats",
      gap < 0.05, mean_error=gap)

# %% [markdown]
# ## 4b.7 Side by side
#
# All five saw 1,000 batches of the same data. Their sizes differ.

# %%
models = {"vae": vae, "realnvp": flow, "gan": gan, "energy": energy,
          "diffusion": diffusion}  # fmt: skip
SAMPLE = {"vae": lambda m, n, s: m.sample(n, dice(s)),
          "realnvp": lambda m, n, s: m.sample(n, dice(s)),
          "gan": lambda m, n, s: m.sample(n, dice(s)),
          "energy": sample_energy, "diffusion": sample_diffusion}  # fmt: skip
drawn = {name: SAMPLE[name](model, 2000, 20) for name, model in models.items()}
seen = {name: judge(x) for name, x in drawn.items()}
report("ch04b", "thousands of parameters", **{
    name: round(sum(p.numel() for p in model.parameters()) / 1000, 1)
    for name, model in models.items()})  # fmt: skip

# %%
TITLES = {"truth": "Truth", "vae": "VAE", "realnvp": "RealNVP", "gan": "GAN",
          "energy": "EBM", "diffusion": "Diffusion"}  # fmt: skip
fig, axes = plt.subplots(2, 3, figsize=(7.6, 5.4), sharex=True, sharey=True)
panels = {"truth": test, **drawn}
for ax, (name, x) in zip(axes.flat, panels.items(), strict=True):
    share = seen.get(name, oracle)["quality"]
    style.scatter(ax, x[:1500], name, 2, 2.2, f"{TITLES[name]}: {share:.2f} at a spot")
    ax.title.set_fontsize(11)
for ax in axes[1]:
    ax.set_xlabel("$x_1$")
for ax in axes[:, 0]:
    ax.set_ylabel("$x_2$")
style.show(fig, "Samples of the truth and five models of five spots. The VAE's spots "
           "run together; filaments join RealNVP's; the GAN draws lines along a "
           "pentagon; the EBM's bridges follow the circle; diffusion has the fewest "
           "points between spots.")
report("ch04b", "the share of samples at a spot, after 1,000 steps",
       **{name: each["quality"] for name, each in seen.items()})

# %% [markdown]
# Now cost. Seconds depend on the machine, so we count: floating-point
# operations in products of matrices, and how often a network is called for one
# sample. The library's `count` runs a function and adds up its products, by
# torch's own table of what each costs. Backwards costs about twice as much as
# forwards, and is counted too.

# %%
NETWORK = {"vae": lambda m: m.decoder, "realnvp": lambda m: m.couplings[0].net,
           "gan": lambda m: m.generator, "energy": lambda m: m,
           "diffusion": lambda m: m.net}  # fmt: skip


def sampling_cost(name, model):
    cost = families.count(lambda: SAMPLE[name](model, 100, 0), NETWORK[name](model))
    return {"calls": cost.calls, "sample_flops": cost.flops / 100}

# %% [markdown]
# One step of each training, times 1,000. The EBM's step contains its five
# Langevin steps, the GAN's both players and the penalty.

# %%
def training_cost(name, model):
    model = copy.deepcopy(model).requires_grad_()
    x = batches(0)(0)
    chains = families.Chains(256, generator=dice(0))
    step = {
        "gan": lambda: list(play(model, 0, 1)),
        "energy": lambda: contrastive(
            model, x, chains.walk(model, 0.006, 5)).backward(),
        "diffusion": lambda: losses.denoising(model, x, generator=dice(0)).backward(),
    }
    return families.count(step.get(name, lambda: model.loss(x).backward())).flops * 1000

# %% [markdown]
# And the likelihood: exact for the flow, by a bound for the VAE, by a grid for
# the EBM, by an ODE solver for diffusion, and for the GAN none. (The VAE's bound
# has 128 draws. By section 4b.2 its true likelihood is a few hundredths higher.)

# %%
NATS = {
    "vae": lambda m: m.importance_bound(test, 128, dice(5)).mean().item(),
    "realnvp": lambda m: m.log_prob(test).mean().item(),
    "gan": lambda m: None,
    "energy": energy_nats,
    "diffusion": lambda m: ode_nats(m, test).mean().item(),
}
KINDS = {"vae": "bound", "realnvp": "exact", "gan": "none", "energy": "grid",
         "diffusion": "ODE"}  # fmt: skip


def measure(name, model):
    x = SAMPLE[name](model, 2000, 20)
    return {**judge(x), "nats": NATS[name](model), **sampling_cost(name, model),
            "training_flops": training_cost(name, model)}  # fmt: skip

# %%
table = {name: measure(name, model) for name, model in models.items()}


def cells(row, kind):
    nats = "none" if row["nats"] is None else f"{row['nats']:.2f}"
    cost = row.get("calls", 0), row.get("sample_flops", 0), row.get("training_flops", 0)
    return (f"{row['quality']:.2f}  {row['coverage']:.2f}  {row['spread']:.2f}   "
            f"{nats:>5s} {kind:5s} {cost[0]:4d} {cost[1] / 1e3:6.0f} "
            f"{cost[2] / 1e9:5.0f}")  # fmt: skip


print("           qual. cover spread  nats       calls  kFLOP GFLOP")
print(f"{'truth':10s} {cells({**oracle, 'nats': truth}, 'exact')}")
for name, row in table.items():
    print(f"{name:10s} {cells(row, KINDS[name])}")

# %% [markdown]
# The first cost is calls of a network for one sample (of the flow's six
# networks one is counted: a pass through all of them is one evaluation), then
# thousands of operations for one sample, then $10^9$ of them for the whole
# training. One seed is one draw. So the same five trainings were run with three
# seeds, and *recorded*; the cell below made the file. The figure shows all
# three. The likelihoods of the live flow and VAE must agree with their record.

# %%
MAKE = {"vae": make_vae, "realnvp": make_flow, "gan": lambda s: make_gan(s).model,
        "energy": make_energy, "diffusion": make_diffusion}  # fmt: skip
if budget(laptop=False, full=True):
    rows = {name: [measure(name, make(s)) for s in (0, 1, 2)]
            for name, make in MAKE.items()}  # fmt: skip
    recipe = {"data": "five spots", "steps": 1000, "batch": 256, "lr": 5e-3,
              "gan_lr": 4e-3, "gamma": 0.1, "width": 64}  # fmt: skip
    save_recorded("ch04b", figure="ch04b", recipe=recipe, seeds=[0, 1, 2], results=rows)

# %%
runs = recorded("ch04b")["results"]


def column(name, what):
    """The three seeds' values; likelihood as nats short of the truth."""
    values = [row[what] for row in runs[name]]
    if what == "training_flops":
        return [v / 1e9 for v in values]
    return [truth - v for v in values] if what == "nats" else values


def mean(name, what):
    return sum(column(name, what)) / 3

# %%
AXES = {"quality": "quality", "coverage": "coverage",
        "nats": "nats short of truth", "sample_flops": "FLOPs a sample",
        "training_flops": "training GFLOPs"}  # fmt: skip
fig, axes = plt.subplots(1, 5, figsize=(10, 3.0), sharey=True)
for ax, (what, label) in zip(axes, AXES.items(), strict=True):
    for y, name in enumerate(reversed(list(models))):
        if runs[name][0][what] is None:
            ax.annotate("none", (0.5, y), ha="center", va="center", fontsize=10)
            continue
        ax.plot(column(name, what), [y] * 3, "o", ms=7, alpha=0.6, mew=0,
                color=style.colour(name))  # fmt: skip
    if what == "sample_flops":
        ax.set_xscale("log")
    elif what in oracle:
        ax.axvline(oracle[what], color=style.colour("truth"), lw=1, ls=":")
    ax.set_xlabel(label, fontsize=10)
    ax.grid(axis="y", alpha=0.3)
axes[0].set_yticks(range(5), [TITLES[name] for name in reversed(list(models))])
for ax, low, high in zip(axes, (0.5, 0.8, 0, 3e3, 0), (1.02, 1.02, 1, 3e7, 55),
                         strict=True):  # fmt: skip
    ax.set_xlim(low, high)
fig.suptitle("Diffusion leads in what it makes, not in what a sample costs",
             fontsize=12, x=0.02, ha="left")  # fmt: skip
style.show(fig, "Dots of three seeds for five models on five axes: quality, coverage, "
           "likelihood, cost of a sample and of training. Diffusion leads in "
           "quality and likelihood; VAE and GAN are the cheapest to sample.")
others = [name for name in models if name != "diffusion"]
best_quality = min(column("diffusion", "quality"))
least_short = max(column("diffusion", "nats"))
claim("ch04b", "diffusion has the best quality and likelihood on three seeds, and pays "
      "over ten times a GAN's price for a sample (recorded; flow and VAE again live)",
      all(best_quality > max(column(n, "quality")) for n in others)
      and all(least_short < min(column(n, "nats")) for n in others if n != "gan")
      and mean("diffusion", "sample_flops") > 10 * mean("gan", "sample_flops")
      and all(abs(table[n]["nats"] - runs[n][0]["nats"]) < 0.1
              for n in ("vae", "realnvp")),
      **{n: [round(v, 2) for v in column(n, "quality")] for n in models},
      nats_short=[round(mean(n, "nats"), 2) for n in models if n != "gan"])

# %% [markdown]
# Read the table by what each family gave up. The **VAE** is the cheapest to
# train, costs as little to sample as the GAN, and its bridges are the widest.
# **RealNVP** has them as thin filaments, and the only exact likelihood. The
# **GAN** draws lines where the truth has spots: its samples have no noise of
# their own, so that quality and spread say little about density, and its loss
# foresees neither. The **EBM** is the dearest to sample, with hundreds of
# network calls, and every step of its training contains a short walk. The
# **diffusion model** is nearest to the truth in quality and nats. It has
# bridges too (look between the spots), its spread is below the truth's, and its
# training costs the most. For a sample it pays 20 calls, 150 times a GAN's
# operations. That price is what chapters 5 to 7 bring down.
#
# What the table does not say: its ranking is that of 1,000 steps on five spots,
# with networks of unequal size.

# %% [markdown]
# ## 4b.8 Failure gallery
#
# Each family of this chapter but the flow has its own classic, the GAN two. They
# are trained like their healthy siblings, but for what is said, and for at most
# 400 steps.
#
# **Posterior collapse.** The VAE's decoder noise is held at $\sigma=1$, as a
# loss of plain squared errors does without saying so. That is wider than the
# data, whose standard deviation is 0.9 along $x_1$ and 0.8 along $x_2$.
# Whatever $z$ says then makes hardly any difference under the noise, and saying
# it costs nats. So the encoder learns to say nothing,
# $q(z\mid x)=\mathcal N(0,I)$, and the decoder to ignore $z$. For a linear VAE
# one can prove it: a direction of variance below $\sigma^2$ is not encoded
# (1911.02469).

# %%
torch.manual_seed(0)
collapsed = families.VAE(std=1.0, learn_std=False)
collapsed = train(collapsed, collapsed.loss, 0, steps=400)


def sent(model):
    """Nats that the encoder sends about a sample."""
    return families.standard_kl(*model.encode(test)).sum(1).mean().item()


report("ch04b", "posterior collapse: nats sent by the encoder", healthy=sent(vae),
       collapsed=sent(collapsed))

# %% [markdown]
# **Mode collapse.** The GAN without its penalty, for 400 rounds at a learning
# rate two and a half times as large. The generator moves to wherever the judge
# is fooled just now, and nothing in its loss asks for the spots that nobody
# visits. How much goes missing depends on the seed, so it is reported and not
# claimed.

# %%
torch.manual_seed(1)
*_, last = families.play(families.GAN(), batches(1), 400, lr=1e-2, gamma=0.0,
                         ema=0.9, generator=dice(101))  # fmt: skip
narrow = last.model.sample(2000, dice(13))
report("ch04b", "a GAN without penalty, learning fast", **judge(narrow))

# %% [markdown]
# **A discriminator that is too strong.** Freeze the generator at a small blob in
# the middle, where no data are, and train the judge alone. The generator only
# learns from the judge's slope at its samples. The minimax loss multiplies it by
# $D$, which goes to 0 as the judge grows sure; the non-saturating one by $1-D$,
# which goes to 1. Meanwhile the slope itself grows. In the figure below the
# non-saturating pull grows with it, and the minimax one gains nothing.

# %%
def pull(net, fake, saturating):
    """How hard a loss pulls at the samples: root mean square of its gradient."""
    x = fake.requires_grad_()
    each = families.generator_loss(net(x), saturating) * len(x)
    return torch.autograd.grad(each, x)[0].square().sum(1).mean().sqrt().item()


torch.manual_seed(2)
blob, judge_net = 0.15 * torch.randn(256, 2, generator=dice(14)), families.GAN()
net, data = judge_net.discriminator, batches(2)
optimizer, pulls = adam(net), {True: [], False: []}

# %%
for step in range(301):
    if step % 20 == 0:
        for saturating, seen_pulls in pulls.items():
            seen_pulls.append(pull(net, blob, saturating))
    loss = judge_loss(net(data(step)), net(blob.detach()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# **An EBM whose chains are not persistent.** Every training step starts its
# chains anew from uniform noise (`restart=1`) and walks ten steps. Training
# looks healthy, and most ten-step walks even end near a spot. But the energy has
# only learned where to push noise in ten steps (1904.09770; 1903.12370). As a
# *density* it is wrong: the grid says so, where three spots have no mass, and so
# does a longer walk, which leaves those three empty.

# %%
short = make_energy(0, steps=400, restart=1.0, walk=10)
few_steps = sample_energy(short, 2000, 15, steps=10)
many_steps = sample_energy(short, 2000, 15, steps=500)
report("ch04b", "short chains: nats of the density, samples after 10 and 500 steps",
       persistent_nats=energy_nats(energy), short_nats=energy_nats(short),
       quality=[judge(few_steps)["quality"], judge(many_steps)["quality"]],
       coverage=[judge(few_steps)["coverage"], judge(many_steps)["coverage"]],
       weights=[round(v.item(), 2) for v in masses(short)])

# %%
def draw_pulls(ax):
    steps = range(0, 301, 20)
    ax.semilogy(steps, pulls[False], color=style.colour("gan"))
    ax.semilogy(steps, pulls[True], "--", color=style.colour("gan"))
    ax.annotate("non-saturating", (110, 0.4 * pulls[False][8]))
    ax.annotate("minimax", (150, 2.5 * pulls[True][9]))
    ax.set(xlabel="steps of the judge alone", ylabel="pull at the samples")
    ax.set_title("Minimax: a sure judge won't teach", fontsize=11)

# %%
fig, axes = plt.subplots(2, 3, figsize=(9.6, 6))
failures = {
    "VAE, collapsed: one blob": ("vae", collapsed.sample(2000, dice(16))),
    "GAN: two spots nearly missed": ("gan", narrow),
    "EBM, short chains: 10 steps": ("energy", few_steps),
    "The same: 500 steps": ("energy", many_steps),
}
places = [axes[0, 0], axes[0, 1], axes[1, 0], axes[1, 1]]
for ax, (title, (name, x)) in zip(places, failures.items(), strict=True):
    style.scatter(ax, x[:1200], name, 3, 2.4)
    ax.set_title(title, fontsize=11)
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
draw_pulls(axes[0, 2])
log_p = -short(grid)
axes[1, 2].pcolormesh(side, side, log_p.reshape(400, 400).T.exp(), cmap="Greys")
axes[1, 2].set(aspect="equal", xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), xlabel="$x_1$")
axes[1, 2].set_title("Its density, by grid", fontsize=11)
style.show(fig, "Six panels of failures: a VAE's samples are one blob; a GAN's are "
           "dense at three spots of five; as the judge trains the non-saturating pull "
           "grows to 11, and the minimax one stays near 0.1; an EBM of short chains "
           "has samples all around the circle after ten steps, at two spots after "
           "500, and nearly all of its density at one.")
claim("ch04b", "under a sure judge the minimax loss pulls a tenth as hard, or less",
      pulls[True][-1] < 0.1 * pulls[False][-1], minimax=pulls[True][-1],
      non_saturating=pulls[False][-1])

# %% [markdown]
# | what you see | look for |
# |---|---|
# | a VAE's samples are one blob, KL near 0 | decoder noise held, or begun, too wide |
# | a VAE's samples look better than its bound | decoder means, shown without noise |
# | a GAN misses spots | no penalty, a rate that is too high; other seeds |
# | a generator stands still from the start | the minimax loss, a judge far ahead |
# | NaN in a flow | scales without a bound; masks that do not alternate |
# | an EBM's loss runs off | chains that don't keep up: smaller rate, more steps |
# | an EBM's samples are fair, its nats aren't | chains that restart, or don't mix |
#
# ## 4b.9 What was scaled down, and what is left out
#
# - Everything is two-dimensional, with networks of 4 to 34 thousand parameters and
#   a thousand steps. The ranking of samples on images is another matter: there
#   GANs made the best ones for years, until diffusion (2105.05233).
# - Nobody was tuned for long, and equal numbers of steps are not equal cost: the
#   table's last column says so.
# - RealNVP's batch normalisation and its multi-scale form (1605.08803) are
#   left out, and so are VAEs with many levels, of which diffusion is one.
# - The EBM has no tempering, no Metropolis correction and no regulariser
#   (1903.08689 has one on the energies). Autoregressive models, the fifth old
#   family, do not appear.
# - 2112.07804 names the *trilemma*, quality, coverage and fast sampling, and
#   mends it with a GAN for each of a few denoising steps. Chapter 7 shortens the
#   walk by distillation instead.
#
# ## 4b.10 Summary
#
# - A VAE bounds its likelihood, and the importance-weighted bound says how
#   loosely. Its Gaussian decoder and continuous map leave bridges.
# - RealNVP's likelihood is exact, because each layer has an inverse and a known
#   determinant. Many thin layers without that form are a continuous flow, and
#   the ODE of a diffusion model is one.
# - A GAN makes a sample in one cheap pass, has no likelihood, and its loss does
#   not say how good it is.
# - An energy may be any function. Its gradient needs samples of the model, and
#   chains that restart too soon give fair samples and a wrong density.
# - Diffusion gives up one-pass sampling, and has the best quality and likelihood
#   of the five here.
#
# Do the [exercises](../exercises/ch04b_other_families.ipynb) next. Chapter 5
# then goes after what diffusion gave up: the number of steps.
