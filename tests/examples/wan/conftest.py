from __future__ import annotations

from pathlib import Path

import pytest

# Where the recipe's libraries are not installed, its tests are left out.
try:
    import accelerate  # noqa: F401
    import diffusers  # noqa: F401
    import peft  # noqa: F401
except ImportError:
    collect_ignore_glob = ["test_*.py", "runs.py"]


class Example:
    """A tiny pretrained pipeline, clips and encoded data, made once."""

    def __init__(self, folder: Path, kind: str) -> None:
        from examples.wan import encode, tiny

        self.kind, self.model, self.data = kind, folder / "model", folder / "data"
        tiny.make_pretrained(self.model, kind)
        self.prompts = tiny.make_clips(folder / "clips", 3)
        self.encode_options = [
            *("--model", str(self.model), "--videos", str(self.prompts.parent)),
            *("--height", str(tiny.HEIGHT), "--width", str(tiny.WIDTH)),
            *("--frames", str(tiny.FRAMES), "--text-length", "32", "--device", "cpu"),
        ]
        self.encoded = encode.main(
            [*self.encode_options, "--prompts", str(self.prompts), "--out", str(self.data)]
        )

    def train_options(self, out: Path, **settings: object) -> list[str]:
        settings = {
            "iterations": 4,
            "critic_updates": 2,
            "gradient_accumulation_steps": 1,
            "lora_rank": 2,
            "weights": "float32",
            "save_every": 2,
            "sample_every": 0,
            "num_workers": 0,
            **settings,
        }
        return [
            *("--config", "t2v_1.3b_lora.yaml", "--model", str(self.model)),
            *("--data", str(self.data), "--out", str(out)),
            *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")),
        ]


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    made: dict[str, Example] = {}

    def example(kind: str) -> Example:
        if kind not in made:
            made[kind] = Example(tmp_path_factory.mktemp(f"wan_{kind}"), kind)
        return made[kind]

    return example


@pytest.fixture(scope="session")
def t2v(examples):
    return examples("t2v")


@pytest.fixture(scope="session")
def i2v(examples):
    return examples("i2v")
