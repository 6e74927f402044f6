"""Write the logs of an imaginary shop as CSV, for the walk through docs/your-data.md.

    python examples/shop.py FOLDER

FOLDER/impressions.csv has 12,000 rows with what real logs have: names with spaces, dots and signs,
empty cells, labels in words, outcomes nobody knows yet, and a column that says which rows are for
training. FOLDER/separate/ has the same story as three logs: what was shown, clicked and bought,
each with its time. The same rows every time.
"""

import argparse
import csv
import math
import random
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROWS, USERS, ITEMS = 12_000, 600, 150
HEADER = ("id", "shown at", "part", "user.id", "Item ID", "Gerät", "Preis €", "clicked?", "bought?")
DEVICES = ("phone", "desktop", "tablet", "?")
START = datetime(2026, 10, 1, tzinfo=UTC)


def main() -> None:
    """Write the file into the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    rows = list(impressions(random.Random(7)))
    write(folder / "impressions.csv", HEADER, rows)
    shown = (row[:2] + row[3:7] for row in rows)
    write(folder / "separate" / "shown.csv", HEADER[:2] + HEADER[3:7], shown)
    clicked, bought = HEADER.index("clicked?"), HEADER.index("bought?")
    clicks = [(row[0], _later(row[1], minutes=1)) for row in rows if row[clicked] == "yes"]
    sales = [(row[0], _later(row[1], minutes=90)) for row in rows if row[bought] == "yes"]
    write(folder / "separate" / "clicks.csv", ("id", "clicked at"), clicks)
    write(folder / "separate" / "sales.csv", ("request", "sold at"), sales)


def write(path: Path, header: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    """Write one CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows)
    print(f"{path}: {len(rows):,} rows")


def impressions(draw: random.Random) -> Iterator[tuple[str, ...]]:
    """Yield rows in the order of time; who clicks depends on user, item, device and price."""
    users = [draw.gauss(0, 1) for _ in range(USERS)]
    items = [(draw.gauss(0, 1), math.exp(draw.gauss(2.5, 0.8))) for _ in range(ITEMS)]
    for row in range(ROWS):
        shown_at = START + timedelta(minutes=3 * row)
        user, item = int(USERS * draw.random() ** 2), int(ITEMS * draw.random() ** 2)
        device = draw.choice(DEVICES)
        appeal, price = items[item]
        liking = users[user] + appeal + (0.8 if device == "phone" else 0.0)
        clicked = draw.random() < _sigmoid(liking - 1.5)
        bought = draw.random() < _sigmoid(1.0 + appeal - 0.7 * math.log(price))
        # A purchase is only known after a click, and a few answers have not come back yet.
        outcome = "" if not clicked or draw.random() < 0.02 else "yes" if bought else "no"
        yield (
            f"imp-{row:06}",
            _text(shown_at),
            "train" if row < 0.8 * ROWS else "check" if row < 0.9 * ROWS else "final",
            str(1_000 + user),
            f"SKU/{item:04}",
            device,
            "" if draw.random() < 0.04 else f"{price:.2f}",
            "yes" if clicked else "no",
            outcome,
        )


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S")


def _later(text: str, *, minutes: int) -> str:
    return _text(datetime.fromisoformat(text) + timedelta(minutes=minutes))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


if __name__ == "__main__":
    main()
