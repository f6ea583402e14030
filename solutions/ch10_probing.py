# %% [markdown]
# # Exercises 10: probing global features
#
# Five exercises on [chapter 10](../notebooks/ch10_probing.ipynb). Shapes are given
# with each. No function draws noise of its own.

# %%
import torch

from diffedu import features, recipes
from diffedu.checks import ch10 as check
from diffedu.recipes import HELD_OUT
from diffedu.worlds.shapeworld import ShapeWorld

# %% [markdown]
# ## Exercise 1. Equation 16, without a leak
#
# *Difficulty 2 of 5 · 30 minutes*
#
# $(t^*, B^*) = \arg\min_{t, B} \mathcal L_\mathrm{discr}(t, B)$ (2407.00783, eq. 16):
# of several cells of a grid choose the one whose features are read best. With one
# number to print in the end, the rows that give it must have no part in the choice.
#
# Write `search(cells, y, train, test, fit)`: `cells` (K, N, D) are the features of N
# rows in K cells, `y` (N,) the labels, `train` (n,) and `test` (m,) numbers of
# rows. `fit(x, y)`, given features (r, D) and labels (r,), answers a function from
# features (s, D) to guessed labels (s,). The **last fifth** of `train`,
# `len(train) // 5` rows as they stand, validates. Return the number of the chosen
# cell, the first of equals, and its accuracy on the test rows, with the
# head fitted anew to all of `train`. What you should see below: an accuracy well
# above one in eight, from the first cells of a small grid.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Three sets of rows: some fit, some choose, some are asked once. Which of them are
# in use before the choice is made?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# The loss is the share of wrong guesses on the validation rows, by a head fitted to
# the first four fifths. After the choice those rows may be fitted to as well.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# A helper `accuracy(x, rows, asked)` of one line. Then a list of K scores, `max`
# and `.index`, and the helper once more.
#
# </details>

# %% tags=["solution:search"]
def search(cells, y, train, test, fit):
    """The chosen cell and its accuracy on rows that had no part in the choice."""
    ### BEGIN SOLUTION
    def accuracy(x, rows, asked):
        return (fit(x[rows], y[rows])(x[asked]) == y[asked]).double().mean().item()

    fifth = len(train) // 5
    choosers, learners = train[-fifth:], train[:-fifth]
    validated = [accuracy(x, learners, choosers) for x in cells]
    winner = validated.index(max(validated))
    return winner, accuracy(cells[winner], train, test)
    ### END SOLUTION

# %% tags=["check:search", "points:2"]
check.search(search)

# %% [markdown]
# On the shipped network, with three blocks at two noise levels and 600 images:

# %%
denoise = recipes.load("shapeworld_unet")
x, y = ShapeWorld(32, "plain_rotated").images_and_labels(600, HELD_OUT)
blocks, times = ["down.3", "up.1", "up.2"], [0.1, 0.6]
found = features.extract(denoise, x, times, blocks, batch_size=64,
                         generator=torch.Generator().manual_seed(0))

# %%
linear = features.Linear(strengths=(1e-2,))
names = [f"{b} at {t}" for b in blocks for t in times]
rows = torch.arange(600)
for width in (64, 32):
    cells = torch.stack([z[..., :width] for b in blocks for z in found[b]
                         if z.shape[-1] >= width])
    cell, accuracy = search(cells, y, rows[:400], rows[400:],
                            lambda a, b: linear.fit(a, b).predict)
    print(f"{width} channels, {len(cells)} cells: {accuracy:.2f} on the test rows")

# %% [markdown]
# ## Exercise 2. Several times, several noises
#
# *Difficulty 3 of 5 · 30 minutes*
#
# Write `averaged(denoise, block, x0, times, noises)`: the features of `block`, pooled
# by the mean over places, averaged over noises, at each time. `denoise` is a
# Denoiser with `.schedule`, `x0` (N, C, H, W), `times` a list of K numbers, `noises`
# (R, N, C, H, W). Each time sees all R noises. Result (K, N, width). You may use
# `features.record` (not `features.extract`). What you should see below: more
# noises, steadier features.
#
# <details><summary>Hint 1: a nudge</summary>
#
# What is averaged: the noises, or what the network holds when it sees each of them?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\frac1R\sum_r \mathrm{pool}\,h(\alpha_t x_0 + \sigma_t\varepsilon_r,\ t)$, where $h$
# is the block's output.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Two loops. Inside: `with torch.no_grad(), features.record(denoise, [block]) as
# seen:` around a call of `denoise(x_t, t)` with `t` a tensor of shape (), and
# `denoise.schedule.add_noise(x0, t, eps)` before. Read `seen[block]` at once: the next
# look overwrites it.
#
# </details>

