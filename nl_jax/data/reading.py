"""Reads files into documents: finds and decodes the files below a path, and records which were skipped and why."""

import codecs
import dataclasses
import functools
import gzip
import json
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard
from absl import logging

from nl_jax.errors import InputError

# Directories that are left out of the default corpus, the standard library: installed packages, tests, and generated
# tables (`encodings`, `pydoc_data`), which repeat one pattern for many bytes.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
_MACHINE = ("_sysconfigdata", "config-")  # generated when Python is built, with the paths and flags of that machine

_LINES = {".jsonl", ".ndjson"}
_NAMED = 5  # number of names that are kept for each reason to skip
# UTF-32 comes before UTF-16, since the little-endian mark of UTF-16 is a prefix of that of UTF-32.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclasses.dataclass(frozen=True)
class Document:
    """One text: a name for messages (a relative path, or ``file:line`` of a JSONL file) and its UTF-8 bytes.

    Examples:
        >>> from nl_jax.data import Document
        >>> len(Document("note.txt", "né".encode()).text)
        3
    """

    name: str
    text: bytes


@dataclasses.dataclass
class Skipped:
    """The number of files, directories or records that were skipped for one reason, and the names of the first five.

    Examples:
        >>> from nl_jax.data import Skipped
        >>> Skipped(1, ["photo.png"]).first
        ['photo.png']
    """

    count: int = 0
    first: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class ReadSummary:
    """A summary of the files that were read, and of those that were skipped.

    Attributes:
        files: number of files with at least one document.
        documents: number of documents.
        bytes: number of bytes of their texts in UTF-8.
        skipped: what was skipped, by reason: ``hidden`` (names that begin with a dot; a directory counts once),
            ``binary`` (files with NUL bytes, as in UTF-16 without a byte-order mark), ``empty`` (files and records),
            ``repeated`` (files and directories that were already read under another name), ``broken links``,
            ``special`` (not regular files), ``excluded``, and ``bad`` (with ``skip_bad``; each name says what is
            wrong).

    Examples:
        >>> from nl_jax.data import ReadSummary, Skipped
        >>> print(ReadSummary(files=2, documents=2, bytes=1_500, skipped={"empty": Skipped(1, ["a.txt"])}))
        2 files, 2 documents, 1,500 bytes; skipped 1 empty (a.txt)
    """

    files: int
    documents: int
    bytes: int
    skipped: dict[str, Skipped]

    def __str__(self) -> str:
        """The summary in one line."""
        read = f"{self.files:,} files, {self.documents:,} documents, {self.bytes:,} bytes"
        reasons = [
            f"{skipped.count:,} {reason} ({', '.join([*skipped.first, '...'][: min(skipped.count, _NAMED + 1)])})"
            for reason, skipped in self.skipped.items()
        ]
        return f"{read}; skipped {', '.join(reasons)}" if reasons else f"{read}; skipped nothing"

    def as_json(self) -> dict[str, Any]:
        """The summary as ``results.json`` holds it."""
        return dataclasses.asdict(self)


def load_documents(path: str | None = None, text_key: str = "text") -> list[Document]:
    """The documents of :func:`read_documents`; bad files raise an error, and skipped ones are logged as a warning.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nl_jax.data import load_documents
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.jsonl").write_text('{"text": "one"}')
        ...     print(load_documents(folder))
        [Document(name='a.jsonl:1', text=b'one')]
    """
    documents, summary = read_documents(path, text_key)
    if summary.skipped:
        logging.warning("%s: %s", path, summary)
    return documents


