"""The parity gate: nothing is published that differs from its checkpoint.

The graph is held against the checkpoint in torch on raw rows. The torch side gets its codes and
numbers from the reference encoder, so the whole graph is under test, the look-ups included.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import nn

from export.columns import raw_feeds
from export.core import Predictions
from export.fuzz import fuzzed_rows, missing_rows
from export.graph import open_graph
from export.manifest import CODES, MODEL_FILE, NUMBERS, PREPROCESS_FILE, Parity
from export.reference import ReferenceEncoder
from recsys_moe.errors import ArtifactError
from recsys_moe.spec import FeatureSpec, Task

FUZZED_ROWS = 4096
_ALONE_ROWS = 64
_BATCH_ROWS = 1024
_NUMBER_TOLERANCE = 1e-6

Array = npt.NDArray[Any]


def awkward_frame(
    spec: FeatureSpec, folder: Path, sample: pl.DataFrame, *, rows: int = FUZZED_ROWS
) -> pl.DataFrame:
    """Return what the gate runs on: the real sample, as many fuzzed rows as asked, all missing.

    Args:
        spec: The feature spec.
        folder: The folder that its vocabulary paths are relative to.
        sample: Real rows with at least the spec's columns.
        rows: How many fuzzed rows.
    """
    names = [column.name for column in spec.columns]
    fuzzed = fuzzed_rows(spec, folder, sample, rows)
    return pl.concat([sample.select(names), fuzzed, missing_rows(spec, 1)])


def check_parity(
    artifact: Path,
    model: nn.Module,
    spec: FeatureSpec,
    folder: Path,
    frame: pl.DataFrame,
    *,
    tolerance: float,
    outputs: Sequence[str] | None = None,
) -> Parity:
    """Compare an artifact with its checkpoint and return the largest gap.

    That of a probability is its difference; that of an amount is the difference of what its tower
    learns, in standard deviations of the train labels, or in parts of the value where that is
    larger: float32 holds no more.

    Args:
        artifact: A folder with `preprocess.onnx` and `model.onnx`.
        model: The checkpoint's model, in eval mode.
        spec: The feature spec.
        folder: The folder that the spec's vocabulary paths are relative to.
        frame: Raw rows with the spec's columns; the last 64 are also scored one by one.
        tolerance: The largest gap that may be published.
        outputs: The artifact's predictions; None for all of the spec's.

    Raises:
        ArtifactError: A code differs, a number differs by more than 1e-6, or a prediction by more
            than the tolerance; the first such place is named.
    """
    codes, numbers = ReferenceEncoder(spec, folder)(frame)
    _check_encoding(artifact / PREPROCESS_FILE, spec, frame, codes, numbers)
    names = list(spec.predictions if outputs is None else outputs)
    tasks = {f"y_{task.name}": task for task in spec.regressions}
    expected = _torch_predictions(model, spec, names, codes, numbers)
    session = open_graph(artifact / MODEL_FILE)
    gap, first_alone = 0.0, max(0, frame.height - _ALONE_ROWS)
    batches = [(start, _BATCH_ROWS) for start in range(0, frame.height, _BATCH_ROWS)]
    batches += [(start, 1) for start in range(first_alone, frame.height)]
    for start, rows in batches:
        got = session.run(names, raw_feeds(frame.slice(start, rows), spec.columns))
        for name, value, wanted in zip(names, got, expected, strict=True):
            apart = _apart(value, wanted[start : start + rows], tasks.get(name))
            worst = int(np.argmax(apart))  # a NaN counts as the maximum
            if not apart[worst] <= tolerance:
                raise ArtifactError(
                    f"parity of {name}, row {start + worst} in a batch of {len(value)}",
                    wanted=f"at most {tolerance:g} from the checkpoint",
                    got=f"{apart[worst]:.3g}",
                )
            gap = max(gap, float(apart[worst]))
    return Parity(tolerance=tolerance, largest_gap=gap, rows=frame.height)


def _check_encoding(
    path: Path, spec: FeatureSpec, frame: pl.DataFrame, codes: Array, numbers: Array
) -> None:
    got_codes, got_numbers = open_graph(path).run([CODES, NUMBERS], raw_feeds(frame, spec.columns))
    wrong = np.argwhere(got_codes != codes)
    if len(wrong):
        row, slot = wrong[0]
        names = [f.name for f in spec.code_features for _ in range(f.num_slots)]
        raise ArtifactError(
            f"codes of feature {names[slot]!r}, row {row}",
            wanted=str(codes[row, slot]),
            got=f"{got_codes[row, slot]} ({len(wrong)} codes differ)",
        )
    wrong = np.argwhere(~(np.abs(got_numbers - numbers) <= _NUMBER_TOLERANCE))
    if len(wrong):
        row, place = wrong[0]
        names = [f.name for f in spec.numeric_features for _ in range(f.num_numbers)]
        raise ArtifactError(
            f"number of feature {names[place]!r}, row {row}",
            wanted=str(numbers[row, place]),
            got=f"{got_numbers[row, place]} ({len(wrong)} numbers differ)",
        )


def _apart(got: Array, wanted: Array, task: Task | None) -> Array:
    """Return the gap of each row, NaN where either is not a number."""
    if task is None:
        gap: Array = np.abs(got - wanted)
        return gap
    mine, theirs = got.astype(np.float64), wanted.astype(np.float64)
    if task.transform == "log1p":
        mine, theirs = np.log1p(mine), np.log1p(theirs)
    gap = np.abs(mine - theirs) / np.maximum(1 / task.scale, np.abs(theirs))
    return gap


@torch.no_grad()
def _torch_predictions(
    model: nn.Module, spec: FeatureSpec, outputs: Sequence[str], codes: Array, numbers: Array
) -> list[Array]:
    """Return each prediction, float32 [rows], from the checkpoint."""
    predictions = Predictions(model, spec, outputs).eval()
    parts = [
        predictions(
            torch.from_numpy(codes[start : start + _BATCH_ROWS]),
            torch.from_numpy(numbers[start : start + _BATCH_ROWS]),
        )
        for start in range(0, len(codes), _BATCH_ROWS)
    ]
    whole = [torch.cat(part).numpy() for part in zip(*parts, strict=True)]
    return whole[: len(outputs)]
