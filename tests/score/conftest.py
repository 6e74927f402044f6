"""A small real artifact for scoring tests, and the same function in plain Python."""

import hashlib
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import TensorProto as Type
from onnx import helper, numpy_helper

from export.manifest import Manifest, Parity, list_files
from recsys_moe.spec import Categorical, Column, FeatureSpec, Numeric, Table, Task

USERS = {"": 1, "ann": 3, "bob": 4, "zoë": 5}
ITEMS = {-(2**63): 1, 1: 3, 2: 4, 3: 5}
POISON = 666  # an item whose code lies outside the table: the graph raises
TOO_DEAR = 1e6  # beyond this price the graph's score is not a number
MAX_LEN = 3
OUTPUTS = ("p_click", "p_conversion", "p_click_and_conversion")
CLICK, CONVERSION = "logit_click", "logit_conversion"


def table(scale: float) -> np.ndarray:
    """Return the weights [6 codes, 2 tasks] of a table."""
    return np.float32(scale) * np.float32([[0, 0], [1, -1], [2, 3], [-3, 1], [1, 2], [4, -2]])


def probabilities(
    user: str | None, item: int | None, price: float | None, tags: Any
) -> list[float]:
    """Return the three probabilities of one row, by the definition."""
    weights = table(0.1)[USERS.get(user or "", 2)].astype(float)
    weights = weights + table(0.2)[ITEMS.get(-(2**63) if item is None else item, 2)]
    for tag in (tags or [])[:MAX_LEN]:
        weights = weights + table(0.1)[USERS.get(tag or "", 2)]
    missing = price is None or math.isnan(price)
    number = 0.0 if missing else float(np.float32(price)) * 0.25
    logits = weights + np.array([number, -number])
    click, conversion = (1 / (1 + math.exp(-logit)) for logit in logits)
    return [click, conversion, click * conversion]


@pytest.fixture
def oracle() -> Callable[[pl.DataFrame], np.ndarray]:
    """A function from a frame to its probabilities [rows, 3], row by row in plain Python."""

    def predict(frame: pl.DataFrame) -> np.ndarray:
        names = ("user", "item", "price", "tags")
        return np.array([probabilities(*row) for row in frame.select(names).iter_rows()])

    return predict


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of two chained tasks over a string, an integer, a float and a list of strings."""
    return write_artifact(tmp_path_factory.mktemp("artifact") / "art", name="shop-mmoe")


@pytest.fixture(scope="session")
def other_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same graphs under another identity."""
    return write_artifact(tmp_path_factory.mktemp("artifact") / "other", name="shop-ple")


@pytest.fixture(scope="session")
def rows() -> Callable[..., pl.DataFrame]:
    """A function that makes rows with known, unseen and missing values, the same for a seed."""

    def make(num_rows: int, *, seed: int = 0, bad: bool = True) -> pl.DataFrame:
        random = np.random.default_rng(seed)
        pick = lambda words: [words[i] for i in random.integers(len(words), size=num_rows)]  # noqa: E731
        tags: Sequence[Any] = [None, [], ["ann"], ["bob", None, "zoë", "late"], ["x", ""]]
        frame = pl.DataFrame(
            {
                "request": [f"r{seed}-{i}" for i in range(num_rows)],
                "item": pl.Series(pick([1, 2, 3, 77, None]), dtype=pl.Int64),
                "user": pick(["ann", "bob", "zoë", "stranger", "", None]),
                "price": pl.Series(pick([0.5, -2.0, None, float("nan"), 9.0]), dtype=pl.Float64),
                "tags": pl.Series(pick(tags), dtype=pl.List(pl.String)),
                "ignored": [datetime(2026, 1, 1, tzinfo=UTC)] * num_rows,
            }
        )
        if bad:
            third = pl.int_range(pl.len()) % 97 == 13
            frame = frame.with_columns(
                price=pl.when(third).then(math.inf).otherwise("price"),
                item=pl.when(pl.int_range(pl.len()) % 211 == 5).then(POISON).otherwise("item"),
            )
        return frame

    return make


