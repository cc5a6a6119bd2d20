"""Equations as MathML, which browsers draw themselves: no script, and nothing from a network."""

import html
import re
from typing import Any

_MARKED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_DOLLARS = re.compile(r"(?<![\\$\w])\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)", re.DOTALL)
_KEPT = re.compile(r"(<(pre|code|script|style|math|svg)\b.*?</\2>|<[^>]*>)", re.DOTALL)
_REMOTE = re.compile(r'<script[^>]*src="https?://[^"]*"[^>]*>\s*</script>')
_MATHJAX = re.compile(r'<script type="text/x-mathjax-config">.*?</script>', re.DOTALL)
_MODULES = re.compile(r'<script type="module">(?:(?!</script>).)*https?://(?:(?!</script>).)*</script>', re.DOTALL)


def mathml(latex: str, *, display: bool) -> str:
    """An equation in LaTeX as MathML."""
    from latex2mathml.converter import convert

    latex = latex.replace("½", r"\frac12 ")
    latex = latex.replace("{aligned}", "{align*}")  # the one of both that latex2mathml knows
    return convert(latex, display="block" if display else "inline")


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Writes the page's equations as MathML."""
    content = _MARKED.sub(lambda found: mathml(html.unescape(found[3]), display=found[2] == "["), content)
    if page.file.src_uri.endswith(".ipynb"):
        for pattern in (_REMOTE, _MATHJAX, _MODULES):
            content = pattern.sub("", content)
        parts = _KEPT.split(content)  # text, then a tag or an element that is kept, then that element's name
        for i in range(0, len(parts), 3):
            parts[i] = _DOLLARS.sub(_of_dollars, parts[i])
        content = "".join(part or "" for i, part in enumerate(parts) if i % 3 != 2)
    return content


def _of_dollars(found: re.Match[str]) -> str:
    return mathml(html.unescape(found[1] or found[2]), display=found[1] is not None)
