"""The page of a run that is going on: one HTML file, which a browser reads anew until the run has ended."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.launcher import CONFIG, LOCK, read_json
from experiments.reporting.charts import Line, line_chart
from experiments.reporting.page import Code, Heading, Part, Picture, Table, self_contained_html
from experiments.reporting.samples import Samples
from nl_jax import InputError
from nl_jax.files import Owner, owner, write_atomically
from nl_jax.training import read_metrics
from nl_jax.training.metrics import METRICS

PAGE = "live.html"
MOST_LINES = 6  # of a chart: the newest runs
SMOOTHED = 20  # steps whose mean loss the table shows
HEADER = ("run", "step", "loss", "validation", "tokens/s", "skipped steps")
NORMS = {"grad_norm/": "Norm of the gradient", "update_norm/": "Norm of the update", "state_norm/": "Norm of the state"}
COUNTS = ("model", "step", "tokens", "loss", "grad_norm", "tokens_per_second", "skipped", "diverged_layer")
Rows = Sequence[Mapping[str, Any]]


class Memory(NamedTuple):
    """The resident memory of the run's process, in MiB, at seconds since the page began."""

    seconds: list[float]
    mebibytes: list[float]


def config_of(workdir: Path) -> dict[str, Any]:
    """The configuration of the run in a workdir; raises `InputError` if there is none."""
    config = read_json(workdir / CONFIG)
    if config is None:
        raise InputError(f"{workdir}: no {CONFIG} there; expected the workdir of a run that has begun")
    return config


