# %% [markdown]
# # 9. Conditioning and guidance
#
# A model that draws anything at all is a curiosity. What one wants drawn is
# *something*: a digit of a given class, an image with a given outline. After
# this chapter you will be able to
#
# - steer a denoiser by a classifier, by a label it was trained with, by a worse
#   copy of itself, by an energy, by windows, and by a picture;
# - write each of these as a denoiser around a denoiser, so that they nest and
#   every sampler takes them;
# - say what guidance samples, which is not what its formula suggests, and what
#   it does to diversity and to minorities.
#
# | | |
# |---|---|
# | surveys | A 2.3, eq. 11-13, table 1 |
# | needs | ch02, ch03, ch04, ch08 |
# | study | 6 hours |
# | figures | F26, F27, F28, F99, A-T1 |
# | receipt | 1.1 minutes on one CPU thread, 483 MB |

# %%
import matplotlib.pyplot as plt
import torch
from torch.testing import assert_close

from diffedu import GaussianMixture, Prediction, guidance, samplers, schedules, style
from diffedu.claims import claim, report

style.use()

# %% [markdown]
# ## 9.1 A condition splits the score in two
#
# How a network is *told* its condition (by concatenation, by scale and shift,
# by cross-attention) was chapter 8's subject. Here the question is what to do
# with its answers. A condition is a keyword, `denoise(x_t, t, label=y)`, and
# without it the same denoiser is unconditional.
#
# Our world has two classes, each a round Gaussian of standard deviation 1, with
# centres two apart. They overlap: of points of the right class, one in six lies
# left of the middle. Everything about it is known, noisy or not.

# %%
path = schedules.cosine()
centres = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
world = GaussianMixture([0.5, 0.5], centres, [1.0, 1.0])
denoise = world.denoiser(path)

# %%
dice = torch.Generator().manual_seed(0)
x0, labels = world.sample(1000, dice, labelled=True)
eps = torch.randn(x0.shape, generator=dice, dtype=x0.dtype)
t = 0.5
x_t = path.add_noise(x0, t, eps)

# %% [markdown]
# Take the logarithm of Bayes' rule, $p(x_t \mid c) = p(x_t)\,p(c\mid
# x_t)/p(c)$, and differentiate in $x_t$. The last factor has no $x_t$ in it:
#
# $$\nabla\log p(x_t\mid c) = \nabla\log p(x_t) + \nabla\log p(c\mid x_t).$$
#
# The conditional score is the unconditional one plus a **push**, the direction
# in which a classifier becomes surer of the class. It is a classifier of
# *noisy* points: $p(c\mid x_t)$ answers which class the data had, seen through
# the noise of level $t$.

# %%
def log_p_class(x_t, t, label):
    """log p(label | x_t) by Bayes' rule: (B, D) and (B,) to (B,)."""
    shares = world.at(path, t).class_posterior(x_t)
    return shares[range(len(x_t)), label].log()

# %%
def push(x_t, t, label):
    """Its gradient in x_t, shape (B, D)."""
    x_t = x_t.detach().requires_grad_()
    return torch.autograd.grad(log_p_class(x_t, t, label).sum(), x_t)[0]


u, c = denoise(x_t, t), denoise(x_t, t, label=labels)
assert_close(u.score + push(x_t, t, labels), c.score)

# %% [markdown]
# ## 9.2 Classifier guidance
#
# So a classifier makes an unconditional model conditional, without training it
# again. **Classifier guidance** also puts a number before the push
# (2105.05233, algorithm 2). In terms of the noise, as
# $\hat\varepsilon = -\sigma_t \cdot \text{score}$,
#
# $$\tilde\varepsilon = \hat\varepsilon(x_t)
# - \text{scale}\cdot\sigma_t\,\nabla\log p(c\mid x_t).$$
#
# At scale 0 it is unconditional, at 1 conditional, and above 1 it exaggerates.
# The survey's equation 12 writes $\hat\varepsilon(x_t, c)$ on the right and
# calls the factor $w$. For an unconditional network that is a slip: the
# condition is to come from the classifier. One may guide a conditional network
# too (`tell_inner=True`); then $w$ counts on top of the 1 that is there already.

# %%
def classifier_guided(x_t, t, label, scale):
    return denoise(x_t, t).eps - scale * path.sigma(t) * push(x_t, t, label)


classifier = guidance.ExactClassifier(world, path)
by_classifier = guidance.ClassifierGuidance(denoise, classifier, scale=3.0)
ours = classifier_guided(x_t, t, labels, 3.0)
assert_close(ours, by_classifier(x_t, t, label=labels).eps)

# %% [markdown]
# The library's `ClassifierGuidance(denoise, classifier, scale)` takes any
# `classifier(x, t)` that answers logits, turns gradients on inside, and answers
# a `Prediction`. It *is* a denoiser. With the exact classifier and scale 1 it
# must be the conditional model, to the last digits, and is:

# %%
exact = guidance.ClassifierGuidance(denoise, classifier, scale=1.0)
gap = (exact(x_t, t, label=labels).score - c.score).abs().max()
claim("ch09", "an exact classifier at scale 1 gives the conditional score",
      gap < 1e-6, largest_error=f"below 1e-{9 if gap < 1e-9 else 6}")

# %% [markdown]
# ## 9.3 Classifier-free guidance
#
# The push is a difference, $\nabla\log p(x_t\mid c) - \nabla\log p(x_t)$. A
# model that knows both scores needs no classifier. It learns both in one
# training: each label is left out with a chance of about 0.1, so that "no
# label" becomes one more class (`losses.denoising(..., drop=0.1)`).
# **Classifier-free guidance** (2207.12598, eq. 6) looks twice and goes from
# $u$, without the condition, towards $c$, with it, and past it:
#
# $$u + \text{scale}\,(c - u).$$
#
# The papers and the survey (eq. 13) write $(1+w)\,c - w\,u$. It is the same
# line with $w = \text{scale} - 1$: their $w = 0$ is our scale 1. **Every
# guidance number of this course is a scale.** To take one for the other is the
# commonest mistake with guidance, and the failure gallery shows what it costs.

# %%
def in_scale(u, c, scale):
    return torch.lerp(u, c, scale)


def in_w(u, c, w):
    return (1 + w) * c - w * u


assert_close(in_scale(u.eps, c.eps, 3.0), in_w(u.eps, c.eps, w=2.0))

# %% [markdown]
# Why `torch.lerp`? Because scale 1 should be the conditional model exactly, and
# in floating point $u + (c - u)$ need not be $c$. A test that compares bits
# then finds any other mistake.

# %%
# NBVAL_CHECK_OUTPUT
a, b = u.eps.float(), c.eps.float()
guesses = {"u + 1 (c - u)": a + 1 * (b - a), "lerp": in_scale(a, b, 1.0)}
for name, guess in guesses.items():
    print(f"{name:13s} equals c in {(guess == b).double().mean():.0%} of the numbers")

# %% [markdown]
# Does it matter whether $u$ and $c$ are noises, clean images or scores? No: at
# a fixed $x_t$ each of these is a constant plus a multiple of any other, as in
# $\hat x_0 = (x_t - \sigma_t\hat\varepsilon)/\alpha_t$. The weights of the mix
# sum to 1, so the constants come out right as well. The library mixes what the
# network itself predicts.

