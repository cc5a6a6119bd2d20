"""The training loop: steps, evaluations, checkpoints, and going on after a stop as if there had been none."""

import dataclasses
import functools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import grain
import jax
from jax.sharding import Mesh
from tqdm import tqdm

from nl_jax.data import EvaluationSet
from nl_jax.evaluation import evaluate
from nl_jax.files import local_path
from nl_jax.parallel.batches import place_local_rows
from nl_jax.parallel.hosts import StopVote, is_writer, several
from nl_jax.parallel.sharding import parameter_shardings
from nl_jax.training.checkpoint import CheckpointWriter, restore_newest
from nl_jax.training.clock import Clock
from nl_jax.training.divergence import SkippedSteps, check_finite, check_parameters
from nl_jax.training.metrics import VALIDATION, MetricsWriter
from nl_jax.training.step import Optimizer, TrainState, compile_step, init_state, peak_memory_bytes

PyTree = Any
CHECKPOINTS, PROFILE = "checkpoints", "profile"  # below the model's directory
# Where a run has several processes, schedulers send a signal to all of a host, and a parent forwards its own.
SAME_SIGNAL_SECONDS = 1.0


class TrainingInterrupted(Exception):
    """SIGINT or SIGTERM came and everything up to the end of the step is saved; `signum` says which it was.

    Examples:
        >>> import signal
        >>> from nl_jax.training import TrainingInterrupted
        >>> TrainingInterrupted("stopped after step 7", signal.SIGTERM).signum == signal.SIGTERM
        True
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is; saved as JSON beside each checkpoint.

    Attributes:
        step: optimizer steps taken.
        tokens: tokens trained on.
        seconds: time spent in these steps, without compilation, evaluation and checkpoints.
        validation_bits_per_byte: at the last evaluation.
        peak_memory_bytes: what a step needs on one device.
        skipped: steps that changed nothing, since their loss or gradient was not finite.
        skipped_in_a_row: how many of them came last.

    Examples:
        >>> from nl_jax.training import Progress
        >>> Progress(step=10, tokens=1_000, seconds=0.5).tokens_per_second
        2000.0
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    validation_bits_per_byte: float = math.nan
    peak_memory_bytes: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Training speed; NaN before the first step."""
        return self.tokens / self.seconds if self.seconds else math.nan


