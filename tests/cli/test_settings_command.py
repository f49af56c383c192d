"""`salt-losses settings`: a file to start from."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import pytest
import yaml

from salt_losses import SaltConfig
from salt_losses.cli import main
from salt_losses.cli.settings import meanings_of
from salt_losses.config import BLOCKS
from salt_losses.presets import PRESETS
from salt_losses.terms import Adversarial, Alignment


@pytest.mark.parametrize("name", [None, *PRESETS])
def test_what_it_prints_is_the_settings(
    name: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SaltConfig() if name is None else SaltConfig.preset(name)
    arguments = ["settings", *(() if name is None else ("--preset", name))]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    settings = yaml.safe_load(text)
    assert set(settings) == {field.name for field in dataclasses.fields(SaltConfig)}
    assert SaltConfig.from_mapping(settings) == config
    assert main([*arguments, "--json"]) == 0
    assert SaltConfig.from_mapping(json.loads(capsys.readouterr().out)) == config


def test_terms_that_are_off_are_there_at_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    main(["settings"])
    off = re.findall(r"^# ((?:align|adv):|  \w+: .*)$", capsys.readouterr().out, re.MULTILINE)
    settings = yaml.safe_load("\n".join(off))
    expected = SaltConfig(align=Alignment(), adv=Adversarial())
    assert SaltConfig.from_mapping(settings) == expected


def test_every_setting_has_its_meaning() -> None:
    for kind in (SaltConfig, *BLOCKS.values()):
        known = meanings_of(kind)
        for field in dataclasses.fields(kind):
            assert len(known[field.name]) > 10, (kind, field.name)


def test_it_needs_no_yaml(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["settings"]) == 0
    assert "weight: 1.0" in capsys.readouterr().out
