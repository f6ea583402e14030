"""Heads and selection: right answers, deterministic choices, no leak."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from diffedu import GaussianMixture, features, metrics
from diffedu.features.fusion import Fusion, token_sets
from diffedu.metrics.logistic import logistic


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(seed: int, n: int = 300, gap: float = 2.0, classes: int = 3):
    generator = seeded(seed)
    y = torch.randint(classes, (n,), generator=generator)
    x = torch.randn(n, 6, generator=generator)
    return x + gap * torch.nn.functional.one_hot(y, 6), y


def moons(seed: int, n: int = 400):
    """Two classes that only the distance from the middle tells apart."""
    generator = seeded(seed)
    x = torch.randn(n, 4, generator=generator)
    return x, (x.square().sum(1) > 3.4).long()


def accuracy(head, x, y) -> float:
    return float((head.predict(x) == y).float().mean())


# The linear head


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0])
def test_linear_equals_sklearn_on_correlated_features(strength):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = clusters(0)
    x = x.double() @ torch.randn(6, 6, generator=seeded(2), dtype=torch.float64)
    ours = features.Linear([strength]).fit(x, y, seeded())
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    theirs = linear_model.LogisticRegression(
        C=1 / (len(x) * strength), tol=1e-10, max_iter=10_000
    ).fit(z, y.numpy())
    expected = torch.as_tensor(theirs.predict_log_proba(z))
    assert_close(ours.logits(x).log_softmax(1), expected, rtol=0, atol=1e-3)
    assert torch.equal(ours.predict(x), torch.as_tensor(theirs.predict(z)))


@pytest.mark.parametrize("strength", [0.0, 1e-5, 1e-2])
def test_the_gradient_is_zero_where_logistic_ends(strength):
    x, y = clusters(0, gap=1.0)
    x = torch.cat([x, x[:, :2] + 1e-3 * x[:, 2:4]], 1).double()  # nearly singular
    mean, scale, *found = logistic(x, y, 3, strength)
    weight, bias = (value.clone().requires_grad_() for value in found)
    scores = (x - mean) / scale @ weight.T + bias
    loss = torch.nn.functional.cross_entropy(scores, y)
    (loss + strength / 2 * weight.square().sum()).backward()
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-5


def test_more_columns_than_rows_are_solved():
    x = torch.randn(40, 100, generator=seeded())
    y = torch.arange(40) % 4
    assert accuracy(features.Linear([1e-3]).fit(x, y, seeded()), x, y) == 1.0


def test_the_linear_head_is_the_linear_probe():
    (x, y), (u, v) = clusters(0, gap=1.0), clusters(1, gap=1.0)
    probe = metrics.linear_probe(x, y, u, v, generator=seeded())
    head = features.Linear().fit(x, y, seeded())
    assert head.chosen == probe.strength
    assert head.validation_accuracy == probe.validation_accuracy
    assert_close(head.logits(u), probe.logits(u))
    assert torch.equal(head.predict(u), probe.predict(u))


def test_a_linear_head_reaches_bayes_on_equal_gaussians():
    oracle = GaussianMixture(
        [0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [1.0, 1.0], labels=[0, 1]
    )
    y = torch.arange(4000) % 2
    x = torch.randn(4000, 2, generator=seeded()) + oracle.means[y].float()
    head = features.Linear([1e-5]).fit(x, y, seeded())
    slope = head.logits(torch.eye(2)) - head.logits(torch.zeros(2, 2))
    log_odds = (slope[:, 1] - slope[:, 0]).tolist()
    # log p(1 | x) / p(0 | x) = 2 x_0; five standard errors of a fitted slope
    assert log_odds == pytest.approx([2.0, 0.0], abs=5 * (8 / 4000) ** 0.5)


# Networks as heads


def test_an_mlp_reads_what_a_line_cannot():
    (x, y), (u, v) = moons(0, 800), moons(1)
    line = features.Linear().fit(x, y, seeded())
    mlp = features.MLP((32,), steps=300, lr=0.01).fit(x, y, seeded())
    assert accuracy(line, u, v) < 0.65
    assert accuracy(mlp, u, v) > 0.85


def test_an_mlp_without_hidden_layers_nears_the_linear_optimum():
    x, y = clusters(0, gap=1.0)
    linear = features.Linear([0.0]).fit(x, y, seeded())
    mlp = features.MLP((), steps=600, lr=0.03, weight_decay=0.0, validation=0.1)
    assert (
        mlp.fit(x, y, seeded()).predict(x) == linear.predict(x)
    ).float().mean() > 0.9


def test_scale_and_labels_do_not_matter_to_heads():
    (x, y), (u, v) = clusters(0, gap=4.0), clusters(1, gap=4.0)
    names = torch.tensor([-4, 7, 900])
    for head in (features.Linear(), features.MLP((16,), steps=150)):
        fitted = head.fit(1e4 * x + 1e5, names[y], seeded())
        assert accuracy(fitted, 1e4 * u + 1e5, names[v]) > 0.97


def test_the_early_choice_is_the_best_seen_on_validation():
    x, y = moons(0, 60)
    fitted = features.MLP((64,), steps=400, lr=0.01).fit(x, y, seeded())
    last = features.MLP((64,), steps=fitted.chosen, lr=0.01)
    assert 0 < fitted.chosen <= 400 and fitted.chosen % 20 == 0
    assert fitted.validation_accuracy >= last.fit(x, y, seeded()).validation_accuracy


def scattered(seed: int, n: int = 240):
    """The class is known only from two blocks together: one bit in each."""
    generator = seeded(seed)
    bits = torch.randint(2, (2, n), generator=generator)
    fine = 0.3 * torch.randn(n, 3, 4, 4, generator=generator)
    fine[:, 0, 2, 1] += 3 * (bits[0] - 0.5)  # at one place alone
    coarse = 0.3 * torch.randn(n, 3, 7, generator=generator)
    coarse[:, 2, 1] += 3 * (bits[1] - 0.5)
    return {"fine": fine, "coarse": coarse}, bits[0] ^ bits[1]


@pytest.mark.slow
def test_fusion_reads_blocks_of_other_widths_and_grids():
    (x, y), (u, v) = scattered(0, 480), scattered(1)
    head = features.AttentionFusion(16, heads=2, steps=250, batch=64)
    fitted = head.fit(x, y, seeded())
    assert accuracy(fitted, u, v) > 0.9
    alone = head.fit({"fine": x["fine"]}, y, seeded())
    assert accuracy(alone, {"fine": u["fine"]}, v) < 0.65, "one bit says nothing"


def test_tokens_are_means_over_cells():
    h = torch.arange(16.0).view(1, 1, 4, 4)
    assert token_sets([h], 2)[0].flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert_close(token_sets([h], 9)[0], h.flatten(2).transpose(1, 2))
    assert [x.shape[1] for x in token_sets([torch.ones(2, 3), torch.ones(2, 5, 3)], 4)]


def test_fusion_without_places_and_layers_reads_its_query_alone():
    net = Fusion([(3, 4)], 8, 2, 1, 2, seeded())
    x = torch.randn(5, 3, 4, generator=seeded())
    moved = x[:, [2, 0, 1]]
    assert (net([x]) - net([moved])).abs().max() > 0, "places count"
    torch.nn.init.zeros_(net.places[0])
    assert_close(net([x]), net([moved]))


HEADS = {
    "linear": features.Linear(),
    "mlp": features.MLP((8,), steps=20),
    "fusion": features.AttentionFusion(8, heads=2, steps=20),
    "pixels": features.PixelEnsemble(2, (8,), steps=20),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_depend_on_the_generator_alone(name):
    x, y = clusters(0, n=60, gap=1.0)
    given_x = [x] if name == "fusion" else x
    torch.manual_seed(0)
    first = HEADS[name].fit(given_x, y, seeded(3)).logits(given_x)
    torch.manual_seed(1)
    again = HEADS[name].fit(given_x, y, seeded(3)).logits(given_x)
    assert torch.equal(first, again)
    if name != "linear":
        other = HEADS[name].fit(given_x, y, seeded(4)).logits(given_x)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name", HEADS)
def test_heads_refuse_what_does_not_fit(name):
    x, y = clusters(0, n=60)
    wrap = (lambda z: [z]) if name == "fusion" else (lambda z: z)
    with pytest.raises(TypeError, match="integers"):
        HEADS[name].fit(wrap(x), y.float())
    with pytest.raises(ValueError, match=r"y has shape \(59,\)"):
        HEADS[name].fit(wrap(x), y[:-1])
    with pytest.raises(ValueError, match="one class"):
        HEADS[name].fit(wrap(x), torch.zeros_like(y))
    with pytest.raises(ValueError, match="NaN"):
        HEADS[name].fit(wrap(x.index_fill(0, torch.tensor([3]), float("nan"))), y)
    with pytest.raises(TypeError, match="floating-point"):
        HEADS[name].fit(wrap(x.long()), y)


def test_settings_are_checked():
    x, y = clusters(0, n=60)
    with pytest.raises(ValueError, match="none below 0"):
        features.Linear([-1.0]).fit(x, y)
    with pytest.raises(ValueError, match="validation is"):
        features.MLP(validation=0.9).fit(x, y)
    with pytest.raises(ValueError, match="don't divide"):
        features.AttentionFusion(9, heads=2).fit([x], y)
    with pytest.raises(TypeError, match=r"give \[x\]"):
        features.AttentionFusion().fit(x, y)
    with pytest.raises(ValueError, match="did you mean"):
        features.PixelEnsemble(vote="majorty").fit(x, y)
    with pytest.raises(ValueError, match="this head takes"):
        features.MLP().fit(x.view(60, 3, 2), y)


# Pixels


def parts(seed: int, n: int = 4):
    """Feature maps whose first channels show the label of each pixel, noisily."""
    generator = seeded(seed)
    y = torch.randint(3, (n, 6, 5), generator=generator)
    x = torch.randn(n, 7, 6, 5, generator=generator)
    x[:, :3] += 4 * torch.nn.functional.one_hot(y, 3).movedim(-1, 1)
    return x, y


@pytest.fixture(scope="module")
def pixels():
    return features.PixelEnsemble(5, (32, 16), steps=150).fit(*parts(0, 8), seeded())


@pytest.mark.parametrize("vote", ["majority", "average"])
def test_the_ensemble_labels_pixels_it_has_not_seen(vote):
    fitted = features.PixelEnsemble(5, (32, 16), steps=150, vote=vote).fit(
        *parts(0, 8), seeded()
    )
    x, y = parts(1)
    guess = fitted.predict(x)
    assert guess.shape == y.shape
    assert (guess == y).float().mean() > 0.93


def test_pixels_in_a_list_are_the_same_pixels(pixels):
    x, y = parts(1)
    flat = x.movedim(1, -1).reshape(-1, 7)
    assert torch.equal(pixels.predict(flat).view(y.shape), pixels.predict(x))
    assert_close(pixels.disagreement(flat).view(y.shape), pixels.disagreement(x))
    assert_close(pixels.logits(x).movedim(1, -1).reshape(-1, 3), pixels.logits(flat))


def test_votes_and_probabilities_are_the_members(pixels):
    x, _ = parts(1)
    p = pixels.members(x)
    assert p.shape == (5, 4, 3, 6, 5)
    assert_close(p.sum(2), torch.ones(5, 4, 6, 5))
    assert_close(pixels.logits(x).exp(), p.mean(0))
    first = p.argmax(2)
    share = torch.stack([(first == k).float().mean(0) for k in range(3)], 1)
    assert_close(pixels.votes(x), share)
    won = share.gather(1, pixels.predict(x)[:, None])[:, 0]
    assert_close(won, share.amax(1))


def test_majority_equals_the_mode_where_there_is_one(pixels):
    x, _ = parts(2)
    first = pixels.members(x).argmax(2)
    share = pixels.votes(x).sort(1, descending=True).values
    clear = share[:, 0] > share[:, 1] + 1e-3
    assert clear.any()
    assert torch.equal(pixels.predict(x)[clear], first.mode(0).values[clear])


def test_disagreement_is_jensen_shannon(pixels):
    x, _ = parts(1)
    p = pixels.members(x).double()
    mean = p.mean(0, keepdim=True)
    expected = (p * (p / mean).log()).sum(2).mean(0)
    assert_close(pixels.disagreement(x).double(), expected, rtol=1e-3, atol=1e-5)
    one = features.PixelEnsemble(1, (8,), steps=30).fit(*parts(0), seeded())
    assert one.disagreement(x).abs().max() < 1e-5, "one alone agrees with itself"


def test_disagreement_is_highest_between_the_classes(pixels):
    sure = torch.zeros(1, 7, 1, 2)
    sure[0, :3, 0, 0] = torch.tensor([4.0, 0.0, 0.0])
    sure[0, :3, 0, 1] = torch.tensor([2.0, 2.0, 0.0])
    clear, between = pixels.disagreement(sure)[0, 0]
    assert between > 2 * clear


def test_members_are_apart_and_each_is_its_own_network(pixels):
    net = pixels.net
    x = torch.randn(5, 9, 7, generator=seeded())
    out = net(x)
    changed = x.clone()
    changed[0] += 1
    moved = (net(changed) - out).abs().amax((1, 2)) > 0
    assert moved.tolist() == [True, False, False, False, False]
    assert (out[0] - net(x[[1, 0, 2, 3, 4]])[1]).abs().max() > 0.1


# Selection


def grid(seed: int = 0, n: int = 400):
    """Blocks a, b, c at three times; the class is clearest in b at the second."""
    generator = seeded(seed)
    y = torch.randint(4, (n,), generator=generator)
    target = torch.nn.functional.one_hot(y, 4).float()
    gain = {"a": [0.0, 0.5, 0.2], "b": [0.4, 3.0, 0.8], "c": [0.1, 1.0, 0.3]}
    return {
        name: torch.stack(
            [g * target + torch.randn(n, 4, generator=generator) for g in gains]
        )
        for name, gains in gain.items()
    }, y


TIMES = [0.1, 0.3, 0.6]


@pytest.mark.parametrize("by", ["error", "loss"])
@pytest.mark.parametrize("head", [None, features.MLP((16,), steps=60)])
def test_the_clearest_block_and_time_are_found(by, head):
    x, y = grid()
    found = features.select(x, y, TIMES, head, generator=seeded(), by=by)
    assert (found.block, found.time) == ("b", 0.3)
    assert found.score == found.scores["b"].min() == found.scores["b"][1]
    assert set(found.scores) == {"a", "b", "c"}
    fresh, _ = grid(1)
    assert torch.equal(found.features(fresh), fresh["b"][1])


def test_a_combination_wins_where_two_blocks_each_know_half():
    generator = seeded()
    bits = torch.randint(2, (2, 400), generator=generator)
    noise = torch.randn(2, 1, 400, 1, generator=generator)
    x = {n: 5.0 * bits[i][None, :, None] + noise[i] for i, n in enumerate("ab")}
    y = 2 * bits[0] + bits[1]
    found = features.select(x, y, [0.2], generator=seeded(), combinations=[("a", "b")])
    assert found.block == ("a", "b") and found.score < 0.1
    assert min(found.scores["a"].min(), found.scores["b"].min()) > 0.3
    assert found.features(x).shape == (400, 2)


def test_selection_is_deterministic_and_blind_to_the_test_rows():
    x, y = grid()
    runs = [
        features.select(x, y, TIMES, features.MLP((8,), steps=20), 0.2, seeded(5))
        for _ in range(2)
    ]
    for name in x:
        assert torch.equal(runs[0].scores[name], runs[1].scores[name])
    test, _ = grid(9, 100)
    plain = features.select(x, y, TIMES, generator=seeded())
    told = features.select(x, y, TIMES, generator=seeded(), test=test)
    assert torch.equal(plain.scores["b"], told.scores["b"])


def test_every_candidate_has_the_same_split_and_seed():
    x, y = grid()
    same = {"first": x["a"], "second": x["a"].clone()}
    head = features.MLP((8,), steps=20)
    found = features.select(same, y, TIMES, head, generator=seeded())
    assert torch.equal(found.scores["first"], found.scores["second"])
    assert (found.block, found.time) == ("first", TIMES[found.scores["first"].argmin()])


def test_the_score_of_a_candidate_is_its_heads_on_the_split():
    from diffedu.metrics.probe import split_rows

    x, y = grid()
    found = features.select(
        {"a": x["a"]}, y, TIMES, features.Linear([1e-2]), generator=seeded()
    )
    rows, held = split_rows(y, 0.2, seeded())
    for at, score in enumerate(found.scores["a"]):
        head = features.Linear([1e-2]).fit(x["a"][at, rows], y[rows], seeded())
        wrong = head.predict(x["a"][at, held]) != y[held]
        assert float(score) == pytest.approx(float(wrong.double().mean()))


def test_leaks_are_refused():
    x, y = grid()
    test = {name: value[:, 3:5] for name, value in x.items()}
    with pytest.raises(ValueError, match="2 test rows of block a"):
        features.select(x, y, TIMES, test=test)
    twice = {name: torch.cat([v, v], 1) for name, v in x.items()}
    with pytest.raises(ValueError, match="validation rows of block a"):
        features.select(twice, torch.cat([y, y]), TIMES, generator=seeded())


def test_selection_says_what_does_not_fit():
    x, y = grid(n=40)
    with pytest.raises(ValueError, match="at 3 times, but times has 2"):
        features.select(x, y, TIMES[:2])
    with pytest.raises(ValueError, match='"d" is unknown'):
        features.select(x, y, TIMES, combinations=[("a", "d")])
    with pytest.raises(ValueError, match="sequence of names"):
        features.select(x, y, TIMES, combinations=["a"])
    with pytest.raises(ValueError, match="did you mean"):
        features.select(x, y, TIMES, by="eror")
    with pytest.raises(ValueError, match="empty"):
        features.select({}, y, TIMES)
    with pytest.raises(ValueError, match="each once"):
        features.select(x, y, [0.1, 0.1, 0.2])
    with pytest.raises(ValueError, match=r"\(K, N, D\) in block a"):
        features.select({"a": x["a"][0]}, y, [0.1])
    rare = torch.cat([torch.zeros(42), torch.ones(1)]).long()
    with pytest.raises(ValueError, match="too few rows"):
        features.select(grid(n=43)[0], rare, TIMES)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 0.1, 2.0]))
def test_shifting_and_scaling_columns_changes_no_answer(seed, strength):
    x, y = clusters(seed % 97, n=60, gap=1.0)
    generator = seeded(seed)
    scale = torch.rand(6, generator=generator, dtype=torch.float64) * 9 + 0.1
    moved = x.double() * scale + torch.randn(6, generator=generator).double()
    head = features.Linear([strength])
    one, two = head.fit(x.double(), y, seeded()), head.fit(moved, y, seeded())
    assert_close(one.logits(x.double()), two.logits(moved), rtol=0, atol=1e-3)
