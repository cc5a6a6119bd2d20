"""Lets a trained model read endless text and keep learning, with a line of live output for every chunk.

    python -m experiments.stream --workdir=runs/first < text
    cat a.txt b.txt | python -m experiments.stream --workdir=runs/first --every=4096 --freeze=cms_2

The run in the workdir must have a model whose continuum memory learns in context (experiments.language_model with
--cms_regime=online or meta). A line shows the number of tokens learned, their mean loss in bits before they were
learned (the cost in a compressor), the norm of each level's gradient, and the levels that were updated. At the end, and
on Ctrl-C, the learner is saved to WORKDIR/MODEL/stream. The same command continues from there; with --fresh it starts
anew and replaces the saved learner at the end.
"""

import math
import os
import resource
import signal
import sys
import time

from absl import flags

from experiments.common import launcher
from experiments.common.path_flags import define_path
from experiments.common.restoring import chosen_model, define_tokenizer_flag, restore
from nl_jax import InputError
from nl_jax.data import Tokenizer, whole_characters
from nl_jax.streaming import Stream
from nl_jax.streaming.saved import check_replaceable, is_saved
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
    define(flags.DEFINE_list, "freeze", [], "Levels that do not learn, such as mixers,cms_0.")
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
    try:
        for level in values.freeze:
            stream.freeze(level)
    except ValueError as error:
        raise InputError(f"--freeze={','.join(values.freeze)}: {error}") from error
    if values.every is not None:
        launcher.check_range(values, "every", 1)
    every = values.every or stream.chunk
    if every % stream.chunk:
        raise InputError(f"--every={every}: expected a multiple of the chunk, {stream.chunk} tokens")
    if stream.position == 0 and stream.waiting == 0:
        stream.feed([tokenizer.separator_id])
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        read(stream, tokenizer, every)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, previous)
        stream.save(saved)
    print(f"{stream.position:,} tokens learned, {stream.waiting} wait for their chunk; the learner is in {saved}")


def read(stream: Stream, tokenizer: Tokenizer, every: int) -> None:
    """Feeds standard input to the stream until its end, and prints a line for every ``every`` tokens."""
    rest, cut = list[int](), b""
    started, before = time.perf_counter(), stream.position
    while block := os.read(sys.stdin.fileno(), BLOCK):
        block = cut + block  # a character may begin in one block and end in the next
        end = whole_characters(block)
        cut = block[end:]
        ids, _ = tokenizer.encode(block[:end])
        rest += [int(i) for i in ids]
        while len(rest) >= every:
            fed = stream.feed(rest[:every])
            del rest[:every]
            speed = (stream.position - before) / (time.perf_counter() - started)
            levels = " ".join(f"{level} {value:.3g}" for level, value in fed.surprise.items())
            updated = " ".join(level for level, count in fed.updated.items() if count)
            mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            print(
                f"{stream.position:>10,} tokens  {fed.loss / math.log(2):6.3f} bits  surprise {levels}  "
                f"updated {updated}  {speed:,.0f} tokens/s  {mib:,.0f} MiB",
                flush=True,
            )
    stream.feed([*rest, *tokenizer.encode(cut)[0].tolist()])


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
