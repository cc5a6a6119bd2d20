"""Docstrings in the Markdown that the site is written in: equations, and links to public names."""

import importlib.util
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import griffe

_spec = importlib.util.spec_from_file_location("_pages", Path(__file__).with_name("pages.py"))
assert _spec is not None
assert _spec.loader is not None
pages = importlib.util.module_from_spec(_spec)
sys.modules["_pages"] = pages
_spec.loader.exec_module(pages)

_INLINE = re.compile(r":math:`([^`]*)`", re.DOTALL)
_DISPLAY = re.compile(r"^( *)\.\. math::[ \n]*((?:.+\n?)+?)(?=\n\s*\n|\n\S|\Z)", re.MULTILINE)
_ROLE = re.compile(r":(?:func|class):`([\w.]+)`")
_LINK = re.compile(r"`([^`<]+) <([^>`]+)>`_")
_NAME = re.compile(r"(?<![`\w\[])`([A-Za-z_][\w.]*)`(?!`)")


def _display(found: re.Match[str]) -> str:
    equation = textwrap.dedent(found[1] + "  " + found[2]).strip()
    if "&" in equation and "\\begin" not in equation:
        equation = f"\\begin{{aligned}}{equation}\\end{{aligned}}"
    return textwrap.indent(f"\n$$\n{equation}\n$$\n", found[1])


class Markup(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def __init__(self) -> None:
        """Reads the public names once."""
        names = pages.public_names()
        self._paths = {path: name.defined for path, name in names.items()}
        self._by_end: dict[str, set[str]] = {}
        for name in names.values():
            self._by_end.setdefault(name.path.rpartition(".")[2], set()).add(name.defined)

    def on_attribute_instance(self, *, attr: Any, **_: Any) -> None:
        """Takes the comment beside a field of a class for its docstring."""
        if attr.docstring or not attr.parent.is_class or attr.lineno != attr.endlineno or not attr.lineno:
            return
        line = attr.lines_collection[attr.filepath][attr.lineno - 1]
        _, mark, comment = line.partition("  # ")
        if mark and attr.annotation is not None:
            attr.docstring = griffe.Docstring(comment[:1].upper() + comment[1:] + ".", parent=attr)

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = self.rewrite(obj.docstring.value)

    def rewrite(self, text: str) -> str:
        """The docstring as Markdown."""
        text = _DISPLAY.sub(_display, text)
        text = _INLINE.sub(lambda found: f"${' '.join(found[1].split())}$", text)
        text = _LINK.sub(r"[\1](\2)", text)
        text = _ROLE.sub(r"`\1`", text)
        return _NAME.sub(self._linked, text)

    def _linked(self, found: re.Match[str]) -> str:
        name = found[1]
        path = self._paths.get(name)
        if path is None and "." not in name and len(self._by_end.get(name, ())) == 1:
            (path,) = self._by_end[name]
        return found[0] if path is None else f"[`{name}`][{path}]"
