"""LongLive 2.0's own inference script and pipeline, at several step counts from the same seeds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import pytest
import torch
from test_sample import DEVICE, PROMPTS, OnCpu, Recorded, check, started

from salt_losses import step_schedule
from salt_losses.runtime.step_lists import SolverLists

LISTS = {
    k: SolverLists(SimpleNamespace(shift=5.0)).timesteps(step_schedule(k)).tolist()
    for k in (2, 4, 8)
}


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, latents_only: bool = False
) -> Recorded:
    from omegaconf import OmegaConf

    root = harness.checkout("longlive2")
    harness.deactivate()
    harness.activate("longlive2", process_group=False)
    harness.choose_weights(0, sizes=harness.KNOWN["longlive2"].tiny)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    config = OmegaConf.load(root / "configs" / "inference.yaml")
    config.merge_with(
        {
            "data": {
                "data_path": str(folder / "prompts.txt"),
                "image_or_video_shape": [1, 24, harness.CHANNELS, harness.HEIGHT, harness.WIDTH],
            },
            "output_folder": str(folder / "videos"),
            "save_latents_only": latents_only,
            "checkpoints": None,
            "adapter": None,
        }
    )
    OmegaConf.save(config, folder / "config.yaml")
    with monkeypatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "path", list(sys.path))
        patch.delenv("LOCAL_RANK", raising=False)
        patch.setattr(torch, "device", OnCpu)
        memory = importlib.import_module("utils.memory")  # asks for a device where it is imported
        patch.setattr(memory, "get_cuda_free_memory_gb", lambda *_: 100.0)
        recorded = Recorded(patch)
        recorded.watch(sys.modules["utils.wan_5b_wrapper"].WanDiffusionWrapper, patch)
        started(patch, *arguments, "--config_path", str(folder / "config.yaml"))
    return recorded


def test_the_trainers_own_script_samples_at_every_step_count(
    require: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("longlive2")
    plain = run(tmp_path, monkeypatch)
    check(plain, {4: 4}, LISTS)
    own = run(tmp_path, monkeypatch, "--steps", "2", "4", "8")
    check(own, {k: k for k in LISTS}, LISTS)
    assert len(own.videos) == 3 * len(PROMPTS)
    [first], [again] = (
        [v for name, v in r.videos.items() if "a cat" in name and part in name]
        for r, part in ((plain, ""), (own, "-4steps"))
    )
    assert torch.equal(first, again)


def test_what_its_script_cannot_write_apart_is_refused(
    require: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("longlive2")
    with pytest.raises(ValueError, match=r"--first_chunk_steps must be left out.*got 4"):
        run(tmp_path, monkeypatch, "--steps", "2", "--first_chunk_steps", "4")
    with pytest.raises(ValueError, match=r"save_latents_only must be off.*\[2, 4\]"):
        run(tmp_path, monkeypatch, "--steps", "2", "4", latents_only=True)
    assert DEVICE is torch.device
