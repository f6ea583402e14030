# %% [markdown]
# # 8. Backbones and latents
#
# So far a network was a box that takes $x_t$ and $t$ and answers one tensor. This
# chapter opens the box. After it you will be able to
#
# - write the forward pass of a U-Net, of a diffusion transformer (DiT) and of a
#   U-ViT by hand, and say what each of their parts can see;
# - count what attention costs, and put a window or a state-space model in its place;
# - move diffusion into latents, and tell a condition to a network in three ways.
#
# | | |
# |---|---|
# | surveys | A 2.2, A 4 |
# | needs | ch01, ch02 |
# | study | 7 hours |
# | figures | A-3, F23, F24, F25 |
# | receipt | 39 seconds on one CPU thread, 936 MB |

# %%
import matplotlib.pyplot as plt
import torch

from diffedu import Denoiser, EmpiricalDenoiser, latents, losses, nets, style, training
from diffedu.claims import budget, claim, recorded, report, save_recorded

style.use()

# %% [markdown]
# ## 8.1 A U-Net, taken apart
#
# A network of this library knows nothing of schedules: it is called as
# `net(x, t, **condition)`. What must it contain? It has to see fine detail, or it
# cannot place an edge; it has to see the whole image, or it cannot know what the
# edge belongs to; and it must know how noisy $x_t$ is. A U-Net (1505.04597) walks
# down to coarse grids, where a look is cheap and wide, and up again, and hands the
# detail across.
#
# New networks here answer zero: the last layer of every branch starts at zero, so
# that training begins calmly. That would hide mistakes from a comparison, since $0=0$
# whatever we write. `wake` draws all weights anew. The data is ShapeWorld: one
# coloured shape on a plain ground, 16 pixels wide, drawn on the fly.

# %%
from torch.nn.functional import silu
from torch.testing import assert_close


def wake(net, seed=0):
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=dice) / 6)
    return net.eval()

# %%
from diffedu import metrics, recipes, samplers, schedules
from diffedu.worlds.shapeworld import HUES, VOCABULARY, ShapeWorld, encode, hue_bucket

cosine = schedules.cosine()
world = ShapeWorld(16, "plain_rotated")
data = world.images(4096)
unseen = world.images(512, start=1_000_000)

# %% [markdown]
# Time comes in first. A single number $t\in[0,1]$ is a poor input: to tell $t=0.500$
# from $t=0.501$ a layer would need huge weights. Cosines and sines of $t$ at many
# frequencies make the difference visible,
#
# $$\gamma(t) = \big[\cos \omega_1 t, \dots, \cos\omega_n t,\
# \sin\omega_1 t, \dots, \sin\omega_n t\big],$$
#
# with $\omega$ spaced evenly in log from 1 to 1000 radians: the slow ones tell data
# from noise, the fast ones tell neighbours in a chain of 1000 steps. Two linear
# layers make of it the **condition vector** $c$, which every block is told.

# %%
def time_features(t, features=64):
    omega = torch.logspace(0, 3, features // 2)
    angles = t[:, None] * omega
    return torch.cat([angles.cos(), angles.sin()], dim=1)


t = torch.tensor([0.1, 0.5, 0.501, 0.9])
assert_close(time_features(t), nets.TimeFeatures(64)(t))

# %% [markdown]
# A block is told $c$ by **feature-wise linear modulation**, FiLM (1709.07871): a
# linear layer turns $c$ into a scale and a shift for each channel,
#
# $$h \leftarrow \mathrm{norm}(h)\,(1 + \mathrm{scale}(c)) + \mathrm{shift}(c).$$
#
# The norm comes first, so that the two numbers always act on features of unit size.
# Around it stand two convolutions and a shortcut. Optional attention comes last.

# %%
def film_block(block, h, c):
    scale, shift = block.scale_shift(c)[..., None, None].chunk(2, dim=1)
    inner = block.norm2(block.conv1(silu(block.norm1(h))))
    inner = inner * (1 + scale) + shift
    return block.attention(block.skip(h) + block.conv2(silu(inner)))

# %% [markdown]
# The whole network: down through blocks of which some begin by halving the grid
# (`pool`), one in the middle, and up. Each block on the way up is given, beside what
# comes from below, what its opposite number saw on the way down. That hand-over is a
# **skip**; here it is a concatenation of channels. The last in is the first out.

# %%
def unet(net, x, t):
    c = silu(net.condition(x, t))
    h, seen = net.stem(x), []
    for block in net.down:
        h = film_block(block, block.pool(h), c)
        seen.append(h)
    h = film_block(net.middle, h, c)
    for grow, block in zip(net.grow, net.up, strict=True):
        h = film_block(block, torch.cat([grow(h), seen.pop()], dim=1), c)
    return net.head(h)


x = data[:4]
net = wake(nets.UNet(3, 16, width=8, attention=(8,)))
assert_close(unet(net, x, t), net(x, t))

# %% [markdown]
# ## 8.2 What can a pixel see?
#
# The answer at one pixel depends on some patch of the input, its **receptive
# field**. It can be measured: differentiate one output pixel in all inputs. Where
# the gradient is zero, the network is blind. One $3\times3$ convolution sees 3
# pixels, each further one adds 2, and on a grid halved $l$ times it adds
# $2\cdot 2^l$ pixels of the image:
#
# $$r = 1 + \sum_i (k_i - 1)\,\prod_{j<i} s_j ,$$
#
# with kernel sizes $k_i$ and strides $s_j$. Without halving, our U-Net is 8
# convolutions in a row, so $r = 17$. A catch: group normalisation takes its mean
# over the whole image, so strictly every pixel depends a little on all. `blind`
# takes the norms out, and the control leaves them in.

# %%
def blind(net):
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    return net

# %%
def gradient_map(net):
    """|d answer at the centre / d input|, summed over channels: (64, 64)."""
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    centre = net(x, torch.tensor(0.5))[0, :, 32, 32].sum()
    return torch.autograd.grad(centre, x)[0][0].abs().sum(0)

# %%
def width(reach):
    """The number of columns in which the map is above zero."""
    return int((reach > 0).any(0).sum())

# %%
def levels(n):
    return wake(nets.UNet(3, 64, width=8, multipliers=(1,) * n))


maps = {n: gradient_map(blind(levels(n))) for n in (1, 2, 3)}
seen = {n: width(reach) for n, reach in maps.items()}
with_norms = width(gradient_map(levels(1)))
looking = wake(nets.UNet(3, 64, width=8, multipliers=(1, 1), attention=(32,)))
with_attention = width(gradient_map(blind(looking)))

# %%
fig, axes = plt.subplots(1, 3, figsize=(8.4, 3.1))
for ax, (n, reach) in zip(axes, maps.items(), strict=True):
    shown = (reach / reach.max()).clamp(min=1e-6).log10()
    picture = ax.imshow(shown, vmin=-6, vmax=0, cmap="magma")
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"{n} level{'s' * (n > 1)}: {seen[n]} of 64 pixels")
fig.colorbar(picture, ax=axes, shrink=0.8, label="$\\log_{10}$ of the gradient")
style.show(fig, "Gradient of the centre of the answer in a 64 by 64 input, for U-Nets "
           "of one, two and three levels. One level sees a square of 17 pixels; each "
           "further level sees more, and three reach the border.")
