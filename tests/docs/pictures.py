"""Pictures of the live page for the documentation: ``python -m tests.docs.pictures URL`` beside a running loop.

``docs/live-page.png`` is what a screen shows of it, ``docs/live-page-phone.png`` the beginning on a phone."""

from __future__ import annotations

import base64
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.architecture import ROOT
from tests.scenes.browser import browser

PICTURES = {"live-page.png": (1280, 800), "live-page-phone.png": (390, 1500)}
"""Width and height."""
COLOURS = 64


def take(url: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, browser(Path(scratch)) as tab:
        tab.go(url)
        tab.until("document.getElementById('t-version').innerText !== '–'")
        tab.call("Emulation.setScrollbarsHidden", hidden=True)
        for name, (width, height) in PICTURES.items():
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
            tab.call("Emulation.setDeviceMetricsOverride", **size)
            tab.evaluate("new Promise((done) => setTimeout(done, 1500))")  # the charts follow at the next look
            shot = tab.call("Page.captureScreenshot", format="png")
            picture = Image.open(BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
            picture.quantize(COLOURS).save(folder / name, optimize=True)


if __name__ == "__main__":
    take(sys.argv[1], ROOT / "docs")
