"""Checks of chapter 12's exercises: paired errors, rounds, posteriors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from diffedu.checks.ch12_students import policy_gradient, regression_loss
from diffedu.checks.machinery import Exercise

__all__ = [
    "least_error",
    "policy_gradient",
    "posterior",
    "regression_loss",
    "survivors",
]


def _number(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (), generator=generator))


def _look_inputs(generator: torch.Generator) -> dict[str, object]:
    batch, dim, classes = 5, _number(3, 7, generator), _number(3, 6, generator)
    looks = classes + 1
    maps = torch.randn(classes, dim, dim, generator=generator, dtype=torch.float64)
    level = 0.1 + 0.8 * torch.rand(looks, generator=generator)

    def predict(x_t: Tensor, j: int, c: int) -> Tensor:
        return torch.tanh(x_t @ maps[c].to(x_t) + 0.3 * j)

    return {
        "predict": predict,
        "x0": torch.randn(batch, dim, generator=generator),
        "alpha": (1 - level).sqrt(),
        "sigma": level.sqrt(),
        "eps": torch.randn(looks, batch, dim, generator=generator),
        "classes": classes,
    }


def _errors(predict, x0, alpha, sigma, eps, classes, which=None, error=None):
    """Mean errors (B, classes); `which` picks a look's noise, `error` measures it."""
    which = which or (lambda j, c: j)
    error = error or (lambda seen, e: (seen - e).square().sum(1))
    columns = []
    for c in range(classes):
        found = []
        for j in range(len(eps)):
            e = eps[which(j, c) % len(eps)]
            x_t = alpha[j] * x0 + sigma[j] * e
            found.append(error(predict(x_t, j, c), e))
        columns.append(torch.stack(found).mean(0))
    return torch.stack(columns, 1)


def _decided(*inputs, **options):
    errors = _errors(*inputs, **options)
    return errors, errors.argmin(1)


def _largest(*inputs):
    errors = _errors(*inputs)
    return errors, errors.argmax(1)


def _one_for_all(*inputs):
    errors = _errors(*inputs)
    return errors, errors.mean(0).argmin().expand(len(errors))


def _of_x0(predict, x0, *rest):
    return _decided(
        predict, x0, *rest, error=lambda seen, e: (seen - x0).square().sum(1)
    )


def _same_look(predict, x0, alpha, sigma, eps, classes):
    return _decided(lambda x, j, c: predict(x, 0, c), x0, alpha, sigma, eps, classes)


def _clean(predict, x0, alpha, sigma, eps, classes):
    return _decided(
        lambda x, j, c: predict(alpha[j] * x0, j, c), x0, alpha, sigma, eps, classes
    )


def _last_look(predict, x0, alpha, sigma, eps, classes):
    last = len(eps) - 1
    return _decided(
        lambda x, j, c: predict(x, last, c),
        x0, alpha[-1:], sigma[-1:], eps[-1:], classes,
    )  # fmt: skip


def _overwritten(predict, x0, alpha, sigma, eps, classes):
    errors, _ = _last_look(predict, x0, alpha, sigma, eps, classes)
    return errors / len(eps), errors.argmin(1)


def _of_x_t(*inputs):
    _, x0, alpha, sigma, eps, _ = inputs

    def error(seen, e):
        j = next(j for j in range(len(eps)) if eps[j] is e or eps[j].equal(e))
        return (seen - alpha[j] * x0 - sigma[j] * e).square().sum(1)

    return _decided(*inputs, error=error)


def _first_class(predict, *rest):
    return _decided(lambda x, j, c: predict(x, j, 0), *rest)


def _over_the_batch(*inputs):
    def error(seen, e):
        return (seen - e).square().sum().expand(len(e))

    return _decided(*inputs, error=error)


def _vote(predict, x0, alpha, sigma, eps, classes):
    votes = 0
    for j in range(len(eps)):
        look = slice(j, j + 1)
        errors = _errors(
            lambda x, _, c, j=j: predict(x, j, c),
            x0, alpha[look], sigma[look], eps[look], classes,
        )  # fmt: skip
        votes = votes + one_hot(errors.argmin(1), classes)
    return _errors(predict, x0, alpha, sigma, eps, classes), votes.argmax(1)


def _least(*inputs):
    errors = _errors(*inputs)
    return errors, errors.amin(1)


def _scaled(factor):
    def scaled(predict, x0, alpha, sigma, eps, classes):
        errors = _errors(predict, x0, alpha, sigma, eps, classes)
        return errors * factor(x0, eps), errors.argmin(1)

    return scaled


