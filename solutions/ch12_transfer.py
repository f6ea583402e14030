# %% [markdown]
# # Exercises 12: classifiers out of denoisers, and students
#
# Five exercises on [chapter 12](../notebooks/ch12_transfer.ipynb). Shapes are given
# with each, and no function draws noise of its own unless it says so. After each
# check a cell uses your function.

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import GaussianMixture, representations, schedules, style
from diffedu.checks import ch12 as check

style.use()

# %% [markdown]
# ## Exercise 1. The class that errs least
#
# *Difficulty 2 of 5 · 25 minutes*
#
# A Diffusion Classifier (2303.16203, algorithm 1) noises a sample, asks the
# network once for each class what the noise was, and takes the class with the
# least mean squared error:
#
# $$\hat c = \arg\min_c\ \frac1M\sum_{j=1}^{M}
# \big\lVert \varepsilon_j - \hat\varepsilon(\alpha_j x_0+\sigma_j\varepsilon_j,
# \,j,\,c)\big\rVert^2 .$$
#
# Write `least_error(predict, x0, alpha, sigma, eps, classes)`.
# `predict(x_t, j, c)` answers the predicted noise, shape (B, D), for the numbers
# `j` of a look and `c` of a class, both from 0. `x0` has shape (B, D), `alpha`
# and `sigma` (M,), `eps` (M, B, D), and `classes` is a whole number. Return the
# errors (B, classes), each a sum over coordinates and a mean over looks, and the
# decision (B,). What you should see below: nine of ten points decided rightly.
#
# <details><summary>Hint 1: a nudge</summary>
#
# How many noisy versions of one sample are needed for one look?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $x_j = \alpha_j x_0 + \sigma_j\varepsilon_j$ has no $c$ in it: it is made once
# and shown to all classes.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Two loops: outside over the looks, where `x_t` is made, inside over the classes,
# where `(predict(x_t, j, c) - eps[j]).square().sum(1)` is added to a column of a
# tensor of zeros. Then divide, and `argmin(1)`.
#
# </details>

# %% tags=["solution:least_error"]
def least_error(predict, x0, alpha, sigma, eps, classes):
    """Mean squared errors of each class, and the class with the least."""
    ### BEGIN SOLUTION
    errors = x0.new_zeros(len(x0), classes)
    for j, noise in enumerate(eps):
        x_t = alpha[j] * x0 + sigma[j] * noise
        for c in range(classes):
            errors[:, c] += (predict(x_t, j, c) - noise).square().sum(1)
    errors = errors / len(eps)
    return errors, errors.argmin(1)
    ### END SOLUTION

# %% tags=["check:least_error", "points:2"]
check.least_error(least_error)

# %% [markdown]
# On a mixture of three classes, whose denoiser is exact, with 40 looks that lie
# evenly in log-SNR:

# %%
path = schedules.cosine()
centres = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.5]])
world = GaussianMixture([1.0] * 3, centres, [0.5] * 3)
denoise = world.denoiser(path)
x0, label = world.sample(500, torch.Generator().manual_seed(0), labelled=True)
times = path.time_of_log_snr(torch.linspace(-8, 8, 40)).float()
noise = torch.randn(40, 500, 2, generator=torch.Generator().manual_seed(1))

# %%
def predict(x_t, j, c):
    return denoise(x_t, times[j], label=torch.full((len(x_t),), c)).eps


errors, decided = least_error(predict, x0, *path.coefficients(times), noise, 3)
best = (world.class_posterior(x0).argmax(1) == label).double().mean()
print(f"right: {(decided == label).double().mean():.2f}, Bayes {best:.2f}")

# %% [markdown]
# ## Exercise 2. Who goes on to the next round?
#
# *Difficulty 2 of 5 · 20 minutes*
#
# With a thousand classes most looks are spent on classes that have lost already.
# So they are dropped in rounds (2303.16203, algorithm 2). Write
# `survivors(total, alive, keep)`. `total` of shape (B, C) holds each class's
# *sum* of errors so far, `alive` (B, C) says which classes are still in the
# race, and `keep` is how many go on. Classes alive have had equally many looks;
# those dropped before have had fewer. Answer a mask (B, C), True for the `keep`
# classes of each sample that have the least error and are alive. At least `keep`
# are. What you should see below: nearly all decisions, for a fifth of the looks.
#
# <details><summary>Hint 1: a nudge</summary>
#
# A class that was dropped after four looks has a small sum. Does that make it
# good?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Rank $\text{total}_{bc}$ within row $b$, with $\infty$ in the place of those
# that are not alive.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `masked_fill(~alive, torch.inf)`, then `topk(keep, dim=1, largest=False)`, and
# `scatter` of True at its indices into a mask of False.
#
# </details>

