"""What launchers share: flags in, one line and an exit code out, and a workdir that belongs to one configuration."""

import json
import math
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from absl import flags

from nl_jax import Diverged, InputError
from nl_jax.training import TrainingInterrupted
from nl_jax.training.metrics import METRICS, write_atomically

CONFIG = "config.json"
RESULTS = "results.json"
COMPARED = ("flags", "data", "models")  # what must be as it was when a run goes on


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
        The exit code: 0; 1 after divergence; 2 after bad flags or other bad input, or where the file system refuses;
        128 + signal after a signal. Anything but 0 comes with one line on stderr.
    """
    argv = sys.argv if argv is None else argv
    if {"--help", "-h"} & set(argv[1:]):
        print(_help(description or "", values))
        return 0
    try:
        extra = values(argv)[1:]
        if extra:
            raise InputError(f"argument {extra[0]!r}: expected flags only, as --name=value; --help lists them")
        body(values)
    except (flags.Error, InputError, OSError) as error:
        return _fail(error, 2)
    except Diverged as error:
        return _fail(error, 1)
    except TrainingInterrupted as error:
        return _fail(f"{error}; the same command goes on from there", 128 + error.signum)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from what is saved", 128 + signal.SIGINT)
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
    path = Path(values.workdir).expanduser()
    if path.exists() and not path.is_dir():
        raise InputError(f"--workdir={values.workdir}: expected a directory, found a file")
    return path


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


def claim_workdir(workdir: Path, config: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a run's configuration into a new workdir; raises `InputError` where the workdir holds another run.

    Args:
        workdir: may not exist.
        config: ``launcher``, the launcher's name, and ``flags``, ``data`` and ``models``, which must be as they were.
        about: what ``results.json`` says at first, beside configuration, versions and device.

    Returns:
        What ``results.json`` holds, or is to hold at first.
    """
    if not check_workdir(workdir, config, written=(RESULTS, METRICS)):
        write_json(workdir / CONFIG, config)
    return _results(workdir, config, about)


def check_workdir(workdir: Path, config: Mapping[str, Any], written: Iterable[str]) -> bool:
    """Whether the workdir holds this run; `InputError` where it holds another.

    Args:
        workdir, config: as for `claim_workdir`.
        written: as for `read_config`.
    """
    stored = read_config(workdir, config["launcher"], written)
    if stored is not None:
        for what in COMPARED:
            check_same(workdir, what, stored[what], config[what])
    return stored is not None


def _results(workdir: Path, config: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """What ``results.json`` holds; at first ``about``, and the configuration, versions and device."""
    return read_json(workdir / RESULTS) or {
        "configuration": {name: config[name] for name in COMPARED},
        "versions": versions(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        **about,
    }


class Record:
    """Figures of a run, written to ``results.json`` as soon as they are known: the same command goes on behind them.

    Args:
        workdir: may not exist; made when the first figures are kept.
        config: as for `claim_workdir`.
        about: what else ``results.json`` says.

    Raises:
        InputError: the workdir holds another run.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any], about: Mapping[str, Any] = MappingProxyType({})):
        self.workdir = workdir
        check_workdir(workdir, config, written=(RESULTS,))
        self._config = config
        device = f"1 x {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
        self._results = _results(workdir, config, {"figures": {}, "device": device, **about})

    def get(self, name: str) -> Any:
        """Figures of the name, None where there are none yet."""
        return self._results["figures"].get(name)

    def keep(self, name: str, figures: Any) -> None:
        """Writes figures, in the place of those of that name."""
        if not (self.workdir / CONFIG).exists():
            write_json(self.workdir / CONFIG, self._config)
        self._results["figures"][name] = figures
        write_json(self.workdir / RESULTS, self._results)

    def figures(self, name: str, measure: Callable[[], Any]) -> Any:
        """Figures of the name: those that are kept, else measured now and kept."""
        if self.get(name) is None:
            self.keep(name, measure())
        return self.get(name)

    def report(self) -> None:
        """Prints where everything is."""
        files = [RESULTS, *sorted(path.name for path in self.workdir.glob("*.png"))]
        print(f"Everything is in {self.workdir}: {', '.join(files)}")


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
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


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


def _fail(problem: object, code: int) -> int:
    print("error:", " ".join(str(problem).split()), file=sys.stderr)
    return code
