"""Where the time and memory of a run go, and a trace of some of its steps."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

TRACED_STEPS = 3
T = TypeVar("T")


class Clock:
    """Measures the parts of a run, and writes a trace of `TRACED_STEPS` steps with ``jax.profiler``.

    The parts are "step" (all steps, until the device has done them), "data" (the part of "step" in which the host read
    batches, while the device may have been busy), "evaluation" and "save" (what a checkpoint holds up; the rest is
    written in the background). Use as a context manager, which ends a trace that is running.

    Args:
        directory: where the trace is written; made if need be.
        first: the first step that is traced, or if a resumed run is past it, the first that there is; None traces
            nothing.
    """

    def __init__(self, directory: Path, first: int | None):
        self._directory, self._first = directory, first
        self._last: int | None = None  # the last step of the trace, once it has begun
        self._tracing = False
        self._seconds: dict[str, float] = {}

    def timed(self, name: str, call: Callable[..., T], *arguments: Any) -> T:
        """The result of ``call(*arguments)``, whose time is added to a part."""
        started = time.perf_counter()
        result = call(*arguments)
        self.add(name, time.perf_counter() - started)
        return result

    def add(self, name: str, seconds: float) -> float:
        """Adds seconds to a part, and returns them."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        return seconds

    def take(self) -> dict[str, float]:
        """``seconds/PART`` since the last call, and ``memory/...`` in bytes of this process' first device.

        Memory in use, and the most there was, are missing where the device does not say, as a CPU.
        """
        taken, self._seconds = self._seconds, {}
        stats = jax.local_devices()[0].memory_stats() or {}
        memory = {f"memory/{name}": stats[name] for name in ("bytes_in_use", "peak_bytes_in_use") if name in stats}
        return {**{f"seconds/{name}": seconds for name, seconds in taken.items()}, **memory}

    def step(self, number: int, call: Callable[..., T], *arguments: Any) -> T:
        """The result of ``call(*arguments)``, the step with this number, traced if it is to be."""
        if self._first is not None and self._last is None and number >= self._first:
            jax.profiler.start_trace(self._directory)
            self._tracing, self._last = True, number + TRACED_STEPS - 1
        result = call(*arguments)
        if self._tracing and number == self._last:
            jax.block_until_ready(result)
            self._stop()
        return result

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "Clock":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
