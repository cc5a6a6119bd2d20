"""The frame of all launchers: flags, errors as one line and an exit code, and a workdir with one configuration.

``experiments/common/failures.py`` has the table of exit codes.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments.common.failures import Terminated, fail, print_anything, with_flags, without_tracebacks
from experiments.common.host_flags import hosts_of
from experiments.common.more_steps import KEPT, continued
from experiments.common.path_flags import INPUT_FLAGS
from experiments.common.supervisor import CHILD, module_of, supervise
from nl_jax import InputError, StorageError, __version__
from nl_jax.files import local_path, locked, write_atomically
from nl_jax.models import LanguageModelConfig
from nl_jax.parallel.hosts import all_true, from_writer, is_writer
from nl_jax.training.metrics import METRICS

CONFIG = "config.json"
RESULTS = "results.json"
LOCK = ".nl_jax.lock"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
REPEATED = ";\n    repeat this option to specify a list of values"  # what absl adds, also behind a full stop
COMPARED = ("flags", "data", "models")  # parts of the configuration that must be unchanged when a run resumes
# Locks held by the running launchers, the innermost last; the first entry is for functions called without a launcher.
_LOCKS = [contextlib.ExitStack()]


def run(
    body: Callable[[flags.FlagValues], None],
    values: flags.FlagValues,
    description: str | None,
    argv: list[str] | None = None,
) -> int:
    """Parses flags and runs a launcher.

    Args:
        body: the launcher, called with the parsed flags.
        values: its flags, not yet parsed.
        description: the launcher's docstring, which ``--help`` prints before the flags.
        argv: program name and arguments; by default ``sys.argv``.

    Returns:
        The exit code, by the table in ``failures.py``. With any code but 0 there is one line on stderr.
    """
    command, argv = argv is None, sys.argv if argv is None else argv  # the process of a command ends after this
    print_anything()
    try:
        with _locks_released(), without_tracebacks(), _terminated():
            if {"--help", "-h"} & set(argv[1:]):
                print(_help(description or "", values))
            else:
                extra = values(argv)[1:]
                if extra:
                    raise InputError(f"argument {extra[0]!r}: expected flags only, as --name=value; --help lists them")
                hosts = hosts_of(values)
                if hosts is not None and CHILD not in os.environ:
                    return supervise(module_of(body), argv, hosts, values.start_timeout)
                body(values)
            sys.stdout.flush()  # raises errors here, not when the process ends
    except (Exception, KeyboardInterrupt) as error:
        if command and isinstance(error, StorageError):
            sys.unraisablehook = lambda _: None  # Orbax's threads keep failing until then
        return _fail(with_flags(error, values))
    return 0


def run_subject(
    body: Callable[[str, flags.FlagValues], None],
    subjects: Mapping[str, Any],
    values: flags.FlagValues,
    description: str | None,
    argv: list[str] | None = None,
) -> int:
    """As `run`, for a launcher whose first argument is a key of ``subjects``; ``body`` gets it before the flags."""
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
    """Raises `InputError` unless all names of a flag are known, none is repeated and, if required, there is one."""
    if required and not names:
        raise InputError(f"--{flag}: none given; expected some of {', '.join(known)}")
    if len(set(names)) < len(names) or not set(names) <= set(known):
        raise InputError(f"--{flag}={','.join(names)}: expected some of {', '.join(known)}, none twice")


def workdir_of(values: flags.FlagValues) -> Path:
    """The path given by ``--workdir``; raises `InputError` if it is missing or not a directory."""
    if not values.workdir:
        raise InputError("--workdir: missing; expected a directory, such as --workdir=runs/first")
    path = local_path(values.workdir)
    if path.exists() and not path.is_dir():
        raise InputError(f"--workdir={values.workdir}: expected a directory, found a file")
    return path


def own_workdir(values: flags.FlagValues) -> Path:
    """As `workdir_of`, for a launcher that writes to the workdir.

    An existing workdir is locked, and `InputError` raised if another process has locked it. Nothing is written:
    `claim_workdir` creates and locks a new workdir after all checks, and that of several processes.
    """
    path = workdir_of(values)
    if CHILD not in os.environ and (path / LOCK).exists():
        with contextlib.suppress(OSError):  # a finished run can be printed from a read-only workdir
            lock(path / LOCK)
    return path


def lock(file: Path) -> None:
    """Locks a file until the launcher ends; raises `InputError` if another process has locked it."""
    _LOCKS[-1].enter_context(locked(file))


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object from a file. Returns None if there is no file; raises `InputError` for other content."""
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
    """Writes JSON atomically, and creates missing directories; of several processes only the writer does."""
    if not is_writer():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_config(workdir: Path, name: str, written: Iterable[str] = ()) -> dict[str, Any] | None:
    """The configuration of the run in a workdir, or None if there is no run.

    Args:
        workdir: the workdir, which need not exist.
        name: name of the launcher to which the run must belong.
        written: names of files that the launcher writes; they must not exist without a configuration.

    Raises:
        InputError: if the workdir holds a run of another launcher, or files that are not a run.
    """
    return from_writer(lambda: _read_config(workdir, name, written))


