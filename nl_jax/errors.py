"""The errors that come from outside: bad input, and a machine that does not write."""


class InputError(ValueError):
    """Bad input from the user: one line that names the thing, its value and what was expected.

    Launchers print the message without a traceback and end with exit code 2; a library user
    catches it as a ``ValueError``.
    """


class StorageError(OSError):
    """A checkpoint or a stream could not be written: one line that says where and why (a full disk, for example).

    What was saved before is still there. Launchers print the message without a traceback and end with exit code 3.
    """
