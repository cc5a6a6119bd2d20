"""Reads the tensors of a Hugging Face directory: one ``safetensors`` file, or several with an index."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (tells NumPy of bfloat16, which safetensors then reads)
import numpy as np

from nl_jax.errors import InputError
from nl_jax.pretrained.optional import needed

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")


class SafetensorsFiles:
    """The tensors of a directory, mapped into memory: nothing is read before it is asked for.

    Args:
      directory: with ``model.safetensors``, or with ``model.safetensors.index.json`` and the files that it names.

    Raises:
      InputError: for a file that is missing or damaged; the message names it, and a tensor that it should hold.
    """

    def __init__(self, directory: Path):
        opened = needed("safetensors", f"{directory}: a safetensors file").safe_open
        files = _files(directory)
        self._files = files
        self._opened: dict[Path, Any] = {}
        for name, file in files.items():
            if file in self._opened:
                continue
            if not file.is_file():
                raise InputError(f"{file}: no such file; the index names it for tensor {name!r}")
            try:
                self._opened[file] = opened(str(file), framework="numpy")
            except Exception as error:  # the package has its own class of errors, and raises OSError, too
                raise InputError(
                    f"{file}: damaged or cut off, so that {name or 'no tensor'!r} cannot be read ({error})"
                ) from error
        if "" in files:
            (file,) = self._opened
            self._files = dict.fromkeys(self._opened[file].keys(), file)
        self._held = {file: set(handle.keys()) for file, handle in self._opened.items()}

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._files

    def place(self, name: str) -> str:
        """The file of a tensor, and its name."""
        return f"{self._files.get(name, '')}: tensor {name!r}"

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, known without reading it."""
        return tuple(self._handle(name).get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """A tensor in its own type; `InputError` for one that is no floating-point type, such as a quantised one."""
        handle = self._handle(name)
        kind = handle.get_slice(name).get_dtype()
        if kind not in FLOATS:
            raise InputError(f"{self.place(name)} is of type {kind}; expected one of {', '.join(FLOATS)}")
        return handle.get_tensor(name)

    def _handle(self, name: str) -> Any:
        file = self._files[name]
        if name not in self._held[file]:
            raise InputError(f"{self.place(name)} is not in this file, where the index has it")
        return self._opened[file]


def _files(directory: Path) -> dict[str, Path]:
    """The file of each tensor by the index; of a single file just its path, under the name ""."""
    index = directory / INDEX
    if not index.is_file():
        if (directory / SINGLE).is_file():
            return {"": directory / SINGLE}
        raise InputError(f"{directory}: no weights; expected {SINGLE} or {INDEX}")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): directory / file for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: not an index of safetensors ({error!r}); expected a weight_map") from error
