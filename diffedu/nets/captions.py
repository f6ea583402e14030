"""Captions as a condition: words become vectors, and hidden states look at them.

A caption is a row of token ids in which 0 stands for no word. Where none is left,
the network reads one learned null token instead (2112.10752, section 3.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffedu.errors import capturing, require, require_same_device
from diffedu.nets.attention import Attend
from diffedu.nets.conditions import Condition, as_kept, require_positive, zero_


class Context:
    """What cross-attention reads: a vector for each word, and which of them count.

    Args:
        words: shape (B, L, width).
        mask: shape (B, L) bool, False where there is no word.
    """

    def __init__(self, words: Tensor, mask: Tensor) -> None:
        self.words, self.mask = words, mask


class Words(nn.Module):
    """The caption encoder: a vector for each word and one for each place, added.

    Row 0 of the table belongs to no word; it is the learned null token.

    Args:
        vocabulary: number of token ids, the 0 of padding among them.
        width: length of the vectors.
        length: largest number of words in a caption.
    """

    def __init__(self, vocabulary: int, width: int, length: int = 4) -> None:
        super().__init__()
        require_positive(vocabulary=vocabulary, width=width, length=length)
        self.vocabulary, self.length = vocabulary, length
        self.token = nn.Embedding(vocabulary, width)
        self.place = nn.Embedding(length, width)

    def forward(
        self, x: Tensor, caption: Tensor | None, keep: Tensor | None = None
    ) -> Context:
        """Read captions.

        Args:
            x: the network's input, (B, ...); only its batch and device count.
            caption: token ids, (B, L) or (L,), integers; 0 is no word. None, or a
                row of zeros, is unconditional.
            keep: who keeps its caption, (B,) bool.

        Returns:
            a Context of (B, L, width) and (B, L).

        Raises:
            ValueError: if a shape, dtype, device or token id does not fit.
        """
        if caption is None:
            ids = torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
        else:
            ids = as_captions(caption, x, self.vocabulary, self.length)
        if keep is not None:
            ids = ids * as_kept(keep, x)[:, None]
        mask = ids > 0
        silent = ~mask.any(1, keepdim=True)
        first = torch.arange(ids.shape[1], device=x.device) == 0
        places = self.place.weight[: ids.shape[1]]
        return Context(self.token(ids) + places, mask | (silent & first))


class CaptionedCondition(Condition):
    """A `Condition` whose network reads captions too.

    Args:
        width: length of the vector, and of each word's.
        classes: number of classes, or None.
        vocabulary: number of token ids.
    """

    def __init__(self, width: int, classes: int | None, vocabulary: int) -> None:
        super().__init__(width, classes)
        self.words = Words(vocabulary, width)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Embed time and label as `Condition` does; `keep` may mean the caption."""
        return super().forward(x, t, label, None if self.classes is None else keep)

    def context(
        self, x: Tensor, caption: Tensor | None, keep: Tensor | None = None
    ) -> Context:
        """What cross-attention reads; arguments as in `Words`."""
        return self.words(x, caption, keep)


def conditioning(
    width: int, classes: int | None = None, vocabulary: int | None = None
) -> Condition:
    """A `Condition` of that width, one that reads captions if it has a vocabulary."""
    if vocabulary is None:
        return Condition(width, classes)
    return CaptionedCondition(width, classes, vocabulary)


class CrossAttention(nn.Module):
    """Hidden states look at the words of a caption; the product is `attend`.

    Args:
        width: features of a hidden state, a multiple of `heads`.
        context: features of a word.
        heads: number of attention heads.

    Raises:
        ValueError: if the width cannot be divided among the heads.
    """

    def __init__(self, width: int, context: int, heads: int = 1) -> None:
        super().__init__()
        require_positive(width=width, context=context, heads=heads)
        require(
            width % heads == 0,
            f"width {width} cannot be divided among {heads} heads",
        )
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context, 2 * width)
        self.attend = Attend()
        self.out = zero_(nn.Linear(width, width))

    def forward(self, h: Tensor, context: Context) -> Tensor:
        """Map tokens (B, N, width), or an image (B, width, H, W), to the same shape."""
        if h.dim() == 4:
            tokens = h.flatten(2).transpose(1, 2)
            return self(tokens, context).transpose(1, 2).reshape(h.shape)
        q = self.query(self.norm(h)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        both = self.key_value(context.words).unflatten(2, (2, self.heads, -1))
        k, v = both.transpose(1, 3).unbind(2)  # each (B, heads, L, d)
        seen = self.attend(q, k, v, context.mask[:, None, None, :])
        return h + self.out(seen.transpose(1, 2).flatten(2))


def as_captions(caption: Tensor, x: Tensor, vocabulary: int, length: int) -> Tensor:
    """Captions (B, L) or (L,) as (B, L) of int64; ValueError unless each id is known.

    The range check reads a value, so it rests while a CUDA graph is captured.
    """
    kind = caption.dtype if isinstance(caption, Tensor) else type(caption).__name__
    require(
        kind in (torch.int64, torch.int32, torch.int16, torch.uint8),
        f"caption must be a tensor of token ids, got {kind}; try ShapeBatch.caption, "
        "or worlds.shapeworld.encode(text)",
    )
    fits = caption.dim() == 1 or (caption.dim() == 2 and len(caption) == len(x))
    require(
        fits and 1 <= caption.shape[-1] <= length,
        f"caption has shape {tuple(caption.shape)} but must be (L,) or ({len(x)}, L) "
        f"with L at most {length}",
    )
    require_same_device(x, caption, "x and caption")
    if caption.numel() and not capturing():
        low, high = (int(end) for end in caption.aminmax())
        require(
            0 <= low and high < vocabulary,
            f"token ids run from {low} to {high}, but this network knows {vocabulary}: "
            f"0 to {vocabulary - 1}",
        )
    return caption.long().expand(len(x), -1)
