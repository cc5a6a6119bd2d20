"""The time that a program needs at least on a chip, by its arithmetic, its main memory and its network."""

from typing import NamedTuple


class Chip(NamedTuple):
    """Peak rates of a chip, as its maker publishes them.

    Attributes:
        flops: operations of bfloat16 matrix products in a second.
        memory_bytes: size of the main memory that a program can use.
        memory_bandwidth: bytes in a second, to and from the main memory.
        network_bandwidth: bytes in a second that it can receive from the chips next to it, over all links.
        clock: cycles in a second of its matrix units, 0 if the compiler estimates none.

    Examples:
        >>> from nl_jax.costs import CHIPS
        >>> chip = CHIPS["v5e"]
        >>> round(chip.flops / chip.memory_bandwidth)  # operations for each byte from memory that keep it busy
        241
    """

    flops: float
    memory_bytes: float
    memory_bandwidth: float
    network_bandwidth: float
    clock: float = 0.0


CHIPS = {
    "v4": Chip(275e12, 31.25 * 2**30, 1.228e12, 6 * 4.5e10, 1.05e9),
    "v5e": Chip(197e12, 15.75 * 2**30, 0.819e12, 4 * 4.5e10, 1.5e9),
    "v5p": Chip(459e12, 95.74 * 2**30, 2.765e12, 6 * 9e10, 1.75e9),
    "v6e": Chip(918e12, 31.25 * 2**30, 1.64e12, 4 * 9e10, 1.75e9),
    "h100": Chip(989e12, 79.6 * 2**30, 3.35e12, 4.5e11),
}
"""What one chip can do, by its name: peaks that the makers publish, in operations, bytes and bytes per second."""


class Roofline(NamedTuple):
    """Least seconds of one run of a program, by what it needs of one chip; overlapped, the longest of them.

    Examples:
        >>> from nl_jax.costs import Roofline
        >>> roofline = Roofline(compute=0.2, memory=0.5, network=0.1)
        >>> roofline.seconds, roofline.limit
        (0.5, 'memory')
    """

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """The longest of the three."""
        return max(self)

    @property
    def limit(self) -> str:
        """Name of what takes longest."""
        return max(self._fields, key=lambda name: getattr(self, name))


def roofline(chip: Chip, flops: float, memory_bytes: float, network_bytes: float) -> Roofline:
    """The `Roofline` of a program, by what one chip does in a run.

    Args:
        chip: peak rates.
        flops: operations of matrix products.
        memory_bytes: read from and written to the main memory.
        network_bytes: received from other chips.

    Examples:
        >>> from nl_jax.costs import CHIPS, roofline
        >>> bound = roofline(CHIPS["v5e"], flops=197e12, memory_bytes=1e9, network_bytes=0)
        >>> bound.seconds, bound.limit
        (1.0, 'compute')
    """
    return Roofline(flops / chip.flops, memory_bytes / chip.memory_bandwidth, network_bytes / chip.network_bandwidth)
