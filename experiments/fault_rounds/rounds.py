"""A round: one fault, then the same command again, and whether all is as if there had been no fault."""

import dataclasses
import random
import re
import shutil
from pathlib import Path
from typing import Any

from experiments.fault_rounds.disturbed_run import Command, Run, close, figures_of, output_of
from experiments.fault_rounds.kinds import START_SECONDS, Disturbance, Round, not_finite
from experiments.fault_rounds.kinds_of_four import ALL_KINDS

ROUNDING = 1e-5  # relative difference of float32 figures between four processes and one with four devices


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a round.

    Attributes:
        kind: the kind of fault.
        code: exit code of the disturbed run, of several processes that of the first survivor; -N after signal N.
        line: the line on stderr that says what happened, or None if there is none.
        seconds_to_exit: from the fault to the end of that run, or None if the run went on.
        seconds_to_train: from the next start of the same command to its first step, or its end if all was done.
        problems: what is not as it should be; empty if the run recovered.
    """

    kind: str
    code: int
    line: str | None
    seconds_to_exit: float | None
    seconds_to_train: float
    problems: list[str]


def undisturbed(command: Command, workdir: Path) -> tuple[dict[str, Any], float]:
    """Figures of a run that nothing disturbs, and the seconds that it takes once its programs are compiled."""
    workdir.mkdir()
    for name in ("first", "second"):
        with command.start(workdir / name) as run:
            if run.wait():
                raise RuntimeError(f"a run without a fault ended with code {run.process.returncode}: {run.stderr}")
            seconds = run.seconds()
    if figures_of(workdir / "first") != figures_of(workdir / "second"):
        raise RuntimeError(f"{workdir}: two runs of the same command, without a fault, differ")
    return figures_of(workdir / "first"), seconds


def play(kind: str, seed: str, command: Command, workdir: Path, expected: dict[str, Any], duration: float) -> Outcome:
    """Plays a round. What it wrote is removed if the run recovered.

    Args:
        kind: a key of `ALL_KINDS`.
        seed: decides all that is drawn at random.
        command: the command, of as many processes as the kind needs.
        workdir: a directory for the round, which does not exist.
        expected, duration: from `undisturbed`.
    """
    workdir.mkdir(parents=True)
    disturbance = ALL_KINDS[kind](Round(command, workdir / "run", random.Random(seed), duration))
    run, line = disturbance.run, line_of(disturbance)
    problems = []
    for end in disturbance.all:
        index = end.run.index
        whose = f"process {index}: " if disturbance.others else ""
        problems += [whose + problem for problem in problems_of(end, line_of(end))]
        shutil.copy(output_of(run.workdir, index, "err"), output_of(workdir / "disturbed", index, "err"))
    command = command.in_one_process() if disturbance.in_one_process else command
    with command.start(workdir / "run", *disturbance.flags) as again:
        seconds = again.until_training()
        again.wait()
    problems += _again(again, disturbance, line, expected)
    limit = max(START_SECONDS, 2 * duration)  # a machine that is busy is slow without a fault, too
    if seconds > limit:
        problems.append(f"it took {seconds:.0f} s to train again, more than {limit:.0f}")
    if not problems:
        shutil.rmtree(workdir)
    return Outcome(kind, run.process.returncode, line, disturbance.seconds, seconds, problems)


def line_of(disturbance: Disturbance) -> str | None:
    """The one line on stderr that says what happened."""
    if disturbance.line is None:
        return None
    found = [line for line in disturbance.run.stderr.splitlines() if re.search(disturbance.line, line)]
    return found[0] if len(found) == 1 else None


def problems_of(disturbance: Disturbance, line: str | None) -> list[str]:
    """What is wrong with the end of the disturbed run."""
    run, problems = disturbance.run, []
    if run.process.returncode not in disturbance.codes:
        problems.append(f"exit code {run.process.returncode}, expected {disturbance.codes[0]}")
    if disturbance.line is not None and line is None:
        problems.append("not one line on stderr that says what happened")
    if disturbance.seconds is not None and disturbance.seconds > disturbance.limit:
        problems.append(f"it ended {disturbance.seconds:.0f} s after the fault, more than {disturbance.limit:g}")
    errors = sum(text.startswith("error:") for text in run.stderr.splitlines())
    if errors != (run.process.returncode > 0):
        problems.append(f"{errors} lines of errors on stderr")
    return problems + _noise(run)


def _noise(run: Run) -> list[str]:
    return ["a traceback on stderr"] if "Traceback (most recent call last)" in run.stderr else []


def _again(again: Run, disturbance: Disturbance, line: str | None, expected: dict[str, Any]) -> list[str]:
    """What is wrong with the run that goes on after the fault, and with what it has written."""
    codes = [part.process.returncode for part in again.all]
    code, problems = next(filter(None, codes), 0), [problem for part in again.all for problem in _noise(part)]
    left = [path.name for path in again.checkpoints.glob("*.orbax-checkpoint-tmp*")]
    if left:
        problems.append(f"left behind: {', '.join(left)}")
    problems += [f"not finite, and saved: {part}" for part in not_finite(again.checkpoints)]
    if not disturbance.finishes:
        if code != disturbance.run.process.returncode or (line or "") not in again.stderr:
            problems.append(f"the same command ended otherwise, with code {code}")
        return problems
    if code:
        problems.append(f"the same command ended with code {code}")
    elif not close(figures_of(again.workdir), expected, ROUNDING if disturbance.in_one_process else 0.0):
        problems.append("the figures are not those of a run without a fault")
    return problems
