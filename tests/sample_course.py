"""A course of one tiny chapter, for the tests of what makes chapters."""

from __future__ import annotations

import shutil
from pathlib import Path

from chapters import Course

ROOT = Path(__file__).resolve().parents[1]
STEM = "ch01_sample"

NOTEBOOK = """# %% [markdown]
# # 1. A sample
#
# You will be able to tell a figure from a claim.
#
# | | |
# |---|---|
# | surveys | A 2.1 |
# | needs | nothing |
# | study | 1 hour |
# | figures | F01 |
# | receipt | not run yet |

# %%
import matplotlib.pyplot as plt
import torch
from diffedu import style
from diffedu.claims import claim

# %% [markdown]
# Noise keeps its variance (2006.11239, eq. 4).

# %% tags=["F01"]
x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
fig, ax = plt.subplots(figsize=(2, 2))
ax.hist(x.numpy())
style.show(fig, "A histogram of a thousand normal numbers.")
claim("F01", "the variance is one", abs(x.var() - 1) < 0.2, variance=x.var())

# %%
# NBVAL_CHECK_OUTPUT
print(x.shape)
"""

SOLUTION = '''# %% [markdown]
# # Exercises 1: a sample

# %%
import torch
from diffedu.checks.machinery import Exercise

# %%
draw = lambda g: {"x": torch.rand(4, generator=g)}
twice_check = Exercise("twice", draw=draw, truth=lambda x: 2 * x)

# %% [markdown]
# ## Exercise 1. Twice
#
# *Difficulty 1 of 5 · 5 minutes*
#
# Write `twice(x)`.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Add.
#
# </details>

# %% tags=["solution:twice"]
def twice(x):
    """Two times x, of any shape."""
    ### BEGIN SOLUTION
    doubled = x + x
    return doubled
    ### END SOLUTION

# %% tags=["check:twice", "points:2"]
twice_check(twice)

# %% [markdown]
# ## Exercise 2. Why
#
# *Difficulty 2 of 5 · 5 minutes*
#
# Say why adding is enough.

# %% [markdown] tags=["answer:why", "points:3"]
# Because addition is repeated once.
'''

README = "# A course\n\n<!-- chapters:begin -->\n<!-- chapters:end -->\n\nThe end.\n"


LIBRARY = "claims.py figures.py figures.json errors.py style.py palette.py checks"


def _copy_library(folder: Path) -> None:
    """The few library files that the sample needs, so that a test may change them."""
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    for name in LIBRARY.split():
        source = ROOT / "diffedu" / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)


def make(root: Path) -> Course:
    """Write the sample course into a folder; nothing of it is built yet."""
    _copy_library(root / "library" / "diffedu")
    for kind, text in (("notebooks", NOTEBOOK), ("solutions", SOLUTION)):
        path = root / kind / f"{STEM}.py"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    (root / "README.md").write_text(README, encoding="utf-8")
    return Course(root, root / "library")


def files(course: Course) -> dict[str, bytes]:
    """Every file of a course but the library, with its bytes."""
    found = (p for p in course.root.rglob("*") if p.is_file())
    found = (p for p in found if not p.is_relative_to(course.library))
    return {p.relative_to(course.root).as_posix(): p.read_bytes() for p in found}
