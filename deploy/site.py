# shell
"""Hooks of the documentation's site (``mkdocs.yml``).

Its home is the project's README, its order that of ``docs/README.md``; pages outside ``docs/`` that others link to are
part of it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
CHANGES = sorted((path.relative_to(ROOT).as_posix() for path in ROOT.glob("changes/*.md")), reverse=True)
PROJECT = ["CHANGELOG.md", *CHANGES, "CONTRIBUTING.md", "SECURITY.md", "client/README.md", "deploy/README.md"]
HOME, ALL = "index.md", "pages.md"
PLACES = {"README.md": HOME, "docs/README.md": ALL}
"""Pages that stand elsewhere on the site than in the repository: its home is the README."""
EXAMPLES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*/README.md"))

_SECTION, _PAGE = re.compile(r"^## (.+?)(?::.*)?$", re.MULTILINE), re.compile(r"\[([^\]]+)\]\(([^)]+\.md)\)")
_FENCE = re.compile(r"^(```bash) .*$", re.MULTILINE)  # what follows is for tests/docs/walk.py
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def on_config(config: Any, **_: Any) -> None:
    """The sections of the first page, with the pages that each lists."""
    _, *parts = _SECTION.split((ROOT / "docs" / "README.md").read_text())
    listed = zip(parts[::2], parts[1::2], strict=True)
    sections = [{name: [{title: path} for title, path in _PAGE.findall(text)]} for name, text in listed]
    config.nav = [{"Millrace": HOME}, {"All pages": ALL}, *sections, {"Examples": EXAMPLES}, {"Project": PROJECT}]


def on_files(files: Files, config: Any, **_: Any) -> None:
    """Adds the pages outside."""
    files.remove(files.src_uris["README.md"])  # the list of all pages: it would be the home
    for path in (*PLACES, *PROJECT, *EXAMPLES):
        files.append(File.generated(config, PLACES.get(path, path), abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Links between files of the repository become links between pages of the site."""
    source = Path(page.file.abs_src_path).parent
    here = os.path.dirname(page.file.src_uri)

    def of_site(link: re.Match[str]) -> str:
        path = os.path.relpath(source / link[2], ROOT)
        target = PLACES.get(path, path.removeprefix("docs/"))
        known = files.get_file_from_path(target) is not None
        return link[1] + (os.path.relpath(target, here or ".") if known else link[2]) + link[3]

    return _FENCE.sub(r"\1", _LINK.sub(of_site, markdown))
