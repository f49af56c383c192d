"""The table of settings in `docs/frameworks.md` names every setting, and says what is refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from salt_losses.integrations._refuse import OFFERS, check_blocks, check_settings

from salt_losses import SaltConfig
from salt_losses.errors import SettingError
from salt_losses.terms import Adversarial, Alignment, SelfConsistency

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


@pytest.mark.parametrize("name", OTHER)
def test_what_the_table_calls_refused_is_and_nothing_else(name):
    """If classes differ the table says so: those with chunks and those without."""
    config, cell = SaltConfig(**{name: OTHER[name]}), rows()[name][0]
    refused = {}
    for chunked in (True, False):
        try:
            check_settings(config, OFFERS, "a framework", chunked=chunked)
            refused[chunked] = False
        except SettingError:
            refused[chunked] = True
    assert refused[True] == cell.startswith("refused")
    assert refused[False] == ("refused" in cell)


def test_blocks_that_are_not_there_are_refused():
    config = SaltConfig(align=Alignment(block=3))
    check_blocks(config, {"fake_score": 4, "real_score": None})
    with pytest.raises(SettingError, match="index into the 3 blocks of fake_score; got 3"):
        check_blocks(config, {"fake_score": 3, "real_score": 3})
    with pytest.raises(SettingError, match="align must be null if the fake_score has no"):
        check_blocks(config, {"fake_score": None, "real_score": 3})
