"""Guidance rules against the oracle: exact scales, exact classifiers, nestings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import NAMES, mixture, oracle
from torch.testing import assert_close

from diffedu import GaussianMixture, guidance, samplers, schedules

PATH = schedules.cosine()
X = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABEL = torch.tensor([0, 1, 1, 0, 1, 0, 1])
TIMES = (0.05, 0.5, 0.95)


def exact():
    return mixture().denoiser(PATH)


def classifier():
    return guidance.ExactClassifier(mixture(), PATH)


# Classifier-free guidance


@pytest.mark.parametrize("predicts", NAMES)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_scales_0_and_1_are_the_plain_models_bit_by_bit(predicts, scale):
    plain = oracle(PATH, predicts)
    label = LABEL if scale else None
    seen = guidance.ClassifierFree(plain, scale)(X, 0.5, label=LABEL)
    assert torch.equal(seen.value, plain(X, 0.5, label=label).value)


@pytest.mark.parametrize("predicts", NAMES)
@pytest.mark.parametrize("t", TIMES)
def test_guided_score_is_the_mixtures(predicts, t):
    seen = guidance.ClassifierFree(oracle(PATH, predicts), 2.5)(X, t, label=LABEL)
    noisy = mixture().at(PATH, t)
    for label in (0, 1):
        rows = LABEL == label
        truth = noisy.guided_score(X[rows], label, 2.5)
        assert_close(seen.score[rows], truth, atol=1e-6, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3))
def test_nested_scales_multiply(inner, outer):
    twice = guidance.ClassifierFree(guidance.ClassifierFree(exact(), inner), outer)
    once = guidance.ClassifierFree(exact(), inner * outer)
    seen, other = (rule(X, 0.4, label=LABEL).score for rule in (twice, once))
    assert_close(seen, other, atol=1e-9, rtol=1e-9)


def test_each_sample_may_have_its_own_scale():
    scales = torch.linspace(0, 3, 7)
    seen = guidance.ClassifierFree(exact(), scales)(X, 0.5, label=LABEL).eps
    for i, scale in enumerate(scales.tolist()):
        alone = guidance.ClassifierFree(exact(), scale)
        one = alone(X[i : i + 1], 0.5, label=LABEL[i : i + 1]).eps
        assert_close(seen[i : i + 1], one, atol=1e-6, rtol=1e-6)


def test_a_negative_condition_stands_in_for_none():
    other = torch.ones(7, dtype=torch.long)
    rule = guidance.ClassifierFree(exact(), 2.0, instead={"label": other})
    plain = exact()
    u, c = (plain(X, 0.5, label=y).eps for y in (other, torch.zeros_like(other)))
    assert_close(rule(X, 0.5, label=torch.zeros_like(other)).eps, 2 * c - u)


def test_without_a_condition_nothing_is_guided():
    seen = guidance.ClassifierFree(exact(), 5.0)(X, 0.5)
    assert_close(seen.eps, exact()(X, 0.5).eps, atol=1e-12, rtol=0)


def test_matches_the_form_that_pipelines_use():
    u, c = (exact()(X, 0.5, label=y).eps for y in (None, LABEL))
    seen = guidance.ClassifierFree(exact(), 7.5)(X, 0.5, label=LABEL).eps
    # diffusers' pipelines write it with guidance_scale times (text - uncond)
    assert_close(seen, u + 7.5 * (c - u))


# Classifier guidance


@pytest.mark.parametrize("predicts", NAMES)
@pytest.mark.parametrize("t", TIMES)
def test_exact_classifier_at_scale_1_gives_the_conditional_model(predicts, t):
    plain = oracle(PATH, predicts)
    guided = guidance.ClassifierGuidance(plain, classifier(), 1.0)
    seen, truth = guided(X, t, label=LABEL), plain(X, t, label=LABEL)
    assert_close(seen.score, truth.score, atol=1e-6, rtol=1e-6)
    assert seen.kind is truth.kind


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_both_rules_agree_on_exact_models(scale):
    by_classifier = guidance.ClassifierGuidance(exact(), classifier(), scale)
    free = guidance.ClassifierFree(exact(), scale)
    seen, other = (rule(X, 0.3, label=LABEL).v for rule in (by_classifier, free))
    assert_close(seen, other, atol=1e-6, rtol=1e-6)


def test_exact_classifier_is_bayes_rule():
    logits = classifier()(X, torch.full((7,), 0.4, dtype=torch.float64))
    truth = mixture().at(PATH, 0.4).class_posterior(X)
    assert_close(logits.softmax(1), truth)


def test_exact_classifier_takes_full_covariances():
    covariances = torch.tensor([[[1.0, 0.6], [0.6, 1.0]], [[0.5, -0.2], [-0.2, 0.4]]])
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.3]]).double()
    tilted = GaussianMixture([0.3, 0.7], means, covariances=covariances.double())
    logits = guidance.ExactClassifier(tilted, PATH)(X, 0.4)
    assert_close(logits.softmax(1), tilted.at(PATH, 0.4).class_posterior(X))


@pytest.mark.parametrize("t", [1.0, torch.tensor([1.0, 0.5]).double()])
def test_a_push_where_no_data_is_left_says_what_to_do(t):
    flow = schedules.flow()
    exact = guidance.ExactClassifier(mixture(), flow)
    rule = guidance.ClassifierGuidance(mixture().denoiser(flow), exact, 1.0)
    with pytest.raises(ValueError, match="Start at schedule.t_max"):
        rule(X[:2], t, label=LABEL[:2])


def test_samples_without_a_label_are_not_pushed():
    guided = guidance.ClassifierGuidance(exact(), classifier(), 4.0)
    keep = torch.tensor([True, False] * 3 + [True])
    for told in (
        {"label": torch.where(keep, LABEL, -1)},
        {"label": LABEL, "keep": keep},
    ):
        moved = (guided(X, 0.5, **told).eps - exact()(X, 0.5).eps).abs().sum(1) > 1e-9
        assert torch.equal(moved, keep)


def test_label_reaches_the_inner_denoiser_only_if_told_to():
    told = guidance.ClassifierGuidance(exact(), classifier(), 0.0, tell_inner=True)
    silent = guidance.ClassifierGuidance(exact(), classifier(), 0.0)
    assert_close(told(X, 0.5, label=LABEL).eps, exact()(X, 0.5, label=LABEL).eps)
    assert_close(silent(X, 0.5, label=LABEL).eps, exact()(X, 0.5).eps)


def test_a_sampler_without_gradients_takes_a_classifier():
    guided = guidance.ClassifierGuidance(exact(), classifier(), 1.0)
    times = samplers.time_grid(PATH, steps=6)
    seen = samplers.ddim(guided, X, times, label=LABEL)
    truth = samplers.ddim(exact(), X, times, label=LABEL)
    assert_close(seen, truth, atol=1e-6, rtol=1e-6)
    assert not seen.requires_grad


def test_gradients_flow_through_a_classifier_where_asked():
    guided = guidance.ClassifierGuidance(exact(), classifier(), 2.0)
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(guided(x, 0.5, label=LABEL).x0.sum(), x)
    step = 1e-5
    bumped = [guided(X + d, 0.5, label=LABEL).x0.sum() for d in (step, -step)]
    assert_close(
        slope.sum(), (bumped[0] - bumped[1]) / (2 * step), rtol=1e-5, atol=1e-5
    )


# Interval


def levels(t):
    alpha, sigma = PATH.coefficients(t)
    return (sigma / alpha).item()


def test_interval_guides_inside_and_only_there():
    rule = guidance.ClassifierFree(exact(), 3.0)
    limited = guidance.Interval(rule, levels(0.3), levels(0.7))
    for t, truth in ((0.29, exact()), (0.31, rule), (0.69, rule), (0.71, exact())):
        seen = limited(X, t, label=LABEL).value
        assert torch.equal(seen, truth(X, t, label=LABEL).value), t


def test_interval_in_log_snr_is_the_same_one_upside_down():
    rule = guidance.ClassifierFree(exact(), 3.0)
    by_sigma = guidance.Interval(rule, levels(0.3), levels(0.7))
    ends = (PATH.log_snr(t).item() for t in (0.7, 0.3))
    by_snr = guidance.Interval(rule, *ends, unit="log_snr")
    t = torch.linspace(0.05, 0.95, 41, dtype=torch.float64)
    assert torch.equal(by_sigma.inside(t), by_snr.inside(t))


def test_interval_with_a_time_for_each_sample():
    rule = guidance.ClassifierFree(exact(), 3.0)
    limited = guidance.Interval(rule, levels(0.3), levels(0.7))
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    seen = limited(X, t, label=LABEL).eps
    each = [limited(X[i : i + 1], t[i], label=LABEL[i : i + 1]).eps for i in range(7)]
    assert_close(seen, torch.cat(each), atol=1e-9, rtol=1e-9)


def test_interval_of_a_classifier_leaves_the_label_out():
    rule = guidance.ClassifierGuidance(exact(), classifier(), 3.0)
    limited = guidance.Interval(rule, 100.0, 200.0)
    assert_close(limited(X, 0.5, label=LABEL).eps, exact()(X, 0.5).eps)


def test_interval_in_an_interval_is_their_intersection():
    rule = guidance.ClassifierFree(exact(), 3.0)
    outer = guidance.Interval(guidance.Interval(rule, 0.2, 2.0), 0.5, 9.0)
    once = guidance.Interval(rule, 0.5, 2.0)
    for t in torch.linspace(0.05, 0.95, 19):
        seen, truth = (each(X, t, label=LABEL).value for each in (outer, once))
        assert torch.equal(seen, truth)


# Autoguidance


def blurred():
    """A worse model of the same data: everything half as wide again."""
    data = mixture()
    wide = 1.5 * data.spectrum[:, 0].sqrt()
    return GaussianMixture(data.weights, data.means, wide, data.labels).denoiser(PATH)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_autoguidance_at_0_and_1_is_one_of_the_two(scale):
    seen = guidance.Autoguidance(exact(), blurred(), scale)(X, 0.5, label=LABEL)
    truth = (exact() if scale else blurred())(X, 0.5, label=LABEL)
    assert torch.equal(seen.value, truth.value)


def test_weak_model_may_live_on_another_path():
    edm = schedules.edm()
    here = guidance.Autoguidance(exact(), blurred(), 2.0)
    there = guidance.Autoguidance(exact(), blurred().on(edm), 2.0)
    assert_close(here(X, 0.5).eps, there(X, 0.5).eps, atol=1e-6, rtol=1e-6)


def test_weak_model_may_predict_something_else():
    weak = oracle(PATH, "eps")
    seen = guidance.Autoguidance(oracle(PATH, "v"), weak, 3.0)(X, 0.5)
    assert_close(seen.eps, exact()(X, 0.5).eps, atol=1e-6, rtol=1e-6)


# Order of nesting


def test_what_is_inside_is_multiplied_by_what_is_outside():
    push = guidance.ClassifierGuidance(exact(), classifier(), 1.5, tell_inner=True)
    inside = guidance.ClassifierFree(push, 3.0)
    free = guidance.ClassifierFree(exact(), 3.0)
    outside = guidance.ClassifierGuidance(free, classifier(), 1.5, tell_inner=True)
    slope = push.gradient(X, 0.5, LABEL)
    gap = inside(X, 0.5, label=LABEL).score - outside(X, 0.5, label=LABEL).score
    assert_close(gap, (3.0 - 1.0) * 1.5 * slope, atol=1e-6, rtol=1e-6)


def test_interval_inside_and_outside_of_classifier_free_guidance_differ():
    push = guidance.ClassifierGuidance(exact(), classifier(), 1.0, tell_inner=True)
    within = guidance.ClassifierFree(guidance.Interval(push, 1e6, 2e6), 3.0)
    around = guidance.Interval(guidance.ClassifierFree(push, 3.0), 1e6, 2e6)
    plain = guidance.ClassifierFree(exact(), 3.0)
    seen = within(X, 0.5, label=LABEL).eps
    assert_close(seen, plain(X, 0.5, label=LABEL).eps)
    assert_close(around(X, 0.5, label=LABEL).eps, push(X, 0.5, label=LABEL).eps)


def test_all_rules_of_points_nest_under_every_sampler():
    rule = guidance.ClassifierFree(guidance.Autoguidance(exact(), blurred(), 1.5), 2.0)
    rule = guidance.EnergyGuidance(rule, lambda x0: x0[:, 0].square(), 0.5)
    rule = guidance.ClassifierGuidance(rule, classifier(), 0.5, tell_inner=True)
    rule = guidance.Interval(rule, 0.1, 5.0)
    times = samplers.time_grid(PATH, steps=4)
    for sampler in (samplers.ddim, samplers.heun, samplers.dpm_solver_pp_2m):
        end = sampler(rule, X, times, label=LABEL)
        assert end.shape == X.shape and end.isfinite().all()


# The registry

SURVEY = {
    "classifier guidance": (False, False, False),
    "classifier-free guidance": (True, False, False),
    "self-guidance": (True, True, False),
    "online guidance": (True, True, True),
}


def test_flags_are_the_surveys():
    flagged = {n: r.flags for n, r in guidance.RULES.items() if r.flags is not None}
    assert flagged == SURVEY


def test_table_prints_what_is_there_and_what_is_to_come():
    rows = {row[0]: row[1:] for row in guidance.table_1()}
    assert list(rows) == list(SURVEY)
    assert rows["classifier-free guidance"][-1] == "guidance.ClassifierFree"
    assert rows["online guidance"][-1] == "to come"
    assert rows["self-guidance"][:3] == ("✓", "✓", "✗")


def test_registered_code_is_public_and_every_rule_is_registered():
    coded = {r.code for r in guidance.RULES.values() if r.code is not None}
    assert all(getattr(guidance, code.__name__) is code for code in coded)
    public = [getattr(guidance, name) for name in guidance.__all__]
    rules = {c for c in public if isinstance(c, type)}
    rules = {c for c in rules if issubclass(c, guidance.Guidance)}
    assert rules - {guidance.Guidance} == coded


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guidance.ClassifierFree(exact(), float("nan")), "must be a number"),
        (lambda: guidance.ClassifierFree(exact(), "3"), "plain conditional"),
        (lambda: guidance.ClassifierFree(exact(), torch.ones(2, 2)), "shape"),
        (lambda: guidance.ClassifierFree(torch.nn.Linear(2, 2), 1.0), "no denoiser"),
        (lambda: guidance.ClassifierGuidance(exact(), 3, 1.0), "is called"),
        (lambda: guidance.Interval(exact(), 0.0, 1.0), "limits a guidance rule"),
        (lambda: guidance.Interval(guidance.ClassifierFree(exact(), 2.0), 2.0, 1.0),
         "is empty"),
        (lambda: guidance.Interval(guidance.ClassifierFree(exact(), 2.0), 0.0, 1.0,
                                   unit="sigmas"), 'did you mean "sigma"'),
        (lambda: guidance.Autoguidance(exact(), None, 2.0), "no denoiser"),
        (lambda: guidance.EnergyGuidance(exact(), None, 2.0), "energy"),
        (lambda: guidance.TimeTravel(exact(), -1), "repeats"),
        (lambda: guidance.TimeTravel(exact(), 1, low=0.9, high=0.1), "low <= high"),
        (lambda: guidance.TimeTravel(exact(), 1, eta=2.0), "eta"),
    ],
)  # fmt: skip
def test_bad_rules_say_what_is_accepted(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_answers_say_what_is_accepted():
    flat = guidance.ClassifierGuidance(exact(), lambda x, t: x.sum(1), 1.0)
    with pytest.raises(ValueError, match="logits need shape"):
        flat(X, 0.5, label=LABEL)
    whole = guidance.EnergyGuidance(exact(), lambda x0: x0.square().sum(), 1.0)
    with pytest.raises(ValueError, match="energy needs shape"):
        whole(X, 0.5)