def _read_config(workdir: Path, name: str, written: Iterable[str]) -> dict[str, Any] | None:
    config = read_json(workdir / CONFIG)
    if config is None:
        for file in written:
            if (workdir / file).exists():
                raise InputError(f"{workdir / file}: there without a {CONFIG}; expected an empty or new workdir")
    elif (found := config.get("launcher")) != name or not all(isinstance(config.get(part), dict) for part in COMPARED):
        what = "not a launcher's configuration" if found in (None, name) else f"of launcher {found!r}"
        raise InputError(f"{workdir / CONFIG}: {what}; expected a workdir of {name!r}, or a new one")
    return config


def claim_workdir(
    workdir: Path, config: Mapping[str, Any], metadata: Mapping[str, Any], written: Iterable[str] = ()
) -> dict[str, Any]:
    """Locks a workdir and, if it is new, writes the configuration of the run.

    If a run can continue with another number of steps (``experiments/common/more_steps.py``), its results are renamed
    to ``results_STEPS.json``, and new results begin.

    Args:
        workdir: the workdir, which need not exist.
        config: the configuration: ``launcher``, the launcher's name, and ``flags``, ``data`` and ``models``, which must
            equal those of an existing run.
        metadata: initial entries of ``results.json``, beside configuration, versions and device.
        written: names of other files that the launcher writes; they must not exist in a new workdir.

    Returns:
        The contents of ``results.json``, or its initial contents.

    Raises:
        InputError: if the workdir holds another run, or another process uses it.
    """
    results = from_writer(lambda: _claim(workdir, config, metadata, (RESULTS, METRICS, *written)))
    if not all_true(_appears(workdir, CONFIG)):
        raise InputError(f"--workdir={workdir}: not the same on all processes; expected a directory that they share")
    return results


def _claim(
    workdir: Path, config: Mapping[str, Any], metadata: Mapping[str, Any], written: tuple[str, ...]
) -> dict[str, Any]:
    check_workdir(workdir, config, written)  # before anything is written
    workdir.mkdir(parents=True, exist_ok=True)
    lock(workdir / LOCK)
    stored = check_workdir(workdir, config, written)  # again, since another process may have come first
    if stored is None:
        write_json(workdir / CONFIG, config)
    elif not same_flags(stored["flags"], config["flags"]):
        if (workdir / RESULTS).exists():
            (workdir / RESULTS).rename(workdir / KEPT.format(stored["flags"]["steps"]))
        write_json(workdir / CONFIG, config)
    return results_of(workdir, config, metadata)