claim("ch08", "a U-Net of one level sees 17 pixels; each halving of the grid adds more",
      seen[1] == 17 < seen[2] < seen[3], one=seen[1], two=seen[2], three=seen[3],
      with_attention=with_attention, control_with_norms=with_norms)

# %% [markdown]
# The colours fall by powers of ten towards the rim: far pixels can be seen, but
# count for little (these weights are random; training may change that). Two
# things reach further at once. With the norms in place, one level already feels
# all 64 pixels, though only through a mean and a variance. And attention on a
# coarse grid lets every place look at every other.
#
# ## 8.3 Attention, and what it costs
#
# Attention works on a row of $N$ vectors, the **tokens**: places of a grid, patches
# of an image, words. Every token $i$ asks a query $q_i$; every token $j$ offers
# a key $k_j$ and a value
# $v_j$, all of them linear in its features. The answer is a weighted mean of values
# (1706.03762, eq. 1),
#
# $$\mathrm{attend}(q,k,v)_i = \sum_j a_{ij}\,v_j,\qquad
# a_{i\cdot} = \mathrm{softmax}_j\big(q_i\cdot k_j/\sqrt d\big).$$
#
# Dividing by $\sqrt d$ keeps the scores of random vectors at unit size, whatever the
# length $d$. Several **heads** do this side by side, each with $d = w/\text{heads}$
# of the $w$ features. In this library the product is a module of its own, so that
# later chapters can hook it and read or change the map $a$.

# %%
def attend(q, k, v):
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ v


q, k, v = torch.randn(3, 2, 4, 16, 8, generator=torch.Generator().manual_seed(0))
assert_close(attend(q, k, v), nets.Attend()(q, k, v))

# %% [markdown]
# The map $a$ has $N^2$ entries for $N$ tokens: $4Nw^2$ multiplications for the linear
# layers of width $w$, but $2N^2w$ for the two products. Twice the side of an image is
# four times the tokens and *sixteen* times the products. Two ways around it:
# **windows** (each run of $M$ tokens attends within itself, $2NMw$), and a state that
# runs along the tokens (section 8.8). PyTorch can count operations; it counts one
# multiplication with its addition as two.

# %%
from torch.utils.flop_counter import FlopCounterMode


def count(run):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()

# %%
def products(n, window=None, width=64):
    """Operations of the attention products alone, for n tokens."""
    q = torch.zeros(1 if window is None else n // window, 4, window or n, width // 4)
    return count(lambda: attend(q, q, q))


lengths = [64, 256, 1024, 4096]
linear_layers = [count(lambda n=n: torch.nn.Linear(64, 256)(torch.zeros(1, n, 64)))
                 for n in lengths]
full = [products(n) for n in lengths]
windowed = [products(n, window=64) for n in lengths]

# %%
fig, ax = plt.subplots(figsize=(5.4, 3.4))
for name, values in {"all pairs": full, "windows of 64": windowed,
                     "linear layers": linear_layers}.items():
    ax.loglog(lengths, values, "o-", label=name)
style.label_lines(ax)
ax.set(xlabel="tokens", ylabel="operations", xlim=(50, 30_000),
       title="Only the full product grows with the square")
style.show(fig, "Counted operations against the number of tokens on two log axes. The "
           "product over all pairs has slope two and overtakes the linear layers near "
           "128 tokens; windows of 64 tokens and the linear layers have slope one.")
slope, slope_windowed = (
    torch.tensor(v[-1] / v[0]).log2().item() / 6 for v in (full, windowed)
)
claim("ch08", "attention's products grow with the square of the tokens, windows don't",
      abs(slope - 2) < 1e-3 and abs(slope_windowed - 1) < 1e-3,
      slope=slope, control_windowed=slope_windowed)

# %% [markdown]
# A window is a reshape: cut the row of tokens into runs, treat each as a sample of
# its own, put them together again. What is lost is that no token hears beyond its
# run; Swin (2103.14030) shifts the windows from layer to layer to make up for it.

# %%
def windowed_attention(mixer, tokens, window):
    runs = tokens.unflatten(1, (-1, window)).flatten(0, 1)  # (B N / M, M, w)
    return mixer(runs).unflatten(0, (len(tokens), -1)).flatten(1, 2)


mixer = wake(nets.TokenAttention(32, heads=4))
tokens = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(1))
by_hand = windowed_attention(mixer, tokens, 16)
mixer.window = 16
assert_close(by_hand, mixer(tokens))

# %% [markdown]
# ## 8.4 A transformer for diffusion
#
# DiT (2212.09748) has no grid that shrinks and no convolutions. It cuts the image
# into patches of $p\times p$ pixels, makes each a token, and lets a transformer do
# the rest. An image of $H\times H$ pixels has $N=(H/p)^2$ tokens, so **halving the
# patch makes four times the tokens**, at nearly the same number of weights: only the
# first and the last layer change.

# %%
def patchify(x, p):
    b, channels, height, width = x.shape
    x = x.reshape(b, channels, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, channels * p * p)


assert_close(patchify(x, 4), nets.patchify(x, 4))
assert_close(nets.unpatchify(patchify(x, 4), 4, channels=3), x)

# %% [markdown]
# Attention treats tokens as a set: shuffle them and the answers are shuffled alike.
# So every token must be told its place. DiT adds a fixed vector of sines and
# cosines, half of it for the row and half for the column.

# %%
def places(grid, width):
    speeds = 10_000.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * speeds
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, w / 2)
    rows, columns = torch.meshgrid(*[torch.arange(grid)] * 2, indexing="ij")
    return torch.cat([line[rows.flatten()], line[columns.flatten()]], dim=1)


assert_close(places(8, 16), nets.DiT(3, 16, patch=2, width=16).places)

# %% [markdown]
# The condition enters each block by **adaLN-Zero**. One linear layer of $c$ makes six
# vectors: shift, scale and gate $(b_1, s_1, g_1)$ for attention, and $(b_2, s_2, g_2)$
# for the two-layer network $F$,
#
# $$h' = h + g_1\,\mathrm{Attn}\big((1+s_1)\,\mathrm{LN}(h) + b_1\big),\qquad
# h'' = h' + g_2\,F\big((1+s_2)\,\mathrm{LN}(h') + b_2\big).$$
#
# That is FiLM again, with a gate. "Zero" says how the linear layer starts: at zero.
# Then $g_1 = g_2 = 0$ and $h''=h$, whatever attention and $F$ may be: every block is
# the identity, and a deep stack starts like a shallow one.

# %%
def adaln_zero(block, h, c):
    parts = block.modulation(c)[:, None].chunk(6, dim=2)
    b1, s1, g1, b2, s2, g2 = parts
    h = h + g1 * block.mixer((1 + s1) * block.norm1(h) + b1)
    return h + g2 * block.feed_forward((1 + s2) * block.norm2(h) + b2)

# %%
def dit(net, x, t):
    c = silu(net.condition(x, t))
    h = net.stem(patchify(x, net.patch)) + net.places
    for block in net.block:
        h = adaln_zero(block, h, c)
    shift, scale = net.head.modulation(c)[:, None].chunk(2, dim=2)
    patches = net.head.linear((1 + scale) * net.head.norm(h) + shift)
    return nets.unpatchify(patches, net.patch, channels=3)


net = wake(nets.DiT(3, 16, patch=4, width=32, depth=2))
assert_close(dit(net, x, t), net(x, t))