# %%
free = guidance.ClassifierFree(denoise, scale=3.0)
seen = free(x_t, t, label=labels)
for name in ("eps", "x0", "v", "score"):
    mixed = in_scale(getattr(u, name), getattr(c, name), 3.0)
    assert_close(mixed, getattr(seen, name))
assert_close(seen.eps, by_classifier(x_t, t, label=labels).eps)

# %% [markdown]
# The last line says that with exact models both kinds of guidance are one. They
# differ in what has to be trained, and in what goes wrong when it is not exact.
#
# ## 9.4 What the scale buys, and what it costs
#
# Draw the right class at several scales with Heun's method, that is, along the
# probability-flow ODE. (The choice of sampler will turn out to matter.) All
# scales start from the same noise.

# %%
def draw(denoise, n=2000, dim=2, steps=40):
    """n points of class 1 along the guided ODE, shape (n, dim)."""
    times = samplers.time_grid(path, steps, spacing="log_snr")
    start = path.prior_sample((n, dim), times[0], torch.Generator().manual_seed(1),
                              dtype=torch.float64)
    return samplers.heun(denoise, start, times, label=torch.ones(n, dtype=torch.long))

# %%
scales = [1.0, 1.5, 2.0, 3.0, 5.0, 9.0]
clouds = {s: draw(guidance.ClassifierFree(denoise, s)) for s in [0.0, *scales]}

# %% [markdown]
# Two numbers for each cloud: how often the exact classifier reads the class we
# asked for, and the standard deviation along the axis on which the classes
# differ.

# %%
def accuracy(x):
    return world.class_posterior(x).argmax(1).double().mean().item()


right = [accuracy(clouds[s]) for s in scales]
width = [clouds[s][:, 0].std().item() for s in scales]

# %%
def draw_trade(ax, scales, right, spread, what):
    """Accuracy and spread against the scale."""
    ax.plot(scales, right, "-o", color=style.colour("ddim"), label="accuracy")
    ax.plot(scales, spread, "-s", color=style.colour("learned"), label=what)
    ax.set(xlabel="scale (1 is no guidance)", ylim=(0, 1.1))
    ax.legend(loc="lower right")

# %% tags=["F26"]
fig, axes = plt.subplots(1, 4, figsize=(11, 3.0), width_ratios=[1, 1, 1, 1.4])
for ax, s in zip(axes, (1.0, 3.0, 9.0), strict=False):
    style.scatter(ax, clouds[s], "1", 2, 5.0, f"Scale {s:g}")
    ax.plot(*centres.T, "k+", ms=9)
    ax.set_xlabel("$x_1$")
axes[0].set_ylabel("$x_2$")
draw_trade(axes[3], scales, right, width, "std of $x_1$")
axes[3].set_title("Surer, and narrower")
style.show(fig, "Clouds of the right class at scales 1, 3 and 9: they move to the "
           "right of the class's own centre and become narrow. A plot shows "
           "accuracy rising to 1 while the standard deviation halves.")
claim("F26", "along the ODE accuracy never falls and the width always does",
      right == sorted(right) and width == sorted(set(width), reverse=True),
      scale=scales, accuracy=right, width=width, control=accuracy(clouds[0.0]))

# %% [markdown]
# The control is scale 0: half of the points are of the class, as it should be.
# Accuracy reaches 1, and pays with width. Notice where the clouds go: at scale
# 9 the middle of the cloud lies more than two standard deviations beyond the
# centre of the class itself. Guidance prefers what is *typical of the class and
# of no other*, and the points for which that holds best are far out. We tried
# three seeds of the start, and the claim held on each.

# %% [markdown]
# ## 9.5 Not the distribution one would think
#
# Multiply the push by the scale and undo the gradient: the guided score looks
# like that of
#
# $$p_\text{tilted}(x) \;\propto\; p(x)\,p(c\mid x)^{\text{scale}}
# \;\propto\; p(x\mid c)\,p(c\mid x)^{\text{scale}-1},$$
#
# and one reads everywhere that guidance samples it. It does not (2408.09000).
# In one dimension the tilted density can be computed on a grid, so we can look.

# %%
line = GaussianMixture([0.5, 0.5], centres[:, :1], [1.0, 1.0])
grid = torch.linspace(-5, 8, 4001, dtype=torch.float64)[:, None]
scale = 5.0
log_tilted = line.log_prob(grid) + scale * line.class_posterior(grid)[:, 1].log()
tilted = log_tilted.softmax(0)

# %% [markdown]
# For the ODE we need no random numbers at all: it maps the start's quantiles to
# the end's, in order. For the SDE we take the ancestral sampler with 200 steps
# and 3,000 points, three times.

# %%
times = samplers.time_grid(path, 100, spacing="log_snr")
ones = torch.ones(1000, dtype=torch.long)
guided = guidance.ClassifierFree(line.denoiser(path), scale)
even = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
start = torch.special.ndtri(even)[:, None]
by_ode = samplers.heun(guided, start, times, label=ones)

# %%
def by_sde(seed):
    dice = torch.Generator().manual_seed(seed)
    start = torch.randn(3000, 1, generator=dice, dtype=torch.float64)
    times = samplers.time_grid(path, 200, spacing="log_snr")
    label = torch.ones(3000, dtype=torch.long)
    return samplers.ancestral(guided, start, times, generator=dice, label=label)


sde = [by_sde(seed) for seed in range(3)]

# %%
def moments(x):
    return round(x.mean().item(), 2), round(x.std().item(), 2)


middle = (tilted @ grid).item()
spread = (tilted @ (grid[:, 0] - middle).square()).sqrt().item()
ode_at, sde_at = moments(by_ode), [moments(x) for x in sde]

# %% tags=["F28"]
fig, ax = plt.subplots(figsize=(7.2, 3.4))
ax.plot(grid, tilted / (grid[1] - grid[0]), color=style.colour("truth"), label="tilted")
kinds = {"ancestral": torch.cat(sde), "heun": by_ode}
for name, points in kinds.items():
    label = {"heun": "ODE (Heun)", "ancestral": "SDE (ancestral)"}[name]
    ax.hist(points[:, 0], 60, density=True, alpha=0.55, color=style.colour(name),
            label=label)
ax.plot(grid, line.condition(1).log_prob(grid).exp(), ":", color=style.colour("data"),
        label="the class itself")
ax.set(xlim=(-2.5, 5.5), xlabel="$x$", ylabel="density")
ax.set_title("Guidance at scale 5 overshoots the tilted density")
ax.legend()
style.show(fig, "The class is a bell around 1, the tilted density one around 1.6. "
           "Samples of the SDE lie around 2.1, those of the ODE around 2.6 and "
           "are the narrowest.")
claim("F28", "the ODE overshoots the tilted mean by over 0.5, and the SDE lies between",
      ode_at[0] > middle + 0.5 and ode_at[1] < spread and
      all(middle < m < ode_at[0] and ode_at[1] < s < spread for m, s in sde_at),
      ode=ode_at, sde=sde_at, tilted=[middle, spread], control=1.0)