def fit(
    name: str,
    init_model: Callable[[], PyTree],
    optimizer: Optimizer,
    iterator: grain.DatasetIterator,
    validation: EvaluationSet,
    *,
    workdir: Path,
    mesh: Mesh,
    steps: int,
    eval_every: int,
    checkpoint_every: int,
    accumulate: int = 1,
    profile: int | None = None,
) -> tuple[TrainState, Progress]:
    """Trains a model, from the newest checkpoint in ``workdir/name`` where there is one.

    The result depends on the arguments only (on the same devices bit for bit), not on how often the run was stopped.
    A step whose loss or gradient is not finite is skipped: its batch is left out, `Progress` counts it, and a line on
    stderr reports it.

    Args:
        name: the model's name in metrics and messages, and of its directory.
        init_model: makes the model; pure, so seeds are fixed inside. Nothing random happens after that, so a checkpoint
            holds no key: model, optimizer state and the iterator's position are all there is.
        optimizer: of each level, from `make_optimizer`; or any optax transformation for all parameters.
        iterator: endless batches of ``inputs`` and ``targets``, int32 ``[b, T]``: the rows of a global batch that
            `local_rows` names.
        validation: what to evaluate on; the model reads one of its batches at once, whatever ``accumulate`` is.
        workdir: where ``metrics.jsonl`` is written, shared by models; made if need be.
        mesh: the devices, from `parse_mesh`.
        steps: optimizer steps in all.
        eval_every: steps between evaluations; there is one after the last step too.
        checkpoint_every: steps between checkpoints; likewise.
        accumulate: number of microbatches of a step, as for `train_step`.
        profile: the first of `TRACED_STEPS` steps, of which a trace is written to ``workdir/name/profile``.

    Returns:
        The final state, and the progress of the whole run, not only of this process.

    Raises:
        TrainingDiverged: `SKIPPED_IN_A_ROW` steps in a row were skipped, or a parameter or the validation figure is not
            finite. What is saved is from before.
        TrainingInterrupted: SIGINT or SIGTERM; a second one ends the process at once. A signal that one of several
            processes gets stops all of them after the same step.
        InputError: there are checkpoints, but none can be read; ``workdir`` is a URL, or holds something else under the
            names that are written there.
        StorageError: a checkpoint cannot be written (other files: ``OSError``); the ones before stay.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import jax, jax.numpy as jnp, optax
        >>> from nl_jax.data import ByteTokenizer, Document, evaluation_batches, pack, train_iterator
        >>> from nl_jax.parallel import parse_mesh
        >>> from nl_jax.training import fit
        >>> def next_token(table, tokens, state=None):
        ...     return table[tokens], state
        >>> bigram = lambda: jax.tree_util.Partial(next_token, jnp.zeros((257, 257)))
        >>> text = pack([Document("a", b"hello " * 20)], ByteTokenizer())
        >>> batches = train_iterator(text, batch_size=2, seq_len=8, seed=0)
        >>> validation = evaluation_batches(text, batch_size=2, seq_len=8)
        >>> run = {"mesh": parse_mesh("data:1", jax.devices()[:1]), "steps": 2, "eval_every": 2, "checkpoint_every": 2}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _, progress = fit("bigram", bigram, optax.adam(0.1), batches, validation, workdir=Path(folder), **run)
        >>> progress.step, progress.tokens, progress.validation_bits_per_byte < 8.0
        (2, 32, True)
    """
    workdir = local_path(workdir)
    directory = workdir / name / CHECKPOINTS
    directory.mkdir(parents=True, exist_ok=True)
    state, progress = _start(init_model, optimizer, iterator, directory, mesh)
    skips = SkippedSteps(name, progress.skipped, progress.skipped_in_a_row)
    stop_vote = StopVote(mesh)
    compiled: jax.stages.Compiled | None = None
    started, tokens_before = 0.0, 0  # when the clock that leaves out all but steps last ran on, and the tokens then

    with (
        MetricsWriter(workdir, name, progress.step) as metrics,
        CheckpointWriter(directory, progress.step) as checkpoints,
        progress_bar(name, steps, progress.step) as bar,
        _Signals() as signals,
        Clock(workdir / name / PROFILE, profile) as clock,
    ):

        def report(step: int, tokens: int, outputs: dict[str, jax.Array]) -> None:
            values = skips.values(step, outputs)
            metrics.write(step, tokens, values)
            rate = (tokens - tokens_before) / (time.perf_counter() - started)
            _show(bar, values.get("loss", math.nan), rate)

        unreported: list[tuple[int, int, dict[str, jax.Array]]] = []
        for step in range(progress.step + 1, steps + 1):
            batch = place_local_rows(mesh, clock.timed("data", next, iterator))
            if compiled is None:
                compiled = compile_step(optimizer, mesh, state, batch, accumulate)
                progress = dataclasses.replace(progress, peak_memory_bytes=peak_memory_bytes(compiled))
                started, tokens_before = time.perf_counter(), progress.tokens
                bar.unpause()
            state, outputs = clock.step(step, compiled, state, batch)
            progress = dataclasses.replace(progress, step=step, tokens=progress.tokens + batch["inputs"].size)
            # A step is reported while the next one runs, so that the device never waits for the host.
            unreported.append((step, progress.tokens, outputs))
            last = step == steps
            stop = stop_vote(signals.received)
            pause = last or step % eval_every == 0 or step % checkpoint_every == 0 or stop is not None
            while len(unreported) > (0 if pause else 1):
                report(*unreported.pop(0))
            if not pause:
                continue

            jax.block_until_ready(state)
            spent = clock.add("step", time.perf_counter() - started)
            progress = dataclasses.replace(progress, seconds=progress.seconds + spent, **skips.counts)
            if last or step % eval_every == 0:
                progress = _validate(name, progress, state, validation, mesh, metrics, clock)
            stop = stop if several() else signals.received  # it may have come since
            if last or step % checkpoint_every == 0 or stop is not None:
                items = _finite_items(name, step, state)
                clock.timed("save", checkpoints.save, step, items, iterator, dataclasses.asdict(progress))
            if stop is not None and not last:
                raise TrainingInterrupted(f"{name}: stopped after step {step}, which is saved", stop)
            started, tokens_before = time.perf_counter(), progress.tokens
            bar.unpause()
    return state, progress