# %% [markdown]
# ## 8.5 Both, drawn from themselves
#
# The survey draws the two architectures side by side (2407.00783, figure 3). We let
# the modules draw themselves. `net.blocks()` names the modules whose outputs are the
# hidden states; a hook on each notes the shape that comes out, and its parameters
# are counted. Nothing in the picture below was typed in.

# %%
def inspect(net, x, t):
    """For each block: its name, the shape of its answer, its number of weights."""
    rows = []
    def note(name):
        def hook(module, _, out):
            rows.append((name, tuple(out.shape[1:]),
                         sum(p.numel() for p in module.parameters())))
        return hook
    hooks = [net.get_submodule(n).register_forward_hook(note(n)) for n in net.blocks()]
    out = net(x, t)
    for hook in hooks:
        hook.remove()
    return rows, out

# %%
def box(ax, place, height, row, colour):
    name, shape, weights = row
    words = f"{name}\n{'×'.join(map(str, shape))}\n{weights / 1000:.0f}k"
    ax.text(place, height, words, ha="center", va="center", fontsize=7,
            bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": colour})

# %% [markdown]
# The U-Net's boxes stand at the height of their grid, and a line joins the two ends
# of each skip. The DiT's grid never changes. Below, one adaLN-Zero block is opened:
# its parts and their weights.

# %%
def draw_unet(ax, rows):
    heights = [torch.tensor(float(shape[-1])).log2().item() for _, shape, _ in rows]
    ax.plot(heights, color="0.6", lw=1)
    half = len(rows) // 2
    for i in range(half):
        ax.plot([i, 2 * half - i], [heights[i]] * 2, color="0.8", ls="--", zorder=0)
    for i, row in enumerate(rows):
        box(ax, i, heights[i], row, style.colour("learned"))
    ax.set(yticks=[2, 3, 4], yticklabels=[4, 8, 16], ylabel="grid in pixels",
           xticks=[], xlim=(-0.6, 2 * half + 0.6), ylim=(1.5, 4.5))

# %%
def draw_dit(top, bottom, rows, block):
    top.plot([0] * len(rows), color="0.6", lw=1, zorder=0)
    for i, row in enumerate(rows):
        box(top, i, 0, row, style.colour("dsm"))
    top.set(xticks=[], yticks=[], xlim=(-0.6, len(rows) - 0.4), ylim=(-1, 1))
    parts = {name: sum(p.numel() for p in part.parameters())
             for name, part in block.named_children()}
    bottom.barh(list(parts), [v / 1000 for v in parts.values()],
                color=style.colour("dsm"), alpha=0.5)
    bottom.invert_yaxis()
    bottom.set(xlabel="thousand weights")

# %%
noisy = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
u_net = nets.UNet(3, 16, width=32, attention=(8,))
transformer = nets.DiT(3, 16, patch=2, width=80, depth=6)
u_rows, u_out = inspect(u_net, noisy, t[:2])
d_rows, d_out = inspect(transformer, noisy, t[:2])
tokens = torch.randn(2, 64, 80, generator=torch.Generator().manual_seed(3))
c = torch.randn(2, 80, generator=torch.Generator().manual_seed(4))
moved = max((block(tokens, c) - tokens).abs().max().item()
            for block in transformer.block)
woken = wake(nets.DiT(3, 16, width=80).block[0])
woken = (woken(tokens, c) - tokens).abs().max().item()

# %% tags=["A-3"]
fig, axes = plt.subplots(3, 1, figsize=(8.4, 6.6), height_ratios=(3, 1, 1.6))
draw_unet(axes[0], u_rows)
draw_dit(axes[1], axes[2], d_rows, transformer.block[0])
axes[0].set_title("A U-Net trades pixels for channels and hands detail across")
axes[1].set_title("A DiT keeps its 64 tokens from end to end")
axes[2].set_title("A third of an adaLN-Zero block's weights listen to the condition")
style.show(fig, "Three rows drawn from the modules. The U-Net's seven blocks go from a "
           "grid of 16 to 8 to 4 and back, with dashed skips. The transformer's six "
           "blocks all have 64 tokens of 80 numbers. A bar chart of one block's "
           "weights: feed-forward most, modulation next, then the mixer; the norms "
           "have none.")
claim("A-3", "each network answers the shape it was given; a new adaLN-Zero block is "
      "the identity", u_out.shape == d_out.shape == noisy.shape and moved < 1e-6,
      unet=list(u_out.shape), dit=list(d_out.shape), moved=moved, control_woken=woken)

# %% [markdown]
# Two things to read off. In the U-Net most weights sit at the coarse grids, where
# channels are many. In the DiT block the `modulation` layer, which only turns a
# condition into six vectors, has a third of all weights: its $6w^2$ stand beside
# $4w^2$ for attention and $8w^2$ for the network.
#
# ## 8.6 More tokens or more blocks?
#
# DiT's central experiment varies the depth and width of the network and the size of
# its patches, and finds that what counts is neither by itself but the compute: the
# operations of one forward pass rank the models by quality (2212.09748, section 5).
# We repeat it very small. All runs below share this recipe, and are judged on 512
# unseen images with the same times and noise for all.

# %%
def train(net, data, steps, seed):
    """The averaged denoiser after so many steps at batch 16."""
    denoise = Denoiser(net, cosine, predicts="v")
    dice = torch.Generator().manual_seed(seed)
    *_, state = training.fit(
        denoise, lambda x0, g: losses.denoising(denoise, x0, generator=g),
        training.batches(data, 16, dice), steps=steps, lr=2e-3, warmup=10, ema=0.97,
        generator=dice, progress=False,
    )  # fmt: skip
    return state.ema

# %%
@torch.no_grad()
def judge(denoise, images=unseen):
    """The loss on unseen images, with the same times and noise for every network."""
    t = torch.linspace(cosine.t_min, cosine.t_max, len(images))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    return losses.denoising(denoise, images, t=t, noise=noise).item()

# %%
def megaflops(net, shape):
    """Millions of floating-point operations of one look at one sample."""
    one = torch.zeros(1, *shape), torch.tensor([0.5])
    return count(lambda: net(*one)) / 1e6


def small_dit(patch, depth, seed):
    torch.manual_seed(seed)
    return nets.DiT(3, 16, patch=patch, width=48, depth=depth)

# %% [markdown]
# Three patch sizes, two depths, three seeds each: 18 trainings. They are *recorded*:
# this cell made the file that is read below, and makes it again if
# `DIFFEDU_BUDGET=full`.

# %%
if budget(laptop=False, full=True):
    results = {}
    for patch in (2, 4, 8):
        for depth in (2, 4):
            shapes = [small_dit(patch, depth, seed) for seed in (0, 1, 2)]
            runs = [judge(train(net, data, 150, s)) for s, net in enumerate(shapes)]
            flops = megaflops(shapes[0], (3, 16, 16))
            results[f"{patch} {depth}"] = {"megaflops": flops, "loss": runs}
    recipe = {"data": "ShapeWorld(16, plain_rotated), 4096 images", "width": 48,
              "steps": 150, "batch": 16, "lr": 2e-3, "ema": 0.97, "predicts": "v"}
    save_recorded("f23", figure="F23", recipe=recipe, seeds=[0, 1, 2], results=results)

# %% [markdown]
# One of the runs is cheap enough to be made again here, and the operations are
# counted anew for all. The claim is a rank correlation (Spearman's): order the six
# networks by compute and by loss, and correlate the two orders. As a control, the
# depth alone, without the patches.

# %%
def ranks(values):
    return torch.tensor(values).argsort().argsort().double()


def spearman(a, b):
    return torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].item()

