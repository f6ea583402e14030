# %% [markdown]
# # Exercises 4b: four other families
#
# Five exercises on [chapter 4b](../notebooks/ch04b_other_families.ipynb). Four
# are the heart of one family each, and are checked; the last is graded by hand.
# No function draws noise of its own: where noise is needed it is an argument.

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import families, style, training
from diffedu.checks import ch04b as check

style.use()

# %% [markdown]
# ## Exercise 1. The reparametrised bound
#
# *Difficulty 2 of 5 · 25 minutes*
#
# A VAE's encoder answers, for each $x$, the mean $m$ and the logarithm of the
# standard deviation $\log S$ of $q(z\mid x)$. With $z=m+S\varepsilon$ the bound
# is (1312.6114, eq. 10)
#
# $$\log\mathcal N\big(x;\ g(z),\ \sigma^2I\big)
# - \sum_j\Big[\tfrac12\big(m_j^2+S_j^2-1\big)-\log S_j\Big] .$$
#
# Write `elbo(x, mean, log_std, eps, decode, std)`: `x` of shape (B, D); `mean`,
# `log_std` and `eps` of shape (B, L); `decode` maps (B, L) to (B, D); `std` is
# $\sigma$, a tensor of shape (). Return nats, shape (B,), with all constants, so
# that it can be compared with a likelihood. Gradients must reach the encoder.
# What you should see below: your bound trains a VAE that bends a line into a ring.
#
# <details><summary>Hint 1: a nudge</summary>
#
# What would happen to the bound if the latents had no influence on the decoder?
# Then only the second term is left to the encoder, and it should be 0.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# For $D$ independent elements of one standard deviation,
# $\log\mathcal N = -\frac{\|x-g(z)\|^2}{2\sigma^2} - D\log\sigma -
# \frac D2\log2\pi$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Three lines: `z`, the log-density of `x` (a sum over `dim=1`), and the KL term
# (another sum over `dim=1`). `torch.exp(log_std)` is $S$, `exp(2 * log_std)` is
# $S^2$, and $D$ is `x.shape[1]`.
#
# </details>

# %% tags=["solution:elbo"]
def elbo(x, mean, log_std, eps, decode, std):
    """A lower bound on log p(x) in nats, one value a sample."""
    ### BEGIN SOLUTION
    z = mean + log_std.exp() * eps
    away = ((x - decode(z)) / std).square().sum(1)
    constants = std.log() + 0.5 * torch.tensor(2 * torch.pi, dtype=x.dtype).log()
    kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std
    return -0.5 * away - x.shape[1] * constants - kl.sum(1)
    ### END SOLUTION

# %% tags=["check:elbo", "points:2"]
check.elbo(elbo)

# %% [markdown]
# Your bound at work: a ring of radius 1 with noise 0.2, which the decoder is told,
# and a VAE with one latent, which has to bend a line into a ring. It leaves a
# seam.

# %%
def ring(n, generator):
    angle = 2 * torch.pi * torch.rand(n, generator=generator)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.2 * torch.randn(n, 2, generator=generator)


def bound_loss(x, generator):
    mean, log_std = vae.encode(x)
    eps = torch.randn(mean.shape, generator=generator)
    return -elbo(x, mean, log_std, eps, vae.decoder, vae.log_std.exp()).mean()

# %%
torch.manual_seed(0)
draws = torch.Generator().manual_seed(1)
vae = families.VAE(latent=1, std=0.2, learn_std=False)
*_, last = training.fit(vae, bound_loss, lambda step: ring(256, draws), steps=500,
                        lr=5e-3, ema=0.98, progress=False, generator=draws)  # fmt: skip
fig, ax = plt.subplots(figsize=(3.6, 3.4))
style.scatter(ax, last.ema.sample(1500, draws), "vae", 3, 1.8, "A line bent to a ring")
ax.set(xlabel="$x_1$", ylabel="$x_2$")
style.show(fig, "Samples of the VAE lie on a ring of noise 0.2, with a seam where the "
           "two ends of the latent line meet.")
