"""The features of the funnel as SQL for DuckDB: what `conf/dataset/funnel.yaml` asks for.

The same labels, split, histories, vocabularies, codes and scaled numbers as the pipeline's, in one
folder of parquet per split. Two things differ: values that no vocabulary lists share code 2 (the
pipeline hashes them, into that single bucket), and the campaign's buckets are of DuckDB's own hash.

    python benchmarks/funnel_sql.py LOGS OUTPUT [--memory-limit 4GB] [--threads 2]
"""

import argparse
from pathlib import Path

import duckdb

LOGS = ("impressions", "clicks", "conversions")
SINGLE = ("user_id", "item_id", "country", "device", "brand", "position", "hour")
LISTS = {"interests": "interest", "topics": "topic"}
AGE_EDGES = (20, 25, 30, 35, 40, 50, 60, 70)
PRICE_EDGES = (5, 10, 15, 20, 30, 45, 70, 120)
WINDOW = 72 * 3_600_000_000  # microseconds from the first click to a conversion that counts
LAST, MOST_PER_DAY = 10, 2_000
FIRST = 3  # code of the most frequent value: 0 pads, 1 is missing, 2 is unlisted

LABELLED = f"""
CREATE TABLE labelled AS
WITH rows AS (
    SELECT * REPLACE (epoch_us(ts) AS ts) FROM read_parquet($impressions)
), click AS (
    SELECT impression_id, min(epoch_us(ts)) AS first_click
    FROM read_parquet($clicks) GROUP BY impression_id
), sale AS (
    SELECT DISTINCT impression_id
    FROM read_parquet($conversions) JOIN click USING (impression_id)
    WHERE epoch_us(ts) - first_click BETWEEN 0 AND {WINDOW}
)
SELECT rows.*, first_click,
    (click.impression_id IS NOT NULL)::INTEGER AS click,
    (sale.impression_id IS NOT NULL)::INTEGER AS conversion,
    CASE WHEN ts < $valid THEN 'train' WHEN ts < $test THEN 'valid' ELSE 'test' END AS split
FROM rows LEFT JOIN click USING (impression_id) LEFT JOIN sale USING (impression_id)
"""

CLICKED = f"""
CREATE TABLE clicked AS
WITH events AS (
    SELECT user_id, first_click, impression_id, item_id, category,
        coalesce(i.code, 2) AS item_code, coalesce(c.code, 2) AS category_code
    FROM labelled
    LEFT JOIN vocabulary_item_id i ON item_id = i.value
    LEFT JOIN vocabulary_category c ON category = c.value
    WHERE click = 1
    QUALIFY row_number() OVER (
        PARTITION BY user_id, first_click // 86400000000 ORDER BY first_click, impression_id
    ) <= {MOST_PER_DAY}
)
SELECT user_id, first_click,
    list_reverse(list(item_id) OVER past) AS items,
    list_reverse(list(category) OVER past) AS categories,
    list_reverse(list(item_code) OVER past) AS item_codes,
    list_reverse(list(category_code) OVER past) AS category_codes
FROM events
WINDOW past AS (
    PARTITION BY user_id ORDER BY first_click, impression_id
    ROWS BETWEEN {LAST - 1} PRECEDING AND CURRENT ROW
)
QUALIFY row_number() OVER (PARTITION BY user_id, first_click ORDER BY impression_id DESC) = 1
"""

STATISTICS = """
CREATE TABLE statistics AS
SELECT avg(age) AS age_mean, stddev_pop(age) AS age_spread,
    avg(ln(1 + price)) AS price_mean, stddev_pop(ln(1 + price)) AS price_spread
FROM (SELECT age, price::DOUBLE AS price FROM labelled WHERE split = 'train')
"""


def build(logs: Path, output: Path, *, memory_limit: str = "4GB", threads: int = 2) -> None:
    """Write `output/split=…/*.parquet` and `output/vocabulary_TABLE.parquet` from simulated logs.

    Spills go below `output`, and so does the working database.
    """
    output.mkdir(parents=True)
    with duckdb.connect(output / "work.duckdb") as database:
        database.execute(f"SET memory_limit = '{memory_limit}'")
        database.execute(f"SET threads = {threads}")
        database.execute("SET preserve_insertion_order = false")
        files = {name: f"{logs}/{name}/*.parquet" for name in LOGS}
        valid, test = _starts(database, files["impressions"])
        database.execute(LABELLED, {**files, "valid": valid, "test": test})
        for column in SINGLE:
            _fit(database, output, column, f"SELECT {column} AS value FROM train", least=10)
        both = "SELECT category AS value FROM train UNION ALL SELECT query FROM train"
        _fit(database, output, "category", both, least=10)
        for column, table in LISTS.items():
            _fit(database, output, table, f"SELECT unnest({column}) AS value FROM train", least=1)
            listed = f"SELECT value::VARCHAR FROM vocabulary_{table} ORDER BY code"
            database.execute(f"CREATE TYPE listed_{table} AS ENUM ({listed})")
        database.execute(CLICKED)
        database.execute(STATISTICS)
        database.execute(
            f"COPY ({_encoded()}) TO '{output}' "
            "(FORMAT parquet, PARTITION_BY (split), COMPRESSION zstd, OVERWRITE_OR_IGNORE)"
        )
    (output / "work.duckdb").unlink()


