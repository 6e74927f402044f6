"""Reading a configuration value by value, noting every fault instead of stopping at the first."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from recsys_moe.errors import SpecError

Value = str | int | float | bool

_REQUIRED: Any = object()


class Faults:
    """What is wrong with one configuration, each fault under its path, `tasks[1].space`."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.lines: list[str] = []
        self._first: tuple[str, str, str, tuple[str, ...]] | None = None

    def note(self, path: str, *, wanted: str, got: str, choices: Iterable[str] = ()) -> None:
        """Remember one fault."""
        fault = (path, wanted, got, tuple(choices))
        self._first = self._first or fault
        line = str(SpecError(path, wanted=wanted, got=got, choices=fault[3]))
        if line not in self.lines:
            self.lines.append(line)

    def under(self, *paths: str) -> bool:
        """Say whether a fault is noted at or below any of some paths."""
        return any(line.startswith(paths) for line in self.lines)

    def raise_any(self) -> None:
        """Raise one error that lists all faults, if there are any.

        Raises:
            SpecError: The configuration has faults.
        """
        if self._first is None:
            return
        if len(self.lines) == 1:
            path, wanted, got, choices = self._first
            raise SpecError(f"{self.what}, {path}", wanted=wanted, got=got, choices=choices)
        listed = " ".join(f"({i}) {line}" for i, line in enumerate(self.lines, 1))
        raise SpecError(
            self.what, wanted="no faults", got=f"{len(self.lines)}: {listed}".removesuffix(".")
        )


class Entry:
    """A mapping of a configuration. Each getter notes what is wrong and returns a stand-in.

    `close` notes the keys nobody asked for; call it once all getters have run.
    """

    def __init__(
        self, value: Any, path: str, faults: Faults, *, noted_absent: bool = False
    ) -> None:
        self.path, self.faults = path, faults
        if noted_absent:
            value = None
        elif not isinstance(value, dict):
            faults.note(path, wanted="a mapping", got=shown(value))
            value = None
        self._value: dict[Any, Any] | None = value
        self._asked: list[str] = []

    def at(self, key: str) -> str:
        """Return the path of one key."""
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        """Say whether a key is given and not null."""
        return self._value is not None and self._value.get(key) is not None

    def raw(self, key: str, default: Any = _REQUIRED, wanted: str = "a value") -> Any:
        """Return a value as it stands; one that is required and absent or null is a fault."""
        self._asked.append(key)
        if self._value is None:
            return None
        value = self._value.get(key)
        if value is None and default is _REQUIRED:
            self.faults.note(self.at(key), wanted=wanted, got="nothing")
            return None
        return default if value is None else value

    def text(
        self, key: str, default: Any = _REQUIRED, *, choices: Sequence[str] = (), wanted: str = ""
    ) -> str:
        """Return a string that is not empty and, if choices are listed, one of them."""
        wanted = wanted or (" or ".join(choices) if choices else "a name")
        value = self.raw(key, default, wanted)
        if value is None:
            return ""
        if not isinstance(value, str) or not value or (choices and value not in choices):
            self.faults.note(self.at(key), wanted=wanted, got=shown(value), choices=choices)
            return ""
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a string, or None where it is absent."""
        return self.text(key) if self.has(key) else self.raw(key, None)

    def number(
        self, key: str, default: Any = _REQUIRED, *, above: float, upto: float = math.inf
    ) -> float:
        """Return a finite number in `(above, upto]`."""
        limit = "" if upto == math.inf else f" and at most {upto:g}"
        value = self.raw(key, default, "a number")
        if value is None:
            return 0.0
        sound = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not sound or not math.isfinite(value) or not above < value <= upto:
            wanted = f"a number above {above:g}{limit}"
            self.faults.note(self.at(key), wanted=wanted, got=shown(value))
            return 0.0
        return float(value)

    def whole(
        self, key: str, default: Any = _REQUIRED, *, least: int, most: int = 2**31 - 16
    ) -> int:
        """Return an integer in `[least, most]`."""
        wanted = f"a whole number from {least} to {most}"
        value = self.raw(key, default, wanted)
        if value is None:
            return least
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.faults.note(self.at(key), wanted=wanted, got=shown(value))
            return least
        return value

    def optional_whole(self, key: str, *, least: int) -> int | None:
        """Return an integer of at least `least`, or None where it is absent."""
        return self.whole(key, least=least) if self.has(key) else self.raw(key, None)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            if value is not None:
                self.faults.note(self.at(key), wanted="true or false", got=shown(value))
            return default
        return value

    def values(self, key: str, default: Any = _REQUIRED) -> tuple[Value, ...]:
        """Return a list of strings, numbers or truth values; one alone is a list of one."""
        value = self.raw(key, default, "a value or a list of values")
        if value is None:
            return ()
        values = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(item, (str, int, float, bool)) for item in values):
            wanted = "a list of strings or numbers"
            self.faults.note(self.at(key), wanted=wanted, got=shown(value))
            return ()
        return tuple(values)

    def texts(self, key: str, default: Any = _REQUIRED) -> tuple[str, ...]:
        """Return a list of strings; one alone is a list of one."""
        values = self.values(key, default)
        wrong = [value for value in values if not isinstance(value, str) or not value]
        if wrong:
            self.faults.note(self.at(key), wanted="strings", got=f"{shown(wrong[0])}{quote(wrong)}")
            return ()
        return tuple(str(value) for value in values)

    def entry(self, key: str) -> "Entry":
        """Return a mapping below this one."""
        value = self.raw(key, _REQUIRED, "a mapping")
        return Entry(value, self.at(key), self.faults, noted_absent=value is None)

    def entries(self, key: str) -> list["Entry"]:
        """Return a list of mappings, at least one."""
        value = self.raw(key, _REQUIRED, "a list of mappings")
        if value is None:
            return []
        if not isinstance(value, list) or not value:
            self.faults.note(self.at(key), wanted="a list of mappings", got=shown(value))
            return []
        return [
            Entry(item, f"{self.at(key)}[{number}]", self.faults)
            for number, item in enumerate(value)
        ]

    def optional_entries(self, key: str) -> list["Entry"]:
        """Return a list of mappings, empty where it is absent."""
        if self.has(key):
            return self.entries(key)
        self.raw(key, None)
        return []

    def moment(self, key: str) -> int:
        """Return a date or time of ISO 8601, UTC where it names no zone, as microseconds."""
        wanted = "a date or time such as 2026-01-31 or 2026-01-31T06:00"
        value = self.raw(key, _REQUIRED, wanted)
        if value is None:
            return 0
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.faults.note(self.at(key), wanted=wanted, got=shown(value))
            return 0
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

    def mapping(self, key: str) -> dict[str, Any]:
        """Return a mapping from names to plain values, empty where absent."""
        value = self.raw(key, {})
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.faults.note(self.at(key), wanted="a mapping", got=shown(value))
            return {}
        return {str(name): item for name, item in value.items()}

    def close(self) -> None:
        """Note every key that no getter asked for."""
        for key in self._value or ():
            if key not in self._asked:
                wanted = "one of " + ", ".join(self._asked)
                self.faults.note(
                    self.at(str(key)), wanted=wanted, got=shown(key), choices=self._asked
                )


def shown(value: Any) -> str:
    """Return a value as it would be typed into YAML, cut to one short line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def quote(values: Iterable[Any]) -> str:
    """Return the hint that YAML reads a bare yes or no as a truth value, if it may apply."""
    found = any(isinstance(value, bool) for value in values)
    return " (in YAML a bare yes, no, on or off is a truth value: quote it)" if found else ""
