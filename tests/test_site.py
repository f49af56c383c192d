"""The documentation site in a browser: nothing is cut, no name is broken, and mathematics is set
with the font that the site brings along."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.pages.browser import Browser, find

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = {"desktop": 1280, "phone": 390}

# What is beyond the right edge of its box, or of the page. Only tables with nine columns or more
# scroll; their first column, with the corner heading, stays in sight.
CUT = """(() => {
  const found = [], width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) found.push("the page");
  const boxes = "article :is(pre > code, math[display=block], .md-typeset__scrollwrap)";
  for (const box of document.querySelectorAll(boxes))
    if (box.querySelector("th:nth-child(9)")) {
      box.scrollLeft = box.scrollWidth;
      const corner = box.querySelector("th"), left = corner.getBoundingClientRect().left;
      if (!corner.offsetWidth || left < box.getBoundingClientRect().left - 1)
        found.push("the corner of " + box.innerText.trim().slice(0, 90));
    } else if (box.scrollWidth > box.clientWidth + 1) found.push(box.innerText.trim().slice(0, 90));
  for (const item of document.querySelectorAll("article :is(math, img, h1, h2, h3)"))
    if (item.getBoundingClientRect().right > width + 1) found.push(item.outerHTML.slice(0, 90));
  return found;
})()"""

# Names in code, with hyphens too, that go over a line's end.
BROKEN = r"""(() => {
  const found = [], range = document.createRange();
  const lines = (node, word) => {
    range.setStart(node, word.index);
    range.setEnd(node, word.index + word[0].length);
    const rectangles = [...range.getClientRects()].filter(r => r.width > 0);
    return new Set(rectangles.map(r => Math.round(r.top))).size;
  };
  const texts = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  for (let node; (node = texts.nextNode()); )
    if (node.parentElement.closest("code"))
      for (const word of node.data.matchAll(/[\w-]+/g))
        if (lines(node, word) > 1) found.push(word[0] + " in " + node.data.slice(0, 60));
  return found;
})()"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("mkdocs", "material", "mkdocstrings", "l2m4m"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: make docs does it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, check=True, env=environment)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find()
    if executable is None:
        pytest.skip("no Chromium is installed")
    with Browser(executable) as opened:
        yield opened


def pages(site: Path) -> list[Path]:
    found = sorted(p for p in site.rglob("*.html") if p.name != "404.html")
    assert len(found) > 20
    return found


@pytest.mark.parametrize("screen", WIDTHS)
def test_nothing_is_cut_and_no_name_is_broken(site: Path, browser: Browser, screen: str) -> None:
    wrong = []
    for page in pages(site):
        browser.open(page, WIDTHS[screen], 900)
        name = page.relative_to(site)
        wrong += [f"{name} cuts: {what}" for what in browser.evaluate(CUT)]
        wrong += [f"{name} breaks: {what}" for what in browser.evaluate(BROKEN)]
    assert not wrong, "\n".join(wrong)


def test_mathematics_has_the_sites_own_font_and_its_indices_are_placed(
    site: Path, browser: Browser
) -> None:
    browser.open(site / "method.html", 1280, 900)
    fonts = "[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family)"
    browser.wait("document.fonts.status === 'loaded'")
    assert any("Noto Sans Math" in family for family in browser.evaluate(fonts))
    # A subscript hangs below its base, a superscript rises above it and begins below its top.
    places = browser.evaluate(
        "[...document.querySelectorAll('article msub, article msup')].map(m => {"
        "const [base, index] = [...m.children].map(c => c.getBoundingClientRect());"
        "return [m.tagName, base.top, base.bottom, index.top, index.bottom] })"
    )
    assert len(places) > 10
    for tag, top, bottom, index_top, index_bottom in places:
        assert index_top < bottom, "an index stands apart from its base"
        if tag == "msub":
            assert index_bottom > bottom - 1, "a subscript stands on the line"
        else:
            assert index_top < top + 1, "a superscript does not rise"
            assert index_bottom > top, "a superscript floats"


def test_dark_pages_are_dark_and_nothing_is_asked_of_the_network(
    site: Path, browser: Browser
) -> None:
    colours = []
    for scheme in ("light", "dark"):
        browser.open(site / "method.html", 390, 844, scheme=scheme)
        browser.evaluate("localStorage.clear()")  # what the theme remembers of the page before
        browser.open(site / "method.html", 390, 844, scheme=scheme)
        wanted = {"light": "default", "dark": "slate"}[scheme]
        browser.wait(f"document.body.dataset.mdColorScheme === '{wanted}'")
        colours.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    assert [e for e in browser.errors if "asks for" in e] == []
