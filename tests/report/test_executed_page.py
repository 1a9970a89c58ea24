"""The page of an executed notebook: everything in it, nothing of this machine, no script, readable in any window."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import chrome
import pytest

from cassava_kit.kaggle.pack.kernels import KERNEL_NAMES
from cassava_kit.report.notebook import executed_page
from cassava_kit.report.notebook.executed_page import text_html, without_machine, write_notebook_page

ROOT = Path(__file__).resolve().parents[2]
TEXT = "# A title & more\n\nText with `code` <script>alert(1)</script>."
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def code(source: str, *outputs: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "metadata": metadata, "outputs": list(outputs)}


def printed(text: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    table = '<div><style scoped>.x {}</style><table border="1" class="dataframe"><tr style="text-align: right;"><td>7'
    cells = [
        {"cell_type": "markdown", "source": TEXT, "metadata": {}},
        code("SETTINGS = {}\nx = 1", **{"_kg_hide-input": True}),
        code(
            "print('<b>')  # a comment",
            printed("10 %\r20 %\r100 %\n"),
            printed("\x1b[31m<red>\x1b[0m\n"),
            printed("/usr/lib/tqdm/auto.py:21: TqdmWarning: IProgress not found.\n  from x\n", "stderr"),
        ),
        code("x", {"output_type": "display_data", "data": {"text/html": table + "</td></tr></table></div>"}}),
        code("x", {"output_type": "display_data", "data": {"image/png": PIXEL, "text/plain": "<Figure>"}}),
        code("x", {"output_type": "error", "traceback": ["ValueError: bad <value>"], "ename": "", "evalue": ""}),
        code("x" * 400),
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    write_notebook_page(tmp_path / "n.ipynb", tmp_path / "n.html", "A note.")
    return tmp_path / "n.html"


def test_every_kind_of_output_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<title>A title &amp; more</title>" in text and "A note." in text and "<script" not in text
    assert "<summary>2 folded lines of code</summary>" in text and text.count("<details>") == 1
    assert "100 %\n&lt;red&gt;</pre>" in text and "20 %" not in text and "\x1b" not in text
    assert "TqdmWarning" not in text and "ValueError: bad &lt;value&gt;" in text
    assert '<table class="dataframe"><tr><td>7' in text and "<style scoped>" not in text
    assert f"data:image/png;base64,{PIXEL}" in text and "&lt;Figure&gt;" not in text
    assert '<span class="c1"># a comment</span>' in text, "code is coloured"


def test_nothing_of_this_machine_is_on_it() -> None:
    said = f"{sys.prefix}/bin/python {Path.home()}/x {tempfile.gettempdir()}/kit-ab12/w.whl {Path.cwd()}/README.md"
    cleaned = without_machine(f"{said} /opt/v/lib/python3.12/site-packages/torch/x.py /kaggle/input/a.jpg")
    assert "site-packages/torch/x.py /kaggle/input/a.jpg" in cleaned
    for path in (sys.prefix, str(Path.cwd()), "/opt/v", f"{tempfile.gettempdir()}/kit"):
        assert path not in cleaned


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    shown = text_html("\n".join(f"line {k}" for k in range(500)), "stdout").splitlines()
    assert len(shown) == executed_page.MOST_LINES + 1
    assert "line 0" in shown[0] and "line 499" in shown[-1] and "… 420 lines are left out here …" in shown


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (420, "dark")])
def test_no_window_has_to_be_scrolled_sideways(page: Path, tmp_path: Path, width: int, scheme: str) -> None:
    browser = chrome.open_chromium(tmp_path / "profile")
    try:
        chrome.show(browser, page, scheme=scheme, size=(width, 900))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        lightness = sum(int(part) for part in background.strip("rgb()").split(",")[:3]) / 3
        assert (lightness > 200) == (scheme == "light")
        assert browser.execute_script(chrome.FETCHED) == []
    finally:
        browser.quit()


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_every_notebook_has_its_executed_page(kernel: str) -> None:
    """Made by make kernels-html; the pictures in it are of the sample."""
    page = ROOT / "kernels" / kernel / "executed.html"
    assert page.stat().st_size < 1_500_000
    text = re.sub(r"data:image/[^\"]+", "", page.read_text(encoding="utf-8"))
    pictures = 0 if kernel == "gpu-check" else 50_000  # it shows a table
    assert len(page.read_text(encoding="utf-8")) - len(text) >= pictures
    assert not re.search(r"(?<!kaggle)/(tmp|root|home|work)/|<script|https?://(?!www\.kaggle\.com/)", text)
    assert "is left out:" not in text and "Traceback (most" not in text
