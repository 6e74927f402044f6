import numpy as np
import pytest

from recsys_moe.order import epoch_order


def whole(num_rows: int, start: int = 0, seed: int = 1, epoch: int = 0) -> np.ndarray:
    parts = epoch_order(
        num_rows, seed=seed, epoch=epoch, start=start, block_rows=16, window_blocks=4
    )
    return np.concatenate([*parts, np.empty(0, np.int64)])


@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 64, 1000])
def test_an_epoch_visits_every_row_once(num_rows: int) -> None:
    assert sorted(whole(num_rows)) == list(range(num_rows))


@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, 500, 999, 1000])
def test_any_position_continues_the_same_order(start: int) -> None:
    np.testing.assert_array_equal(whole(1000, start), whole(1000)[start:])


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = [whole(1000, seed=seed, epoch=epoch) for seed in (1, 2) for epoch in (0, 1)]

    assert len({tuple(order) for order in orders}) == 4


def test_neighbours_are_spread() -> None:
    first = whole(1000)[:64]

    assert len({row // 16 for row in first}) == 4