def _starts(database: duckdb.DuckDBPyConnection, files: str) -> tuple[int, int]:
    """Return the first moments of valid and test, each a tenth of the rows."""
    rows = f"FROM read_parquet('{files}')"
    ((count,),) = database.execute(f"SELECT count(*) {rows}").fetchall()
    tenth = round(count * 0.1)
    shares = [(count - number * tenth + 0.5) / count for number in (2, 1)]
    starts = database.execute(f"SELECT quantile_disc(epoch_us(ts), {shares}) {rows}").fetchall()
    (((valid, test),),) = starts
    return valid, test


def _fit(
    database: duckdb.DuckDBPyConnection, output: Path, table: str, values: str, *, least: int
) -> None:
    """Count the values of a table on train rows and give the frequent ones their codes."""
    database.execute(
        f"""
        CREATE TABLE vocabulary_{table} AS
        WITH train AS (FROM labelled WHERE split = 'train'), every AS ({values})
        SELECT value, count(*) AS count,
            row_number() OVER (ORDER BY count(*) DESC, value) + {FIRST - 1} AS code
        FROM every WHERE value IS NOT NULL GROUP BY value HAVING count(*) >= {least}
        """
    )
    path = output / f"vocabulary_{table}.parquet"
    database.execute(f"COPY (FROM vocabulary_{table} ORDER BY code) TO '{path}' (FORMAT parquet)")


def _encoded() -> str:
    """Return the query of all rows with their histories, codes and numbers."""
    scalars = {**{column: column for column in SINGLE}, "query": "category", "category": "category"}
    joins = "\n".join(
        f"LEFT JOIN vocabulary_{table} v_{column} ON r.{column} = v_{column}.value"
        for column, table in scalars.items()
    )
    codes = [
        f"CASE WHEN r.{column} IS NULL THEN 1 ELSE coalesce(v_{column}.code, 2) END "
        f"AS code_{column}"
        for column in scalars
    ]
    codes += [
        f"list_transform(r.{column}[:3], lambda x: CASE WHEN x IS NULL THEN 1 ELSE "
        f"coalesce(enum_code(TRY_CAST(x::VARCHAR AS listed_{table}))::INTEGER + {FIRST}, 2) END) "
        f"AS code_{column}"
        for column, table in LISTS.items()
    ]
    return f"""
        SELECT r.* EXCLUDE (first_click),
            coalesce(items, []) AS clicked_item_id,
            coalesce(categories, []) AS clicked_category,
            coalesce(item_codes, []) AS code_clicked_item_id,
            coalesce(category_codes, []) AS code_clicked_category,
            {", ".join(codes)},
            2 + hash(campaign) % 200 AS code_campaign,
            {_bucket("age", AGE_EDGES)} AS code_age_bin,
            {_bucket("price", PRICE_EDGES)} AS code_price_bin,
            {_scaled("age", "age")} AS age_scaled, (age IS NULL)::FLOAT AS age_missing,
            {_scaled("ln(1 + price::DOUBLE)", "price")} AS price_log,
            (price IS NULL)::FLOAT AS price_missing
        FROM labelled r
        ASOF LEFT JOIN clicked c ON r.user_id = c.user_id AND r.ts > c.first_click
        {joins}, statistics
    """


def _bucket(column: str, edges: tuple[int, ...]) -> str:
    above = " + ".join(f"({column} > {edge})::INTEGER" for edge in edges)
    return f"coalesce(2 + {above}, 1)"


def _scaled(number: str, name: str) -> str:
    scaled = f"({number} - {name}_mean) / {name}_spread"
    return f"CASE WHEN {name} IS NULL THEN 0 ELSE greatest(least({scaled}, 8), -8) END::FLOAT"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--memory-limit", default="4GB")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    build(
        options.logs,
        options.output,
        memory_limit=options.memory_limit,
        threads=options.threads,
    )


if __name__ == "__main__":
    main()