# %% tags=["solution:averaged"]
def averaged(denoise, block, x0, times, noises):
    """Pooled features of one block, averaged over noises: (K, N, width)."""
    ### BEGIN SOLUTION
    answer = []
    for time in torch.tensor(times, dtype=x0.dtype):
        looks = []
        for eps in noises:
            with torch.no_grad(), features.record(denoise, [block]) as seen:
                denoise(denoise.schedule.add_noise(x0, time, eps), time)
            looks.append(seen[block].mean((2, 3)))
        answer.append(torch.stack(looks).mean(0))
    return torch.stack(answer)
    ### END SOLUTION

# %% tags=["check:averaged", "points:3"]
check.averaged(averaged)

# %% [markdown]
# How far do two sets of features of the same images lie apart, with one noise each
# and with four each?

# %%
eps = torch.randn(8, 60, 3, 32, 32, generator=torch.Generator().manual_seed(1))
for draws in (1, 4):
    a, b = (averaged(denoise, "up.1", x[:60], [0.2, 0.6], eps[i : i + draws])
            for i in (0, 4))
    gap = (a - b).square().sum(2).mean(1) / a.var(1).sum(1)
    print(f"{draws} noises: {gap[0]:.3f} of the variance at .2, {gap[1]:.3f} at .6")

# %% [markdown]
# ## Exercise 3. Alignment and uniformity
#
# *Difficulty 2 of 5 · 20 minutes*
#
# Good features are the same for two looks at one image and fill the sphere
# with all images (2005.10242). With rows scaled to length 1,
#
# $$\text{alignment} = \frac1N\sum_i \|a_i - b_i\|^2, \qquad
# \text{uniformity} = \log \frac{1}{N(N-1)}\sum_{i\ne j} e^{-2\|a_i - a_j\|^2}.$$
#
# Write `alignment_uniformity(a, b)`: `a` and `b` (N, D), row i of both from the same
# image; result both numbers, alignment first. Lower is better for either. What you
# should see below: more noise makes looks agree less.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Which pairs stand in each sum? The first has N of them, the second N (N - 1).
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# The mean is inside the logarithm. A sample's distance to itself, 0, would put N ones
# into the sum.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.nn.functional.normalize` scales rows; `torch.pdist` has each pair of
# different rows once.
#
# </details>

# %% tags=["solution:alignment_uniformity"]
def alignment_uniformity(a, b):
    """How far two looks at one image lie apart, and how evenly images spread."""
    ### BEGIN SOLUTION
    a, b = (torch.nn.functional.normalize(z, dim=1) for z in (a, b))
    close = (a - b).square().sum(1).mean()
    return close, torch.pdist(a).square().mul(-2).exp().mean().log()
    ### END SOLUTION

# %% tags=["check:alignment_uniformity", "points:2"]
check.alignment_uniformity(alignment_uniformity)

# %% [markdown]
# Two looks at 200 images with other noise, features standardised:

# %%
looks = [features.extract(denoise, x[:200], [0.1, 0.6], ["up.1"], batch_size=64,
                          generator=torch.Generator().manual_seed(s))["up.1"]
         for s in (2, 3)]
for k, t in enumerate((0.1, 0.6)):
    mean, scale = looks[0][k].mean(0), looks[0][k].std(0)
    close, even = alignment_uniformity(*((z[k] - mean) / scale for z in looks))
    print(f"t = {t}: alignment {close:.2f}, uniformity {even:.2f}")