def _appears(directory: Path, name: str, seconds: float = 10) -> bool:
    """Whether a directory has an entry, or gets it soon: network file systems show new files late."""
    end = time.monotonic() + seconds
    while not (directory.is_dir() and name in os.listdir(directory)):
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def check_workdir(workdir: Path, config: Mapping[str, Any], written: Iterable[str]) -> dict[str, Any] | None:
    """The configuration of the run in the workdir, or None; raises `InputError` if it is not the run of ``config``.

    Args:
        workdir, config: as for `claim_workdir`.
        written: as for `read_config`.
    """
    stored = _read_config(workdir, config["launcher"], written)
    if stored is not None:
        check_flags(workdir, stored["flags"], config["flags"])
        check_same(workdir, "data", stored["data"], config["data"])
        models = {name: _current_form(fields) for name, fields in stored["models"].items()}
        check_same(workdir, "models", models, config["models"])
    return stored


def _current_form(fields: Any) -> Any:
    """A model's configuration as this version writes it; earlier versions had fewer fields. Others stay as they are."""
    try:
        return LanguageModelConfig.from_json(fields).to_json()
    except (InputError, TypeError, AttributeError):
        return fields


def inputs_of(values: flags.FlagValues) -> dict[str, Any]:
    """The paths of a run's inputs, for config.json and results.json: those of `INPUT_FLAGS` that are defined."""

    def absolute(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(name, item) for item in value]
        is_path = isinstance(value, str) and name != "text_key"
        return str(Path(value).expanduser().absolute()) if is_path else value

    return {name: absolute(name, values[name].value) for name in INPUT_FLAGS if name in values}


def holds_run(workdir: Path, directory: Path) -> bool:
    """Whether a directory is ``workdir`` or holds a run of a launcher, so that it has no text to train on."""
    if directory.resolve() == workdir.resolve():
        return True
    try:
        return "launcher" in (read_json(directory / CONFIG) or {})
    except (InputError, OSError):
        return False


def check_flags(workdir: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises `InputError` unless the flags are those of the run, or the run can continue with them."""
    stored = continued(workdir, stored, given, has_results=(workdir / RESULTS).exists())
    check_same(workdir, "flags", stored, given)


def same_flags(stored: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether two sets of flags are equal once written as JSON."""
    stored, given = json.loads(json.dumps(stored)), json.loads(json.dumps(given))
    return all(stored.get(name) == given.get(name) for name in {*stored, *given})  # earlier versions had fewer flags


def results_of(workdir: Path, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of ``results.json``; initially ``metadata``, the configuration, versions and device."""
    return read_json(workdir / RESULTS) or {
        "configuration": {name: config[name] for name in COMPARED},
        "versions": versions(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        **metadata,
    }


def say(text: str) -> None:
    """Prints a line about a run's progress on stderr; of several processes only the writer does."""
    if is_writer():
        print(text, file=sys.stderr)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows, the header first, in columns; the first column is flush left, the others are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        print("  ".join(cells).rstrip())


def mean_and_spread(figures: Sequence[float], digits: int = 3) -> str:
    """Mean ± sample standard deviation of figures; of a single figure the mean alone."""
    spread = f" ± {statistics.stdev(figures):.{digits}f}" if len(figures) > 1 else ""
    return f"{statistics.fmean(figures):.{digits}f}{spread}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "nl-jax": __version__, **packages}  # it may run without installation


def check_same(workdir: Path, what: str, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises an `InputError` that lists all differences, if a workdir's configuration is not the given one."""
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
        ending = f" Default: {default}." if (default := values[name].default_as_str) else ""
        lines.append(f"  --{name}: {str(values[name].help).removesuffix(REPEATED)}{ending}")
    return "\n".join(lines)


def _fail(error: BaseException) -> int:
    code = fail(error)
    try:
        sys.stdout.flush()
    except OSError:  # the disk is full or the reader is gone; Python would try again, and fail, when the process ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


@contextlib.contextmanager
def _locks_released() -> Iterator[None]:
    """Releases, at the end of the context, the locks taken inside it."""
    with contextlib.ExitStack() as stack:
        _LOCKS.append(stack)
        try:
            yield
        finally:
            _LOCKS.pop()


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """Raises `Terminated` on SIGTERM, by which the process would end without a line, unless the caller handles it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
