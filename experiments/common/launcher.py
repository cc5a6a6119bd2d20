"""What launchers share: flags in, one line and an exit code out, and a workdir that belongs to one configuration.

``experiments/common/failures.py`` has the table of exit codes.
"""

import contextlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments.common.failures import WithoutTracebacks, fail
from experiments.common.more_steps import continued
from nl_jax import InputError, StorageError
from nl_jax.files import local_path, locked, write_atomically
from nl_jax.training.metrics import METRICS

CONFIG = "config.json"
RESULTS = "results.json"
LOCK = ".nl_jax.lock"
COMPARED = ("flags", "data", "models")  # what must be as it was when a run goes on
# Flags that say where a run's inputs are. They may change when it goes on, since digests in "data" say what they hold.
INPUT_FLAGS = ("data", "text_key", "skip_bad", "tokenizer", "texts", "images", "start_from")
# Locks that the launchers in progress hold, the innermost last; the first is for parts called without a launcher.
_LOCKS = [contextlib.ExitStack()]


def run(
    body: Callable[[flags.FlagValues], None],
    values: flags.FlagValues,
    description: str | None,
    argv: list[str] | None = None,
) -> int:
    """Parses flags and runs a launcher.

    Args:
        body: the launcher; gets the parsed flags.
        values: its flags, not yet parsed.
        description: the launcher's docstring, which ``--help`` prints before the flags.
        argv: program name and arguments; default ``sys.argv``.

    Returns:
        The exit code, as in the table of ``failures.py``. Anything but 0 comes with one line on stderr.
    """
    command, argv = argv is None, sys.argv if argv is None else argv  # a command of its own ends after this
    _print_anything()
    try:
        with _locks_released(), _without_tracebacks():
            if {"--help", "-h"} & set(argv[1:]):
                print(_help(description or "", values))
            else:
                extra = values(argv)[1:]
                if extra:
                    raise InputError(f"argument {extra[0]!r}: expected flags only, as --name=value; --help lists them")
                body(values)
            sys.stdout.flush()  # raises here, not when the process ends
    except (Exception, KeyboardInterrupt) as error:
        if command and isinstance(error, StorageError):
            sys.unraisablehook = lambda _: None  # Orbax's threads go on failing until then
        return _fail(error)
    return 0


def run_subject(
    body: Callable[[str, flags.FlagValues], None],
    subjects: Mapping[str, Any],
    values: flags.FlagValues,
    description: str | None,
    argv: list[str] | None = None,
) -> int:
    """As `run`, for a launcher whose first argument is a key of ``subjects``, which ``body`` gets before the flags."""
    argv = list(sys.argv if argv is None else argv)
    place = next((place for place, word in enumerate(argv) if place and not word.startswith("-")), None)
    subject = argv.pop(place) if place else None

    def checked(values: flags.FlagValues) -> None:
        if subject is None or subject not in subjects:
            expected = f"one of {', '.join(subjects)}, then flags"
            raise InputError(f"first argument {subject or 'missing'}: expected {expected}")
        body(subject, values)

    return run(checked, values, description, argv)


def check_range(values: flags.FlagValues, name: str, low: float, high: float = math.inf) -> None:
    """Raises `InputError` unless a flag's number is finite and within ``[low, high]``."""
    value: Any = values[name].value
    if not (math.isfinite(value) and low <= value <= high):
        expected = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        raise InputError(f"--{name}={value}: expected {expected}")


def check_names(flag: str, names: Sequence[str], known: Iterable[str], required: bool = False) -> None:
    """Raises `InputError` unless a flag's names are all known, none is there twice and, if required, there is one."""
    if required and not names:
        raise InputError(f"--{flag}: none given; expected some of {', '.join(known)}")
    if len(set(names)) < len(names) or not set(names) <= set(known):
        raise InputError(f"--{flag}={','.join(names)}: expected some of {', '.join(known)}, none twice")


def workdir_of(values: flags.FlagValues) -> Path:
    """The path that ``--workdir`` names; `InputError` if it is not given or not a directory."""
    if not values.workdir:
        raise InputError("--workdir: missing; expected a directory, such as --workdir=runs/first")
    path = local_path(values.workdir)
    if path.exists() and not path.is_dir():
        raise InputError(f"--workdir={values.workdir}: expected a directory, found a file")
    return path


def own_workdir(values: flags.FlagValues) -> Path:
    """As `workdir_of`, for a launcher that writes there: `InputError` where another process does, as far as known yet.

    Nothing is written: `claim_workdir` makes a new workdir this process' own once all is checked.
    """
    path = workdir_of(values)
    if (path / LOCK).exists():
        with contextlib.suppress(OSError):  # a finished run can be printed from where nothing can be written
            lock(path / LOCK)
    return path


def lock(file: Path) -> None:
    """Takes the lock of a file until the launcher ends; `InputError` where another process has it."""
    _LOCKS[-1].enter_context(locked(file))


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, None where there is no such file; `InputError` if it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: cannot be read ({error}); expected what a launcher wrote there") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON atomically; directories are made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_config(workdir: Path, name: str, written: Iterable[str] = ()) -> dict[str, Any] | None:
    """The configuration of the run that a workdir holds, None where it holds none.

    Args:
        workdir: may not exist.
        name: the launcher whose run it should be.
        written: names of files that the launcher writes; they must not be there without a configuration.

    Raises:
        InputError: the workdir holds a run of another launcher, or something that is no run.
    """
    config = read_json(workdir / CONFIG)
    if config is None:
        for file in written:
            if (workdir / file).exists():
                raise InputError(f"{workdir / file}: there without a {CONFIG}; expected an empty or new workdir")
    elif config.get("launcher") != name or not all(isinstance(config.get(what), dict) for what in COMPARED):
        found = config.get("launcher")
        raise InputError(f"{workdir / CONFIG}: of launcher {found!r}; expected one of {name!r}, or a new workdir")
    return config


