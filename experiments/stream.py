"""Lets a trained model read endless text and keep learning, with a line of live output for every chunk.

    python -m experiments.stream --workdir=runs/first < text
    cat a.txt b.txt | python -m experiments.stream --workdir=runs/first --every=4096 --freeze=cms_2

The run in the workdir must have a model whose continuum memory learns in context (experiments.language_model with
--cms_regime=online or meta). A line shows the number of tokens learned, their mean loss in bits before they were
learned (the cost in a compressor), the norm of each level's gradient, and the levels that were updated.

At the end, and on Ctrl-C or SIGTERM, the learner is saved to WORKDIR/MODEL/stream, with the text that was read but not
learned. The same command continues from there. With --fresh it starts anew, and replaces the saved learner once it has
learned something or the input has ended.
"""

import math
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from absl import flags

from experiments.common import launcher
from experiments.common.path_flags import define_path
from experiments.common.restoring import chosen_model, define_tokenizer_flag, restore
from nl_jax import InputError
from nl_jax.data import ByteTokenizer, Tokenizer, whole_characters
from nl_jax.streaming import Stream
from nl_jax.streaming.saved import check_replaceable, is_saved
from nl_jax.streaming.stream import Fed
from nl_jax.training.loop import CHECKPOINTS

LOCK = ".stream.lock"  # beside the saved stream; the run itself may still be training
BLOCK = 1 << 16  # number of bytes in one read


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = flags.FlagValues()

    def define(kind: object, name: str, default: object, text: str) -> None:
        kind(name, default, text, flag_values=values)  # type: ignore[operator]

    define(define_path, "workdir", None, "Directory of a run of experiments.language_model. Required.")
    define(flags.DEFINE_string, "model", None, "One of the run's models. Default: the first.")
    define_tokenizer_flag(values)
    define(flags.DEFINE_integer, "every", None, "Tokens for each line of output. Default: one chunk.")
    define(flags.DEFINE_list, "freeze", [], "Levels that do not learn in this run, such as mixers,cms_0.")
    define(flags.DEFINE_boolean, "fresh", False, "Start anew, whatever was saved before.")
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(run, define_flags(), __doc__, argv)


def run(values: flags.FlagValues) -> None:
    """Feeds standard input to the stream."""
    directory, config, tokenizer = chosen_model(values)
    if config["cms_regime"] == "outer":
        raise InputError(
            f"--model={directory.name}: its CMS learns in pre-training only; expected a run with --cms_regime=online"
        )
    model = restore(directory / CHECKPOINTS, config)
    saved = directory / "stream"
    launcher.lock(directory / LOCK)
    check_replaceable(saved)
    stream = Stream(model) if values.fresh or not is_saved(saved) else Stream.load(saved, model)
    _freeze_only(stream, values.freeze)
    if values.every is not None:
        launcher.check_range(values, "every", 1)
    every = values.every or stream.chunk
    if every % stream.chunk:
        raise InputError(f"--every={every}: expected a multiple of the chunk, {stream.chunk} tokens")
    before, replaces = stream.position, values.fresh and is_saved(saved)
    with _Signals() as signals:
        try:
            if stream.position == 0 and stream.waiting == 0:
                stream.feed([tokenizer.separator_id])
            read(stream, tokenizer, every, signals)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt) and not replaces
            if stopped or stream.position > before:  # a learner that has learned nothing must not replace another
                _save(stream, saved)
            raise
        _save(stream, saved)


def _freeze_only(stream: Stream, levels: list[str]) -> None:
    """Freezes these levels, and lets all others learn, whatever an earlier run has frozen."""
    try:
        for level in stream.levels:
            stream.thaw(level)
        for level in levels:
            stream.freeze(level)
    except ValueError as error:
        raise InputError(f"--freeze={','.join(levels)}: {error}") from error


def _save(stream: Stream, saved: Path) -> None:
    stream.save(saved)
    print(f"{stream.position:,} tokens learned, {stream.waiting} wait for their chunk; the learner is in {saved}")


class _Signals:
    """Holds SIGINT and SIGTERM back, except in `let_through`, so that none comes while text is in no learner.

    A signal that is held comes at the next `let_through`, or at the end; another one while it is held comes at once.
    """

    def __init__(self) -> None:
        main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
        self._previous = {s: handler for s, handler in handlers.items() if callable(handler)}  # others stay as they are
        self._held: signal.Signals | None = None
        self._open = False

    def __enter__(self) -> "_Signals":
        for signum in self._previous:
            signal.signal(signum, self._receive)
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if exception_type is None:
            self._handle_held()

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Lets signals end the command here."""
        self._open = True
        try:
            self._handle_held()
            yield
        finally:
            self._open = False

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._open or self._held is not None:
            self._previous[signal.Signals(signum)](signum, frame)
        else:
            self._held = signal.Signals(signum)

    def _handle_held(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._previous[held](held, None)


def read(stream: Stream, tokenizer: Tokenizer, every: int, signals: _Signals) -> None:
    """Feeds standard input to the stream until its end, and prints a line for every ``every`` tokens."""
    started, before, cut = time.perf_counter(), stream.position, b""
    while True:
        while stream.waiting > every:  # also those that an earlier run has left
            with signals.let_through():
                fed = stream.feed([], limit=every)
            print(_line(stream, fed, (stream.position - before) / (time.perf_counter() - started)), flush=True)
        block = _next_block(signals)
        if not block:
            break
        block = cut + block  # a character may begin in one block and end in the next
        end = len(block) if isinstance(tokenizer, ByteTokenizer) else whole_characters(block)
        cut = block[end:]
        stream.feed(tokenizer.encode(block[:end])[0], limit=0)
    with signals.let_through():
        stream.feed([])
    if cut:
        raise InputError(f"standard input: ends inside a UTF-8 character, after {cut!r}; expected whole characters")


def _next_block(signals: _Signals) -> bytes:
    """The next bytes of standard input; none at its end. A signal ends the wait for them, and loses no bytes."""
    descriptor = sys.stdin.fileno()
    with signals.let_through():
        select.select([descriptor], [], [])
    return os.read(descriptor, BLOCK)


def _line(stream: Stream, fed: Fed, speed: float) -> str:
    levels = " ".join(f"{level} {value:.3g}" for level, value in fed.surprise.items())
    updated = " ".join(level for level, count in fed.updated.items() if count)
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return (
        f"{stream.position:>10,} tokens  {fed.loss / math.log(2):6.3f} bits  surprise {levels}  "
        f"updated {updated}  {speed:,.0f} tokens/s  {mib:,.0f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())