def _start(
    init_model: Callable[[], PyTree],
    optimizer: Optimizer,
    iterator: grain.DatasetIterator,
    directory: Path,
    mesh: Mesh,
) -> tuple[TrainState, Progress]:
    """State and progress from the newest checkpoint, else of a model just made; split over the mesh either way."""
    make = functools.partial(init_state, init_model, optimizer)
    shapes = jax.eval_shape(make)
    shardings = parameter_shardings(mesh, shapes)
    template = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)
    restored = restore_newest(directory, {"model": template.model, "optimizer": template.opt_state}, iterator)
    if restored is None:
        return jax.jit(make, out_shardings=shardings)(), Progress()
    return TrainState(restored.items["model"], restored.items["optimizer"]), Progress(**restored.metadata)


def _validate(
    name: str,
    progress: Progress,
    state: TrainState,
    validation: EvaluationSet,
    mesh: Mesh,
    metrics: MetricsWriter,
    clock: Clock,
) -> Progress:
    """The progress with the validation figure; it is written to the metrics, with where the time went."""
    score = clock.timed("evaluation", evaluate, state.model, validation, mesh)
    check_finite(name, progress.step, {VALIDATION: score})
    values = {VALIDATION: score, "tokens_per_second": progress.tokens_per_second, **clock.take()}
    metrics.write(progress.step, progress.tokens, values)
    return dataclasses.replace(progress, validation_bits_per_byte=score)


def _finite_items(name: str, step: int, state: TrainState) -> dict[str, PyTree]:
    """The items of a checkpoint; raises `TrainingDiverged` for parameters that must not be saved."""
    check_parameters(name, step, state.model)
    return {"model": state.model, "optimizer": state.opt_state}


def _show(bar: tqdm, loss: float, rate: float) -> None:
    """Moves the bar on by a step."""
    bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s", refresh=False)
    bar.update()


class _Signals:
    """While it is entered, notes the first SIGINT or SIGTERM in `received` and leaves the second to Python."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at = 0.0  # when it was received
        # Only the main thread may set handlers; a fit in another one (a notebook's, say) is not interruptible.
        main = threading.current_thread() is threading.main_thread()
        self._signums = (signal.SIGINT, signal.SIGTERM) if main else ()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_Signals":
        # None stands for a handler that Python did not install.
        self._previous = {s: signal.signal(s, self._receive) or signal.SIG_DFL for s in self._signums}
        return self

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and time.monotonic() < self._at + SAME_SIGNAL_SECONDS:
            return
        again, self.received, self._at = self.received is not None, signal.Signals(signum), time.monotonic()
        if again or not several():  # with several processes a second signal that follows at once is the same one
            self._restore()
            if again:
                signal.raise_signal(signal.Signals(signum))

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        self._restore()
        if self.received is not None and exception_type is None:
            signal.raise_signal(self.received)  # came with the last step: for the caller to handle


class _Lines(tqdm):
    """Progress for a log file: lines under each other, where a terminal gets one bar that moves."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Replaces tqdm's, which draws over the line before."""

        def show(text: str) -> None:
            print(text, file=file, flush=True)

        return show

    def close(self) -> None:
        """Prints where it ended; tqdm's own adds an empty line."""
        if not self.disable:
            self.display()
            self.sp = None  # nothing more to print with
        super().close()


def progress_bar(name: str, steps: int, done: int = 0) -> tqdm:
    """A bar with the time left on stderr, or lines where that is no terminal; ``done`` of the steps are behind.

    Examples:
        >>> from nl_jax.training import progress_bar
        >>> with progress_bar("hope", steps=10, done=4) as bar:  # writes to stderr
        ...     _ = bar.update()
        >>> bar.n, bar.total
        (5, 10)
    """
    shared = {"desc": name, "initial": done, "total": steps, "file": sys.stderr, "disable": not is_writer()}
    layout = "{desc} {percentage:3.0f}%|{bar:20}| step {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    if sys.stderr.isatty():
        return tqdm(**shared, bar_format=layout, dynamic_ncols=True)
    return _Lines(**shared, bar_format=layout.replace("|{bar:20}|", ""), mininterval=10)
