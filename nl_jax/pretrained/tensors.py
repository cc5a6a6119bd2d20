"""What every format of files offers: tensors by their Hugging Face names, read one at a time."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np


class Tensors(Protocol):
    """The tensors of a checkpoint. Matrices are [out, in], as ``torch.nn.Linear`` keeps them."""

    def names(self) -> Iterable[str]:
        """Names of all tensors."""

    def place(self, name: str) -> str:
        """The file that holds a tensor, and the tensor's name there, for messages."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, known without reading it."""

    def read(self, name: str) -> np.ndarray:
        """A tensor in its own floating-point type, or float32 where the file has it quantised.

        Raises:
          InputError: if it cannot be read; the message names the file and the tensor.
        """
