"""Text that every machine with Python has: the documentation strings of the standard library's modules."""

import ast
import sysconfig
from pathlib import Path

SHORTEST = 800  # characters of a module's documentation that counts


def library_docs(characters: int = 1000) -> list[str]:
    """The beginning of the documentation string of each module of the standard library that has a long one.

    They come in the order of the modules' names. Other versions of Python have other texts.

    Args:
      characters: length of each text, at most.
    """
    texts = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        except (OSError, ValueError, SyntaxError):
            continue
        if len(text) > SHORTEST:
            texts.append(text[:characters])
    return texts
