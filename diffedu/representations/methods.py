"""The registry of methods: paradigm, task, paper, chapter, code and figure.

Table 2 of the survey (2407.00783) is printed from here. A method without code belongs
to a later chapter and prints "to come".
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from diffedu.errors import require

AUGMENTATION = "generative augmentation"
ACTIVATIONS = "leveraging intermediate activations"
RECONSTRUCTION = "diffusion model reconstruction"
TRANSFER = "knowledge transfer"
JOINT = "joint diffusion models"
TO_COME, UNNUMBERED = "to come", "in the text"


@dataclass(frozen=True)
class Method:
    """One method at one task, a line of the survey's table 2.

    Attributes:
        name: as in the literature.
        paradigm: how it uses a diffusion model.
        task: what it was shown on.
        paper: its arXiv id.
        chapter: where the course builds it, as "ch10".
        where: its code, or that of the analogue that the chapter states, as
            "diffedu.features.heads:MLP"; None where it is still to come.
        figure: the id of the figure that shows it, or None if that has no number.
    """

    name: str
    paradigm: str
    task: str
    paper: str
    chapter: str
    where: str | None = None
    figure: str | None = None

    @property
    def code(self) -> Any:
        """The function or class itself.

        Raises:
            ValueError: if the method is still to come.
        """
        require(
            self.where is not None,
            f"{self.name} is to come in chapter {self.chapter}; it has no code yet",
        )
        module, name = self.where.split(":")
        return getattr(import_module(module), name)

    @property
    def function(self) -> str:
        """The name of its code as one calls it, or "to come"."""
        if self.where is None:
            return TO_COME
        module, name = self.where.removeprefix("diffedu.").split(":")
        return f"{module}.{name}"

    @property
    def shown(self) -> str:
        """The id of its figure, "in the text", or "to come"."""
        return TO_COME if self.where is None else self.figure or UNNUMBERED


CLASSES, PARTS, PANOPTIC = "classification", "segmentation", "panoptic segmentation"
POINTS, DEPTH, EDITING = "semantic correspondence", "depth", "image editing"
SEMANTIC, INTERPOLATION = "semantic segmentation", "interpolation"
_FEATURES, _ROOM = "diffedu.features.", "diffedu.representations."
METHODS: tuple[Method, ...] = (
    Method("Generative Augmentation", AUGMENTATION, CLASSES, "2403.05966", "ch15"),
    Method("MA-ZSC", AUGMENTATION, CLASSES, "2302.03298", "ch15"),
    Method("ScribbleGen", AUGMENTATION, PARTS, "2311.17121", "ch15"),
    Method("GDC", ACTIVATIONS, CLASSES, "2307.08702", "ch10",
           _FEATURES + "heads:MLP", "F33"),
    Method("DifFormer", ACTIVATIONS, CLASSES, "2311.17921", "ch10",
           _FEATURES + "heads:AttentionFusion", "F33"),
    Method("DDAE", ACTIVATIONS, CLASSES, "2303.09769", "ch10",
           _FEATURES + "extraction:extract", "F30"),
    Method("DDPM-Seg", ACTIVATIONS, SEMANTIC, "2112.03126", "ch11a",
           _FEATURES + "pixels:PixelEnsemble", "F35"),
    Method("VPD", ACTIVATIONS, SEMANTIC, "2303.02153", "ch11a",
           _ROOM + "looking:word_maps", "F35c"),
    Method("ODISE", ACTIVATIONS, PANOPTIC, "2303.04803", "ch11a",
           _ROOM + "clustering:kmeans", "F35b"),
    Method("DIFT", ACTIVATIONS, POINTS, "2306.03881", "ch11b",
           _ROOM + "correspondence:match", "F36"),
    Method("SD+DINO", ACTIVATIONS, POINTS, "2305.15347", "ch11b",
           _ROOM + "correspondence:fuse", "F38"),
    Method("Diffusion Hyperfeatures", ACTIVATIONS, POINTS, "2305.14334", "ch11b",
           _ROOM + "hyperfeatures:Hyperfeatures", "F37"),
    Method("SD4Match", ACTIVATIONS, POINTS, "2310.17569", "ch11b",
           _ROOM + "prompts:tune_prompt", "F38b"),
    Method("USCSD", ACTIVATIONS, POINTS, "2305.15581", "ch11b",
           _ROOM + "prompts:find_words", "F38b"),
    Method("VPD", ACTIVATIONS, DEPTH, "2303.02153", "ch11a",
           _ROOM + "depth:DepthReader", "F35c"),
    Method("prompt-to-prompt", ACTIVATIONS, EDITING, "2208.01626", "ch11b",
           _ROOM + "editing:PromptToPrompt", "F38c"),
    Method("Plug-and-Play", ACTIVATIONS, EDITING, "2211.12572", "ch11b",
           _ROOM + "plug_and_play:PlugAndPlay", "F38c"),
    Method("SODA", RECONSTRUCTION, CLASSES, "2311.17901", "ch14"),
    Method("l-DAE", RECONSTRUCTION, CLASSES, "2401.14404", "ch13"),
    Method("DiffMAE", RECONSTRUCTION, CLASSES, "2304.03283", "ch13"),
    Method("MDM", RECONSTRUCTION, PARTS, "2308.05695", "ch13"),
    Method("DiffAE", RECONSTRUCTION, EDITING, "2111.15640", "ch14"),
    Method("PDAE", RECONSTRUCTION, EDITING, "2212.12990", "ch14"),
    Method("InfoDiffusion", RECONSTRUCTION, INTERPOLATION, "2306.08757", "ch14"),
    Method("SmoothDiffusion", RECONSTRUCTION, INTERPOLATION, "2312.04410", "ch14"),
    Method("Diffusion Classifier", TRANSFER, CLASSES, "2303.16203", "ch12",
           _ROOM + "classifiers:DiffusionClassifier", "F39"),
    Method("RepFusion", TRANSFER, CLASSES, "2308.10916", "ch12",
           _ROOM + "levels:choose_levels", "F40"),
    Method("DreamTeacher", TRANSFER, CLASSES, "2307.07487", "ch12",
           _ROOM + "students:pretrain", "F40b"),
    Method("JDM", JOINT, CLASSES, "2301.13622", "ch15"),
    Method("HybViT", JOINT, CLASSES, "2208.07791", "ch15"),
    Method("ADDP", JOINT, PARTS, "2306.05423", "ch15"),
)  # fmt: skip

HEADER = ("paradigm", "task", "method", "paper", "chapter", "function", "figure")


def table_2() -> list[tuple[str, ...]]:
    """The rows of the survey's table 2, each with the columns of `HEADER`."""
    return [
        (m.paradigm, m.task, m.name, m.paper, m.chapter, m.function, m.shown)
        for m in METHODS
    ]


def table_2_text(markdown: bool = False) -> str:
    """The survey's table 2 to print.

    Args:
        markdown: as a Markdown table; otherwise in columns, a paradigm and a task
            named once.

    Returns:
        its lines as one text.
    """
    rows = [HEADER, *table_2()]
    if markdown:
        rows.insert(1, ("---",) * len(HEADER))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines, before = [], ("",) * len(HEADER)
    for row in rows:
        same = row[0] == before[0], row[:2] == before[:2]
        cells = ["" if old else cell for cell, old in zip(row, same, strict=False)]
        cells += row[2:]
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
        before = row
    return "\n".join(lines)