# %% [markdown]
# The ODE's numbers depend on no seed, and the SDE's lie between on all three. The
# control is the mean of the class.
#
# Why? Tilting and adding noise do not commute. At level $t$ guidance uses
# $\nabla\log p(x_t) + \text{scale}\,\nabla\log p(c \mid x_t)$, a product of
# *noised* densities. The score that would lead to the tilted density is that of
# the noised product. This is chapter 3's lesson about sums of scores, with one
# strength, $1 - \text{scale}$, below zero. As there, the two agree without
# noise, and a corrector that runs at each level, such as MALA or the SDE's own
# noise, brings the walk nearer to the product: the SDE lies between. In the
# exercises you solve the simplest case in closed form.
#
# ## 9.6 The guidance interval
#
# Where on the way does the overshoot come from? Turn guidance on only while
# $\sigma/\alpha$ lies in $(\text{low}, \text{high}]$ and let the conditional
# model speak at all other levels (2404.07724):

# %%
def limited(x_t, t, label, scale, low, high):
    level = path.sigma(t) / path.alpha(t)
    c = denoise(x_t, t, label=label).eps
    if low < level <= high:
        return torch.lerp(denoise(x_t, t).eps, c, scale)
    return c

# %%
inside = guidance.Interval(guidance.ClassifierFree(denoise, 3.0), low=0.3, high=3.0)
for time in (0.1, 0.5, 0.9):
    ours = limited(x_t, time, labels, 3.0, 0.3, 3.0)
    assert_close(ours, inside(x_t, time, label=labels).eps)

# %% [markdown]
# `Interval` wraps a *rule*, any rule, and asks it what its inner denoiser would
# say without it. Cut the walk of 9.5 in three: guidance at scale 5 only at high
# noise, only in the middle, only at low noise.

# %%
bands = {"all levels": (0.0, 1e6), "high, above 3": (3.0, 1e6),
         "middle, 0.5 to 3": (0.5, 3.0), "low, below 0.5": (0.0, 0.5)}
ends = {name: samplers.heun(guidance.Interval(guided, *band), start, times, label=ones)
        for name, band in bands.items()}

# %%
print(f"{'without':17s} mean 1.00, std 1.00")
for name, x in ends.items():
    print(f"{name:17s} mean {moments(x)[0]:.2f}, std {moments(x)[1]:.2f}")

# %% [markdown]
# High noise and the middle shift the mean alike, by about 1. But at high noise
# the cloud moves as a whole and keeps most of its width, and it moves before
# there is anything to decide: $x_t$ hardly tells the classes apart yet. In the
# middle, points on the wrong side are brought over, and the width is halved. At
# low noise the points have made up their minds: the few that lie between the
# classes are moved, which narrows the cloud a little, and the mean hardly stirs.
# On images the paper finds guidance at high noise harmful and at low noise idle,
# and keeps the middle (2404.07724). Where it is off, one look in two is saved as
# well.

# %% [markdown]
# ## 9.7 Digits
#
# The same two lines on images. The shipped net `digits_unet_class` was trained
# for 400 steps only, with a tenth of the labels left out, so that guidance may
# have something to mend. To read what was drawn we train a small classifier on clean
# digits, as in chapter 2; its last hidden layer serves for the Frechet distance.

# %%
from diffedu import metrics, nets, recipes, training
from diffedu.worlds import digits

images, classes = digits.load("train")
unseen, unseen_classes = digits.load("test")
net = recipes.load("digits_unet_class")

# %%
torch.manual_seed(0)
layers = [torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32)]
features = torch.nn.Sequential(torch.nn.Flatten(), *layers, torch.nn.ReLU())
reader = torch.nn.Sequential(features, torch.nn.Linear(32, 10))
cross_entropy = torch.nn.functional.cross_entropy

# %%
def train(module, loss, steps, lr=3e-3, seed=0):
    """Train on batches of (images, classes); afterwards the module is frozen."""
    dice = torch.Generator().manual_seed(seed)
    batches = training.batches((images, classes), 128, dice)
    for _ in training.fit(module, loss, batches, steps=steps, lr=lr, ema=None,
                          generator=dice, progress=False):
        pass
    return module.requires_grad_(False)

# %%
train(reader, lambda batch, dice: cross_entropy(reader(batch[0]), batch[1]), 400)
read = (reader(unseen).argmax(1) == unseen_classes).double().mean()
print(f"the reader knows {read:.0%} of unseen digits")

# %% [markdown]
# 250 digits, twenty-five of each class, by DDIM with 12 steps. Three numbers for
# them: the reader's accuracy, the Frechet distance to the training set, and the
# variance within a class, the last two in the reader's features. A guided image
# may leave $[-1, 1]$; it is clipped at the end, never on the way.

# %%
wanted = torch.arange(250) % 10
digit_times = samplers.time_grid(net.schedule, steps=12)


