"""Every piece of a dataset file that a document shows is one that the features command takes."""

from typing import Any

import pytest
import yaml

from pipelines.dataset.checked import Faults
from pipelines.dataset.dataset import read_dataset
from pipelines.dataset.feature_rules import check_feature_columns
from pipelines.dataset.past_rules import check_past, past_columns
from pipelines.dataset.rules import check_columns, check_dataset, check_rules
from recsys_moe.errors import RequestError
from recsys_moe.spec import Column
from tests.docs.fences import Block, all_blocks

# What a piece leaves out; the documents speak of the same shop throughout.
REST = {
    "name": "shop",
    "source": {"format": "parquet", "path": "logs"},
    "split": {"by": "time", "column": "shown_at"},
    "tasks": [
        {"name": "click", "label": "clicked"},
        {"name": "conversion", "label": "sold", "space": "click"},
    ],
    "features": [{"kind": "categorical", "columns": ["item_id"]}],
}
LISTS = {"tags": Column(name="tags", type="string", is_list=True)}
LISTS["text_embedding"] = Column(name="text_embedding", type="float32", dim=32)
INT64 = ("shown_at", "asked_at", "clicked", "sold")
FLOAT32 = ("price", "shipping", "seconds", "dwell_seconds", "weight")
PIECES = [block for block in all_blocks("yaml") if not block.mark.startswith("file: ")]


def column(name: str) -> Column:
    """A column of the shop; strings are what is neither a number nor a list."""
    kind: Any = "int64" if name in INT64 else "float32" if name in FLOAT32 else "string"
    return LISTS.get(name) or Column(name=name, type=kind)


@pytest.mark.parametrize("block", PIECES, ids=lambda block: block.place)
def test_a_piece_of_a_dataset_file_is_understood(block: Block) -> None:
    check(yaml.safe_load(block.text), block.place)


def test_a_piece_that_is_wrong_would_be_noticed() -> None:
    wrong = {"kind": "numeric", "name": "ratio", "expression": "price / country"}

    with pytest.raises(RequestError, match="country"):
        check({"features": [wrong]}, "here")


def check(piece: dict[str, Any], place: str) -> None:
    """Complete a piece and raise what is wrong with it, but for the files, which are not there."""
    faults = Faults(place)
    dataset = read_dataset({**REST, **piece}, faults)
    check_dataset(dataset, faults)
    columns = {name: column(name) for _, name in dataset.roles()}
    check_columns(dataset, columns, faults)
    check_rules(dataset, columns, faults)
    check_past(dataset, columns, faults)
    check_feature_columns(dataset, {**columns, **past_columns(dataset, columns)}, faults)
    faults.raise_any()
