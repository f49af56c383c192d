"""Whole runs of LightX2V's own script with Salt: logs, validation, checkpoints, ranks, refusals."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightx2v_real as fw
import pytest
import torch
import yaml
from lightx2v_oracle import kept_triples, settings, step
from tools import merged
from torch import Tensor

from salt_losses import step_schedule

KINDS = ("ar", "dmd")

pytestmark = pytest.mark.skipif(
    fw.checkout() is None, reason=f"set {fw.VARIABLE} to a checkout of LightX2V to run this"
)


@pytest.fixture(autouse=True, scope="module")
def importable() -> None:
    fw.activate()
    from loguru import logger

    logger.remove()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def run(kind: str, salt: dict | None, folder: Path, **more: Any) -> str:
    """A whole run by the framework's `main`, by our launcher where it is ours; its log."""
    path = folder / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(fw.config(kind, salt, folder, **more)))
    if salt is None:
        from train import main
    else:
        from salt_losses.integrations.lightx2v.__main__ import main
    log = folder / "train" / "train.log"
    before = log.read_text() if log.exists() else ""
    torch.manual_seed(0)
    random.seed(0)
    with fw.main_on(path):
        main()
    return log.read_text()[len(before) :]


def saved(folder: Path, iteration: int, name: str = "model_state.pt") -> dict[str, Any]:
    path = folder / "train" / f"checkpoint-{iteration:09d}" / name
    return torch.load(path, weights_only=False)


SHORT = {
    "training__max_train_iters": 3,
    "training__save_every_iters": 3,
    "logging__train_log_every_iters": 1,
    "resume__auto_resume": False,
}


def test_a_whole_run_with_every_weight_0_ends_with_the_parents_networks(kind, tmp_path):
    """With the default config's own tricks, validation, logging and checkpoints."""
    ends = []
    for name, salt in (("theirs", None), ("ours", settings(0, 0))):
        more = {"training__gradient_accumulation_iters": 2, "data__train__batch_size": 2}
        log = run(kind, salt, tmp_path / name, **SHORT, **more)
        ends.append([saved(tmp_path / name, 3, f) for f in ("model_state.pt", FAKE)])
        losses = re.findall(r"iter=\d/3 (dmd=.*) lr", log)
        assert len(losses) == 3
        ends[-1].append(losses)
        videos = sorted(p.name for p in (tmp_path / name / "infer").glob("iter-*/*.mp4"))
        ends[-1].append(videos)
        assert videos
    (net, fake, losses, videos), (our_net, our_fake, our_losses, our_videos) = ends
    assert losses == our_losses
    assert videos == our_videos
    for a, b in ((net, our_net), (fake, our_fake)):
        assert all(torch.equal(a[name], b[name]) for name in a)


FAKE = "fake_model/model_state.pt"


def test_a_run_by_the_launcher_logs_salts_numbers_beside_the_frameworks(kind, tmp_path):
    from lightx2v_train.runtime.monitor import NoopMonitor

    noted: list[tuple[int, dict[str, float]]] = []
    with mock.patch.object(
        NoopMonitor, "log_metrics", lambda self, metrics, step=None: noted.append((step, metrics))
    ):
        log = run(kind, settings(1, 1, align={"to": "end"}), tmp_path, **SHORT)
    terms = {"salt/num_steps", "salt/dmd_loss", "salt/sc_loss", "salt/align_loss"}
    assert [step for step, _ in noted] == [1, 2, 3]
    for _, metrics in noted:
        assert {"train/dmd", "train/fake", "train/lr"} < metrics.keys()
        assert {f"train/{name}" for name in terms} < metrics.keys()
        assert metrics["train/salt/dmd_loss"] == metrics["train/dmd"]
        assert metrics["train/salt/align_loss"] > 0
    assert any(metrics["train/salt/sc_loss"] > 0 for _, metrics in noted)
    lines = re.findall(r"iter=(\d) .*salt/num_steps=4 .*salt/sc_loss=", log)
    assert lines == ["1", "2", "3"]
    assert list((tmp_path / "infer").glob("iter-000000000/*.mp4"))