def paint(denoise, seed=0):
    start = torch.randn(250, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return samplers.ddim(denoise, start, digit_times, label=wanted).clamp(-1, 1)

# %%
def judge(made):
    """Accuracy, Frechet distance, and variance within the classes."""
    seen = features(made)
    right = (reader(made).argmax(1) == wanted).double().mean().item()
    within = [seen[wanted == k].var(0).sum() for k in range(10)]
    distance = metrics.frechet_distance(features(images), seen).item()
    return right, distance, torch.stack(within).mean().item()

# %% [markdown]
# Beside the net we look at its own snapshot after 100 steps of training, which
# is much worse and has more to gain. Five scales each, from the same noise.

# %%
nets_of = {"400 steps": net, "100 steps": recipes.load("digits_unet_class_early")}
digit_scales = [1.0, 1.25, 1.5, 2.0, 4.0]
painted = {name: [paint(guidance.ClassifierFree(each, s)) for s in digit_scales]
           for name, each in nets_of.items()}
judged = {name: [judge(made) for made in row] for name, row in painted.items()}
distances = {name: [d for _, d, _ in row] for name, row in judged.items()}

# %%
def draw_distances(ax):
    """Frechet distance against the scale, for both nets."""
    for name, hue in zip(nets_of, ("ddim", "learned"), strict=True):
        ax.semilogy(digit_scales, distances[name], "-o", color=style.colour(hue),
                    label=f"{name} of training")
    ax.set(xlabel="scale (1 is no guidance)", ylabel="Frechet distance")
    ax.legend()
    ax.set_title("Best at a small scale")

# %% tags=["F26"]
fig, axes = plt.subplots(1, 4, figsize=(11, 3.0), width_ratios=[1, 1, 1, 1.7])
for ax, k in zip(axes, (0, 2, 4), strict=False):
    style.images(ax, painted["100 steps"][k][:30], 5, f"Scale {digit_scales[k]:g}")
draw_distances(axes[3])
style.show(fig, "Thirty digits each: at scale 1, many of them malformed, at 1.5, and "
           "at 4, hard and alike. Two curves of the Frechet distance fall from scale 1 "
           "and rise again; the worse net's has its lowest point further right.")
best = {name: digit_scales[row.index(min(row))] for name, row in distances.items()}
right, distance, within = zip(*judged["100 steps"], strict=True)
claim("F26", "for the worse net the distance is smallest at a small scale above 1",
      1 < best["100 steps"] < 4, scale=digit_scales, distance=list(distance),
      accuracy=list(right), within=list(within), best=best["100 steps"])
report("F26", "the net of 400 steps", distance=distances["400 steps"],
       accuracy=[right for right, _, _ in judged["400 steps"]], best=best["400 steps"],
       within=[within for _, _, within in judged["400 steps"]],
       unseen=metrics.frechet_distance(features(images), features(unseen[:250])))

# %% [markdown]
# Accuracy rises with the scale and the variance within a class falls, as in the
# plane. The Frechet distance wants both: guidance first makes digits clearer,
# and then makes them equal. How much is best depends on the net. The one of 100
# steps has much to mend: on three seeds of the start, read by two readers each,
# its minimum lay at 1.25 or 1.5 and was deep. The one of 400 steps draws nearly
# all digits right without guidance; what it gains or loses at 1.25 is within
# the noise of 250 samples, so nothing is claimed of it.
#
# (The last number is the distance of 250 unseen digits from the training set. The
# best samples come nearer than that: net and reader both know the training set,
# and the distance rewards being like it.)

# %% [markdown]
# ### Away from a worse self
#
# Classifier-free guidance mixes two differences: $c$ knows the class, and $c$
# is the easier task and therefore learned better. **Autoguidance** (2406.02507)
# keeps the second alone. It goes away from a *weak* model of the same data that
# is told the same condition, such as a smaller net, or an early snapshot of the
# same training:
#
# $$\text{weak} + \text{scale}\,(\text{good} - \text{weak}).$$

# %%
weak = nets_of["100 steps"]
x8 = path.add_noise(images[:8], 0.5, torch.randn(8, 1, 8, 8, generator=dice))
auto = guidance.Autoguidance(net, weak, scale=2.0)
good, bad = (each(x8, 0.5, label=classes[:8]).v for each in (net, weak))
assert_close(bad + 2.0 * (good - bad), auto(x8, 0.5, label=classes[:8]).v)

# %% [markdown]
# Compare it, and an interval, with plain classifier-free guidance at the same
# scale. One training of one small net is too little to assert an order, so the
# numbers are reported. Look at the variance within the classes: autoguidance
# leaves it nearly as it was at scale 1.

# %%
middle = guidance.Interval(guidance.ClassifierFree(net, 2.0), 0.3, 3.0)
rivals = {"free": judged["400 steps"][digit_scales.index(2.0)],
          "interval": judge(paint(middle)), "auto": judge(paint(auto))}
for name, (right, distance, within) in rivals.items():
    report("F26", f"scale 2, {name}", accuracy=right, distance=distance, within=within)

# %% [markdown]
# ## 9.8 A classifier has to have seen noise
#
# Back to classifiers, this time trained ones. Guidance asks the classifier at
# every noise level, so it has to be trained at every noise level: noise each
# digit to a random $t$, and tell the network $t$. The tempting short cut is to
# take a classifier of clean images that lies around already. We train three of
# each, the same network with the same steps. The clean-trained ones are told a
# random $t$ as well, and never see any noise.

# %%
class Classifier(torch.nn.Module):
    """Logits (B, 10) of digits (B, 1, 8, 8) at times (B,)."""

    def __init__(self):
        super().__init__()
        self.net = nets.MLP(dim=64, width=128, depth=1, outputs=10)

    def forward(self, x, t):
        return self.net(x.flatten(1), t)

# %%
def classifier_loss(model, noisy):
    def loss(batch, dice):
        x, label = batch
        t = path.t_max * torch.rand(len(x), generator=dice)
        eps = torch.randn(x.shape, generator=dice)
        x_t = path.add_noise(x, t, eps) if noisy else x
        return cross_entropy(model(x_t, t), label)
    return loss

# %%
def reader_of(kind, seed):
    torch.manual_seed(seed)
    model = Classifier()
    return train(model, classifier_loss(model, kind == "noise-aware"), 400, seed=seed)


kinds = ("noise-aware", "clean-trained")
readers = {kind: [reader_of(kind, seed) for seed in range(3)] for kind in kinds}

# %% [markdown]
# How well does each read unseen digits at a given noise level? The level is
# named by $\bar\alpha = \alpha^2$, the share of the power that is still signal.
# Noise sets a ceiling, and for digits we can estimate it by what Bayes' rule
# would give if the training digits were all there are: chapter 1's
# `EmpiricalDenoiser` knows how likely each of them stands behind $x_t$. Sum these
# weights within a class. (It is an estimate, as unseen digits are not among them.)

# %%
from diffedu import EmpiricalDenoiser

known = EmpiricalDenoiser(images, path)


def bayes(x, t):
    chances = known.weights(x, t)
    return torch.zeros(len(x), 10).index_add_(1, classes, chances)

# %%
def read_noisy(model, alpha_bar):
    """Accuracy on unseen digits, each with noise of its own, twice."""
    x = unseen.repeat(2, 1, 1, 1)
    dice = torch.Generator().manual_seed(5)
    t = path.time_of_log_snr(torch.logit(torch.tensor(alpha_bar, dtype=torch.float64)))
    x_t = path.add_noise(x, t, torch.randn(x.shape, generator=dice))
    guess = model(x_t, t.float().expand(len(x))).argmax(1)
    return (guess == unseen_classes.repeat(2)).double().mean().item()

# %%
alpha_bars = [0.99, 0.9, 0.7, 0.5, 0.3, 0.1, 0.03]
curves = {kind: [[read_noisy(model, a) for a in alpha_bars] for model in models]
          for kind, models in readers.items()}
ceiling = [read_noisy(bayes, a) for a in alpha_bars]

# %% [markdown]
# Now guide with the first of each. The unconditional model is our net without a
# label, and the scale is 5, as trained classifiers are timid. One more thing
# matters in practice. A push $g$ on the score moves $\hat x_0$ by
# $\sigma^2/\alpha\cdot g$, four hundred times $g$ where the walk starts. An exact
# classifier is flat there, a trained one only nearly. So guidance waits until
# $\sigma/\alpha \le 5$. The independent reader of 9.7 says what was drawn, and the
# control is scale 0: chance.

# %%
def led_by(model, scale=5.0):
    rule = guidance.ClassifierGuidance(net, model, scale)
    return guidance.Interval(rule, 0.0, 5.0)


pushed = {kind: paint(led_by(models[0])) for kind, models in readers.items()}
drawn = {kind: judge(made)[0] for kind, made in pushed.items()}
untold = judge(paint(led_by(readers[kinds[0]][0], 0.0)))[0]

# %%
def draw_reading(ax):
    """Accuracy against noise, all seeds, and the ceiling."""
    for kind, hue in zip(kinds, ("ddim", "learned"), strict=True):
        for seed, curve in enumerate(curves[kind]):
            ax.semilogx(alpha_bars, curve, "-o", ms=3, lw=1, color=style.colour(hue),
                        label=kind if seed == 0 else None)
    ax.semilogx(alpha_bars, ceiling, ":", color=style.colour("truth"), label="Bayes")
    ax.set(xlabel=r"$\bar\alpha$, the signal's share", ylabel="accuracy", ylim=(0, 1))
    ax.invert_xaxis()
    ax.legend(loc="lower left")
    ax.set_title("Noise has to be learned")

# %% tags=["F27"]
fig, axes = plt.subplots(1, 3, figsize=(11, 3.3), width_ratios=[1.7, 1.5, 1.5])
draw_reading(axes[0])
for ax, (kind, made) in zip(axes[1:], pushed.items(), strict=True):
    style.images(ax, made[:40], 10, f"{kind}: {drawn[kind]:.0%} right")
style.show(fig, "Accuracy against noise for three classifiers of each kind: alike on "
           "clean digits; on noisy ones the noise-aware ones come near Bayes' rule "
           "and the others fall below. Digits guided by each kind.")
aware, clean = ([curve[3] for curve in curves[kind]] for kind in kinds)
claim("F27", "at alpha_bar 0.5 noise-aware ones read 10 points more, and guide better",
      sum(aware) > sum(clean) + 0.3 and drawn[kinds[0]] > drawn[kinds[1]] + 0.1,
      aware=aware, clean=clean, bayes=ceiling[3], guided_by_aware=drawn[kinds[0]],
      guided_by_clean=drawn[kinds[1]], control=untold)
report("F27", "at alpha_bar 0.1 little is left to read",
       aware=[curve[5] for curve in curves[kinds[0]]],
       clean=[curve[5] for curve in curves[kinds[1]]], bayes=ceiling[5])

# %% [markdown]
# We had planned to state this at $\bar\alpha = 0.1$, where larger images may still
# be read. Digits of $8\times8$ pixels cannot: Bayes' rule itself is right in a
# third of the cases only, and the gap shrinks below ten points. Where reading is
# possible, it takes training on noise.
#
# The gap in reading is that of three seeds of each kind. The guided digits come
# from the first of each; the other two gave the same order, 98 and 99% against
# 84 and 85%. It is an order at scale 5: at scale 1 the noise-aware ones push less,
# and fewer digits came out right than with the clean-trained.
#
# On noisy digits the clean-trained classifier is not merely unsure, it is sure
# and wrong: at $\bar\alpha = 0.1$ we found it 86% sure on average, and right in
# a quarter of the cases. The noise-aware one was as sure as it was right. The
# gradient of the former points to whatever pattern of pixels would raise its
# logit, and at high noise that is no digit at all.

# %% [markdown]
# ## 9.9 Guidance without any training
#
# Is there a use for knowledge of *clean* images after all? Yes, if it is asked
# about clean images. The denoiser's $\hat x_0(x_t)$ is one, of a kind. Let an
# **energy** $E(x_0)$ be low where we want to be, and push with the slope of
# $E(\hat x_0(x_t))$ in $x_t$, which runs backwards through the network.
# FreeDoM (2303.09833, algorithm 1) does this after each step, with a step size
# $\rho_t$:
#
# $$x_s \leftarrow x_s - \rho_t\, g,\qquad
# g = \nabla_{x_t} E\big(\hat x_0(x_t)\big).$$

# %%
def slope_of(energy, denoise, x_t, t):
    x_t = x_t.detach().requires_grad_()
    return torch.autograd.grad(energy(denoise(x_t, t).x0).sum(), x_t)[0]

# %% [markdown]
# As a denoiser around a denoiser, the same rule is
# $\text{score} - \text{scale}\cdot g$. A DDIM step multiplies
# $\hat\varepsilon$ by $\sigma_s - \alpha_s\sigma_t/\alpha_t$ at a fixed $x_t$,
# so the two agree where
# $\rho_t = \text{scale}\;\sigma_t(\alpha_s\sigma_t/\alpha_t - \sigma_s)$:

# %%
def near_two(x0):
    """Half the squared distance of x0's first coordinate to 2, over 0.5^2: (B,)."""
    return (x0[:, 0] - 2.0).square() / (2 * 0.5**2)


steered = guidance.EnergyGuidance(denoise, near_two, scale=1.0)
slope = slope_of(near_two, denoise, x_t, 0.5)
assert_close(steered(x_t, 0.5).score, u.score - slope)

# %%
(alpha_t, sigma_t), (alpha_s, sigma_s) = map(path.coefficients, (0.5, 0.4))
rho = 1.0 * sigma_t * (alpha_s * sigma_t / alpha_t - sigma_s)
freedom = samplers.ddim_step(denoise, x_t, 0.5, 0.4) - rho * slope
assert_close(freedom, samplers.ddim_step(steered, x_t, 0.5, 0.4))

# %% [markdown]
# How good is it? Up to a constant this energy is minus the log-likelihood of a
# measurement, "the first coordinate is 2, give or take 0.5", and for a mixture
# the posterior given a measurement is known. Time travel, FreeDoM's second part
# (algorithm 2), takes each step again a few times: noise the state back up from
# $s$ to $t$, and step down once more. It is an `after` of the sampler.

# %%
truth = line.posterior(torch.ones(1, 1), torch.tensor([2.0]), noise_std=0.5)
on_line = guidance.EnergyGuidance(line.denoiser(path), near_two, scale=1.0)
dice = torch.Generator().manual_seed(0)
travel = guidance.TimeTravel(on_line, repeats=3, generator=dice)
steps60 = samplers.time_grid(path, 60, spacing="log_snr")

# %%
by_energy = {
    "exact": truth.sample(20_000, torch.Generator().manual_seed(1)),
    "FreeDoM": samplers.ddim(on_line, start, steps60),
    "with time travel": samplers.ddim(on_line, start, steps60, after=travel),
}
for name, points in by_energy.items():
    print(f"{name:17s} mean {moments(points)[0]:.2f}, std {moments(points)[1]:.2f}")

# %% [markdown]
# On digits: no label, no classifier, nothing trained. The energy is the squared
# difference between an image's mean value and a target. Twelve steps are too few
# for the wild pushes of high noise, where $\hat x_0$ is mostly guesswork, so an
# interval leaves them out: a rule around a rule.

# %%
def inked(denoise, target):
    """Guidance towards images whose mean pixel is the target."""
    def energy(x0):
        return (x0.mean((1, 2, 3)) - target).square()
    rule = guidance.EnergyGuidance(denoise, energy, scale=200.0)
    return guidance.Interval(rule, 0.0, 5.0)


start20 = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(3))
shades = {target: samplers.ddim(inked(net, target), start20, digit_times)
          for target in (-0.5, -0.2)}

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.1))
colours = {"exact": "truth", "FreeDoM": "learned", "with time travel": "ddim"}
for name, points in by_energy.items():
    axes[0].hist(points[:, 0], 40, range=(0, 3.4), density=True, histtype="step",
                 lw=1.8, color=style.colour(colours[name]), label=name)
