"""A small grid of learning rates, the same for all that is compared, extended while the best lies at its edge."""

from collections.abc import Iterator
from typing import NamedTuple


class Grid(NamedTuple):
    """Learning rates ``middle * factor**i``: the same number around the middle for every optimizer.

    Attributes:
        points: how many, before it is extended.
        factor: between two of them.
        most: how many more there may be beyond an edge where the best lies.
    """

    points: int
    factor: float = 2.0
    most: int = 8

    def search(self, middle: float, losses: dict[str, float | None]) -> Iterator[list[float]]:
        """Rates still to try, until the best lies inside; ``losses`` gets theirs, by `rate_name`, in between."""
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
    """A rate as a key in results.json; the rate itself, exactly."""
    return repr(rate)


def best_rate(losses: dict[str, float | None]) -> float:
    """The rate of the lowest loss; a loss that is None was not finite."""
    return float(min(losses, key=lambda name: (losses[name] is None, losses[name] or 0.0, float(name))))
