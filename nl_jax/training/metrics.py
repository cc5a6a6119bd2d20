"""What a run records: ``metrics.jsonl`` and TensorBoard events."""

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

METRICS = "metrics.jsonl"
FIGURE = "validation.png"
VALIDATION = "validation_bits_per_byte"
ACCURACY_FIGURE = "accuracy.png"
ACCURACY = "accuracy"
_START = '{"model": '  # of every line of metrics.jsonl
_FLUSH_SECONDS = 120.0  # between two times that TensorBoard sees what is new


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``, oldest first; a last line that was cut off while it was written is left out.

    Raises:
        InputError: a line is none that `MetricsWriter` wrote, the last one none that it can have begun.
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

    Use as a context manager.

    Args:
        workdir: exists; several models may share it.
        model: the model's name, in every row.
        resumed_from: the step restored, 0 at the start; this model's rows after it are dropped: they will come again.
    """

    def __init__(self, workdir: Path, model: str, resumed_from: int = 0):
        kept = [row for row in read_metrics(workdir) if row["model"] != model or row["step"] <= resumed_from]
        write_atomically(workdir / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        self._model = model
        self._file = (workdir / METRICS).open("a", encoding="utf-8", buffering=1)  # by lines
        self._events = _Events(workdir / model / "tensorboard", resumed_from + 1)

    def write(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        """Records `values` after `step` steps on `tokens` tokens."""
        self._file.write(json.dumps({"model": self._model, "step": step, "tokens": tokens, **values}) + "\n")
        self._events.add(step, values)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.closing(self._events), contextlib.closing(self._file):
            pass


class _Events:
    """TensorBoard events of one run, written in this thread, so that an error is raised here.

    tensorboardX's ``SummaryWriter`` writes in a thread: it prints the traceback of a full disk, and once its thread has
    ended so, ten more values make it wait for ever.
    """

    def __init__(self, directory: Path, first_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))
        self._flushed = -math.inf
        # Events of these steps that a stopped run has left count no more.
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