radius = last.ema.sample(4000, draws).norm(dim=1)
print(f"radius {radius.mean():.1f} with spread {radius.std():.1f}")

# %% [markdown]
# ## Exercise 2. A coupling layer, both ways
#
# *Difficulty 2 of 5 · 25 minutes*
#
# The affine coupling and its inverse, with the mask $b$ (1 where a coordinate
# stays) and one network that answers $a$ and $c$ side by side (1605.08803,
# eq. 9; there $s$ and $t$):
#
# $$z = b\,x + (1-b)\big(x\,e^{a(bx)} + c(bx)\big).$$
#
# Write `coupling(v, mask, net, inverse)`: `v` of shape (B, D); `mask` of shape
# (D,), zeros and ones; `net` maps (B, D) to (B, 2D), `a` in the first half. With
# `inverse=False`, `v` is $x$: return $z$, and $\log|\det\partial z/\partial x|$
# of shape (B,). With `inverse=True`, `v` is $z$: return $x$, and the
# log-determinant of *that* map. What you should see below: a stack of your
# layers comes back to where it began, and squeezes a plane without folding it.
#
# <details><summary>Hint 1: a nudge</summary>
#
# What may the network look at, so that it sees the same on the way back?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Solve for the moving coordinates: $x = (z - c)\,e^{-a}$. The Jacobian is
# triangular, with $1$ or $e^{a}$ on its diagonal; that of the inverse has one
# over it.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `a, c = net(v * mask).chunk(2, dim=1)`, then an `if inverse:` with one line a
# branch for what moves. `mask * v + (1 - mask) * moved` puts both together; the
# log-determinant is a sum over `dim=1` of the moving coordinates' `a`, with a
# sign.
#
# </details>

# %% tags=["solution:coupling"]
def coupling(v, mask, net, inverse):
    """An affine coupling or its inverse, and its log-determinant."""
    ### BEGIN SOLUTION
    a, c = net(v * mask).chunk(2, dim=1)
    log_det = ((1 - mask) * a).sum(1)
    if inverse:
        return mask * v + (1 - mask) * (v - c) * torch.exp(-a), -log_det
    return mask * v + (1 - mask) * (v * torch.exp(a) + c), log_det
    ### END SOLUTION

# %% tags=["check:coupling", "points:2"]
check.coupling(coupling)

# %% [markdown]
# Eight random layers, from a regular grid of lines to a bent one and back.

# %%
torch.manual_seed(2)
masks = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])] * 4
nets = [families.mlp(2, 4, width=16).requires_grad_(False) for _ in masks]
side = torch.linspace(-2, 2, 25)
start = torch.cartesian_prod(side, side)
bent, total = start, 0
for mask, net in zip(masks, nets, strict=True):
    bent, log_det = coupling(bent, mask, lambda x, net=net: 2 * net(x), False)
    total = total + log_det
back = bent
for mask, net in zip(masks[::-1], nets[::-1], strict=True):
    back, log_det = coupling(back, mask, lambda x, net=net: 2 * net(x), True)
    total = total + log_det
print(f"came back: {bool((back - start).abs().max() < 1e-3)}, "
      f"log-determinants cancel: {bool(total.abs().max() < 1e-3)}")

# %%
fig, ax = plt.subplots(figsize=(3.8, 3.4))
lattice = bent.reshape(25, 25, 2)
for lines in (lattice, lattice.transpose(0, 1)):
    ax.plot(lines[..., 0].T, lines[..., 1].T, color=style.colour("realnvp"), lw=0.7)
ax.set(aspect="equal", xlabel="$z_1$", ylabel="$z_2$")
ax.set_title("Bent, and nowhere folded")
style.show(fig, "A grid of lines after eight random coupling layers: bent and "
           "stretched, without crossing itself.")

