"""The one error that stands for bad input from outside: data, flags, files, checkpoints."""


class InputError(ValueError):
    """Bad input from the user: one line that names the thing, its value and what was expected.

    Launchers print the message without a traceback and end with exit code 2; a library user
    catches it as a ``ValueError``.
    """
