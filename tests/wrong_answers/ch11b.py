"""Wrong answers to chapter 11b's exercises, and what the reader is told."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def _pck(found, truth, asked, visible, names, share, radius=2.0, twisted=False):
    best = []
    for f, t, a, v in zip(found, truth, asked, visible, strict=True):
        values = []
        for order in names:
            counted = a & (v if twisted else v[order])
            near = (f - t[order]).norm(dim=1) <= radius * share
            values.append((near & counted).sum() / counted.sum().clamp(min=1))
        best.append(torch.stack(values))
    return torch.stack(best)


def pck_of_one(*inputs):
    return _pck(*inputs, radius=1.0).amax(1)


def pck_unrenamed(*inputs):
    return _pck(*inputs)[:, 0]


def pck_mean(*inputs):
    return _pck(*inputs).mean(1)


def pck_twisted(*inputs):
    return _pck(*inputs, twisted=True).amax(1)


def pck_average(*inputs):
    return _pck(*inputs).amax(1).mean()


def pck_hidden(found, truth, asked, visible, names, share):
    near = (found[:, None] - truth[:, names]).norm(dim=-1) <= 2 * share
    return near.double().mean(2).amax(1)


def pck_source_only(found, truth, asked, visible, names, share):
    near = (found[:, None] - truth[:, names]).norm(dim=-1) <= 2 * share
    return ((near & asked[:, None]).sum(2) / asked.sum(1)[:, None]).amax(1)


def pck_each_point(found, truth, asked, visible, names, share):
    near = (found[:, None] - truth[:, names]).norm(dim=-1) <= 2 * share
    counted = asked & visible
    return ((near & visible[:, names]).any(1) & counted).sum(1) / counted.sum(1)


def pck_of_five(found, truth, asked, visible, names, share):
    near = (found[:, None] - truth[:, names]).norm(dim=-1) <= 2 * share
    counted = asked[:, None] & visible[:, names]
    return (near & counted).double().mean(2).amax(1)


def pck_box(found, truth, asked, visible, names, share):
    near = (found[:, None] - truth[:, names]).abs().amax(-1) <= 2 * share
    counted = asked[:, None] & visible[:, names]
    return ((near & counted).sum(2) / counted.sum(2).clamp(min=1)).amax(1)


def pck_apart(found, truth, asked, visible, names, share):
    near = (found[:, None] - truth[:, names]).norm(dim=-1) <= 2 * share
    counted = asked[:, None] & visible[:, names]
    hits = (near & counted).sum(2).amax(1)
    return hits / counted.sum(2).amax(1).clamp(min=1)


def pck_squared(found, truth, asked, visible, names, share):
    near = (found[:, None] - truth[:, names]).square().sum(-1) <= 2 * share
    counted = asked[:, None] & visible[:, names]
    return ((near & counted).sum(2) / counted.sum(2).clamp(min=1)).amax(1)


def _match(source, target, points, scale=True, half=0.5, swap=False, sign=1):
    read = F.grid_sample(
        source,
        points[:, :, None].to(source.dtype),
        padding_mode="border",
        align_corners=False,
    )[..., 0]
    target = F.normalize(target, dim=1) if scale else target
    h, w = target.shape[2:]
    best = (sign * torch.einsum("nck,nchw->nkhw", read, target)).flatten(2).argmax(2)
    x = 2 * (best % w + half) / w - 1
    y = 2 * (best // w + half) / h - 1
    return torch.stack([y, x] if swap else [x, y], -1).to(source.dtype)


def match_swapped(source, target, points):
    return _match(source, target, points, swap=True)


def match_half(source, target, points):
    return _match(source, target, points, half=0.0)


def match_dots(source, target, points):
    return _match(source, target, points, scale=False)


def match_least(source, target, points):
    return _match(source, target, points, sign=-1)


def match_over_places(source, target, points):
    length = target.flatten(2).norm(dim=2)[..., None, None]
    return _match(source, target / length, points, scale=False)


def match_distance(source, target, points):
    read = F.grid_sample(
        source,
        points[:, :, None].to(source.dtype),
        padding_mode="border",
        align_corners=False,
    )[..., 0]
    gap = torch.cdist(read.transpose(1, 2), target.flatten(2).transpose(1, 2))
    best, (h, w) = gap.argmin(2), target.shape[2:]
    x, y = 2 * (best % w + 0.5) / w - 1, 2 * (best // w + 0.5) / h - 1
    return torch.stack([x, y], -1).to(source.dtype)


def match_corners_read(source, target, points):
    size = source.shape[-1:-3:-1]
    # align_corners=True reads pixel (p + 1) / 2 * (size - 1)
    scale = torch.tensor([(n - 1) / n for n in size], dtype=points.dtype)
    return _match(source, target, points * scale)


def match_last_at_one(source, target, points):
    h, w = target.shape[2:]
    place = _match(source, target, points)
    j = ((place + 1) * torch.tensor([w, h], dtype=place.dtype) - 1) / 2
    return 2 * j / torch.tensor([w - 1, h - 1], dtype=place.dtype) - 1


def match_nearest(source, target, points):
    h, w = source.shape[2:]
    column = ((points[..., 0] + 1) / 2 * w).long().clamp(0, w - 1)
    row = ((points[..., 1] + 1) / 2 * h).long().clamp(0, h - 1)
    image = torch.arange(len(source))[:, None]
    asked = source[image, :, row, column]
    scores = torch.einsum("nkc,nchw->nkhw", asked, F.normalize(target, dim=1))
    best, (h, w) = scores.flatten(2).argmax(2), target.shape[2:]
    x, y = 2 * (best % w + 0.5) / w - 1, 2 * (best // w + 0.5) / h - 1
    return torch.stack([x, y], -1).to(source.dtype)


def _mixed(cells, shrink, weights):
    total = 0
    for i, each in enumerate(cells):
        for s in range(len(each)):
            small = torch.einsum("dc,nchw->ndhw", shrink[i], each[s])
            total = total + weights[i, s] * small
    return total


def mix_raw(cells, shrink, scores):
    return _mixed(cells, shrink, scores)


def mix_by_block(cells, shrink, scores):
    return _mixed(cells, shrink, scores.softmax(1))


def mix_by_time(cells, shrink, scores):
    return _mixed(cells, shrink, scores.softmax(0))


def mix_equal(cells, shrink, scores):
    return _mixed(cells, shrink, torch.ones_like(scores) / scores.numel())


def mix_exp(cells, shrink, scores):
    return _mixed(cells, shrink, scores.exp())


def mix_mean(cells, shrink, scores):
    weights = scores.flatten().softmax(0).view_as(scores)
    return _mixed(cells, shrink, weights) / scores.numel()


def mix_last(cells, shrink, scores):
    weights = scores.flatten().softmax(0).view_as(scores)
    return _mixed(cells[-1:], shrink[-1:], weights[-1:])


def mix_detached(cells, shrink, scores):
    weights = scores.detach().flatten().softmax(0).view_as(scores)
    return _mixed(cells, shrink, weights)


def _fuse(a, b, alpha, beta=None, unit=lambda m: F.normalize(m, dim=1)):
    b = F.interpolate(b, size=a.shape[2:], mode="bilinear")
    return torch.cat(
        [alpha * unit(a), (1 - alpha if beta is None else beta) * unit(b)], 1
    )


def fuse_raw(a, b, alpha):
    return _fuse(a, b, alpha, unit=lambda m: m)


def fuse_exchanged(a, b, alpha):
    return _fuse(a, b, 1 - alpha)


def fuse_unweighted(a, b, alpha):
    return _fuse(a, b, 1, 1)


def fuse_half_weighted(a, b, alpha):
    return _fuse(a, b, alpha, 1)


def fuse_over_places(a, b, alpha):
    return _fuse(
        a, b, alpha, unit=lambda m: F.normalize(m.flatten(2), dim=2).view_as(m)
    )


def fuse_early(a, b, alpha):
    b = F.interpolate(F.normalize(b, dim=1), size=a.shape[2:], mode="bilinear")
    return torch.cat([alpha * F.normalize(a, dim=1), (1 - alpha) * b], 1)


def fuse_repeated(a, b, alpha):
    b = F.interpolate(b, size=a.shape[2:], mode="nearest")
    return torch.cat(
        [alpha * F.normalize(a, dim=1), (1 - alpha) * F.normalize(b, dim=1)], 1
    )


def inject(source, edited, values, alignment, strength, t, tau):
    place = alignment[:, None, None, :]
    kept = source.gather(-1, place.clamp(min=0).expand_as(source))
    maps = torch.where(place >= 0, kept, edited) * strength[:, None, None, :]
    return torch.where((t > 1 - tau)[:, None, None, None], maps, edited) @ values


def inject_mirrored(source, edited, values, alignment, strength, t, tau):
    return inject(source, edited, values, alignment, strength, 1 - t, tau)


def inject_until_tau(source, edited, values, alignment, strength, t, tau):
    return inject(source, edited, values, alignment, strength, t, 1 - tau)


def inject_always(source, edited, values, alignment, strength, t, tau):
    return inject(source, edited, values, alignment, strength, torch.ones_like(t), 1)


def inject_first_time(source, edited, values, alignment, strength, t, tau):
    return inject(source, edited, values, alignment, strength, t[0].expand(len(t)), tau)


def inject_nothing(source, edited, values, alignment, strength, t, tau):
    return edited @ values


def inject_from_the_end(source, edited, values, alignment, strength, t, tau):
    maps = torch.stack([s[..., a] for s, a in zip(source, alignment, strict=True)])
    maps = maps * strength[:, None, None, :]
    return torch.where((t > 1 - tau)[:, None, None, None], maps, edited) @ values


def inject_clamped(source, edited, values, alignment, strength, t, tau):
    return inject(source, edited, values, alignment.clamp(min=0), strength, t, tau)


def inject_unaligned(source, edited, values, alignment, strength, t, tau):
    same = torch.arange(alignment.shape[1]).expand_as(alignment)
    return inject(source, edited, values, same, strength, t, tau)


def inject_backwards(source, edited, values, alignment, strength, t, tau):
    inverse = torch.full_like(alignment, -1)
    for row, places in enumerate(alignment.tolist()):
        for word, place in enumerate(places):
            if place >= 0:
                inverse[row, place] = word
    return inject(source, edited, values, inverse, strength, t, tau)


def inject_one_alignment(source, edited, values, alignment, strength, t, tau):
    first = alignment[:1].expand_as(alignment)
    return inject(source, edited, values, first, strength, t, tau)


def inject_scaled_back(source, edited, values, alignment, strength, t, tau):
    place = alignment[:, None, None, :]
    kept = source.gather(-1, place.clamp(min=0).expand_as(source))
    maps = torch.where(place >= 0, kept, edited) * strength[:, None, None, :]
    maps = maps / maps.sum(-1, keepdim=True)
    return torch.where((t > 1 - tau)[:, None, None, None], maps, edited) @ values


def inject_unweighed(source, edited, values, alignment, strength, t, tau):
    return inject(source, edited, values, alignment, strength * 0 + 1, t, tau)


def inject_weighed_late(source, edited, values, alignment, strength, t, tau):
    place = alignment[:, None, None, :]
    kept = source.gather(-1, place.clamp(min=0).expand_as(source))
    maps = torch.where(place >= 0, kept, edited)
    maps = torch.where((t > 1 - tau)[:, None, None, None], maps, edited)
    return (maps * strength[:, None, None, :]) @ values


def inject_by_the_source(source, edited, values, alignment, strength, t, tau):
    place = alignment[:, None, None, :]
    strong = source * strength[:, None, None, :]
    kept = strong.gather(-1, place.clamp(min=0).expand_as(source))
    maps = torch.where(place >= 0, kept, edited * strength[:, None, None, :])
    return torch.where((t > 1 - tau)[:, None, None, None], maps, edited) @ values


def inject_weighed_old(source, edited, values, alignment, strength, t, tau):
    strength = torch.where(alignment >= 0, strength, 1)
    return inject(source, edited, values, alignment, strength, t, tau)


def inject_weighed_new(source, edited, values, alignment, strength, t, tau):
    strength = torch.where(alignment >= 0, 1, strength)
    return inject(source, edited, values, alignment, strength, t, tau)


WRONG = {
    "pck": [
        (pck_of_one, "the share is taken of 1"),
        (pck_unrenamed, "symmetries are not used"),
        (pck_mean, "the best one counts"),
        (pck_twisted, "keeps the old names"),
        (pck_average, "averaged into one number"),
        (pck_hidden, "hidden points count"),
        (pck_source_only, "hidden in the target"),
        (pck_each_point, "a symmetry of its own"),
        (pck_of_five, "divided by all points"),
        (pck_box, "larger of the two coordinates"),
        (pck_apart, "maximised apart"),
        (pck_squared, "root of the squared distance"),
    ],
    "match": [
        (match_swapped, "exchanged in the result"),
        (match_half, "half a pixel away"),
        (match_dots, "not scaled to length 1"),
        (match_least, "least similar"),
        (match_over_places, "length is over channels"),
        (match_distance, "the distance is used"),
        (match_nearest, "nearest pixel"),
        (match_corners_read, "read with align_corners=True"),
        (match_last_at_one, "last pixel's centre is put at 1"),
    ],
    "mix": [
        (mix_raw, "their softmax should be"),
        (mix_by_block, "each block's weights sum to 1"),
        (mix_by_time, "each time's weights sum to 1"),
        (mix_equal, "all cells count alike"),
        (mix_exp, "not divided by their sum"),
        (mix_mean, "where a sum belongs"),
        (mix_last, "only one block"),
        (mix_detached, "get no gradient"),
    ],
    "fuse": [
        (fuse_raw, "the larger map wins"),
        (fuse_exchanged, "are exchanged"),
        (fuse_unweighted, "weight is not used"),
        (fuse_half_weighted, "not weighted by 1 - alpha"),
        (fuse_over_places, "over channels"),
        (fuse_early, "before it is enlarged"),
        (fuse_repeated, "by repeating pixels"),
    ],
    "inject_words": [
        (inject_mirrored, "on at low noise"),
        (inject_until_tau, "ends where t = tau"),
        (inject_always, "t is not asked"),
        (inject_first_time, "the time of the first one"),
        (inject_nothing, "never edited"),
        (inject_from_the_end, "counts from the end"),
        (inject_clamped, "map of the source's first one"),
        (inject_unaligned, "taken as it stands"),
        (inject_backwards, "used backwards"),
        (inject_one_alignment, "the alignment of the first one"),
        (inject_scaled_back, "scaled back to sum 1"),
        (inject_by_the_source, "belongs to the twin's word"),
        (inject_weighed_old, "only words that the source has"),
        (inject_weighed_new, "only new words are weighed"),
        (inject_unweighed, "strengths are not used"),
        (inject_weighed_late, "after the edit has ended"),
        (lambda *inputs: None, "returned None"),
    ],
}
