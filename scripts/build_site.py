"""Build the documentation as a site, build/documentation/site, which is read without a network and without a server.

    pip install '.[docs]'      # and npm, which brings KaTeX
    python scripts/build_site.py

The documents stay as GitHub shows them.  Copies of them, and pages that show the code they link to, are put into one
folder; Zensical makes the site, in the order of docs/README.md, and KaTeX typesets the formulas.  A link that leads
nowhere, or a formula that is wrong, is an error.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from os.path import relpath
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever is installed

from pygpt.command.cli import run
from pygpt.command.flags import Parser
from pygpt.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SETTINGS = ROOT / "scripts" / "documentation"
WORK = ROOT / "build" / "documentation"
PAGES, SITE = WORK / "pages", WORK / "site"
PACKAGES = ("katex@0.19.1", "iframe-worker@1.0.4")


def main() -> None:
    Parser(prog="build_site.py", description=__doc__.split("\n")[0]).parse()
    if importlib.util.find_spec("zensical") is None:
        raise UserError("Zensical, which makes the site, is not installed: pip install '.[docs]'")
    for folder in (PAGES, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    write_pages()
    vendor()
    way = navigation((DOCS / "README.md").read_text(encoding="utf-8"))
    settings = (SETTINGS / "zensical.toml").read_text(encoding="utf-8")
    (WORK / "zensical.toml").write_text(
        settings.replace("[project]", f"[project]\nnav = {toml(way)}", 1), encoding="utf-8"
    )
    call(sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", "zensical.toml")
    typeset()
    print(SITE / "index.html")


def call(*command: str, text: str | None = None) -> str:
    """What a program, run in WORK with this text as its input, prints.  Raises UserError where it fails."""
    if not shutil.which(command[0]):
        raise UserError(f"{command[0]} was not found: install Node.js, of which it is a part")
    done = subprocess.run(command, cwd=WORK, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr.partition("Traceback")[0], file=sys.stderr)
        raise UserError(f"`{' '.join(command)}` failed: its messages are above")
    return done.stdout


# ---- navigation ----


def navigation(way: str) -> list[Any]:
    """The sections of docs/README.md, each with the pages that it is the first to name.

    Raises UserError where a document is in none.
    """
    pages: list[Any] = ["README.md"]
    found = set(pages)
    parts = re.split(r"^## (?:\d+\. )?(.*)\n", way, flags=re.MULTILINE)[1:]
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        new = dict.fromkeys(re.findall(r"\]\(([\w/-]+\.md)", text))
        pages.append({title: [page for page in new if page not in found]})
        found.update(new)
    if lost := {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - found:
        raise UserError(f"docs/README.md does not name {', '.join(sorted(lost))}: it gives the order of all pages")
    return pages


def toml(value: Any) -> str:
    """Text, lists and tables on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml(key)} = {toml(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


# ---- pages ----

LINK = re.compile(r"^```.*?^```|(?<=\]\()(?!https?:|#)([^)\s#]+)", re.MULTILINE | re.DOTALL)
"""The target of a link within the checkout; or a block of code, which has none."""


def write_pages() -> None:
    """The documents, and a page for all code that can be reached from them."""
    reached = sorted(DOCS.rglob("*.md"))
    for path in reached:  # which grows
        reached += [target for target in dict.fromkeys(targets(path)) if target not in reached]
    for path in reached:
        file = PAGES / place(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".svg"):
            shutil.copy(path, file)
        else:
            file.write_text(document(path) if path.suffix == ".md" else listing(path), encoding="utf-8")


def targets(path: Path) -> Iterator[Path]:
    """What the page of a document or a folder links to."""
    if path.is_dir():
        yield from sorted(entry for entry in path.iterdir() if entry.name != "__pycache__")
    elif path.suffix == ".md":
        names = filter(None, LINK.findall(path.read_text(encoding="utf-8")))
        yield from filter(Path.exists, ((path.parent / name).resolve() for name in names))


def place(path: Path) -> str:
    """Where a file or folder of the checkout is in PAGES: code, and what is outside docs/, in source/."""
    if path.is_relative_to(DOCS) and path.suffix in (".md", ".png", ".svg"):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return f"source/{name}" if path.suffix == ".md" else f"source/{name}.md"


def link(source: Path, target: Path) -> str:
    """From the page of one to the page of the other."""
    return relpath(place(target), Path(place(source)).parent)


def document(path: Path) -> str:
    """Its text, with links to pages."""

    def linked(match: re.Match[str]) -> str:
        if match[1] is None:
            return re.sub(r"^(```\w+) .*", r"\1", match[0])  # the other words are for the tests
        target = (path.parent / match[1]).resolve()
        if not target.exists():
            raise UserError(f"{path}: a link leads to {match[1]}, which does not exist")
        return link(path, target)

    return LINK.sub(linked, path.read_text(encoding="utf-8"))


def listing(path: Path) -> str:
    """The text of the page of a folder or of code."""
    title = path.relative_to(ROOT).as_posix()
    head = f"---\ntitle: {title}\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# `{title}`\n\n"
    if path.is_dir():
        return head + "".join(f"- [`{entry.name}`]({link(path, entry)})\n" for entry in targets(path))
    from pygments.lexers import find_lexer_class_for_filename  # of Zensical's

    text = path.read_text(encoding="utf-8")
    lexer = find_lexer_class_for_filename(path.name)
    fence = "`" * (1 + max(map(len, re.findall("```+", text)), default=2))
    return f'{head}{fence}{lexer.aliases[0] if lexer else "text"} linenums="1"\n{text}\n{fence}\n'


def vendor() -> None:
    """What the pages would otherwise ask the network for."""
    call("npm", "install", "--silent", "--prefer-offline", "--prefix", ".", *PACKAGES)
    katex, worker = WORK / "node_modules" / "katex" / "dist", WORK / "node_modules" / "iframe-worker" / "shim"
    (PAGES / "vendored" / "fonts").mkdir(parents=True)
    for path in (katex / "katex.min.css", *katex.glob("fonts/*.woff2")):
        shutil.copy(path, PAGES / "vendored" / path.relative_to(katex))
    shutil.copy(worker / "index.js", PAGES / "vendored" / "iframe-worker.js")
    shutil.copy(SETTINGS / "site.css", PAGES / "vendored")


# ---- formulas ----

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def typeset() -> None:
    """In the site, whose index for the search has them as TeX."""
    pages = {page: page.read_text(encoding="utf-8") for page in SITE.rglob("*.html")}
    formulas = [(unescape(tex), kind == "div") for text in pages.values() for kind, tex in FORMULA.findall(text)]
    html = iter(json.loads(call("node", str(SETTINGS / "formulas.js"), text=json.dumps(formulas))))
    for page, text in pages.items():
        page.write_text(FORMULA.sub(lambda _: next(html), text), encoding="utf-8")


if __name__ == "__main__":
    run(main)
