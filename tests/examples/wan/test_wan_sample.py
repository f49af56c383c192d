"""Sampling and evaluating what `train` wrote, in diffusers' real pipelines."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call

from examples.wan import evaluate, sample, tiny, train
from examples.wan.checkpoint import latest
from examples.wan.data import EncodedData
from examples.wan.student import Student, Task
from salt_losses import consistency_sample, euler_sample, semigroup_defect, step_schedule

SHIFT = 12.0
RUNS = [("t2v", "lora"), ("t2v", "full"), ("i2v", "lora")]


class Run(NamedTuple):
    """What `train` wrote, and of which `examples`."""

    folder: Path
    example: Any

    @property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "config.yaml").read_text())

    @property
    def task(self) -> Task:
        """The first sample of the data."""
        entry = EncodedData(self.example.data).entries[0]
        clip = self.example.prompts.parent / entry["source"]
        return Task(entry["prompt"], clip if self.example.kind == "i2v" else None)


@pytest.fixture(scope="module")
def trained(examples, tmp_path_factory) -> Callable[[str, str], Run]:
    """`trained(kind, roles)`: a run of two iterations that go far, made once."""

    @functools.cache
    def run(kind: str, roles: str) -> Run:
        example, out = examples(kind), tmp_path_factory.mktemp("runs") / f"{kind}_{roles}"
        settings = {"iterations": 2, "critic_updates": 1, "lr": 0.02, "ema_decay": 0.5}
        options = example.train_options(out, roles=roles, shift=SHIFT, lora_alpha=3, **settings)
        assert train.main(options) == 0
        return Run(out, example)

    return run


def literal_velocity(run: Run) -> tuple[Callable[[Tensor, Tensor], Tensor], list[int]]:
    """The student with its weights put together by hand, on the first sample's own encoding; and
    the shape of its latents."""
    data, config = EncodedData(run.example.data), run.config
    batch = {name: value[None] for name, value in data[0].items()}
    network = tiny.make_transformer(run.example.kind)
    weights = load_file(run.example.model / "transformer/diffusion_pytorch_model.safetensors")
    student = latest(run.folder) / "ema"
    if config["roles"] == "full":
        weights = load_file(student / "diffusion_pytorch_model.safetensors")
    else:
        lora = load_file(student / "pytorch_lora_weights.safetensors")
        for name, a in lora.items():
            if ".lora_A." in name:
                place = name.removeprefix("transformer.").replace(".lora_A", "")
                b = lora[name.replace("lora_A", "lora_B")]
                scale = config["lora_alpha"] / config["lora_rank"]
                weights[place] = weights[place] + scale * b @ a

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        parts = [x, batch["condition"]] if "condition" in batch else [x]
        arguments = {
            "hidden_states": torch.cat(parts, 1),
            "timestep": 1000 * t,
            "encoder_hidden_states": batch["text"],
            "encoder_hidden_states_image": batch.get("image"),
        }
        with torch.no_grad():
            return functional_call(network, weights, kwargs=arguments).sample

    return velocity, [1, *data.settings["shapes"]["latents"]]


@pytest.mark.parametrize(("kind", "roles"), RUNS)
def test_the_pipelines_latents_are_those_of_a_literal_sampler_on_the_training_grid(
    trained, kind, roles
):
    """What train wrote, what encode wrote, and the grid: all of it must be what training had."""
    run = trained(kind, roles)
    student, task = Student(run.folder), run.task
    velocity, shape = literal_velocity(run)
    assert student.pipeline  # loading draws what it throws away
    before = torch.get_rng_state()
    for steps in (1, 4):
        for sampler in ("consistency", "euler"):
            generator = torch.Generator().manual_seed(7)
            noise, times = torch.randn(shape, generator=generator), step_schedule(steps, SHIFT)
            if sampler == "euler":
                ours = euler_sample(velocity, noise, times)
            else:
                ours = consistency_sample(velocity, noise, times, generator=generator)
            theirs = student.sample(task, steps, sampler=sampler, seed=7, output_type="latent")
            assert torch.allclose(theirs, ours[0], atol=2e-4), (steps, sampler)
    assert torch.equal(before, torch.get_rng_state())


def test_the_average_and_the_last_weights_differ_and_both_differ_from_the_base(trained):
    run = trained("t2v", "lora")
    task = run.task
    ema, last = (Student(run.folder, weights=w) for w in ("ema", "student"))
    made = [s.sample(task, 2, output_type="latent") for s in (ema, last)]
    ema.pipeline.unload_lora_weights()
    made.append(ema.sample(task, 2, output_type="latent"))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(made, [*made[1:], made[0]]))


def test_one_video_is_a_file_and_several_are_a_folder(trained, tmp_path, capsys):
    run = trained("t2v", "full")
    one = ["--run", str(run.folder), "--prompt", "a digit", "--device", "cpu"]
    assert sample.main([*one, "--steps", "2", "--out", str(tmp_path / "one.mp4")]) == 0
    assert (tmp_path / "one.mp4").stat().st_size > 0
    assert (
        sample.main([*one, "--steps", "1", "2", "--seed", "3", "--out", str(tmp_path / "x")]) == 0
    )
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["0-3-1.mp4", "0-3-2.mp4"]
    assert sample.main([*one, "--steps", "1", "2", "--out", str(tmp_path / "two.mp4")]) == 2
    assert "--out must be a folder for 2 videos" in capsys.readouterr().err


def test_the_layout_of_vbench_is_five_files_named_by_the_prompt_and_what_is_there_stays(
    trained, tmp_path
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a digit moves up\n\nanother\n")
    out = tmp_path / "vbench"
    out.mkdir()
    (out / "another-3.mp4").write_text("made before")
    arguments = [
        "--run",
        str(trained("t2v", "full").folder),
        "--prompts",
        str(prompts),
        "--steps",
        "1",
    ]
    assert sample.main([*arguments, "--vbench", "--out", str(out), "--device", "cpu"]) == 0
    wanted = [f"{prompt}-{i}.mp4" for prompt in ("a digit moves up", "another") for i in range(5)]
    assert sorted(p.name for p in out.iterdir()) == sorted(wanted)
    assert (out / "another-3.mp4").read_text() == "made before"


def test_a_video_of_an_image_begins_from_that_image_file(trained, tmp_path, capsys):
    run = trained("i2v", "lora")
    image = tmp_path / "first.png"
    Image.new("RGB", (96, 64), (200, 30, 30)).save(image)
    common = ["--run", str(run.folder), "--prompt", "a digit", "--device", "cpu", "--steps", "1"]
    out = ["--out", str(tmp_path / "v.mp4")]
    assert sample.main([*common, *out, "--image", str(image)]) == 0
    assert sample.main([*common, *out]) == 2
    assert "makes a video of an image: name one" in capsys.readouterr().err
    assert sample.main([*common, *out, "--image", str(tmp_path / "none.png")]) == 2
    assert "none.png cannot be read: no such file" in capsys.readouterr().err
    run = trained("t2v", "full")
    assert sample.main([*common, *out, "--run", str(run.folder), "--image", str(image)]) == 2
    assert "takes no image" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_is_refused(trained, tmp_path):
    model = trained("t2v", "lora").example.model
    lora, full, i2v = (trained(*names).folder for names in RUNS)
    with pytest.raises(ValueError, match="holds a whole transformer, and the run has roles: lora"):
        Student(lora, checkpoint=latest(full))
    with pytest.raises(ValueError, match="holds a LoRA, and the run has roles: full"):
        Student(full, checkpoint=latest(lora))
    with pytest.raises(ValueError, match="holds no student"):
        Student(full, checkpoint=tmp_path)
    other = tmp_path / "model"
    shutil.copytree(model, other)
    transformer = tiny.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=14, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=256, ffn_dim=32, num_layers=2,
    )  # fmt: skip
    transformer.save_pretrained(other / "transformer")
    with pytest.raises(ValueError, match=r"is of another model than .* has no place for"):
        Student(lora, model=str(other))
    with pytest.raises(ValueError, match="they differ in attention_head_dim"):
        Student(full, model=str(other))
    with pytest.raises(ValueError, match=r"has no place for|they differ"):
        Student(lora, checkpoint=latest(i2v), model=str(other))


def test_what_is_no_run_is_named(trained, tmp_path, capsys):
    assert sample.main(["--run", str(tmp_path), "--prompt", "x"]) == 2
    assert f"{tmp_path} is no folder of a run" in capsys.readouterr().err
    shutil.copy(trained("t2v", "lora").folder / "config.yaml", tmp_path)
    assert sample.main(["--run", str(tmp_path), "--prompt", "x"]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert sample.main(["--run", str(trained("t2v", "lora").folder)]) == 2
    assert "name a --prompt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sample.main(["--run", str(tmp_path), "--prompt", "x", "--steps", "0"])
    assert "steps must be at least 1" in capsys.readouterr().err


def test_students_are_compared_from_the_same_seeds(trained, tmp_path, capsys):
    runs = [trained("t2v", "lora"), trained("t2v", "full")]
    arguments = [
        "--run",
        str(runs[0].folder),
        "--against",
        str(runs[1].folder),
        "--out",
        str(tmp_path),
    ]
    options = ["--steps", "4", "1", "2", "--seeds", "7", "8", "--count", "1", "--device", "cpu"]
    assert evaluate.main([*arguments, *options]) == 0
    assert "| defect (eq. 16) |" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == [1, 2, 4]
    assert list(metrics["students"]) == ["t2v_lora", "t2v_full"]
    for run in runs:
        numbers = metrics["students"][run.folder.name]
        assert numbers["calls_per_video"] == {"1": 1, "2": 2, "4": 4}
        assert set(numbers["rms_difference"]) == {"1-2", "2-4"}
        assert numbers["defect"] == pytest.approx(literal_defect(run, (7, 8)), rel=1e-3)
        assert numbers["rms_difference"]["1-2"] == pytest.approx(
            literal_difference(run, (7, 8)), rel=1e-3
        )
    names = sorted(p.name for p in (tmp_path / "videos" / "t2v_full").iterdir())
    assert names == [f"0-{seed}-{k}.mp4" for seed in (7, 8) for k in (1, 2, 4)]
    with Image.open(tmp_path / "sheet-0-7.png") as sheet:
        frames, rows = tiny.FRAMES, len(runs) * 3
        height = round(evaluate.CELL_WIDTH * tiny.HEIGHT / tiny.WIDTH)
        assert sheet.size == (
            evaluate.LABEL_WIDTH + frames * evaluate.CELL_WIDTH,
            20 + rows * height,
        )
        assert len(set(sheet.get_flattened_data())) > 10


def literal_defect(run: Run, seeds: tuple[int, ...]) -> float:
    velocity, shape = literal_velocity(run)
    values = []
    for seed in seeds:
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        grids = step_schedule(4, SHIFT), step_schedule(8, SHIFT)
        generator = torch.Generator().manual_seed(seed)
        values.append(semigroup_defect(velocity, noise, *grids, generator=generator).mean)
    return float(torch.stack(values).mean())


def literal_difference(run: Run, seeds: tuple[int, ...]) -> float:
    """Between 1 and 2 steps, in pixels of the pipeline's own decoder."""
    student, values = Student(run.folder), []
    for seed in seeds:
        one, two = (torch.tensor(student.sample(run.task, k, seed=seed)) for k in (1, 2))
        values.append(((2 * one - 1) - (2 * two - 1)).square().mean().sqrt())
    return float(torch.stack(values).mean())


