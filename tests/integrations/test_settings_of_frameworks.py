"""The table of settings in `docs/frameworks.md` names every setting, and says what is refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from salt_losses import SaltConfig
from salt_losses.integrations._salt import check_supported

DOCS = Path(__file__).parents[2] / "docs" / "frameworks.md"
OTHER = {
    "first_chunk_steps": 8, "adv": {"weight": 1.0, "against": "more_steps", "kind": "hinge", "step_counts": (2,), "features": "real_score", "blocks": (1,), "lr": 1.0, "noise_range": (0.0, 1.0), "warmup": 1}, "adv_penalty": 1.0, "adv_sigma": 1.0, "adv_updates": 2, "sweep_every": 1, "sweep_prompts": ("a",), "shift": 5.0, "align": {"weight": 1.0}
}  # fmt: skip


def rows() -> dict[str, list[str]]:
    section = DOCS.read_text().split("## Every setting")[1].split("## ")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`(\w+)`", cells[0]) if line.startswith("| `") else ():
            assert name not in found, f"{name} has two rows"
            found[name] = cells[1:]
    return found


def test_every_setting_has_a_row_and_every_row_a_setting():
    assert rows().keys() == {field.name for field in dataclasses.fields(SaltConfig)}


@pytest.mark.parametrize("name", OTHER)
def test_what_the_table_calls_refused_is_and_nothing_else(name):
    """Where classes differ the table says so: those with chunks and those without."""
    cells = rows()[name]
    config = SaltConfig(**{name: OTHER[name]})
    refused = set()
    for where, chunks, without in (
        ("with chunks", True, ()),
        ("without", False, ()),
        ("Model-Optimizer", False, ("align_weight", "shift")),
    ):
        try:
            check_supported(config, where, chunks=chunks, without=without)
        except ValueError:
            refused.add(where)
    assert ("with chunks" in refused) == cells[0].startswith("refused")
    assert ("Model-Optimizer" in refused) == cells[2].startswith("refused")
    if name != "align_weight":  # which FastGen's DMD2 refuses by itself
        assert ("without" in refused) == ("refused" in cells[0])
