"""The linear probe: right answers, no leak, chance where there is nothing to read."""

from __future__ import annotations

import pytest
import torch

from diffedu import metrics


def clusters(seed: int, n: int = 300, gap: float = 2.0, classes: int = 3):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return x + gap * torch.nn.functional.one_hot(y, 6), y


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probe(train, test, **options) -> metrics.LinearProbe:
    return metrics.linear_probe(*train, *test, generator=seeded(), **options)


@pytest.mark.parametrize("strength", [1e-3, 0.1])
def test_agrees_with_sklearn(strength):
    linear_model = pytest.importorskip("sklearn.linear_model")
    (x, y), test = clusters(0), clusters(1)
    ours = probe((x, y), test, strengths=[strength])
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    theirs = linear_model.LogisticRegression(
        C=1 / (len(x) * strength), tol=1e-10, max_iter=1000
    ).fit(z, y.numpy())
    expected = torch.as_tensor(theirs.coef_)
    torch.testing.assert_close(ours.weight, expected, rtol=0, atol=1e-4)
    scaled = (test[0] - ours.mean) / ours.scale
    assert ours.accuracy == theirs.score(scaled.numpy(), test[1].numpy())


def test_reads_separable_classes_of_any_label_and_dtype():
    (x, y), (u, v) = clusters(0, gap=30), clusters(1, gap=30)
    names = torch.tensor([-4, 7, 900])
    for dtype in (torch.float64, torch.float32, torch.float16):
        train, test = (x.to(dtype), names[y].int()), (u.to(dtype), names[v])
        result = probe(train, test)
        assert result.accuracy == 1.0 == result.validation_accuracy
        assert torch.equal(result.predict(test[0]), test[1])


def test_shuffled_labels_give_chance():
    (x, y), (u, v) = clusters(0, n=2000), clusters(1, n=2000)
    y = y[torch.randperm(len(y), generator=seeded())]
    v = v[torch.randperm(len(v), generator=seeded(1))]
    result = probe((x, y), (u, v))
    chance_error = (1 / 3 * 2 / 3 / 2000) ** 0.5
    assert abs(result.accuracy - 1 / 3) < 5 * chance_error


def test_the_strength_is_chosen_without_the_test_set():
    train, test = clusters(0, n=60), clusters(1)
    result = probe(train, test)
    blind = probe(train, (test[0] + 100, test[1].flip(0)))
    assert result.strength == blind.strength
    assert result.validation_accuracy == blind.validation_accuracy
    assert torch.equal(result.weight, blind.weight)


def test_the_best_on_validation_is_chosen_and_of_equals_the_strongest():
    train, test = clusters(0, n=80, gap=1.0), clusters(1)
    grid = [1e-4, 1e-2, 1.0, 100.0]
    alone = {s: probe(train, test, strengths=[s]) for s in grid}
    scores = {s: alone[s].validation_accuracy for s in grid}
    assert len(set(scores.values())) > 1
    result = probe(train, test, strengths=grid)
    best = max(scores.values())
    assert result.strength == max(s for s in grid if scores[s] == best)
    assert result.accuracy == alone[result.strength].accuracy


def test_the_split_depends_on_the_generator_alone():
    train, test = clusters(0, n=90, gap=1.0), clusters(1)
    torch.manual_seed(0)
    first = probe(train, test)
    torch.manual_seed(1)
    again = probe(train, test)
    assert first.validation_accuracy == again.validation_accuracy
    others = {
        metrics.linear_probe(*train, *test, generator=seeded(s)).validation_accuracy
        for s in range(4)
    }
    assert len(others) > 1


def test_split_shares_every_class():
    from diffedu.metrics.probe import split_rows

    y = torch.tensor([0] * 50 + [1] * 10 + [2] * 40)
    fit, held = split_rows(y, 0.2, seeded())
    assert sorted(torch.cat([fit, held]).tolist()) == list(range(100))
    assert torch.bincount(y[held]).tolist() == [10, 2, 8]


def test_constant_columns_do_no_harm():
    (x, y), (u, v) = clusters(0), clusters(1)
    x, u = (torch.cat([z, torch.full((300, 1), 0.1)], 1).float() for z in (x, u))
    assert probe((x, y), (u, v)).accuracy > 0.7


def test_a_leak_is_refused_and_named():
    train, (u, v) = clusters(0), clusters(1)
    u[[4, 9]] = train[0][[7, 1]]
    assert metrics.shared_rows(train[0], u).tolist() == [4, 9]
    with pytest.raises(ValueError, match=r"2 of 300 test rows.*\[4, 9\]"):
        probe(train, (u, v))


def test_shared_rows_of_images_and_signed_zero():
    a = torch.zeros(2, 1, 3, 3)
    a[1] = 1
    assert metrics.shared_rows(a, -a).tolist() == [0]
    pixels = (a * 255).to(torch.uint8)
    assert metrics.shared_rows(pixels, pixels.flip(0)).tolist() == [0, 1]
    assert metrics.shared_rows(a, a + 0.5).shape == (0,)
    with pytest.raises(ValueError, match="float64"):
        metrics.shared_rows(a, a.double())
    with pytest.raises(ValueError, match="one row a sample"):
        metrics.shared_rows(a.flatten(), a.flatten())


BAD = {
    "validation is": {"validation": 0.9},
    "strengths is": {"strengths": []},
    "none below 0": {"strengths": [-1.0]},
    "is no row": {"validation": 0.001},
}


@pytest.mark.parametrize("says", BAD)
def test_bad_options(says):
    with pytest.raises(ValueError, match=says):
        probe(clusters(0), clusters(1), **BAD[says])


def test_bad_labels_and_features():
    (x, y), test = clusters(0), clusters(1)
    with pytest.raises(TypeError, match="integers"):
        probe((x, y.float()), test)
    with pytest.raises(ValueError, match=r"for 300 rows it is \(300,\)"):
        probe((x, y[:-1]), test)
    with pytest.raises(ValueError, match="one class"):
        probe((x, y * 0), (test[0], test[1] * 0))
    with pytest.raises(ValueError, match=r"lacks: \[2\]"):
        probe((x, y.clamp(max=1)), test)
    with pytest.raises(ValueError, match="NaN"):
        probe((x * torch.nan, y), test)
    with pytest.raises(ValueError, match="at least 4"):
        probe((x[:3], y[:3]), test)
    with pytest.raises(ValueError, match="at least 1"):
        probe((x, y), (test[0][:0], test[1][:0]))
    with pytest.raises(ValueError, match="test rows"):
        probe((x[:, :4], y), test)