@pytest.fixture
def shop(tmp_path: Path, rows: Callable[..., pl.DataFrame]) -> Path:
    """A folder of two parquet files, of four and three row groups of 100 rows, the last shorter."""
    folder = tmp_path / "shop"
    folder.mkdir()
    rows(400, seed=1).write_parquet(folder / "a.parquet", row_group_size=100)
    rows(250, seed=2).write_parquet(folder / "b.parquet", row_group_size=100)
    return folder


def write_artifact(folder: Path, *, name: str) -> Path:
    """Write graphs, feature spec and manifest."""
    folder.mkdir(parents=True)
    preprocess, core = preprocess_graph(), core_graph()
    model = onnx.compose.merge_models(
        preprocess, core, io_map=[("codes", "codes"), ("numbers", "numbers")]
    )
    for graph, file in ((preprocess, "preprocess"), (core, "core"), (model, "model")):
        onnx.checker.check_model(graph)
        onnx.save(graph, folder / f"{file}.onnx")
    spec = feature_spec()
    spec.save(folder / "feature_spec.json")
    manifest = Manifest(
        name=name,
        files=list_files(folder),
        inputs=spec.columns,
        outputs=OUTPUTS,
        logits=(CLICK, CONVERSION),
        opset=21,
        ir_version=10,
        keys=("row_id",),
        user=None,
        parity=Parity(tolerance=1e-5, largest_gap=0.0, rows=0),
        metrics=None,
        data={"dataset": "shop", "train_rows": 1, "train_window": None},
        model={"name": "mmoe"},
        parameters=36,
        code_version="0",
        spec_digest=spec.digest,
        run_digest=hashlib.sha256(name.encode()).hexdigest(),
    )
    manifest.save(folder)
    return folder


def feature_spec() -> FeatureSpec:
    """Return the spec of the artifact's columns and tasks."""
    columns = (
        Column(name="user", type="string"),
        Column(name="item", type="int64"),
        Column(name="price", type="float32"),
        Column(name="tags", type="string", is_list=True),
    )
    return FeatureSpec(
        dataset="shop",
        columns=columns,
        tables=(
            Table(name="user", num_codes=6, num_oov=1),
            Table(name="item", num_codes=6, num_oov=1),
        ),
        features=(
            Categorical(name="user", column="user", table="user"),
            Categorical(name="item", column="item", table="item"),
            Categorical(name="tags", column="tags", table="user", max_len=MAX_LEN),
            Numeric(
                name="price",
                column="price",
                transform="identity",
                center=0.0,
                scale=1.0,
                clip=1e9,
                missing_flag=False,
            ),
        ),
        tasks=(
            Task(name="click", label="click"),
            Task(name="conversion", label="conversion", space="click"),
        ),
        train_rows=1,
    )


