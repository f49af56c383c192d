"""Damaged videos, editors' text files, moved models, VBench's extended prompts, other scripts."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from examples.wan import checkpoint, encode, evaluate, fonts, sample, train
from examples.wan.config import Config
from examples.wan.media import Format, read_frames
from examples.wan.sample import read_tasks
from examples.wan.table import read_prompts
from tests.examples.wan.runs import run
from tests.examples.wan.test_wan_media import SIZE, ffmpeg, video

FORMAT = Format(*SIZE[::-1], frames=81, fps=16)
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
CODECS = {
    "h264.mp4": (*X264, "-movflags", "+faststart"),
    "h264.mkv": X264,
    "h264.ts": X264,
    "mpeg4.avi": ("-c:v", "mpeg4", "-q:v", "4"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"),
    "vp8.webm": ("-c:v", "libvpx", "-deadline", "realtime"),
    "ffv1.mkv": ("-c:v", "ffv1"),
    "theora.ogv": ("-c:v", "libtheora", "-q:v", "6"),
    "prores.mov": ("-c:v", "prores_ks"),
}


@pytest.mark.parametrize("name", CODECS)
def test_a_damaged_video_is_named_in_every_codec_and_a_whole_one_is_read(tmp_path, name):
    """A decoder conceals errors: by exploding, or only by a line that it writes."""
    noise = np.random.default_rng(0).integers(0, 255, (96, *SIZE[::-1], 3), dtype=np.uint8)
    path = video(tmp_path / name, noise, 16, *CODECS[name])
    assert len(read_frames(path, FORMAT, "t2v")) == 81
    whole = path.read_bytes()
    size, tenth = len(whole), len(whole) // 10
    holes = {"start": tenth, "middle": size // 2}
    for place in holes.values():
        path.write_bytes(whole[:place] + bytes(tenth) + whole[place + tenth :])
        with pytest.raises(ValueError, match=r"is damaged: \S"):
            read_frames(path, FORMAT, "t2v")
    path.write_bytes(whole[: size // 2])
    with pytest.raises((ValueError, OSError), match=r"is damaged|too short|Could not load"):
        read_frames(path, FORMAT, "t2v")


def test_damage_behind_the_frames_that_are_taken_does_no_harm(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (192, *SIZE[::-1], 3), dtype=np.uint8)
    path = video(tmp_path / "v.mkv", noise, 16, *X264)
    wanted = read_frames(path, FORMAT, "t2v")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 9 // 10] + bytes(len(whole) // 10))
    got = read_frames(path, FORMAT, "t2v")
    assert all(a.tobytes() == b.tobytes() for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("suffix", [".bmp", ".tiff", ".ppm"])
def test_an_image_of_an_unknown_type_is_called_that(tmp_path, suffix):
    Image.new("RGB", SIZE).save(tmp_path / f"i{suffix}")
    with pytest.raises(ValueError, match="is an image, and this is a text-to-video model"):
        read_frames(tmp_path / f"i{suffix}", FORMAT, "t2v")
    with pytest.raises(ValueError, match=r"an image of an unknown type \(\w+\): make it PNG"):
        read_frames(tmp_path / f"i{suffix}", FORMAT, "i2v")
    Image.new("RGB", SIZE).save(tmp_path / "i.jfif", "JPEG")
    assert len(read_frames(tmp_path / "i.jfif", FORMAT, "i2v")) == 1
    ffmpeg("-f", "lavfi", "-i", "testsrc2=d=0.04:s=48x32", "-frames:v", 1, tmp_path / "i.exr")
    with pytest.raises(ValueError, match="is one picture, where a video of 81 frames is wanted"):
        read_frames(tmp_path / "i.exr", FORMAT, "i2v")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_is_read_as_editors_write_it(tmp_path, encoding, end):
    def written(name, *lines):
        (tmp_path / name).write_bytes(end.join([*lines, ""]).encode(encoding))
        return tmp_path / name

    prompts = written("p.txt", "a fox\u2028runs", "", "\u72d0\u72f8")
    assert [t.prompt for t in read_tasks(prompts, "t2v")] == ["a fox\u2028runs", "\u72d0\u72f8"]
    table = written("p.csv", "file,prompt", 'a.mp4,"one, two"')
    assert read_prompts(table) == [("a.mp4", "one, two")]
    config = written("c.yaml", "model: m", "data: d", "out: o")
    assert Config.load(config).model == "m"
    (tmp_path / "p.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"p\.txt cannot be read as text"):
        read_tasks(tmp_path / "p.txt", "t2v")


def test_the_same_model_at_another_path_resumes_and_other_weights_do_not(t2v, tmp_path, capsys):
    moved, other = tmp_path / "moved", tmp_path / "other"
    for folder in (moved, other):
        shutil.copytree(t2v.model, folder)
    for part in ("transformer/diffusion_pytorch_model", "text_encoder/model"):
        weights = other / f"{part}.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")

    def options(model, iterations):
        found = t2v.train_options(tmp_path / "run", iterations=iterations, save_every=1)
        found[found.index("--model") + 1] = str(model)
        return found

    assert train.main(options(t2v.model, 1)) == 0
    assert train.main(options(moved, 2)) == 0
    assert checkpoint.latest(tmp_path / "run").name == "000002"
    assert train.main(options(other, 3)) == 2
    assert "is of other settings: model (" in capsys.readouterr().err

    def encoded(model):
        found = [*t2v.encode_options, "--prompts", str(t2v.prompts), "--out", str(tmp_path / "d")]
        found[found.index("--model") + 1] = str(model)
        return encode.main(found)

    assert encoded(t2v.model) == encoded(moved) == 0
    assert encoded(other) == 2
    assert "was encoded with other settings: encoders (" in capsys.readouterr().err


def test_extended_prompts_are_sampled_and_files_have_the_short_ones_names(
    t2v, tmp_path, capsys, monkeypatch
):
    folder = run(t2v, tmp_path / "run", iterations=1, save_every=1)
    long = "a fox, " * 60
    (tmp_path / "long.txt").write_text(f"{long}\nanother\n", encoding="utf-8-sig")
    (tmp_path / "short.txt").write_text("a fox\na cat\n")
    asked = []

    def pretend(student, task, steps, **_):
        asked.append(task.prompt)
        return np.zeros((5, 32, 48, 3))

    monkeypatch.setattr(sample.Student, "sample", pretend)
    common = ["--run", str(folder), "--steps", "1", "--count", "1", "--device", "cpu"]
    common += ["--prompts", str(tmp_path / "long.txt"), "--out", str(tmp_path / "v")]
    names = ["--names", str(tmp_path / "short.txt")]
    assert sample.main([*common, "--vbench"]) == 2
    assert "the short ones that VBench knows for --names" in capsys.readouterr().err
    assert sample.main([*common, *names]) == 2
    assert "--names is for --vbench" in capsys.readouterr().err
    assert sample.main([*common, "--vbench", *names]) == 0
    assert asked == [long.strip(), "another"]
    assert sorted(p.name for p in (tmp_path / "v").iterdir()) == ["a cat-0.mp4", "a fox-0.mp4"]
    assert sample.main([*common, "--vbench", *names]) == 0
    assert len(asked) == 2
    (tmp_path / "long.txt").write_text("a third\nanother\n")
    assert sample.main([*common, "--vbench", *names]) == 2
    assert "has videos of other prompts: a fox-0.mp4" in capsys.readouterr().err
    (tmp_path / "short.txt").write_text("a fox\n")
    assert sample.main([*common, "--vbench", *names]) == 2
    assert "short.txt has 1, and there are 2 prompts" in capsys.readouterr().err


@pytest.fixture
def fresh_accelerate():
    """accelerate reads its environment once in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
def test_regional_compilation_is_refused_before_the_run(t2v, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "true")
    assert train.main(t2v.train_options(tmp_path / "run")) == 2
    assert "set dynamo_use_regional_compilation to false" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_sheets_text_is_never_boxes(capsys, monkeypatch):
    monkeypatch.setattr(fonts, "font_files", list)
    fonts.font_for.cache_clear()
    assert evaluate.shown("a fox (seed 0)\n4 steps", "prompt 0") == "a fox (seed 0)\n4 steps"
    assert evaluate.shown("\u72d0\u72f8", "prompt 0") == "prompt 0"
    assert "no font here has all characters of '\u72d0\u72f8'" in capsys.readouterr().err
    fonts.font_for.cache_clear()


def test_a_font_of_the_system_is_taken_if_it_has_the_characters():
    pytest.importorskip("matplotlib")
    from pathlib import Path

    from matplotlib import get_data_path

    dejavu = Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    font = fonts.ImageFont.truetype(str(dejavu), fonts.SIZE)
    assert fonts.has(font, "\u041b\u0438\u0441\u0430 \u2192")
    assert not fonts.has(font, "\u72d0\u72f8")
