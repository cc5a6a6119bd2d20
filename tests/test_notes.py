"""BUILD_NOTES.md is a reference: decisions are numbered, and what cites one cites one that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTES = (ROOT / "BUILD_NOTES.md").read_text(encoding="utf-8")
DECISIONS = [int(number) for number in re.findall(r"^- \*\*D(\d+)\.", NOTES, re.MULTILINE)]


def test_decisions_are_numbered_in_order():
    assert DECISIONS
    assert list(range(1, len(DECISIONS) + 1)) == DECISIONS


def test_notes_stay_short():
    assert len(NOTES.splitlines()) <= 600


def test_citations_are_of_decisions_that_are_there():
    own = re.findall(r"\bD(\d+)\b", NOTES)
    files = [path for folder in ("nl_jax", "experiments", "tests") for path in (ROOT / folder).rglob("*.py")]
    lines = [
        line for path in files for line in path.read_text(encoding="utf-8").splitlines() if "BUILD_NOTES.md" in line
    ]
    cited = [number for line in lines for number in re.findall(r"BUILD_NOTES\.md, D(\d+)", line)]
    assert len(cited) >= 8
    assert {int(number) for number in (*own, *cited)} <= set(DECISIONS)
    unnumbered = [line for line in lines if "(BUILD_NOTES.md" in line and "BUILD_NOTES.md, D" not in line]
    assert [line for line in unnumbered if "re." not in line and "in line" not in line] == []


def test_files_that_are_named_exist():
    names = re.findall(r"\]\((experiments/[\w/.]+)\)", NOTES)
    assert names
    assert all((ROOT / name).is_file() for name in names)


def test_no_figure_is_still_to_come():
    assert not re.search(r"[A-Z]_HERE", NOTES)
