"""An expression is the same number in Polars, in the exported graph and in plain Python."""

import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from export.columns import raw_feeds
from export.expression_reference import evaluate
from export.expressions import DOUBLE, ExpressionNodes
from export.graph import GraphBuilder, open_graph, tensor
from export.preprocess import _inputs
from pipelines.encoding.expressions import expression
from recsys_moe.expression import parse
from recsys_moe.expression_types import resolve
from recsys_moe.spec import INT64_MISSING, Column

ROWS = 10_000
COLUMNS = (
    Column(name="price", type="float32"),
    Column(name="paid", type="float32"),
    Column(name="age", type="int64"),
    Column(name="shown_at", type="int64"),
    Column(name="user.id", type="int64"),
    Column(name="country", type="string"),
    Column(name="home", type="string"),
    Column(name="tags", type="string", is_list=True),
)
POOLS: dict[str, list] = {
    "float32": [
        *[None, float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-45, 3.4e38, -3.4e38],
        *[-(2.0**63), 1e-30, 0.5, 1.0, -1.0, 2.0, -2.5, 7.0, 3.0, 19.99, 1e10, -1e-7, 16777216.0],
    ],
    "int64": [
        *[None, INT64_MISSING, INT64_MISSING + 1, INT64_MISSING + 1025, 2**63 - 1, 2**53 + 1],
        *[0, -1, 1, 2, 3, 7, -7, 18, 65, 86_400_000_000, 86_399_999_999, -1, 1_700_000_000_123_456],
        *[10**18, -3_600_000_000, 1_763_800_000_000_000],
    ],
    "string": [None, "", "de", "at", "é", "e\u0301", "a\x00b", "日本", "DE", "x" * 300],
}
EXACT = [
    "price + paid",
    "price - paid * 2",
    "price / paid",
    "price / 3",
    "3 / age",
    "-age",
    "age % 7",
    "price % paid",
    "abs(price - age)",
    "floor(price / 3) * 3",
    "price < paid",
    "(price <= 1) + (price > 1) + (age >= 18)",
    "age == col('user.id')",
    "price != paid",
    "age in (1, 2, -7)",
    "age not in (1, 2.0)",
    "price and age",
    "len(tags) or is_missing(home) or price < 0",
    "not price",
    "min(price, age, 3)",
    "max(price, paid)",
    "clip(price, -1, age)",
    "hour(shown_at)",
    "weekday(shown_at + 3600000000)",
    "days_between(shown_at, col('user.id'))",
    "coalesce(price, paid, 5)",
    "coalesce(3, price)",
    "coalesce(1 / price, log(0), paid)",
    "is_missing(price) + 2 * is_missing(country) + 4 * is_missing(1 / age)",
    "if_else(price > 1, paid, age)",
    "if_else(1, 2, price)",
    "if_else(is_missing(price), 0, price) + 1",
    "country == 'de'",
    "'de' != country",
    "country == home",
    "country != home",
    "country in ('de', 'at', 'de', '日本', 'a\\x00b')",
    "country not in ('é',)",
    "len(tags)",
    "if_else(len(tags) > 1, price, -1)",
    "1 / (price * 1e300 * 1e300)",
    "price * 1e300 / 1e300",
    "sqrt(age)",
]
CLOSE = [
    "log(price)",
    "log1p(price)",
    "log1p(price) - log1p(paid)",
    "log1p(-price)",
    "exp(price)",
    "exp(-abs(price) * 1e300)",
    "pow(age, 2)",
    "pow(price, paid)",
    "pow(abs(price), 0.5)",
    "pow(price, 0)",
    "log(1 + exp(min(price, 30)))",
]


