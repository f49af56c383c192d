"""The table of settings in `docs/frameworks.md` names every setting, and says what is refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from salt_losses import SaltConfig
from salt_losses.terms import Adversarial, Alignment, SelfConsistency
from salt_losses.trainers import TRAINERS, Facts

DOCS = Path(__file__).parents[2] / "docs" / "frameworks.md"
OTHER: dict[str, Any] = {
    "first_chunk_steps": 8,
    "align": Alignment(to="input"),
    "adv": Adversarial(),
    "shift": 5.0,
    "seed": 3,
}


def rows() -> dict[str, list[str]]:
    section = DOCS.read_text().split("## Every setting")[1].split("## ")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`([\w.]+)`", cells[0]) if line.startswith("| `") else ():
            assert name not in found, f"{name} has two rows"
            found[name] = cells[1:]
    return found


def test_every_setting_has_a_row_and_every_row_a_setting():
    names = {field.name for field in dataclasses.fields(SaltConfig)} - {"sc"}
    of_sc = {f"sc.{field.name}" for field in dataclasses.fields(SelfConsistency)}
    assert rows().keys() == names | of_sc


# Of each column of the table: the class with chunks, and the one without.
COLUMNS = (("fastvideo", "fastvideo_dmd2"), ("fastgen", "fastgen_dmd2"), ("model_optimizer",) * 2)


@pytest.mark.parametrize("name", OTHER)
def test_what_the_table_calls_refused_is_and_nothing_else(name):
    """If classes differ the table says so: those with chunks and those without."""
    config = SaltConfig(**{name: OTHER[name]})
    for (chunked, whole), cell in zip(COLUMNS, rows()[name]):
        for trainer, refused in ((chunked, cell.startswith("refused")), (whole, "refused" in cell)):
            problems = TRAINERS[trainer].problems(config, Facts())
            settings = {problem.setting.partition(".")[0] for problem in problems}
            assert settings == ({name} if refused else set()), trainer


def test_blocks_that_are_not_there_are_refused():
    config, trainer = SaltConfig(align=Alignment(block=3)), TRAINERS["fastvideo"]

    def refused(**blocks):
        return [str(p.sentence) for p in trainer.problems(config, Facts(blocks=blocks))]

    assert refused(fake_score=4) == refused(real_score=3) == []
    (sentence,) = refused(fake_score=3, real_score=3)
    assert "index into the 3 blocks of fake_score; got 3" in sentence
    (sentence,) = refused(fake_score=0, real_score=3)
    assert "align must be null where the fake_score has no" in sentence