# %% tags=["solution:survivors"]
def survivors(total, alive, keep):
    """The `keep` classes of each sample with the least error among those alive."""
    ### BEGIN SOLUTION
    ranked = total.masked_fill(~alive, torch.inf)
    least = ranked.topk(keep, dim=1, largest=False).indices
    return torch.zeros_like(alive).scatter(1, least, True)
    ### END SOLUTION

# %% tags=["check:survivors", "points:2"]
check.survivors(survivors)

# %% [markdown]
# Twenty classes on a circle. After 4, 16 and 64 looks five, two and one go on.
# The errors of all looks are there, so that the full decision is known too.

# %%
angle = torch.arange(20) / 20 * 2 * torch.pi
ring = GaussianMixture([1.0] * 20, 2 * torch.stack([angle.cos(), angle.sin()], 1),
                       [0.25] * 20)
points = ring.sample(300, torch.Generator().manual_seed(2))
classify = representations.DiffusionClassifier(
    ring.denoiser(path), {"label": torch.arange(20)}, looks=(64,))
table = classify.errors(points, torch.Generator().manual_seed(3))  # (64, 300, 20)

# %%
alive, used = torch.ones(300, 20, dtype=torch.bool), 0
for start, stop, keep in ((0, 4, 5), (4, 16, 2), (16, 64, 1)):
    used += (stop - start) * int(alive.sum())
    alive = survivors(table[:stop].sum(0), alive, keep)
same = (alive.float().argmax(1) == table.mean(0).argmin(1)).double().mean()
print(f"{used / table.numel():.0%} of the looks, {same:.0%} of the decisions equal")

# %% [markdown]
# ## Exercise 3. How sure?
#
# *Difficulty 3 of 5 · 25 minutes*
#
# With looks that lie evenly in log-SNR over a range of width $W$ the bound is an
# integral, and with an exact denoiser it is no bound but an equality:
#
# $$\log p(x_0\mid c) = \text{const} - \tfrac12\, W\cdot\frac1M\sum_j
# \lVert\varepsilon_j-\hat\varepsilon_j(c)\rVert^2 .$$
#
# Write `posterior(errors, width, log_prior)`: `errors` of shape (M, B, C), the
# squared errors; `width` the number $W$, shape (); `log_prior` of shape (C,),
# $\log p(c)$ in nats. Return $\log p(c\mid x_0)$ in nats, (B, C). What you
# should see below: points that lie on the diagonal.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Bayes' rule has two factors above the line, and a sum below it.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\log p(c\mid x) = s_c - \log\sum_{c'} e^{s_{c'}}$ with
# $s_c = \log p(c) - \frac W2\,\overline{\text{error}}_c$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# The mean over axis 0, times a factor, the prior added, and `log_softmax(1)`.
#
# </details>

# %% tags=["solution:posterior"]
def posterior(errors, width, log_prior):
    """log p(class | x0) from squared errors that lie evenly in log-SNR."""
    ### BEGIN SOLUTION
    score = log_prior - width / 2 * errors.mean(0)
    return score.log_softmax(1)
    ### END SOLUTION

# %% tags=["check:posterior", "points:2"]
check.posterior(posterior)

# %% [markdown]
# The mixture of exercise 1 with unequal classes, 400 looks a point:

# %%
shares = torch.tensor([0.7, 0.2, 0.1])
uneven = GaussianMixture(shares, centres, [0.5] * 3)
spots = uneven.sample(120, torch.Generator().manual_seed(4))
classify = representations.DiffusionClassifier(
    uneven.denoiser(path), {"label": torch.arange(3)}, looks=(400,), ends=(-9.0, 9.0))
weighted = classify.errors(spots, torch.Generator().manual_seed(5))
ours = posterior(weighted / 9.0, torch.tensor(18.0), shares.log()).exp()

# %%
fig, ax = plt.subplots(figsize=(4.2, 3.6))
ax.plot([0, 1], [0, 1], color=style.colour("truth"), lw=1)
for c in range(3):
    ax.plot(uneven.class_posterior(spots)[:, c], ours[:, c], ".",
            color=style.colour(str(c)))
ax.set(xlabel="$p(c|x)$ by Bayes' rule", ylabel="by denoising errors")
ax.set_title("Errors know the posterior")
style.show(fig, "Points of three colours along the diagonal of the unit square.")

