"""The documentation site: every public name is on a page, pages are in the navigation, and the site can be built."""

import importlib.util
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from public_names import PUBLIC

ROOT = Path(__file__).parents[1]


def hook(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / "_hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


pages = hook("pages")
NAMES = pages.public_names()
REFERENCE = pages.reference_pages()
NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]


def missing(path):
    """What the pages lack of a public name; None if it has an entry that says what it is."""
    if path not in NAMES:
        return "no entry"
    name = NAMES[path]
    own = path.split(".")[1] if path.split(".")[1] in pages.rooms() else "nl_jax"
    if f"::: {name.defined}\n" not in REFERENCE[f"reference/{pages.page_of(name)}.md"]:
        return "no entry"
    if f"][{name.defined}]" not in REFERENCE[f"reference/{own}.md"]:
        return "no link on the page of the package that exports it"
    return None if pages.documentation(name) else "no docstring"


def test_every_public_name_has_an_entry_that_says_what_it_is():
    assert len(PUBLIC) > 300
    assert {path: lack for path in PUBLIC if (lack := missing(path))} == {"nl_jax.__version__": "no docstring"}


def test_a_name_that_is_on_no_page_is_found():
    assert missing("nl_jax.levels.forgotten") == "no entry"


def test_every_page_is_in_the_navigation():
    folders = {"reference/", "notebooks/"}  # filled when the site is built
    named = set(re.findall(r": ([\w/.]+)$", NAVIGATION, re.MULTILINE)) - folders
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    copied = {path for path in pages.COPIED if path.endswith(".md")}
    assert named == written | copied | {"index.md"}


def test_links_between_pages_of_the_sources_lead_somewhere():
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("docs/**/*.md")}
    texts["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
    for place, text in texts.items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
            waiting = link.startswith("notebooks/") and not (ROOT / "notebooks").exists()
            if not link.startswith("http") and not waiting:
                folder = (ROOT / place).parent
                roots = [folder] if place == "README.md" else [folder, ROOT / folder.relative_to(ROOT / "docs")]
                path = link.removesuffix(".html") + ".md" if link.endswith(".html") else link
                reference = any(f"{'/'.join(path.split('/')[-2:])}" == page for page in REFERENCE)
                assert reference or any((root / path).exists() for root in roots), f"{place}: {link}"


def test_docstrings_become_markdown():
    pytest.importorskip("griffe")
    rewrite = hook("docstrings").Markup().rewrite
    assert rewrite("with :math:`a_1`, see `m3` and `nobody`") == (
        "with $a_1$, see [`m3`][nl_jax.optim.m3.m3] and `nobody`"
    )
    text = "A rule.\n\n    .. math::\n      a &= b \\\\\n      c &= d\n\n    Then ``x``."
    assert "$$\n    \\begin{aligned}a &= b" in rewrite(text)
    assert rewrite(text).endswith("$$\n\n\n    Then ``x``.")


def test_equations_become_mathml():
    pytest.importorskip("latex2mathml")
    content = hook("equations").mathml(r"\begin{aligned}a &= b \\ c &= d\end{aligned}", display=True)
    assert content.count("<mtr>") == 2
    assert 'display="block"' in content
    assert "&</mi>" not in content


class Links(HTMLParser):
    """What a page links to and loads, and the names that it can be linked by."""

    def __init__(self):
        super().__init__()
        self.links, self.loaded, self.ids = [], [], set()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if values.get("id"):
            self.ids.add(values["id"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            self.loaded.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter", "latex2mathml"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    found = {}
    for path in folder.rglob("*.html"):
        found[path] = Links()
        found[path].feed(path.read_text(encoding="utf-8"))
    return folder, found


@pytest.mark.slow
def test_the_site_is_built_with_an_entry_for_every_public_name(site):
    folder, found = site
    for path in PUBLIC:
        name = NAMES[path]
        assert name.defined in found[folder / "reference" / f"{pages.page_of(name)}.html"].ids, path
    optim = (folder / "reference" / "optim.html").read_text(encoding="utf-8")
    assert optim.count("<math") > 40
    for path in folder.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "arithmatex" not in text, path
        assert ":math:" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL), path


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere_and_its_links_lead_somewhere(site):
    folder, found = site
    for path, page in found.items():
        if path.name == "404.html":
            continue  # its links begin at the root of a server
        assert [url for url in page.loaded if url.startswith(("http", "//"))] == [], path
        for link in (*page.links, *page.loaded):
            if link.startswith(("http", "mailto:", "data:")):
                continue
            target, _, part = link.partition("#")
            file = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            assert file.exists(), f"{path.relative_to(folder)}: {link}"
            if part and file.suffix == ".html":
                assert unquote(part) in found[folder / file.relative_to(folder.resolve())].ids, f"{path}: {link}"
    assert (folder / "search" / "search_index.json").exists()


@pytest.mark.slow
def test_pages_that_are_opened_as_files_can_be_searched(site):
    folder, _ = site
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert 0 < text.index("iframe-worker.js") < text.index("javascripts/bundle")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    page = f"{(folder / 'index.html').as_uri()}?q=preconditioner"
    done = subprocess.run([browser, *options, page], capture_output=True, text=True, timeout=120)
    assert re.search(r"\d+ matching documents", done.stdout)


def test_the_page_of_results_names_every_launcher_that_writes_them():
    from experiments.__main__ import COMMANDS

    text = (ROOT / "docs" / "results_json.md").read_text(encoding="utf-8")
    cells = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("|"))
    named = set(re.findall(r"[\w.*]+", cells))
    readers = {"generate", "stream", "ask", "report"}  # which write none
    groups = {"continual": ("class_incremental", "incorporate", "new_languages")}
    for command in set(COMMANDS) - readers:
        first, _, last = command.partition(".")
        assert command in named or (first == "evals" and "evals.*" in named) or last in groups.get(first, ()), command
    source = (ROOT / "experiments" / "common" / "launcher.py").read_text(encoding="utf-8")
    for key in ("configuration", "versions", "device"):
        assert f"`{key}`" in text
        assert f'"{key}":' in source
