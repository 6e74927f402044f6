"""Labels that are amounts: what is known, what is a fault, and the scale they are learnt on."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.dataset.checked import Faults
from pipelines.dataset.dataset import read_dataset
from pipelines.dataset.roles import Dataset
from pipelines.fitting.targets import fit_tasks
from pipelines.rows.labels import check_tasks, label, label_arrays, label_rule
from pipelines.rows.row_rules import RowRules
from recsys_moe.errors import RequestError
from recsys_moe.spec import Column

WATCH = {"name": "watch", "label": "seconds", "kind": "regression", "space": "click"}
TASKS = [{"name": "click", "label": "click"}, WATCH, {**WATCH, "name": "log", "transform": "log1p"}]


def dataset_of(tasks: list[dict[str, Any]], **more: Any) -> Dataset:
    faults = Faults("dataset")
    value = {
        "name": "toy",
        "source": {"format": "parquet", "path": "x.parquet"},
        "split": {"by": "hash", "column": "request"},
        "features": [{"kind": "numeric", "columns": ["price"]}],
        "tasks": tasks,
        **more,
    }
    dataset = read_dataset(value, faults)
    faults.raise_any()
    return dataset


@pytest.mark.parametrize(
    ("value", "known", "plain", "log"),
    [
        (1.5, 1.5, None, None),
        (0.0, 0.0, None, None),
        (-2.0, -2.0, None, "label of log: not a finite number from 0 up"),
        (None, None, None, None),
        (math.nan, None, None, None),
        (math.inf, math.inf, "label of watch: not a finite number", "label of log: not a finite"),
        (-math.inf, -math.inf, "label of watch: not a finite", "label of log: not a finite"),
        (1e39, math.inf, "label of watch: not a finite number", "label of log: not a finite"),
    ],
)
def test_a_label_is_a_finite_number_or_unknown_or_a_fault(
    value: float | None, known: float | None, plain: str | None, log: str | None
) -> None:
    frame = pl.DataFrame({"seconds": [value]}, schema={"seconds": pl.Float64})
    column = Column(name="seconds", type="float32")
    _, watch, logged = dataset_of(TASKS).tasks

    faults = {}
    for name, task in (("plain", watch), ("log", logged)):
        rules = RowRules([label_rule(task, column)])
        faults[name] = rules.words(rules.mask())
    found = frame.select(label(watch, column), **faults)

    assert found.schema["watch"] == pl.Float32
    assert found["watch"].item() == known
    for name, reason in (("plain", plain), ("log", log)):
        assert (found[name].item() or "").startswith(reason or "")
        assert (found[name].item() is None) == (reason is None)


def test_whole_numbers_are_amounts_too() -> None:
    frame = pl.DataFrame({"seconds": [3, None, -7]})
    watch = dataset_of(TASKS).tasks[1]
    found = frame.select(label(watch, Column(name="seconds", type="int64"))).to_series()
    assert found.to_list() == [3.0, None, -7.0]


def test_text_is_no_amount() -> None:
    faults = Faults("dataset")
    check_tasks(dataset_of(TASKS).tasks, {"seconds": Column(name="seconds", type="string")}, faults)
    assert [line.split(":")[0] for line in faults.lines] == ["tasks[1].label", "tasks[2].label"]
    assert all("a column of numbers" in line for line in faults.lines)


def write_train(output: Path, rows: pl.DataFrame, *, files: int, row_group_size: int) -> Path:
    folder = output / "prepared" / "train"
    folder.mkdir(parents=True)
    size = -(-rows.height // files)
    for number, part in enumerate(rows.iter_slices(size)):
        part.write_parquet(folder / f"part-{number:05}.parquet", row_group_size=row_group_size)
    return output


def train_rows(number: int = 150_000) -> pl.DataFrame:
    draw = np.random.default_rng(6)
    known = [None if x < 0.2 else 60 * x**3 for x in draw.random(number)]
    return pl.DataFrame(
        {
            "click": pl.Series(draw.integers(0, 2, number)).set(
                pl.Series(draw.random(number) < 0.1), None
            ),
            "watch": pl.Series(known, dtype=pl.Float32),
            "log": pl.Series(known, dtype=pl.Float32),
            "weight_log": pl.Series(draw.integers(0, 3, number) / 2, dtype=pl.Float32),
        }
    )


def test_mean_and_scale_are_those_of_known_train_labels_in_the_space(tmp_path: Path) -> None:
    rows = train_rows()

    tasks = fit_tasks(dataset_of(TASKS), write_train(tmp_path, rows, files=3, row_group_size=997))

    for task, weight in ((tasks[1], None), (tasks[2], "weight_log")):
        amounts = [
            math.log1p(row[task.name]) if task.name == "log" else row[task.name]
            for row in rows.iter_rows(named=True)
            if row["click"] == 1 and row[task.name] is not None
            if weight is None or row[weight] > 0
        ]
        mean = math.fsum(amounts) / len(amounts)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in amounts) / len(amounts))
        assert (task.kind, task.space) == ("regression", "click")
        assert task.mean == pytest.approx(mean, rel=1e-8)
        assert task.scale == pytest.approx(1 / deviation, rel=1e-8)
    assert [task.transform for task in tasks] == ["identity", "identity", "log1p"]
    assert (tasks[0].mean, tasks[0].scale) == (0.0, 1.0)


def test_files_and_row_groups_do_not_show_in_what_is_fitted(tmp_path: Path) -> None:
    rows, dataset = train_rows(), dataset_of(TASKS)
    one = write_train(tmp_path / "a", rows, files=1, row_group_size=65_536)
    other = write_train(tmp_path / "b", rows, files=5, row_group_size=101)
    assert fit_tasks(dataset, one) == fit_tasks(dataset, other)


@pytest.mark.parametrize("values", [[None, None, None], [0.1, 0.1, None]])
def test_a_regression_without_two_different_labels_is_refused(
    values: list[float | None], tmp_path: Path
) -> None:
    rows = pl.DataFrame(
        {"click": [1, 1, 1], "watch": pl.Series(values, dtype=pl.Float32)},
    ).with_columns(log=pl.col("watch"))
    with pytest.raises(RequestError, match=r"task 'watch'.*different labels"):
        fit_tasks(dataset_of(TASKS), write_train(tmp_path, rows, files=1, row_group_size=10))


@pytest.mark.parametrize(("correct", "rate"), [("shift", 0.1), ("weight", 1.0)])
def test_only_a_shift_is_left_to_the_model(correct: str, rate: float, tmp_path: Path) -> None:
    sampling = {"negatives_of": "click", "keep_rate": 0.1, "correct": correct}
    rows = write_train(tmp_path, train_rows(1000), files=1, row_group_size=100)
    tasks = fit_tasks(dataset_of(TASKS, sampling=sampling), rows)
    assert [task.keep_rate for task in tasks] == [rate, 1.0, 1.0]


def test_arrays_hold_labels_and_how_much_they_count() -> None:
    rows = pl.DataFrame(
        {
            "click": [1, 0, None, 1],
            "watch": pl.Series([2.5, None, 1.0, 0.0], dtype=pl.Float32),
            "weight_click": pl.Series([1.0, 10.0, 3.0, None], dtype=pl.Float32),
        }
    )

    labels_BT, known_BT = label_arrays(rows, ["click", "watch"])

    assert labels_BT.dtype == known_BT.dtype == np.float32
    assert labels_BT.tolist() == [[1, 2.5], [0, 0], [0, 1], [1, 0]]
    assert known_BT.tolist() == [[1, 1], [10, 0], [0, 1], [0, 1]]
