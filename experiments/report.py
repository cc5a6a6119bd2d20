"""One page of all results: a verdict on each claim of the paper, then every run with its tables and figures.

    python -m experiments.report --workdirs=runs/language,runs/mad,runs/few_shot --workdir=runs/report
    python -m experiments.report --live --workdir=runs/first

The page is written as report.md and as report.html, which holds its pictures. A claim holds where Hope is better than
each model, method or reference that it is compared with by more than the standard deviations of both over seeds, at
least two of each; it does not at this size where Hope is worse by more than that in one comparison; else it cannot be
told, as where both are at the ceiling, where the runs lack something that the claim speaks of, and without a run that
is finished. At the ceiling MAD's claim, "at or above", holds. All formal languages must be right, in every seed.

With --live it is the page of one run while it trains, live.html in the run's workdir: loss, validation, norms of
levels, memory, where the time went, and what the models of experiments.language_model write at their newest
checkpoints. Open the file in a browser, which reads it anew by itself; nothing is served to a network. The command uses
the CPU alone, and ends when the run does.
"""

import sys

import jax
from absl import flags

from experiments.common import launcher
from experiments.common.path_flags import define_path, define_paths
from experiments.reporting import live
from experiments.reporting.claims import CLAIMS, verdict_of
from experiments.reporting.page import Code, Heading, Part, Table, markdown, self_contained_html
from experiments.reporting.runs import Rows, Run, command_of, read_run, tables
from nl_jax import InputError
from nl_jax.files import local_path, write_atomically

TITLE = "Nested learning: results"
MARKDOWN, HTML = "report.md", "report.html"


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = flags.FlagValues()
    workdir = "Directory of the page, created if it does not exist; with --live that of the run. Required."
    define_path("workdir", None, workdir, flag_values=values)
    runs = "Each the directory of a run whose results to show. Required without --live."
    define_paths("workdirs", [], runs, flag_values=values)
    flags.DEFINE_bool("live", False, "Shows the run in --workdir while it trains.", flag_values=values)
    flags.DEFINE_integer("refresh", 10, "With --live, seconds between two versions of the page.", flag_values=values)
    text = "With --live, tokens of the text that each new checkpoint of a model writes; 0 for none."
    flags.DEFINE_integer("sample_tokens", 200, text, flag_values=values)
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(write, define_flags(), __doc__, argv)


def write(values: flags.FlagValues) -> None:
    """Writes the page, and prints the verdicts."""
    output = launcher.workdir_of(values)
    launcher.check_range(values, "refresh", 1, 3600)
    if values.live:
        if values.workdirs:
            raise InputError("--workdirs: not with --live, which shows the run in --workdir")
        launcher.check_range(values, "sample_tokens", 0, 100_000)
        live.config_of(output)  # an error before the line that says what to open
        jax.config.update("jax_platforms", "cpu")  # the run has the accelerator, and all of its memory
        print(f"Open {output / live.PAGE} in a browser.", flush=True)
        print(f"The run has ended; its page is {live.watch(output, values.refresh, values.sample_tokens)}")
        return
    if not values.workdirs:
        raise InputError("--workdirs: none given; expected workdirs of launchers, as runs/mad,runs/niah")
    runs = [read_run(local_path(workdir)) for workdir in values.workdirs]
    verdicts: Rows = [("claim", "verdict", "evidence")]
    verdicts += [(claim.title, *verdict_of(claim, runs)) for claim in CLAIMS]
    parts = page_of(runs, verdicts)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / MARKDOWN, markdown(parts, output))
    write_atomically(output / HTML, self_contained_html(parts, TITLE))
    launcher.print_table([row[:2] for row in verdicts])
    print(f"The page is in {output}: {MARKDOWN}, {HTML}")


def page_of(runs: list[Run], verdicts: Rows) -> list[Part]:
    """The parts of the page."""
    parts: list[Part] = [Heading(TITLE, 1), Heading("Claims of the paper"), Table(verdicts)]
    parts += [f"{claim.title}: {claim.text} Decided by experiments.{claim.command}." for claim in CLAIMS]
    for run in runs:
        parts += [Heading(f"{run.launcher} ({run.workdir.name})"), Code(command_of(run))]
        parts += [f"Device: {run.results.get('device', 'unknown')}."]
        parts += [f"Departure: {departure}." for departure in run.results.get("departures", ())]
        for title, rows in tables(run).items():
            parts += [Heading(title, 3), Table(rows)]
        parts += run.figures
    return parts


if __name__ == "__main__":
    sys.exit(main())
