"""Wrong answers to chapter 11a's exercises, and what the reader is told."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def iou(C):
    hits = C.diagonal()
    return hits / (C.sum(0) + C.sum(1) - hits)


def miou_double_union(C):
    return (C.diagonal() / (C.sum(0) + C.sum(1))).nanmean()


def miou_dice(C):
    return (2 * C.diagonal() / (C.sum(0) + C.sum(1))).nanmean()


def miou_recall(C):
    return (C.diagonal() / C.sum(1)).nanmean()


def miou_precision(C):
    return (C.diagonal() / C.sum(0)).nanmean()


def miou_no_brackets(C):
    return (C.diagonal() / C.sum(1) + C.sum(0) - C.diagonal()).nanmean()


def miou_only_true(C):
    return iou(C)[C.sum(1) > 0].mean()


def miou_weighted(C):
    return (iou(C).nan_to_num(0) * C.sum(1) / C.sum()).sum()


def ballots(z):
    return F.one_hot(z.argmax(-1), z.shape[-1]).sum(0)


def vote(z):
    return (ballots(z) + z.softmax(-1).mean(0) / 2).argmax(-1)


def average(z):
    return z.softmax(-1).mean(0).argmax(-1)


def vote_exchanged(z):
    return average(z), vote(z)


def vote_logits(z):
    return vote(z), z.mean(0).argmax(-1)


def vote_lowest(z):
    return ballots(z).argmax(-1), average(z)


def vote_weighted(z):
    p = z.softmax(-1)
    first = p == p.amax(-1, keepdim=True)
    return (p * first).sum(0).argmax(-1), average(z)


def vote_surest(z):
    return vote(z), z.softmax(-1).amax(0).argmax(-1)


def stacked(states, size, **how):
    up = [F.interpolate(h, (size, size), **how) for h in states]
    return torch.cat(up, 1)


def columns_corners(states, size):
    return stacked(states, size, mode="bilinear", align_corners=True)


def columns_nearest(states, size):
    return stacked(states, size)


def columns_uncentred(states, size):
    found = []
    for h in states:
        n = h.shape[-1]
        q = torch.arange(size) * n / size
        low, share = q.long(), (q - q.long()).to(h.dtype)
        high = (low + 1).clamp(max=n - 1)
        h = (1 - share) * h[..., low] + share * h[..., high]
        share = share[:, None]
        found.append((1 - share) * h[..., low, :] + share * h[..., high, :])
    return torch.cat(found, 1)


def columns_doubled(states, size):
    found = []
    for h in states:
        while h.shape[-1] < size:
            h = F.interpolate(h, scale_factor=2, mode="bilinear")
        found.append(h)
    return torch.cat(found, 1)


def columns_reversed(states, size):
    return stacked(list(reversed(states)), size, mode="bilinear")


def columns_turned(states, size):
    return stacked(states, size, mode="bilinear").mT


def step(x, centres):
    z = torch.cdist(x, centres).argmin(1)
    new = centres.clone()
    for k in z.unique():
        new[k] = x[z == k].mean(0)
    return z, new


def step_zero(x, centres):
    z, new = step(x, centres)
    for k in range(len(centres)):
        if not (z == k).any():
            new[k] = 0
    return z, new


def step_nan(x, centres):
    z, _ = step(x, centres)
    return z, torch.stack([x[z == k].mean(0) for k in range(len(centres))])


def step_absolute(x, centres):
    z = torch.cdist(x, centres, p=1).argmin(1)
    new = centres.clone()
    for k in z.unique():
        new[k] = x[z == k].mean(0)
    return z, new


def step_sums(x, centres):
    z, _ = step(x, centres)
    return z, torch.zeros_like(centres).index_add_(0, z, x)


def step_restart(x, centres):
    z, new = step(x, centres)
    for k in range(len(centres)):
        if not (z == k).any():
            new[k] = x[torch.cdist(x, centres).amin(1).argmax()]
    return z, new


def step_median(x, centres):
    z, new = step(x, centres)
    for k in z.unique():
        new[k] = x[z == k].median(0).values
    return z, new


def step_product(x, centres, along=lambda a: a):
    z = (along(x) @ along(centres).T).argmax(1)
    new = centres.clone()
    for k in z.unique():
        new[k] = x[z == k].mean(0)
    return z, new


def step_angle(x, centres):
    return step_product(x, centres, lambda a: F.normalize(a, dim=1))


def step_still(x, centres):
    return step(x, centres)[0], centres


def step_late_labels(x, centres):
    _, new = step(x, centres)
    return torch.cdist(x, new).argmin(1), new


WRONG = {
    "mean_iou": [
        (lambda C: C.trace() / C.sum(), "the accuracy"),
        (lambda C: C.trace() / (2 * C.sum() - C.trace()), "all unions together"),
        (miou_double_union, "intersection twice"),
        (miou_dice, "Dice's score"),
        (miou_recall, "recall"),
        (miou_precision, "precision"),
        (lambda C: iou(C).nan_to_num(0).mean(), "neither has counts as 0"),
        (lambda C: iou(C).nan_to_num(1).mean(), "neither has counts as 1"),
        (miou_only_true, "never true is left out"),
        (miou_weighted, "weighted by how frequent"),
        (lambda C: iou(C)[1:].nanmean(), "first class is left out"),
        (lambda C: (C.diagonal() / C.sum()).mean(), "union is all pixels"),
        (miou_no_brackets, "lacks its brackets"),
    ],
    "vote_and_average": [
        (vote_exchanged, "exchanged"),
        (vote_logits, "taken over logits"),
        (lambda z: (vote(z), vote(z)), "both answers are the vote"),
        (lambda z: (average(z), average(z)), "both answers are the average"),
        (vote_lowest, "lowest class"),
        (vote_surest, "surest member"),
        (lambda z: (z[0].argmax(-1),) * 2, "first member alone"),
        (lambda z: (z.mean(0).argmax(-1), average(z)), "highest mean logit"),
        (vote_weighted, "weighted by how sure"),
        (lambda z: (vote(z), z.softmax(1).mean(0).argmax(-1)), "over the pixels"),
    ],
    "hypercolumn": [
        (columns_corners, "corners are laid on corners"),
        (columns_nearest, "nearest place is copied"),
        (columns_uncentred, "halves are forgotten"),
        (columns_doubled, "doubled step by step"),
        (columns_reversed, "in the other order"),
        (columns_turned, "rows and columns are exchanged"),
        (lambda h, n: stacked(h[-1:], n, mode="bilinear"), "only the last block"),
        (lambda h, n: stacked(h, n, mode="bicubic"), "is cubic"),
        (lambda h, n: F.normalize(stacked(h, n, mode="bilinear"), dim=1), "length 1"),
    ],
    "kmeans_step": [
        (step_zero, "moved to 0"),
        (step_nan, "NaN"),
        (step_absolute, "absolute values"),
        (step_sums, "sums, not means"),
        (step_still, "have not moved"),
        (step_restart, "farthest from its own"),
        (step_median, "medians"),
        (step_product, "dot product"),
        (step_angle, "angle"),
        (step_late_labels, "belong to the new centres"),
    ],
}