def rows(count: int, seed: int) -> pl.DataFrame:
    """Return awkward rows: half of each column from its pool, the others of a usual size."""
    draw = random.Random(seed)
    usual = {
        "float32": lambda: draw.gauss(0, 30),
        "int64": lambda: draw.randint(-50, 2_000_000_000_000_000) // 10 ** draw.randrange(16),
        "string": lambda: draw.choice(["de", "at", "fr", "é"]),
    }

    def value(kind: str):
        return draw.choice(POOLS[kind]) if draw.random() < 0.5 else usual[kind]()

    def cell(column: Column):
        if not column.is_list:
            return value(column.type)
        return (
            None if draw.random() < 0.2 else [value(column.type) for _ in range(draw.choice(SIZES))]
        )

    return pl.DataFrame(
        {
            column.name: pl.Series(
                [cell(column) for _ in range(count)], dtype=TYPES[column.type, column.is_list]
            )
            for column in COLUMNS
        }
    )


SIZES = (0, 1, 2, 5)
TYPES = {
    ("float32", False): pl.Float32(),
    ("int64", False): pl.Int64(),
    ("string", False): pl.String(),
    ("string", True): pl.List(pl.String()),
}


def by_graph(texts: Sequence[str], frame: pl.DataFrame, folder: Path) -> list[np.ndarray]:
    graph = GraphBuilder("expressions")
    nodes = ExpressionNodes(graph, COLUMNS)
    values = [graph.add("Identity", nodes(text)) for text in texts]
    model = graph.model(
        [info for column in COLUMNS for info in _inputs(column)],
        [tensor(value, DOUBLE, "batch") for value in values],
    )
    (folder / "expressions.onnx").write_bytes(model.SerializeToString())
    return open_graph(folder / "expressions.onnx").run(values, raw_feeds(frame, COLUMNS))


def by_polars(texts: Sequence[str], frame: pl.DataFrame, *, lazy: bool) -> list[np.ndarray]:
    named = [expression(text, COLUMNS).alias(str(i)) for i, text in enumerate(texts)]
    result = frame.lazy().select(named).collect(engine="streaming") if lazy else frame.select(named)
    assert result.height == frame.height
    for series in result:
        assert series.dtype == pl.Float64
        assert series.drop_nulls().is_finite().all()
    return [series.fill_null(math.nan).to_numpy() for series in result]


def by_python(texts: Sequence[str], frame: pl.DataFrame) -> list[np.ndarray]:
    trees = [parse(text) for text in texts]
    values = [[evaluate(tree, row) for tree in trees] for row in frame.iter_rows(named=True)]
    return [np.array(column, np.float64) for column in zip(*values, strict=True)]


@pytest.mark.parametrize("count", [1, 2, ROWS])
def test_exact_operations_agree_to_the_bit(count: int, tmp_path: Path) -> None:
    frame = rows(count, seed=count)

    expected = by_python(EXACT, frame)

    ways = {
        "graph": by_graph(EXACT, frame, tmp_path),
        "eager": by_polars(EXACT, frame, lazy=False),
        "streaming": by_polars(EXACT, frame, lazy=True),
    }
    for way, results in ways.items():
        for text, result, value in zip(EXACT, results, expected, strict=True):
            np.testing.assert_array_equal(result, value, f"{text} by {way}")
    if count == ROWS:  # each says something: neither always missing nor always the same
        for text, value in zip(EXACT, expected, strict=True):
            assert len(set(value[np.isfinite(value)])) > 1 or text in CONSTANT, text


CONSTANT = {"coalesce(3, price)", "if_else(1, 2, price)", "1 / (price * 1e300 * 1e300)"}


def test_logarithms_and_powers_agree_to_their_last_digits(tmp_path: Path) -> None:
    frame = rows(ROWS, seed=4)

    expected = by_python(CLOSE, frame)

    for results in (by_graph(CLOSE, frame, tmp_path), by_polars(CLOSE, frame, lazy=True)):
        for text, result, value in zip(CLOSE, results, expected, strict=True):
            np.testing.assert_allclose(result, value, rtol=1e-13, atol=1e-14, err_msg=text)
            assert np.isfinite(value).sum() > 100


def random_number(draw: random.Random, depth: int) -> str:
    """Return a random expression of operations that are exact everywhere."""
    if depth == 0:
        return draw.choice(LEAVES)
    parts = [f"({random_number(draw, draw.randrange(depth))})" for _ in range(3)]
    return draw.choice(SHAPES).format(*parts)


