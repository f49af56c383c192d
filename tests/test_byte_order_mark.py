"""Windows editors begin a UTF-8 file with a byte-order mark, which is not part of its text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from salt_losses.adapters.watch.sweep import first_prompts
from salt_losses.cli.settings_file import read_file


@pytest.mark.parametrize(("name", "text"), [("s.json", '{"a": 1}'), ("s.yaml", "a: 1\r\n")])
def test_settings_are_read_without_it(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    assert read_file(tmp_path / name)[0] == {"a": 1}


def test_the_first_prompt_is_read_without_it(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("a fox\r\n\r\na cat\r\n".encode("utf-8-sig"))
    trainer = SimpleNamespace(config=SimpleNamespace(data_path=str(tmp_path / "p.txt")))
    assert first_prompts(trainer) == ("a fox", "a cat")
