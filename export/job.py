"""The scoring job: units of parquet through an artifact, restartable at any moment."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from export.engines import DEVICES
from export.faults import Faults, Reason
from export.feeds import check_columns
from export.flow import ahead, parallel
from export.journal import STAGE, SUCCESS, Journal, claimed, clear, is_finished
from export.keys import Keys, choose_keys, repeated_rows
from export.parts import Part, Scored, part_path, quarantine_path, total
from export.scorer import BATCH_ROWS, Artifact, Scorer
from export.units import InputFile, Unit, find_files, list_units
from recsys_moe.errors import DataError, RequestError
from recsys_moe.files import write_json
from recsys_moe.progress import progress, say


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What decides a job's output, beside the artifact.

    Attributes:
        input: A parquet file, a folder or a glob.
        device: `cpu` or `cuda`.
        keys: Columns to copy beside the scores; none named, those of the artifact.
        outputs: Outputs to write; none named, every prediction (`p_*` and `y_*`).
        unique_keys: Quarantine the rows that repeat an earlier row's key.
        batch_rows: Rows in one call of the graph, for each device.
    """

    input: str
    device: str = "cpu"
    keys: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    unique_keys: bool = False
    batch_rows: Mapping[str, int] = field(default_factory=lambda: dict(BATCH_ROWS))