# %% [markdown]
# ## Exercise 3. What the two players pay
#
# *Difficulty 1 of 5 · 15 minutes*
#
# The discriminator answers logits $d$, with $D=\operatorname{sigmoid}(d)$. Write
# `gan_losses(real, fake)`: logits of data and of samples, of shapes (B,) and
# (M,). Return two numbers of shape (), in nats: the discriminator's loss and the
# generator's *non-saturating* loss (1406.2661, section 3),
#
# $$-\mathbb E\log D(x) - \mathbb E\log\big(1-D(g(z))\big),\qquad
# -\mathbb E\log D(g(z)).$$
#
# Logits may be large: at $-150$ the generator's loss is 150, not infinite. Both
# losses are trained with, so gradients must reach the logits. What you should
# see below: one curve that falls and one that rises. Where the judge can only
# guess it pays twice what the generator pays.
#
# <details><summary>Hint 1: a nudge</summary>
#
# The judge of a coin toss says $D=\frac12$ to everything. What are the losses?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $-\log\operatorname{sigmoid}(d)=\log(1+e^{-d})$, and
# $1-\operatorname{sigmoid}(d)=\operatorname{sigmoid}(-d)$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.nn.functional.softplus(y)` is $\log(1+e^y)$ without overflow. The first
# loss is a sum of two means, the second is one mean; watch the sign inside.
#
# </details>

# %% tags=["solution:gan_losses"]
def gan_losses(real, fake):
    """The discriminator's loss, and the generator's non-saturating one."""
    ### BEGIN SOLUTION
    softplus = torch.nn.functional.softplus
    judged = softplus(-real).mean() + softplus(fake).mean()
    return judged, softplus(-fake).mean()
    ### END SOLUTION

# %% tags=["check:gan_losses", "points:1"]
check.gan_losses(gan_losses)

# %% [markdown]
# Suppose the judge answers $d$ to all data and $-d$ to all samples. At $d=0$ it
# is blind: it pays $2\log2$, the generator $\log2$.

# %%
logits = torch.linspace(-4, 4, 81)
paid = [gan_losses(d[None], -d[None]) for d in logits]
fig, ax = plt.subplots(figsize=(5, 2.8))
ax.plot(logits, [p[0] for p in paid], label="judge")
ax.plot(logits, [p[1] for p in paid], label="generator")
style.label_lines(ax)
ax.set(xlabel="logit of data = minus logit of samples", ylabel="loss in nats")
ax.set_title("As one loss falls the other rises")
style.show(fig, "The judge's loss falls and the generator's rises with the judge's "
           "logit; at 0 they are 1.39 and 0.69.")

# %% [markdown]
# ## Exercise 4. One step of an energy-based model
#
# *Difficulty 3 of 5 · 35 minutes*
#
# Move the chains on, then contrast. Write
# `ebm_loss(energy, real, chains, step, noise)`: `energy` maps (B, D) to (B,);
# `real` has shape (B, D), `chains` (M, D), `noise` (K, M, D); `step` is $\delta$.
# First take the $K$ steps $x\leftarrow x-\delta\nabla E(x)+\sqrt{2\delta}\,z_k$
# from `chains`. Return the loss
# $\frac1B\sum E(x)-\frac1M\sum E(\tilde x)$ and the chains' new places
# $\tilde x$, which the next step will start from. The gradient in the energy's
# weights must flow through $E$ at both sets of points, and not through the walk:
# $\tilde x$ is data. Nor may the walk leave gradients behind in the weights'
# `.grad`. What you should see below: an energy with the right
# likelihood to a tenth of a nat.
#
# <details><summary>Hint 1: a nudge</summary>
#
# In which line does each of the two gradients, in $x$ and in the weights, begin
# and end?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\nabla_\theta(-\log p_\theta)=\nabla_\theta E(x)-\mathbb
# E_{p_\theta}[\nabla_\theta E]$: where the samples came from does not occur.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# In the loop over `noise`: `x = x.detach().requires_grad_()`, then
# `torch.autograd.grad(energy(x).sum(), x)[0]`, then the step. Detach once more
# after the loop, and call `energy` again on both sets.
#
# </details>