# %%
runs = recorded("f23")["results"]
kinds = {name: tuple(map(int, name.split())) for name in runs}
flops = {n: megaflops(small_dit(*kind, 0), (3, 16, 16)) for n, kind in kinds.items()}
rho = [spearman(list(flops.values()), [run["loss"][s] for run in runs.values()])
       for s in range(3)]
again = judge(train(small_dit(8, 2, 0), data, 150, 0))
mean = {name: sum(run["loss"]) / 3 for name, run in runs.items()}
deeper = {p: mean[f"{p} 4"] - mean[f"{p} 2"] for p in (2, 4, 8)}

# %% tags=["F23"]
fig, ax = plt.subplots(figsize=(5.8, 3.6))
for name, (patch, depth) in kinds.items():
    marker, colour = {2: "o", 4: "s"}[depth], {2: "C0", 4: "C1", 8: "C2"}[patch]
    ax.semilogx([flops[name]] * 3, runs[name]["loss"], marker, color=colour, mfc="none")
for patch in (2, 4, 8):
    ax.annotate(f"patch {patch}", (flops[f"{patch} 2"], mean[f"{patch} 2"] + 0.02))
ax.set(xlabel="million operations a look", ylabel="loss on unseen images",
       ylim=(0, 0.55), title="Smaller patches lower the loss; depth, so early, doesn't")
style.show(fig, "Loss against counted operations for six small transformers, three "
           "seeds each; circles have two blocks, squares four. The loss falls from "
           "patch 8 to 4 to 2; at each patch size the two depths lie together.")
claim("F23", "over patch sizes and depths the loss falls with compute (recorded, each "
      "of three seeds)", max(rho) <= -0.7 and abs(again - runs["8 2"]["loss"][0]) < 0.02
      and all(abs(flops[n] / runs[n]["megaflops"] - 1) < 1e-6 for n in runs),
      rank_correlation=rho, again=again, recorded=runs["8 2"]["loss"][0])
report("F23", "loss at four blocks minus loss at two, mean of three seeds",
       **{f"patch_{p}": gap for p, gap in deeper.items()})

# %% [markdown]
# The rank correlation holds on each seed, but look at what makes it. It is the patch
# size: after 150 steps twice the depth changes the loss in the third digit, in either
# direction. In the paper, trained for 400,000 steps, depth and width count as well;
# we cannot show that here. Part of the step from 4 to 8 is a second effect: a patch of
# $8\times8\times3$ has 192 numbers and our tokens 48, so that most of a patch does
# not fit through. What we may conclude is that with fewer, larger tokens a
# transformer of no fewer weights does worse.
#
# ## 8.7 U-ViT: all are tokens, and early ones are kept
#
# U-ViT (2209.12152) makes the opposite choice on the condition: time and class are
# **tokens** in the row, and the blocks are plain transformer blocks without any
# modulation. From the U-Net it keeps the long skips: a late block first merges what
# its opposite number answered, by a linear layer on the concatenation.

# %%
def plain_block(block, h, early=None):
    if block.merge is not None:
        h = block.merge(torch.cat([h, early], dim=2))
    h = h + block.mixer(block.norm1(h))
    return h + block.feed_forward(block.norm2(h))

# %%
def uvit(net, x, t):
    patches = net.stem(patchify(x, net.patch))
    h = torch.cat([net.condition.time(t)[:, None], patches], dim=1) + net.places
    early = []
    for block in net.down:
        h = plain_block(block, h)
        early.append(h)
    h = plain_block(net.middle, h)
    for block in net.up:
        h = plain_block(block, h, early.pop())
    patches = net.head(net.norm(h[:, 1:]))  # the time's token is dropped
    return net.smooth(nets.unpatchify(patches, net.patch, channels=3))


net = wake(nets.UViT(3, 16, patch=4, width=32, depth=5))
assert_close(uvit(net, x, t), net(x, t))

# %% [markdown]
# The paper's ablation: do the long skips matter? The network predicts noise, or $v$,
# so its answer contains the noise of every pixel; without skips, all of that must be
# carried through the middle. On the other hand a late block now gets $h$ through a
# new linear layer, and a new linear layer is a random matrix. It need not lose what
# $h$ knows, but no number comes out as it went in. The correlation, entry by entry,
# of what goes in and what comes out shows it on ten seeds. `passing` lets the
# layer start as $h$ unchanged and deaf to the early tokens; that is our
# variant, not the paper's.

# %%
def small_uvit(skips, seed):
    torch.manual_seed(seed)
    return nets.UViT(3, 16, patch=4, width=48, depth=5, skips=skips)


def passing(net):
    """Let every merging layer start as the identity on h, deaf to the early tokens."""
    with torch.no_grad():
        for block in net.up:
            block.merge.weight.copy_(torch.eye(*block.merge.weight.shape))
            block.merge.bias.zero_()
    return net

# %%
@torch.no_grad()
def passed_on(net):
    """Correlation of h before and after a new network's first merging layer."""
    h, early = torch.randn(2, 1, 64, 48, generator=torch.Generator().manual_seed(0))
    merged = net.up[0].merge(torch.cat([h, early], dim=2))
    return torch.corrcoef(torch.stack([h.flatten(), merged.flatten()]))[0, 1].item()


new = [abs(passed_on(small_uvit(True, seed))) for seed in range(10)]
through = passed_on(passing(small_uvit(True, 0)))

# %% [markdown]
# Three seeds each: without skips, with them, and with skips that start by passing
# $h$ on. 100 steps with patches of 4 pixels, trained here and now.

# %%
makers = {"without": lambda s: small_uvit(False, s),
          "with long skips": lambda s: small_uvit(True, s),
          "passing at first": lambda s: passing(small_uvit(True, s))}
loss = {name: [judge(train(make(s), data, 100, s)) for s in range(3)]
        for name, make in makers.items()}
average = {name: sum(each) / 3 for name, each in loss.items()}
change = average["with long skips"] - average["without"]

# %% tags=["F24"]
fig, ax = plt.subplots(figsize=(5.2, 3.4))
for place, (name, each) in enumerate(loss.items()):
    ax.plot([place] * 3, each, "o", color=style.colour("learned"), mfc="none")
    ax.plot([place - 0.2, place + 0.2], [average[name]] * 2,
            color=style.colour("truth"))
ax.set(xticks=range(3), xticklabels=list(loss), xlim=(-0.5, 2.5),
       ylim=(0, 1.1 * max(map(max, loss.values()))), ylabel="loss on unseen images",
       title=f"After 100 steps long skips change the loss by {change:+.3f}")
style.show(fig, "Loss on unseen images of a small U-ViT after 100 steps, three seeds "
           "and their mean: without long skips, with them, and with merging layers "
           "that start as the identity. The second is highest, the others level.")
claim("F24", "entry by entry, a new merging layer's answer is next to uncorrelated "
      "with the late tokens (ten seeds)", max(new) < 0.2, largest=max(new),
      control_passing=through)
report("F24", "loss after 100 steps, three seeds", without=loss["without"],
       with_skips=loss["with long skips"], passing=loss["passing at first"])

