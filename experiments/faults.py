"""Disturbs small training runs in every way that runs are disturbed: does each go on as if nothing had happened?

    python -m experiments.faults --workdir=runs/faults
    python -m experiments.faults --workdir=runs/kills --rounds=10 --kinds=kill_save,kill_restore --seed=1

Each round starts experiments.language_model in a process of its own and makes one fault: SIGKILL (anywhere, or while it
compiles, steps, saves or restores), SIGTERM, SIGINT, SIGSTOP and SIGCONT, a full disk, a truncated or corrupted file of
the newest checkpoint, updates that overflow, a second run in the same workdir, a workdir that became read-only. Kinds
with "of_four", kill_coordinator and four_to_one start four processes that train together, at a free port of loopback:
SIGKILL of one or of process 0, SIGSTOP of one for longer than the others wait, SIGTERM to one, all at random steps.

The run, and each process that survives, must end with the right exit code (experiments/common/failures.py: 5 where
another was lost, 143 on all after SIGTERM) and one line that says why, within 15 s. Then the same command must train
again within 60 s, or on a busy machine within twice the time of a whole undisturbed run, and end with the metrics and
results of a run of as many processes that was not disturbed, bit for bit (times aside); after four_to_one, one process
with four devices goes on, and is equal up to rounding. A run that diverges must end in the same way again, with nothing
saved that is not finite. No process outlives its round.

The moments are drawn from --seed. The same command resumes after the last finished round. The workdir gets config.json,
results.json (every round) and the directories of rounds that did not recover; then the exit code is 4. Runs on CPU.
"""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from experiments.common import launcher
from experiments.common.launcher import RESULTS
from experiments.common.path_flags import define_path
from experiments.fault_rounds.disturbed_run import FLAGS, WORDS, Command, write_text
from experiments.fault_rounds.kinds_of_four import ALL_KINDS, KINDS_OF_FOUR, PROCESSES
from experiments.fault_rounds.rounds import play, undisturbed

NAME = "faults"
TEXT, CACHE, ROUNDS, UNDISTURBED = "text.txt", "cache", "rounds", "undisturbed"  # what the workdir holds
OF_FOUR = f"{UNDISTURBED}_of_four"


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = flags.FlagValues()
    define_path("workdir", None, "Directory of the rounds, created if it does not exist. Required.", flag_values=values)
    flags.DEFINE_integer("rounds", 50, "Faults in all; each kind in turn.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Decides the moments of the faults.", flag_values=values)
    flags.DEFINE_list("kinds", list(ALL_KINDS), f"Kinds of faults, of {', '.join(ALL_KINDS)}.", flag_values=values)
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(disturb, define_flags(), __doc__, argv)


def disturb(values: flags.FlagValues) -> None:
    """Plays the rounds that are not yet played and prints the table. All checks come before any of them."""
    workdir = launcher.own_workdir(values).absolute()
    launcher.check_range(values, "rounds", 1)
    launcher.check_range(values, "seed", 0, 2**31 - 1)
    launcher.check_names("kinds", values.kinds, ALL_KINDS, required=True)
    given = {name: values[name].value for name in ("rounds", "seed", "kinds")}
    config = {"launcher": NAME, "flags": given, "data": {"words": WORDS}, "models": {"command": list(FLAGS)}}
    written = (TEXT, CACHE, ROUNDS, UNDISTURBED, OF_FOUR)
    results = launcher.claim_workdir(workdir, config, {"seed": values.seed, ROUNDS: []}, written)
    commands = {name: command_of(workdir, name) for name in dict.fromkeys(map(undisturbed_of, values.kinds))}
    for name, command in commands.items():
        if name not in results:
            write_text(command.text)
            remove(workdir / name)
            figures, seconds = undisturbed(command, workdir / name)
            results[name] = {"figures": figures, "seconds": seconds}
            launcher.write_json(workdir / RESULTS, results)
    for number in tqdm(range(len(results[ROUNDS]), values.rounds), desc="rounds", file=sys.stderr):
        kind, place = values.kinds[number % len(values.kinds)], workdir / ROUNDS / str(number)
        remove(place)  # of a round that was interrupted
        seed, name = f"{values.seed} {number} {kind}", undisturbed_of(kind)
        outcome = play(kind, seed, commands[name], place, results[name]["figures"], results[name]["seconds"])
        results[ROUNDS].append(dataclasses.asdict(outcome))
        launcher.write_json(workdir / RESULTS, results)
    report(workdir, results)


def undisturbed_of(kind: str) -> str:
    """The key in the results, and the directory, of the undisturbed run with which a kind's runs are compared."""
    return OF_FOUR if kind in KINDS_OF_FOUR else UNDISTURBED


def command_of(workdir: Path, name: str) -> Command:
    """The command of the undisturbed run of that name."""
    return Command(workdir / TEXT, workdir / CACHE, PROCESSES if name == OF_FOUR else 1)


def remove(directory: Path) -> None:
    """Removes a directory and what is in it, if it exists."""
    shutil.rmtree(directory, ignore_errors=True)


def report(workdir: Path, results: dict[str, Any]) -> None:
    """Prints a row for each kind, what went wrong, and where everything is.

    Raises:
        RuntimeError: if a run did not recover.
    """
    header = ("fault", "rounds", "recovered", "line seen", "exit code", "s to exit", "s to train again")
    rows = [header]
    played = results[ROUNDS]
    for kind in dict.fromkeys(outcome["kind"] for outcome in played):
        own = [outcome for outcome in played if outcome["kind"] == kind]
        lines = sum(outcome["line"] is not None for outcome in own)
        exits = [outcome["seconds_to_exit"] for outcome in own if outcome["seconds_to_exit"] is not None]
        again = [outcome["seconds_to_train"] for outcome in own]
        rows.append(
            (
                kind,
                str(len(own)),
                str(sum(not outcome["problems"] for outcome in own)),
                str(lines) if lines else "-",
                " ".join(map(str, sorted({outcome["code"] for outcome in own}))),
                f"{max(exits):.1f}" if exits else "-",
                f"{max(again):.1f}",
            )
        )
    launcher.print_table(rows)
    print("Seconds are the longest of a kind's rounds. SIGKILL leaves no line; -9 is a run that it ended.")
    if any(outcome["kind"] in KINDS_OF_FOUR for outcome in played):
        print("Of four processes: line and code of the first that survived, seconds of the last.")
    failed = [number for number, outcome in enumerate(played) if outcome["problems"]]
    for number in failed:
        problems = "; ".join(played[number]["problems"])
        print(f"{workdir / ROUNDS / str(number)}: {played[number]['kind']}: {problems}")
    print(f"Everything is in {workdir}: {RESULTS}, {ROUNDS}/NUMBER of rounds that did not recover")
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(played)} runs did not recover")


if __name__ == "__main__":
    sys.exit(main())
