"""What a release says of itself: one address, links that work on a package index, true badges."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import salt_losses

ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()
URL = re.findall(r'^Repository = "(.*)"$', PROJECT, re.MULTILINE)[0]
TEXTS = [
    ROOT / "README.md",
    ROOT / "CITATION.cff",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_projects_address_is_the_one_in_pyproject(path: Path) -> None:
    text = path.read_text()
    assert path.suffix != ".md" or URL not in text, "pages are read where the repository is"
    for line in text.splitlines():
        for address in re.findall(r"(?:git\+|git clone |repository-code: )(https?://\S+)", line):
            theirs = re.match(r"https://github\.com/[\w-]+/", address)  # a trainer's
            assert address.rstrip("'") == URL or (theirs and "git clone" in line)
        assert "pip install salt-losses" not in line, "there is no release on an index"
        assert not re.search(r"pip install ['\"]?salt-losses\[\w+\](?! @ git)", line)


def test_the_badges_say_what_pyproject_says() -> None:
    said = {
        "python": re.findall(r'^requires-python = "(.*)"$', PROJECT, re.MULTILINE)[0],
        "torch": re.findall(r'"torch(>=[\d.]+)"', PROJECT)[0],
        "license": re.findall(r'^license = "(.*)"$', PROJECT, re.MULTILINE)[0],
    }
    readme = (ROOT / "README.md").read_text()
    for name, value in said.items():
        text = (ROOT / "docs" / "figures" / "badges" / f"{name}.svg").read_text()
        assert f">{value.replace('>', '&gt;')}</text>" in text
        assert f"(docs/figures/badges/{name}.svg)" in readme


def test_the_citation_has_the_version_and_the_papers_number() -> None:
    readme = (ROOT / "README.md").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    bibtex = readme[readme.index("```bibtex") :]
    assert f"(version {salt_losses.__version__})" in readme
    number = re.findall(r"arXiv:(\d+\.\d+)", citation)[0]
    assert f"arXiv:{number}" in bibtex
    authors = re.findall(r"family-names: (\w+), given-names: (\w+)", citation.split("- type")[1])
    names = re.findall(r"author\s*= \{(.*?)\}", bibtex, re.DOTALL)[0].replace("\n", " ")
    assert [" ".join(name.split()) for name in names.split(" and ")] == [
        f"{family}, {given}" for family, given in authors
    ]


def test_a_package_index_shows_links_that_lead_somewhere() -> None:
    pytest.importorskip("hatch_fancy_pypi_readme", reason="what makes the links is not installed")
    text = subprocess.run(
        [sys.executable, "-m", "hatch_fancy_pypi_readme"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 20
    for link in links:
        assert link.startswith("https://")
        if link.startswith(f"{URL}/"):
            kind, _, place = link.removeprefix(f"{URL}/").split("/", 2)
            assert (ROOT / place.partition("#")[0]).exists()
            assert (kind == "raw") == place.endswith((".png", ".svg"))
