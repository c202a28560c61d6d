"""Is a report readable on a desk and on a phone? Exit status 0 if nothing is wider than the page, else 1.

A frame of each width holds the page; a script of ours outside it measures what is inside. Chromium's window cannot
be as narrow as a phone. Pictures go to build/.
"""

import html
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WIDTHS = (1280, 400)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BUILD = Path("build")
TIMEOUT_S = 120

FRAME = """<!DOCTYPE html>
<body style="margin:0"><iframe width="{width}" height="{height}" style="border:0" srcdoc="{page}"></iframe>
<script id="measured" type="application/json"></script>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const wider = [...page.querySelectorAll("body *")].filter(one => one.getBoundingClientRect().right > {width} + 0.5);
  const pictures = [...page.images].filter(one => !one.naturalWidth);
  document.querySelector("#measured").textContent = JSON.stringify({{
    width: root.scrollWidth, height: root.scrollHeight, broken: pictures.map(one => one.alt),
    wider: wider.map(one => one.tagName + " " + one.textContent.trim().slice(0, 60)),
  }});
}};
</script>
"""


def main(arguments: list[str]) -> int:
    """Check the report that is named."""
    report = Path(arguments[0]) if arguments else BUILD / "bundles" / "current" / "report.html"
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None or not report.is_file():
        missing = f"none of {', '.join(BROWSERS)}; on Debian: apt-get install chromium" if browser is None else ""
        print(missing or f"there is no '{report}'; make fit writes it, REPORT= names another", file=sys.stderr)
        return 2
    page, problems = report.read_text(encoding="utf-8"), []
    for width in WIDTHS:
        found = measure(browser, page, width)
        picture = BUILD / f"report-{width}.png"
        photograph(browser, page, width, found["height"], picture)
        print(f"{width} pixels: {found['width']} x {found['height']}, {picture}")
        problems += [f"at {width} pixels wider than the page: {what}" for what in found["wider"]]
        problems += [f"no picture: {alt}" for alt in found["broken"]]
        if found["width"] > width:
            problems.append(f"at {width} pixels the page is {found['width']} wide")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def measure(browser: str, page: str, width: int) -> dict[str, Any]:
    """The page's `width` and `height` in a frame of that width, what is `wider` in it, and `broken` pictures."""
    dumped = _browse(browser, page, width, 1000, "--dump-dom", "--virtual-time-budget=10000")
    text = dumped.partition('<script id="measured" type="application/json">')[2].partition("</script>")[0]
    found: dict[str, Any] = json.loads(text)
    return found


def photograph(browser: str, page: str, width: int, height: int, picture: Path) -> None:
    """Write what the frame shows."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    _browse(browser, page, width, height, f"--screenshot={picture.resolve()}", f"--window-size={width},{height}")


def _browse(browser: str, page: str, width: int, height: int, *options: str) -> str:
    with tempfile.TemporaryDirectory(prefix="reconstream-browser-") as name:
        frame = Path(name) / "frame.html"
        frame.write_text(FRAME.format(page=html.escape(page), width=width, height=height), encoding="utf-8")
        # Chromium's sandbox does not start as root.
        more = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={name}/profile",
            *more,
        ]
        done = subprocess.run(
            [*command, *options, frame.as_uri()], capture_output=True, text=True, check=True, timeout=TIMEOUT_S
        )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