# %% [markdown]
# ## Exercise 4. REINFORCE with a baseline
#
# *Difficulty 3 of 5 · 30 minutes*
#
# A policy answers logits $\theta_i\in\mathbb R^K$ for each of $B$ images and draws
# arm $a_i$ with probability $\pi_i = \operatorname{softmax}(\theta_i)$. It is paid
# $R_i$. The estimate that climbs the mean reward is, for each image's logits,
#
# $$g_i = \tfrac1B\,(R_i - b_i)\,\nabla_{\theta_i}\log\pi_i(a_i),$$
#
# and it is unbiased for every $b_i$ that does not depend on $a_i$. Take for $b_i$
# the mean reward of the *other* samples.
#
# Write `policy_gradient(logits, arms, rewards)`: `logits` of shape (B, K), `arms`
# (B,) of whole numbers, `rewards` (B,); result of shape (B, K). By hand, or by
# autograd. What you should see: with a baseline the estimates scatter less around
# the same exact gradient.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Which logits does the logarithm of one softmax entry depend on? All of them.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\partial\log\pi(a)/\partial\theta_k = [k = a] - \pi_k$, and
# $b_i = \big(\sum_j R_j - R_i\big)/(B-1)$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Three lines: the baselines, shape (B,); the pushes, shape (B, K), from a one-hot
# table minus a softmax; their product, with the mean's factor.
#
# </details>

# %% tags=["solution:policy_gradient"]
def policy_gradient(logits, arms, rewards):
    """An unbiased estimate (B, K) of the gradient of the mean reward."""
    ### BEGIN SOLUTION
    baseline = (rewards.sum() - rewards) / (len(rewards) - 1)
    push = torch.nn.functional.one_hot(arms, logits.shape[1]) - logits.softmax(1)
    return (rewards - baseline)[:, None] * push / len(rewards)
    ### END SOLUTION

# %% tags=["check:policy_gradient", "points:2"]
check.policy_gradient(policy_gradient)

# %% [markdown]
# Three arms pay 5, 6 and 7, and eight images share their logits. Their sum of
# gradients is known exactly; here are 2,000 estimates of it, by your function and
# without a baseline:

# %%
logits, pay = torch.zeros(8, 3), torch.tensor([5.0, 6.0, 7.0])
dice = torch.Generator().manual_seed(0)
drawn = torch.randint(3, (2000, 8), generator=dice)
push = torch.nn.functional.one_hot(drawn, 3) - 1 / 3
plain = (pay[drawn][..., None] * push).mean(1)
yours = torch.stack([policy_gradient(logits, a, pay[a]).sum(0) for a in drawn])
print("exact             ", [round(float(v), 2) for v in (pay - 6) / 3])
for name, found in {"without baseline": plain, "yours": yours}.items():
    mean, scatter = found.mean(0), found.std(0)
    print(f"{name:17s}  mean of the last {mean[2]:.2f}, scatter {scatter[2]:.2f}")

# %% [markdown]
# ## Exercise 5. What DreamTeacher minimises
#
# *Difficulty 2 of 5 · 20 minutes*
#
# A regressor answers for the teacher on $L$ levels. The loss (2407.00783, eq. 17)
# compares each answer with the teacher's features after a LayerNorm without
# weights: at each place they get mean 0 and variance 1 *over the channels*
# (the variance divides by C, and $10^{-5}$ is added to it),
#
# $$\frac1L\sum_l \operatorname{mean}\big(f^r_l - \operatorname{LayerNorm}(f^e_l)
# \big)^2 .$$
#
# Write `regression_loss(predicted, teacher)`: two lists of tensors (B, C_l, H_l,
# W_l), result of shape (). The student learns from it, and the teacher does not.
# What you should see: multiplying the teacher by 100 changes nothing.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Which axis of (B, C, H, W) holds what one place says? And who is frozen?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\operatorname{LayerNorm}(h)_c = (h_c - \mu)/\sqrt{v + 10^{-5}}$ with
# $\mu = \tfrac1C\sum_c h_c$ and $v = \tfrac1C\sum_c(h_c-\mu)^2$, place by place.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# A loop over `zip(predicted, teacher)`; in it detach, take `mean` and `var` with
# `dim=1, keepdim=True`, and append a mean of squares. Stack them, and take a mean.
#
# </details>

# %% tags=["solution:regression_loss"]
def regression_loss(predicted, teacher):
    """The survey's equation 17, with means for its sums; shape ()."""
    ### BEGIN SOLUTION
    levels = []
    for answer, aim in zip(predicted, teacher, strict=True):
        aim = aim.detach()
        spread = (aim.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        aim = (aim - aim.mean(1, keepdim=True)) / spread
        levels.append((answer - aim).square().mean())
    return torch.stack(levels).mean()
    ### END SOLUTION

# %% tags=["check:regression_loss", "points:2"]
check.regression_loss(regression_loss)

# %% [markdown]
# The teacher's units don't matter any more:

# %%
dice = torch.Generator().manual_seed(0)
answers, states = torch.randn(2, 1, 4, 8, 5, 5, generator=dice)
for scale in (1, 100):
    loss = regression_loss(list(answers), list(scale * states))
    print(f"teacher times {scale:3d}: loss {loss:.3f}")
