"""Every wrong request ends with its exit code and one line that names the thing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ROWS = pl.DataFrame(
    {
        "item": ["a", "b", None, "c"] * 25,
        "tags": [["x"], [], None, ["y", "z"]] * 25,
        "price": [0.5, 1.5, 2.5, float("nan")] * 25,
        "number": [1, 2, 3, 4] * 25,
        "fold": ["one", "two", "three", "four"] * 25,
        "x_len": [1] * 100,
        "p_click": [1] * 100,
        "click": [0, 1, 1, 0, 1] * 20,
        "answer": ["yes", "no", "yes", "maybe", None] * 20,
        "ones": [1] * 100,
    }
).with_columns(x=pl.col("tags"))
ITEM = {"kind": "categorical", "columns": ["item"]}
CLICK = {"name": "click", "label": "click"}
SOURCE = {"format": "parquet", "train": "rows.parquet", "test": "rows.parquet"}
ONE = {"format": "parquet", "path": "rows.parquet"}

Case = tuple[dict[str, Any], list[str]]


def feature(kind: str, column: str, **more: Any) -> dict[str, Any]:
    return {"features": [{"kind": kind, "name": "f", "column": column, **more}]}


CASES: dict[str, Case] = {
    "unknown key": ({"usr": "item"}, ["usr: wanted one of", "Did you mean 'user'?"]),
    "unknown key of a feature": (
        {"features": [{**ITEM, "min_freq": 2}]},
        ["features[0].min_freq", "Did you mean 'min_frequency'?"],
    ),
    "unknown kind": ({"features": [{**ITEM, "kind": "categorial"}]}, ["mean 'categorical'?"]),
    "unknown format": ({"source": {**SOURCE, "format": "parket"}}, ["mean 'parquet'?"]),
    "unknown space": (
        {"tasks": [CLICK, {"name": "buy", "label": "number", "space": "clik"}]},
        ["tasks[1].space", "got 'clik'", "Did you mean 'click'?"],
    ),
    "spaces in a circle": (
        {
            "tasks": [
                {"name": "a", "label": "click", "space": "b"},
                {"name": "b", "label": "click", "space": "a"},
            ]
        },
        ["tasks[0].space", "does not lead back"],
    ),
    "a task called all": ({"tasks": [{"name": "all", "label": "click"}]}, ["tasks[0].name"]),
    "missing column": (
        {"features": [{**ITEM, "columns": ["itm"]}]},
        ["features[0].column", "got 'itm'", "Did you mean 'item'?"],
    ),
    "missing label": ({"tasks": [{"name": "c", "label": "clik"}]}, ["mean 'click'?"]),
    "missing file": ({"source": {**SOURCE, "test": "none.parquet"}}, ["source.test", "none.par"]),
    "no features": ({"features": []}, ["features: wanted a list of mappings"]),
    "no tasks": ({"tasks": None}, ["tasks: wanted a list of mappings, got nothing"]),
    "the label as input": (feature("categorical", "click"), ["the label of 'click'"]),
    "a label source as input": (
        {
            **feature("categorical", "answer"),
            "tasks": [{"name": "said", "label": {"column": "answer", "positive": ["yes"]}}],
        },
        ["features[0].column", "the label of 'said'"],
    ),
    "the split column as input": (
        {
            **feature("categorical", "fold"),
            "source": ONE,
            "split": {
                "by": "column",
                "column": "fold",
                "train": "one",
                "valid": "two",
                "test": ["three", "four"],
            },
        },
        ["the split"],
    ),
    "row_id as input": (feature("categorical", "row_id"), ["got 'row_id', the number of the row"]),
    "an output's name": (feature("categorical", "p_click"), ["no output of a model"]),
    "a list's length": (
        {
            "features": [
                {"kind": "categorical", "columns": ["x"], "max_len": 2},
                {"kind": "numeric", "name": "n", "column": "x_len"},
            ]
        },
        ["'x_len'", "the list 'x'"],
    ),
    "an empty name": (feature("categorical", ""), ["features[0].column", "got ''"]),
    "a name twice": ({"features": [ITEM, ITEM]}, ["features[1].name", "'item' 2 times"]),
    "floats as categories": (feature("categorical", "price"), ["which holds floats"]),
    "strings as numbers": (feature("numeric", "item"), ["which holds strings"]),
    "a list without max_len": (feature("categorical", "tags"), ["features[0].max_len"]),
    "max_len of a scalar": (feature("hashed", "item", num_buckets=3, max_len=2), ["no max_len"]),
    "no buckets": (feature("hashed", "item"), ["features[0].num_buckets"]),
    "falling edges": (feature("bucketized", "price", edges=[2, 1]), ["features[0].edges"]),
    "edges equal as float32": (feature("bucketized", "price", edges=[1, 1 + 1e-12]), ["edges"]),
    "a table of two types": (
        {
            "features": [
                {"kind": "categorical", "columns": ["item"], "table": "t"},
                {"kind": "categorical", "columns": ["number"], "table": "t"},
            ]
        },
        ["features[1].column", "of table 't'"],
    ),
    "a table of two settings": (
        {
            "features": [
                {"kind": "categorical", "columns": ["item"], "table": "t"},
                {"kind": "hashed", "name": "h", "column": "item", "table": "t", "num_buckets": 4},
            ]
        },
        ["features[1].table"],
    ),
    "a string label": ({"tasks": [{"name": "a", "label": "answer"}]}, ["which holds strings"]),
    "a bare yes": (
        {"tasks": [{"name": "a", "label": {"column": "answer", "positive": [True]}}]},
        ["tasks[0].label.positive", "quote it"],
    ),
    "a value in both lists": (
        {
            "tasks": [
                {
                    "name": "a",
                    "label": {"column": "answer", "positive": "yes", "negative": ["yes", "no"]},
                }
            ]
        },
        ["'yes' in both"],
    ),
    "a label that is always 1": (
        {"tasks": [{"name": "a", "label": "ones"}]},
        ["task 'a'", "0 negatives"],
    ),
    "no validation": ({"split": {"by": "file"}}, ["split.valid_share", "neither"]),
    "a path beside a split by file": ({"source": {**SOURCE, "path": "x"}}, ["source.path"]),
    "time in strings": (
        {"source": ONE, "split": {"by": "time", "column": "item"}},
        ["split.column", "datetime"],
    ),
    "a float key": ({"keys": ["price"]}, ["keys[0]", "floats"]),
    "a type of nothing": ({"source": {**SOURCE, "types": {"itm": "string"}}}, ["mean 'item'?"]),
    "an unknown type": ({"source": {**SOURCE, "types": {"item": "text"}}}, ["types.item"]),
    "words as integers": (
        {"source": {**SOURCE, "types": {"item": "int64"}}},
        ["types found or declared"],
    ),
    "an empty validation": (
        {
            "source": ONE,
            "split": {
                "by": "column",
                "column": "fold",
                "train": ["one", "two"],
                "valid": "no such",
                "test": ["three", "four"],
            },
        },
        ["wanted rows in valid"],
    ),
    "a task named as an input": (
        {"tasks": [{"name": "item", "label": "click"}]},
        ["tasks[0].name", "'item'"],
    ),
}


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that writes the rows beside the dataset file and returns its values."""

    def make(**more: Any) -> dict[str, Any]:
        ROWS.write_parquet(tmp_path / "conf" / "dataset" / "rows.parquet", mkdir=True)
        value = {
            "name": "toy",
            "source": SOURCE,
            "split": {"by": "file", "valid_share": 0.3},
            "tasks": [CLICK],
            "features": [ITEM],
        }
        return {**value, **more}

    return make


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_dataset_file_ends_with_2_and_one_line(
    case: str, command: Any, toy: Callable[..., dict[str, Any]]
) -> None:
    more, words = CASES[case]

    code, error = command(dataset=toy(**more))

    assert code == 2, error
    assert error.startswith("recsys-moe-features: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_all_faults_come_at_once(command: Any, toy: Callable[..., dict[str, Any]]) -> None:
    wrong = toy(
        tasks=[{**CLICK, "space": "cli"}], features=[{"kind": "hashed", "name": "h"}], usr=1
    )

    code, error = command(dataset=wrong)

    assert code == 2
    assert error.count("\n") == 1
    for path in ("tasks[0].space", "features[0].column", "features[0].num_buckets", "usr"):
        assert f") {path}: wanted" in error


def test_too_many_unusable_rows_end_with_3(
    command: Any, toy: Callable[..., dict[str, Any]]
) -> None:
    label = {"column": "answer", "positive": "yes", "negative": "no"}
    value = toy(tasks=[{"name": "said", "label": label}])

    code, error = command(dataset=value)

    assert code == 3
    assert error.count("\n") == 1
    assert "40 of them with 'label of said: not a listed value'" in error
    assert "40 of 200" in error
    assert command("max_quarantine_share=0.5", "overwrite=true", dataset=value)[0] == 0


def test_csv_that_is_not_what_it_says_ends_with_2(
    command: Any, toy: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    source = {"format": "csv", "train": "rows.csv", "test": "rows.csv"}
    value = toy(source={**source, "types": {"number": "int64"}})
    folder = tmp_path / "conf" / "dataset"
    (folder / "rows.csv").write_text("item,number,click\na,1,0\nb,?,1\n" + "a,2,1\nb,3,0\n" * 30)

    code, error = command(dataset=value)

    assert code == 2
    assert error.count("\n") == 1
    assert "'number'" in error
    value["source"]["null_values"] = ["?"]
    assert command(dataset=value) == (0, "")
    (folder / "rows.csv").write_text("item,number,click\na,1,0,9,9\n")
    assert command("overwrite=true", dataset=value)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["dataset: wanted dataset=…", "census_income", "other"]),
        (
            ("dataset=census_incom",),
            ["mean 'census_income'?", "Choices: census_income, funnel, "],
        ),
        (("dataset=othr",), ["Did you mean 'other'?"]),
        (("dataset=other", "output=null"), ["output"]),
        (("dataset=census_income", "dataset.split.sed=3"), ["mean 'dataset.split.seed'?"]),
        (("dataset=census_income", "max_quarantine_share=2"), ["from 0 to 1"]),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_one_line(
    arguments: tuple[str, ...], words: list[str], command: Any, tmp_path: Path
) -> None:
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "dataset" / "other.yaml").write_text("name: other\n")

    code, error = command(f"output={tmp_path / 'out'}", *arguments)

    assert code == 2
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_yaml_that_is_none_ends_with_2(command: Any) -> None:
    code, error = command(dataset="a: [1")

    assert code == 2
    assert error.count("\n") == 1
    assert "toy.yaml, line 1" in error
