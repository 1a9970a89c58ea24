"""Take the repository's own pages into the site: README.md as its start, others under their names. A hook of mkdocs."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Page of the site -> file of the repository.
PAGES = {"index.md": "README.md"} | {name: name for name in ("RESULTS.md", "LOG.md", "CONTRIBUTING.md", "CHANGELOG.md")}
PLAIN = ("LICENSE",)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files, their links turned to where the pages lie in the site."""
    for target, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](").replace("](README.md", "](index.md")
        files.append(File.generated(config, target, content=text))
    for name in PLAIN:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return a page of docs/ whose links to the repository's own pages stay in the site."""
    return markdown.replace("](../README.md", "](index.md").replace("](../", "](")
