"""Texts of different kinds for a stream that changes subject, without anything that the model is trained on.

Without files all texts come with Python. Prose is the language reference (the topics of ``help()``, which the default
corpus leaves out); code and docstrings are from the test and validation documents of the default corpus.
"""

import ast
import functools
import hashlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import UInt8

from experiments.common import launcher
from nl_jax import InputError
from nl_jax.data import (
    ByteTokenizer,
    Document,
    ReadSummary,
    Splits,
    TextData,
    fingerprint,
    load_documents,
    pack,
    read_documents,
    split_documents,
)

SHORTEST = 64  # bytes; shorter paragraphs (import lines, headings) may be in several texts


def texts_of(values: flags.FlagValues, workdir: Path) -> tuple[TextData, dict[str, bytes], dict[str, ReadSummary]]:
    """Reads the texts of the flags; directories of runs are skipped.

    Returns:
        The text to train on; by name the texts of the streams, without anything that is in training; and by name the
        summaries of the files that were read.
    """
    texts: dict[str, bytes] = {}
    summaries: dict[str, ReadSummary] = {}
    how: dict[str, Any] = {"exclude": functools.partial(launcher.holds_run, workdir), "skip_bad": values.skip_bad}

    def read(name: str, path: str) -> list[Document]:
        documents, summaries[name] = read_documents(path, values.text_key, **how)
        return documents

    if values.data is None or values.texts is None:
        splits, texts = default_texts()
    if values.data is not None:
        splits = split_documents(read("training", values.data))
    if values.texts is not None:
        if len(values.texts) < 2 or len(set(values.texts)) < len(values.texts):
            raise InputError(f"--texts={','.join(values.texts)}: expected two or more, none twice")
        texts = {}
        for path in values.texts:
            try:
                texts[path] = b"\n\n".join(document.text for document in read(path, path))
            except InputError as error:
                raise InputError(f"--texts={path}: {error}") from error
    held_out = held_out_texts(texts, splits.train)
    for name, text in held_out.items():
        if len(text) < len(texts[name]):
            left_out = len(texts[name]) - len(text)
            print(f"{name}: {left_out:,} bytes left out, which are in training or came before", file=sys.stderr)
    tokenizer = ByteTokenizer()
    train, validation, test = (pack(part, tokenizer) for part in (splits.train, splits.validation, splits.test))
    data = TextData(tokenizer, splits, train, validation, test, fingerprint(splits.train), summaries.get("training"))
    return data, held_out, summaries


def default_texts() -> tuple[Splits, dict[str, bytes]]:
    """The documents to train on, and by name the texts of the stream: prose, code and docstrings.

    Half of the language reference is for training, together with as many bytes of code. The other half is the prose of
    the stream. The documents for evaluation are those of the default corpus.
    """
    corpus = split_documents(load_documents())
    prose, held_out = _language_reference()
    room, code = sum(len(document.text) for document in prose), []
    for document in _shuffled(corpus.train):
        if len(document.text) <= room:
            code.append(document)
            room -= len(document.text)
    texts = {
        "prose": b"\n\n".join(document.text for document in held_out),
        "code": b"\n\n".join(document.text for document in _shuffled(corpus.test)),
        "docstrings": b"\n\n".join(text for document in _shuffled(corpus.validation) for text in docstrings(document)),
    }
    return Splits(prose + code, corpus.validation, corpus.test), texts


def docstrings(document: Document) -> list[bytes]:
    """The docstrings of a Python module and of its definitions; empty if it cannot be parsed."""
    try:
        tree = ast.parse(document.text)
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text.encode("utf-8", errors="ignore") for text in found if text]


def without_seen(text: bytes, seen: set[bytes]) -> bytes:
    """The text without paragraphs in ``seen``; all of its paragraphs are added to ``seen``.

    Blank lines separate paragraphs. White space is ignored in comparisons, and paragraphs below 64 bytes are kept.
    """
    kept = []
    for paragraph in re.split(rb"\n[ \t\r]*\n", text):
        key = b" ".join(paragraph.split())
        if len(key) < SHORTEST or key not in seen:
            kept.append(paragraph)
            seen.add(key)
    return b"\n\n".join(kept)


def held_out_texts(texts: Mapping[str, bytes], training: Iterable[Document]) -> dict[str, bytes]:
    """The texts without paragraphs that are in the training documents or in an earlier text."""
    seen: set[bytes] = set()
    for document in training:
        without_seen(document.text, seen)
    return {name: without_seen(text, seen) for name, text in texts.items()}


def cut_streams(
    texts: Mapping[str, bytes], order: Sequence[str], streams: int, part: int
) -> UInt8[np.ndarray, "streams time"]:
    """Makes streams of ``part`` bytes of each text in the given order; no byte of a text is used twice.

    A text that comes again continues where it stopped. The streams start at evenly spaced positions of a text.

    Raises:
      InputError: if a text is too short; the message says what would be enough.
    """
    rows: list[list[np.ndarray]] = [[] for _ in range(streams)]
    for place, name in enumerate(order):
        text = np.frombuffer(texts[name], np.uint8)
        need = order.count(name) * part
        if len(text) < streams * need:
            raise InputError(
                f"--streams={streams} of --part={part} bytes need {streams * need:,} bytes of {name}, which has "
                f"{len(text):,} that are not in training: expected fewer or shorter ones, or longer --texts"
            )
        for i, row in enumerate(rows):
            start = i * (len(text) // streams) + order[:place].count(name) * part
            row.append(text[start : start + part])
    return np.stack([np.concatenate(row) for row in rows])


def _language_reference() -> tuple[list[Document], list[Document]]:
    """Two halves of the language reference. Topics contain each other, so repeated paragraphs are left out."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(
            "this Python comes without its language reference, pydoc_data; expected --texts and --data"
        ) from error
    halves: tuple[list[Document], list[Document]] = ([], [])
    sizes, seen = [0, 0], set[bytes]()
    for document in _shuffled([Document(name, text.encode()) for name, text in topics.items()]):
        text = without_seen(document.text, seen)
        half = sizes.index(min(sizes))
        halves[half].append(Document(document.name, text))
        sizes[half] += len(text)
    return halves


def _shuffled(documents: Iterable[Document]) -> list[Document]:
    """The documents in the order of their SHA-256, which depends on their text alone."""
    return sorted(documents, key=lambda document: hashlib.sha256(document.text).digest())
