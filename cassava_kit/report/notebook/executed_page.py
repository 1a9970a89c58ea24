"""Turn an executed notebook into one self-contained page: `write_notebook_page`."""

from __future__ import annotations

import base64
import html
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cassava_kit.files import read_json, write_text
from cassava_kit.report.page import environment

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# What pandas writes into a table; the page has its own style.
PANDAS_STYLE = re.compile(r"<style scoped>.*?</style>|\s(?:border=\"1\"|style=\"text-align: right;\")", re.DOTALL)
# What tqdm says where the notebook's widgets are not installed.
NO_WIDGETS = re.compile(r"^.*TqdmWarning: IProgress not found.*\n.*\n", re.MULTILINE)
PICTURES = ("image/png", "image/jpeg")
# Most lines of printed text that are shown of one output, half of them from its end.
MOST_LINES = 80


def write_notebook_page(notebook: Path, out: Path, note: str) -> None:
    """Write the page of an executed notebook: text, code, outputs and pictures, without paths of this machine.

    `note` is a sentence above it that says how it was made.
    """
    cells = [describe_cell(cell) for cell in read_json(notebook)["cells"]]
    heading = re.search(r"<h1>(.*?)</h1>", "".join(str(cell["html"]) for cell in cells if cell["kind"] == "markdown"))
    title = html.unescape(heading[1]) if heading else notebook.stem
    values = {"title": title, "cells": cells, "note": note, "code_style": code_style()}
    write_text(out, environment().get_template("notebook.html").render(**values))


def describe_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template shows of a cell: its kind, its source as HTML, whether it is folded, its outputs."""
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        from markdown_it import MarkdownIt

        return {"kind": "markdown", "html": MarkdownIt("commonmark", {"html": False}).render(source)}
    return {
        "kind": "code",
        "html": highlight_code(source),
        "folded": bool(cell["metadata"].get("_kg_hide-input")),
        "lines": source.count("\n") + 1,
        "outputs": list(describe_outputs(cell["outputs"])),
    }


def describe_outputs(outputs: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the outputs of a cell as HTML; texts printed one after the other to one stream are one."""
    printed: list[tuple[str, str]] = []
    for output in outputs:
        if output["output_type"] == "stream":
            text, name = "".join(output["text"]), output["name"]
            if printed and printed[-1][0] == name:
                printed[-1] = (name, printed[-1][1] + text)
            else:
                printed.append((name, text))
            continue
        yield from (text_html(text, stream) for stream, text in printed)
        printed = []
        if output["output_type"] == "error":
            yield text_html("\n".join(output["traceback"]), "stderr")
        else:
            yield display_html(output["data"])
    yield from (text_html(text, stream) for stream, text in printed)


def display_html(data: Mapping[str, Any]) -> str:
    """Return a displayed object as HTML: its own HTML, else its picture, else its text."""
    if "text/html" in data:
        own = "".join(data["text/html"])
        return PANDAS_STYLE.sub("", own)
    for kind in PICTURES:
        if kind in data:
            content = base64.b64encode(base64.b64decode("".join(data[kind]))).decode("ascii")
            return f'<img src="data:{kind};base64,{content}" alt="" style="max-width:100%">'
    return text_html("".join(data.get("text/plain", "")), "stdout")


def text_html(text: str, stream: str) -> str:
    """Return printed text as HTML: no colours, the last state of each progress bar, a long text without its middle."""
    plain = ANSI.sub("", without_machine(NO_WIDGETS.sub("", text)))
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in plain.rstrip("\n").split("\n")]
    if len(lines) > MOST_LINES:
        half = MOST_LINES // 2
        lines = [*lines[:half], f"… {len(lines) - 2 * half} lines are left out here …", *lines[-half:]]
    bad = ' class="bad"' if stream == "stderr" and "Error" in text else ""
    return f"<pre{bad}>{html.escape(chr(10).join(lines))}</pre>"


def without_machine(text: str) -> str:
    """Return text without the paths of this machine: its Python, its temporary and home folders."""
    text = re.sub(r"(/[\w.+-]+)+/site-packages/", "site-packages/", text)
    temporary = re.escape(tempfile.gettempdir().rstrip("/"))
    text = re.sub(rf"{temporary}/[\w.-]+", "…", text)
    for folder in (str(Path.cwd()), sys.prefix, str(Path.home())):
        if len(folder) > 1:
            text = text.replace(folder, "…")
    return text


def highlight_code(source: str) -> str:
    """Return Python code as HTML with classes for its colours."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return str(highlight(without_machine(source), PythonLexer(), HtmlFormatter(nowrap=True)))


def code_style() -> str:
    """Return the colours of code, for light and dark pages."""
    from pygments.formatters import HtmlFormatter

    light, dark = (
        "\n".join(
            line
            for line in HtmlFormatter(style=style).get_style_defs(".code").splitlines()
            if line.startswith(".code .") and "background" not in line
        )
        for style in ("default", "github-dark")
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
