# %% [markdown]
# # 0. Start here
#
# One page to see what you will be able to do, and how this course works. After it you
# will have
#
# - trained a diffusion model on real handwritten digits and drawn new ones with it,
#   in under a minute, on a laptop;
# - seen how a figure here is held to what it says, and how a wrong answer is told
#   what is wrong with it;
# - found out where to go on, and where to look when something fails.
#
# | | |
# |---|---|
# | surveys | none; it prepares for all |
# | needs | nothing |
# | study | 40 minutes |
# | receipt | 29 seconds on one CPU thread, 485 MB |
#
# Click into the grey cell below and press **Shift+Enter**: it runs, and the next one
# is chosen. Do so down to the end of the page. (*Run, Run All Cells* does it in one
# go.)

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import clear_output

from diffedu import Denoiser, losses, nets, samplers, schedules, style, training

style.use()

# %% [markdown]
# ## 0.1 A diffusion model in under a minute
#
# Thirteen people once wrote digits by hand, and their writing was scaled down to 8x8
# pixels (E. Alpaydin and C. Kaynak, 1998). Our model will learn from 1,297 of these
# digits; 500 more are kept away from it, for later. Ink is 1, paper is -1.

# %%
# NBVAL_CHECK_OUTPUT
from diffedu.worlds import digits

images, labels = digits.load("train")
print(tuple(images.shape), "images, the first ones show", labels[:10].tolist())

# %% [markdown]
# The plan fits in three sentences. Take an image and add noise to it, a little or a
# lot. Train a network to say what was there. To draw something new, start from pure
# noise, and follow what the network says in small steps until no noise is left.
#
# Each sentence needs one object. The **schedule** says how much image and how much
# noise there is at time $t$, from $t = 0$ (image) to $t = 1$ (noise). The **network**
# is a small U-Net, a tenth of a million weights, which is also told which digit to
# look for. The **denoiser** holds both, and is the one object that this course is
# about. (`predicts="v"` names what the network's output stands for: a mix of image
# and noise, chapter 1. `# NBVAL_CHECK_OUTPUT` in a cell is a note to our tests.)

# %%
schedule = schedules.cosine()


def new_model(seed):
    """An untrained denoiser of 8x8 digits."""
    torch.manual_seed(seed)
    net = nets.UNet(width=16, multipliers=(1, 2), classes=10)
    return Denoiser(net, schedule, predicts="v")

# %% [markdown]
# What the training makes small is the squared error of what the network says, for
# random images, at random times, with fresh noise. Chapter 2 writes this line out.

# %%
denoise = new_model(seed=0)


def loss_fn(batch, generator):
    x0, digit = batch
    return losses.denoising(denoise, x0, label=digit, generator=generator)

# %% [markdown]
# And drawing is a walk down a list of 20 times, from noise to data. Chapter 6 is
# about how short such a list may be.

# %%
times = samplers.time_grid(schedule, steps=20)