least_error = Exercise(
    "least_error",
    draw=_look_inputs,
    truth=_decided,
    returns=("errors", "decision"),
    mistakes={
        "each class gets noise of its own: the classes must share the draw of a look":
            lambda *a: _decided(*a, which=lambda j, c: j + c),
        "one draw of noise serves all looks":
            lambda *a: _decided(*a, which=lambda j, c: 0),
        "the class with the largest error is taken": _largest,
        "one class is chosen for the whole batch": _one_for_all,
        "the prediction is compared with the clean data, but it predicts the noise":
            _of_x0,
        "alpha and sigma are exchanged":
            lambda f, x0, a, s, *rest: _decided(f, x0, s, a, *rest),
        "the noise is not added: the network is shown the data alone": _clean,
        "the network is told the first look's number in all looks": _same_look,
        "only the last look counts": _last_look,
        "each look overwrites the one before: the column is to be added to":
            _overwritten,
        "the prediction is compared with the noisy data, but it predicts the noise":
            _of_x_t,
        "the network is told the first class's number for all classes": _first_class,
        "the errors are summed over the batch, where each sample has its own":
            _over_the_batch,
        "each look has a vote; the class is chosen once, by the mean error": _vote,
        "the least error is answered, where the number of its class is asked": _least,
        "roots of alpha and sigma are taken, but they are no squares here":
            lambda f, x0, a, s, *rest: _decided(f, x0, a.sqrt(), s.sqrt(), *rest),
        "the data are not scaled by alpha":
            lambda f, x0, a, s, *rest: _decided(f, x0, torch.ones_like(a), s, *rest),
        "the error is not squared":
            lambda *a: _decided(*a, error=lambda seen, e: (seen - e).norm(dim=1)),
        "absolute values are summed where squares are asked":
            lambda *a: _decided(*a, error=lambda seen, e: (seen - e).abs().sum(1)),
        "the squares are averaged over the coordinates, where their sum is asked":
            _scaled(lambda x0, eps: 1 / x0.shape[1]),
        "the looks are summed, where their mean is asked":
            _scaled(lambda x0, eps: len(eps)),
        "the looks are summed and the coordinates averaged; it is the other way round":
            _scaled(lambda x0, eps: len(eps) / x0.shape[1]),
    },
)  # fmt: skip


def _round_inputs(generator: torch.Generator) -> dict[str, object]:
    batch, classes = 9, 10
    alive = torch.rand(batch, classes, generator=generator).argsort(1) < 8
    total = 1 + torch.rand(batch, classes, generator=generator)
    # classes dropped before have fewer looks, so their sums are smaller
    total = torch.where(alive, total, 0.2 * total)
    return {"total": total, "alive": alive, "keep": _number(2, 4, generator)}


def _best(total, alive, keep, largest=False):
    worst = -torch.inf if largest else torch.inf
    order = total.masked_fill(~alive, worst).argsort(1, descending=largest)
    out = torch.zeros_like(alive)
    return out.scatter(1, order[:, :keep], True)


def _common(total, alive, keep):
    chosen = total.mean(0).argsort()[:keep]
    return (torch.arange(total.shape[1]) == chosen[:, None]).any(0).expand_as(alive)


def _index_for_rank(total, alive, keep):
    return total.masked_fill(~alive, torch.inf).argsort(1) < keep


def _kept_too_late(total, alive, keep):
    return alive & _best(total, torch.ones_like(alive), keep)


def _below_mean(total, alive, keep):
    mean = (total * alive).sum(1, keepdim=True) / alive.sum(1, keepdim=True)
    return alive & (total < mean)


survivors = Exercise(
    "survivors",
    draw=_round_inputs,
    truth=_best,
    mistakes={
        "classes dropped in earlier rounds come back: their sums are smaller, as they "
        "have had fewer looks": lambda total, alive, keep: _best(
            total, torch.ones_like(alive), keep),
        "the classes with the largest errors are kept":
            lambda *a: _best(*a, largest=True),
        "`keep` classes are dropped, where so many are to stay":
            lambda total, alive, keep: alive & ~_best(total, alive, keep, True),
        "`argsort` answers which class stands at each place, not the place of a class":
            _index_for_rank,
        "dropped classes take places, and are struck out only afterwards":
            _kept_too_late,
        "only the best class goes on, where `keep` of them do":
            lambda total, alive, keep: _best(total, alive, 1),
        "one class too many is kept":
            lambda total, alive, keep: _best(total, alive, keep + 1),
        "one class too few is kept":
            lambda total, alive, keep: _best(total, alive, keep - 1),
        "the same classes are kept for the whole batch": _common,
        "what is kept and what is dropped are exchanged":
            lambda total, alive, keep: alive & ~_best(total, alive, keep),
        "all classes that are alive go on: nothing is dropped":
            lambda total, alive, keep: alive,
        "classes are kept by a threshold, which keeps another number of them":
            _below_mean,
        "the samples are ranked within a class, not the classes within a sample":
            lambda total, alive, keep: _best(total.T, alive.T, keep).T,
    },
)  # fmt: skip


