"""CSV as others write it: another separator, and what is said where a column is not there."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines import build

ITEM = {"kind": "categorical", "columns": ["item"]}
PRICE = {"kind": "numeric", "name": "price", "column": "price"}


@pytest.fixture
def shop(tmp_path: Path, frame: Callable[..., pl.DataFrame]) -> Callable[..., dict[str, Any]]:
    """Return a function from a separator and changes to a dataset over a CSV so separated."""

    def make(sign: str, dataset_of: Callable[..., Any], **source: Any) -> dict[str, Any]:
        folder = tmp_path / "conf" / "dataset"
        folder.mkdir(parents=True, exist_ok=True)
        rows = frame(300, 1).select("user", "item", "price", "click")
        rows.write_csv(folder / "rows.csv", separator=sign)
        return dataset_of(
            [ITEM, PRICE],
            source={"format": "csv", "path": "rows.csv", **source},
            split={"by": "hash", "column": "user"},
        )

    return make


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_separator_changes_nothing_but_the_file(
    separator: str, shop: Any, dataset_of: Any, command: Any, tmp_path: Path
) -> None:
    found = []
    for sign in (",", separator):
        value = shop(sign, dataset_of, **({} if sign == "," else {"separator": sign}))
        assert command("overwrite=true", dataset=value) == (0, "")
        found.append(pl.read_parquet(tmp_path / "out" / "prepared" / "train" / "*.parquet"))

    assert found[0].equals(found[1])


def test_a_file_of_another_separator_shows_it_and_the_faults_come_in_order(
    shop: Any, dataset_of: Any, command: Any
) -> None:
    code, error = command(dataset=shop(";", dataset_of))

    assert code == 2
    assert error.count("\n") == 1
    assert "it has only 'user;item;price;click': is its separator ','?" in error
    assert error.index("features[0].column") < error.index("features[1].column")
    assert not error.endswith("?.\n")


def test_a_missing_column_comes_with_those_that_are_there(
    shop: Any, dataset_of: Any, command: Any
) -> None:
    value = shop(",", dataset_of) | {"user": "visitor"}

    code, error = command(dataset=value)

    assert code == 2
    assert "rows.csv (it has user, item, price, click), got 'visitor'" in error


@pytest.mark.parametrize("source", [{"separator": ";;"}, {"separator": "§"}, {"separator": 5}])
def test_a_separator_is_one_ascii_character(
    source: dict[str, Any], shop: Any, dataset_of: Any, command: Any
) -> None:
    code, error = command(dataset=shop(",", dataset_of, **source))

    assert code == 2
    assert "source.separator: wanted one ASCII character, got" in error


def test_help_needs_no_dataset(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["recsys-moe-features", "--help"])

    with pytest.raises(SystemExit) as ended:
        build.main()

    said = capfd.readouterr()
    assert not ended.value.code
    assert "max_quarantine_share" in said.out
    assert said.err == ""
