"""A headless Chromium for the tests of pages: what it says in its console, and what it would fetch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
# Every resource the page has asked for that is not part of the page itself.
FETCHED = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
ALL_LOADED = """
const images = [...document.images];
for (const image of images) image.loading = 'eager';
await Promise.all(images.map(image => image.decode().catch(() => {})));
return images.filter(image => !(image.complete && image.naturalWidth > 0)).map(image => image.alt);
"""
# Tables and charts that are wider than their place, in pixels.
OVERFLOWING = """
return [...document.querySelectorAll('.scroll, figure, .charts, .photos, main, header')].map(
  box => [box.className || box.tagName, box.scrollWidth - box.clientWidth]).filter(([name, more]) => more > 1);
"""
SMALLEST_TEXT = """
const texts = [...document.querySelectorAll('figure.chart svg text')];
const scale = (m) => Math.hypot(m.a, m.b);
return Math.min(99, ...texts.map(text => parseFloat(getComputedStyle(text).fontSize) * scale(text.getScreenCTM())));
"""
# Ids that two elements have, and links to places that the page lacks.
BROKEN_ANCHORS = """
const ids = [...document.querySelectorAll('[id]')].map(e => e.id), twice = ids.filter((id, n) => ids.indexOf(id) !== n);
const lost = [...document.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute('href').slice(1));
return [...twice, ...lost.filter(id => !document.getElementById(id))];
"""
CHART_SIZES = """
return [...document.querySelectorAll('figure.chart svg')].map(svg => {
  const box = svg.getBoundingClientRect(); return [box.width, box.height, svg.querySelectorAll('path').length]; });
"""


def open_chromium(profile: Path, *, size: tuple[int, int] = (1200, 900)):
    """A session of headless Chromium; skips the test, with the reason, where it is not installed."""
    try:
        return start_chromium(profile, size=size)
    except (ImportError, FileNotFoundError) as error:
        pytest.skip(str(error))


def start_chromium(profile: Path, *, size: tuple[int, int] = (1200, 900)):
    """A session of headless Chromium; ImportError or FileNotFoundError where it is not installed."""
    from selenium import webdriver

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        raise FileNotFoundError("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def show(browser, page: Path, *, scheme: str = "light", size: tuple[int, int] = (1200, 900)) -> None:
    """Open a page in light or dark colours in a window of this size, as a phone would for a narrow one."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.resolve().as_uri())


def console_errors(browser) -> list[str]:
    """What the console has said since it was last asked, warnings and errors alone."""
    return [line["message"] for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]


def unloaded(browser) -> list[str]:
    """The descriptions of pictures that the browser could not show."""
    body = f"const done = arguments[0]; (async () => {{ {ALL_LOADED} }})().then(done, error => done([String(error)]));"
    return browser.execute_async_script(body)


def check_page(browser, page: Path, *, smallest: float = 8.5) -> None:
    """Whole on a desk, a tablet and a telephone: nothing fetched, nothing in the console, all shown, all in its place.

    `smallest`: pixels that letters in charts have at least on a telephone.
    """
    for scheme, width in (("light", 1400), ("light", 820), ("dark", 420)):
        show(browser, page, scheme=scheme, size=(width, 900))
        assert unloaded(browser) == []
        assert browser.execute_script(FETCHED) == []
        assert console_errors(browser) == []
        sizes = browser.execute_script(CHART_SIZES)
        assert all(w > 100 and h > 60 and paths > 3 for w, h, paths in sizes), sizes
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script(BROKEN_ANCHORS) == []
        wide = browser.execute_script(OVERFLOWING)
        assert wide == [], (width, wide)
    assert browser.execute_script(SMALLEST_TEXT) >= smallest


def screenshot(browser, out: Path, *, clip: tuple[int, int, int, int] | None = None) -> None:
    """The whole page as a PNG, however long, or its part `clip`: left, top, width and height in pixels."""
    import base64

    options = {"captureBeyondViewport": True, "format": "png"}
    if clip is not None:
        options["clip"] = {**dict(zip(("x", "y", "width", "height"), clip, strict=True)), "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", options)
    out.write_bytes(base64.b64decode(shot["data"]))