axes[0].set(xlabel="$x$", ylabel="density", ylim=(0, 3))
axes[0].legend(loc="upper left")
axes[0].set_title("Time travel mends most of the error")
both = torch.cat(list(shades.values()))
style.images(axes[1], both, 10, "Little ink above, much ink below")
style.show(fig, "Three histograms: the exact posterior is wide and lies around 1.8, "
           "FreeDoM's is a spike at 2.5, with time travel it is close to the exact "
           "one. Beside it four rows of digits: the lower ones have thicker strokes.")
ink = [made.mean().item() for made in shades.values()]
claim("ch09", "an energy of clean images steers without training",
      ink[0] < -0.45 and ink[1] > -0.25, ink=ink, asked=list(shades),
      control=samplers.ddim(net, start20, digit_times).mean())
at = {name: moments(points) for name, points in by_energy.items()}
miss = [abs(at[name][0] - at["exact"][0]) for name in ("FreeDoM", "with time travel")]
claim("ch09", "three repeats of each step take over half of the error of the mean",
      miss[1] < miss[0] / 2, error=miss[1], control=miss[0])

# %% [markdown]
# (Both claims held on three seeds.) Without time travel the samples are far too
# sure, and overshoot even the target 2. FreeDoM treats $\hat x_0$ as if it were
# $x_0$: exact guidance would need $\log\mathbb E[e^{-E(x_0)}\mid x_t]$, an
# average over all clean points that $x_t$ may come from, and not $E$ of their
# mean. At high noise, where doubt is large, the push is much too strong. The
# trips up and down add fresh noise and let the walk forget what it was pushed
# to too early; a bias is left. Chapter 20 meets the same gap in inverse
# problems. (Optimising the start of the walk instead, D-Flow, is chapter 7's.)

