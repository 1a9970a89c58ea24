"""Take the repository's own pages into the site: README.md as its start, others under their names. A hook of mkdocs."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Page of the site -> file of the repository.
PAGES = {
    "index.md": "README.md",
    "kernels.md": "kernels/README.md",
    **{name: name for name in ("RESULTS.md", "LOG.md", "CONTRIBUTING.md", "CHANGELOG.md")},
}
PLAIN = ("LICENSE",)
MOVED = {"](docs/": "](", "](README.md": "](index.md", "](kernels/README.md": "](kernels.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files, their links turned to where the pages lie in the site; notebooks are not among them."""
    for target, source in PAGES.items():
        text = re.sub(r"\[([^\]]+)\]\([^)]+\.ipynb\)", r"\1", (ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, target, content=move_links(text)))
    for name in PLAIN:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return a page of docs/ whose links to the repository's own pages stay in the site."""
    return move_links(markdown.replace("](../", "]("))


def move_links(text: str) -> str:
    """Return a page with links to where the site has the repository's files."""
    for old, new in MOVED.items():
        text = text.replace(old, new)
    return text