# %% [markdown]
# The paper's finding, that long skips lower the loss, does **not** appear here: on
# each of three seeds the network with skips is behind, by 0.025 on average. Let the
# merging layers start by passing $h$ on, deaf to the early tokens, and it is behind
# by 0.002: nearly all of the difference comes from how these layers start. Whether
# skips pay later, 100 steps can't tell; the paper's networks train for hundreds of
# thousands. So the losses are reported; F24 asserts only how a new layer starts.
#
# ## 8.8 A state instead of attention
#
# Attention pays for every pair. A **state-space model** runs a state along the row
# of tokens and pays for every token once. For each feature, with input $u(\tau)$,
#
# $$\frac{dh}{d\tau} = A\,h(\tau) + u(\tau),\qquad
# y(\tau) = 2\,\mathrm{Re}\big(C\,h(\tau)\big) + D\,u(\tau).$$
#
# If $A$ is diagonal, with complex entries $-a + i\omega$, each number of the state is
# an exponential that fades at rate $a$ and turns at speed $\omega$: a damped bell
# (S4D, 2206.11893). Tokens come in steps of length $\Delta$. For an input that is
# constant over a step, the equation is solved exactly by
#
# $$h_k = \bar A\,h_{k-1} + \bar B\,u_k,\qquad \bar A = e^{\Delta A},\quad
# \bar B = \frac{e^{\Delta A}-1}{A}.$$

# %%
def scan(u, decay, into, out):
    """u (B, w, N); decay, into, out complex (w, states); the answers, (B, w, N)."""
    h, answers = 0, []
    for k in range(u.shape[2]):
        h = decay * h + into * u[:, :, k, None]
        answers.append(2 * (out * h).sum(-1).real)
    return torch.stack(answers, dim=2)

# %% [markdown]
# The scan is a loop, one token after the other. But all of it is linear, so it is
# also a convolution with the answer to a single impulse ($D$ left aside),
#
# $$y_k = \sum_{j\le k} K_j\,u_{k-j},\qquad
# K_j = 2\,\mathrm{Re}\,\big(C\bar B\bar A^j\big),$$
#
# and the fast Fourier transform does it in $N\log N$. The rows are padded to twice
# their length, or the end of the row would leak into its beginning.

# %%
def by_kernel(u, decay, into, out):
    n = u.shape[2]
    powers = decay[..., None] ** torch.arange(n)
    kernel = 2 * ((out * into)[..., None] * powers).sum(1).real  # (w, N)
    product = torch.fft.rfft(u, 2 * n) * torch.fft.rfft(kernel, 2 * n)
    return torch.fft.irfft(product, 2 * n)[..., :n]

# %% [markdown]
# A scan hears only what came before; an image has no direction. So the mixer of the
# library runs a second scan from the end, adds the two and the direct term $Du$, and
# mixes features by a GELU and a linear layer. Time to check all of it.

# %%
def state_space(mixer, tokens, run=by_kernel):
    exponent, into, out = mixer.discrete()
    u, decay = tokens.transpose(1, 2), exponent.exp()
    there = run(u, decay, into, out[0])
    back = run(u.flip(2), decay, into, out[1]).flip(2)
    y = there + back + mixer.direct[:, None] * u
    return mixer.out(torch.nn.functional.gelu(y.transpose(1, 2)))


torch.manual_seed(0)
mixer = nets.StateSpace(16, states=4).double()
row = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(5)).double()
assert_close(state_space(mixer, row), mixer(row))
assert_close(state_space(mixer, row, scan), mixer(row))

# %% [markdown]
# It maps (B, N, w) to the same, so a DiT takes it in attention's place: `mixer=` is
# whatever makes such a module. At equal steps and one seed, on 16 tokens, where
# neither has an advantage from length:

# %%
def mixed_dit(mixer):
    torch.manual_seed(0)
    return nets.DiT(3, 16, patch=4, width=48, depth=2, mixer=mixer)


def deaf(width):
    return torch.nn.Linear(width, width)  # no token hears another


mixers = {"attention": None, "state_space": nets.StateSpace, "control_deaf": deaf}
mixed = {name: judge(train(mixed_dit(m), data, 100, 0)) for name, m in mixers.items()}
report("ch08", "loss of a small DiT with each mixer, one seed", **mixed)

# %% [markdown]
# Look at the control before ranking anything: it is level with both. After 100 steps
# these networks still denoise each patch by itself, and hearing the others is worth
# next to nothing yet. What the table shows is that the exchange works; it doesn't
# show which mixer is better, and we don't claim it. For long rows the argument is
# Mamba's (2312.00752), whose states depend on the input; its followers for
# diffusion are DiS (2402.05608), ZigMa (2403.13802), which changes the reading
# order from layer to layer, and DiffuSSM (2311.18257). A row read line by line
# puts two neighbours in a column a whole line apart. Attention has no such
# order to suffer from.
#
# ## 8.9 Diffusion in latents
#
# Most of an image's numbers say little. Latent diffusion (2112.10752) first trains
# an autoencoder that maps an image to a grid $f$ times smaller, freezes it, and runs
# all of diffusion there. Before any training: the simplest autoencoder is **principal
# components of patches**, as l-DAE uses it (2401.14404). Take all patches as rows
# $u$ with mean $m$ and covariance $\Sigma = V\Lambda V^\top$, keep the first $d$
# eigenvectors:
#
# $$z = \Lambda_d^{-1/2}\,V_d^\top (u - m),\qquad
# \hat u = V_d\,\Lambda_d^{1/2} z + m .$$

# %%
rows = patchify(data, 2).flatten(0, 1).double()  # 4096 x 64 patches of 12 numbers
mean = rows.mean(0)
variance, V = torch.linalg.eigh((rows - mean).T.cov())
variance, V = variance.flip(0), V.flip(1)  # largest first


def project(x, d):
    z = (patchify(x, 2).double() - mean) @ V[:, :d] / variance[:d].sqrt()
    return nets.unpatchify(z * variance[:d].sqrt() @ V[:, :d].T + mean, 2, 3).float()

# %%
coders = {d: latents.PatchPCA(data, patch=2, components=d) for d in (1, 2, 4, 12)}
for d, coder in coders.items():
    assert_close(project(unseen[:8], d), coder(unseen[:8]), rtol=1e-3, atol=1e-3)
assert_close(coders[12](unseen), unseen, rtol=1e-4, atol=1e-4)  # all of them: exact

# %% [markdown]
# Dividing by $\Lambda^{1/2}$ gives latents the unit variance that a schedule expects.
# Is it harmless? An exact denoiser can tell. `EmpiricalDenoiser` knows the best
# answer for a finite data set. With all components and *one* common scale the map is
# a rotation, white noise stays white, and the best denoiser in latents, decoded, must
# be the best denoiser of pixels. With each component divided by its own deviation the
# noise is no longer white in pixels, and the two must differ.

# %%
few = data[:64].double()
noise = torch.randn(8, 12, 8, 8, generator=torch.Generator().manual_seed(6)).double()


def gap_to_pixels(whiten, t=0.95):
    """How far the decoded best guess in latents is from the best guess in pixels."""
    coder = latents.PatchPCA(few, patch=2, whiten=whiten)
    z = coder.to_latents(few)
    z_t = cosine.add_noise(z[:8], torch.tensor(t), noise)
    guess = coder.to_images(EmpiricalDenoiser(z, cosine)(z_t, t).x0)
    middle, scale = coder.to_images(0 * z[:1]), coder.std.mean()
    pixels = EmpiricalDenoiser((few - middle) / scale, cosine)
    best = pixels((coder.to_images(z_t) - middle) / scale, t).x0 * scale + middle
    return (best - guess).abs().max().item()