def read_documents(
    path: str | None = None,
    text_key: str = "text",
    *,
    exclude: Callable[[Path], bool] = lambda directory: False,
    skip_bad: bool = False,
) -> tuple[list[Document], ReadSummary]:
    """Reads text into memory, in a fixed order. Line endings are kept.

    The suffix of a file decides how it is read. ``.jsonl`` and ``.ndjson`` have one JSON object per line, each of which
    is a document; ``.json`` has one object or an array of objects; any other file is one document of plain text. A
    suffix ``.gz`` or ``.zst`` may follow (``.jsonl.zst``). Text is UTF-8, or UTF-16 or UTF-32 with a byte-order mark,
    which is removed.

    Args:
        path: a file, or a directory, of which every file is read once, sorted by path. Links are followed. Hidden files
            and directories, files with NUL bytes and empty texts are skipped and counted in the summary. The default
            ``None`` reads the source of the Python standard library, without tests and generated tables.
        text_key: the key of the text in each JSON object.
        exclude: tells for a directory whether to skip it with everything below it. By default none is skipped.
        skip_bad: whether to skip and count files and records that cannot be read as text, instead of raising an error.

    Returns:
        At least one document, each with at least one byte, and the summary.

    Raises:
        InputError: if there is nothing at ``path`` or no text in it. Unless ``skip_bad``, also if a file cannot be read
            or unpacked, text has another encoding, JSON is invalid, or an object has no string under ``text_key``.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nl_jax.data import read_documents
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a.txt", ".hidden"):
        ...         _ = (Path(folder) / name).write_text("text")
        ...     documents, summary = read_documents(folder)
        >>> documents[0].text, str(summary)
        (b'text', '1 files, 1 documents, 4 bytes; skipped 1 hidden (.hidden)')
    """
    if path is None:
        return _standard_library()
    root, reader = Path(path).expanduser(), _Reader(text_key, exclude, skip_bad)
    try:
        if not path or not root.exists():
            raise InputError(f"data path {path!r}: no such file or directory; expected text files or .jsonl")
        if root.is_dir() and exclude(root):
            raise InputError(f"data path {path!r}: the directory of a run; expected text files or .jsonl")
        what = "a directory without any text" if root.is_dir() else "an empty file"
        reader.read(root)
    except OSError as error:
        raise InputError(f"data path {path!r}: cannot read {error.filename}: {error.strerror}") from error
    summary = reader.summary()
    if not reader.documents:
        raise InputError(f"data path {path!r}: {what} ({summary}); expected text files or .jsonl")
    return reader.documents, summary


def _standard_library() -> tuple[list[Document], ReadSummary]:
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if not _SKIPPED.isdisjoint(relative.parts[:-1]) or relative.parts[0].startswith(_MACHINE) or not file.is_file():
            continue
        if (text := file.read_bytes()) and _is_utf8(text):
            documents.append(Document(relative.as_posix(), text))
    if not documents:
        raise InputError("this Python comes without the source of its standard library; expected data=PATH, text files")
    size = sum(len(document.text) for document in documents)
    return documents, ReadSummary(len(documents), len(documents), size, {})


