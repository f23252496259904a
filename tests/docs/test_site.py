"""The documentation as a site: built strictly, whole, in the order of its first page."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import ROOT

QUIET = os.environ | {"NO_MKDOCS_2_WARNING": "1"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=QUIET, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_is_there_and_found_by_search(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    found = {
        entry["location"].partition("#")[0]
        for entry in json.loads(site.joinpath("search/search_index.json").read_text())["docs"]
    }
    assert {page.removesuffix("README.md").removesuffix(".md") + "/" for page in pages - {"README.md"}} <= found
    assert {"", "pages/", "CHANGELOG/", "changes/0.2.0/", "SECURITY/", "client/", "examples/shop-app/"} <= found


def test_every_notebook_is_a_page_with_its_texts_and_code_in_the_menu(site: Path) -> None:
    menu = site.joinpath("index.html").read_text()
    notebooks = sorted((ROOT / "docs").rglob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        place = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        page = html.unescape(re.sub(r"<[^>]+>", "", site.joinpath(place, "index.html").read_text()))
        for cell in json.loads(path.read_text())["cells"]:
            lines = "".join(cell["source"]).splitlines()
            last = re.sub(r"\]\([^)]+\)|[`\[#]", "", lines[-1]).strip()
            assert last in re.sub(r"[`\[]", "", page) if cell["cell_type"] == "markdown" else lines[-1] in page, place
        assert f'href="{place}/"' in menu
        assert not site.joinpath(f"{place}.ipynb").exists()


def test_its_home_is_the_readme_with_the_moving_picture(site: Path) -> None:
    home = site.joinpath("index.html").read_text()
    assert "make -C millrace demo" in re.sub(r"<[^>]+>", "", home)
    (picture,) = re.findall(r'<img[^>]+src="([^"]+\.gif)"', home)
    assert (site / picture).read_bytes().startswith(b"GIF89a")
    assert 'href="concepts/the-loop/"' in home
    assert 'href="pages/"' in home


def test_no_page_leaves_the_site_for_a_file_of_the_repository(site: Path) -> None:
    """A link that was not made one of the site's would end nowhere."""
    for page in site.rglob("index.html"):
        for href in re.findall(r'href="([^"#]+)"', page.read_text()):
            if not href.startswith(("http", "/", "mailto:")) and not href.endswith("schemas"):
                target = (page.parent / href).resolve()
                assert target.exists(), f"{page.relative_to(site)}: {href}"


def test_versions_stand_beside_each_other_and_the_newest_has_a_name(tmp_path: Path) -> None:
    env = QUIET | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    env |= {f"GIT_{who}_{what}": "x@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout

    run("git", "init", "-q", ".")
    run("git", "commit", "-q", "--allow-empty", "-m", "begin")
    for version in ("0.1", "0.2"):
        run("mike", "-q", "deploy", "-u", "-F", str(ROOT / "mkdocs.yml"), version, "latest")
    known = json.loads(run("git", "show", "gh-pages:versions.json"))
    assert [(one["version"], one["aliases"]) for one in known] == [("0.2", ["latest"]), ("0.1", [])]
    for version in ("0.1", "0.2"):
        assert "Millrace" in run("git", "show", f"gh-pages:{version}/index.html")


def test_every_block_of_code_is_drawn_as_one(site: Path) -> None:
    """Also where its fence says more than the language, for the tests that run it."""
    assert not [page for page in site.rglob("*.html") if "```" in page.read_text()]


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"')
    assert not [url for page in site.rglob("*.html") for url in loaded.findall(page.read_text())]