# %%
rotated, whitened = gap_to_pixels(False), gap_to_pixels(True)
claim("ch08", "with all components and one scale, diffusion in latents is diffusion in "
      "pixels", rotated < 1e-6, rotated=rotated, control_whitened=whitened)

# %% [markdown]
# So the scale of a latent is a choice about noise, not bookkeeping. A component of
# tiny variance that is blown up to deviation 1 survives as much noise as the big
# ones, and the network is asked to care about it as much.
#
# A trained autoencoder bends where PCA can only rotate. Ours is variational: it
# answers a mean and a log-variance, is judged on a draw, and is pulled lightly
# towards $\mathcal N(0, I)$, so that latents stay near the size of noise:
#
# $$L = \frac1{|x|}\Big(\|x - \mathrm{dec}(z)\|^2 + \lambda\sum_i \tfrac12\big(\mu_i^2
# + s_i^2 - 1 - \log s_i^2\big)\Big),\qquad z = \mu + s\,\varepsilon ,$$
#
# where $|x|$ is how many numbers an image has.

# %%
def vae_loss(net, x, weight, generator):
    mu, log_variance = net.encode(x)
    eps = torch.randn(mu.shape, generator=generator)
    error = (net.decode(mu + (log_variance / 2).exp() * eps) - x).square()
    nats = (mu**2 + log_variance.exp() - 1 - log_variance) / 2
    per_image = error.flatten(1).sum(1) + weight * nats.flatten(1).sum(1)
    return (per_image / x[0].numel()).mean()


net = wake(nets.Autoencoder(3, 16, factor=2, width=8))
seeded = [torch.Generator().manual_seed(7) for _ in range(2)]
assert_close(vae_loss(net, x, 1e-3, seeded[0]),
             nets.autoencoder_loss(net, x, kl_weight=1e-3, generator=seeded[1]))

# %% [markdown]
# `LatentDiffusion` puts a coder around any denoiser: `loss` encodes, `sample` walks
# in latents and decodes. The coder gets no gradient. Its latents are standardised by
# a mean and a deviation that are measured once, after training.

# %%
coder = coders[4]  # 4 numbers for each patch of 12
tiny = nets.DiT(4, 8, patch=1, width=16, depth=1)
model = latents.LatentDiffusion(Denoiser(tiny, cosine, predicts="v"), coder)
same = [torch.Generator().manual_seed(8) for _ in range(2)]
in_latents = losses.denoising(model.inner, coder.to_latents(x), generator=same[0])
assert_close(model.loss(x, same[1]), in_latents)

# %% [markdown]
# How far should one compress? At $f=1$ the denoiser has all the pixels to draw; at
# $f=8$ whatever the autoencoder loses is lost for good. LDM found its best at $f=4$
# and $8$ for images of 256 pixels (2112.10752, section 4.1). We train one autoencoder
# a factor, always with 4 channels, and one transformer of equal weights in each of
# the four latent spaces. **Equal compute** means here: steps times counted operations
# of one look are equal, so the small grids get more steps. (Patches are 2 wide at
# $f=1$ and 1 elsewhere, so $f=1$ and $f=2$ both get 200 steps.) Recorded.

# %%
cross_entropy = torch.nn.functional.cross_entropy


def train_reader():
    """Features in which samples are compared: a classifier of shape and hue."""
    torch.manual_seed(0)
    convolutions = [
        layer for a, b, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 2))
        for layer in (torch.nn.Conv2d(a, b, 3, stride, 1), torch.nn.SiLU())
    ]
    features = torch.nn.Sequential(
        *convolutions, torch.nn.Flatten(), torch.nn.Linear(1024, 64), torch.nn.SiLU()
    )
    reader = torch.nn.Sequential(features, torch.nn.Linear(64, 8 + len(HUES)))
    factors = world.factors(len(data))
    labels = factors["label"], hue_bucket(factors["hue"])

    def loss(batch, g):
        shape, hue = reader(batch[0]).split([8, len(HUES)], dim=1)
        return cross_entropy(shape, batch[1]) + cross_entropy(hue, batch[2])

    dice = torch.Generator().manual_seed(0)
    for _ in training.fit(
        reader, loss, training.batches((data, *labels), 32, dice), steps=400,
        lr=2e-3, ema=None, generator=dice, progress=False,
    ):  # fmt: skip
        pass
    return features

# %%
def train_autoencoder(factor, seed):
    torch.manual_seed(seed)
    net = nets.Autoencoder(3, 16, factor=factor, latent_channels=4, width=16)
    dice = torch.Generator().manual_seed(seed)
    for _ in training.fit(
        net, lambda x, g: nets.autoencoder_loss(net, x, kl_weight=1e-3, generator=g),
        training.batches(data, 16, dice), steps=200, lr=4e-3, warmup=10, ema=None,
        generator=dice, progress=False,
    ):  # fmt: skip
        pass
    return net.standardise_(data[:1024])


@torch.no_grad()
def reconstruction(coder):
    return (coder(unseen) - unseen).square().mean().item()

