# %% [markdown]
# # Exercises 0: start here
#
# Three warm-ups, to get used to checks and hints. Write your answer where it says
# `YOUR CODE HERE`, run the cell, then run the check below it. A wrong answer costs
# nothing: the check says which kind of mistake it looks like, and you try again.

# %%
import torch

from diffedu.checks import ch00 as check

# %% [markdown]
# ## Exercise 1. Add noise
#
# *Difficulty 1 of 5 · 5 minutes*
#
# You saw this one in the chapter. Write it without looking:
#
# $$x_t = \sqrt{\bar\alpha}\;x_0 + \sqrt{1-\bar\alpha}\;\varepsilon$$
#
# (2006.11239, eq. 4). Write `add_noise(x0, eps, alpha_bar)`: `x0` and `eps` are eight
# images each, of shape (B, 1, 8, 8). `alpha_bar` has shape (B,): each image has a
# value of its own. The result has the shape of `x0`. What you should see: a check
# mark.
#
# <details><summary>Hint 1: a nudge</summary>
#
# How does PyTorch multiply a tensor of shape (8,) with one of shape (8, 1, 8, 8)? It
# matches shapes from the right. Is that what you want here?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# For image number $i$: $x_t^{(i)} = \sqrt{\bar\alpha_i}\,x_0^{(i)} +
# \sqrt{1-\bar\alpha_i}\,\varepsilon^{(i)}$. Both factors are square roots, because
# $\bar\alpha$ is a share of the variance.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Two lines. `a = alpha_bar[:, None, None, None]` has shape (B, 1, 1, 1); then return
# a sum of two products with `.sqrt()` in each.
#
# </details>

# %% tags=["solution:add_noise"]
def add_noise(x0, eps, alpha_bar):
    """Noisy images (B, 1, 8, 8) from x0 and eps of that shape and alpha_bar (B,)."""
    ### BEGIN SOLUTION
    left = alpha_bar[:, None, None, None]
    return left.sqrt() * x0 + (1 - left).sqrt() * eps
    ### END SOLUTION

# %% tags=["check:add_noise", "points:1"]
check.add_noise(add_noise)

# %% [markdown]
# ## Exercise 2. Take it away again
#
# *Difficulty 1 of 5 · 10 minutes*
#
# Somebody tells you the noise. Which image was there? Solve the equation of exercise
# 1 for $x_0$, and write `remove_noise(x_t, eps, alpha_bar)` with the same shapes:
# `x_t` and `eps` are (B, 1, 8, 8), `alpha_bar` is (B,), and the result is $x_0$, of
# the shape of `x_t`. What you should see: with your two functions,
# `remove_noise(add_noise(x0, eps, a), eps, a)` is `x0` again.
#
# This is what a network that predicts the noise is for: from its $\hat\varepsilon$
# comes its $\hat x_0$, by your function (2006.11239, eq. 15).
#
# <details><summary>Hint 1: a nudge</summary>
#
# Undo the two operations in the opposite order: the last one was adding the noise.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\sqrt{\bar\alpha}\;x_0 = x_t - \sqrt{1-\bar\alpha}\;\varepsilon$. One division is
# left.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# One line after the axes are in place: `(x_t - … * eps) / …`. Mind the parentheses.
#
# </details>

# %% tags=["solution:remove_noise"]
def remove_noise(x_t, eps, alpha_bar):
    """The images (B, 1, 8, 8) behind x_t, whose noise eps and alpha_bar are known."""
    ### BEGIN SOLUTION
    share = alpha_bar.reshape(-1, 1, 1, 1)
    return (x_t - (1 - share).sqrt() * eps) / share.sqrt()
    ### END SOLUTION

# %% tags=["check:remove_noise", "points:1"]
check.remove_noise(remove_noise)

# %% [markdown]
# ## Exercise 3. A judge
#
# *Difficulty 2 of 5 · 15 minutes*
#
# The chapter's claim needs someone who says what an image shows. Write
# `nearest_label(x, known, labels)`: `x` are images to judge, (B, 1, 8, 8); `known`
# are images that somebody labelled, (N, 1, 8, 8), and `labels` says what they show,
# (N,). For each image of `x` find the known one at the smallest distance
#
# $$d_{ij} = \sqrt{\sum_p \big(x^{(i)}_p - k^{(j)}_p\big)^2}$$
#
# and return its label: shape (B,). What you should see: of 1,297 training digits,
# judged by the 500 others, all but about one in seventy get their own label.
#
# <details><summary>Hint 1: a nudge</summary>
#
# First make a table of distances, one row for each image of `x`, one column for each
# known image. Then find the smallest entry of each row. Then look up what that
# column's image shows.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $\text{label}_i = \text{labels}[\arg\min_j d_{ij}]$. The root changes no order, so
# it may be left out.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `torch.cdist(a, b)` gives the table for `a` (B, P) and `b` (N, P), and `.flatten(1)`
# brings images into that shape. Then `.argmin(dim=1)`, and index `labels` with it.
#
# </details>

# %% tags=["solution:nearest_label"]
def nearest_label(x, known, labels):
    """The label (B,) of the known image that is nearest to each image of x."""
    ### BEGIN SOLUTION
    table = torch.cdist(x.flatten(1), known.flatten(1))
    return labels[table.argmin(dim=1)]
    ### END SOLUTION

# %% tags=["check:nearest_label", "points:2"]
check.nearest_label(nearest_label)

# %% [markdown]
# Now judge real digits with your function. Does the share agree with what exercise 3
# says that you should see?

# %%
from diffedu.worlds import digits

images, digit = digits.load("train")
known_images, known_labels = digits.load("test")
right = nearest_label(images, known_images, known_labels) == digit
print(f"{right.float().mean():.3f} of the training digits get their own label")

# %% [markdown]
# That is all it takes. The exercises of the other chapters are longer, and they work
# the same way. Go on with chapter 1.
