"""Text from disk as documents, and their fixed split into training, validation and test."""

import dataclasses
import hashlib
import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from nl_jax.errors import InputError

# Directories of the standard library that are left out of the default corpus: other people's packages, tests, and
# generated tables (`encodings`, `pydoc_data`) that repeat one pattern for many bytes.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
_MACHINE = ("_sysconfigdata", "config-")  # written when Python is built: they hold that machine's paths and flags
_HELD_OUT = 0.05  # the least share of the bytes in validation, and in test


@dataclasses.dataclass(frozen=True)
class Document:
    """One text: a name for messages (a relative path, or ``file:line`` of a JSONL file) and its UTF-8 bytes."""

    name: str
    text: bytes


@dataclasses.dataclass(frozen=True)
class Splits:
    """Documents by their use; no text is in two of them."""

    train: list[Document]
    validation: list[Document]
    test: list[Document]


def load_documents(path: str | None = None, text_key: str = "text") -> list[Document]:
    """Reads text into memory, in a fixed order, bytes as they are (line endings too); empty texts are left out.

    Args:
        path: a text file (one document), a ``.jsonl`` file (one document a line), or a directory: every file under it,
            sorted by path, without hidden files and directories and without binary files (those with a NUL byte).
            Default ``None``: the Python standard library's own source, without tests and generated tables.
        text_key: the key of the text in each JSONL line.

    Returns:
        At least one document, each with at least one byte.

    Raises:
        InputError: nothing at ``path``, no text in it, text that is not UTF-8, or a JSONL line without a string under
            ``text_key``.
    """
    if path is None:
        return _standard_library()
    root = Path(path).expanduser()
    try:
        if not path or not root.exists():
            raise InputError(f"data path {path!r}: no such file or directory; expected text files or .jsonl")
        if root.is_dir():
            what, documents = "a directory without any text", _read_directory(root, text_key)
        else:
            what, documents = "an empty file", _parse(root, root.name, root.read_bytes(), text_key)
    except OSError as error:
        raise InputError(f"data path {path!r}: cannot read {error.filename}: {error.strerror}") from error
    if not documents:
        raise InputError(f"data path {path!r}: {what}; expected text files or .jsonl")
    return documents


def split_documents(documents: Sequence[Document]) -> Splits:
    """Splits documents whole: validation and test each get at least 5 % of the bytes, training the rest.

    Documents are dealt in the order of their SHA-256, a fixed shuffle that depends on nothing but their text: the split
    is the same for every seed, machine and order of reading, and identical documents land in the same split. Within a
    split the order is that of ``documents``.

    With fewer than 3 distinct documents, or where whole documents would leave less than half of the bytes to training,
    the distinct documents are cut instead: the first 90 % of their concatenated bytes for training, 5 % for validation,
    5 % for test, each cut moved back (by 2 % at most) to the end of a line where there is one, else to a character
    boundary. Copies of a document are then dropped, so that none is in two splits.

    Raises:
        InputError: too little text for three splits.
    """
    copies: dict[bytes, list[int]] = {}
    for index, document in enumerate(documents):
        copies.setdefault(hashlib.sha256(document.text).digest(), []).append(index)
    total = sum(len(document.text) for document in documents)

    parts: list[list[int]] = [[], [], []]  # validation, test, train
    part, filled = 0, 0
    for digest in sorted(copies):
        if part < 2 and filled >= _HELD_OUT * total:
            part, filled = part + 1, 0
        parts[part] += copies[digest]
        filled += sum(len(documents[index].text) for index in copies[digest])
    validation, test, train = ([documents[index] for index in sorted(part)] for part in parts)
    if sum(len(document.text) for document in train) < total / 2:  # always so with fewer than 3 distinct documents
        return _cut([documents[indices[0]] for indices in copies.values()])
    return Splits(train, validation, test)


