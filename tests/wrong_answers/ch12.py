"""Wrong answers to chapter 12's exercises, and what the reader is told."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def errors_of(predict, x0, alpha, sigma, eps, classes, noise=None, measure=None):
    noise = noise or (lambda j, c: eps[j])
    measure = measure or (lambda gap: gap.square().sum(1))
    out = x0.new_zeros(len(x0), classes)
    for j in range(len(alpha)):
        for c in range(classes):
            e = noise(j, c)
            seen = predict(alpha[j] * x0 + sigma[j] * e, j, c)
            out[:, c] += measure(seen - e) / len(alpha)
    return out


def error_unpaired(predict, x0, alpha, sigma, eps, classes):
    errors = errors_of(
        predict, x0, alpha, sigma, eps, classes, lambda j, c: eps[(j + c) % len(eps)]
    )
    return errors, errors.argmin(1)


def error_one_noise(predict, x0, alpha, sigma, eps, classes):
    errors = errors_of(predict, x0, alpha, sigma, eps, classes, lambda j, c: eps[0])
    return errors, errors.argmin(1)


def error_largest(*inputs):
    errors = errors_of(*inputs)
    return errors, errors.argmax(1)


def error_for_batch(*inputs):
    errors = errors_of(*inputs)
    return errors, errors.mean(0).argmin().repeat(len(errors))


def error_exchanged(predict, x0, alpha, sigma, eps, classes):
    errors = errors_of(predict, x0, sigma, alpha, eps, classes)
    return errors, errors.argmin(1)


def error_unsquared(*inputs):
    errors = errors_of(*inputs, measure=lambda gap: gap.norm(dim=1))
    return errors, errors.argmin(1)


def error_absolute(*inputs):
    errors = errors_of(*inputs, measure=lambda gap: gap.abs().sum(1))
    return errors, errors.argmin(1)


def error_mean(*inputs):
    errors = errors_of(*inputs, measure=lambda gap: gap.square().mean(1))
    return errors, errors.argmin(1)


def error_sum(*inputs):
    errors = errors_of(*inputs)
    return errors * len(inputs[2]), errors.argmin(1)


def error_of_data(predict, x0, alpha, sigma, eps, classes):
    def seen(x, j, c):
        return predict(x, j, c) + eps[j] - x0

    errors = errors_of(seen, x0, alpha, sigma, eps, classes)
    return errors, errors.argmin(1)


def error_overwritten(predict, x0, alpha, sigma, eps, classes):
    errors = x0.new_zeros(len(x0), classes)
    for j in range(len(eps)):
        x_t = alpha[j] * x0 + sigma[j] * eps[j]
        for c in range(classes):
            errors[:, c] = (predict(x_t, j, c) - eps[j]).square().sum(1)
    return errors / len(eps), errors.argmin(1)


def error_of_noisy(predict, x0, alpha, sigma, eps, classes):
    def seen(x, j, c):
        return predict(x, j, c) + eps[j] - x

    errors = errors_of(seen, x0, alpha, sigma, eps, classes)
    return errors, errors.argmin(1)


def error_one_class(predict, *rest):
    errors = errors_of(lambda x, j, c: predict(x, j, 0), *rest)
    return errors, errors.argmin(1)


def error_over_batch(*inputs):
    errors = errors_of(*inputs, measure=lambda gap: gap.square().sum())
    return errors, errors.argmin(1)


def error_roots(predict, x0, alpha, sigma, eps, classes):
    errors = errors_of(predict, x0, alpha.sqrt(), sigma.sqrt(), eps, classes)
    return errors, errors.argmin(1)


def error_unscaled(predict, x0, alpha, sigma, eps, classes):
    errors = errors_of(predict, x0, torch.ones_like(alpha), sigma, eps, classes)
    return errors, errors.argmin(1)


def error_voted(predict, x0, alpha, sigma, eps, classes):
    votes = torch.zeros(len(x0), classes)
    for j in range(len(eps)):
        x_t = alpha[j] * x0 + sigma[j] * eps[j]
        gaps = [predict(x_t, j, c) - eps[j] for c in range(classes)]
        least = torch.stack(gaps).square().sum(2).argmin(0)
        votes[range(len(x0)), least] += 1
    return errors_of(predict, x0, alpha, sigma, eps, classes), votes.argmax(1)


def error_for_class(*inputs):
    errors = errors_of(*inputs)
    return errors, errors.min(1).values


def kept(total, alive, keep):
    least = total.masked_fill(~alive, torch.inf).topk(keep, 1, largest=False).indices
    return torch.zeros_like(alive).scatter(1, least, True)


def kept_resurrected(total, alive, keep):
    return kept(total, torch.ones_like(alive), keep)


def kept_largest(total, alive, keep):
    most = total.masked_fill(~alive, -torch.inf).topk(keep, 1).indices
    return torch.zeros_like(alive).scatter(1, most, True)


def kept_without(total, alive, keep):
    return alive & ~kept_largest(total, alive, keep)


def kept_for_batch(total, alive, keep):
    least = total.mean(0).topk(keep, largest=False).indices
    out = torch.zeros_like(alive)
    out[:, least] = True
    return out


def kept_exchanged(total, alive, keep):
    return alive & ~kept(total, alive, keep)


def kept_by_index(total, alive, keep):
    return total.masked_fill(~alive, torch.inf).argsort(1) < keep


def kept_too_late(total, alive, keep):
    return kept_resurrected(total, alive, keep) & alive


def posterior_with(errors, width, log_prior):
    return torch.log_softmax(log_prior - width / 2 * errors.mean(0), 1)


def posterior_without_prior(errors, width, log_prior):
    return posterior_with(errors, width, torch.zeros_like(log_prior))


def posterior_with_shares(errors, width, log_prior):
    return posterior_with(errors, width, log_prior.exp())


def posterior_without_half(errors, width, log_prior):
    return posterior_with(errors, 2 * width, log_prior)


def posterior_unweighted(errors, width, log_prior):
    return torch.log_softmax(log_prior - errors.mean(0), 1)


def posterior_upside_down(errors, width, log_prior):
    return posterior_with(-errors, width, log_prior)


def posterior_of_sum(errors, width, log_prior):
    return torch.log_softmax(log_prior - width / 2 * errors.sum(0), 1)


def posterior_raw(errors, width, log_prior):
    return log_prior - width / 2 * errors.mean(0)


def posterior_over_batch(errors, width, log_prior):
    return torch.log_softmax(log_prior - width / 2 * errors.mean(0), 0)


def posterior_as_shares(errors, width, log_prior):
    return posterior_with(errors, width, log_prior).exp()


def posterior_averaged(errors, width, log_prior):
    return torch.log_softmax(log_prior - width / 2 * errors, 2).mean(0)


def posterior_late_prior(errors, width, log_prior):
    return log_prior + posterior_without_prior(errors, width, log_prior)


def posterior_shares(errors, width, log_prior):
    score = posterior_raw(errors, width, log_prior)
    return score / score.sum(1, keepdim=True)


def posterior_from_best(errors, width, log_prior):
    score = posterior_raw(errors, width, log_prior)
    return score - score.max(1, keepdim=True).values


def posterior_mixed(errors, width, log_prior):
    looks = torch.softmax(log_prior - width / 2 * errors, 2)
    return looks.mean(0).log()


def posterior_divided(errors, width, log_prior):
    return torch.log_softmax(log_prior - errors.mean(0) / (2 * width), 1)


def posterior_squared(errors, width, log_prior):
    return posterior_with(errors.square(), width, log_prior)


def posterior_prior_times(errors, width, log_prior):
    return torch.log_softmax(-log_prior * width / 2 * errors.mean(0), 1)


def posterior_all_halved(errors, width, log_prior):
    return torch.log_softmax(-width / 2 * (errors.mean(0) - log_prior), 1)


def posterior_sum_without_width(errors, width, log_prior):
    return torch.log_softmax(log_prior - errors.sum(0) / 2, 1)


def gradient(logits, arms, weights, axis=1):
    push = F.one_hot(arms, logits.shape[1]) - logits.softmax(axis)
    return weights[:, None] * push / len(logits)


def others(rewards):
    return (rewards.sum() - rewards) / (len(rewards) - 1)


def gradient_down(logits, arms, rewards):
    return -gradient(logits, arms, rewards - others(rewards))


def gradient_own_reward(logits, arms, rewards):
    return gradient(logits, arms, rewards - rewards.mean())


def gradient_no_baseline(logits, arms, rewards):
    return gradient(logits, arms, rewards)


def gradient_summed(logits, arms, rewards):
    return gradient(logits, arms, rewards - others(rewards)) * len(rewards)


def gradient_added(logits, arms, rewards):
    return gradient(logits, arms, rewards + others(rewards))


def gradient_without_softmax(logits, arms, rewards):
    push = F.one_hot(arms, logits.shape[1]) - logits
    return (rewards - others(rewards))[:, None] * push / len(logits)


def gradient_of_the_drawn_arm(logits, arms, rewards):
    push = F.one_hot(arms, logits.shape[1]).to(rewards.dtype)
    return (rewards - others(rewards))[:, None] * push / len(logits)


def gradient_of_probability(logits, arms, rewards):
    shares = logits.softmax(1)[range(len(arms)), arms]
    return gradient(logits, arms, (rewards - others(rewards)) * shares)


def gradient_over_samples(logits, arms, rewards):
    return gradient(logits, arms, rewards - others(rewards), axis=0)


def gradient_own_summed(logits, arms, rewards):
    return gradient_own_reward(logits, arms, rewards) * len(rewards)


def gradient_plain_summed(logits, arms, rewards):
    return gradient(logits, arms, rewards) * len(rewards)


def gradient_one_less(logits, arms, rewards):
    summed = gradient_summed(logits, arms, rewards)
    return summed / (len(rewards) - 1)


def gradient_others_by_all(logits, arms, rewards):
    baseline = (rewards.sum() - rewards) / len(rewards)
    return gradient(logits, arms, rewards - baseline)


def gradient_sum_of_others(logits, arms, rewards):
    return gradient(logits, arms, rewards - (rewards.sum() - rewards))


def gradient_standardised(logits, arms, rewards):
    return gradient(logits, arms, (rewards - rewards.mean()) / rewards.std())


def gradient_of_ratio(logits, arms, rewards):
    push = F.one_hot(arms, logits.shape[1]) / logits.softmax(1) - 1
    return (rewards - others(rewards))[:, None] * push / len(rewards)


def gradient_one_logit(logits, arms, rewards):
    push = F.one_hot(arms, logits.shape[1]) * (1 - logits.softmax(1))
    return (rewards - others(rewards))[:, None] * push / len(rewards)


def gradient_with_logs(logits, arms, rewards):
    push = F.one_hot(arms, logits.shape[1]) - logits.log_softmax(1)
    return (rewards - others(rewards))[:, None] * push / len(rewards)


def level_loss(predicted, teacher, axes=1, eps=1e-5):
    losses = []
    for p, h in zip(predicted, teacher, strict=True):
        h = h.detach()
        spread = (h.var(axes, keepdim=True, correction=0) + eps).sqrt()
        aim = (h - h.mean(axes, keepdim=True)) / spread
        losses.append(F.mse_loss(p, aim))
    return losses


def loss_summed(predicted, teacher):
    return sum(level_loss(predicted, teacher))


def loss_over_maps(predicted, teacher):
    return torch.stack(level_loss(predicted, teacher, axes=(1, 2, 3))).mean()


def loss_over_places(predicted, teacher):
    return torch.stack(level_loss(predicted, teacher, axes=(2, 3))).mean()


def loss_raw(predicted, teacher):
    pairs = zip(predicted, teacher, strict=True)
    return torch.stack([F.mse_loss(p, t.detach()) for p, t in pairs]).mean()


def loss_student_normalised(predicted, teacher):
    return torch.stack(level_loss(teacher, predicted)).mean()


def loss_into_teacher(predicted, teacher):
    losses = []
    for p, h in zip(predicted, teacher, strict=True):
        spread = (h.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        losses.append(F.mse_loss(p, (h - h.mean(1, keepdim=True)) / spread))
    return torch.stack(losses).mean()


def loss_detached(predicted, teacher):
    return torch.stack(level_loss([p.detach() for p in predicted], teacher)).mean()


def loss_by(measure, change):
    def loss(predicted, teacher):
        pairs = zip(predicted, teacher, strict=True)
        return torch.stack([measure(p - change(h.detach())) for p, h in pairs]).mean()

    return loss


def white(h):
    return F.layer_norm(h.movedim(1, -1), (h.shape[1],)).movedim(-1, 1)


def mean_square(gap):
    return gap.square().mean()


def channel_sum(gap):
    return gap.square().sum(1).mean()


WRONG = {
    "least_error": [
        (error_unpaired, "must share the draw"),
        (error_one_noise, "one draw of noise serves all"),
        (error_largest, "largest error is taken"),
        (error_for_batch, "chosen for the whole batch"),
        (error_exchanged, "alpha and sigma are exchanged"),
        (error_unsquared, "the error is not squared"),
        (error_absolute, "absolute values are summed"),
        (error_mean, "averaged over the coordinates"),
        (error_sum, "the looks are summed"),
        (error_of_data, "compared with the clean data"),
        (error_of_noisy, "compared with the noisy data"),
        (error_overwritten, "each look overwrites the one before"),
        (error_one_class, "told the first class's number"),
        (error_over_batch, "summed over the batch"),
        (error_roots, "roots of alpha and sigma are taken"),
        (error_unscaled, "not scaled by alpha"),
        (error_voted, "each look has a vote"),
        (error_for_class, "the least error is answered"),
        (lambda *inputs: None, "returned None"),
    ],
    "survivors": [
        (kept_resurrected, "come back"),
        (kept_largest, "largest errors are kept"),
        (kept_without, "so many are to stay"),
        (kept_for_batch, "for the whole batch"),
        (kept_exchanged, "are exchanged"),
        (kept_by_index, "not the place of a class"),
        (kept_too_late, "struck out only afterwards"),
        (lambda total, alive, keep: kept(total, alive, 1), "only the best class"),
        (lambda total, alive, keep: alive, "nothing is dropped"),
        (lambda total, alive, keep: kept(total, alive, keep + 1), "one class too many"),
        (lambda total, alive, keep: kept(total, alive, keep - 1), "one class too few"),
    ],
    "posterior": [
        (posterior_without_prior, "prior is forgotten"),
        (posterior_with_shares, "not as its logarithm"),
        (posterior_without_half, "half before the integral"),
        (posterior_unweighted, "half and width are missing"),
        (posterior_upside_down, "large errors make a class likely"),
        (posterior_of_sum, "width times their mean"),
        (posterior_raw, "not normalised"),
        (posterior_over_batch, "over the batch"),
        (posterior_as_shares, "where their logarithms are asked"),
        (posterior_averaged, "the posteriors of single looks are averaged"),
        (posterior_mixed, "the probabilities of single looks are averaged"),
        (posterior_late_prior, "added after the normalisation"),
        (posterior_shares, "it is their exponentials that sum to one"),
        (posterior_from_best, "the best score is taken off"),
        (posterior_divided, "it is divided by the width"),
        (posterior_squared, "the errors are squared already"),
        (posterior_prior_times, "the prior multiplies the score"),
        (posterior_all_halved, "multiply the prior too"),
        (posterior_sum_without_width, "summed and the width is missing"),
    ],
    "policy_gradient": [
        (gradient_down, "the sign is that of a loss"),
        (gradient_own_reward, "contains the sample's own reward"),
        (gradient_no_baseline, "no baseline is taken away"),
        (gradient_summed, "the samples are summed"),
        (gradient_added, "the baseline is added"),
        (gradient_without_softmax, "the softmax is missing"),
        (gradient_of_the_drawn_arm, "only the arm that was drawn is pushed"),
        (gradient_of_probability, "it is the gradient of the probability"),
        (gradient_over_samples, "the softmax is taken over the samples"),
        (gradient_own_summed, "own reward, and the samples are summed"),
        (gradient_plain_summed, "no baseline is taken away, and the samples"),
        (gradient_one_less, "the mean over samples divides by B - 1"),
        (gradient_others_by_all, "the baseline divides by B, but"),
        (gradient_sum_of_others, "the baseline is the sum of the others"),
        (gradient_standardised, "divided by their deviation"),
        (gradient_of_ratio, "divided by the probabilities as well"),
        (gradient_one_logit, "the other logits enter log pi too"),
        (gradient_with_logs, "logarithms of probabilities stand"),
    ],
    "regression_loss": [
        (loss_summed, "the levels are summed"),
        (loss_over_maps, "over the whole map"),
        (loss_over_places, "channel by channel"),
        (loss_raw, "the teacher is not normalised"),
        (loss_student_normalised, "the student's answer is normalised, and the"),
        (loss_into_teacher, "a gradient reaches the teacher"),
        (loss_detached, "no gradient reaches the student"),
        (loss_by(channel_sum, white), "squares are summed over the channels"),
        (loss_by(lambda gap: mean_square(gap).sqrt(), white), "a root of the mean"),
        (loss_by(mean_square, lambda h: F.layer_norm(h, h.shape[-1:])), "last axis"),
        (loss_by(mean_square, lambda h: h - h.mean(1, keepdim=True)), "and nothing is"),
        (loss_by(mean_square, lambda h: F.normalize(h, dim=1)), "length one"),
        (lambda p, t: level_loss(p, t)[0], "only the first level counts"),
        (lambda p, t: level_loss(p, t)[-1], "only the last level counts"),
    ],
}
