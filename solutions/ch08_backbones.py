# %% [markdown]
# # Exercises 8: backbones and latents
#
# Six exercises on [chapter 8](../notebooks/ch08_backbones.ipynb). Five are checked,
# one is an answer in words. Tensors have the batch first, tokens are (B, N, width),
# and no function changes its inputs.

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import nets, style
from diffedu.checks import ch08 as check

style.use()

# %% [markdown]
# ## Exercise 1. A block that starts as the identity
#
# *Difficulty 2 of 5 · 25 minutes*
#
# Write adaLN-Zero from its equations,
#
# $$h' = h + g_1\,\mathrm{mix}\big((1+s_1)\,\mathrm{LN}(h) + b_1\big),\qquad
# h'' = h' + g_2\,\mathrm{feed}\big((1+s_2)\,\mathrm{LN}(h') + b_2\big),$$
#
# where one linear layer of the condition makes all six vectors,
# $(b_1, s_1, g_1, b_2, s_2, g_2) = Wc + \text{bias}$, in this order. Then show on
# paper why the block is the identity when $W$ and the bias are zero, whatever `mix`
# and `feed` are. The check tests that too, exactly.
#
# Write `adaln_zero(h, c, weight, bias, mix, feed)`: tokens `h` (B, N, w), condition
# `c` (B, k), `weight` (6w, k), `bias` (6w,); `mix` and `feed` map tokens to tokens of
# the same shape. $\mathrm{LN}$ is the layer norm over the last axis without weights,
# with `eps=1e-6`.
#
# <details><summary>Hint 1: a nudge</summary>
#
# The six vectors belong to a sample, not to a token. Which axis must they get so
# that they act on every token alike?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $Wc$ for a batch of rows is `c @ weight.T`. With all six at zero the first line
# reads $h' = h + 0\cdot\mathrm{mix}(\dots)$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `[:, None].chunk(6, dim=2)` cuts the answer of the linear layer. The norm is
# `torch.nn.functional.layer_norm(h, h.shape[-1:], eps=1e-6)`, used twice: on `h`, and
# on what the first line answered.
#
# </details>

# %% tags=["solution:adaln_zero"]
def adaln_zero(h, c, weight, bias, mix, feed):
    """A transformer block that its condition shifts, scales and gates."""
    ### BEGIN SOLUTION
    def norm(h):
        return torch.nn.functional.layer_norm(h, h.shape[-1:], eps=1e-6)

    b1, s1, g1, b2, s2, g2 = (c @ weight.T + bias)[:, None].chunk(6, dim=2)
    h = h + g1 * mix((1 + s1) * norm(h) + b1)
    return h + g2 * feed((1 + s2) * norm(h) + b2)
    ### END SOLUTION

# %% tags=["check:adaln_zero", "points:2"]
check.adaln_zero(adaln_zero)

# %% [markdown]
# Your function is the library's block. And a consequence of the zeros: if a new block
# stands alone, which of its weights get a gradient in the first step? Only the layer of
# the condition; `mix` and `feed` are behind closed gates and wait one step.

# %%
torch.manual_seed(0)
block = nets.DiT(3, 16, patch=4, width=16, depth=1, heads=2).block[0]
h, c = torch.randn(2, 16, 16), torch.randn(2, 16)
out = adaln_zero(h, c, block.modulation.weight, block.modulation.bias,
                 block.mixer, block.feed_forward)
print("the library's block:", torch.allclose(out, block(h, c)))
(out - torch.randn_like(out)).square().mean().backward()
for name, part in block.named_children():
    sizes = [p.grad.abs().max().item() for p in part.parameters()]
    if sizes:
        print(f"{name:13s} {'gets a gradient' if any(sizes) else 'waits'}")

# %% [markdown]
# ## Exercise 2. How far does a stack of convolutions see?
#
# *Difficulty 2 of 5 · 20 minutes*
#
# Layer $i$ has a kernel of $k_i$ pixels and a stride of $s_i$: after it, the grid is
# $s_i$ times coarser. One number of the last layer's answer depends on $r\times r$
# pixels of the input. Write `receptive_field(kernels, strides)`: two lists of equal
# length, first layer first, result $r$, one whole number. What you should see below:
# differentiating a real stack finds the same number.
#
# <details><summary>Hint 1: a nudge</summary>
#
# With no layer at all, one pixel is seen. How many more does one layer of kernel 3
# bring, and how many does it bring after a layer of stride 2?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# $r = 1 + \sum_i (k_i - 1)\prod_{j<i}s_j$. The product runs over the layers *before*
# $i$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Keep two numbers in a loop: what is seen, and how many pixels wide one pixel of the
# present grid is. Add first, then multiply.
#
# </details>

# %% tags=["solution:receptive_field"]
def receptive_field(kernels, strides):
    """The side of the square of input pixels that one answer depends on."""
    ### BEGIN SOLUTION
    seen, pixel = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        seen += (kernel - 1) * pixel
        pixel *= stride
    return seen
    ### END SOLUTION

# %% tags=["check:receptive_field", "points:1"]
check.receptive_field(receptive_field)

