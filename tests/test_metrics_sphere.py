"""Alignment and uniformity: their definitions, closed forms and limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import iv, loggamma

from diffedu.metrics import alignment, sphere, uniformity


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), power=st.floats(0.5, 4), t=st.floats(0.1, 5))
def test_definitions_in_loops(seed, power, t):
    a, b = draw(seed, 7, 3), draw(seed + 1, 7, 3)
    u, v = ([row / row.norm() for row in x] for x in (a, b))
    gaps = [(p - q).norm() ** power for p, q in zip(u, v, strict=True)]
    torch.testing.assert_close(alignment(a, b, power), torch.stack(gaps).mean())
    pairs = [
        torch.exp(-t * (u[i] - u[j]).norm() ** 2)
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    torch.testing.assert_close(uniformity(a, t), torch.stack(pairs).mean().log())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_rotation_and_length_change_nothing(seed):
    a, b = draw(seed, 9, 4), draw(seed + 1, 9, 4)
    turn = torch.linalg.qr(draw(seed + 2, 4, 4)).Q
    length = draw(seed + 3, 9, 1).exp()
    torch.testing.assert_close(alignment(length * a @ turn, b @ turn), alignment(a, b))
    torch.testing.assert_close(uniformity(length * a @ turn), uniformity(a))


def test_worked_out_cases():
    x, one = draw(0, 6, 4), torch.ones(6, 4, dtype=torch.float64)
    assert float(alignment(x, x)) == 0
    assert float(alignment(x, -x)) == pytest.approx(4)
    assert float(alignment(x, -x, power=1)) == pytest.approx(2)
    assert float(uniformity(one)) == pytest.approx(0, abs=1e-12)
    assert float(uniformity(torch.stack([x[0], -x[0]]), t=3)) == pytest.approx(-12)
    axes = torch.eye(5, dtype=torch.float64)
    assert float(uniformity(axes)) == pytest.approx(-4)


@pytest.mark.parametrize("dim", [3, 10])
def test_uniform_points_reach_the_integral(dim):
    """E exp(2 t u.v) of uniform directions is a Bessel function."""
    t, order = 2.0, dim / 2 - 1
    inner = loggamma(dim / 2) + math.log(iv(order, 2 * t)) - order * math.log(t)
    expected = -2 * t + inner
    found = float(uniformity(draw(0, 3000, dim), t))
    assert found == pytest.approx(expected, abs=0.02)
    assert float(uniformity(draw(0, 3000, dim) + 1, t)) > expected + 0.1


def test_blocks_change_nothing(monkeypatch):
    x = draw(0, 50, 3)
    whole = uniformity(x)
    monkeypatch.setattr(
        sphere,
        "row_blocks",
        lambda n, width: [slice(i, min(i + 7, n)) for i in range(0, n, 7)],
    )
    torch.testing.assert_close(uniformity(x), whole)


def test_half_precision_is_summed_in_double():
    x, y = draw(0, 40, 6).half(), draw(1, 40, 6).half()
    assert uniformity(x).dtype == alignment(x, y).dtype == torch.float16
    assert float(uniformity(x)) == pytest.approx(
        float(uniformity(x.double())), rel=1e-3
    )


@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda: alignment(draw(0, 3, 2), draw(0, 4, 2)), ValueError, "b has 4"),
        (
            lambda: alignment(draw(0, 3, 2), draw(0, 3, 4)),
            ValueError,
            "b has 4",
        ),
        (lambda: alignment(draw(0, 3, 2), draw(0, 3, 2), 0), ValueError, "power"),
        (
            lambda: alignment(draw(0, 3, 2), 0 * draw(0, 3, 2)),
            ValueError,
            "3 rows of b",
        ),
        (lambda: uniformity(draw(0, 1, 2)), ValueError, "1 samples"),
        (lambda: uniformity(draw(0, 3, 2), -1), ValueError, "t is"),
        (lambda: uniformity(draw(0, 3, 2) * torch.nan), ValueError, "NaN"),
        (lambda: uniformity(torch.zeros(3, 2)), ValueError, "no direction"),
        (lambda: uniformity(torch.ones(3, 2).int()), TypeError, "int32"),
    ],
)
def test_mistakes_are_answered(call, error, says):
    with pytest.raises(error, match=says):
        call()
