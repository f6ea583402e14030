"""The check of chapter 11b's exercise on editing by attention."""

from __future__ import annotations

import torch
from torch import Tensor

from diffedu.checks.machinery import Exercise


def _words(generator: torch.Generator) -> dict[str, object]:
    """Pairs early and late, with words added, moved and weighed."""
    n, heads, d = (int(torch.randint(2, 5, (), generator=generator)) for _ in range(3))
    pairs, words = 3 + n, 4
    scores = torch.randn(2, pairs, heads, 3 + n, words, generator=generator)
    source, edited = (2 * scores).softmax(-1)
    order = torch.rand(pairs, words, generator=generator).argsort(1)
    new = torch.rand(pairs, words, generator=generator).argmax(1)
    order[torch.arange(pairs), new] = -1
    order[0] = torch.tensor([-1, 0, 1, 2])
    tau = 0.6 + 0.2 * torch.rand((), generator=generator).item()
    t = torch.rand(pairs, generator=generator)
    # one of each kind: early, late, and early by the smaller of tau and 1 - tau
    kinds = torch.tensor([(1 + tau) / 2, (1 - tau) / 2, 0.5])
    late_first = torch.rand((), generator=generator).item() < 0.5
    t[:3] = kinds.roll(-1) if late_first else kinds
    return {
        "source": source,
        "edited": edited,
        "values": torch.randn(pairs, heads, words, d, generator=generator),
        "alignment": order,
        "strength": 0.3 + 2 * torch.rand(pairs, words, generator=generator),
        "t": t,
        "tau": tau,
    }


def _column(source: Tensor, edited: Tensor, alignment: Tensor) -> Tensor:
    place = alignment[:, None, None, :]
    kept = source.gather(-1, place.clamp(min=0).expand_as(source))
    return torch.where(place >= 0, kept, edited)


def _strong(maps: Tensor, strength: Tensor) -> Tensor:
    return maps * strength[:, None, None, :]


def _injected(source, edited, values, alignment, strength, t, tau,
              column=_column, strong=_strong, early=lambda t, tau: t > 1 - tau,
              late=lambda edited, strength: edited):  # fmt: skip
    maps = strong(column(source, edited, alignment), strength)
    on = early(t, tau)[:, None, None, None]
    return torch.where(on, maps, late(edited, strength)) @ values


def _last_word(source: Tensor, edited: Tensor, alignment: Tensor) -> Tensor:
    place = alignment % source.shape[-1]
    return source.gather(-1, place[:, None, None, :].expand_as(source))


def _first_word(source: Tensor, edited: Tensor, alignment: Tensor) -> Tensor:
    return _last_word(source, edited, alignment.clamp(min=0))


def _inverse(source: Tensor, edited: Tensor, alignment: Tensor) -> Tensor:
    out = edited.clone()
    for row, places in enumerate(alignment.tolist()):
        for word, place in enumerate(places):
            if place >= 0:
                out[row, ..., place] = source[row, ..., word]
    return out


def _scaled_back(maps: Tensor, strength: Tensor) -> Tensor:
    strong = _strong(maps, strength)
    return strong / strong.sum(-1, keepdim=True)


def _by_the_source(source, edited, values, alignment, strength, t, tau):
    """Strengths are read at the source's words, before they are put in place."""
    place = alignment.clamp(min=0)
    other = torch.where(alignment >= 0, strength.gather(1, place), strength)
    return _injected(source, edited, values, alignment, other, t, tau)


def _only(kept: bool):
    """Strengths of the words that the source has, or of the new ones alone."""

    def answer(source, edited, values, alignment, strength, t, tau):
        some = torch.where((alignment >= 0) == kept, strength, 1)
        return _injected(source, edited, values, alignment, some, t, tau)

    return answer


def _to_map(**changed):
    """A wrong formula: the true one with one of its parts changed."""
    return lambda *inputs: _injected(*inputs, **changed)


inject_words = Exercise(
    "inject_words",
    draw=_words,
    truth=_injected,
    draws=12,
    mistakes={
        "the edit is on at low noise and off at high noise; time runs from 1, noise, "
        "to 0": _to_map(early=lambda t, tau: t < tau),
        "the edit ends where t = tau, but tau is the share of the walk that is edited":
            _to_map(early=lambda t, tau: t > tau),
        "the edit is on all the way: t is not asked":
            _to_map(early=lambda t, tau: t == t),
        "all pairs follow the time of the first one":
            _to_map(early=lambda t, tau: (t[:1] > 1 - tau).expand_as(t)),
        "the twin is never edited": _to_map(early=lambda t, tau: t != t),
        "an index of -1 counts from the end: a new word gets the map of the "
        "source's last one": _to_map(column=_last_word),
        "a new word gets the map of the source's first one":
            _to_map(column=_first_word),
        "the alignment is not used: the source's map is taken as it stands":
            _to_map(column=lambda source, edited, alignment: source),
        "the alignment is used backwards, from the source's words to the twin's":
            _to_map(column=_inverse),
        "all pairs follow the alignment of the first one":
            _to_map(column=lambda s, e, a: _column(s, e, a[:1].expand_as(a))),
        "source and twin are exchanged: shared words keep the twin's map":
            _to_map(column=lambda s, e, a: torch.where(
                a[:, None, None, :] >= 0, e, _first_word(s, e, a))),
        "the rows are scaled back to sum 1": _to_map(strong=_scaled_back),
        "the strengths are not used": _to_map(strong=lambda maps, strength: maps),
        "a strength belongs to the twin's word; the source's is taken":
            _by_the_source,
        "only words that the source has are weighed; new words are, too":
            _only(True),
        "only new words are weighed; those of the source are, too": _only(False),
        "the strengths are used after the edit has ended, too": _to_map(late=_strong),
    },
)  # fmt: skip