# %%
def measured(kernels, strides, size=80):
    """The same by differentiation."""
    pairs = zip(kernels, strides, strict=True)
    layers = [torch.nn.Conv2d(1, 1, k, s) for k, s in pairs]
    x = torch.randn(1, 1, size, size, requires_grad=True)
    out = torch.nn.Sequential(*layers)(x)
    grid = out.shape[-1] // 2
    slope = torch.autograd.grad(out[0, 0, grid, grid], x)[0][0, 0]
    return int((slope != 0).any(0).sum())


for kernels, strides in (([3, 3, 3], [1, 1, 1]), ([3, 3, 3, 3], [1, 2, 2, 1])):
    both = receptive_field(kernels, strides), measured(kernels, strides)
    print(kernels, strides, *both)

# %% [markdown]
# ## Exercise 3. Without skips, without time
#
# *Difficulty 2 of 5 · 20 minutes*
#
# In the chapter a network without the time, and one without places, was compared with
# one that is told. Explain in a few sentences each. (a) A network that is told
# nothing of $t$ can still estimate it; from what, and where will it be wrong? (b) Why
# should skips help a network that predicts $v$ more than they would help a
# classifier? (c) Which of skips and time would you
# expect to matter *less* in a DiT, and why
# does it have no long skips?
#
# <details><summary>Hint 1: where to look</summary>
#
# (a) The variance of neighbouring pixels' differences. (b) Which part of $v$ can be
# copied from the input? (c) What does an adaLN-Zero block answer when its gates are
# small?
#
# </details>

# %% [markdown] tags=["answer:without_skips", "points:2"]
# (a) From $x_t$ itself: on smooth images the differences between neighbouring pixels
# are almost all noise, so their variance tells $\sigma$. With hundreds of pixels this
# is a good estimate, which is why such a network learns at all. It is wrong where the
# noise level hardly shows: at low noise, where texture looks like noise, and near
# $t=1$, where $\alpha$ must be known although the signal has drowned; and it spends
# capacity on the estimate.
#
# (b) $v = \alpha\varepsilon - \sigma x_0$ contains the noise of every single pixel.
# That cannot be compressed: it must be carried from input to output at full
# resolution, and skips do that. A classifier throws this detail away anyway. (That
# is the argument; in the chapter's 100 steps long skips didn't lower the loss.)
#
# (c) In a DiT the skips matter less, because the grid never gets coarser and every
# block adds to its input: with small gates $h$ passes through unchanged, so there is
# one long skip from the first token to the last already. U-ViT's blocks have such
# shortcuts too; there the long skips give late blocks early features apart from the
# sum.

# %% [markdown]
# ## Exercise 4. What does a DiT cost?
#
# *Difficulty 3 of 5 · 25 minutes*
#
# Count the operations of the *blocks* of a DiT for one image. A multiplication with
# its addition counts as two, norms and activations count nothing. A block of width
# $w$ on $N$ tokens has the linear layers of attention ($w\to3w$ and $w\to w$), the
# two products of attention, the two-layer network ($w\to4w\to w$), and the layer of
# the condition ($w\to6w$), which runs once for the image and not for every token.
#
# Write `dit_operations(size, patch, width, depth)`: four whole numbers, the side of
# the image in pixels, of a patch in pixels, the width and the number of blocks.
# Result: one number. What you should see below: PyTorch's counter agrees to the last
# digit, and halving the patch costs about four times as much: first less, then more.
#
# <details><summary>Hint 1: a nudge</summary>
#
# How many tokens are there? A linear layer from $a$ to $b$ features costs $ab$
# multiplications for each of them.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# The scores are $N\times N$ dot products of total length $w$ (all heads together),
# and the weighted mean costs the same: $2N^2w$ multiplications. The linear layers
# come to $(3+1+4+4)\,Nw^2$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Compute `n`, add three terms (linear layers, products, condition), multiply by
# `2 * depth`.
#
# </details>