# %% [markdown]
# ## Exercise 4. CKA without bias
#
# *Difficulty 3 of 5 · 30 minutes*
#
# Let $K = aa^\top$ and $L = bb^\top$ with their diagonals **set to 0**, $1$ the vector
# of ones and $n$ the number of samples. The unbiased estimate of HSIC is (Song et al.,
# JMLR 13, 2012, eq. 5)
#
# $$\mathrm{HSIC}(K, L) = \frac{1}{n(n-3)}\Big[\mathrm{tr}(KL)
# + \frac{(1^\top K 1)(1^\top L 1)}{(n-1)(n-2)}
# - \frac{2}{n-2}\,1^\top K L 1\Big],$$
#
# and $\mathrm{CKA} = \mathrm{HSIC}(K,L)/\sqrt{\mathrm{HSIC}(K,K)\,\mathrm{HSIC}(L,L)}$.
# Write `cka(a, b)`: `a` (n, D) and `b` (n, E), result of shape (). What you should see
# below: about 0 for unrelated features, however wide.
#
# <details><summary>Hint 1: a nudge</summary>
#
# The formula centres by itself. All that has to be done to the tables
# beforehand is in the first sentence.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Both tables are symmetric: $\mathrm{tr}(KL)$ is the sum of their elementwise product,
# and $1^\top K L 1$ the inner product of their column sums.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# A function `hsic(K, L)` of three terms, called three times.
# `table - torch.diag(table.diagonal())` has a diagonal of zeros.
#
# </details>

# %% tags=["solution:cka"]
def cka(a, b):
    """Linear CKA with the unbiased HSIC."""
    ### BEGIN SOLUTION
    def hsic(k, l):
        n = len(k)
        middle = k.sum() * l.sum() / ((n - 1) * (n - 2))
        return (k * l).sum() + middle - 2 / (n - 2) * k.sum(0) @ l.sum(0)

    tables = [z @ z.T for z in (a, b)]
    k, l = (table - torch.diag(table.diagonal()) for table in tables)
    return hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()
    ### END SOLUTION

# %% tags=["check:cka", "points:3"]
check.cka(cka)

# %%
for width in (10, 100, 1000):
    u, v = torch.randn(2, 60, width, generator=torch.Generator().manual_seed(width))
    print(f"unrelated, {width} wide: {cka(u, v):.2f}")
print(f"down.3 and up.1 at t = .1: {cka(found['down.3'][0], found['up.1'][0]):.2f}")

# %% [markdown]
# ## Exercise 5. Attention pooling
#
# *Difficulty 2 of 5 · 20 minutes*
#
# Mean pooling counts each place alike, the background too. A **query** $q$ weighs them:
#
# $$w = \mathrm{softmax}_p\big(q^\top h_p/\sqrt C\big), \qquad
# \text{feature} = \sum_p w_p\,h_p.$$
#
# It is the pooling inside DifFormer (2311.17921) and of GDC's attention head
# (2307.08702), without their projections. Write `attend(h, query)`: `h` (B, C, H, W),
# `query` (C,), result (B, C). What you should see below: with the query 0 it is mean
# pooling.
#
# <details><summary>Hint 1: a nudge</summary>
#
# How many weights has an image? Over what do they sum to 1?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Flatten the places: `h` becomes (B, C, P). The scores are (B, P), the softmax runs
# over P, and the sum over P leaves (B, C).
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Two calls of `torch.einsum` around a `.softmax(1)`.
#
# </details>

# %% tags=["solution:attend"]
def attend(h, query):
    """Places weighed by a query, then summed: (B, C)."""
    ### BEGIN SOLUTION
    flat = h.flatten(2)
    scores = torch.einsum("c,bcp->bp", query, flat) / len(query) ** 0.5
    return torch.einsum("bp,bcp->bc", scores.softmax(1), flat)
    ### END SOLUTION

# %% tags=["check:attend", "points:2"]
check.attend(attend)

# %%
h = features.extract(denoise, x[:8], 0.1, ["up.1"], pool="none",
                     generator=torch.Generator().manual_seed(4))["up.1"]
gap = (attend(h, torch.zeros(64)) - h.mean((2, 3))).abs().max()
print(f"query 0 against mean pooling: differs by less than {1e-5 if gap < 1e-5 else 1}")