def test_an_i2v_student_is_evaluated_on_a_csv_file_with_images_beside_it(trained, tmp_path, capsys):
    run = trained("i2v", "lora")
    arguments = [
        "--run",
        str(run.folder),
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--steps",
        "1",
        "2",
    ]
    assert evaluate.main(arguments) == 2
    assert "an I2V model wants --prompts" in capsys.readouterr().err
    prompts = str(run.example.prompts)
    assert evaluate.main([*arguments, "--prompts", prompts, "--count", "1"]) == 0
    numbers: dict[str, Any] = json.loads((tmp_path / "metrics.json").read_text())["students"]
    numbers = numbers["i2v_lora"]
    generator = torch.Generator().manual_seed(0)
    velocity, shape = literal_velocity(run)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    grids = step_schedule(4, SHIFT), step_schedule(8, SHIFT)
    wanted = semigroup_defect(velocity, noise, *grids, generator=generator)
    assert numbers["defect_per_interval"] == pytest.approx(wanted.per_interval.tolist(), rel=1e-3)


def test_students_of_other_grids_are_not_compared(trained, tmp_path, capsys):
    run = trained("t2v", "lora")
    other = tmp_path / "other"
    shutil.copytree(run.folder, other)
    settings = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**settings, "shift": 5.0}))
    arguments = ["--run", str(run.folder), "--against", str(other), "--out", str(tmp_path / "out")]
    options = ["--steps", "1", "--count", "1", "--device", "cpu"]
    assert evaluate.main([*arguments, *options]) == 2
    assert "cannot be compared: they were trained for others, shift" in capsys.readouterr().err
