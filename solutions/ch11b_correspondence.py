# %% [markdown]
# # Exercises 11b: correspondence and editing
#
# Five exercises on [chapter 11b](../notebooks/ch11b_correspondence.ipynb). Points
# are (x, y) in $[-1, 1]$, x to the right and y down; an image is 2 wide.

# %%
import torch

from diffedu import features, recipes, worlds
from diffedu.checks import ch11b as check
from diffedu.representations import correspondence, keypoints

# %% [markdown]
# ## Exercise 1. PCK with all its clauses
#
# *Difficulty 3 of 5 · 30 minutes*
#
# A point counts as found if it lies within `share` times the image's width, 2,
# of the truth (the border belongs to it). It is scored only if it is seen in both
# images. A pair may be scored under any *one* renaming $g$ of the target's points,
# and the best counts:
#
# $$\max_g \frac{\sum_k c_{gk}\,\big[\lVert \text{found}_k -
# \text{truth}_{g(k)}\rVert \le 2\,\text{share}\big]}{\max(1, \sum_k c_{gk})},\qquad
# c_{gk} = \text{asked}_k \text{ and visible}_{g(k)}.$$
#
# Write `pck(found, truth, asked, visible, names, share)`: `found` and `truth` of
# shape (N, 5, 2), `asked` (source) and `visible` (target) of shape (N, 5) bool,
# `names` of shape (G, 5) int64, where `names[g, k]` is $g(k)$. The answer has shape
# (N,), one share for each pair. What you should see below: forgiving the
# mirror raises the score of blind guesses too.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Which point of the target is point $k$'s partner under $g$? Everything you ask of
# the target, place and visibility, you ask of *that* point.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# The distance is Euclidean, $\sqrt{\Delta x^2 + \Delta y^2}$. The maximum stands
# outside of the fraction: one renaming for all points of a pair.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `truth[:, names]` has shape (N, G, 5, 2), `visible[:, names]` (N, G, 5), and
# `found[:, None]` fits to them. Two sums over the last axis, a division, `amax(1)`.
#
# </details>

# %% tags=["solution:pck"]
def pck(found, truth, asked, visible, names, share):
    """The share of correct points of each pair, under its best renaming."""
    ### BEGIN SOLUTION
    near = (found[:, None] - truth[:, names]).norm(dim=-1) <= 2 * share
    counted = asked[:, None] & visible[:, names]
    shares = (near & counted).sum(2) / counted.sum(2).clamp(min=1)
    return shares.amax(1)
    ### END SOLUTION

# %% tags=["check:pck", "points:3"]
check.pck(pck)

# %%
world = worlds.shapeworld.ShapeWorld(32, "plain_rotated")
pairs = keypoints.shape_pairs(world, 60, recipes.HELD_OUT)
guess = keypoints.any_inside(pairs.inside, 5, torch.Generator().manual_seed(0))
mirror = worlds.shapeworld.symmetries("tee")
for name, names in {"strict": mirror[:1], "mirror forgiven": mirror}.items():
    value = pck(guess, pairs.truth, pairs.asked, pairs.visible, names, 0.1).mean()
    print(f"a random pixel of the object, {name}: {value:.2f}")

# %% [markdown]
# ## Exercise 2. Nearest features
#
# *Difficulty 3 of 5 · 30 minutes*
#
# For each point of the source find the place of the target whose feature vector is
# most similar, by cosine (2306.03881):
# $p_2 = \arg\max_p \cos(F_2[p], F_1[p_1])$.
#
# Write `match(source, target, points)`: maps of shape (N, C, H, W), H and W may
# differ, points of shape (N, K, 2). Read the source bilinearly (the pixels at the
# border go on outside), compare with all pixels of the target without enlarging it,
# and answer the *centres* of the best ones as (x, y), shape (N, K, 2). Column $j$ has
# its centre at $(2j + 1)/W - 1$.
#
# <details><summary>Hint 1: a nudge</summary>
#
# A cosine does not change if a vector gets longer. And a flat index counts along
# rows first.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\cos(a, b) = a\cdot b/(\lVert a\rVert\lVert b\rVert)$, with sums over channels. Flat
# index $i$ is column $i \bmod W$ of row $\lfloor i / W\rfloor$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.nn.functional.grid_sample(source, points[:, :, None],
# padding_mode="border", align_corners=False)` has shape (N, C, K, 1). Scale the
# target over `dim=1`, multiply with `torch.einsum`, flatten the last two axes,
# `argmax`.
#
# </details>

