"""A model started from another run: table rows go with their values."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys_moe.checkpoint import load_model
from recsys_moe.errors import RequestError
from recsys_moe.paths import CONF_DIR

MODELS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))


@pytest.mark.parametrize("model", MODELS)
def test_the_same_features_give_the_same_model_bit_for_bit(model: str, toy: Any) -> None:
    run, rows = toy.run(model), toy.draw(50, seed=5)

    warm, fresh, found = toy.start(run, toy.old, model)

    old_model, _ = load_model(run)
    expected = old_model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in warm.state_dict().items())
    assert not found.fresh
    assert {*found.moved, *found.loaded} == set(expected)
    assert not any(counts["fresh"] for table in found.moved.values() for counts in table.values())
    before, after, unstarted = (toy.logits(m, toy.old, rows) for m in (old_model, warm, fresh))
    for task in before:
        assert np.array_equal(before[task], after[task])
        assert not np.array_equal(before[task], unstarted[task])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("change", ["appended", "shuffled", "tables in another order"])
def test_rows_of_old_values_are_predicted_as_before(
    model: str, change: str, toy: Any, tmp_path: Path
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "appended": {"items": [*toy.items, "kiwi", "yuzu"], "shops": [*toy.shops, 5]},
        "shuffled": {"items": ["kiwi", *toy.items[::-1]], "shops": [-3, 2**60, 70]},
        "tables in another order": {"tables": ("tag", "price_bin", "shop", "item")},
    }
    features = toy.features(tmp_path / "new", **changes[change])
    rows = toy.draw(200, seed=5)
    old_model, _ = load_model(toy.run(model))

    warm, _, found = toy.start(toy.run(model), features, model)

    assert not found.fresh
    after = toy.logits(warm, features, rows)
    for task, expected in toy.logits(old_model, toy.old, rows).items():
        np.testing.assert_allclose(after[task], expected, rtol=0, atol=1e-6)


def test_a_new_value_keeps_its_initial_row_and_a_lost_one_is_counted(
    toy: Any, tmp_path: Path
) -> None:
    features = toy.features(tmp_path / "new", items=["kiwi", *toy.items[1:]])

    warm, fresh, found = toy.start(toy.run("mmoe"), features, "mmoe")

    item = found.moved["embeddings.weight_Vd"]["item"]
    assert item == {"moved": 4 + len(toy.items) - 1, "fresh": 1, "left": 1}
    kiwi = 4  # after padding, missing and two codes for values outside the vocabulary
    warm_Vd, fresh_Vd = (m.state_dict()["embeddings.weight_Vd"] for m in (warm, fresh))
    assert torch.equal(warm_Vd[kiwi], fresh_Vd[kiwi])
    assert not torch.isclose(warm_Vd[kiwi + 1], fresh_Vd[kiwi + 1]).any()


def test_another_number_of_unseen_codes_leaves_only_those_fresh(toy: Any, tmp_path: Path) -> None:
    features = toy.features(tmp_path / "new", num_oov=3)

    warm, fresh, found = toy.start(toy.run("mmoe"), features, "mmoe")

    item = found.moved["embeddings.weight_Vd"]["item"]
    assert item == {"moved": 2 + len(toy.items), "fresh": 3, "left": 2}
    assert not found.fresh
    old_Vd = load_model(toy.run("mmoe"))[0].state_dict()["embeddings.weight_Vd"]
    warm_Vd, fresh_Vd = (m.state_dict()["embeddings.weight_Vd"] for m in (warm, fresh))
    assert torch.equal(warm_Vd[:2], old_Vd[:2])
    assert torch.equal(warm_Vd[2:5], fresh_Vd[2:5])
    assert torch.equal(warm_Vd[5:10], old_Vd[4:9])


def test_wider_embeddings_start_fresh(toy: Any) -> None:
    _, _, found = toy.start(toy.run("mmoe"), toy.old, "mmoe", embedding_dim=4)

    assert not found.moved
    assert found.fresh["embeddings.weight_Vd"] == "rows of 4 numbers, not 3"


def test_a_changed_vocabulary_file_is_refused(toy: Any, tmp_path: Path) -> None:
    features = toy.features(tmp_path / "new")
    pl.DataFrame({"value": ["x"], "code": [4]}).write_parquet(features / "vocab" / "item.parquet")

    with pytest.raises(RequestError, match=r"table 'item', vocabulary: .* as it was fitted"):
        toy.start(toy.run("mmoe"), features, "mmoe")