def claim_workdir(
    workdir: Path, config: Mapping[str, Any], metadata: Mapping[str, Any], written: Iterable[str] = ()
) -> dict[str, Any]:
    """Locks a workdir and writes a run's configuration into a new one; `InputError` where it holds another run.

    A run that can go on with other steps (``experiments/common/more_steps.py``) does: its results are kept as
    ``results_STEPS.json``, and begun anew.

    Args:
        workdir: may not exist.
        config: ``launcher``, the launcher's name, and ``flags``, ``data`` and ``models``, which must be as they were.
        metadata: what ``results.json`` says at first, beside configuration, versions and device.
        written: names of what else the launcher writes there, which must not be there in a new workdir.

    Returns:
        What ``results.json`` holds, or is to hold at first.
    """
    written = (RESULTS, METRICS, *written)
    check_workdir(workdir, config, written)  # before anything is written
    workdir.mkdir(parents=True, exist_ok=True)
    lock(workdir / LOCK)
    stored = check_workdir(workdir, config, written)  # again, since another process may have come first
    if stored is None:
        write_json(workdir / CONFIG, config)
    elif not same_flags(stored["flags"], config["flags"]):
        if (workdir / RESULTS).exists():
            (workdir / RESULTS).rename(workdir / f"results_{stored['flags']['steps']}.json")
        write_json(workdir / CONFIG, config)
    return results_of(workdir, config, metadata)


def check_workdir(workdir: Path, config: Mapping[str, Any], written: Iterable[str]) -> dict[str, Any] | None:
    """The configuration of the run in the workdir, None where there is none; `InputError` where it is another.

    Args:
        workdir, config: as for `claim_workdir`.
        written: as for `read_config`.
    """
    stored = read_config(workdir, config["launcher"], written)
    if stored is not None:
        check_flags(workdir, stored["flags"], config["flags"])
        for what in ("data", "models"):
            check_same(workdir, what, stored[what], config[what])
    return stored


def inputs_of(values: flags.FlagValues) -> dict[str, Any]:
    """Where a run's inputs are, for config.json and results.json: the flags `INPUT_FLAGS` that there are."""

    def absolute(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(name, item) for item in value]
        is_path = isinstance(value, str) and name != "text_key"
        return str(Path(value).expanduser().absolute()) if is_path else value

    return {name: absolute(name, values[name].value) for name in INPUT_FLAGS if name in values}


def holds_run(workdir: Path, directory: Path) -> bool:
    """Whether a directory is ``workdir`` or holds a run of some launcher: what is below is no text to train on."""
    if directory.resolve() == workdir.resolve():
        return True
    try:
        return "launcher" in (read_json(directory / CONFIG) or {})
    except (InputError, OSError):
        return False


def check_flags(workdir: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises `InputError` unless the flags are as they were, or such that the run can go on with them."""
    stored = continued(workdir, stored, given, has_results=(workdir / RESULTS).exists())
    check_same(workdir, "flags", stored, given)


def same_flags(stored: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether flags are as they were, however JSON writes them."""
    return json.loads(json.dumps(stored)) == json.loads(json.dumps(given))


def results_of(workdir: Path, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What ``results.json`` holds; at first ``metadata``, and the configuration, versions and device."""
    return read_json(workdir / RESULTS) or {
        "configuration": {name: config[name] for name in COMPARED},
        "versions": versions(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        **metadata,
    }


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows, the header first, in columns: the first one flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        print("  ".join(cells).rstrip())


def mean_and_spread(figures: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation (of a sample); the mean alone of a single figure."""
    spread = f" ± {statistics.stdev(figures):.{digits}f}" if len(figures) > 1 else ""
    return f"{statistics.fmean(figures):.{digits}f}{spread}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    packages = ("nl-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def check_same(workdir: Path, what: str, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises `InputError` that lists how a workdir's configuration differs from the one given."""
    stored, given = json.loads(json.dumps(stored)), json.loads(json.dumps(given))  # tuples become lists
    differences = [
        f"{name} {stored.get(name)!r} there, {given.get(name)!r} here"
        for name in sorted({*stored, *given})
        if stored.get(name) != given.get(name)
    ]
    if differences:
        raise InputError(
            f"{workdir} holds a run with other {what}: {'; '.join(differences)}; expected the same or a new one"
        )


def _help(description: str, values: flags.FlagValues) -> str:
    lines = [description.strip(), "", "Flags:"]
    for name in values:
        default = values[name].default_as_str
        lines.append(f"  --{name}: {values[name].help}" + (f" Default: {default}." if default else ""))
    return "\n".join(lines)


def _fail(error: BaseException) -> int:
    code = fail(error)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk, or a reader that is gone: Python would try again, and fail, when the process ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _print_anything() -> None:
    """What a terminal has no characters for is printed as \\xe9 instead of an error."""
    stream = sys.stdout
    if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _locks_released() -> Iterator[None]:
    """Gives back, at the end, what is locked inside."""
    with contextlib.ExitStack() as stack:
        _LOCKS.append(stack)
        try:
            yield
        finally:
            _LOCKS.pop()


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keeps what libraries log with a traceback off stderr: Orbax logs each error of a save several times.

    After such an error its threads go on failing, until the process ends, so they are kept quiet until then.
    """
    loggers, only, failing = [logging.getLogger(name) for name in ("absl", "asyncio")], WithoutTracebacks(), False
    for logger in loggers:
        logger.addFilter(only)
    try:
        yield
    except StorageError:
        failing = True
        raise
    finally:
        for logger in loggers if not failing else ():
            logger.removeFilter(only)