# %% tags=["solution:match"]
def match(source, target, points):
    """The centre of the target's most similar pixel, for each point."""
    ### BEGIN SOLUTION
    read = torch.nn.functional.grid_sample(source, points[:, :, None],
                                           padding_mode="border", align_corners=False)
    target = target / target.norm(dim=1, keepdim=True)
    cosine = torch.einsum("nck,nchw->nkhw", read[..., 0], target)
    height, width = target.shape[2:]
    best = cosine.flatten(2).argmax(2)
    x = (2 * (best % width) + 1) / width - 1
    y = (2 * (best // width) + 1) / height - 1
    return torch.stack([x, y], -1)
    ### END SOLUTION

# %% tags=["check:match", "points:3"]
check.match(match)

# %%
net = recipes.load("shapeworld_unet")
seen = features.extract(net, pairs.both, 0.2, ["up.1", "up.2"], pool="none", draws=2,
                        generator=torch.Generator().manual_seed(0))
for name, raw in seen.items():
    for kind, m in (("raw", raw), ("standardised", correspondence.standardise(raw))):
        value = pairs.score(match(*m.chunk(2), pairs.points)).mean()
        print(f"{name}, {kind}: PCK {value:.2f}")

# %% [markdown]
# ## Exercise 3. The mix of equation 14
#
# *Difficulty 2 of 5 · 20 minutes*
#
# Hyperfeatures (2305.14334; survey, eq. 14) mix all cells of blocks and times:
#
# $$\text{mix} = \sum_l\sum_s w_{l,s}\,B_l\,r_{l,s},\qquad
# w = \operatorname{softmax}\text{ over all cells}.$$
#
# Write `mix(cells, shrink, scores)`: `cells` a list with one tensor a block, of
# shape (S, N, C_l, H, W), with the block's maps at S times; `shrink` a list of
# matrices $B_l$ of shape (D, C_l), which act on the channels; `scores` of shape
# (blocks, S). Result of shape (N, D, H, W), through which gradients reach the scores.
# What you should see below: the weights of all cells together sum to 1.
#
# <details><summary>Hint 1: a nudge</summary>
#
# If one cell's weight rises, which others must fall?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $w_{l,s} = e^{\text{score}_{l,s}}\big/\sum_{l',s'} e^{\text{score}_{l',s'}}$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Flatten the scores, `softmax(0)`, back to their shape. Then a loop over blocks and
# one over times (or an `einsum` with four letters and `s`), and a sum.
#
# </details>

# %% tags=["solution:mix"]
def mix(cells, shrink, scores):
    """The weighted sum of bottlenecked maps over blocks and times."""
    ### BEGIN SOLUTION
    weights = scores.flatten().softmax(0).reshape(scores.shape)
    total = 0
    for row, matrix, maps in zip(weights, shrink, cells, strict=True):
        total = total + torch.einsum("s,dc,snchw->ndhw", row, matrix, maps)
    return total
    ### END SOLUTION

# %% tags=["check:mix", "points:2"]
check.mix(mix)

# %%
ones = [torch.ones(3, 1, 1, 2, 2)] * 2
print(mix(ones, [torch.ones(1, 1)] * 2, torch.randn(2, 3))[0, 0])

# %% [markdown]
# ## Exercise 4. Two networks' maps as one
#
# *Difficulty 2 of 5 · 20 minutes*
#
# Fuse two maps as in 2305.15347: bring $b$ to $a$'s grid bilinearly, *then* scale
# each place's vector of each map to length 1, weight, and put the channels one
# after the other:
#
# $$F = \big[\alpha\,F_a/\lVert F_a\rVert,\;(1-\alpha)\,F_b/\lVert F_b\rVert\big].$$
#
# Write `fuse(a, b, alpha)`: `a` of shape (N, C, H, W), `b` of shape (N, D, h, w),
# `alpha` a number. Result of shape (N, C + D, H, W). What you should see below:
# at $\alpha = 1$ the fused maps match as `a` alone.
#
# <details><summary>Hint 1: a nudge</summary>
#
# If one map's numbers are a hundred times larger, whose cosine will it be?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\lVert F\rVert$ at a place is the root of the sum of squares over channels.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.nn.functional.interpolate(b, size=..., mode="bilinear")`, then `norm(dim=1,
# keepdim=True)` for each, and `torch.cat(..., 1)`.
#
# </details>

# %% tags=["solution:fuse"]
def fuse(a, b, alpha):
    """Both maps side by side, each place's vectors of length alpha and 1 - alpha."""
    ### BEGIN SOLUTION
    b = torch.nn.functional.interpolate(b, size=a.shape[2:], mode="bilinear")
    unit_a, unit_b = (m / m.norm(dim=1, keepdim=True) for m in (a, b))
    return torch.cat([alpha * unit_a, (1 - alpha) * unit_b], 1)
    ### END SOLUTION

# %% tags=["check:fuse", "points:2"]
check.fuse(fuse)

# %%
low, high = (correspondence.standardise(seen[name]) for name in ("up.1", "up.2"))
for alpha in (0.0, 0.5, 1.0):
    value = pairs.score(match(*fuse(high, low, alpha).chunk(2), pairs.points)).mean()
    print(f"up.2 with weight {alpha:g}, up.1 with the rest: PCK {value:.2f}")

# %% [markdown]
# ## Exercise 5. Swap a word, add a word, weigh a word
#
# *Difficulty 3 of 5 · 30 minutes*
#
# Prompt-to-prompt (2208.01626, section 3.2) draws a source and its edited twin side
# by side. In the twin's cross-attention, column $j$ of the map becomes
#
# $$\hat M_{ij} = c_j\cdot\begin{cases}M_{i,A(j)} & A(j)\ge 0\\ M^*_{ij} & A(j) =
# -1\end{cases}\quad\text{while } t > 1-\tau,\qquad \hat M = M^*\text{ afterwards.}$$
#
# $M$ is the source's map, $M^*$ the twin's own, $A(j)$ the place of the twin's word $j$
# in the source's caption ($-1$ where the source lacks it), and $c_j$ the strength of
# word $j$. Time runs from 1, noise, to 0. Rows are *not* scaled back to sum 1, and the
# values are the twin's.
#
# Write `inject_words(source, edited, values, alignment, strength, t, tau)`: `source`
# and `edited` maps of shape (B, heads, N, L), `values` (B, heads, L, d), `alignment`
# (B, L) int64, `strength` (B, L), `t` of shape (B,), and one number `tau`. The answer
# is the output of the attention, $\hat M V$, of shape (B, heads, N, d).
#
# <details><summary>Hint 1: a nudge</summary>
#
# Three questions, one after the other: which column of which map, how strong, and is
# it early enough? Answer the last one for each pair of the batch by itself.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Build the map of the formula for all pairs, as though all were early; then take it
# where $t > 1-\tau$ and the twin's own map elsewhere; then multiply by $V$. An index
# of $-1$ must not reach `gather`: make it 0 first, and throw that column away after.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `source.gather(-1, index)` with `index` of shape (B, heads, N, L): give the alignment
# two axes, `alignment[:, None, None, :]`, and `expand_as(source)`. Two `torch.where`:
# one on the alignment's sign, one on the time, of shape (B, 1, 1, 1).
#
# </details>

# %% tags=["solution:inject_words"]
def inject_words(source, edited, values, alignment, strength, t, tau):
    """The output of a twin's cross-attention, edited while the noise is high."""
    ### BEGIN SOLUTION
    place = alignment[:, None, None, :]
    shared = source.gather(-1, place.clamp(min=0).expand_as(source))
    maps = torch.where(place >= 0, shared, edited) * strength[:, None, None, :]
    early = (t > 1 - tau)[:, None, None, None]
    return torch.where(early, maps, edited) @ values
    ### END SOLUTION

# %% tags=["check:inject_words", "points:3"]
check.inject_words(inject_words)
