"""`recipes.network`: shipped at the default budget, trained from scratch at "full"."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffedu import recipes
from diffedu.recipes import RECIPES, Size

NAME = "digits_unet"


@pytest.fixture
def tiny(monkeypatch):
    """The recipe with three steps in place of its own."""
    few = replace(RECIPES[NAME], full=Size(8, 4, 3), preview=Size(8, 4, 3))
    monkeypatch.setitem(RECIPES, NAME, few)


def weights(module):
    return torch.cat([p.flatten() for p in module.parameters()])


def test_the_default_is_the_shipped_network(monkeypatch):
    monkeypatch.delenv("DIFFEDU_BUDGET", raising=False)
    assert recipes.network(NAME).card == recipes.card(NAME)
    torch.testing.assert_close(
        weights(recipes.network(NAME)), weights(recipes.load(NAME)), rtol=0, atol=0
    )


def test_the_full_budget_trains_one_and_leaves_the_shelf_alone(monkeypatch, tiny):
    monkeypatch.setenv("DIFFEDU_BUDGET", "full")
    before = sorted((p.name, p.stat().st_mtime) for p in recipes.CHECKPOINTS.iterdir())
    fresh = recipes.network(NAME)
    after = sorted((p.name, p.stat().st_mtime) for p in recipes.CHECKPOINTS.iterdir())
    assert before == after
    assert fresh.card["steps"] == 3 and not fresh.training
    assert not any(p.requires_grad for p in fresh.parameters())
    assert not torch.allclose(weights(fresh), weights(recipes.load(NAME)), atol=1e-2)


def test_an_unknown_name_is_told(monkeypatch):
    for budget in ("laptop", "full"):
        monkeypatch.setenv("DIFFEDU_BUDGET", budget)
        with pytest.raises(ValueError, match="did you mean"):
            recipes.network("digits_unett")
