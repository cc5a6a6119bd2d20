"""A saved stream on disk: a directory that Orbax has written, replaced as a whole or not at all.

A new one is written beside it under another name. Then the old one is renamed, the new one takes its name, and the old
one is removed: at every moment one of the two is complete under a name that `newest` knows.
"""

import contextlib
import glob
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from nl_jax.errors import InputError, StorageError
from nl_jax.files import reason

PARTS = {"about", "state"}  # names of the items on disk: the JSON metadata and the arrays
_METADATA = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # what Orbax adds; the second not in every version


def replace(directory: Path, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes arrays by name, and JSON, in the place of an earlier saved stream.

    Raises:
        InputError: the directory holds something else.
        StorageError: the system does not write; the earlier one stays.
    """
    path = directory.resolve()  # of a link the target is replaced
    new, old = _aside(path)
    for place in (path, new, old):
        check_replaceable(place)
    args = ocp.args.Composite(state=ocp.args.StandardSave(dict(state)), about=ocp.args.JsonSave(dict(metadata)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # perhaps a process ended between the two renames below
            for aside in (new, old):
                if aside.exists() and not path.exists():
                    aside.rename(path)
        _remove(new)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(new, args=args)
        _remove(old)
        if path.exists():
            path.rename(old)
        new.rename(path)
        _remove(old)
    except Exception as error:  # Orbax has no common class for what goes wrong
        with contextlib.suppress(OSError):  # the next call does where Orbax's threads still write there
            _remove(new)
        raise StorageError(f"{path}: the stream could not be saved ({reason(error)})") from error


def check_replaceable(path: Path) -> None:
    """Raises `InputError` unless a path is free, an empty directory, or a saved stream with nothing else in it."""
    if not path.exists() and not path.is_symlink():
        return
    expected = "expected a new directory, or a saved stream to replace"
    if not path.is_dir():
        raise InputError(f"{path}: a file; {expected}")
    names = {entry.name for entry in path.iterdir()}
    strange = sorted(names - PARTS - _METADATA)
    if strange:
        raise InputError(f"{path}: holds {strange[0]!r}, which is no part of a saved stream; {expected}")
    if names:
        read_metadata(path)


def is_saved(directory: Path) -> bool:
    """Whether there is something for `newest` to find."""
    path = directory.resolve()
    return any(place.exists() for place in (path, *_aside(path)))


def newest(directory: Path) -> Path:
    """Where the saved stream of a directory is: there, or beside it where a process ended while it was replaced."""
    path = directory.resolve()
    if path.exists():
        return path
    for aside in _aside(path):  # the new one is complete: Orbax gives it this name when it is
        if aside.is_dir():
            return aside
    raise InputError(f"{directory}: no saved stream there; expected what Stream.save wrote")


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON of a saved stream; `InputError` for what is none."""
    try:
        metadata = json.loads((path / "about" / "metadata").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        metadata = None
    if not isinstance(metadata, dict) or not {"format", "waiting", "frozen", "model"} <= metadata.keys():
        raise InputError(f"{path}: not a saved stream; expected what Stream.save wrote")
    return metadata


def read_state(path: Path, template: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a saved stream by name; `InputError` where they cannot be read."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(dict(template)))
            return checkpointer.restore(path, args=args)["state"]
        except Exception as error:  # what a damaged file raises depends on the file; Orbax has no common class
            raise InputError(f"{path}: the saved stream cannot be read ({reason(error)})") from error


def _aside(path: Path) -> tuple[Path, Path]:
    """Names for a new stream that is complete, and for the one that it replaces."""
    return path.with_name(f".{path.name}.new_stream"), path.with_name(f".{path.name}.old_stream")


def _remove(path: Path) -> None:
    """Removes a saved stream that is set aside, which was checked, and what Orbax left of one it did not complete."""
    parts = path.parent.glob(f"{glob.escape(path.name)}.orbax-checkpoint-tmp*")
    for place in (path, *parts):
        if place.is_dir():
            shutil.rmtree(place)
