"""An artifact as a function: raw columns in, predictions out, in Python and without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from export.engines import GraphError, open_engine
from export.faults import Faults, Reason
from export.feeds import Input, build_feeds, check_columns, graph_inputs, missing_column
from export.manifest import SPEC_FILE, Manifest
from recsys_moe.errors import RecsysMoeError, RequestError
from recsys_moe.spec import FeatureSpec

Array = npt.NDArray[Any]
Scores = dict[str, npt.NDArray[np.float32]]

BATCH_ROWS = {"cpu": 4096, "cuda": 65536}
_EXACT = 2**53  # below it every whole number is a float64 of its own


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder whose every file has been checked against its manifest."""

    folder: Path
    manifest: Manifest
    inputs: tuple[Input, ...]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Verify an artifact.

        Raises:
            ArtifactError: A file is missing, extra or changed.
        """
        manifest = Manifest.verify(folder)
        spec = FeatureSpec.load(folder / SPEC_FILE)
        return cls(folder, manifest, graph_inputs(manifest.inputs, spec))

    def choose_outputs(self, outputs: Sequence[str] | None) -> tuple[str, ...]:
        """Return the outputs asked for, or every prediction if none is."""
        known = (*self.manifest.outputs, *self.manifest.logits)
        for position, name in enumerate(outputs or ()):
            if name not in known:
                wanted = f"some of {', '.join(known)}"
                raise RequestError("outputs", wanted=wanted, got=repr(name), choices=known)
            if name in (outputs or ())[:position]:
                raise RequestError("outputs", wanted="each name once", got=f"{name!r} twice")
        return tuple(outputs or self.manifest.outputs)


class Scorer:
    """Score frames of raw columns with an artifact.

    Args:
        artifact: The artifact's folder; it is verified before anything in it is loaded.
        device: `cpu` or `cuda`; a device that does not work is an error, never another device.
        outputs: Names of outputs; none named, every prediction (`p_*` and `y_*`).
        batch_rows: Rows in one call of the graph; it bounds memory and does not change scores
            beyond rounding. Default 4,096 on the CPU and 65,536 on CUDA.
    """

    def __init__(
        self,
        artifact: str | Path | Artifact,
        *,
        device: str = "cpu",
        outputs: Sequence[str] | None = None,
        batch_rows: int | None = None,
    ) -> None:
        opened = artifact if isinstance(artifact, Artifact) else Artifact.open(Path(artifact))
        self.artifact, self.outputs = opened, opened.choose_outputs(outputs)
        self._engine = open_engine(opened.folder, self.outputs, device)
        self.batch_rows = BATCH_ROWS[device] if batch_rows is None else batch_rows
        if self.batch_rows < 1:
            raise RequestError("batch_rows", wanted="at least 1", got=str(self.batch_rows))

    @property
    def workers(self) -> int:
        """How many threads may score at once to use the machine well."""
        return self._engine.workers

    def predict(self, frame: Any) -> pl.DataFrame:
        """Return the predictions for a frame's rows, float32, one column an output.

        Args:
            frame: A Polars frame, a mapping from column names to values, or whatever else Polars
                makes a frame of (pandas, Arrow). Other columns may be in it; they are ignored.
                From pandas, integers may come as floats, as they do beside missing ones.

        Returns:
            As many rows as came, in their order. A row that a scoring job would quarantine (an
            infinite number, an integer that int64 cannot hold, a vector of another length) has
            nulls.

        Raises:
            RequestError: A column is missing or of the wrong type.
        """
        raw = self._frame(frame)
        check_columns(raw.schema, self.artifact.inputs, "input")
        parts = []
        for batch in raw.iter_slices(self.batch_rows):
            faults = Faults.none(batch.height)
            scores = pl.DataFrame(self.score(batch, faults))
            parts.append(scores.with_columns(pl.all().fill_nan(None)))
        empty = pl.DataFrame(schema=dict.fromkeys(self.outputs, pl.Float32))
        return pl.concat([empty, *parts])

    def score(self, batch: pl.DataFrame, faults: Faults) -> Scores:
        """Score the rows of one checked batch that have no fault yet.

        Returns:
            For each output float32 [rows], NaN where the row has a fault, also one found now.
        """
        feeds = build_feeds(batch, self.artifact.inputs, faults)
        rows = np.flatnonzero(faults.good)
        scores = {name: np.full(batch.height, np.nan, np.float32) for name in self.outputs}
        self._run(feeds, rows, scores, faults)
        finite = np.logical_and.reduce([np.isfinite(scores[name]) for name in self.outputs])
        unscored = np.flatnonzero(~finite & faults.good)
        if unscored.size:
            wrong = [n for n in self.outputs if not np.isfinite(scores[n][unscored]).all()]
            faults.add(Reason.NON_FINITE_SCORE, unscored, ", ".join(wrong))
            for name in self.outputs:
                scores[name][unscored] = np.nan
        return scores

    def _run(self, feeds: Mapping[str, Array], rows: Array, scores: Scores, faults: Faults) -> None:
        """Run some rows; where the graph raises, halve them until the rows to blame stand alone."""
        if not rows.size:
            return
        whole = len(rows) == len(faults.flags)
        try:
            results = self._engine.run(feeds if whole else {k: v[rows] for k, v in feeds.items()})
        except GraphError as error:
            if len(rows) == 1:
                self._prove_engine(error)
                faults.add(Reason.SCORING_ERROR, rows, str(error))
                return
            half = len(rows) // 2
            self._run(feeds, rows[:half], scores, faults)
            self._run(feeds, rows[half:], scores, faults)
            return
        for name, values in results.items():
            scores[name][rows] = values

    def _prove_engine(self, error: GraphError) -> None:
        """Blame a row only if a row in which everything is missing can be scored."""
        schema = {item.name: pl.Null for item in self.artifact.inputs}
        empty = pl.DataFrame({name: [None] for name in schema}, schema=schema)
        try:
            self._engine.run(build_feeds(empty, self.artifact.inputs, Faults.none(1)))
        except GraphError:
            raise RecsysMoeError(
                f"{self.artifact.folder}: wanted scores, got an error for every row: {error}"
            ) from error

    def _frame(self, frame: Any) -> pl.DataFrame:
        """Return the graph's columns of whatever came, as a Polars frame."""
        names = [item.name for item in self.artifact.inputs]
        if isinstance(frame, pl.LazyFrame):
            frame = frame.collect()
        present = list(frame) if isinstance(frame, Mapping) else list(getattr(frame, "columns", ()))
        present = getattr(frame, "column_names", present)
        for item in self.artifact.inputs:
            if item.name not in present:
                raise missing_column("input", item.name, item.wanted, present)
        if isinstance(frame, pl.DataFrame):
            return frame.select(names)
        try:
            if isinstance(frame, Mapping):
                return pl.DataFrame({name: frame[name] for name in names}, strict=True)
            if not hasattr(frame, "iloc"):
                return pl.DataFrame(frame).select(names)
            pandas = pl.DataFrame(frame[names])
            integers = (i.name for i in self.artifact.inputs if i.column.type == "int64")
            return pandas.with_columns(_whole(pandas[name]) for name in integers)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
            raise RequestError(
                "input", wanted="a table of columns", got=str(error).splitlines()[0]
            ) from None


def _whole(series: pl.Series) -> pl.Series:
    """Return floats, or lists of them, as int64 where every one is whole; leave the rest alone."""
    inner = getattr(series.dtype, "inner", series.dtype)
    if not inner.is_float():
        return series
    kind = pl.List(pl.Int64()) if series.dtype == pl.List else pl.Int64()
    numbers = (series.explode() if kind == pl.List else series).fill_nan(None).drop_nulls()
    if not ((numbers == numbers.round()) & (numbers.abs() < _EXACT)).all():
        return series
    element = pl.element().fill_nan(None)
    return (series.list.eval(element) if kind == pl.List else series.fill_nan(None)).cast(kind)
