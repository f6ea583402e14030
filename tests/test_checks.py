"""The checks' mechanism: right answers in any style, and mistakes by kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffedu.checks.machinery import CheckFailed, Exercise, Property


def _inputs(generator):
    n = int(torch.randint(4, 9, (), generator=generator))
    x, eps = torch.randn(2, n, 3, generator=generator)
    return {"x": x, "eps": eps, "abar": 0.1 + 0.8 * torch.rand(n, generator=generator)}


def _noised(x, eps, abar):
    a = abar[:, None]
    return a.sqrt() * x + (1 - a).sqrt() * eps


def _rootless(x, eps, abar):
    a = abar[:, None]
    return a.sqrt() * x + (1 - a) * eps


NOISED = Exercise(
    "noised",
    draw=_inputs,
    truth=_noised,
    mistakes={
        "never fits, because it is right": _noised,
        "can't be evaluated": lambda x, eps, abar: 1 / 0,
        "the square root of 1 - alpha_bar is missing": _rootless,
    },
)


def told(answer, exercise=NOISED, **kwargs):
    with pytest.raises(CheckFailed) as failure:
        exercise(answer, **kwargs)
    return str(failure.value)


def _loop(x, eps, abar):
    rows = [
        math.sqrt(a) * u + math.sqrt(1 - a) * v
        for u, v, a in zip(x, eps, abar, strict=True)
    ]
    return torch.stack(rows)


RIGHT = {
    "as the truth": _noised,
    "a loop over samples": _loop,
    "in float64": lambda x, eps, a: _noised(x.double(), eps.double(), a.double()),
    "in numpy": lambda x, eps, a: _noised(x, eps, a).numpy(),
    "another operation order": lambda x, eps, a: (
        a[:, None] ** 0.5 * (x + ((1 - a) / a).sqrt()[:, None] * eps)
    ),
    "expanded": lambda x, eps, a: (
        torch.einsum("b,bd->bd", a.sqrt(), x)
        + torch.einsum("b,bd->bd", (1 - a).sqrt(), eps)
    ),
    "with a gradient": lambda x, eps, a: _noised(x.requires_grad_(), eps, a),
    "with other names and defaults": lambda u, v, w, extra=0: _noised(u, v, w),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("style", RIGHT)
def test_right_answers_of_any_style_pass(style, dtype, capsys):
    for _ in range(5):
        NOISED(RIGHT[style], dtype=dtype)
    assert capsys.readouterr().out == "✓ noised\n" * 5


def test_a_known_mistake_is_named():
    wanted = "looks like the square root of 1 - alpha_bar is missing"
    assert wanted in told(_rootless)


def test_each_call_draws_fresh_inputs():
    seen = []
    for _ in range(2):
        NOISED(lambda *inputs: seen.append(inputs[0]) or _noised(*inputs))
    assert not torch.equal(seen[0][:3], seen[NOISED.draws][:3])


def test_a_seed_draws_the_same_again():
    seen = []
    for _ in range(2):
        NOISED(lambda *i: seen.append(i[0].clone()) or _noised(*i), seed=3)
    assert torch.equal(seen[0], seen[NOISED.draws])


def _stub(x, eps, abar):
    raise NotImplementedError()


def _broken(x, eps, abar):
    return x[:, 7]


def _in_place(x, eps, abar):
    x *= abar.sqrt()[:, None]
    x += (1 - abar).sqrt()[:, None] * eps
    return x


def _mixed(x, eps, abar):
    return abar.mean().sqrt() * x + (1 - abar.mean()).sqrt() * eps


def _nan(x, eps, abar):
    return _noised(x, eps, abar) + (abar - 2).sqrt()[:, None]


def _some(x, eps, abar):
    out = _noised(x, eps, abar)
    out[::2] = 0.5
    return out


LADDER = [
    (_stub, "not written yet"),
    (_noised(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2)), "without calling it"),
    (lambda x, eps, abar: None, "returned None"),
    (lambda x, eps: x, "takes (x, eps), but is called with (x, eps, abar)"),
    (_broken, "raised IndexError"),
    (_broken, "at `return x[:, 7]`"),
    (lambda x, eps, abar: "x", "returned a str, which is no number"),
    (lambda x, eps, abar: (x, eps), "returned a tuple of 2, not a tensor"),
    (lambda x, eps, abar: abar, "the result has shape ("),
    (lambda x, eps, abar: x.to(torch.complex64), "the result is complex"),
    (_nan, "values are NaN"),
    (lambda x, eps, abar: _noised(x, eps, abar) / 0, "infinite"),
    (lambda *i: -_noised(*i), "wrong sign"),
    (lambda *i: _noised(*i).abs(), "some signs are wrong"),
    (lambda *i: 3 * _noised(*i), "constant factor"),
    (lambda *i: i[0].sum() * _noised(*i), "factor that changes with the inputs"),
    (lambda *i: i[0].numel() * _noised(*i), "sums where a mean is asked"),
    (lambda *i: _noised(*i) / i[0].numel(), "takes a mean where a sum is asked"),
    (lambda *i: _noised(*i) + 2, "one and the same amount"),
    (lambda *i: torch.full_like(i[0], 2.0), "same value everywhere"),
    (lambda *i: _noised(*i).flip(0), "runs backwards"),
    (lambda *i: _noised(*i).roll(1, 0), "one too late"),
    (lambda *i: _noised(*i).roll(-1, 0), "one too early"),
    (lambda *i: torch.cat([_noised(*i)[:-1], i[0][-1:]]), "but for the last index"),
    (lambda *i: _noised(*i) * 0, "0 everywhere"),
    (_in_place, "changes its input x"),
    (_mixed, "samples of a batch are mixed"),
    (_some, "right for some samples of the batch"),
    (lambda *i: _noised(*i) + 3e-3 * i[0], "nearly right"),
    (lambda x, eps, abar: x.cumsum(0) ** 2, "its values are wrong"),
]


@pytest.mark.parametrize(("answer", "words"), LADDER)
def test_general_mistakes_are_told_by_kind(answer, words):
    for seed in range(3):
        assert words in told(answer, seed=1000 * seed)


def _positive(generator):
    n = int(torch.randint(4, 9, (), generator=generator))
    return {"a": 0.1 + torch.rand(n, n, generator=generator)}


FORMS = [
    (lambda a: a**2, "is the square of what is asked"),
    (lambda a: a.sqrt(), "is the square root of what is asked"),
    (lambda a: 1 / a, "one over"),
    (lambda a: 1 - a, "one minus"),
    (lambda a: a.exp(), "logarithm is missing"),
    (lambda a: a.log(), "exponential is missing"),
    (lambda a: a.mT, "transposed"),
]


@pytest.mark.parametrize(("answer", "words"), FORMS)
def test_forms_are_recognised(answer, words):
    plain = Exercise("plain", draw=_positive, truth=lambda a: a)
    assert words in told(answer, plain)


def test_no_message_holds_an_expected_value():
    secret = Exercise("secret", truth=lambda: 0.7316)
    answers = [lambda v=v: v for v in (0.1, -0.7316, 1.4632, 0.7317, "a", None)]
    for answer in answers[:3] + answers[4:]:
        assert "73" not in told(answer, secret)


def test_numbers_tensors_of_one_element_and_arrays_are_alike():
    number = Exercise("number", truth=lambda: 2.5)
    for value in (2.5, torch.tensor(2.5), torch.tensor([2.5]), np.float64(2.5)):
        number(lambda value=value: value)


def _two(x, eps, abar):
    return x.mean(0), x.var(0)


TWO = Exercise(
    "two",
    draw=_inputs,
    truth=_two,
    returns=("mean", "variance"),
    mistakes={"mean and variance are exchanged": lambda *i: _two(*i)[::-1]},
)


def test_parts_of_a_tuple_are_named():
    TWO(lambda *i: list(_two(*i)))
    assert told(lambda *i: (i[0].mean(0), -i[0].var(0)), TWO) == (
        "two: variance: it has the wrong sign"
    )
    assert "exchanged" in told(lambda *i: _two(*i)[::-1], TWO)
    assert "not a tuple of 2" in told(lambda *i: _two(*i)[0], TWO)


def test_dicts_are_compared_by_key():
    exercise = Exercise("d", draw=_positive, truth=lambda a: {"sum": a.sum(), "a": a})
    exercise(lambda a: {"a": a, "sum": float(a.sum())})
    words = told(lambda a: {"sum": a.sum() / 3, "a": a}, exercise)
    assert "'sum'" in words and "constant factor" in words
    assert "a dict with keys 'a', not" in told(lambda a: {"a": a}, exercise)


def test_functions_may_be_inputs_and_results():
    def draw(generator):
        shift = torch.randn(3, generator=generator)
        return {"denoise": lambda x: x - shift, "x": torch.randn(3)}

    exercise = Exercise(
        "twice",
        draw=lambda g: {**draw(g), "x": torch.randn(3, generator=g)},
        truth=lambda denoise, x: lambda: denoise(denoise(x)),
        probe=lambda result: result(),
    )
    exercise(lambda denoise, x: lambda: denoise(denoise(x)), dtype=torch.float64)
    assert "raised TypeError" in told(lambda denoise, x: x, exercise)


def test_noise_of_a_generator_is_the_same_for_answer_and_truth():
    exercise = Exercise(
        "noise",
        draw=lambda g: {"x": torch.zeros(5), "generator": g},
        truth=lambda x, g: x + torch.randn(x.shape, generator=g, dtype=x.dtype),
    )
    for dtype in (torch.float32, torch.float64):
        exercise(lambda x, g: torch.randn(5, generator=g, dtype=x.dtype), dtype=dtype)


def test_modules_follow_the_dtype():
    net = torch.nn.Linear(3, 3)
    exercise = Exercise(
        "net",
        draw=lambda g: {"net": net, "x": torch.randn(2, 3, generator=g)},
        truth=lambda net, x: net(x),
    )
    exercise(lambda net, x: net(x), dtype=torch.float64)
    assert net.weight.dtype == torch.float32


def test_relative_tolerance_sees_small_elements():
    table = Exercise("t", truth=lambda: torch.tensor([1.0, 4e-5]), relative=True)
    table(lambda: torch.tensor([1.0, 4e-5]))
    assert told(lambda: torch.tensor([1.0, 8e-5]), table)


def _rises(f, generator):
    t = torch.rand(50, generator=generator).sort().values
    return bool((f(t).diff() <= 0).all())


FALLING = Exercise(
    "falling",
    properties=(
        Property("it does not begin at 1", lambda f, g: float(f(torch.zeros(1))) == 1),
        Property("it rises somewhere: time runs backwards", _rises),
    ),
)


def test_properties_are_asked_in_order():
    FALLING(lambda t: 1 - t)
    assert told(lambda t: t, FALLING) == "falling: it does not begin at 1"
    assert "time runs backwards" in told(lambda t: 1 + t, FALLING)
    assert "not written yet" in told(lambda t: _stub(t, t, t), FALLING)
    assert "raised ZeroDivisionError" in told(lambda t: 1 / 0, FALLING)


def test_a_check_needs_something_to_check():
    with pytest.raises(ValueError, match='"empty" has neither a truth nor'):
        Exercise("empty")


def test_a_failed_check_is_one_line_in_a_notebook():
    (line,) = CheckFailed("noised: it has the wrong sign")._render_traceback_()
    assert "✗ noised: it has the wrong sign" in line


def test_success_is_green_in_a_notebook(monkeypatch, capsys):
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    NOISED(_noised)
    assert capsys.readouterr().out == "\x1b[32m✓ noised\x1b[0m\n"
