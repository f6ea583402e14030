"""Recipes: each trains from scratch, each shipped network measures as its card says."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from diffedu import cli, recipes
from diffedu.recipes import HELD_OUT, RECIPES, Size
from diffedu.recipes.table import digit_images, shape_images
from diffedu.worlds import digits

SHIPPED = sorted(p.stem for p in recipes.CHECKPOINTS.glob("*.json"))


def few(name: str, steps: int = 3) -> Size:
    return Size(RECIPES[name].preview.pixels, 4, steps)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_from_scratch(name, tmp_path):
    options = dict(folder=tmp_path, runs=tmp_path / "runs", progress=False)
    made = recipes.train(name, size=few(name), **options)
    assert made["steps"] == 3 and made["preview"] and made["seed"] == 0
    module = recipes.load(name, tmp_path)
    assert made == module.card == recipes.card(name, tmp_path)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    again = recipes.measure(RECIPES[name], module, made["pixels"])
    for key, (value, low, high) in made["metrics"].items():
        assert low < value < high and again[key] == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_shipped(name):
    assert name in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_measures_as_its_card_says(name):
    module = recipes.load(name)
    found = recipes.measure(RECIPES[name], module, module.card["pixels"])
    assert found.keys() == module.card["metrics"].keys()
    for key, (_, low, high) in module.card["metrics"].items():
        assert low <= found[key] <= high, key
    # the control: the same network before its training
    untrained = RECIPES[name].build(module.card["pixels"])
    worse = recipes.measure(RECIPES[name], untrained, module.card["pixels"])
    assert worse["loss"] > 1.5 * found["loss"]


@pytest.mark.parametrize("name", [n for n in SHIPPED if RECIPES[n].drop])
def test_a_shipped_condition_is_used(name):
    metrics = recipes.card(name)["metrics"]
    assert metrics["loss"][0] < metrics["loss_without"][0]


@pytest.mark.parametrize("name", SHIPPED)
def test_checkpoints_are_small_and_in_half_precision(name):
    path = recipes.CHECKPOINTS / f"{name}.safetensors"
    parameters = recipes.card(name)["parameters"]
    assert path.stat().st_size <= 5e6
    assert path.stat().st_size < 2.2 * parameters + 60_000


def test_a_training_resumes_where_it_stopped(tmp_path, monkeypatch):
    name = "digits_unet"
    whole = recipes.train(
        name, size=few(name, 6), folder=tmp_path / "a", runs=tmp_path, progress=False
    )
    seen = []
    data = RECIPES[name].data

    def counting(n, start, pixels):
        seen.append(start)
        return data(n, start, pixels)

    recipe = vars(RECIPES[name]) | {"data": counting}
    monkeypatch.setitem(RECIPES, name, recipes.Recipe(**recipe))
    again = recipes.train(
        name, size=few(name, 6), folder=tmp_path / "b", runs=tmp_path, progress=False
    )
    assert again["metrics"] == whole["metrics"]
    assert set(seen) <= {HELD_OUT, 24}, "a finished training takes no step again"


def test_training_and_held_out_images_differ():
    train, held_out = digits.load("train")[0], digits.load("test")[0]
    shown = digit_images(1297, 0, 8)["x0"]
    kept = digit_images(500, HELD_OUT, 8)["x0"]
    assert torch.equal(shown.flatten(1).sort(0)[0], train.flatten(1).sort(0)[0])
    assert torch.equal(kept.flatten(1).sort(0)[0], held_out.flatten(1).sort(0)[0])
    drawn = shape_images(4, 0, 16)["x0"], shape_images(4, HELD_OUT, 16)["x0"]
    assert not torch.equal(*drawn)


def test_epochs_of_digits_are_shuffled_and_whole():
    two = digit_images(2 * 1297, 0, 8)["label"]
    assert torch.equal(two[:1297].bincount(), two[1297:].bincount())
    assert not torch.equal(two[:1297], two[1297:])
    assert torch.equal(digit_images(7, 1294, 8)["label"], two[1294:1301])


def test_mistakes_are_answered(tmp_path):
    with pytest.raises(ValueError, match='did you mean "digits_unet"'):
        recipes.load("digits_unett")
    with pytest.raises(FileNotFoundError, match="diffedu train digits_unet"):
        recipes.load("digits_unet", tmp_path)
    with pytest.raises(ValueError, match="8 pixels a side, not 16"):
        digit_images(2, 0, 16)


def test_a_broken_file_is_named(tmp_path):
    if "digits_unet" not in SHIPPED:
        pytest.fail("digits_unet is not shipped")
    shutil.copy(recipes.CHECKPOINTS / "digits_unet.json", tmp_path)
    (tmp_path / "digits_unet.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="broken or not a safetensors file"):
        recipes.load("digits_unet", tmp_path)


def test_a_card_of_other_options_does_not_fit(tmp_path):
    shutil.copy(recipes.CHECKPOINTS / "digits_unet_class.json", tmp_path)
    wrong = recipes.CHECKPOINTS / "digits_unet.safetensors"
    shutil.copy(wrong, tmp_path / "digits_unet_class.safetensors")
    with pytest.raises(ValueError, match="does not fit this module"):
        recipes.load("digits_unet_class", tmp_path)


def test_the_command_lists_recipes_and_answers_mistakes(capsys):
    assert cli.main(["train"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in RECIPES)
    assert cli.main(["train", "digits_une"]) == 1
    assert "did you mean" in capsys.readouterr().err


def test_the_command_trains(capsys, monkeypatch, tmp_path):
    tiny = vars(RECIPES["digits_unet"]) | {"preview": few("digits_unet")}
    monkeypatch.setitem(RECIPES, "digits_unet", recipes.Recipe(**tiny))
    monkeypatch.setattr("diffedu.recipes.train.train.__kwdefaults__", {
        **recipes.train.__kwdefaults__, "folder": tmp_path, "runs": tmp_path / "runs",
    })  # fmt: skip
    assert cli.main(["train", "digits_unet", "--device", "cpu", "--fresh"]) == 0
    assert json.loads((tmp_path / "digits_unet.json").read_text())["steps"] == 3
    assert "3 steps at 8 pixels on cpu" in capsys.readouterr().out
