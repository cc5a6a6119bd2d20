"""Command lines with words beside the flags, such as ``learn --workdir=DIR one.txt two.txt``."""

from typing import Any

from absl import flags


class WithWords(flags.FlagValues):
    """Flags of which one also takes the words of the command line that are no flags.

    A flag with a value is written as one word, ``--name=value``.
    """

    def __init__(self, name: str):
        super().__init__()
        self.__dict__["_words"] = name  # absl takes other attributes for values of flags

    def __call__(self, argv: Any, known_only: bool = False) -> list[str]:
        """Parses the flags; the list flag ``name`` gets the words, after what ``--name=`` gives."""
        program, *words = super().__call__(argv, known_only)
        flag: Any = self[self.__dict__["_words"]]
        flag.value = [*flag.value, *words]
        return [program]
