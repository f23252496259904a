"""Pictures of the live page for the documentation: ``python -m tests.docs.pictures URL`` beside a running loop.

``docs/live-page.png`` is as wide as a screen (1280), ``docs/live-page-phone.png`` as a phone (390)."""

from __future__ import annotations

import base64
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.architecture import ROOT
from tests.scenes.browser import browser

PICTURES = {"live-page.png": (1280, 2400), "live-page-phone.png": (390, 1500)}
"""Width, and height at most."""
COLOURS = 64


def take(url: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, browser(Path(scratch)) as tab:
        tab.go(url)
        tab.until("document.getElementById('t-version').innerText !== '–'")
        tab.evaluate("document.getElementById('user').value = '7'")
        tab.evaluate("document.getElementById('explain').requestSubmit()")
        tab.until("document.getElementById('explained').innerText !== ''")
        tab.call("Emulation.setScrollbarsHidden", hidden=True)
        for name, (width, most) in PICTURES.items():
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            tab.call("Emulation.setDeviceMetricsOverride", **size)
            tab.evaluate("new Promise((done) => setTimeout(done, 1500))")  # the charts follow at the next look
            shot = tab.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
            picture = Image.open(BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
            cut = picture.crop((0, 0, picture.width, min(most, picture.height)))
            cut.quantize(COLOURS).save(folder / name, optimize=True)


if __name__ == "__main__":
    take(sys.argv[1], ROOT / "docs")
