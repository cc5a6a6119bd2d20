"""The metrics of a run, written to ``metrics.jsonl`` and as TensorBoard events."""

import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from nl_jax.errors import InputError
from nl_jax.files import write_atomically
from nl_jax.parallel.hosts import is_writer

METRICS = "metrics.jsonl"
PLOT = "validation.png"
VALIDATION = "validation_bits_per_byte"
ACCURACY_PLOT = "accuracy.png"
ACCURACY = "accuracy"
_START = '{"model": '  # the beginning of every line of metrics.jsonl
_FLUSH_SECONDS = 120.0  # time between two flushes, after which TensorBoard sees new events


def is_measured(key: str) -> bool:
    """Whether a value in ``metrics.jsonl`` differs from run to run: a speed, a time, or the memory of the device."""
    return key == "tokens_per_second" or key.startswith(("seconds/", "memory/"))


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Reads the rows of ``metrics.jsonl``, oldest first. A last line that was cut off during writing is left out.

    Raises:
        InputError: if `MetricsWriter` cannot have written a line, or the beginning of the last one.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nl_jax.training import read_metrics
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(read_metrics(Path(folder)))  # nothing is written yet
        []
    """
    path = workdir / METRICS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n") and lines[-1][: len(_START)] == _START[: len(lines[-1])]:
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not (isinstance(row, dict) and "model" in row and isinstance(row.get("step"), int)):
            raise InputError(f"{path}:{number}: expected a JSON object with keys model and step, got {line[:60]!r}")
        rows.append(row)
    return rows


class MetricsWriter:
    """Appends to ``workdir/metrics.jsonl`` and to TensorBoard events in ``workdir/MODEL/tensorboard``.

    Use as a context manager. Of several processes only the one that `is_writer` writes.

    Args:
        workdir: an existing directory; several models may share it.
        model: name of the model, part of every row.
        resumed_from: the step that was restored, 0 at the start. Rows of this model for later steps are dropped, since
            they will be written again.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nl_jax.training import MetricsWriter, read_metrics
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with MetricsWriter(Path(folder), "hope") as writer:
        ...         writer.write(1, 64, {"loss": 5.5})
        ...     print(read_metrics(Path(folder)))
        [{'model': 'hope', 'step': 1, 'tokens': 64, 'loss': 5.5}]
    """

    def __init__(self, workdir: Path, model: str, resumed_from: int = 0):
        self._writes = is_writer()
        if not self._writes:
            return
        kept = [row for row in read_metrics(workdir) if row["model"] != model or row["step"] <= resumed_from]
        write_atomically(workdir / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        self._model = model
        self._file = (workdir / METRICS).open("a", encoding="utf-8", buffering=1)  # buffered by lines
        self._events = _Events(workdir / model / "tensorboard", resumed_from + 1)

    def write(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        """Records ``values``, which were measured after ``step`` steps on ``tokens`` tokens."""
        if not self._writes:
            return
        self._file.write(json.dumps({"model": self._model, "step": step, "tokens": tokens, **values}) + "\n")
        self._events.add(step, values)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._writes:
            return
        with contextlib.closing(self._events), contextlib.closing(self._file):
            pass


class _Events:
    """Writes the TensorBoard events of one run in this thread, so that errors are raised here.

    tensorboardX's ``SummaryWriter`` writes in a thread of its own: if the disk is full, it prints a traceback, its
    thread ends, and after ten more values it waits for ever.
    """

    def __init__(self, directory: Path, first_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))
        self._flushed = -math.inf
        # The START event makes TensorBoard drop events of later steps that a stopped run has left.
        at = {"wall_time": time.time(), "step": first_step}
        self._writer.write_event(Event(**at, file_version="brain.Event:2"))
        self._writer.write_event(Event(**at, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() > self._flushed + _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()
