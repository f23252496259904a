"""Pictures of the live page, of a demo that this starts: ``python -m tests.docs.pictures [FOLDER]``, in three minutes.

``live-page.gif`` is the click rate of its first two minutes, ``live-page.png`` what a screen shows after them,
``live-page-phone.png`` the beginning on a phone. Nothing here knows more of the page than that it says "click rate"."""

from __future__ import annotations

import base64
import signal
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.architecture import ROOT
from tests.scenes.browser import Browser, browser
from tests.scenes.demo_process import demo_process

PICTURES = {"live-page.png": (1280, 800), "live-page-phone.png": (390, 1500)}
"""Width and height."""
MOVING, FRAME = "live-page.gif", (960, 600)
"""As wide as a README shows it: letters stay readable."""
FRAMES, EVERY_SECONDS, SHOWN_MS, LAST_MS = 40, 3.0, 150, 3000
COLOURS = 128
MOST_BYTES = 1_500_000
INTO_VIEW = """[...document.querySelectorAll('h1, h2, h3, figcaption')].filter((one) => one.offsetParent)
  .filter((one) => /click rate/i.test(one.innerText)).slice(-1)
  .forEach((one) => (one.closest('section, figure, article') ?? one).scrollIntoView({block: 'nearest'}))"""
"""Moves nothing where the chart is in view. The last such heading is the chart's: figures stand above charts."""


def shot(tab: Browser) -> Image.Image:
    taken = tab.call("Page.captureScreenshot", format="png")
    return Image.open(BytesIO(base64.b64decode(taken["data"]))).convert("RGB")


def resize(tab: Browser, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    tab.call("Emulation.setDeviceMetricsOverride", **size)


def film(tab: Browser) -> list[Image.Image]:
    """What the page shows every three seconds."""
    frames, start = list[Image.Image](), time.monotonic()
    for n in range(FRAMES):
        time.sleep(max(0.0, start + n * EVERY_SECONDS - time.monotonic()))
        tab.evaluate(INTO_VIEW)
        frames.append(shot(tab))
    return frames


def save_film(frames: list[Image.Image], path: Path) -> None:
    """One palette for all, that of the last with its rare colours, and no dither: what stays equal from
    frame to frame costs nothing."""
    palette = frames[-1].quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    first, *others = (one.quantize(palette=palette, dither=Image.Dither.NONE) for one in frames)
    shown_ms = [SHOWN_MS] * (len(frames) - 1) + [LAST_MS]
    first.save(path, save_all=True, append_images=others, duration=shown_ms, loop=0, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size:,} bytes: take fewer FRAMES or COLOURS")


def take(folder: Path) -> None:
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        demo_process(Path(scratch), "--page-port", "0") as demo,
        browser(Path(scratch)) as tab,
    ):
        demo.until(lambda: demo.state()["phase"] == "running", "shoppers come")
        tab.call("Emulation.setScrollbarsHidden", hidden=True)
        resize(tab, *FRAME)
        tab.go(demo.url)
        save_film(film(tab), folder / MOVING)
        tab.evaluate("scrollTo(0, 0)")
        for name, (width, height) in PICTURES.items():
            resize(tab, width, height)

            tab.evaluate("new Promise((done) => setTimeout(done, 1500))")  # the charts follow at the next look
            shot(tab).quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(folder / name, optimize=True)
        demo.end(signal.SIGINT)


if __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