LEAVES = [
    *["price", "paid", "age", "shown_at", "len(tags)", "is_missing(home)", "3", "-0.5", "7.25"],
    *["0", "country == home", "country in ('de', 'at')"],
]
OPERATORS = ["+", "-", "*", "/", "%", "<", "<=", ">", ">=", "==", "!=", "and", "or"]
SHAPES = [
    *[f"{{0}} {operator} {{1}}" for operator in OPERATORS],
    *["min({0}, {1})", "max({0}, {1}, {2})", "clip({0}, {1}, {2})", "abs({0})", "-{0}", "not {0}"],
    *["coalesce({0}, {1})", "is_missing({0})", "if_else({0}, {1}, {2})", "{0} in (0, 1, 2)"],
    *["floor({0})", "sqrt({0})", "days_between(0 + {0}, 0 + {1})", "hour(0 + {0})"],
    *["weekday(0 + {0})", "{0} not in (-0.5, 3)"],
]


@pytest.mark.parametrize("seed", range(4))
def test_any_expression_of_exact_operations_agrees_to_the_bit(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    texts = [f"({random_number(draw, 5)}) + 0 * coalesce(age, 0)" for _ in range(300)]
    texts = [text for text in texts if len(text) <= 500][:120]
    for text in texts:
        resolve(text, COLUMNS)
    frame = rows(150, seed)

    expected = by_python(texts, frame)

    for results in (by_graph(texts, frame, tmp_path), by_polars(texts, frame, lazy=False)):
        for text, result, value in zip(texts, results, expected, strict=True):
            np.testing.assert_array_equal(result, value, text)


def test_hours_and_weekdays_are_the_calendars(tmp_path: Path) -> None:
    draw = random.Random(9)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    turns = [draw.randrange(-600_000, 2_500_000) * 3_600_000_000 for _ in range(2_000)]
    times = [turn + step for turn in turns for step in (-1, 0, 1, draw.randrange(3_600_000_000))]
    moments = [epoch + timedelta(microseconds=time) for time in times]
    frame = rows(1, 0).select(pl.all().exclude("shown_at").repeat_by(len(times)).explode())
    frame = frame.with_columns(shown_at=pl.Series(times)).select(c.name for c in COLUMNS)
    texts = ["hour(shown_at)", "weekday(shown_at)"]

    for results in (by_graph(texts, frame, tmp_path), by_polars(texts, frame, lazy=False)):
        assert results[0].tolist() == [moment.hour for moment in moments]
        assert results[1].tolist() == [moment.weekday() for moment in moments]


def test_the_deepest_expression_costs_no_more_than_its_length(tmp_path: Path) -> None:
    text = "price"
    for _ in range(24):
        text = f"1/min({text},2)"
    frame = rows(100, 1)

    expected = by_python([text], frame)

    np.testing.assert_array_equal(by_graph([text], frame, tmp_path), expected)
    np.testing.assert_array_equal(by_polars([text], frame, lazy=True), expected)


@pytest.mark.parametrize("text", EXACT + CLOSE)
def test_an_expression_streams(text: str, tmp_path: Path) -> None:
    rows(5, 1).write_parquet(tmp_path / "rows.parquet")
    plan = pl.scan_parquet(tmp_path / "rows.parquet").select(expression(text, COLUMNS))

    nodes = plan.show_graph(engine="streaming", plan_stage="physical", raw_output=True)

    assert nodes is not None
    for word in ("in-memory-map", "in-memory-join", "columnar-function"):
        assert word not in nodes


def test_equal_parts_are_in_the_graph_once() -> None:
    graph = GraphBuilder("expressions")
    nodes = ExpressionNodes(graph, COLUMNS)
    nodes("exp(price) / 2")
    before = len(graph.nodes)

    nodes("exp(price) / 2")

    assert [node.op_type for node in graph.nodes[before:]] == ["Where"]
