# %% [markdown]
# # Exercises 11a: dense features
#
# Four exercises on [chapter 11a](../notebooks/ch11a_dense_features.ipynb).
# Shapes are given with each, and after each check a cell uses your function.

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import recipes, style
from diffedu import representations as rep
from diffedu.checks import ch11a as check

# %% [markdown]
# ## Exercise 1. The score of a segmentation
#
# *Difficulty 2 of 5 · 15 minutes*
#
# A confusion matrix $C$ of shape (K, K) holds how many pixels of true class $i$
# were called $j$. Write `mean_iou(confusion)`, the mean over classes of
#
# $$\text{IoU}_k = \frac{C_{kk}}{\sum_j C_{kj} + \sum_i C_{ik} - C_{kk}},$$
#
# a tensor of shape (). A class that is neither true nor predicted anywhere is
# left out of the mean; one that was predicted though it is nowhere true counts,
# with 0. What you should see below: to call everything background scores high
# by accuracy, low by mIoU.
#
# <details><summary>Hint 1: a nudge</summary>
#
# What lies on the diagonal? What are the sums of rows and columns?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Pixels that are $k$ or called $k$: the row's sum plus the column's sum, in
# which $C_{kk}$ stands twice.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Three vectors of length K: `C.diagonal()`, `C.sum(1)`, `C.sum(0)`. For an
# absent class 0/0 is NaN, and there is a mean that skips NaN.
#
# </details>

# %% tags=["solution:mean_iou"]
def mean_iou(confusion):
    """Mean intersection over union of the classes that occur."""
    ### BEGIN SOLUTION
    hit = confusion.diagonal()
    either = confusion.sum(1) + confusion.sum(0) - hit
    return (hit / either).nanmean()
    ### END SOLUTION

# %% tags=["check:mean_iou", "points:2"]
check.mean_iou(mean_iou)

# %%
lazy = torch.tensor([[840.0, 0, 0, 0], [60, 0, 0, 0], [50, 0, 0, 0], [50, 0, 0, 0]])
print(f"accuracy {lazy.trace() / lazy.sum():.2f}, mIoU {mean_iou(lazy):.2f}")

# %% [markdown]
# ## Exercise 2. Vote or average
#
# *Difficulty 2 of 5 · 20 minutes*
#
# An ensemble of M members gives logits of shape (M, N, K) for N pixels. Write
# `vote_and_average(logits)`, which returns two answers of shape (N,), the class
# numbers by
#
# - **majority vote**: each member's first choice counts one; of classes with
#   equally many votes the one with the higher mean probability wins (2112.03126
#   votes);
# - **average**: the class of the highest mean *probability*.
#
# What you should see below: the two differ where a few sure members face many
# unsure ones.
#
# <details><summary>Hint 1: a nudge</summary>
#
# A vote forgets how sure a member is. Where does the average keep it?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Votes $n_k = \sum_m [\arg\max_j z_{mj} = k]$, mean $\bar p_k = \frac1M\sum_m
# \text{softmax}(z_m)_k$. As $\bar p_k \le 1$, the class with the largest $n_k +
# \bar p_k/2$ wins the vote, ties included.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `F.one_hot(logits.argmax(-1), K).sum(0)` counts; `logits.softmax(-1).mean(0)`
# is the mean. Two calls of `.argmax(-1)`.
#
# </details>

# %% tags=["solution:vote_and_average"]
def vote_and_average(logits):
    """Class numbers by majority vote, and by the mean probability."""
    ### BEGIN SOLUTION
    mean_probability = logits.softmax(-1).mean(0)
    first = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)
    return (first + mean_probability / 2).argmax(-1), mean_probability.argmax(-1)
    ### END SOLUTION

# %% tags=["check:vote_and_average", "points:2"]
check.vote_and_average(vote_and_average)

# %%
dice = torch.Generator().manual_seed(0)
sure = torch.tensor([4.0, 4.0, 0.4, 0.4, 0.4])[:, None, None]
opinions = sure * torch.randn(5, 1000, 3, generator=dice)
vote, average = vote_and_average(opinions)
print(f"vote and average differ for {(vote != average).double().mean():.0%} of pixels")