# %%
def latent_run(factor, coder, reader, real, steps_for):
    """Train and sample in one latent space; the samples' Frechet distance."""
    torch.manual_seed(0)
    patch = 2 if factor == 1 else 1
    net = nets.DiT(4, 16 // factor, patch=patch, width=64, depth=3)
    flops = megaflops(net, coder.latent_shape)
    with torch.no_grad():
        z = coder.to_latents(data, torch.Generator().manual_seed(0))
        lost = metrics.frechet_distance(real, reader(coder(unseen))).item()
    model = latents.LatentDiffusion(train(net, z, steps_for(flops), 0), coder)
    times, dice = samplers.time_grid(cosine, steps=20), torch.Generator().manual_seed(1)
    made = reader(model.sample(512, times, generator=dice).clamp(-1, 1))
    distance = metrics.frechet_distance(real, made.detach()).item()
    return {"megaflops": flops, "steps": steps_for(flops), "frechet": distance,
            "frechet_reconstructed": lost}

# %%
if budget(laptop=False, full=True):
    reader = train_reader()
    with torch.no_grad():
        real, other = reader(world.images(1024, start=2_000_000)), reader(unseen)
    results = {"floor": metrics.frechet_distance(real, other).item()}
    total = 200 * megaflops(nets.DiT(4, 16, patch=2, width=64, depth=3), (4, 16, 16))
    for factor in (1, 2, 4, 8):
        trained = [train_autoencoder(factor, seed) for seed in (0, 1, 2)]
        run = latent_run(factor, trained[0], reader, real, lambda f: round(total / f))
        results[str(factor)] = {"error": [reconstruction(c) for c in trained], **run}
    recipe = {"data": "ShapeWorld(16, plain_rotated), 4096 images",
              "autoencoder": "width 16, 4 latent channels, 200 steps, lr 4e-3, kl 1e-3",
              "denoiser": "DiT(width=64, depth=3), patch 1 (2 at f=1), v, lr 2e-3",
              "compute": "steps x counted FLOPs of one look, equal for all factors",
              "batch": 16, "samples": 512}  # fmt: skip
    save_recorded("f25", figure="F25", recipe=recipe, seeds=[0, 1, 2], results=results)

# %% [markdown]
# Cheap enough to do live: the most compressing autoencoder once more, and a fair
# comparison at $f=2$. PCA with 4 components a patch of $2\times2$ and the shipped
# autoencoder, trained for 4,000 steps, both keep 256 of an image's 768 numbers.

# %%
runs = recorded("f25")["results"]
factors = [1, 2, 4, 8]
errors = torch.tensor([runs[str(f)]["error"] for f in factors])  # (4, seeds)
again = reconstruction(train_autoencoder(8, 0))
linear = {d: reconstruction(coder) for d, coder in coders.items()}
shipped = reconstruction(recipes.load("shapeworld_autoencoder"))
frechet = {f: runs[str(f)]["frechet"] for f in factors}

# %% tags=["F25"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.5))
left.semilogx(factors, errors, "o", color=style.colour("learned"), mfc="none")
left.semilogx(factors, errors.mean(1), color=style.colour("learned"))
left.set(ylabel="squared error of reconstruction", ylim=(0, None),
         title="What is lost grows …")
right.semilogx(factors, list(frechet.values()), "o-",
               color=style.colour("learned"), label="samples")
decoded = [runs[str(f)]["frechet_reconstructed"] for f in factors]
right.semilogx(factors, decoded, "s--", color=style.colour("data"),
               label="reconstructions")
right.set(ylabel="Frechet distance", ylim=(0, None),
          title="… and limits the samples")
right.legend()
for ax in (left, right):
    ax.set_xticks(factors, [str(f) for f in factors])
    ax.set(xlabel="compression $f$ along each side")
    ax.minorticks_off()
style.show(fig, "Left: reconstruction error of autoencoders against compression 1, 2, "
           "4, 8, three seeds, rising. Right: Frechet distance of samples at equal "
           "compute and of reconstructions, one seed each.")
claim("F25", "reconstruction error rises with compression (recorded, on each of three "
      "seeds)",
      bool((errors.diff(dim=0) > 0).all())
      and abs(again / runs["8"]["error"][0] - 1) < 0.05,
      **{f"f{f}": errors[i].mean() for i, f in enumerate(factors)}, f8_again=again)
report("F25", "Frechet distance of 512 samples at equal counted compute, one seed",
       **{f"f{f}": d for f, d in frechet.items()}, floor=runs["floor"])
claim("F25", "at a third of the numbers a trained autoencoder loses less than PCA",
      shipped < linear[4], autoencoder=shipped, pca=linear[4], pca_two=linear[2],
      recorded_200_steps=runs["2"]["error"][0])

# %% [markdown]
# That error rises with $f$ holds on every seed. The right panel is one run a point,
# with networks trained for seconds, and is only reported; but it shows the two forces
# at work. The dashed curve is what the autoencoder alone costs, which no denoiser can
# mend. At $f=1$ the samples are far above it: at this compute the denoiser is the
# weak part. At $f=4$ and $8$ they lie on it: as far as this distance can tell, all
# that is wrong was lost before the denoiser began. The best of the four is $f=2$, by
# less than a tenth and on one seed; all are far from real images, whose distance is 4.
# Where it lies depends on how long either network trains. Ours got 200 steps for a
# coder, so few that PCA loses less at the same size; the shipped one shows what
# patience is worth.
#
# ## 8.10 Three ways to tell a condition
#
# | way | how | carries |
# |---|---|---|
# | FiLM, adaLN | a vector scales and shifts every channel | what fits in one vector |
# | concatenation | more channels at the input | a picture, pixel by pixel |
# | cross-attention | hidden states look at a row of words | a text, word by word |
#
# Cross-attention is attention whose keys and values come from elsewhere: the queries
# from the hidden states, keys and values from the words $w_1,\dots,w_L$ (2112.10752,
# section 3.3). Where a caption is shorter than $L$ its padding is masked.

# %%
def cross_attention(module, h, words, mask):
    def heads(features):
        return features.unflatten(2, (module.heads, -1)).transpose(1, 2)

    k, v = map(heads, module.key_value(words).chunk(2, dim=2))
    scores = heads(module.query(module.norm(h))) @ k.transpose(2, 3)
    scores = scores / k.shape[3] ** 0.5
    scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    seen = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return h + module.out(seen)

# %%
texts = ["small red disc left", "blue star", "large green ring", "cyan cross top"]
ids = torch.stack([encode(text) for text in texts])
reader = wake(nets.Words(len(VOCABULARY), 24))
looks = wake(nets.CrossAttention(32, 24, heads=4))
context = reader(x, ids)
h = torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(1))
assert_close(cross_attention(looks, h, context.words, context.mask), looks(h, context))

# %% [markdown]
# What can each way carry? An experiment whose best answer is known. A picture of two
# pixels shows two of four grey values, and the caption names them in order, "left
# right". A vector made by *adding* the words' vectors cannot tell "dark light" from
# "light dark". Whatever FiLM makes of it, the best guess for both pixels is then the
# mean of the two values, with an error of
# $\mathbb E\big[(v_a - v_b)^2\big]/4 = \mathrm{Var}(v)/2 = 5/18$.

# %%
values = torch.linspace(-1, 1, 4)
pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))  # all 16 captions
pictures = values[pairs]
bound = ((pictures[:, 0] - pictures[:, 1]) ** 2).mean().item() / 4


class ByVector(torch.nn.Module):
    """The words' vectors, added or side by side, through a small network."""

    def __init__(self, added):
        super().__init__()
        self.added, self.words = added, torch.nn.Embedding(4, 16)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(16 if added else 32, 32), torch.nn.SiLU(),
            torch.nn.Linear(32, 2))  # fmt: skip

    def forward(self, pairs):
        words = self.words(pairs)
        return self.net(words.sum(1) if self.added else words.flatten(1))

# %%
class ByLooking(torch.nn.Module):
    """Two pixels look at the words, each of which knows its place."""

    def __init__(self):
        super().__init__()
        self.words, self.look = nets.Words(5, 16, length=2), nets.CrossAttention(16, 16)
        self.pixels = torch.nn.Parameter(torch.randn(2, 16))
        self.out = torch.nn.Linear(16, 1)

    def forward(self, pairs):
        h = self.pixels.expand(len(pairs), -1, -1)
        return self.out(self.look(h, self.words(pairs, pairs + 1)))[..., 0]

# %%
def learn(make, seed):
    """The squared error after 200 steps on all sixteen captions."""
    torch.manual_seed(seed)
    net = make()
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        adam.zero_grad()
        loss = (net(pairs) - pictures).square().mean()
        loss.backward()
        adam.step()
    return loss.item()

# %%
ways = {"added": lambda: ByVector(True), "side_by_side": lambda: ByVector(False),
        "looking": ByLooking}
left_over = {name: [learn(make, s) for s in range(3)] for name, make in ways.items()}
claim("ch08", "no training recovers the order of words from their sum; concatenation "
      "and cross-attention keep it (three seeds)",
      min(left_over["added"]) > bound - 1e-4
      and max(left_over["side_by_side"] + left_over["looking"]) < 0.1 * bound,
      bound=bound, **left_over)

