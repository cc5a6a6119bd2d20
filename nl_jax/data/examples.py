"""Reads what a continual learner learns: plain text, or rows of CSV or JSON lines with a text and a label."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nl_jax.errors import InputError
from nl_jax.files import decoded, local_path

Example = str | tuple[str, str]  # a text, or a text and its label
TABLES = (".csv", ".tsv")
LINES = (".jsonl", ".ndjson")


def is_table(name: str | Path) -> bool:
    """Whether a file of this name has a row for each example: .csv, .tsv, .jsonl or .ndjson."""
    return Path(name).suffix.lower() in (*TABLES, *LINES)


def read_examples(path: str | Path, **columns: str) -> list[Example]:
    """The examples in a file, in their order, as `examples_of` finds them.

    Raises:
      InputError: for a file that cannot be read, and what `examples_of` raises; the message names the file.
    """
    file = local_path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); expected a file") from error
    return examples_of(content, str(file), **columns)


def examples_of(content: bytes, name: str, *, text_column: str = "text", label_column: str = "label") -> list[Example]:
    """The examples in the content of a file, in their order.

    A file whose name ends in .csv, .tsv, .jsonl or .ndjson has a row for each example, with the text in ``text_column``
    and its label in ``label_column``; without that column the texts have no labels. Any other file is plain text, and
    each of its paragraphs, which blank lines separate, is an example.

    Raises:
      InputError: for content that is empty or damaged, and for a row without text or label; the message names the file,
        the line and the column.
    """
    text = decoded(content, name).removeprefix("\ufeff")
    kind = Path(name).suffix.lower()
    if is_table(name):
        rows = _table(name, text, "," if kind == ".csv" else "\t") if kind in TABLES else _objects(name, text)
        examples = list(_examples(name, rows, text_column, label_column))
    else:
        examples = [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    if not examples:
        raise InputError(f"{name}: no text; expected at least one example")
    return examples


def check_characters(text: str, where: str) -> None:
    """Raises `InputError` for half of a surrogate pair, as JSON can spell it, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise InputError(f"{where} has {half!r}, half of a surrogate pair; expected characters") from error


def sentences(text: str) -> list[str]:
    """The sentences of a text: parts that end in a stop, an exclamation or a question mark before a blank.

    Examples:
      >>> from nl_jax.data.examples import sentences
      >>> sentences("It rains. Is Nia here?  No!")
      ['It rains.', 'Is Nia here?', 'No!']
    """
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


def _examples(
    name: str, rows: Iterator[tuple[int, dict[str, Any]]], text_column: str, label_column: str
) -> Iterator[Example]:
    labelled = None
    for line, row in rows:
        if text_column not in row:
            raise InputError(f"{name}:{line}: no column {text_column!r}; there are {', '.join(row) or 'none'}")
        if labelled is None:
            labelled = label_column in row
        for column in (text_column, label_column)[: 1 + labelled]:
            if not isinstance(row.get(column), str) or not row[column].strip():
                raise InputError(f"{name}:{line}: column {column!r} is {row.get(column)!r}; expected text")
            check_characters(row[column], f"{name}:{line}: column {column!r}")
        yield (row[text_column], row[label_column]) if labelled else row[text_column]


def _table(name: str, text: str, separator: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        header = next(lines, [])
        for row in lines:
            if row and len(row) != len(header):
                raise InputError(f"{name}:{lines.line_num}: {len(row)} columns; expected {', '.join(header)}")
            if row:
                yield lines.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{name}:{lines.line_num}: not CSV ({error})") from error


def _objects(name: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{name}:{number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{name}:{number}: expected a JSON object, found a {type(row).__name__}")
        yield number, row
