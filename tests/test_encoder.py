"""The encoder: its stages, its features, what it refuses."""

from __future__ import annotations

import pytest
import torch

from diffedu import metrics, nets, recipes
from diffedu.recipes import HELD_OUT, RECIPES
from diffedu.recipes.data import shape_images


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_stages_halve_and_widen(images):
    net = nets.Encoder(3, 32, width=8)
    stages = net.stages(images)
    assert list(stages) == net.blocks() == ["stage.0", "stage.1", "stage.2"]
    shapes = [tuple(h.shape) for h in stages.values()]
    assert shapes == [(4, 8, 16, 16), (4, 16, 8, 8), (4, 32, 4, 4)]


def test_stages_are_what_hooks_see(images):
    net, seen = nets.Encoder(3, 32, width=8), {}
    for name in net.blocks():
        module = net.get_submodule(name)
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, output)
        )
    stages = net.stages(images)
    assert all(torch.equal(stages[name], seen[name]) for name in net.blocks())


def test_answers_features_or_outputs(images):
    plain, classifier = nets.Encoder(width=8), nets.Encoder(width=8, outputs=5)
    assert torch.equal(plain(images), plain.features(images))
    assert plain(images).shape == (4, plain.dim) == (4, 32)
    logits = classifier(images)
    assert logits.shape == (4, 5)
    torch.testing.assert_close(logits, classifier.head(classifier.features(images)))


def test_images_are_read_alone_in_either_mode(images):
    net = nets.Encoder(width=8)
    together = net.train()(images)
    for i in range(4):
        torch.testing.assert_close(net.eval()(images[i : i + 1])[0], together[i])


def test_its_size_is_as_documented():
    count = sum(p.numel() for p in nets.Encoder().parameters())
    assert 0.3e6 < count < 0.5e6


def test_loss_is_cross_entropy_and_reaches_every_weight(images):
    net, label = nets.Encoder(width=8, outputs=5), torch.tensor([0, 1, 4, 2])
    loss = nets.classification_loss(net, images, label)
    log_p = net(images).log_softmax(1)
    torch.testing.assert_close(loss, -log_p[range(4), label].mean())
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_any_size_that_halves(images):
    assert nets.Encoder(1, 8, width=4)(images[:, :1, :8, :8]).shape == (4, 16)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"size": 20}, "cannot be halved 3 times"),
        ({"width": 0}, "width"),
        ({"outputs": 0}, "outputs"),
        ({"channels": -1}, "channels"),
    ],
)
def test_impossible_encoders(options, says):
    with pytest.raises(ValueError, match=says):
        nets.Encoder(**options)


def test_wrong_images(images):
    net = nets.Encoder(width=8)
    with pytest.raises(ValueError, match="takes"):
        net(images[:, :, :16, :16])
    with pytest.raises(ValueError, match="float64"):
        net.features(images.double())


# As they are shipped


def accuracy_of_probe(net: nets.Encoder, n: int = 400) -> float:
    """A linear probe's accuracy on n held-out images, fitted to n others."""
    first, second = (shape_images(n, start, 32) for start in (2**30, HELD_OUT))
    with torch.no_grad():
        seen, new = (net.features(shown["x0"]) for shown in (first, second))
    probe = metrics.linear_probe(
        seen, first["label"], new, second["label"], generator=seeded()
    )
    return probe.accuracy


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def untrained(build) -> nets.Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(32)


def test_the_shipped_classifier_names_held_out_shapes():
    net, shown = recipes.load("shapeworld_supervised"), shape_images(400, HELD_OUT, 32)
    right = net(shown["x0"]).argmax(1) == shown["label"]
    assert float(right.float().mean()) > 0.97


def test_the_shipped_teacher_knows_shapes_it_was_never_told():
    net = recipes.load("shapeworld_simclr")
    assert net.head is None and not net.training
    before = accuracy_of_probe(untrained(RECIPES["shapeworld_simclr"].build))
    assert before < 0.45
    assert accuracy_of_probe(net) > before + 0.2


def test_a_label_to_be_answered_is_no_condition():
    recipe = RECIPES["shapeworld_supervised"]
    net = untrained(recipe.build)
    assert recipes.measure(recipe, net, 32, n=8).keys() == {"loss"}