# %% tags=["solution:dit_operations"]
def dit_operations(size, patch, width, depth):
    """Operations of a DiT's blocks for one image."""
    ### BEGIN SOLUTION
    n = (size // patch) ** 2
    linear, products, condition = 12 * n * width**2, 2 * n**2 * width, 6 * width**2
    return 2 * depth * (linear + products + condition)
    ### END SOLUTION

# %% tags=["check:dit_operations", "points:2"]
check.dit_operations(dit_operations)

# %%
from torch.utils.flop_counter import FlopCounterMode


def counted(size, patch, width, depth):
    """What PyTorch counts in the blocks alone."""
    blocks = nets.DiT(3, size, patch=patch, width=width, depth=depth).block
    h, c = torch.zeros(1, (size // patch) ** 2, width), torch.zeros(1, width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for block in blocks:
            block(h, c)
    return counter.get_total_flops()


for patch in (8, 4, 2):
    mine = dit_operations(16, patch, 48, 2)
    print(f"patch {patch}: {mine / 1e6:5.2f} million, "
          f"counter agrees: {mine == counted(16, patch, 48, 2)}")

# %% [markdown]
# ## Exercise 5. Attention in windows
#
# *Difficulty 2 of 5 · 20 minutes*
#
# Cut the row of $N$ tokens into runs of `window` neighbours and let each token attend
# within its run. Write `windowed_attention(q, k, v, window)`: queries, keys and values
# of shape (B, heads, N, d), `window` a whole number that divides $N$; result of shape
# (B, heads, N, d). Do it without an $N\times N$ matrix: the saving is the point.
#
# <details><summary>Hint 1: a nudge</summary>
#
# A run is a batch of its own. What shape lets one product handle all runs at once?
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Within a run $\mathrm{softmax}_j(q_i\cdot k_j/\sqrt d)\,v_j$, as always; $d$ is the
# length of one query, not the window.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# `x.unflatten(2, (-1, window))` makes (B, heads, runs, window, d) of each of the
# three; the products act on the last two axes; `flatten(2, 3)` undoes the cut.
#
# </details>

# %% tags=["solution:windowed_attention"]
def windowed_attention(q, k, v, window):
    """Attention within runs of neighbouring tokens."""
    ### BEGIN SOLUTION
    q, k, v = (x.unflatten(2, (-1, window)) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).flatten(2, 3)
    ### END SOLUTION

# %% tags=["check:windowed_attention", "points:2"]
check.windowed_attention(windowed_attention)

# %% [markdown]
# The cost of your function, counted, against the number of tokens and the window.

# %%
def cost(n, window):
    q = torch.zeros(1, 4, n, 16)
    with FlopCounterMode(display=False) as counter:
        windowed_attention(q, q, q, window)
    return counter.get_total_flops() / 1e6


fig, ax = plt.subplots(figsize=(5.2, 3.2))
lengths = [64, 256, 1024]
for window in (16, 64, None):
    costs = [cost(n, window or n) for n in lengths]
    ax.loglog(lengths, costs, "o-", label=f"window {window or 'N'}")
style.label_lines(ax)
ax.set(xlabel="tokens", ylabel="million operations", xlim=(50, 4000),
       title="A fixed window makes the cost linear")
style.show(fig, "Counted operations against tokens on log axes for windows of 16, 64 "
           "and all tokens: two lines of slope one and one of slope two.")

# %% [markdown]
# ## Exercise 6. A state in attention's place
#
# *Difficulty 3 of 5 · 30 minutes*
#
# Run a diagonal state-space model along the tokens. For each feature there are $S$
# numbers of state,
#
# $$h_k = a\,h_{k-1} + b\,u_k,\qquad y_k = \sum_s c_s\,h_{k,s},\qquad h_{-1} = 0 ,$$
#
# all real here. Write `state_scan(u, decay, into, out)`: inputs `u` (B, w, N), `decay`
# $a$, `into` $b$ and `out` $c$ each (w, S); result (B, w, N). The answer at token $k$
# has heard token $k$ itself. What you should see below: your scan, put into a DiT
# block in the place of attention, makes a network without any attention product.
#
# <details><summary>Hint 1: a nudge</summary>
#
# What shape does the state have? It belongs to a sample, a feature and a state
# number.
#
# </details>
#
# <details><summary>Hint 2: the equation</summary>
#
# Unrolled: $y_k = \sum_{j\le k}\big(\sum_s c_s\,a_s^{k-j}\,b_s\big)\,u_j$. For $k=0$
# that is $\sum_s c_s b_s\,u_0$.
#
# </details>
#
# <details><summary>Hint 3: the shape of the code</summary>
#
# Start with `h = 0` and an empty list; in a loop over the last axis update `h` with
# `u[:, :, k, None]`, then append `(out * h).sum(-1)`; stack along `dim=2`.
#
# </details>

# %% tags=["solution:state_scan"]
def state_scan(u, decay, into, out):
    """A diagonal linear recurrence along the last axis of u."""
    ### BEGIN SOLUTION
    h, answers = 0, []
    for k in range(u.shape[2]):
        h = decay * h + into * u[:, :, k, None]
        answers.append((out * h).sum(-1))
    return torch.stack(answers, dim=2)
    ### END SOLUTION

# %% tags=["check:state_scan", "points:2"]
check.state_scan(state_scan)

# %%
class Both(torch.nn.Module):
    """Your scan from both ends: (B, N, w) to (B, N, w), as a DiT's mixer must be."""

    def __init__(self, width, states=4):
        super().__init__()
        start = torch.linspace(0.3, 3, states).repeat(width, 1)
        self.decay = torch.nn.Parameter(start)
        self.into = torch.nn.Parameter(torch.randn(width, states) / states)
        self.out = torch.nn.Parameter(torch.randn(width, states))

    def forward(self, tokens):
        u, decay = tokens.transpose(1, 2), self.decay.sigmoid()
        there = state_scan(u, decay, self.into, self.out)
        back = state_scan(u.flip(2), decay, self.into, self.out).flip(2)
        return (there + back).transpose(1, 2)

# %%
torch.manual_seed(0)
net = nets.DiT(3, 16, patch=4, width=16, depth=2, mixer=Both)
x, t = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.8])
products = [m for m in net.modules() if isinstance(m, nets.Attend)]
print(f"answers {tuple(net(x, t).shape)}, attention products: {len(products)}")
