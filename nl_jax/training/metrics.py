"""What a run records: ``metrics.jsonl``, TensorBoard events, and a figure drawn from the former."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboardX
from matplotlib.figure import Figure

from nl_jax.errors import InputError

METRICS = "metrics.jsonl"
FIGURE = "validation.png"
VALIDATION = "validation_bits_per_byte"


def write_atomically(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it: whoever looks sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``, oldest first; a last line that was cut off while it was written is left out.

    Raises:
        InputError: a line before the last is not a JSON object.
    """
    path = workdir / METRICS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
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
        logdir = str(workdir / model / "tensorboard")
        self._events = tensorboardX.SummaryWriter(logdir, purge_step=resumed_from + 1)

    def write(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        """Records `values` after `step` steps on `tokens` tokens."""
        self._file.write(json.dumps({"model": self._model, "step": step, "tokens": tokens, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._events.close()


def plot_validation(workdir: Path, yardsticks: Mapping[str, float]) -> Path:
    """Draws validation bits per byte against tokens, a line for each model of ``metrics.jsonl``, to ``validation.png``.

    Args:
        workdir: where ``metrics.jsonl`` is.
        yardsticks: bits per byte by name, drawn as horizontal lines.

    Returns:
        The path of the figure.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(workdir):
        if VALIDATION in row:
            curves.setdefault(row["model"], []).append((row["tokens"], row[VALIDATION]))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for model, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=model)
    for style, (name, value) in zip(("--", ":", "-."), yardsticks.items(), strict=False):
        axes.axhline(value, linestyle=style, color="gray", label=f"{name} (test)")
    axes.set(xlabel="training tokens", ylabel="validation bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    path = workdir / FIGURE
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=150)
    os.replace(temporary, path)
    return path