# %% [markdown]
# ## 9.10 A strip from a small model
#
# A model of $4\times4$ pixels is asked for a strip of $4\times20$.
# **MultiDiffusion** (2302.08113) cuts the noisy strip into overlapping windows,
# asks the model about each, and looks for the strip that comes closest to all
# answers in the least-squares sense:
#
# $$\arg\min_{z}\ \sum_i \big\| \text{crop}_i(z) - \text{answer}_i \big\|^2 .$$
#
# Each pixel appears in its own squares only, so the solution is, pixel by
# pixel, the mean of the answers that cover it.

# %%
def averaged(denoise, x, t, size, stride):
    """The mean of a small denoiser's answers (as v) on windows along a strip."""
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for left in range(0, x.shape[-1] - size + 1, stride):
        window = (..., slice(left, left + size))
        total[window] += denoise(x[window], t).v
        count[window] += 1
    return total / count

# %% [markdown]
# An exact small model to begin with: tiles of one grey level each, with a little
# noise on every pixel. The level differs from tile to tile (standard deviation
# 0.7). Its distribution is one Gaussian, so its denoiser is known.

# %%
flat = 0.5 * torch.ones(1, 16, 16) + 0.01 * torch.eye(16)
tile = GaussianMixture([1.0], torch.zeros(1, 16), covariances=flat)


class Tiles(guidance.Guidance):
    """The mixture's denoiser, for images of 4 x 4 pixels."""

    def forward(self, x, t):
        seen = self.inner(x.flatten(1), t)
        return Prediction(x, seen.t, path, "v", seen.v.reshape(x.shape))

# %%
tiles = Tiles(tile.denoiser(path))
strip_noise = torch.randn(200, 1, 4, 20, generator=torch.Generator().manual_seed(0))
fused = guidance.MultiDiffusion(tiles, size=4, stride=1)
seen = fused(strip_noise, 0.5)
assert_close(averaged(tiles, strip_noise, 0.5, 4, 1), seen.v)

# %% [markdown]
# With a stride of 4 the windows do not overlap, and each tile is drawn alone.
# Then neighbours across a border differ more than neighbours within a tile.
# With a stride of 1 there are no borders.

# %%
def seam(strips, size=4):
    """The mean step across tile borders, over that within tiles."""
    step = (strips[..., 1:] - strips[..., :-1]).abs().mean((0, 1, 2))
    border = torch.arange(len(step)) % size == size - 1
    return (step[border].mean() / step[~border].mean()).item()


twenty = samplers.time_grid(path, steps=20)
strips = {stride: samplers.ddim(guidance.MultiDiffusion(tiles, 4, stride), strip_noise,
                                twenty) for stride in (4, 2, 1)}

# %% [markdown]
# And shapes: windows of $16\times16$ from the course's ShapeWorld net, told a
# class each: discs, stars, and crosses from left to right. Every window draws
# its own flat background, if it is left alone. The windows stand outside of the
# guidance, since inside of it everything has the small model's size.

# %%
painter = guidance.ClassifierFree(recipes.load("shapeworld_unet_class"), 2.0)
shape_noise = torch.randn(3, 3, 16, 64, generator=torch.Generator().manual_seed(4))


