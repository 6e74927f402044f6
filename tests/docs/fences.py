"""The fenced blocks of the documents, each with its place, its kind and what is marked above it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what is marked above it, and its text."""

    place: str
    kind: str
    mark: str
    text: str

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each command and the output shown below it."""
        for part in re.split(r"^\$ ", self.text, flags=re.M)[1:]:
            lines = part.replace("\\\n", " ").splitlines()
            yield lines[0], lines[1:]


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            f"{document.relative_to(ROOT)}:{text[: found.start('kind')].count(chr(10)) + 1}",
            found["kind"],
            found["mark"] or "",
            found["text"],
        )
        for found in FENCE.finditer(text)
    ]


def all_blocks(*kinds: str) -> list[Block]:
    return [block for path in DOCUMENTS for block in blocks(path) if block.kind in kinds]
