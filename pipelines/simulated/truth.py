"""The true probabilities of a simulation, kept beside the prepared rows and never among them."""

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from pipelines.batches import batches
from pipelines.dataset.roles import ROW_ID, SPLITS
from pipelines.plans import collect
from pipelines.prepare import prepared_files
from pipelines.rows.quarantine import ROW_GROUP_ROWS
from recsys_moe.files import whole_file


def write_truth(raw: Path, output: Path) -> None:
    """Write `truth/<split>.parquet`, whose row i is about row i of `prepared/<split>`.

    Args:
        raw: The simulated logs; row n of the truth is about row n of the impressions.
        output: The folder with the prepared rows, which know their `row_id`.
    """
    truth = pl.scan_parquet(raw / "truth" / "*.parquet")
    schema = collect(truth.head(0)).to_arrow().schema
    for split in SPLITS:
        with (
            whole_file(output / "truth" / f"{split}.parquet") as partial,
            pq.ParquetWriter(partial, schema, compression="zstd") as writer,
        ):
            for batch in batches(prepared_files(output, split), [ROW_ID]):
                rows = batch[ROW_ID]
                first, last = int(rows[0]), int(rows[-1])
                here = collect(truth.slice(first, last - first + 1))
                writer.write_table(here[rows - first].to_arrow(), row_group_size=ROW_GROUP_ROWS)
