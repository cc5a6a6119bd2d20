"""The index of the search as a script, which a page that is opened as a file can load: see ``search_in_files.js``."""

from pathlib import Path
from typing import Any

import mkdocs.plugins


@mkdocs.plugins.event_priority(-100)  # after the search plugin has written its index
def on_post_build(config: Any) -> None:
    """Writes ``search/search_index.js`` beside the JSON file, under the name that the theme looks for."""
    folder = Path(config.site_dir, "search")
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")