def shapes(stride):
    """Three strips of 64 pixels, from windows whose left edges lie `stride` apart."""
    kinds = [(0, 3, 4)[min(left // 22, 2)] for left in range(0, 49, stride)]
    told = [{"label": torch.full((3,), kind)} for kind in kinds]
    wide = guidance.MultiDiffusion(painter, 16, stride, conditions=told)
    return samplers.ddim(wide, shape_noise, digit_times)

# %%
alone, together = shapes(16), shapes(4)
fig, axes = plt.subplots(2, 2, figsize=(8.4, 4.2))
pictures = {"Tiles drawn alone: seams": strips[4][:4],
            "Windows one pixel apart: none": strips[1][:4],
            "Shapes, windows apart": alone, "Shapes, overlapping windows": together}
for ax, (title, made) in zip(axes.flat, pictures.items(), strict=True):
    style.images(ax, made, 1, title)
style.show(fig, "Four strips of grey tiles with hard borders; four with smooth "
           "changes; three strips of shapes on four backgrounds each with sharp "
           "edges; three in which the backgrounds run into each other.")
seams = {stride: seam(made) for stride, made in strips.items()}
claim("ch09", "overlapping windows take the seams away", seams[1] < 1.5,
      stride_1=seams[1], stride_2=seams[2], control=seams[4])
report("ch09", "the same on shapes", overlapping=seam(together, 16),
       control=seam(alone, 16))

# %% [markdown]
# On three seeds the seams were 9 times a step within a tile, and 1.1 times with
# a stride of 1. What the average cannot do is plan: windows far apart know of
# each other only through those between them. A strip is coherent over the
# length of a window, and drifts beyond.

# %% [markdown]
# ## 9.11 A control branch that starts as nothing
#
# An outline is a richer condition than a label, and a net that was trained
# without it must learn to read it. **ControlNet** (2302.05543) leaves the net
# as it is, copies its encoder, and feeds the copy with $x_t$ and the picture.
# What the copy finds is added to the skip connections, through convolutions
# that start with weights of zero:
#
# $$y = F(x) + Z_2\big(F'(x + Z_1(\text{hint}))\big),
# \qquad Z_1 = Z_2 = 0 \text{ at first.}$$
#
# One block of it, by hand. At the start nothing has changed, and gradients
# reach $Z_2$ at once, because its *input* is not zero:

# %%
import copy

frozen = torch.nn.Conv2d(1, 4, 3, padding=1).requires_grad_(False)
twin = copy.deepcopy(frozen).requires_grad_(True)
z1, z2 = torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(4, 4, 1)
for layer in (z1, z2):
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)

# %%
def controlled(x, hint):
    return frozen(x) + z2(twin(x + z1(hint)))


y = controlled(x8, images[:8])
assert torch.equal(y, frozen(x8))
y.square().mean().backward()
print(f"gradient reaches z2: {bool(z2.weight.grad.abs().max() > 0)},",
      f"the copy: {bool(twin.weight.grad.abs().max() > 0)}")

# %% [markdown]
# The copy has to wait for one step, until $Z_2$ has moved away from zero. Now
# the whole U-Net. `guidance.Control` freezes it, copies its encoder, and is one
# more denoiser around a denoiser, with the keyword `hint=`. The hint is a
# *scribble*: which of the sixteen $2\times2$ blocks of a digit hold much ink.

# %%
from diffedu import losses


def scribble(x0):
    """Blocks of 2 x 2 with much ink, as images (B, 1, 8, 8) of -1 and 1."""
    blocks = torch.nn.functional.avg_pool2d(x0, 2)
    return torch.nn.functional.interpolate((blocks > 0) * 2.0 - 1, scale_factor=2)

# %%
torch.manual_seed(0)
control = guidance.Control(recipes.load("digits_unet_class"), hint_channels=1)
hint8 = scribble(images[:8])
assert torch.equal(control(x8, 0.5, hint=hint8).v, net(x8, 0.5).v)

# %% [markdown]
# Training is the denoising loss as always. Only the branch moves, since the rest
# is frozen. Labels are left out, so that the net has to rely on the scribble.

# %%
def control_loss(batch, dice):
    return losses.denoising(control, batch[0], hint=scribble(batch[0]), generator=dice)


scribbles = scribble(unseen[:100])
noise100 = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(6))
before = samplers.ddim(control, noise100, digit_times, hint=scribbles)
train(control, control_loss, 60, lr=2e-3)
after = samplers.ddim(control, noise100, digit_times, hint=scribbles)

# %%
def obeyed(made):
    """Blocks with ink in both, as a share of those with ink in either (IoU)."""
    mine, asked = scribble(made) > 0, scribbles > 0
    return ((mine & asked).sum() / (mine | asked).sum()).item()


thinner = inked(control, -0.5)
stacked = guidance.ClassifierFree(thinner, 1.5, instead={"hint": scribbles})
all_three = samplers.ddim(stacked, noise100, digit_times, hint=scribbles,
                          label=unseen_classes[:100])

# %%
fig, axes = plt.subplots(4, 1, figsize=(8.4, 3.6))
rows = {"Hints": scribbles, f"At the start: overlap {obeyed(before):.2f}": before,
        f"After 60 steps: overlap {obeyed(after):.2f}": after,
        "With a label and a wish for little ink besides": all_three}
for ax, (title, made) in zip(axes, rows.items(), strict=True):
    style.images(ax, made[:24], 24)
    ax.set_title(title, fontsize=10)
style.show(fig, "Rows of 24 digits: blocky scribbles; digits that ignore them; digits "
           "that follow them; thinner digits that follow them.")
claim("ch09", "after 60 steps the branch obeys scribbles it has not seen",
      obeyed(after) > obeyed(before) + 0.1, overlap=obeyed(after),
      control=obeyed(before))

# %% [markdown]
# Three seeds of the branch and its training came to 0.87 each.
#
# ## 9.12 Rules nest, and the order counts
#
# The last row came from `ClassifierFree(Interval(EnergyGuidance(Control(...))))`,
# four rules in one denoiser. Nothing had to know of anything else. One word was
# needed: to get $u$, `ClassifierFree` leaves out every condition, the scribble
# too, and `instead={"hint": scribbles}` says what it is told then. So only the
# label is exaggerated.
#
# A nest has rules of its own. Two scales of classifier-free guidance multiply,
# because the inner rule does nothing where there is no condition. And what
# stands *inside* of it, and depends on the condition, is multiplied by the
# outer scale too:

# %%
twice = guidance.ClassifierFree(guidance.ClassifierFree(denoise, 2.0), 3.0)
once = guidance.ClassifierFree(denoise, 6.0)
assert_close(twice(x_t, t, label=labels).eps, once(x_t, t, label=labels).eps)

# %%
# NBVAL_CHECK_OUTPUT
def with_classifier(inner):
    return guidance.ClassifierGuidance(inner, classifier, 1.0, tell_inner=True)


inside = guidance.ClassifierFree(with_classifier(denoise), 3.0)
outside = with_classifier(guidance.ClassifierFree(denoise, 3.0))
plain = guidance.ClassifierFree(denoise, 3.0)(x_t, t, label=labels).score
for name, rule in {"inside": inside, "outside": outside}.items():
    extra = rule(x_t, t, label=labels).score - plain
    ratio = (extra.norm() / push(x_t, t, labels).norm()).item()
    print(f"classifier {name:7s} of scale 3: its push counts {ratio:.2f} times")

# %% [markdown]
# Say from outside to inside what you mean: "limit, to these levels, the guided,
# controlled net" is `Interval(ClassifierFree(Control(...)))`.
#
# ## 9.13 The survey's table, from the registry
#
# The survey sorts ways of guidance by three questions. Does it do without a
# classifier? Without labels from people? Is the signal found during training,
# *online*, and not in a stage before? `guidance.RULES` holds its answers, with
# the chapter and the code of each rule. Two are still to come.

# %% tags=["A-T1"]
rows = [list(row) for row in guidance.table_1()]
head = ["rule", "classifier-\nfree", "annotation-\nfree", "online", "chapter", "code"]
fig, ax = plt.subplots(figsize=(9.6, 2.3))
ax.axis("off")
table = ax.table(rows, colLabels=head, loc="center", cellLoc="center",
                 colWidths=[0.24, 0.12, 0.12, 0.09, 0.1, 0.3])
table.auto_set_font_size(False)
table.set_fontsize(10)
table.scale(1, 1.6)
for column in range(6):
    table[0, column].set_height(0.26)
ax.set_title("Each row frees guidance of one more thing")
style.show(fig, "A table: classifier guidance has none of the three properties, "
           "classifier-free guidance the first, self-guidance the first two, online "
           "guidance all three. The last two are to come.")
marks = [sum(mark == "✓" for mark in row[1:4]) for row in rows]
claim("A-T1", "the registry carries the survey's flags", marks == [0, 1, 2, 3],
      rows=[f"{row[0]} {''.join(row[1:4])}" for row in rows])

# %% [markdown]
# Self-guidance (2210.06462) finds labels by clustering features, online guidance
# (2312.08825) while it trains. Both are chapter 16's. The registry has more rows
# than the survey's table:

# %%
# NBVAL_CHECK_OUTPUT
for rule in guidance.RULES.values():
    print(f"{rule.name:26s} {rule.paper}  {rule.chapter}  {rule.function}")

# %% [markdown]
# ## 9.14 Guidance and minorities
#
# A teaser for chapter 25. Guidance prefers what sets a class apart. Suppose that
# in a class one point in five has another attribute: a second spot, with a fifth
# of the class's mass. If that spot lies *near* the other class, its points are
# not typical, and guidance should drop them. If it lies *far*, they are the most
# typical of all. Again along the ODE. A cross marks the other class.

# %%
def minority_share(place, scale):
    """Points drawn with guidance, and the minority's share among them."""
    spots = torch.tensor([[-1.0, 0.0], [1.0, 0.0], place], dtype=torch.float64)
    mix = GaussianMixture([0.5, 0.4, 0.1], spots, [0.4] * 3, torch.tensor([0, 1, 1]))
    x = draw(guidance.ClassifierFree(mix.denoiser(path), scale))
    return x, mix.condition(1).responsibilities(x)[:, 1].round().mean().item()

# %%
places = {"near": [-0.6, 0.8], "far": [2.2, 0.3]}
bias_scales = [1.0, 1.5, 2.0, 3.0, 5.0]
runs = {name: [minority_share(place, s) for s in bias_scales]
        for name, place in places.items()}
shares = {name: [share for _, share in run] for name, run in runs.items()}

# %% tags=["F99"]
fig, axes = plt.subplots(1, 3, figsize=(11, 3.1), width_ratios=[1, 1, 1.3])
for ax, (name, run) in zip(axes, runs.items(), strict=False):
    style.scatter(ax, run[0][0][:700], "data", 3)
    title = f"{name.title()}: scale 1 grey, 3 orange"
    style.scatter(ax, run[3][0][:700], "1", 3, 3.6, title)
    ax.plot(-1, 0, "kx", ms=8)
    ax.set_xlabel("$x_1$")
for name, hue in {"near": "learned", "far": "ddim"}.items():
    axes[2].plot(bias_scales, shares[name], "-o", color=style.colour(hue), label=name)
axes[2].axhline(0.2, color=style.colour("truth"), ls=":")
axes[2].set(xlabel="scale (1 is no guidance)", ylabel="share of the minority")
axes[2].set_title("One is lost, one takes over")
axes[2].legend()
style.show(fig, "Clouds without guidance in grey and at scale 3 in orange. Of a "
           "minority near the other class next to nothing is left; one far from it "
           "has half of the points. Two curves part from 0.2 and reach 0 and 0.9.")
near, far = shares.values()
claim("F99", "along the ODE a near minority loses its share, a far one gains",
      near == sorted(near, reverse=True) and near[-1] < 0.1 and far[-1] > far[0] + 0.1,
      scale=bias_scales, near=near, far=far, control=[near[0], far[0]])

# %% [markdown]
# The share in the data is 0.2 both times, and without guidance both are drawn
# with about that share. So "guidance amplifies the majority" is half of the
# truth: it amplifies what lies far from the other classes. (The claim held on
# three seeds of the start.) To know what it does to a group, one has to know
# where the group lies.

# %% [markdown]
# ## 9.15 Failure gallery
#
# Five classics on digits, after the same digits without a mistake. Each is one
# wrong character or one forgotten word. The table below has one more that
# changes nothing, and one that raises an error. Scale 7 is too much for this
# net already (the control of the report); taken for $w$ it is worse.

# %%
class Slip(guidance.ClassifierGuidance):
    """Classifier guidance with the wrong sign."""

    def gradient(self, x, t, label, keep=None):
        return -super().gradient(x, t, label, keep)


aware = readers["noise-aware"][0]
loud = guidance.Control(recipes.load("digits_unet_class"), hint_channels=1)
for layer in loud.controlled.net.zero:
    torch.nn.init.normal_(layer.weight, std=0.3)

# %%
def sketch(rule, **condition):
    """Twenty digits of the classes 0 to 9, from the same noise each time."""
    start = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(8))
    return samplers.ddim(rule, start, digit_times, label=wanted[:20], **condition)