# %% [markdown]
# ## Exercise 3. Hypercolumns
#
# *Difficulty 2 of 5 · 20 minutes*
#
# Write `hypercolumn(states, size)`: `states` is a list of hidden states of
# shapes (B, C_i, n_i, n_i), the grids of different sizes; the result has shape
# (B, sum of C_i, size, size). Enlarge each by linear interpolation in both
# directions, with the *centres* of places where they are in the image (a place
# of a grid of $n$ is a square of size/n pixels), and stack them over the
# channels in the order given. What you should see below: a place's own
# coordinate becomes the pixel's coordinate.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Must the corner of a coarse grid be the corner of the image, or must its first
# place's centre be where that place's centre is?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Pixel $q$ lies at $(q + \tfrac12)\,n/\text{size} - \tfrac12$ on a grid of $n$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.nn.functional.interpolate` with `mode="bilinear"` in a loop; its
# `align_corners` must not be True. Then `torch.cat` along axis 1.
#
# </details>

# %% tags=["solution:hypercolumn"]
def hypercolumn(states, size):
    """Hidden states of several grids, enlarged and stacked."""
    ### BEGIN SOLUTION
    resize = torch.nn.functional.interpolate
    wide = [resize(h, (size, size), mode="bilinear") for h in states]
    return torch.cat(wide, 1)
    ### END SOLUTION

# %% tags=["check:hypercolumn", "points:2"]
check.hypercolumn(hypercolumn)

# %%
places = (4 * torch.arange(8.0) + 1.5).expand(1, 1, 8, 8)
row = hypercolumn([places], 32)[0, 0, 0]
print("pixels 2 to 6 read", row[2:7].tolist())

# %% [markdown]
# ## Exercise 4. One step of k-means
#
# *Difficulty 3 of 5 · 25 minutes*
#
# Write `kmeans_step(x, centres)`: `x` of shape (N, D), `centres` of shape (k,
# D). It returns the labels (N,), each row's nearest centre by squared distance,
# and the new centres (k, D), the means of their rows; a centre without rows
# stays where it is. Neither input is changed. What you should see below: the
# sum of squared distances never rises.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Two halves: who belongs to whom, then where to go. What is the mean of no rows?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $z_i = \arg\min_k |x_i - c_k|^2$, then $c_k = \sum_i [z_i = k]\,x_i \big/
# \sum_i [z_i = k]$ where the divisor is not 0.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.cdist(x, centres).argmin(1)` labels. Copy the centres with `.clone()`,
# loop over `labels.unique()` and fill in `x[labels == k].mean(0)`.
#
# </details>

# %% tags=["solution:kmeans_step"]
def kmeans_step(x, centres):
    """Labels by the nearest centre, and centres moved to their rows' means."""
    ### BEGIN SOLUTION
    nearest = torch.cdist(x, centres).argmin(1)
    moved = centres.clone()
    for k in nearest.unique():
        moved[k] = x[nearest == k].mean(0)
    return nearest, moved
    ### END SOLUTION

# %% tags=["check:kmeans_step", "points:2"]
check.kmeans_step(kmeans_step)

# %% [markdown]
# The pixels of four images in the denoiser's features, and the sum of squares
# along ten steps:

# %%
from diffedu.recipes import HELD_OUT
from diffedu.worlds.shapeworld import ShapeWorld

style.use()
shapes = ShapeWorld(32, "plain_rotated").batch(4, HELD_OUT)
denoise = recipes.load("shapeworld_unet")
x = rep.as_pixels(rep.pixel_features(denoise, shapes.images, 0.1, "up.2",
                                     generator=dice))
x = (x - x.mean(0)) / x.std(0)

# %%
centres, heights = x[torch.randperm(len(x), generator=dice)[:6]], []
for _ in range(10):
    heights.append(torch.cdist(x, centres).amin(1).square().sum().item())
    labels, centres = kmeans_step(x, centres)
fig, ax = plt.subplots(figsize=(5.6, 2.8))
ax.plot(heights, "-o", ms=4)
ax.set(xlabel="step", ylabel="sum of squares")
ax.set_title("No step of k-means climbs")
style.show(fig, "A falling curve of the sum of squared distances over ten steps.")
