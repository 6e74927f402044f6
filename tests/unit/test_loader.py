"""The loader hands out every row once an epoch, from wherever it is resumed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_moe.datamodule import Split, TrainLoader
from recsys_moe.errors import RequestError
from recsys_moe.spec import FeatureSpec

ROWS = 500


@pytest.fixture(scope="module")
def split(make_features: Callable[..., Path]) -> Split:
    """A split whose first number is the row's own number."""
    folder = make_features(rows=ROWS)
    path = folder / "tensors" / "train" / "numbers.npy"
    numbers = np.load(path)
    numbers[:, 0] = np.arange(ROWS)
    np.save(path, numbers)
    return Split(folder, "train", FeatureSpec.load(folder / "feature_spec.json"))


def rows(batches: list[object]) -> list[int]:
    numbers = [batch.numbers[:, 0] for batch in batches]  # type: ignore[attr-defined]
    return torch.cat(numbers).int().tolist() if numbers else []


@pytest.mark.parametrize("batch_size", [1, 7, 64, 500, 600])
def test_two_epochs_hold_every_row_once_each_in_another_order(
    split: Split, batch_size: int
) -> None:
    loader = TrainLoader(split, batch_size, seed=1)

    first, second = rows(list(loader)), rows(list(loader))

    assert len(loader) == -(-ROWS // batch_size)
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second


@pytest.mark.parametrize("stop", [1, 3, 7, 8])
def test_a_loader_resumed_after_any_batch_hands_out_the_rest(split: Split, stop: int) -> None:
    whole = TrainLoader(split, 64, seed=1)
    expected = rows(list(whole)) + rows(list(whole))

    stopped = TrainLoader(split, 64, seed=1)
    seen = [batch for _, batch in zip(range(stop), stopped, strict=False)]
    resumed = TrainLoader(split, 64, seed=1)
    resumed.load_state_dict(stopped.state_dict())
    rest = list(resumed) + (list(resumed) if stop < len(whole) else [])

    assert rows(seen + rest) == expected


def test_a_state_of_another_batch_size_is_refused(split: Split) -> None:
    state = TrainLoader(split, 64, seed=1).state_dict()

    with pytest.raises(RequestError, match="resume, batch_size: wanted 64, got 32"):
        TrainLoader(split, 32, seed=1).load_state_dict(state)


def test_a_batch_belongs_together(split: Split) -> None:
    for batch in TrainLoader(split, 64, seed=1):
        order = batch.numbers[:, 0].int().numpy()
        np.testing.assert_array_equal(batch.codes.numpy(), split.codes[order])
        np.testing.assert_array_equal(batch.labels["click"].numpy(), split.labels[order, 0])
        np.testing.assert_array_equal(batch.known["conversion"].numpy(), split.known[order, 1])
