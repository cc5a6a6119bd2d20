"""Pages that are made when the site is built: the home page, one reference page a room, and files from elsewhere.

`mkdocs.yml` names this file as a hook. Nothing of the project is imported: names are read from the packages'
``__init__.py``, so that a page can be made, and checked by a test, in milliseconds.
"""

import ast
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = "nl_jax"
COPIED = ("BUILD_NOTES.md", "CHANGELOG.md", "notebooks/*.ipynb", "experiments/figures/*.png", "docs/*.svg")


class Name(NamedTuple):
    """A public name: the path that a user imports it by, and the path of its definition."""

    path: str
    defined: str

    @property
    def room(self) -> str:
        """The room that defines it, or nl_jax for what is defined in a module beside the rooms."""
        room = self.defined.split(".")[1]
        return room if room in rooms() else PACKAGE


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def rooms() -> list[str]:
    """The rooms that have a page, besides nl_jax itself."""
    return sorted(path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py"))


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def exported(module: str) -> dict[str, str]:
    """What a package exports in ``__all__``: the path of each name's definition."""
    origins, names = {}, []
    for node in _tree(_file(module)).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            origins |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names = [str(value) for value in ast.literal_eval(node.value)]
    return {name: _definition(origins.get(name, f"{module}.{name}")) for name in names}


def _definition(path: str) -> str:
    """The path of a name's definition, through packages that export what other modules define."""
    module, _, name = path.rpartition(".")
    if _file(module).name == "__init__.py" and _file(module).exists() and module != PACKAGE:
        return exported(module).get(name, path)
    return path


def modules() -> Iterator[str]:
    """The packages that export names."""
    for path in sorted((ROOT / PACKAGE).rglob("__init__.py")):
        yield ".".join(path.parent.relative_to(ROOT).parts)


def public_names() -> dict[str, Name]:
    """Every path by which a name can be imported from a package, with the name that its entry is under."""
    found: dict[str, str] = {}
    for module in modules():
        found |= {f"{module}.{name}": defined for name, defined in exported(module).items()}
    chosen: dict[str, str] = {}
    for path, defined in found.items():  # in the room that defines it, the shortest path; else the first
        own = path.split(".")[1:2] == defined.split(".")[1:2]
        best = chosen.get(defined)
        if best is None or (own, -path.count(".")) > (best.split(".")[1] == defined.split(".")[1], -best.count(".")):
            chosen[defined] = path
    return {path: Name(chosen[defined], defined) for path, defined in found.items()}


def page_of(name: Name) -> str:
    """The page that an entry is on."""
    room = name.path.split(".")[1]
    return room if room in rooms() else PACKAGE


def reference_pages() -> dict[str, str]:
    """The Markdown of every reference page, by its path below docs/."""
    pages = {}
    names = public_names()
    for page in (PACKAGE, *rooms()):
        module = PACKAGE if page == PACKAGE else f"{PACKAGE}.{page}"
        here = [path for path in names if (path.split(".")[1] if path.split(".")[1] in rooms() else PACKAGE) == page]
        entries = dict.fromkeys(names[path].path for path in here if page_of(names[path]) == page)
        elsewhere = [path for path in here if page_of(names[path]) != page]
        text = [f"# {module}", ast.get_docstring(_tree(_file(module))) or "", ""]
        text += [_line(names[entry], module) for entry in entries]
        if elsewhere:
            links = ", ".join(f"[`{path.removeprefix(f'{module}.')}`][{names[path].defined}]" for path in elsewhere)
            text += ["", f"It also exports {links}."]
        for entry in entries:
            text += ["", _entry(names[entry])]
        pages[f"reference/{page}.md"] = "\n".join(text) + "\n"
    return pages


def _line(name: Name, module: str) -> str:
    """A name of the list at the top of a page, with what it is."""
    return f"- [`{name.path.removeprefix(f'{module}.')}`][{name.defined}]: {_first_sentence(documentation(name))}"


def _entry(name: Name) -> str:
    """What mkdocstrings renders of a name: its definition, since `nl_jax.optim.m3` is a module, too."""
    fields = "\n      show_if_no_docstring: true" if _has_fields(name) else ""
    hidden = f'<a id="{name.path}"></a>\n\n' if name.defined.startswith(f"{name.path}.") else ""  # by the module
    return (
        f"{hidden}::: {name.defined}\n    options:\n"
        f"      heading: {name.path}\n      toc_label: {name.path.rpartition('.')[2]}{fields}"
    )


def _has_fields(name: Name) -> bool:
    """Whether a name is a record whose docstring does not list its fields."""
    module, _, own = name.defined.rpartition(".")
    for node in _tree(_file(module)).body:
        if isinstance(node, ast.ClassDef) and node.name == own:
            kinds = [ast.unparse(kind) for kind in (*node.bases, *node.decorator_list)]
            record = any(kind == "NamedTuple" or "dataclass" in kind for kind in kinds)
            return record and "Attributes:" not in (ast.get_docstring(node) or "")
    return False


def documentation(name: Name) -> str:
    """The docstring of a name's definition; that of a constant is the string after its assignment."""
    module, _, own = name.defined.rpartition(".")
    body = _tree(_file(module)).body
    for i, node in enumerate(body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == own:
            return ast.get_docstring(node) or ""
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if own in [getattr(target, "id", None) for target in targets]:
            following = body[i + 1] if i + 1 < len(body) else None
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                return str(following.value.value)
    return ""


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = re.split(r"(?<!Eq)(?<!al)(?<=[a-z)`\]])[.]\s", paragraph)[0].removesuffix(".") + "."
    return re.sub(r":math:`([^`]*)`", r"$\1$", sentence)


def home() -> str:
    """README as the home page, whose links are relative to docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    first = next(iter(sorted((ROOT / "notebooks").glob("*.ipynb"))), None)
    if first is not None:
        text = text.replace("](notebooks/)", f"]({first.relative_to(ROOT).as_posix()})")
    text = re.sub(
        r"\[([^]]*)\]\((notebooks/[^)]*)\)", lambda link: link[0] if (ROOT / link[2]).is_file() else link[1], text
    )
    return re.sub(r"\[([^]]*)\]\((LICENSE|CITATION\.cff)\)", r"\1", text)  # files that are no pages


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links of pages in docs/ to files beside it, as they are on the site."""
    return re.sub(r"\]\(\.\./((?:experiments/figures/|BUILD_NOTES|CHANGELOG)[^)]*)\)", r"](\1)", markdown)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made, and the files that lie elsewhere."""
    from mkdocs.structure.files import File

    for path, content in {"index.md": home(), **reference_pages()}.items():
        files.append(File.generated(config, path, content=content))
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix().removeprefix("docs/")
            if files.get_file_from_path(name) is None:
                files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


on_files.mkdocs_priority = 100  # type: ignore[attr-defined]  # before mkdocs-jupyter asks which files are notebooks


def _title(notebook: Path) -> str:
    """The first heading of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return notebook.stem if found is None else found[1].strip()


def on_config(config: Any) -> Any:
    """Fills the sections of the navigation that name a folder with the pages in it."""
    folders = {
        "notebooks/": [
            {_title(path): path.relative_to(ROOT).as_posix()} for path in sorted(ROOT.glob("notebooks/*.ipynb"))
        ],
        "reference/": [{Path(path).stem: path} for path in reference_pages()],
    }
    filled = []
    for item in config.nav:
        ((title, value),) = item.items()
        pages = folders.get(value, value) if isinstance(value, str) else value
        if pages:  # a section without pages is left out
            filled.append({title: pages})
    config.nav = filled
    return config
