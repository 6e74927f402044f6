"""Write murmur3.json: a hundred texts and their hashes by the definition of MurmurHash3 x86 32-bit.

Run it from the root of the repository, `python tests/golden/murmur3.py`, if the texts change. The
hashes never do: they are codes in trained models.
"""

import json
import random
from pathlib import Path

PLACE = Path(__file__).with_suffix(".json")
ODD = [
    "", " ", "\0", "a\0b", "\0null", "\0null\x1f\0null", "a\x1fb", "é", "e\u0301", "日本語", "🙂🙃",
    "\U0010ffff", "\ufeff", "İ", "x" * 300, "é" * 299, "hello", "0", "42", "-9223372036854775807",
]  # fmt: skip


def texts() -> list[str]:
    """Return a hundred texts: odd ones, then random ones of 0 to 79 characters of any plane."""
    draw = random.Random(0)
    planes = [(1, 0x80), (0x80, 0xD800), (0xE000, 0x110000)]
    return ODD + [
        "".join(chr(draw.randrange(*draw.choice(planes))) for _ in range(length))
        for length in range(100 - len(ODD))
    ]


def murmur3(data: bytes) -> int:
    """MurmurHash3 x86 32-bit with seed 0, straight from its definition."""
    mask, h = 0xFFFFFFFF, 0
    for start in range(0, len(data), 4):
        k = int.from_bytes(data[start : start + 4], "little")
        k = k * 0xCC9E2D51 & mask
        k = ((k << 15) | (k >> 17)) & mask
        h ^= k * 0x1B873593 & mask
        if len(data) - start >= 4:
            h = ((h << 13) | (h >> 19)) & mask
            h = (h * 5 + 0xE6546B64) & mask
    h ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = ((h ^ (h >> shift)) * factor) & mask
    return h


if __name__ == "__main__":
    lines = (json.dumps([text, murmur3(text.encode())]) for text in texts())
    PLACE.write_text("[\n" + ",\n".join(lines) + "\n]\n")
