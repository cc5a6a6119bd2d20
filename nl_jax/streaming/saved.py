"""A saved stream on disk: a directory written by Orbax and replaced atomically.

The new directory is written beside the old one under another name. Then the old directory is renamed, the new one takes
its place, and the old one is removed. So at every moment one of the two is complete, under a name that `newest` finds.
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
_METADATA = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # files that Orbax adds, the second not in every version


def replace(directory: Path, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes arrays by name, and JSON metadata, in place of an earlier saved stream.

    Raises:
        InputError: if the directory holds anything but a saved stream.
        StorageError: if the stream cannot be written; the earlier one stays.
    """
    path = directory.resolve()  # if it is a link, its target is replaced
    new, old = _aside(path)
    for place in (path, new, old):
        check_replaceable(place)
    args = ocp.args.Composite(state=ocp.args.StandardSave(dict(state)), about=ocp.args.JsonSave(dict(metadata)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # a process may have ended between the two renames below
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
    except Exception as error:  # Orbax has no common class of errors
        with contextlib.suppress(OSError):  # if Orbax's threads still write there, the next call removes it
            _remove(new)
        raise StorageError(f"{path}: the stream could not be saved ({reason(error)})") from error


def check_replaceable(path: Path) -> None:
    """Raises `InputError` unless a path is free, an empty directory, or a saved stream without other files."""
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
    """Whether `newest` would find a saved stream."""
    path = directory.resolve()
    return any(place.exists() for place in (path, *_aside(path)))


def newest(directory: Path) -> Path:
    """Path of the saved stream: the directory or, if a process ended while replacing it, the complete one beside it.

    Raises:
        InputError: if there is no saved stream.
    """
    path = directory.resolve()
    if path.exists():
        return path
    for aside in _aside(path):  # the new one is complete if it exists, since Orbax renames it last
        if aside.is_dir():
            return aside
    raise InputError(f"{directory}: no saved stream there; expected what Stream.save wrote")


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON metadata of a saved stream; raises `InputError` if the path is not a saved stream."""
    try:
        metadata = json.loads((path / "about" / "metadata").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        metadata = None
    if not isinstance(metadata, dict) or not {"format", "waiting", "frozen", "model"} <= metadata.keys():
        raise InputError(f"{path}: not a saved stream; expected what Stream.save wrote")
    return metadata


def read_state(path: Path, template: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a saved stream by name, with the shapes and dtypes of ``template``.

    Raises:
        InputError: if they cannot be read.
    """
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(dict(template)))
            return checkpointer.restore(path, args=args)["state"]
        except Exception as error:  # the error depends on the damaged file; Orbax has no common class
            raise InputError(f"{path}: the saved stream cannot be read ({reason(error)})") from error


def _aside(path: Path) -> tuple[Path, Path]:
    """Temporary paths: for the complete new stream, and for the old stream that it replaces."""
    return path.with_name(f".{path.name}.new_stream"), path.with_name(f".{path.name}.old_stream")


def _remove(path: Path) -> None:
    """Removes a (checked) saved stream at a temporary path, and remains of one that Orbax did not complete."""
    parts = path.parent.glob(f"{glob.escape(path.name)}.orbax-checkpoint-tmp*")
    for place in (path, *parts):
        if place.is_dir():
            shutil.rmtree(place)
