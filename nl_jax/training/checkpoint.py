"""Checkpoints that survive a kill at any moment: written under a temporary name, renamed, and read newest first.

A checkpoint is a directory named by its step. Orbax writes it under a temporary name and renames it when it is
complete, so that a checkpoint exists completely or not at all. The previous one is kept even after that. Digests tell
a checkpoint that changed since it was written from one that did not.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import orbax.checkpoint as ocp
from absl import logging

from nl_jax.errors import InputError, StorageError
from nl_jax.files import local_path, reason
from nl_jax.parallel.hosts import all_true, from_writer, several
from nl_jax.training.digests import check_digests, digests_of
from nl_jax.trees import named_leaves

PyTree = Any
_POSITION = "data"  # name on disk of the position of the training iterator
_METADATA = "about"  # name on disk of the JSON item; it stays so that older checkpoints can be read
_DIGESTS = "digests"  # of everything else; older checkpoints have none, and are not checked
_PARTS = ("_CHECKPOINT_METADATA", _METADATA)  # every checkpoint has these two entries


class Checkpoint(NamedTuple):
    """A restored checkpoint.

    Examples:
        >>> from nl_jax.training import Checkpoint
        >>> Checkpoint(step=100, items={}, metadata={"loss": 1.5}).metadata["loss"]
        1.5
    """

    step: int
    items: dict[str, PyTree]  # the restored pytrees, by name
    metadata: dict[str, Any]  # the JSON that was saved with them


def restore_newest(
    directory: Path, templates: Mapping[str, PyTree], iterator: grain.DatasetIterator | None = None
) -> Checkpoint | None:
    """Restores the newest checkpoint that can be read, without changing anything on disk.

    Several processes restore the same checkpoint: the newest that all of them can read.

    Args:
        directory: the directory of a `CheckpointWriter`.
        templates: the items to restore, by name, each a pytree of arrays or `jax.ShapeDtypeStruct`. A restored array
            gets the sharding of its template, if that has one, whatever mesh it was saved from.
        iterator: the training iterator, which is set to its position at the time of saving.

    Returns:
        The checkpoint, or None if there is none yet. A one-line warning reports each checkpoint that is skipped.

    Raises:
        InputError: if there are checkpoints, but none can be read.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nl_jax.training import restore_newest
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(restore_newest(Path(folder), {}))  # nothing is saved yet
        None
    """
    directory = local_path(directory)
    steps = from_writer(lambda: _found(directory))
    if not steps:
        return None
    args: dict[str, Any] = {
        name: ocp.args.StandardRestore(jax.tree.map(_shape, named_leaves(tree))) for name, tree in templates.items()
    }
    args[_METADATA] = ocp.args.JsonRestore()
    with ocp.CheckpointManager(directory.absolute(), options=_reading_options()) as manager:
        for step in steps:
            restored, why = None, "another process cannot read it"
            checked = (directory / str(step) / _DIGESTS).exists()
            digests = {_DIGESTS: ocp.args.JsonRestore()} if checked else {}
            try:
                if iterator is not None:
                    iterator.set_state(_read_position(directory / str(step)))
                restored = manager.restore(step, args=ocp.args.Composite(**args, **digests))
            except Exception as error:  # the error depends on the damaged file; Orbax has no common class
                why = _line(error)
            if all_true(restored is not None) and restored is not None:
                items = {name: _like(tree, restored[name]) for name, tree in templates.items()}
                whole = True
                try:  # all processes together, since they hold parts of the arrays
                    if checked:
                        check_digests(restored[_DIGESTS], items, _jsons(restored[_METADATA], iterator))
                except Exception as error:
                    whole, why = False, _line(error)
                if all_true(whole):
                    return Checkpoint(step, items, restored[_METADATA])
            logging.warning("skipped %s: cannot be read (%s)", directory / str(step), why)
    raise InputError(
        f"{directory}: none of the checkpoints {', '.join(map(str, steps))} can be read ({why}); "
        "expected at least one that is whole; start anew in another workdir"
    )


def _found(directory: Path) -> list[int]:
    """Steps of the checkpoints that are complete, newest first; a warning reports each that is not."""
    for partial in sorted(directory.glob("*.orbax-checkpoint-tmp*")):
        logging.warning("skipped %s: partly written", partial)
    return saved_steps(directory)


def _reading_options() -> ocp.CheckpointManagerOptions:
    """Lets each process read by itself, since one that cannot read a file would leave the others waiting for it."""
    if not several():
        return ocp.CheckpointManagerOptions(create=False)
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"restore_{own}"
    )
    return ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone)


def _read_position(checkpoint: Path) -> dict[str, Any]:
    """The position of the training iterator, which is the same on every process."""
    file = checkpoint / _POSITION / "metadata"
    if not file.exists():  # earlier versions let each process save its own
        file = min((checkpoint / _POSITION).glob("process_*-of-*.json"))
    return json.loads(file.read_text(encoding="utf-8"))


class CheckpointWriter:
    """Writes checkpoints in the background and keeps the newest two.

    Use it as a context manager: leaving the context waits for the last checkpoint to be written.

    Args:
        directory: the directory of the checkpoints, created if it does not exist.
        resumed_from: the step that was restored, 0 at the start of a run. Checkpoints of later steps, which could not
            be read, are renamed to ``STEP.damaged``, since the run will write these steps again.

    Raises:
        InputError: if an entry of the directory has the name of a checkpoint but is not one; nothing is changed.
        StorageError: if a checkpoint could not be written (raised at the next ``save``, or when leaving).

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import jax.numpy as jnp
        >>> from nl_jax.data import ByteTokenizer, Document, pack, train_iterator
        >>> from nl_jax.training import CheckpointWriter, restore_newest
        >>> text = pack([Document("a", b"hello world")], ByteTokenizer())
        >>> batches = train_iterator(text, batch_size=1, seq_len=4, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with CheckpointWriter(Path(folder)) as writer:
        ...         writer.save(10, {"state": {"w": jnp.ones(2)}}, batches, {"note": "first"})
        ...     restored = restore_newest(Path(folder), {"state": {"w": jnp.zeros(2)}}, batches)
        >>> restored.step, restored.items["state"]["w"].tolist(), restored.metadata
        (10, [1.0, 1.0], {'note': 'first'})
    """

    def __init__(self, directory: Path, resumed_from: int = 0):
        directory = local_path(directory)
        self._directory = directory
        from_writer(lambda: _prepare(directory, resumed_from))
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(
        self, step: int, items: Mapping[str, PyTree], iterator: grain.DatasetIterator, metadata: Mapping[str, Any]
    ) -> None:
        """Copies everything to the host and returns; a thread writes the files. An existing step is not overwritten.

        All processes call it at the same step; each writes the parts of arrays that its devices hold.
        """
        if from_writer(lambda: step in self._manager.all_steps()):
            return
        args: dict[str, Any] = {name: ocp.args.StandardSave(named_leaves(tree)) for name, tree in items.items()}
        jsons = _jsons(dict(metadata), iterator)
        jsons[_DIGESTS] = digests_of(items, jsons)
        args |= {name: ocp.args.JsonSave(content) for name, content in jsons.items()}
        with self._named_errors(f"that of step {step} or the one before it"):
            self._manager.save(step, args=ocp.args.Composite(**args))

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with self._named_errors("the last one"):
            self._manager.close()

    @contextlib.contextmanager
    def _named_errors(self, which: str) -> Iterator[None]:
        """Raises a `StorageError` for any error of Orbax and TensorStore, which have no common class of errors."""
        try:
            yield
        except Exception as error:
            kept = ", ".join(map(str, saved_steps(self._directory))) or "none"
            raise StorageError(
                f"{self._directory}: a checkpoint, {which}, could not be written ({reason(error)}); there: {kept}"
            ) from error


def _prepare(directory: Path, resumed_from: int) -> None:
    """Checks the entries of the directory, and moves checkpoints aside that the run will write again."""
    _check_ours(directory)
    for step in saved_steps(directory):
        if step > resumed_from:
            _move_aside(directory / str(step))


def _check_ours(directory: Path) -> None:
    """Raises `InputError` if Orbax would remove, or this writer rename, an entry that is not a checkpoint."""
    for path in directory.glob("*"):
        step, partial, _ = path.name.partition(".orbax-checkpoint-tmp")
        whole = step.isdecimal() and not partial
        if (partial and not step.isdecimal()) or (whole and not any((path / part).exists() for part in _PARTS)):
            raise InputError(
                f"{path}: has a checkpoint's name and is none; expected it elsewhere, since old checkpoints are removed"
            )


def saved_steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints in a directory, newest first."""
    names = [path.name for path in directory.glob("*") if path.is_dir()]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _jsons(metadata: dict[str, Any], iterator: grain.DatasetIterator | None) -> dict[str, Any]:
    """What a checkpoint holds beside arrays, by name on disk."""
    return {_METADATA: metadata, **({} if iterator is None else {_POSITION: iterator.get_state()})}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _like(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in named_leaves(tree)])


def _move_aside(path: Path) -> None:
    target, count = path.with_name(f"{path.name}.damaged"), 1
    while target.exists():
        target, count = path.with_name(f"{path.name}.damaged{count}"), count + 1
    path.rename(target)
    logging.warning("moved %s to %s", path, target)
