"""Paths given by users, file locks that one process holds, atomic writes, and the reason why a write failed."""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import logging

from nl_jax.errors import InputError

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None  # type: ignore[assignment]

# At least two letters, since C:/ is a drive; only one slash, since Path turns gs://a into gs:/a.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_OS_ERROR_CODE = re.compile(r"os_error_code='(\d+)'")  # how TensorStore writes the error code of the system
_held: dict[tuple[int, int], int] = {}  # number of times this process holds a lock, by device and inode of the file


def local_path(path: str | os.PathLike[str]) -> Path:
    """Checks a path on this machine, and expands ``~`` and ``~name`` in it; a relative path stays relative.

    Raises:
      InputError: for a URL such as ``gs://bucket/run``, an empty path, or an unknown user.
    """
    text = os.fspath(path)
    if _URL.match(text):
        scheme = text.partition(":")[0]
        raise InputError(
            f"path {text!r}: expected a path on this machine; a {scheme}:// URL is not read or written, but a bucket "
            "can be mounted as a directory, for example by gcsfuse"
        )
    if not text or "\0" in text:
        raise InputError(f"path {text!r}: expected the path of a file or directory")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"path {text!r}: there is no such user") from error


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds the lock of a file, which is created if it does not exist, and which names the process that holds it.

    The lock ends with the process, however that ends; the file stays. A process that holds the lock can take it again.
    If the file system has no locks, a warning says so.

    Raises:
      InputError: if another process holds the lock; the message names the process.
      OSError: if the file cannot be created.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    status = os.fstat(descriptor)
    key = status.st_dev, status.st_ino
    try:
        if not _held.get(key) and _take(descriptor, file):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        _held[key] = _held.get(key, 0) + 1
        try:
            yield
        finally:
            _held[key] -= 1
    finally:
        os.close(descriptor)


def _take(descriptor: int, file: Path) -> bool:
    """Tries to lock a file. Returns False if the file system has no locks; raises `InputError` if it is taken."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(descriptor, 300, 0).decode(errors="replace").split()
        process = f"process {owner[0]}" if owner else "another process"
        host = f" on {owner[1]}" if len(owner) > 1 and owner[1] != socket.gethostname() else ""
        raise InputError(
            f"{file.parent}: {process}{host} is writing there; expected a directory that no other process uses"
        ) from error
    except OSError as error:
        logging.warning("%s: cannot be locked (%s); nothing keeps two runs from writing there", file, error.strerror)
        return False
    return True


class Owner(NamedTuple):
    """A process that holds a lock."""

    process: int
    host: str

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        return self.host == socket.gethostname()


def owner(file: Path) -> Owner | None:
    """The process that holds the lock of a file (see `locked`), or None if none does, or there is no such file.

    A process that is being started is not disturbed: the lock is only looked at where its last holder still lives.
    """
    try:
        pid, host = file.read_text(encoding="utf-8").split()
        found = Owner(int(pid), host)
    except (OSError, ValueError):
        return None
    if found.is_here and not _is_alive(found.process):
        return None
    if fcntl is not None:
        with file.open("rb") as stream, contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # fails while another one holds it
            return None
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # of another user
    return True


def reason(error: BaseException) -> str:
    """The reason why a library could not write, in a few words: if known, the message of the operating system."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = _OS_ERROR_CODE.search(str(error))
    if code:
        return os.strerror(int(code[1]))
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def decoded(content: bytes, name: str) -> str:
    """The text of UTF-8 content; `InputError` with the name of the file if it is none."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 at byte {error.start}; expected UTF-8 text") from error


def write_atomically(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it: readers see either the old text or the whole new text."""
    with in_place_of(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Yields a temporary path that is renamed to ``path`` at the end, or removed after an error such as a full disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
