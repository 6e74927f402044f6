"""Why rows cannot be scored: reasons by name, gathered row by row."""

import enum
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


class Reason(enum.IntFlag):
    """One bit for each thing that keeps a row from being scored."""

    NULL_KEY = 1
    DUPLICATE_KEY = 2
    INFINITE_NUMBER = 4
    INTEGER_OUT_OF_RANGE = 8
    SCORING_ERROR = 16
    NON_FINITE_SCORE = 32
    VECTOR_LENGTH = 64

    @property
    def label(self) -> str:
        """The reason's name in files: `null_key`."""
        return str(self.name).lower()


@dataclass(slots=True)
class Faults:
    """The rows of one batch that cannot be scored.

    Attributes:
        flags: uint8 [rows], the reasons of each row or-ed together; 0 is a good row.
        details: What exactly, for each bad row: column names, or the library's message.
    """

    flags: npt.NDArray[np.uint8]
    details: dict[int, list[str]] = field(default_factory=dict)

    @classmethod
    def none(cls, num_rows: int) -> "Faults":
        """Start with rows that are all good."""
        return cls(np.zeros(num_rows, np.uint8))

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        """Bool [rows]: nothing is wrong with the row."""
        good: npt.NDArray[np.bool_] = self.flags == 0
        return good

    def add(self, reason: Reason, rows: npt.NDArray[np.integer], detail: str = "") -> None:
        """Give some rows, by number within the batch, a reason and what exactly was wrong."""
        self.flags[rows] |= np.uint8(reason)
        if detail:
            for row in np.unique(rows).tolist():
                self.details.setdefault(row, []).append(detail)


def labels(flags: int) -> list[str]:
    """Return the names of a row's reasons.

    >>> labels(5)
    ['null_key', 'infinite_number']
    """
    return [reason.label for reason in Reason if reason & flags]


def count(flags: npt.NDArray[np.uint8]) -> dict[str, int]:
    """Count the rows of each reason, by name; a row may have several."""
    counts = {reason.label: int(np.count_nonzero(flags & reason)) for reason in Reason}
    return {name: number for name, number in counts.items() if number}