def preprocess_graph() -> onnx.ModelProto:
    """Raw columns -> codes int32 [batch, 5] (user, item, three tags) and numbers [batch, 1]."""
    node = helper.make_node
    item_codes = ITEMS | {POISON: 10**6}
    look_up = {"domain": "ai.onnx.ml", "default_int64": 2}
    users = {"keys_strings": list(USERS), "values_int64s": list(USERS.values())} | look_up
    items = {"keys_int64s": list(item_codes), "values_int64s": list(item_codes.values())} | look_up
    nodes = [
        node("LabelEncoder", ["user"], ["user_code"], **users),
        node("LabelEncoder", ["item"], ["item_code"], **items),
        node("LabelEncoder", ["tags_ids"], ["tags_all"], **users),
        node("Pad", ["tags_all", "pads", "zero", "last"], ["tags_padded"]),
        node("Slice", ["tags_padded", "zeros", "three", "last"], ["tags_three"]),
        node("Unsqueeze", ["tags_len", "last"], ["length"]),
        node("Less", ["places", "length"], ["is_tag"]),
        node("Where", ["is_tag", "tags_three", "zero"], ["tag_codes"]),
        node("Unsqueeze", ["user_code", "last"], ["user_column"]),
        node("Unsqueeze", ["item_code", "last"], ["item_column"]),
        node("Concat", ["user_column", "item_column", "tag_codes"], ["wide"], axis=1),
        node("Cast", ["wide"], ["codes"], to=Type.INT32),
        node("IsNaN", ["price"], ["no_price"]),
        node("Where", ["no_price", "nought", "price"], ["a_price"]),
        node("Unsqueeze", ["a_price", "last"], ["numbers"]),
    ]
    constants = {
        "pads": np.int64([0, MAX_LEN]),
        "zero": np.int64(0),
        "zeros": np.int64([0]),
        "three": np.int64([MAX_LEN]),
        "last": np.int64([1]),
        "places": np.arange(MAX_LEN),
        "nought": np.float32(0),
    }
    inputs = [
        helper.make_tensor_value_info("user", Type.STRING, ["batch"]),
        helper.make_tensor_value_info("item", Type.INT64, ["batch"]),
        helper.make_tensor_value_info("price", Type.FLOAT, ["batch"]),
        helper.make_tensor_value_info("tags_ids", Type.STRING, ["batch", "tags_len"]),
        helper.make_tensor_value_info("tags_len", Type.INT64, ["batch"]),
    ]
    outputs = [
        helper.make_tensor_value_info("codes", Type.INT32, ["batch", 2 + MAX_LEN]),
        helper.make_tensor_value_info("numbers", Type.FLOAT, ["batch", 1]),
    ]
    return model("preprocess", nodes, inputs, outputs, constants)


def core_graph() -> onnx.ModelProto:
    """Codes and numbers -> two logits and three probabilities."""
    node = helper.make_node
    parts = [("user", [0], 0.1), ("item", [1], 0.2), ("tags", list(range(2, 2 + MAX_LEN)), 0.1)]
    nodes, constants = [], {"one": np.int64([1])}
    for name, slots, scale in parts:
        constants |= {f"{name}_slots": np.int64(slots), f"{name}_table": table(scale)}
        nodes += [
            node("Gather", ["codes", f"{name}_slots"], [f"{name}_codes"], axis=1),
            node("Gather", [f"{name}_table", f"{name}_codes"], [f"{name}_rows"]),
            node("ReduceSum", [f"{name}_rows", "one"], [f"{name}_sum"], keepdims=0),
        ]
    constants |= {
        "weights": np.float32([[0.25, -0.25]]),
        "limit": np.float32(TOO_DEAR),
        "nothing": np.float32(0),
    }
    nodes += [
        node("Sub", ["limit", "numbers"], ["room"]),
        node("Sqrt", ["room"], ["root"]),
        node("Mul", ["root", "nothing"], ["no_room"]),
        node("MatMul", ["numbers", "weights"], ["from_price"]),
        node("Sum", ["user_sum", "item_sum", "tags_sum", "from_price", "no_room"], ["logits"]),
        node("Split", ["logits"], ["left", "right"], axis=1, num_outputs=2),
        node("Squeeze", ["left", "one"], [CLICK]),
        node("Squeeze", ["right", "one"], [CONVERSION]),
        node("Sigmoid", [CLICK], ["p_click"]),
        node("Sigmoid", [CONVERSION], ["p_conversion"]),
        node("Mul", ["p_click", "p_conversion"], ["p_click_and_conversion"]),
    ]
    inputs = [
        helper.make_tensor_value_info("codes", Type.INT32, ["batch", 2 + MAX_LEN]),
        helper.make_tensor_value_info("numbers", Type.FLOAT, ["batch", 1]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, Type.FLOAT, ["batch"])
        for name in (*OUTPUTS, CLICK, CONVERSION)
    ]
    return model("core", nodes, inputs, outputs, constants)


def model(
    name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]
) -> onnx.ModelProto:
    """Wrap nodes as a model of the artifact's opsets."""
    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 4)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