# %% tags=["solution:ebm_loss"]
def ebm_loss(energy, real, chains, step, noise):
    """The contrastive loss, and where the chains are now."""
    ### BEGIN SOLUTION
    x = chains
    for z in noise:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(energy(x).sum(), x)
        x = x - step * slope + (2 * step) ** 0.5 * z
    x = x.detach()
    return energy(real).mean() - energy(x).mean(), x
    ### END SOLUTION

# %% tags=["check:ebm_loss", "points:3"]
check.ebm_loss(ebm_loss)

# %% [markdown]
# The ring again, with your loss in the course's training loop. The chains are
# kept outside, and start from noise only once. A grid gives $Z$, and the truth
# is known, since the angle can be integrated out numerically.

# %%
torch.manual_seed(3)
energy, draws = families.EnergyModel(width=32), torch.Generator().manual_seed(4)
kept = {"x": 2 * torch.randn(256, 2, generator=draws)}


def loss_and_walk(x, generator):
    noise = torch.randn(5, 256, 2, generator=generator)
    loss, kept["x"] = ebm_loss(energy, x, kept["x"], 0.01, noise)
    return loss

# %%
*_, last = training.fit(energy, loss_and_walk, lambda step: ring(256, draws),
                        steps=800, lr=5e-3, ema=0.98, progress=False, capture=False,
                        generator=draws)  # fmt: skip
test = ring(4000, draws)
found = -last.ema(test).mean() - last.ema.log_partition()
angle = 2 * torch.pi * torch.arange(360) / 360
centres = torch.stack([angle.cos(), angle.sin()], 1)
true = families.gaussian_log_prob(test[:, None], centres, torch.tensor(0.2).log())
true = (true.logsumexp(1) - torch.tensor(360.0).log()).mean()
print(f"short of the truth by less than a tenth of a nat: {bool(true - found < 0.1)}")

# %% [markdown]
# ## Exercise 5. Which model wins on which axis?
#
# *Difficulty 2 of 5 · 30 minutes*
#
# From the chapter's table and figures, and in ten sentences at most: (a) name
# the model that you would choose, and the one that you would not, if what counts
# is (i) a sample within a millisecond, (ii) a likelihood that must be right to a
# hundredth of a nat, (iii) that no kind of data is missed, (iv) that nothing is
# drawn between the kinds. (b) The *trilemma* of 2112.07804 says: samples of high
# quality, coverage of modes, fast sampling, pick two. Which two does each of the
# five pick here? (c) Which finding of the table would you not trust on images,
# and why?
#
# <details><summary>Hint 1: what to look at</summary>
#
# For each axis ask what the model had to give up in its *form*: an inverse, an
# encoder, a normaliser, a likelihood, one pass.
#
# </details>

# %% [markdown] tags=["answer:which_model", "points:4"]
# (a) (i) One pass: GAN or VAE; the flow still makes one pass through six networks.
# Not the EBM, whose chain takes hundreds of steps. (ii) RealNVP, which is exact by
# construction. The VAE has a bound, diffusion an ODE solver whose error must be
# checked; not the GAN, which has none, and not the EBM above two dimensions, where
# no grid gives $Z$. (iii) Diffusion, or whoever is trained by likelihood, which
# charges without limit for data that got no mass; not the GAN, whose loss doesn't
# ask. (iv) Diffusion, or an EBM if a likelihood isn't needed; not a VAE, GAN or flow,
# which map one connected cloud in one pass of a smooth function, so that bridges are
# built in. (Diffusion's ODE is continuous too, but twenty passes can be steep.)
#
# (b) VAE: coverage and speed. RealNVP: coverage and speed. GAN: speed and, with
# tuning, quality. EBM: coverage, and quality with longer training; not speed.
# Diffusion: quality and coverage.
#
# (c) The GAN's bridges: with five far spots and a two-dimensional $z$ the shape of the
# map decides, while on images the distance between kinds matters less than detail,
# for which a judge is a better teacher than a squared error. Nor the grid's
# likelihood, which has no counterpart there. (Other answers are as good if they name a
# reason that changes with the dimension.)