def _posterior_inputs(generator: torch.Generator) -> dict[str, object]:
    looks, batch, classes = _number(6, 10, generator), 5, 4
    prior = torch.rand(classes, generator=generator) + 0.1
    return {
        "errors": 2 * torch.rand(looks, batch, classes, generator=generator),
        "width": 4 + 4 * torch.rand((), generator=generator),
        "log_prior": (prior / prior.sum()).log(),
    }


def _log_posterior(errors, width, log_prior, half=0.5):
    return (log_prior - half * width * errors.mean(0)).log_softmax(1)


def _unnormalised(errors, width, log_prior):
    return log_prior - 0.5 * width * errors.mean(0)


def _shares_of_scores(errors, width, log_prior):
    score = _unnormalised(errors, width, log_prior)
    return score / score.sum(1, keepdim=True)


def _from_the_best(errors, width, log_prior):
    score = _unnormalised(errors, width, log_prior)
    return score - score.amax(1, keepdim=True)


posterior = Exercise(
    "posterior",
    draw=_posterior_inputs,
    truth=_log_posterior,
    mistakes={
        "the prior is forgotten":
            lambda e, w, p: _log_posterior(e, w, 0 * p),
        "the prior is added as a probability, not as its logarithm":
            lambda e, w, p: _log_posterior(e, w, p.exp()),
        "the prior is taken away, where it is to be added":
            lambda e, w, p: _log_posterior(e, w, -p),
        "the half before the integral is missing":
            lambda e, w, p: _log_posterior(e, w, p, half=1.0),
        "the width of the integral is missing":
            lambda e, w, p: _log_posterior(e, torch.ones_like(w), p),
        "half and width are missing: a mean error is no log-likelihood yet":
            lambda e, w, p: _log_posterior(e, torch.ones_like(w), p, half=1.0),
        "large errors make a class likely":
            lambda e, w, p: _log_posterior(-e, w, p),
        "the looks are summed, where an integral is the width times their mean":
            lambda e, w, p: _log_posterior(e * len(e), w, p),
        "it is not normalised: log-sum-exp over the classes is to be taken off":
            _unnormalised,
        "it runs over the batch, where the classes sum to one":
            lambda e, w, p: _unnormalised(e, w, p).log_softmax(0),
        "probabilities are returned, where their logarithms are asked":
            lambda e, w, p: _log_posterior(e, w, p).exp(),
        "the posteriors of single looks are averaged; the errors are":
            lambda e, w, p: (p - 0.5 * w * e).log_softmax(2).mean(0),
        "the probabilities of single looks are averaged; the errors are":
            lambda e, w, p: (p - 0.5 * w * e).log_softmax(2).exp().mean(0).log(),
        "the prior is added after the normalisation, so that it no longer sums to one":
            lambda e, w, p: p + _log_posterior(e, w, 0 * p),
        "scores are divided by their sum; it is their exponentials that sum to one":
            _shares_of_scores,
        "the best score is taken off, where the logarithm of a sum of exponentials is":
            _from_the_best,
        "it is divided by the width, where an integral is the width times a mean":
            lambda e, w, p: _log_posterior(e, 1 / w, p),
        "the errors are squared already":
            lambda e, w, p: _log_posterior(e.square(), w, p),
        "the prior multiplies the score; its logarithm is added":
            lambda e, w, p: (-0.5 * w * e.mean(0) * p).log_softmax(1),
        "half and width multiply the prior too":
            lambda e, w, p: _log_posterior(e, w, 0.5 * w * p),
        "the looks are summed and the width is missing; it is the width times a mean":
            lambda e, w, p: _log_posterior(e * len(e), torch.ones_like(w), p),
        "the prior is counted once a look":
            lambda e, w, p: _log_posterior(e, w, p * len(e)),
    },
)  # fmt: skip