class _Reader:
    """Collects documents, and the names of what is skipped."""

    def __init__(self, text_key: str, exclude: Callable[[Path], bool], skip_bad: bool):
        self.documents: list[Document] = []
        self._text_key, self._exclude, self._skip_bad = text_key, exclude, skip_bad
        self._files = 0
        self._skipped: dict[str, Skipped] = {}
        self._seen: set[str] = set()  # real paths, so that links cause neither cycles nor copies

    def summary(self) -> ReadSummary:
        size = sum(len(document.text) for document in self.documents)
        return ReadSummary(self._files, len(self.documents), size, self._skipped)

    def read(self, root: Path) -> None:
        """Reads a file or a directory."""
        if root.is_dir():
            self._seen.add(os.path.realpath(root))
            for file, name in self._walk(root, ""):
                self._read_file(file, name, alone=False)
        else:
            self._read_file(root, root.name, alone=True)

    def _walk(self, directory: Path, prefix: str) -> Iterator[tuple[Path, str]]:
        """Yields the files below a directory with their names, sorted by the parts of their paths."""
        try:
            entries = sorted(os.listdir(directory))
        except OSError as error:
            self._bad(InputError(f"{directory}: cannot be read: {error.strerror}"))
            return
        for entry in entries:
            path, name = directory / entry, prefix + entry
            if entry.startswith("."):
                self._skip("hidden", name)
            elif not path.exists():
                self._skip("broken links", name)
            elif not path.is_dir() and not path.is_file():
                self._skip("special", name)
            elif path.is_dir() and self._exclude(path):
                self._skip("excluded", name)
            elif (real := os.path.realpath(path)) in self._seen:
                self._skip("repeated", name)
            else:
                self._seen.add(real)
                if path.is_dir():
                    yield from self._walk(path, f"{name}/")
                else:
                    yield path, name

    def _read_file(self, file: Path, name: str, alone: bool) -> None:
        """Adds the documents of a file. A binary file is skipped, or bad if it is the only file to read (``alone``)."""
        before = len(self.documents)
        try:
            data, suffix = _unpack(file)
            data = _as_utf8(file, data)
            if b"\0" in data:
                raise _Binary(f"{file}: holds NUL bytes, so it is binary or UTF-16 without a byte-order mark; {_TEXT}")
            if data:
                self._parse(file, name, data, suffix)
            else:
                self._skip("empty", name)
        except _Binary as error:
            if alone:
                self._bad(error)
            else:
                self._skip("binary", name)
        except InputError as error:
            self._bad(error)
        self._files += len(self.documents) > before

    def _parse(self, file: Path, name: str, data: bytes, suffix: str) -> None:
        if suffix in _LINES:
            for number, line in enumerate(data.split(b"\n"), start=1):
                if line.strip():
                    text = functools.partial(self._text_of_json, line, f"{file}:{number}", "one JSON object a line")
                    self._add(f"{name}:{number}", text)
        elif suffix == ".json":
            content = _load_json(data, str(file), "a JSON object or an array of objects")
            if isinstance(content, list):
                for number, record in enumerate(content, start=1):
                    self._add(f"{name}:{number}", functools.partial(self._text_of, record, f"{file}:{number}"))
            else:
                self._add(name, functools.partial(self._text_of, content, str(file)))
        else:
            self._add(name, lambda: _checked_utf8(data, str(file)))

    def _add(self, name: str, text: Callable[[], bytes]) -> None:
        try:
            content = text()
        except InputError as error:
            self._bad(error)
        else:
            if content:
                self.documents.append(Document(name, content))
            else:
                self._skip("empty", name)

    def _text_of_json(self, data: bytes, where: str, expected: str) -> bytes:
        return self._text_of(_load_json(data, where, expected), where)

    def _text_of(self, record: Any, where: str) -> bytes:
        """The text of a JSON object. ``where`` is ``file`` or ``file:line``, for messages."""
        key = self._text_key
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected a JSON object with the key {key!r}, got a {type(record).__name__}")
        keys = ", ".join(map(repr, record)) or "none"
        if key not in record:
            raise InputError(f"{where}: no key {key!r}; the keys there are {keys}")
        if not isinstance(record[key], str):
            kind = type(record[key]).__name__
            raise InputError(f"{where}: expected a string under {key!r}, got a {kind}; the keys there are {keys}")
        try:
            return record[key].encode("utf-8")
        except UnicodeEncodeError as error:  # half of a surrogate pair, "\ud800", is valid JSON but not text
            raise InputError(f"{where}: expected Unicode text under {key!r}, got a lone surrogate") from error

    def _bad(self, error: InputError) -> None:
        if not self._skip_bad:
            raise error
        self._skip("bad", str(error))

    def _skip(self, reason: str, name: str) -> None:
        skipped = self._skipped.setdefault(reason, Skipped())
        skipped.count += 1
        if len(skipped.first) < _NAMED:
            skipped.first.append(name)


class _Binary(InputError):
    """A file is not text."""


_TEXT = "expected UTF-8 text"


def _unpack(file: Path) -> tuple[bytes, str]:
    """The unpacked content of a file, and its suffix (lower case, such as ``.jsonl``) without that of the packing."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    packing = file.suffix.lower()
    if packing not in _PACKINGS:
        return data, packing
    unpack, what = _PACKINGS[packing]
    try:
        return unpack(data), Path(file.stem).suffix.lower()
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{file}: not {what} data ({error}); expected a whole {packing} file") from error


def _unpack_zstandard(data: bytes) -> bytes:
    # Large corpora are packed with `zstd --long=31`, which needs a window of 2 GiB.
    decompressor, parts = zstandard.ZstdDecompressor(max_window_size=1 << 31), []
    while data:  # one frame at a time, since a truncated frame would otherwise go unnoticed
        frame = decompressor.decompressobj()
        parts.append(frame.decompress(data))
        if not frame.eof:
            raise EOFError("it ends within a frame")
        data = frame.unused_data
    return b"".join(parts)


_PACKINGS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    ".gz": (gzip.decompress, "gzip"),
    ".zst": (_unpack_zstandard, "Zstandard"),
}


def _as_utf8(file: Path, data: bytes) -> bytes:
    """Converts text to UTF-8 without a byte-order mark. Text without a mark is returned unchecked."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(encoding).encode("utf-8")
            except UnicodeDecodeError as error:
                kind = _Binary if b"\0" in data else InputError
                where = error.start + len(mark)
                name = encoding[:6].upper()
                raise kind(f"{file}: not {name}, as its byte-order mark says, at byte {where}; {_TEXT}") from error
    return data.removeprefix(codecs.BOM_UTF8)


def _checked_utf8(data: bytes, where: str) -> bytes:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start}; {_TEXT}") from error
    return data


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _load_json(data: bytes, where: str, expected: str) -> Any:
    text = _checked_utf8(data, where).decode("utf-8")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); expected {expected}") from error
