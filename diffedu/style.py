"""The one look of every figure, and colours that mean the same in every chapter.

`use()` sets it once; `show()` prints a figure with its description for readers who do
not see it. The palette is Okabe and Ito's, made for colour-blind readers.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .errors import lookup, require
from .palette import BLACK, BLUE, COLOURS, GREEN, ORANGE, PURPLE, SKY, VERMILION

RC: dict[str, Any] = {
    "figure.dpi": 90,
    "figure.figsize": (6.4, 3.6),
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 90,
    "savefig.facecolor": "white",
    "savefig.transparent": False,
    "axes.facecolor": "white",
    "axes.edgecolor": "#444444",
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(
        color=[BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK]
    ),
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "mathtext.fontset": "dejavusans",
    "lines.linewidth": 1.8,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
}


def use() -> None:
    """Set the look of all figures drawn from here on."""
    plt.rcParams.update(RC)


def colour(name: str) -> str:
    """The colour that stands for one thing in every chapter.

    Args:
        name: what is drawn, such as "ddim", "truth" or "cosine".

    Returns:
        the colour as "#RRGGBB".

    Raises:
        ValueError: if nothing of that name has a colour.
    """
    return lookup(COLOURS, name, "colour of")


def scatter(
    ax: Axes,
    points: Tensor,
    colour: str = BLUE,
    size: float = 4.0,
    limit: float | None = None,
    title: str = "",
) -> None:
    """Draw points of the plane with equal axes.

    Args:
        ax: where to draw.
        points: shape (N, 2), in the data's own unit.
        colour: one colour, "#RRGGBB" or a name of `COLOURS`.
        size: area of a point in square points.
        limit: both axes show [-limit, limit]; None fits them to the points.
        title: what the picture shows.

    Raises:
        ValueError: if the points are not of shape (N, 2).
    """
    shape = tuple(points.shape)
    require(
        points.ndim == 2 and shape[1] == 2,
        f"points have shape {shape}; a scatter plot takes (N, 2)",
    )
    xy = points.detach().cpu().numpy()
    ax.scatter(
        xy[:, 0], xy[:, 1], s=size, color=COLOURS.get(colour, colour), linewidths=0
    )
    ax.set_aspect("equal")
    ax.set_title(title)
    if limit is not None:
        ax.set_xlim(-limit, limit)
        ax.set_ylim(-limit, limit)


def grid(batch: Tensor, columns: int, gap: int = 1) -> np.ndarray:
    """Lay images out in one picture, row by row.

    Args:
        batch: images, shape (B, 1 or 3, H, W), in [-1, 1]; values outside are cut.
        columns: images in a row.
        gap: pixels of white between them.

    Returns:
        the picture, (rows (H + gap) - gap, columns (W + gap) - gap, 3), in [0, 1].

    Raises:
        ValueError: if the batch is empty or has another shape.
    """
    shape = tuple(batch.shape)
    require(
        batch.ndim == 4 and shape[0] > 0 and shape[1] in (1, 3),
        f"images have shape {shape}; accepted: (B, 1, H, W) or (B, 3, H, W), B > 0",
    )
    require(columns > 0, f"columns is {columns}; it must be at least 1")
    _, _, height, width = shape
    rows = -(-shape[0] // columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    picture = np.ones(size, dtype=np.float32)
    pixels = (batch.detach().cpu().float().clamp(-1, 1) + 1) / 2
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        picture[top : top + height, left : left + width] = image
    return picture


def images(ax: Axes, batch: Tensor, columns: int = 8, title: str = "") -> None:
    """Draw a batch of images as a grid.

    Args:
        ax: where to draw.
        batch: images, shape (B, 1 or 3, H, W), in [-1, 1].
        columns: images in a row.
        title: what the picture shows.

    Raises:
        ValueError: if the batch is empty or has another shape.
    """
    ax.imshow(grid(batch, columns))
    ax.set_title(title)
    ax.axis("off")


def label_lines(ax: Axes, labels: Mapping[str, str] | None = None) -> None:
    """Write each line's name beside its last point, in the line's colour.

    Args:
        ax: axes whose lines were drawn with `label=`.
        labels: other words for some labels.
    """
    heights: list[float] = []
    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    ax.figure.canvas.draw()
    for line in sorted(lines, key=lambda each: _end(each)[1]):
        x, y = _end(line)
        name = str(line.get_label())
        pixel = ax.transData.transform((x, y))[1]
        # Names one line of text apart stay legible where curves meet.
        step = 1.3 * 10 * ax.figure.dpi / 72
        lifted = max(pixel, heights[-1] + step) if heights else pixel
        heights.append(lifted)
        ax.annotate(
            (labels or {}).get(name, name),
            xy=(x, y),
            xytext=(6, (lifted - pixel) * 72 / ax.figure.dpi),
            textcoords="offset points",
            color=line.get_color(),
            va="center",
            fontsize=10,
            annotation_clip=False,
        )


def _end(line: Any) -> tuple[float, float]:
    """The last finite point of a line."""
    x, y = (np.asarray(v, dtype=float) for v in line.get_data())
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    require(known.size > 0, f"line {line.get_label()!r} has no finite point")
    return float(x[known[-1]]), float(y[known[-1]])


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG with an opaque background."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=RC["savefig.dpi"], facecolor="white")
    return target.getvalue()


def show(figure: Figure, alt: str) -> None:
    """Show a figure with its description, and close it.

    Args:
        figure: what to show.
        alt: what it shows, for readers who can't see it; stored with the picture.

    Raises:
        ValueError: if the description is empty.
    """
    require(bool(alt.strip()), "alt is empty; say in a sentence what the figure shows")
    if _in_notebook():
        from IPython.display import display

        data = base64.b64encode(png(figure)).decode()
        display(
            {"image/png": data, "text/plain": alt},
            metadata={"image/png": {"alt": alt}},
            raw=True,
        )
    plt.close(figure)


def _in_notebook() -> bool:
    """True inside IPython or a Jupyter kernel."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return get_ipython() is not None
