"""Building blocks of every architecture: one idea a file."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys_moe.moe.block import MoEBlock as MoEBlock

__all__ = ["MoEBlock"]


def __getattr__(name: str) -> Any:
    """Import the mixture-of-experts block when it is first asked for."""
    if name != "MoEBlock":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recsys_moe.moe.block import MoEBlock

    return MoEBlock
