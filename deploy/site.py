# shell
"""Hooks of the documentation's site (``mkdocs.yml``).

Its home is the project's README, its order that of ``docs/README.md``; pages outside ``docs/`` that others link to are
part of it. A notebook is a page of its texts and code; it holds no outputs."""

from __future__ import annotations

import json
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

_SECTION, _PAGE = re.compile(r"^## (.+?)(?::.*)?$", re.MULTILINE), re.compile(r"\[([^\]]+)\]\(([^)]+\.(?:md|ipynb))\)")
_FENCE = re.compile(r"^(```bash) .*$", re.MULTILINE)  # what follows is for tests/docs/walk.py
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def on_config(config: Any, **_: Any) -> None:
    """The sections of the first page, with the pages that each lists."""
    _, *parts = _SECTION.split((ROOT / "docs" / "README.md").read_text())
    listed = zip(parts[::2], parts[1::2], strict=True)
    sections = [{name: [{title: page_of(path)} for title, path in _PAGE.findall(text)]} for name, text in listed]
    config.nav = [{"Millrace": HOME}, {"All pages": ALL}, *sections, {"Examples": EXAMPLES}, {"Project": PROJECT}]


def on_files(files: Files, config: Any, **_: Any) -> None:
    """Adds the pages outside."""
    files.remove(files.src_uris["README.md"])  # the list of all pages: it would be the home
    for path in (*PLACES, *PROJECT, *EXAMPLES):
        files.append(File.generated(config, PLACES.get(path, path), abs_src_path=str(ROOT / path)))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(notebook)
        cells = json.loads(notebook.content_string)["cells"]
        files.append(File.generated(config, page_of(notebook.src_uri), content="\n\n".join(map(text_of, cells))))


def page_of(path: str) -> str:
    """The page that a path is on the site: a notebook's is Markdown."""
    return path.removesuffix(".ipynb") + ".md" if path.endswith(".ipynb") else path


def text_of(cell: dict[str, Any]) -> str:
    """Markdown of a notebook's cell."""
    source = "".join(cell["source"])
    return f"```python\n{source}\n```" if cell["cell_type"] == "code" else source


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Links between files of the repository become links between pages of the site."""
    here = os.path.dirname(page.file.src_uri)
    source = Path(page.file.abs_src_path).parent if page.file.abs_src_path else ROOT / "docs" / here

    def of_site(link: re.Match[str]) -> str:
        path = os.path.relpath(source / link[2], ROOT)
        target = PLACES.get(path, page_of(path.removeprefix("docs/")))
        known = files.get_file_from_path(target) is not None
        return link[1] + (os.path.relpath(target, here or ".") if known else link[2]) + link[3]

    return _FENCE.sub(r"\1", _LINK.sub(of_site, markdown))
