"""Write the impressions of an imaginary shop as CSV, for the walk through docs/your-data.md.

    python examples/shop.py FOLDER

It writes FOLDER/impressions.csv, 12,000 rows with what real logs have: names with spaces, dots and
signs, empty cells, labels in words, outcomes nobody knows yet, and a column that says which rows
are for training. The same rows every time.
"""

import argparse
import csv
import datetime
import math
import random
from collections.abc import Iterator
from pathlib import Path

ROWS, USERS, ITEMS = 12_000, 600, 150
HEADER = ("id", "shown at", "part", "user.id", "Item ID", "Gerät", "Preis €", "clicked?", "bought?")
DEVICES = ("phone", "desktop", "tablet", "?")
START = datetime.datetime(2026, 10, 1, tzinfo=datetime.UTC)


def main() -> None:
    """Write the file into the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "impressions.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(HEADER)
        writer.writerows(impressions(random.Random(7)))
    print(f"{path}: {ROWS:,} rows")


def impressions(draw: random.Random) -> Iterator[tuple[object, ...]]:
    """Yield rows in the order of time; who clicks depends on user, item, device and price."""
    users = [draw.gauss(0, 1) for _ in range(USERS)]
    items = [(draw.gauss(0, 1), math.exp(draw.gauss(2.5, 0.8))) for _ in range(ITEMS)]
    for row in range(ROWS):
        shown_at = START + datetime.timedelta(minutes=3 * row)
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
            shown_at.strftime("%Y-%m-%dT%H:%M:%S"),
            "train" if row < 0.8 * ROWS else "check" if row < 0.9 * ROWS else "final",
            1_000 + user,
            f"SKU/{item:04}",
            device,
            "" if draw.random() < 0.04 else f"{price:.2f}",
            "yes" if clicked else "no",
            outcome,
        )


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


if __name__ == "__main__":
    main()