def watch(workdir: Path, every: int, sample_tokens: int = 0, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Writes the page of a run every few seconds until no process writes into its workdir; returns the page's path.

    Args:
        workdir: of the run, where the page is written.
        every: seconds between two pages.
        sample_tokens: tokens of the samples that each model's newest checkpoint writes; 0 for no samples.
        sleep: waits that long.

    Raises:
        InputError: if the workdir holds no run of a launcher.
    """
    config = config_of(workdir)
    begun, memory, samples = time.monotonic(), Memory([], []), Samples(workdir, config, sample_tokens)
    running: Owner | None = None
    try:
        while (running := owner(workdir / LOCK)) is not None:
            if running.is_here and (used := resident_mebibytes(running.process)) is not None:
                memory.seconds.append(time.monotonic() - begun)
                memory.mebibytes.append(used)
            _write(workdir, config, memory, samples, running, every)
            samples.update()  # after the page, which would wait for it
            sleep(every)
        samples.update()
    finally:
        _write(workdir, config, memory, samples, None, every)  # or the page would be read anew for ever
    return workdir / PAGE


def _write(
    workdir: Path, config: Mapping[str, Any], memory: Memory, samples: Samples, running: Owner | None, every: int
) -> None:
    title = f"{config.get('launcher')} ({workdir.name})"
    parts = [*parts_of(title, config, rows_of(workdir), memory, running), *_texts(samples)]
    write_atomically(workdir / PAGE, self_contained_html(parts, title, None if running is None else every))


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    """The metrics of a run; those of each cell of an evaluation are in a folder of their own."""
    rows = read_metrics(workdir)
    for file in sorted(workdir.glob(f"*/*/{METRICS}"), key=lambda file: file.stat().st_mtime):
        cell = file.parent.relative_to(workdir)
        rows += [row | {"model": f"{cell}/{row['model']}"} for row in read_metrics(file.parent)]
    return rows


def parts_of(title: str, config: Mapping[str, Any], rows: Rows, memory: Memory, running: Owner | None) -> list[Part]:
    """The parts of the page."""
    now = time.strftime("%H:%M:%S")
    state = "No process writes there any more"
    if running is not None:
        state = f"Process {running.process} is at it" + ("" if running.is_here else f" on {running.host}")
    parts: list[Part] = [Heading(title, 1), f"{state}; written at {now}."]
    if not rows:
        return [*parts, "No step has been recorded yet."]
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["model"], []).append(row)
    steps = (config.get("flags") or {}).get("steps")
    parts.append(Table([HEADER, *(_progress(name, own, steps) for name, own in runs.items())]))
    shown = dict(list(runs.items())[-MOST_LINES:])
    newest = list(runs)[-1]
    charts = [
        line_chart(_lines(shown, "loss"), title="Loss, nats per target", x_label="step"),
        *(line_chart(_lines(shown, key), title=_words(key), x_label="step") for key in _scores(rows)),
        *(
            line_chart(_levels(runs[newest], kind), title=f"{words} of {newest}", x_label="step", log=True)
            for kind, words in NORMS.items()
        ),
        line_chart(
            [Line("process", memory.seconds, memory.mebibytes)], title="Memory of the process, MiB", x_label="seconds"
        ),
        line_chart(_device_memory(runs[newest]), title=f"Memory of the device, MiB, {newest}", x_label="step"),
    ]
    parts += [Picture(chart) for chart in charts if chart]
    return [*parts, *_time_split(shown)]


def _progress(name: str, rows: Rows, steps: Any) -> tuple[str, ...]:
    """A row of the table: how far a run is."""
    losses = [row["loss"] for row in rows[-SMOOTHED:] if "loss" in row]
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    score = next((f"{last[key]:.4g}" for key in _scores(rows)), "-")
    speed = f"{last['tokens_per_second']:,.0f}" if "tokens_per_second" in last else "-"
    loss = f"{sum(losses) / len(losses):.4f}" if losses else "-"
    skipped = sum(bool(row.get("skipped")) for row in rows)
    return name, f"{last['step']}" + (f" of {steps}" if steps else ""), loss, score, speed, f"{skipped}"


def _scores(rows: Rows) -> list[str]:
    """Keys of figures that are no loss, norm, time or memory: those of evaluations, in the order of their coming."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if key not in COUNTS and "/" not in key and not key.startswith("diverged")]


def _words(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _lines(runs: Mapping[str, Rows], key: str) -> list[Line]:
    found = {name: [row for row in rows if key in row] for name, rows in runs.items()}
    return [Line(name, [row["step"] for row in own], [row[key] for row in own]) for name, own in found.items()]


def _levels(rows: Rows, kind: str) -> list[Line]:
    """A line for each level; steps at which a level is not due have the norm 0, and are left out."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(kind))
    lines = []
    for key in keys:
        own = [row for row in rows if row.get(key)]
        lines.append(Line(key.removeprefix(kind), [row["step"] for row in own], [row[key] for row in own]))
    return lines


def _device_memory(rows: Rows) -> list[Line]:
    """What the device said of its memory; a CPU says nothing."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("memory/"))
    found = {key: [row for row in rows if key in row] for key in keys}
    return [
        Line(key.removeprefix("memory/").replace("_", " "), [r["step"] for r in own], [r[key] / 2**20 for r in own])
        for key, own in found.items()
    ]


def _time_split(runs: Mapping[str, Rows]) -> list[Part]:
    """Where the seconds of each run went, as a table."""
    keys = list(
        dict.fromkeys(key for rows in runs.values() for row in rows for key in row if key.startswith("seconds/"))
    )
    if not keys:
        return []
    table = [("seconds so far", *(key.removeprefix("seconds/") for key in keys))]
    for name, rows in runs.items():
        taken = [sum(row.get(key, 0.0) for row in rows) for key in keys]
        total = sum(taken) or 1.0
        table.append((name, *(f"{seconds:,.1f} ({seconds / total:.0%})" for seconds in taken)))
    return [Heading("Where the time went"), Table(table)]


def _texts(samples: Samples) -> list[Part]:
    """What the models wrote, the newest checkpoint of each."""
    parts: list[Part] = [Heading("What the models write")] if samples.found else []
    for name, (step, text) in samples.found.items():
        parts += [f"{name}, after {step:,} steps:", Code(text)]
    return parts


def resident_mebibytes(process: int) -> float | None:
    """The memory of a process on this machine that is not swapped out, in MiB; None where the system does not say."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(found[0]) / 1024 if found else None
