"""Mean, spread and ends of numbers that come batch by batch."""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

_DIGITS = 9


@dataclass(slots=True)
class Moments:
    """Count, mean, squared deviations and ends of numbers that come batch by batch."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf

    def add(self, values: pl.Series) -> None:
        """Take in more numbers (Chan, Golub and LeVeque's pairwise update)."""
        numbers = values.drop_nulls().to_numpy()
        if not len(numbers):
            return
        mean = float(numbers.mean())
        squares = float(np.square(numbers - mean).sum())
        apart, total = mean - self.mean, self.count + len(numbers)
        self.squares += squares + apart * apart * self.count * len(numbers) / total
        self.mean += apart * len(numbers) / total
        self.count = total
        self.least = min(self.least, float(numbers.min()))
        self.greatest = max(self.greatest, float(numbers.max()))

    def scaling(self) -> tuple[float, float]:
        """Return mean and 1 / standard deviation, 0 for a constant, to nine digits.

        What rounding leaves of the deviations of equal numbers does not count as deviation.
        """
        if not self.count:
            return 0.0, 0.0
        deviation = math.sqrt(self.squares / self.count)
        constant = deviation <= 1e-12 * abs(self.mean)
        return rounded(self.mean), 0.0 if constant else rounded(1.0 / deviation)

    def span(self) -> tuple[float, float]:
        """Return the least number and 1 / (greatest - least), 0 for a constant, exactly."""
        if not self.count:
            return 0.0, 0.0
        apart = self.greatest - self.least
        return self.least, 1.0 / apart if apart else 0.0


def rounded(value: float) -> float:
    """Return a number to nine digits, which do not depend on the order of a sum."""
    return float(f"{value:.{_DIGITS - 1}e}")