def fingerprint(documents: Sequence[Document]) -> dict[str, int | str]:
    """What identifies the data of a run: ``documents`` (how many), ``bytes`` and ``sha256`` of the texts in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document.text).to_bytes(8, "little"))  # so that moving a boundary changes the digest
        digest.update(document.text)
    num_bytes = sum(len(document.text) for document in documents)
    return {"documents": len(documents), "bytes": num_bytes, "sha256": digest.hexdigest()}


def _standard_library() -> list[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if not _SKIPPED.isdisjoint(relative.parts[:-1]) or relative.parts[0].startswith(_MACHINE) or not file.is_file():
            continue
        if (text := file.read_bytes()) and _is_utf8(text):
            documents.append(Document(relative.as_posix(), text))
    if not documents:
        raise InputError("this Python comes without the source of its standard library; give --data=PATH, text files")
    return documents


def _read_directory(root: Path, text_key: str) -> list[Document]:
    documents, binary = [], 0
    for file in sorted(root.rglob("*")):
        relative = file.relative_to(root)
        if not file.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        data = file.read_bytes()
        if b"\0" in data:
            binary += 1
        else:
            documents += _parse(file, relative.as_posix(), data, text_key)
    if binary:
        logging.warning("%s: skipped %d binary files (with NUL bytes)", root, binary)
    return documents


def _parse(file: Path, name: str, data: bytes, text_key: str) -> list[Document]:
    """The documents in ``data``, the content of ``file``; ``name`` is what they are called."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}; expected UTF-8 text") from error
    if file.suffix.lower() == ".jsonl":
        lines = enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
        texts = ((f"{name}:{number}", _jsonl_text(line, f"{file}:{number}", text_key)) for number, line in lines)
        return [Document(where, text) for where, text in texts if text]
    return [Document(name, data)] if data else []


def _jsonl_text(line: bytes, where: str, text_key: str) -> bytes:
    """The text of one line; empty for a blank line. ``where`` is ``file:line``."""
    if not line.strip():
        return b""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); expected one JSON object a line") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object with the key {text_key!r}, got a {type(record).__name__}")
    if text_key not in record:
        raise InputError(f"{where}: no key {text_key!r}; the keys there are {', '.join(map(repr, record)) or 'none'}")
    if not isinstance(record[text_key], str):
        kind = type(record[text_key]).__name__
        keys = ", ".join(map(repr, record))
        raise InputError(f"{where}: expected a string under {text_key!r}, got a {kind}; the keys there are {keys}")
    try:
        return record[text_key].encode("utf-8")
    except UnicodeEncodeError as error:  # half of a surrogate pair, "\ud800", is valid JSON but no text
        raise InputError(f"{where}: expected Unicode text under {text_key!r}, got a lone surrogate") from error


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _cut(documents: Sequence[Document]) -> Splits:
    """Splits the concatenation of the documents 90/5/5; a document with a cut inside gives a piece to both sides."""
    joined = b"".join(document.text for document in documents)
    first = _boundary(joined, round((1 - 2 * _HELD_OUT) * len(joined)))
    second = _boundary(joined, round((1 - _HELD_OUT) * len(joined)))
    splits = []
    for low, high in ((0, first), (first, second), (second, len(joined))):
        if low == high:
            raise InputError(f"{len(joined)} bytes of text are too few for training, validation and test")
        pieces, start = [], 0
        for document in documents:
            if piece := document.text[max(low - start, 0) : max(high - start, 0)]:
                pieces.append(Document(document.name, piece))
            start += len(document.text)
        splits.append(pieces)
    return Splits(*splits)


def _boundary(text: bytes, position: int) -> int:
    """The last line end within 2 % of the text before ``position``, else the last character boundary there."""
    newline = text.rfind(b"\n", position - len(text) // 50, position)
    if newline >= 0:
        return newline + 1
    while 0 < position < len(text) and text[position] & 0xC0 == 0x80:  # a UTF-8 continuation byte
        position -= 1
    return position
