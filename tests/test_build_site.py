"""The documentation as a site: nothing is lost on the way, and a browser without a network shows it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import required
from browser import Watched
from documents import DOCUMENTS, blocks

import build_site
from pygpt.errors import UserError


@pytest.fixture(scope="module")
def tools() -> None:
    required.module("zensical", "browser")
    if not shutil.which("npm"):
        required.skip("browser", "needs npm")


@pytest.fixture(scope="module")
def site(tools: None) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["build_site.py"])
        build_site.main()
    return build_site.SITE


def test_documents_are_whole(site: Path) -> None:
    for path in DOCUMENTS:
        page = (site / build_site.place(path)).with_suffix(".html")
        if path.name == "README.md":
            page = page.with_name("index.html")
        html = page.read_text(encoding="utf-8")
        assert len(blocks(path)) == html.count("<pre>"), path
        prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        assert len(re.findall(r"\$\$[^$]+\$\$|\$[^$]+\$", prose)) == html.count('<span class="katex">'), path
        assert len(re.findall(r"^[-*] |^\d+\. ", prose, re.MULTILINE)) == html.count("<li>"), path
        assert len(re.findall(r"^\|(?: *:?-+:? *\|)+$", prose, re.MULTILINE)) == html.count("<table>"), path
    assert '<ol start="2">' in (site / "layers" / "attention.html").read_text(encoding="utf-8")  # after a formula


def test_links_to_code_show_it(site: Path) -> None:
    assert 'href="../source/csrc/layers/gelu.c.html"' in (site / "layers" / "gelu.html").read_text(encoding="utf-8")
    page = (site / "source" / "csrc" / "layers" / "gelu.c.html").read_text(encoding="utf-8")
    assert "0.7978845608028654f" in page
    folder = (site / "source" / "pygpt" / "text.html").read_text(encoding="utf-8")
    assert 'href="text/batches.py.html"' in folder


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize(
    "page", ["index.html", "layers/attention.html", "notes/model.html", "notes/papers.html", "source/csrc/gpt2.c.html"]
)
def test_pages_in_a_browser(chromium: Any, site: Path, page: str, width: int) -> None:
    with Watched(chromium, (site / page).as_uri(), width) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert shown.evaluate("[...document.images].every(i => i.complete && i.naturalWidth)")
        assert shown.evaluate("document.fonts.ready.then(fonts => [...fonts].every(f => f.status != 'error'))")


def test_search_in_a_browser(chromium: Any, site: Path) -> None:
    with Watched(chromium, (site / "index.html").as_uri()) as shown:
        shown.keyboard.press("Control+k")
        shown.keyboard.type("log-sum-exp")
        found = shown.locator("a", has_text="Numerical remarks").first
        assert re.search(r"layers/\w+\.html.*#numerical-remarks$", found.get_attribute("href"))


# ---- what is wrong ----


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of another checkout, with one page."""
    monkeypatch.setattr("sys.argv", ["build_site.py"])
    for name in ("DOCS", "WORK", "PAGES", "SITE", "ROOT"):
        there = tmp_path / getattr(build_site, name).relative_to(build_site.ROOT)
        monkeypatch.setattr(build_site, name, there)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").write_text("# Way\n\n## 1. Part\n\n[Page](page.md)\n")
    return tmp_path / "docs"


@pytest.mark.parametrize(
    ("text", "sentence", "message"),
    [
        ("[a](b.md)", r"page\.md: a link leads to b\.md, which does not exist", ""),
        ("[a](../c.c)", r"page\.md: a link leads to \.\./c\.c, which does not exist", ""),
        ("[a](README.md#2-part)", "-m zensical .* failed: its messages are above", "anchor does not exist"),
        (r"$\nothing$", "formulas.js` failed: its messages are above", r"Undefined control sequence: \nothing"),
    ],
)
def test_what_is_wrong_is_an_error(
    docs: Path, tools: None, text: str, sentence: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (docs / "page.md").write_text(f"# Page\n\n{text}\n")
    with pytest.raises(UserError, match=sentence):
        build_site.main()
    assert message in capfd.readouterr().err


def test_a_page_without_a_place_is_an_error(docs: Path) -> None:
    way = (docs / "README.md").read_text()
    (docs / "page.md").write_text("# Page\n")
    assert build_site.navigation(way) == ["README.md", {"Part": ["page.md"]}]
    (docs / "other.md").write_text("# Other\n")
    with pytest.raises(UserError, match=r"docs/README\.md does not name other\.md"):
        build_site.navigation(way)