@contextlib.contextmanager
def seeded_stages() -> Iterator[None]:
    """The framework's checkpoints hold no random streams: each stage begins one of its own."""
    from lightx2v_train.trainers.dmd.video_trainer import VideoDmdTrainer as Parent

    stage_of = Parent._train_one_stage

    def seeded(self: Any, samples: Any, stage: str, grad_accum_iters: int) -> Any:
        torch.manual_seed(10 * self._iteration + len(stage))
        return stage_of(self, samples, stage, grad_accum_iters)

    with mock.patch.object(Parent, "_train_one_stage", seeded):
        yield


def test_a_run_resumed_from_the_frameworks_checkpoint_goes_on_as_if_it_had_not_stopped(
    kind, tmp_path
):
    salt = settings(1, 1, step_counts=[4, 8], probs=[0.5, 0.5], sc={"step_counts": [4, 8]}, seed=1)
    more = {
        **SHORT,
        "training__save_every_iters": 2,
        "data__train__max_samples": 1,  # the data's order is not saved either
        "resume__auto_resume": True,
    }
    del more["training__max_train_iters"]
    with seeded_stages():
        whole = run(kind, salt, tmp_path / "whole", training__max_train_iters=6, **more)
        run(kind, salt, tmp_path / "parts", training__max_train_iters=2, **more)
        rest = run(kind, salt, tmp_path / "parts", training__max_train_iters=6, **more)

    def numbers(log: str) -> list[str]:
        return re.findall(r"iter=[3-6].*(?:salt/num_steps|dmd)=.*", log)

    assert len(numbers(whole)) == 8
    assert {"num_steps=4", "num_steps=8"} <= set(re.findall(r"num_steps=\d", rest))
    assert numbers(rest) == numbers(whole)
    for name in ("model_state.pt", FAKE):
        a, b = (saved(tmp_path / part, 6, name) for part in ("whole", "parts"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    state = saved(tmp_path / "parts", 6, "training_state.pt")
    assert state["salt"]["iteration"] == 6

    more["training__max_train_iters"] = 7
    with pytest.raises(ValueError, match=r"seed \(state: 1, here: 2\)"):
        run(kind, merged(salt, {"seed": 2}), tmp_path / "parts", **more)
    with pytest.warns(UserWarning, match="sc.weight 1 -> 30, align.to 'exit' -> 'end'$"):
        run(
            kind,
            merged(salt, {"sc": {"weight": 30}, "align": {"to": "end"}}),
            tmp_path / "parts",
            **more,
        )


def test_a_checkpoint_without_salt_is_resumed_with_a_warning(kind, tmp_path):
    more = {**SHORT, "resume__auto_resume": True, "training__save_every_iters": 1}
    run(kind, None, tmp_path, **{**more, "training__max_train_iters": 1})
    log = run(kind, settings(1, 0), tmp_path, **{**more, "training__max_train_iters": 2})
    assert "saved without Salt, which joins now" in log
    assert "iter=2/2" in log


def test_accumulated_gradients_are_the_mean_of_batches_with_plans_alike(kind, tmp_path):
    trainer = fw.build(kind, settings(1, 1, align={"to": "end"}), tmp_path, seed=0)
    trainer.diversity_trick.enabled = False  # it has a loss of its own beside ours
    seen: list[dict[str, Tensor]] = []
    forward = trainer.forward_loss

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        seen.append({k: v.detach() for k, v in result.items()})
        return result

    with mock.patch.object(trainer, "forward_loss", noted), kept_triples() as triples:
        result = trainer._train_one_stage(iter([fw.batch(i, 2) for i in range(2)]), "student", 2)
    assert len(seen) == 2
    assert trainer._salt._at == (0, 1)
    for name in ("dmd", "salt/sc_loss", "salt/align_loss", "salt/num_steps"):
        mean = sum(float(numbers[name]) for numbers in seen) / 2
        assert result[name] == pytest.approx(mean)
        assert trainer._numbers.get(name, result[name]) == result[name]
    assert all(triple.t_s.shape == (2,) for triple in triples)


# Under DDP its own autoregressive trainer fails: it asks the wrapped network for `dim`, and DDP has
# one of its own, 0.
@pytest.mark.parametrize(("kind", "wrapping"), [("dmd", "ddp"), ("dmd", "fsdp"), ("ar", "fsdp")])
def test_two_ranks_follow_one_plan_and_keep_equal_parameters(kind, wrapping, tmp_path):
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    environment["MASTER_PORT"] = str(fw.free_port())
    worker = str(Path(__file__).parent / "lightx2v_worker.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, worker, kind, wrapping, str(tmp_path)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=600)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    first, second = (json.loads((tmp_path / f"rank_{r}.json").read_text()) for r in range(2))
    assert [s["train/salt/num_steps"] for s in first["steps"]] == [4.0, 8.0, 8.0, 8.0]
    assert first["steps"] == second["steps"]  # means over the ranks
    for term in ("train/salt/sc_loss", "train/salt/align_loss"):
        assert any(s.get(term, 0) > 0 for s in first["steps"])
    assert first["sums"] == second["sums"]
    assert {sharded for _, _, sharded in first["sums"].values()} == {wrapping == "fsdp"}


def test_bad_settings_are_refused(kind, tmp_path):
    def refused(pattern: str, salt: dict | None = None, **more: Any) -> None:
        with pytest.raises(ValueError, match=pattern):
            fw.build(kind, salt or {}, tmp_path, **more)

    refused("unknown setting 'sc_wieght'", {"sc_wieght": 1})
    refused("adv needs real videos, which LightX2V's Salt", {"adv": {"weight": 1.0}})
    refused("num_train_timestep.*must be 1000", training__dmd__num_train_timestep=500)
    refused(
        "time_shift_power must be 1 with Salt",
        scheduler__time_shift_settings__time_shift_power=2.0,
    )
    refused("strictly decreasing and above 0", training__dmd__denoising_step_list=[1000, 500, 0])
    refused("too fine", {"step_counts": [2000], "probs": [1.0], "sc": {"step_counts": []}})
    refused("align.reference.4. needs lists that nest", settings(0, 1),
            training__dmd__denoising_step_list=[1000, 700, 500, 250])  # fmt: skip
    refused("index into the 3 blocks of fake_score", settings(0, 1, align={"block": 3}))
    if kind == "dmd":
        refused("align.to must be one of 'exit', 'end'", settings(0, 1, align={"to": "input"}))
        refused("first_chunk_steps must be null", {"first_chunk_steps": 8})
        one = {"step_counts": [1, 2], "probs": [0.5, 0.5], "sc": {"step_counts": []}}
        refused("step_counts must be above 1 with div_loss", one)


def test_terms_that_never_come_on_are_said_when_the_trainer_is_made(kind, tmp_path):
    never = merged(
        settings(1, 0),
        {
            "step_counts": [4, 6],
            "probs": [0.5, 0.5],
            "inference_steps": 2,
            "sc": {"step_counts": [8]},
        },
    )
    where = rf"LightX2V's {type(fw.build(kind, {}, tmp_path)).__name__}"
    with pytest.warns(UserWarning, match=r"^SaltConfig: sc never turns on: none of sc.st"):
        fw.build(kind, never, tmp_path)
    late = settings(1, 0, sc={"warmup": 600})
    with pytest.warns(UserWarning, match=f"{where}: sc.warmup is 600: .* in the run's 3 iter"):
        fw.build(kind, late, tmp_path, **SHORT)
    unused = {"training__dmd__denoising_step_list": [1000, 700, 300]}
    with pytest.warns(UserWarning, match=f"{where}: the trainer's own list, of length 3, is nev"):
        fw.build(kind, {}, tmp_path, **unused)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fw.build(kind, settings(1, 0), tmp_path, **SHORT)
        fw.build(kind, {"shift": 5.0}, tmp_path, **unused)


def test_ranks_that_share_a_sample_are_refused(kind, tmp_path):
    from salt_losses.integrations.lightx2v import settings as ours

    with (
        mock.patch.object(ours, "get_sequence_parallel_world_size", lambda: 2),
        pytest.raises(ValueError, match=r"sequence_parallel\.size must be 1 with Salt"),
    ):
        fw.build(kind, {}, tmp_path)


def test_another_version_of_the_parent_is_named_in_one_sentence(monkeypatch):
    from lightx2v_train.trainers.dmd.video_ar_trainer import VideoArDmdTrainer

    monkeypatch.delattr(VideoArDmdTrainer, "_forward_causal_chunk")
    for name in [n for n in sys.modules if n.startswith("salt_losses.integrations.lightx2v")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ImportError, match=r"has no _forward_causal_chunk.* known to work is lightx2v_train"
    ):
        import salt_losses.integrations.lightx2v  # noqa: F401


def test_another_train_py_than_the_frameworks_is_refused(monkeypatch, tmp_path):
    from salt_losses.integrations.lightx2v.__main__ import main

    (tmp_path / "train.py").write_text("")
    other = SimpleNamespace(__file__=str(tmp_path / "train.py"))
    monkeypatch.setitem(sys.modules, "train", other)
    with pytest.raises(SystemExit, match="must lie in"):
        main()


EXAMPLE = Path(__file__).parents[2] / "examples" / "lightx2v"


def test_the_example_has_the_frameworks_own_numbers_and_runs(tmp_path):
    import salt_losses.integrations.lightx2v  # noqa: F401 (registers)

    path = EXAMPLE / "wan2_1_t2v_1_3b_ar_salt.yaml"
    ours, theirs = yaml.safe_load(path.read_text()), fw.own_config("ar")
    differ = []

    def compare(ours: Any, theirs: Any, name: str) -> None:
        if isinstance(ours, dict) and isinstance(theirs, dict):
            for key, value in ours.items():
                compare(value, theirs.get(key, "nothing"), f"{name}.{key}")
        elif ours != theirs:
            differ.append(name)

    compare(ours, theirs, "")
    assert differ == [
        ".training.method", ".training.dmd.salt", ".training.save_consolidated_student",
        ".training.output_dir", ".model.student",
        ".inference.output_dir", ".inference.infer_every_iters",
    ]  # fmt: skip
    assert theirs["inference"]["infer_every_iters"] == "${training.save_every_iters}"
    del ours["model"]["student"]
    trainer = fw.build("ar", None, tmp_path, base=ours)
    assert trainer._salt.config.step_counts == (2, 4, 8)
    assert "salt/num_steps" in step(trainer)[0]


@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_readmes_way_from_a_checkpoint_to_samples(tmp_path, monkeypatch, count):
    """What the framework saves of a sharded student, as one file, in its own `infer.py`."""
    from infer import main
    from lightx2v_train.infer.video import WanT2VARInferencer
    from lightx2v_train.model_zoo.wan_t2v import WanT2VModel

    text = (EXAMPLE / "README.md").read_text()
    folder = "output_train/wan2_1_t2v_1_3b_ar_salt/checkpoint-000001000"
    monkeypatch.chdir(tmp_path)
    trained = fw.build("ar", None, tmp_path / "run", seed=3).model
    with torch.no_grad():
        for parameter in trained.denoiser_module().parameters():
            parameter.add_(0.1)
    trained.save_full_model(f"{folder}/student_consolidated")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(block)

    (steps,) = re.findall(rf"^\| {count} \| `(\[.*?\])`", text, re.M)
    inference = {"denoising_step_list": json.loads(steps), "num_inference_steps": count}
    more = {f"inference__{name}": value for name, value in inference.items()}
    sample = fw.config("ar", None, tmp_path / "s", model__checkpoint_path="student.pt", **more)
    path = tmp_path / "sample.yaml"
    path.write_text(yaml.safe_dump(sample))
    models, times = [], []
    build, grid = WanT2VModel.load_components, WanT2VARInferencer._build_ar_denoising_steps
    monkeypatch.setattr(
        WanT2VModel, "load_components",
        lambda self, **more: models.append(self) or build(self, **more),
    )  # fmt: skip
    monkeypatch.setattr(
        WanT2VARInferencer, "_build_ar_denoising_steps",
        lambda self, device: times.append(grid(self, device)) or times[-1],
    )  # fmt: skip
    with fw.main_on(path):
        main()
    expected = trained.denoiser_module().state_dict()
    found = models[0].denoiser_module().state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert list((tmp_path / "s" / "infer").glob("*.mp4"))
    grid = step_schedule(count, shift=5.0)[:-1]
    assert times[0].tolist() == pytest.approx((1000 * grid).tolist(), abs=1.0)
