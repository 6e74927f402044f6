"""The error tree: what went wrong, what was wanted, what came, and the nearest right word."""

import copyreg
import difflib
from collections.abc import Iterable
from typing import Any


class RecsysMoeError(Exception):
    """Anything this project reports in one line; `exit_code` is the status a command ends with."""

    exit_code = 1


class RequestError(RecsysMoeError):
    """The request is wrong: configuration, input, artifact or device. Commands end with 2."""

    exit_code = 2

    def __init__(self, what: str, *, wanted: str, got: str, choices: Iterable[str] = ()) -> None:
        """Build the line `what: wanted …, got …. Did you mean …?`.

        Args:
            what: The thing that is wrong: a path, a column, an argument.
            wanted: What would have been right.
            got: What came instead; the nearest of `choices` to it is offered.
            choices: The right words, if they can be listed.
        """
        self.what, self.wanted, self.got = what, wanted, got
        stop = "" if got.endswith((".", "?")) else "."
        super().__init__(f"{what}: wanted {wanted}, got {got}{stop}{did_you_mean(got, choices)}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Let an error cross from one process to another as it is."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class SpecError(RequestError):
    """A dataset file or a feature spec contradicts itself."""


class ArtifactError(RequestError):
    """An artifact is incomplete, changed, or does not reproduce its checkpoint."""


class CollapseError(RecsysMoeError):
    """Training sends all rows to a few of its experts, and was asked to stop there."""


class DataError(RecsysMoeError):
    """The request is right but too much of the data is not. Commands end with 3."""

    exit_code = 3


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the choice nearest to a word, or nothing.

    >>> did_you_mean("'clik'", ["click", "conversion"])
    " Did you mean 'click'?"
    >>> did_you_mean("zebra", ["click", "conversion"])
    ''
    """
    nearest = difflib.get_close_matches(word.strip("'\""), list(choices), n=1, cutoff=0.6)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
