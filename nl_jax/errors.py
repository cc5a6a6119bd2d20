"""The errors that callers are to tell apart: bad input, a machine that does not write, and learning that diverged."""


class InputError(ValueError):
    """Bad input from the user: one line that names the thing, its value and what was expected.

    Launchers print the message without a traceback and end with exit code 2; a library user
    catches it as a ``ValueError``.
    """


class StorageError(OSError):
    """A checkpoint or a stream could not be written: one line that says where and why (a full disk, for example).

    What was saved before is still there. Launchers print the message without a traceback and end with exit code 3.
    """


class Diverged(ArithmeticError):
    """Something that learns stopped being finite; the message says what and where. Launchers end with exit code 1.

    Attributes:
      level: name of the level that diverged, where it is known.
      position: tokens learned before, where a text is read; the learner that is kept is the one of that position.
    """

    def __init__(self, message: str, *, level: str | None = None, position: int | None = None):
        super().__init__(message)
        self.level, self.position = level, position