# %% [markdown]
# A class is one word, so for a class FiLM loses nothing and costs least. An image to
# be sharpened is best concatenated: it is already where it belongs (chapter 19). A
# caption wants to be looked at.
#
# Now on ShapeWorld. The shipped network `shapeworld_unet_caption` reads captions of
# up to four words, such as "small red ring left"; while training, one caption in ten
# was dropped, which chapter 9 will need. Does it use them? Its loss on unseen images,
# with their own captions, with none, and with each other's:

# %%
captioned = recipes.load("shapeworld_unet_caption")
size = captioned.net.size
labelled = ShapeWorld(size, "plain_rotated").batch(256, start=2**40)


@torch.no_grad()
def caption_loss(caption):
    t = torch.linspace(0.3, 0.95, 256)
    dice = torch.Generator().manual_seed(3)
    noise = torch.randn(labelled.images.shape, generator=dice)
    return losses.denoising(captioned, labelled.images, t=t, noise=noise,
                            caption=caption).item()

# %%
told = {"own": caption_loss(labelled.caption), "none": caption_loss(None),
        "control_others": caption_loss(labelled.caption.roll(1, 0))}
claim("ch08", "a true caption lowers the loss, a false one raises it",
      told["own"] < told["none"] < told["control_others"], **told)

# %% [markdown]
# And what does it look at? A hook on the `attend` of one block reads the map $a$: for
# every place on its grid, how attention is shared among the words (each panel has a
# grey scale of its own). Below are samples
# from four captions, each column from the same noise, and the map of one of them.

# %%
captions = ["large red star", "large blue star", "small green ring left",
            "small green ring right"]
ids = torch.stack([encode(c) for c in captions]).repeat_interleave(6, 0)
noise = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(4))
start = noise.repeat(len(captions), 1, 1, 1)
times = samplers.time_grid(cosine, steps=20)
made = samplers.ddim(captioned, start, times, caption=ids)

# %%
look, seen = captioned.net.up[1].cross, []  # on the grid of half the size
hook = look.attend.register_forward_hook(
    lambda attend, given, _: seen.append(attend.weights(given[0], given[1], given[3])))
x_t = cosine.add_noise(made, torch.tensor(0.5), torch.randn_like(made))
with torch.no_grad():
    captioned(x_t, 0.5, caption=ids)
hook.remove()
grid = round(seen[0].shape[2] ** 0.5)
maps = seen[0].mean(1).unflatten(1, (grid, grid))  # (B, grid, grid, words)

# %%
words = captions[-1].split()
fig = plt.figure(figsize=(8.4, 3.8))
left, right = fig.subfigures(1, 2, width_ratios=(1.1, 1))
ax = left.subplots()
style.images(ax, made.clamp(-1, 1), columns=6,
             title="One row a caption, one column a noise")
for i, caption in enumerate(captions):
    ax.text(-2, (i + 0.5) * (size + 1), caption.replace(" ", "\n"), ha="right",
            va="center", fontsize=7)
of_each = maps[-6].unbind(2)
for ax, word, share in zip(right.subplots(2, 2).flat, words, of_each, strict=True):
    ax.imshow(share, vmin=0, cmap="Greys")
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"“{word}”", fontsize=9)
style.show(fig, "Left: samples for four captions, six each; most have the named "
           "hue, some the shape and the side. Right: for one sample, where the coarse "
           "grid looks at each of the four words of its caption.")

# %% [markdown]
# ## 8.11 A gallery of failures
#
# Three mistakes that raise no error. The first two mix up the axes when patches are
# put together again. The third forgets that latents were divided by their deviation.

# %%
def wrong_axes(tokens, p=4, channels=3):
    cut = tokens.unflatten(2, (channels, p, p)).unflatten(1, (16 // p, 16 // p))
    return cut.permute(0, 3, 2, 4, 1, 5).flatten(4).flatten(2, 3)  # rows for columns


def wrong_channels(tokens, p=4, channels=3):
    cut = tokens.unflatten(2, (p, p, channels)).unflatten(1, (16 // p, 16 // p))
    return cut.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


coder = coders[4]
unscaled = coder.to_images(coder.to_latents(x) / coder.std[:, None, None])
shown = {"as it should be": x, "rows for columns": wrong_axes(patchify(x, 4)),
         "channels last": wrong_channels(patchify(x, 4)),
         "deviation forgotten": unscaled}

# %%
fig, axes = plt.subplots(1, 4, figsize=(8.4, 2.6))
for ax, (name, pictures_) in zip(axes, shown.items(), strict=True):
    style.images(ax, pictures_.clamp(-1, 1), columns=2)
    ax.set_title(name, fontsize=9)
style.show(fig, "Four panels of the same four images: right, with rows and columns of "
           "patches exchanged, with channels read last, and with latents that were not "
           "scaled back.")

# %% [markdown]
# Mistakes in a network raise no error either; at best the loss is too high. Without
# places the tokens are a set; without time the network must guess how noisy its input
# is. Both train without complaint; `told` is the attention network of section 8.8.

# %%
class NoTime(torch.nn.Module):
    """A network that is always told t = 0.5."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t):
        return self.net(x, torch.full_like(t, 0.5))

# %%
lost = mixed_dit(None)
lost.places.zero_()
behind = {"told": mixed["attention"],
          "no_places": judge(train(lost, data, 100, 0)),
          "no_time": judge(train(NoTime(mixed_dit(None)), data, 100, 0))}
report("ch08", "loss after 100 steps, one seed", **behind)

# %% [markdown]
# Without time the loss is higher. Without places it is *lower*, and that is worth
# keeping in mind: so early the network treats each patch by itself, as the deaf
# control showed, and sines and cosines of size 1, added to the small numbers that a
# new stem makes of a patch, are mostly in the way. (That is our reading; we didn't
# test it.) A loss after few steps can hide a mistake that ruins the samples later.
#
# ## 8.12 What was scaled down, and what is left out
#
# - **DiT**: 16 pixels, width 48, depth 2 and 4, 150 steps at batch 16. The paper:
#   latents of $32\times32$, widths from 384 to 1152, depths from 12 to 28, 400,000
#   steps at batch 256 (2212.09748).
# - **U-ViT**: width 48, depth 5; here its answer starts at zero. The paper: widths
#   from 512, depths from 13 (2209.12152).
# - **Autoencoder**: squared error and a light KL. The paper adds a perceptual and an
#   adversarial loss, and has a second version with a codebook (2112.10752).
# - **State space**: fixed states, read row by row; the followers let the states
#   depend on the input and choose better orders.
#
# Left out: UniDiffuser (2303.06555), which feeds U-ViT with images and text at once;
# simple diffusion (2301.11093), which does without latents at high resolution by
# shifting the noise schedule; the learned codebook of VQ-GAN; and Swin's shifted
# windows.
#
# ## Summary
#
# - A U-Net sees far through coarse grids and keeps detail through skips; FiLM tells
#   every block the time.
# - Attention costs the square of the number of tokens. Windows and state-space
#   mixers cost about its first power and give up something for it: reach, or a
#   free order.
# - DiT is a stack of blocks that start as the identity. Halving the patch buys
#   quality with four times the tokens.
# - U-ViT makes everything a token and hands early ones to late blocks. What that is
#   worth needs longer trainings than ours; how its layers start can be seen at once.
# - Latents trade what the coder loses for what the denoiser saves. Their scale is a
#   choice about noise.
# - A vector carries a class, concatenation a picture, cross-attention a sentence.
#
# Now write the pieces yourself: [exercises](../exercises/ch08_backbones.ipynb).