def draw(model, digit, seed):
    """One new image for each number in `digit`, from noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    x_T = schedule.prior_sample((len(digit), 1, 8, 8), times[0], generator=generator)
    return samplers.ancestral(model, x_T, times, label=digit, generator=generator)

# %% [markdown]
# Eight by eight squares are hard on the eye, so pictures on this page are enlarged
# smoothly and have dark ink on white paper, in 17 levels of grey like the originals.
# The model sees the squares.

# %%
def ink(x):
    """Images enlarged eight times, dark on white, with a margin: (B, 1, 72, 72)."""
    large = F.interpolate(-x.clamp(-1, 1), scale_factor=8, mode="bicubic")
    return F.pad((8 * large).round() / 8, (4, 4, 4, 4), value=1.0)

# %% [markdown]
# While the model trains we want to watch it: one row of images for each stop of the
# training, always from the same noise, so that rows can be compared.

# %%
def strip(rows, names, title):
    """Rows of images, each with its name to the left."""
    columns = len(rows[0])
    size = (0.55 * columns + 1.5, 0.55 * len(rows) + 0.4)
    fig, ax = plt.subplots(figsize=size)
    style.images(ax, ink(torch.cat(rows)), columns=columns, title=title)
    for i, name in enumerate(names):
        ax.text(-10, 73 * i + 36, name, ha="right", va="center", fontsize=10)
    return fig

# %% [markdown]
# Now train: 500 steps with 128 images each. Run the cell and watch the rows come.

# %%
stops = (1, 25, 50, 100, 200, 500)
batches = training.batches((images, labels), 128, torch.Generator().manual_seed(0))
rows, names = [], []
for state in training.fit(denoise, loss_fn, batches, steps=500, lr=4e-3, ema=0.99,
                          generator=torch.Generator().manual_seed(0), progress=False):
    if state.step in stops:
        rows.append(draw(state.ema, torch.arange(10), seed=1))
        names.append(f"{state.step} step" + "s" * (state.step > 1))
        clear_output(wait=True)
        fig = strip(rows, names, "Asked for 0 to 9: noise at first, digits at the end")
        style.show(fig, "Ten images a row, asked for as the digits 0 to 9: after one "
                   "training step they are noise, after 500 mostly readable digits.")
model = state.ema

# %% [markdown]
# Every row starts from the same noise, which the training never saw, and there is no
# image in the last row that anybody wrote. `model` is an average of the weights over
# the last steps of the training; chapter 2 shows what that is good for.
#
# ### The walk
#
# A sampler can be watched, too. At each time the model looks at the noisy image $x_t$
# and says what it believes was there, $\hat x_0$. The walk then goes a small step
# towards it.
#
# It is told which digit to look for: at $t = 1$ the guess is the request alone, a
# blurred average 3, 5 or 8. The noise decides the handwriting.

# %%
generator = torch.Generator().manual_seed(8)
digit = torch.tensor([3, 5, 8])
x_T = schedule.prior_sample((3, 1, 8, 8), times[0], generator=generator)
walk = list(samplers.walk(samplers.ancestral, model, x_T, times, label=digit,
                          generator=generator))
shown = [walk[i] for i in (0, 4, 8, 11, 13, 15, 17, 18, 19)]

# %%
fig, axes = plt.subplots(2, 1, figsize=(6.6, 5))
for ax, name in zip(axes, ("x_t", "x0"), strict=True):
    pictures = torch.stack([getattr(step, name) for step in shown], dim=1)
    style.images(ax, ink(pictures.flatten(0, 1)), columns=len(shown))
    for column, step in enumerate(shown):
        time = f"t = {step.t:.2f}"
        ax.text(73 * column + 36, 235, time, ha="center", fontsize=9)
axes[0].set_title("The noisy image $x_t$ …")
axes[1].set_title("… and what the model sees in it, $\\hat x_0$: sure much earlier")
style.show(fig, "Two panels with three digits each at nine times from 1 to 0. Above, "
           "noise turns into 3, 5 and 8 late; below, the guess has their shape early.")

# %% [markdown]
# ### A hundred digits that nobody wrote
#
# Left are digits from the data, right are ours, all from noise that was never used.
# Could you tell which is which?

# %%
asked = torch.arange(10).repeat(10)
real = torch.stack([images[labels == d][row] for row in range(10) for d in range(10)])
made = draw(model, asked, seed=2)

fig, axes = plt.subplots(1, 2, figsize=(7.6, 4.1))
style.images(axes[0], ink(real), columns=10, title="Written by people")
style.images(axes[1], ink(made), columns=10, title="Drawn by the model")
style.show(fig, "Two grids of a hundred digits, 0 to 9 in each row: real handwriting "
           "on the left, generated digits on the right. They look alike.")

# %% [markdown]
# ### Your turn
#
# Change the number below to one that you like (your birthday, the year) and run the
# cell again. Then change the seed: the same digits in another handwriting. Nothing
# can break: every cell can be run again, and *File, Reload Notebook from Disk* brings
# the page back as it was saved.

# %%
number, seed = "2718281828", 5

wanted = torch.tensor([int(letter) for letter in number])
fig = strip([draw(model, wanted, seed)], [""], f"{number}, in nobody's handwriting")
style.show(fig, "The digits of a number in a row, each drawn by the model.")

# %% [markdown]
# ## 0.2 A figure says something, and is held to it
#
# "They look alike" is an impression. In this course a figure makes a **claim**: a
# sentence with numbers, checked by the cell below the figure. If it does not hold,
# the cell fails.
#
# Our claim: *the model draws the digit that it is asked for.* It needs a judge. Ours
# knows the 500 digits that the model has never seen, finds the one that is nearest to
# an image, and says what that one shows.

# %%
from diffedu.claims import claim

unseen, unseen_labels = digits.load("test")


def judge(x):
    """What each image shows: the label of the nearest unseen digit."""
    distance = torch.cdist(x.flatten(1), unseen.flatten(1))
    return unseen_labels[distance.argmin(dim=1)]

# %%
def agreement(x, digit):
    """In which share of the images the judge sees what was asked for."""
    return (judge(x) == digit).float().mean().item()

# %% [markdown]
# A claim is worth little unless it could have failed. So most claims come with a
# **negative control**: the same measurement where the effect must be absent. Here it
# is the network before training, which cannot know any digit: whatever it draws, the
# judge should agree with the request one time in ten. The other way round, the
# judge's verdict on real digits says how well anything could do.

# %%
asked = torch.arange(10).repeat(50)
made = draw(model, asked, seed=3)
before = draw(new_model(seed=0), asked, seed=3)
claim("ch00", "at least nine of ten drawn digits are what was asked for",
      agreement(made, asked) > 0.9, drawn=round(agreement(made, asked), 2),
      control=round(agreement(before, asked), 2),
      real=round(agreement(images, labels), 2))

# %% [markdown]
# The other question that such pictures raise: are these copies of what it learned
# from? Measure the distance from each drawn digit to the nearest one of the training
# set. The yardstick is the same distance for the unseen digits, which are new for
# certain. The control is a forger: training digits with a touch of noise.

# %%
def distances(x):
    """From each image to the nearest training digit, (B,)."""
    return torch.cdist(x.clamp(-1, 1).flatten(1), images.flatten(1)).min(dim=1).values


noise = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(4))
drawn, new, forged = map(distances, (made, unseen, images[:500] + 0.05 * noise))
claim("ch00", "even the closest drawn digit is further from the training set than all "
      "forgeries", drawn.min() > forged.max(), closest=round(drawn.min().item(), 1),
      control=round(forged.max().item(), 1), mean=round(drawn.mean().item(), 1),
      mean_of_unseen=round(new.mean().item(), 1))

# %% [markdown]
# So none of the five hundred is a copy, and on average they are as far from the
# training set as real digits that nobody showed to the model.
#
# Both claims held on ten seeds before they were written down. The worst: agreement
# 0.95, the closest digit at distance 1.0.
#
# ## 0.3 How to check an answer
#
# Each chapter has four to six exercises. You write a function, and a **check** calls
# it with inputs that are drawn anew each time. Take the first formula of the course:
# a noisy image is a sum of image and noise,
#
# $$x_t = \sqrt{\bar\alpha}\;x_0 + \sqrt{1-\bar\alpha}\;\varepsilon,$$
#
# where $\bar\alpha$ (read: alpha bar) is how much is left of the image's variance
# (2006.11239, eq. 4; numbers like this one are papers on arxiv.org). Here is an answer
# with a mistake in it. Can you see it?

# %% tags=["raises-exception"]
from diffedu.checks import ch00 as check


def add_noise(x0, eps, alpha_bar):
    """Noisy images: x0 and eps are (B, 1, 8, 8), alpha_bar is (B,)."""
    a = alpha_bar[:, None, None, None]
    return a.sqrt() * x0 + (1 - a) * eps


check.add_noise(add_noise)

# %% [markdown]
# The check does not say what the right numbers would have been. It names the **kind
# of mistake**, as a colleague would who looks over your shoulder. Put it right, and:

# %%
# NBVAL_CHECK_OUTPUT
def add_noise(x0, eps, alpha_bar):
    """Noisy images: x0 and eps are (B, 1, 8, 8), alpha_bar is (B,)."""
    a = alpha_bar[:, None, None, None]
    return a.sqrt() * x0 + (1 - a).sqrt() * eps


check.add_noise(add_noise)

# %% [markdown]
# Any right answer passes, however it is written. Hints unfold below each exercise,
# from a nudge to the shape of the code. The usual way to work:
#
# 1. read and run the chapter in `notebooks/`, and change what makes you curious;
# 2. solve its exercises in `exercises/`, with the chapter open beside them;
# 3. look into `solutions/` when you are done, or when an hour did not help.
#
# Three short ones wait for you now, to get used to it: [exercises of chapter
# 0](../exercises/ch00_start_here.ipynb).
#
# ## 0.4 One letter means one thing
#
# Papers on diffusion models use the same letters for different things, and different
# letters for the same. Here one table holds for prose, code and figures. You need not
# learn it now: call `diffedu.notation()` wherever a letter puzzles you.

# %%
from diffedu import notation

notation()

# %% [markdown]
# ## 0.5 How a chapter is built
#
# - **It opens with a table**: which parts of the surveys it covers, what it needs,
#   how long it takes to study. The *receipt* is measured: minutes and memory of a
#   whole run. A, B, C, D are the four surveys, on arXiv 2407.00783, 2406.11138,
#   2409.05033 and 2408.10207; F01, F02, … number the course's figures, and `diffedu
#   figures` lists them.
# - **Each algorithm is built in the notebook**, from its equation, line by line. Then
#   a cell asserts that it equals the library's, which is used from there on. What you
#   saw above was the library; from chapter 1 on you write it yourself.
# - **The truth is known.** Methods are shown first on data whose every probability
#   can be computed, so that right and wrong differ by a millionth, and then on
#   images.
# - **It shows what goes wrong**: usual mistakes are drawn on purpose, next to the
#   right picture, so that you know them when you meet them.
# - **It says what was made smaller** than in the papers, and what was left out.
#
# ## 0.6 The map
#
# | part | chapters | what you will be able to do |
# |---|---|---|
# | Foundations | 1 to 3 | noise data, train DDPM, learn scores and energies |
# | | 4 to 9 | SDEs and ODEs, fast samplers, flow matching, backbones, guidance |
# | Looking inside | 10 to 15 | find out what a diffusion model knows, and use it |
# | Steering | 16 to 18 | use representations to make training and sampling better |
# | Restoration | 19 to 22 | super-resolution, inpainting, deblurring, video |
# | Beyond images | 23 to 25 | recommenders, other data, responsible use |
#
# The [table of chapters](../README.md#the-chapters) says which of them exist, how
# long each takes and which needs which. Before you go on, take the [ten-minute
# self-test](../README.md#what-you-must-know-first).
#
# ## 0.7 When something fails
#
# - A cell fails that did not fail before: *Kernel, Restart Kernel and Run All Cells*.
#   Most surprises come from cells that ran in another order.
# - It still fails, or it is slow: in a terminal (*File, New, Terminal*) run `diffedu
#   doctor`. It looks at your machine and says what to do about it.
# - [When something fails](../README.md#when-something-fails) lists what people met.
# - A word puzzles you: the [glossary](../docs/glossary.md).
#
# ## What you saw
#
# A model that removes noise can be walked from pure noise to new data. It was trained
# in seconds, it draws what it is asked for, and it does not copy: two claims with
# numbers and controls. What was scaled down: images of 64 pixels, a network of a
# tenth of a million weights, 500 steps. Large models differ in size, in how the text
# of a request is fed in, and in how the walk is shortened, and all three have a
# chapter.
#
# What you did not see is why any of this works: why the noise, why the square roots,
# why squared error is enough. Chapter 1 begins with the noise: open
# `ch01_adding_noise.ipynb` in this folder.