def score_files(
    artifact_folder: Path,
    request: Request,
    output: Path,
    *,
    max_quarantine_share: float = 0.05,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Score parquet into a folder; the same call again continues, verifies or does nothing.

    Returns:
        What `_SUCCESS.json` says.

    Raises:
        RequestError: Artifact, input, columns, device or output folder are not as they must be.
        DataError: More than `max_quarantine_share` of the rows could not be scored. All parts are
            written then, but not `_SUCCESS.json`; the same request with a larger share adds it.
    """
    _check(request, max_quarantine_share)
    artifact = Artifact.open(artifact_folder)
    outputs = artifact.choose_outputs(request.outputs)
    files = find_files(request.input)
    _check_apart(output, request.input, files)
    for file in files:
        check_columns(file.polars_schema, artifact.inputs, f"input={file.path}")
    keys = choose_keys(request.keys, artifact.manifest.keys, files, outputs)
    identity = _identity(artifact, request, outputs, keys, files)
    units = list_units(files)
    open_scorer = partial(
        Scorer,
        artifact,
        device=request.device,
        outputs=outputs,
        batch_rows=request.batch_rows[request.device],
    )
    # A device that does not work must leave no trace, so the scorer comes before the claim.
    scorer = None if is_finished(output, identity) else open_scorer()
    with claimed(output, identity, overwrite=overwrite):
        journal = Journal(output)
        finished = journal.finished(units)
        todo = [unit for unit in units if unit.name not in finished]
        if finished:
            say("resumed", f"{len(finished)} units verified and kept, {len(todo)} to do")
        else:
            rows = sum(unit.rows for unit in units)
            say(STAGE, f"{len(files)} files, {len(units)} units, {rows:,} rows, {request.device}")
        started = time.monotonic()
        if todo:
            clear(output)
            scorer = scorer or open_scorer()
        repeated = _repeated(units, todo, keys, journal, request.unique_keys)
        if todo and scorer:
            _score_units(scorer, todo, keys, repeated, output, journal)
        return _finish(
            journal,
            units,
            output,
            {
                "duplicate_keys": journal.duplicate_keys,
                "keys": list(keys.names),
                "outputs": list(outputs),
                "device": request.device,
                "artifact": artifact.manifest.digest,
            },
            max_quarantine_share=max_quarantine_share,
            rate=sum(unit.rows for unit in todo) / (time.monotonic() - started),
        )


def _score_units(
    scorer: Scorer,
    units: Sequence[Unit],
    keys: Keys,
    repeated: npt.NDArray[np.int64],
    output: Path,
    journal: Journal,
) -> None:
    """Read ahead in one thread, score in several, write in this one; memory stays bounded."""
    inputs = [item.name for item in scorer.artifact.inputs]
    columns = list(dict.fromkeys([*keys.columns, *inputs]))

    def score(batch: tuple[Unit, int, pa.Table]) -> Scored:
        unit, first_row, table = batch
        frame = pl.DataFrame(table.select(inputs))
        faults = Faults.none(table.num_rows)
        for name in keys.columns:
            faults.add(Reason.NULL_KEY, np.flatnonzero(table[name].is_null().to_numpy()), name)
        low, high = np.searchsorted(repeated, [first_row, first_row + table.num_rows])
        faults.add(Reason.DUPLICATE_KEY, repeated[low:high] - first_row, ", ".join(keys.names))
        return Scored(unit, table.select(list(keys.columns)), scorer.score(frame, faults), faults)

    batches = ahead(_read(units, columns, scorer.batch_rows), depth=2)
    with (
        closing(batches),
        closing(parallel(score, batches, scorer.workers)) as results,
        progress(STAGE, sum(unit.rows for unit in units)) as advance,
    ):
        part = None
        for scored in results:
            part = part or Part(scored.unit, keys)
            part.add(scored)
            advance(len(scored.faults.flags))
            if part.rows >= part.unit.rows:
                journal.append(part.write(output))
                part = None


def _read(
    units: Sequence[Unit], columns: Sequence[str], batch_rows: int
) -> Iterator[tuple[Unit, int, pa.Table]]:
    """Yield the batches of all units with the number of their first row."""
    for unit in units:
        first_row = unit.first_row
        for table in unit.batches(columns, batch_rows):
            yield unit, first_row, table
            first_row += table.num_rows


def _repeated(
    units: Sequence[Unit], todo: Sequence[Unit], keys: Keys, journal: Journal, unique_keys: bool
) -> npt.NDArray[np.int64]:
    """Count duplicate keys once, for the journal; return the rows to quarantine for them."""
    nothing = np.zeros(0, np.int64)
    if journal.duplicate_keys is not None and not (unique_keys and todo):
        return nothing
    repeated = repeated_rows(units, keys)
    if journal.duplicate_keys is None:
        journal.append({"duplicate_keys": len(repeated)})
    return repeated if unique_keys else nothing


def _finish(
    journal: Journal,
    units: Sequence[Unit],
    output: Path,
    about: dict[str, Any],
    *,
    max_quarantine_share: float,
    rate: float,
) -> dict[str, Any]:
    """Check that every row is accounted for, judge the quarantine and mark the folder as done."""
    lines = journal.lines(units)
    rows = total(lines, units, output)
    summary = rows | about
    summary["parts"] = [
        {"path": _relative(part_path(output, line["unit"]), output), "rows": line["scored"]}
        | line["part"]
        for line in lines
    ]
    summary["quarantine"] = [
        {"path": _relative(quarantine_path(output, line["unit"]), output)}
        | {"rows": line["quarantined"]}
        | line["quarantine"]
        for line in lines
        if line["quarantine"]
    ]
    said = (
        f"{rows['rows_in']:,} rows in = {rows['rows_scored']:,} scored + "
        f"{rows['rows_quarantined']:,} quarantined"
    )
    if about["duplicate_keys"]:
        say(STAGE, f"{about['duplicate_keys']:,} rows have the key of an earlier row")
    if rows["rows_quarantined"] > max_quarantine_share * rows["rows_in"]:
        clear(output)
        reasons = ", ".join(f"{number:,} {name}" for name, number in rows["reasons"].items())
        raise DataError(
            f"output={output}: wanted at most {max_quarantine_share:.2%} of the rows quarantined, "
            f"got {said} ({reasons}); all parts are kept but not marked as done"
        )
    write_json(output / SUCCESS, summary)
    say(STAGE, said + (f", {rate:,.0f} rows/s" if rate else ", nothing to do"))
    return summary


def _identity(
    artifact: Artifact,
    request: Request,
    outputs: Sequence[str],
    keys: Keys,
    files: Sequence[InputFile],
) -> dict[str, Any]:
    """Return all that the bytes of the output follow from, as plain JSON values."""
    return {
        "stage": STAGE,
        "artifact": artifact.manifest.digest,
        "device": request.device,
        "batch_rows": request.batch_rows[request.device],
        "outputs": list(outputs),
        "keys": list(keys.names),
        "unique_keys": request.unique_keys,
        "input": [file.identity for file in files],
    }


def _check(request: Request, max_quarantine_share: float) -> None:
    if request.device not in DEVICES:
        raise RequestError(
            f"device={request.device}",
            wanted=" or ".join(DEVICES),
            got=repr(request.device),
            choices=DEVICES,
        )
    if not 0 <= max_quarantine_share <= 1:
        raise RequestError(
            "max_quarantine_share", wanted="a share from 0 to 1", got=f"{max_quarantine_share}"
        )


def _check_apart(output: Path, where: str, files: Sequence[InputFile]) -> None:
    """Refuse an output folder that is mixed up with the input: its parts would be read as input."""
    place, folder = output.resolve(), Path(where).resolve()
    inside = [file.path for file in files if file.path.resolve().is_relative_to(place)]
    if inside or (folder.is_dir() and place.is_relative_to(folder)):
        raise RequestError(
            f"output={output}",
            wanted="a folder apart from the input",
            got=f"one that holds {inside[0]}" if inside else f"one inside input={where}",
        )


def _relative(path: Path, output: Path) -> str:
    return path.relative_to(output).as_posix()
