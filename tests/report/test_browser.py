"""The pages in a browser: nothing is wider than a screen or a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: Puts the elements that reach beyond the page in its place, but those in a box that scrolls.
SCRIPT = """<script>addEventListener("load", () => {
  const width = document.documentElement.clientWidth;
  const own = (one) => /auto|scroll|hidden/.test(getComputedStyle(one).overflowX);
  const scrolls = (one) => one && (own(one) || scrolls(one.parentElement));
  const beyond = [...document.querySelectorAll("body *")].filter((one) =>
    one.getBoundingClientRect().width && one.getBoundingClientRect().right > width + 1 && !scrolls(one.parentElement));
  const told = beyond.map((one) => `${one.tagName} ${one.className} ${one.textContent.trim().slice(0, 40)}`);
  parent.postMessage(JSON.stringify([width, document.documentElement.scrollWidth, told]), "*");
});</script>"""
#: Shows the page as on a screen of this width, which a browser's own window may not be as narrow as.
FRAME = """<script>addEventListener("message", (one) => { document.body.innerText = one.data; });</script>
<iframe src="page.html" scrolling="no" style="width: WIDTHpx; height: 900px; border: 0"></iframe>"""


def beyond(page: Path, width: int, folder: Path) -> list[str]:
    """The elements of a page that reach beyond a window of so many pixels.

    AssertionError: the page as a whole does, or the browser shows nothing.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        warnings.warn(f"none of {', '.join(BROWSERS)} is here: the width of pages is not checked", stacklevel=2)
        return []
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    (folder / "page.html").write_text(text.replace("</head>", f"{SCRIPT}</head>"))
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    line = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    line += ["--virtual-time-budget=10000", "--window-size=1400,1000", "--dump-dom", (folder / "frame.html").as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    found = re.search(r"<body>(\[.*\])</body>", done.stdout, re.DOTALL)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    shown, scrolled, told = json.loads(html.unescape(found[1]))
    assert shown == width and scrolled <= width, (shown, scrolled, told)
    return told


@pytest.mark.parametrize("width", [1300, 400])
def test_nothing_of_a_report_is_wider_than_the_window(width: int, finished: Path, tmp_path: Path) -> None:
    assert beyond(finished / "report.html", width, tmp_path) == []


def test_a_page_that_is_too_wide_is_found(tmp_path: Path) -> None:
    if not any(map(shutil.which, BROWSERS)):
        return
    (tmp_path / "wide.html").write_text("<head></head><body><p style='width: 900px'>Too wide</p></body>")
    with pytest.raises(AssertionError, match="Too wide"):
        beyond(tmp_path / "wide.html", 400, tmp_path)
