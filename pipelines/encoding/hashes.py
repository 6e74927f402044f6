"""Hashes that are the same on every machine, in every version and in the exported graph."""

from typing import cast

import polars as pl
import polars_hash  # noqa: F401  # registers the `nchash` namespace of expressions


def text_of(value: pl.Expr, kind: str) -> pl.Expr:
    """Return what is hashed: a string as it stands, an integer as decimal text."""
    return value if kind == "string" else value.cast(pl.String)


def murmur32(text: pl.Expr) -> pl.Expr:
    """MurmurHash3 x86 32-bit, seed 0, of UTF-8 bytes, unsigned in an int64; null stays null.

    Every hash that becomes a code is this one: ONNX Runtime has the same.
    """
    return cast(pl.Expr, text.nchash.murmur32()).cast(pl.Int64)  # type: ignore[attr-defined]


def xxhash64(text: pl.Expr, seed: int) -> pl.Expr:
    """XxHash64 of UTF-8 bytes, as uint64; for look-ups inside one process only."""
    return cast(pl.Expr, text.nchash.xxhash64(seed=seed))  # type: ignore[attr-defined]
