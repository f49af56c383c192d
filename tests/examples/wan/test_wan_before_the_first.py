"""What would stop sampling or evaluating after an hour is found before the first video."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from examples.wan import evaluate, sample, train
from examples.wan.student import Student
from tests.examples.wan.runs import run


@pytest.fixture(scope="module")
def runs(examples, tmp_path_factory):
    """A short run of each kind of model."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"iterations": 1, "critic_updates": 1}
    return {kind: run(examples(kind), folder / kind, **settings) for kind in ("t2v", "i2v")}


@pytest.fixture
def command(runs, monkeypatch, capsys):
    """`command(kind, options)`: exit code and errors of `sample`, which may not sample."""
    monkeypatch.setattr(Student, "sample", None)

    def called(kind, *options, module=sample):
        arguments = ["--run", runs[kind], "--device", "cpu", *options]
        return module.main([str(a) for a in arguments]), capsys.readouterr().err

    return called


def test_a_prompt_that_is_too_long_for_vbenchs_names(command, tmp_path):
    prompts = tmp_path / "p.txt"
    # 255 bytes are the most; -0.mp4 to -12.mp4 are 6 and 7 of them.
    for text, count, fits in (
        ("a" * 249, 5, True),
        ("a" * 249, 13, False),
        ("a" * 250, 5, False),
        ("é" * 124, 5, True),
        ("é" * 125, 5, False),
    ):
        prompts.write_text(f"short\n{text}\n")
        options = ["--prompts", prompts, "--steps", 1, "--count", count, "--vbench"]
        if fits:  # and goes on to the first
            with pytest.raises(TypeError, match="not callable"):
                command("t2v", *options, "--out", tmp_path / "out")
        else:
            code, error = command("t2v", *options, "--out", tmp_path / "none")
            assert code == 2
            assert "255 bytes is the most that a name may have there" in error
            assert not (tmp_path / "none").exists()


def test_the_longest_name_that_fits_is_written(runs, tmp_path):
    prompt = "a" * 249
    options = ["--run", runs["t2v"], "--prompt", prompt, "--steps", 1, "--count", 1, "--vbench"]
    options += ["--device", "cpu", "--out", tmp_path / "out"]
    assert sample.main([str(o) for o in options]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{prompt}-0.mp4"]


def test_an_image_in_the_middle_of_the_table_that_cannot_be_read(command, tmp_path):
    Image.new("RGB", (96, 64)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    prompts = tmp_path / "p.csv"
    prompts.write_text("file,prompt\ngood.png,a\nbad.png,b\n")
    for module in (sample, evaluate):
        code, error = command("i2v", "--prompts", prompts, "--out", tmp_path / "out", module=module)
        assert code == 2
        assert f"the image {tmp_path / 'bad.png'} cannot be read" in error


def test_an_image_beside_a_file_of_prompts_would_not_be_used(command, tmp_path):
    Image.new("RGB", (96, 64)).save(tmp_path / "good.png")
    (tmp_path / "p.csv").write_text("file,prompt\ngood.png,a\n")
    code, error = command("i2v", "--prompts", tmp_path / "p.csv", "--image", tmp_path / "good.png")
    assert code == 2
    assert "--image is for a --prompt" in error


def test_videos_of_other_settings_do_not_come_into_a_folder_of_vbench(runs, tmp_path, capsys):
    out = tmp_path / "vbench"
    options = ["--run", runs["t2v"], "--prompt", "a digit", "--device", "cpu", "--vbench"]
    options += ["--out", out, "--count", 1]

    def code(*more):
        return sample.main([str(o) for o in [*options, *more]])

    assert code("--steps", 1) == 0
    assert code("--steps", 1, "--count", 2) == 0  # goes on
    assert code("--steps", 2) == 2
    assert "has videos of other settings: steps (1 there, 2 now)" in capsys.readouterr().err
    assert code("--steps", 1, "--weights", "student", "--sampler", "euler") == 2
    error = capsys.readouterr().err
    assert "weights ('ema' there, 'student' now)" in error
    assert "sampler ('consistency' there, 'euler' now)" in error
    assert sorted(path.name for path in out.iterdir()) == ["a digit-0.mp4", "a digit-1.mp4"]
    assert json.loads((tmp_path / "vbench.json").read_text())["steps"] == 1
    shutil.rmtree(out)
    assert code("--steps", 2) == 0


def test_the_run_itself_knows_the_size_of_its_videos(t2v, runs, tmp_path):
    """Whatever has become of its data, which was the default size's before."""
    copied, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(t2v.data, copied)
    options = t2v.train_options(out, iterations=1, critic_updates=1)
    options[options.index("--data") + 1] = str(copied)
    assert train.main(options) == 0
    shutil.rmtree(copied)
    assert Student(out).format == Student(runs["t2v"]).format
    assert Student(out).format.height == 32
    (out / "data.yaml").write_text("frames: 5\n")
    with pytest.raises(ValueError, match=r"data.yaml is damaged: it lacks fps, height"):
        Student(out)
    (out / "data.yaml").write_text("frames: [")
    with pytest.raises(ValueError, match=r"data.yaml is not a YAML file"):
        Student(out)
    (out / "data.yaml").unlink()
    with pytest.raises(ValueError, match="does not say what it was trained for"):
        Student(out)