backwards = guidance.Interval(Slip(net, aware, 5.0), 0.0, 5.0)
everywhere = guidance.ClassifierGuidance(net, aware, 5.0)
gallery = {
    "No mistake: scale 1.25": sketch(guidance.ClassifierFree(net, 1.25)),
    "$w = 7$ where scale 7 was meant": sketch(guidance.ClassifierFree(net, 8.0)),
    "$u$ and $c$ exchanged, scale 4": sketch(guidance.ClassifierFree(net, 1 - 4.0)),
    "Sign of the push": sketch(backwards),
    "Classifier at all noise levels": sketch(everywhere),
    "Control not zero at the start": sketch(loud, hint=scribble(unseen[:20])),
}

# %%
fig, axes = plt.subplots(2, 3, figsize=(11, 3.6))
for ax, (title, made) in zip(axes.flat, gallery.items(), strict=True):
    style.images(ax, made, 10)
    ax.set_title(title, fontsize=11)
style.show(fig, "Six panels of twenty digits: right ones; crude ones with hard edges; "
           "digits of the wrong class, twice; black and white rubble; blurs.")
loudest = gallery["$w = 7$ where scale 7 was meant"].abs()
report("ch09", "pixels beyond 1.2 where w was taken for the scale",
       share=(loudest > 1.2).double().mean(),
       control=(sketch(guidance.ClassifierFree(net, 7.0)).abs() > 1.2).double().mean())

# %% [markdown]
# | what you see | look for |
# |---|---|
# | contrast too hard, pixels beyond the range | the scale is too high: $w$ for scale? |
# | other classes than asked for | $u$ and $c$ exchanged; the sign of the push |
# | rubble in black and white | pushes at the highest noise; a power of $\sigma$ |
# | nothing changes with the scale | it does not arrive, or was never dropped |
# | gradient is None, or an error | guidance inside of `inference_mode` |
# | a good net spoiled at step 0 | a control branch whose last layers are not zero |

# %% [markdown]
# ## 9.16 What was scaled down, and what is left out
#
# - The papers guide ImageNet models of $64^2$ to $512^2$ pixels; here digits of
#   $8^2$ and points. Our Frechet distances use a small classifier's features
#   and compare with no published ones.
# - Autoguidance's effect was reported for large models (2406.02507). With one
#   small net we show the rule, not its advantage.
# - FreeDoM chooses $\rho_t$ by hand for each task; we keep one scale. Its
#   time travel is the library's `TimeTravel`, which repeats DDIM steps only.
# - MultiDiffusion also joins regions given as masks; ours joins windows, each
#   with a condition of its own.
# - ControlNet branches are trained on up to millions of pictures; ours for 60
#   steps. Adapters, and conditioning by optimisation (SeedSelect, 2304.14530;
#   DOODL, 2303.13703), are left out; D-Flow is in chapter 7. Guidance that
#   needs no condition at all, by disturbing attention, is chapter 18's.
#
# ## 9.17 Summary
#
# - The conditional score is the unconditional one plus the gradient of a
#   classifier of noisy data. Guidance multiplies that gradient by a scale: 1 is
#   the plain conditional model, and the papers' $w$ is scale $- 1$.
# - The scale trades diversity for certainty. What is drawn is not the tilted
#   distribution; ODE and SDE differ, and the ODE overshoots most.
# - Classifiers have to know noise, and even those push too hard where nothing can
#   be read. Energies ask about $\hat x_0$ instead, and are too sure, as they
#   ignore its doubt.
# - Windows average, control branches start as zero. Each rule is a denoiser
#   around a denoiser, and they nest; what is inside is multiplied by what is
#   outside.
# - Guidance moves the shares of groups within a class, in either direction.
#
# Do the [exercises](../exercises/ch09_guidance.ipynb) next. Part II then asks
# what a denoiser knows: its hidden states, probed in chapter 10.
