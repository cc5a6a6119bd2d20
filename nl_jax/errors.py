"""The errors that callers can tell apart: bad input, storage that cannot be written, a lost process, and divergence."""


class InputError(ValueError):
    """The user's input is invalid. The message is one line with the name of the input, its value and what was expected.

    Launchers print the message without a traceback and end with exit code 2. Library users can catch it as a
    ``ValueError``.

    Examples:
      >>> from nl_jax import InputError
      >>> from nl_jax.parallel import parse_mesh
      >>> try:
      ...     parse_mesh("rows:2")
      ... except InputError as error:
      ...     print(error)
      mesh 'rows:2': unknown axis 'rows'; expected axis:size with axes data, fsdp, tensor, sequence
    """


class StorageError(OSError):
    """A checkpoint or a stream could not be written. The message says in one line where and why, such as a full disk.

    Earlier checkpoints and streams are kept. Launchers print the message without a traceback and end with exit code 3.

    Examples:
      >>> from nl_jax import StorageError
      >>> issubclass(StorageError, OSError)  # so that callers can treat it as any failed write
      True
    """


class ProcessLost(RuntimeError):
    """Another process of the run has ended, or does not answer. Launchers end with exit code 5."""


class Diverged(ArithmeticError):
    """A loss or a learned state is not finite. The message says which and where. Launchers end with exit code 1.

    Attributes:
      level: name of the level that diverged, or None if it is unknown.
      position: number of tokens learned before, or None if no text is read. The learner keeps its state from there.

    Examples:
      >>> from nl_jax import Diverged
      >>> error = Diverged("memory: not finite at token 64", level="memory", position=64)
      >>> error.level, error.position, isinstance(error, ArithmeticError)
      ('memory', 64, True)
    """

    def __init__(self, message: str, *, level: str | None = None, position: int | None = None):
        super().__init__(message)
        self.level, self.position = level, position
