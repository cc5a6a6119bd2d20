"""A small grid of learning rates for comparisons, which is extended while the best rate is at its edge."""

from collections.abc import Iterator
from typing import NamedTuple


class Grid(NamedTuple):
    """A grid of learning rates ``middle * factor**i``, with the same number of points for all that is compared.

    Attributes:
        points: number of points before the grid is extended.
        factor: ratio of neighbouring learning rates.
        most: largest number of points that are added beyond an edge at which the best rate lies.
    """

    points: int
    factor: float = 2.0
    most: int = 8

    def search(self, middle: float, losses: dict[str, float | None]) -> Iterator[list[float]]:
        """Yields the rates still to try, until the best one is not at an edge.

        The caller adds their losses to ``losses``, by `rate_name`, before it continues.
        """
        low = -(self.points // 2)
        high = low + self.points - 1
        while True:
            rates = [middle * self.factor**i for i in range(low, high + 1)]
            missing = [rate for rate in rates if rate_name(rate) not in losses]
            if missing:
                yield missing
                continue
            place = rates.index(best_rate({rate_name(rate): losses[rate_name(rate)] for rate in rates}))
            if 0 < place < len(rates) - 1 or len(rates) >= self.points + self.most:
                return
            low, high = (low - 1, high) if place == 0 else (low, high + 1)


def rate_name(rate: float) -> str:
    """The exact learning rate as a key of results.json."""
    return repr(rate)


def best_rate(losses: dict[str, float | None]) -> float:
    """The rate with the lowest loss; a loss of None was not finite."""
    return float(min(losses, key=lambda name: (losses[name] is None, losses[name] or 0.0, float(name))))
