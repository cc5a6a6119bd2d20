"""A page of headings, paragraphs, tables and pictures, as Markdown and as one HTML file."""

import base64
import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.reporting.runs import Rows

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.85rem; margin: 1rem 0 }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left } th { border-bottom: 2px solid #888 }
img, svg { max-width: 100%; height: auto }
pre { background: #f4f4f4; padding: 0.5rem; font-size: 0.85rem; white-space: pre-wrap; overflow-wrap: anywhere }
"""


class Heading(NamedTuple):
    """A heading of a level from 1."""

    text: str
    level: int = 2


class Code(NamedTuple):
    """A command, or another text that stays as it is."""

    text: str


class Table(NamedTuple):
    """Rows, the header first."""

    rows: Rows


class Picture(NamedTuple):
    """A picture as SVG, for HTML only."""

    svg: str


Part = Heading | Code | Table | Picture | Path | str  # a path is a PNG picture, a string a paragraph


def markdown(parts: Sequence[Part], directory: Path) -> str:
    """The page as Markdown; pictures are linked by their paths relative to ``directory``."""
    return "\n\n".join(_markdown(part, directory) for part in parts) + "\n"


def _markdown(part: Part, directory: Path) -> str:
    match part:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Code(text):
            return f"```\n{text}\n```"
        case Table(rows):
            cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
            line = ["---", *("---:" for _ in rows[0][1:])]
            return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], line, *cells[1:]))
        case Path():
            return f"![{part.stem}]({Path(os.path.relpath(part, directory)).as_posix()})"
        case Picture():
            return ""
    return part


def self_contained_html(parts: Sequence[Part], title: str, refresh: int | None = None) -> str:
    """The page as one HTML file, with its pictures inside; a browser reads it anew every ``refresh`` seconds."""
    body = "\n".join(map(_html, parts))
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">\n'
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n{again}<style>{STYLE}</style>\n{body}\n</html>\n'
    )


def _html(part: Part) -> str:
    match part:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Table(rows):
            return "<table>" + "".join(_row(row, "td" if i else "th") for i, row in enumerate(rows)) + "</table>"
        case Picture(svg):
            return f"<p>{svg}</p>"
        case Path():
            content = base64.b64encode(part.read_bytes()).decode()
            return f'<p><img alt="{html.escape(part.stem)}" src="data:image/png;base64,{content}"></p>'
    return f"<p>{html.escape(part)}</p>"


def _row(row: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
