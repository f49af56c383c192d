from __future__ import annotations

import csv
import json
import shutil

import imageio.v3 as iio
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image

from examples.wan import encode, encoder, table, tiny
from examples.wan.data import EncodedData, Order
from examples.wan.pretrained import decode_video, encode_video, load_vae, read_kind


def test_latents_are_the_vaes_own_and_normalised(t2v):
    vae = load_vae(str(t2v.model))
    frames = encode.read_frames(
        t2v.prompts.parent / "clip_1.mp4", encode.Format(32, 48, tiny.FRAMES), "t2v"
    )
    read = iio.imread(t2v.prompts.parent / "clip_1.mp4", plugin="FFMPEG")
    video = torch.from_numpy(read).permute(3, 0, 1, 2)[None] / 127.5 - 1
    assert [f.size for f in frames] == [(48, 32)] * tiny.FRAMES
    with torch.no_grad():
        raw = vae.encode(video).latent_dist.mode()
    mean, deviation = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    expected = torch.stack([(raw[0, c] - mean[c]) / deviation[c] for c in range(4)])
    got = EncodedData(t2v.data)[1]["latents"]
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, raw[0], atol=1e-2)
    with torch.no_grad():
        plain = vae.decode(raw, return_dict=False)[0].clamp(-1, 1)
    assert torch.allclose(decode_video(vae, encode_video(vae, video)), plain, atol=1e-5)


def test_the_condition_is_what_diffusers_own_pipeline_feeds_its_transformer(i2v):
    pipeline = WanImageToVideoPipeline.from_pretrained(i2v.model)
    pipeline.text_encoder.to(torch.bfloat16)
    seen = {}
    pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    pipeline(
        image=Image.fromarray(iio.imread(i2v.prompts.parent / "clip_0.mp4", plugin="FFMPEG")[0]),
        prompt="the digit 5 bounces",
        height=32,
        width=48,
        num_frames=tiny.FRAMES,
        num_inference_steps=1,
        guidance_scale=1.0,
        max_sequence_length=32,
        output_type="latent",
    )
    item = EncodedData(i2v.data)[0]
    assert torch.equal(seen["encoder_hidden_states"][0].float(), item["text"])
    assert torch.allclose(seen["hidden_states"][0, 16:], item["condition"], atol=1e-5)
    assert torch.allclose(seen["encoder_hidden_states_image"][0], item["image"], atol=1e-5)
    assert torch.equal(item["condition"][:4, 0], torch.ones(4, 4, 6))
    assert not item["condition"][:4, 1:].any()


def write_prompts(path, rows, header=("file", "prompt")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def test_bad_files_are_named_and_skipped_and_a_second_run_goes_on(t2v, tmp_path, capsys):
    videos, out = tmp_path / "videos", tmp_path / "data"
    shutil.copytree(t2v.prompts.parent, videos)
    (videos / "broken.mp4").write_bytes(b"no video")
    Image.new("RGB", (48, 32)).save(videos / "image.png")
    tiny.make_clips(tmp_path / "short", 1, frames=3)
    shutil.copy(tmp_path / "short" / "clip_0.mp4", videos / "short.mp4")
    names = ["broken.mp4", "gone.mp4", "image.png", "short.mp4", "clip_0.mp4"]
    prompts = write_prompts(tmp_path / "p.csv", [(name, "a, quoted prompt") for name in names])
    options = [*t2v.encode_options, "--prompts", prompts, "--out", str(out)]
    options[options.index("--videos") + 1] = str(videos)
    assert encode.main(options) == 0
    skipped = [json.loads(s) for s in (out / "skipped.jsonl").read_text().splitlines()]
    assert [s["source"] for s in skipped] == names[:4]
    assert "no such file" in skipped[1]["reason"]
    assert "text-to-video" in skipped[2]["reason"]
    assert "3 frames at 16 fps, and 5 are wanted" in skipped[3]["reason"]
    assert "skipped broken.mp4" in capsys.readouterr().err

    first = next((out / "samples").iterdir())
    before = first.stat().st_mtime_ns
    shutil.copy(videos / "clip_1.mp4", videos / "gone.mp4")
    with (out / "manifest.jsonl").open("a") as manifest:
        manifest.write('{"file": "samples/cut')  # a kill in the middle of a line
    assert encode.main(options) == 0
    data = EncodedData(out)
    assert [entry["source"] for entry in data.entries] == ["clip_0.mp4", "gone.mp4"]
    assert first.stat().st_mtime_ns == before
    assert data[0]["latents"].shape == (4, 2, 4, 6)


@pytest.fixture
def data(t2v, tmp_path):
    """`data(rows)` makes `data.out` of a table of `data.clips`: the command's exit code."""
    clips, out = tmp_path / "clips", tmp_path / "out"
    shutil.copytree(t2v.prompts.parent, clips)

    def encoded(rows, out=out):
        prompts = write_prompts(tmp_path / "p.csv", rows)
        options = [*t2v.encode_options, "--prompts", prompts, "--out", str(out)]
        options[options.index("--videos") + 1] = str(clips)
        return encode.main(options)

    encoded.clips, encoded.out = clips, out
    return encoded


def rows_of(out):
    return [(entry["source"], entry["prompt"]) for entry in EncodedData(out).entries]


ROWS = [(f"clip_{i}.mp4", f"the clip {i}") for i in range(3)]


def test_a_corrected_prompt_takes_the_old_ones_place_and_the_video_is_not_encoded_again(
    data, capsys, monkeypatch
):
    assert data(ROWS) == 0
    before = EncodedData(data.out)
    corrected = [ROWS[0], ("clip_1.mp4", "a better caption"), ROWS[2]]
    monkeypatch.setattr(encoder, "encode_video", None)
    assert data(corrected) == 0
    said = capsys.readouterr()
    assert "dropped clip_1.mp4, 'the clip 1': the table has no such row" in said.err
    assert "3 samples (1 encoded now, 1 dropped); 0 skipped" in said.out
    assert sorted(rows_of(data.out)) == sorted(corrected)
    after = EncodedData(data.out)
    assert after.fingerprint() != before.fingerprint()
    assert torch.equal(after[2]["latents"], before[1]["latents"])
    assert not torch.equal(after[2]["text"], before[1]["text"])


def test_a_row_that_is_removed_is_dropped_and_when_it_comes_back_its_sample_is_there(
    data, capsys, monkeypatch
):
    data(ROWS)
    assert data(ROWS[:2]) == 0
    assert "dropped clip_2.mp4" in capsys.readouterr().err
    assert rows_of(data.out) == ROWS[:2]
    monkeypatch.setattr(encoder, "encode_video", None)
    assert data(ROWS) == 0
    assert rows_of(data.out) == ROWS
    assert data([]) == 2
    assert "has no rows" in capsys.readouterr().err
    assert rows_of(data.out) == ROWS


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_replaced_file_of_the_same_name_is_encoded_anew(data, capsys, tmp_path, keep_times):
    data(ROWS)
    before, clip = EncodedData(data.out).fingerprint(), data.clips / "clip_1.mp4"
    (shutil.copy2 if keep_times else shutil.copy)(data.clips / "clip_2.mp4", clip)
    assert data(ROWS) == 0
    assert "dropped clip_1.mp4, 'the clip 1': the file is another one" in capsys.readouterr().err
    assert sorted(rows_of(data.out)) == ROWS
    assert data(ROWS, tmp_path / "fresh") == 0
    after, fresh = EncodedData(data.out), EncodedData(tmp_path / "fresh")
    latents = [
        {entry["source"]: found[i]["latents"] for i, entry in enumerate(found.entries)}
        for found in (after, fresh)
    ]
    assert all(torch.equal(latents[0][name], latents[1][name]) for name in latents[1])
    assert torch.equal(latents[0]["clip_1.mp4"], latents[0]["clip_2.mp4"])
    assert after.fingerprint() != before  # a run does not resume on it
    clip.write_bytes(b"broken")
    assert data(ROWS) == 0
    assert sorted(rows_of(data.out)) == [ROWS[0], ROWS[2]]
    assert json.loads((data.out / "skipped.jsonl").read_text())["source"] == "clip_1.mp4"


def test_what_is_the_same_stays_whether_copied_or_deleted(data, capsys, monkeypatch):
    data(ROWS)
    fingerprint = EncodedData(data.out).fingerprint()
    (data.clips / "clip_0.mp4").touch()
    (data.clips / "clip_1.mp4").unlink()
    monkeypatch.setattr(encode, "make_sample", None)
    assert data(ROWS) == 0
    assert "0 encoded now, 0 dropped" in capsys.readouterr().out
    monkeypatch.setattr(table, "content", None)  # its new time was noted: it need not be read
    assert data(ROWS) == 0
    assert EncodedData(data.out).fingerprint() == fingerprint


def test_a_sample_that_is_missing_is_made_anew(data, capsys):
    data(ROWS)
    (data.out / EncodedData(data.out).entries[1]["file"]).unlink()
    with pytest.raises(ValueError, match="Run encode again"):
        EncodedData(data.out)
    assert data(ROWS) == 0
    assert "clip_1.mp4, 'the clip 1': its sample" in capsys.readouterr().err
    assert sorted(rows_of(data.out)) == ROWS


def test_the_same_clips_in_another_format_are_other_data(t2v, data):
    """A run does not resume on them, wherever the folder lies."""
    folders = [data.out.with_name(name) for name in ("one", "two")]
    for out, fps in zip(folders, ("16", "20")):
        options = [*t2v.encode_options, "--fps", fps, "--prompts", str(t2v.prompts)]
        assert encode.main([*options, "--out", str(out)]) == 0
    one, two = map(EncodedData, folders)
    assert [e["file"] for e in one.entries] == [e["file"] for e in two.entries]
    assert one.fingerprint() != two.fingerprint()


def test_an_encoding_that_is_not_finite_does_not_become_data(data, capsys, monkeypatch):
    real = encoder.encode_video
    times = iter(range(3))

    def overflowing(vae, video):
        return real(vae, video) * (float("inf") if next(times) == 1 else 1)

    monkeypatch.setattr(encoder, "encode_video", overflowing)
    assert data(ROWS) == 0
    assert "skipped clip_1.mp4: its encoding (latents) has numbers" in capsys.readouterr().err
    assert rows_of(data.out) == [ROWS[0], ROWS[2]]


def test_images_of_a_folder_are_conditions_without_latents(i2v, tmp_path):
    Image.new("RGB", (100, 40), "red").save(tmp_path / "image.png")
    prompts = write_prompts(tmp_path / "p.csv", [("image.png", "red")])
    options = [*i2v.encode_options, "--prompts", prompts, "--out", str(tmp_path / "data")]
    options[options.index("--videos") + 1] = str(tmp_path)
    assert encode.main(options) == 0
    item = EncodedData(tmp_path / "data")[0]
    assert set(item) == {"text", "condition", "image"}


def test_bad_input_of_encode_is_named(t2v, tmp_path, capsys):
    def error(*more, prompts=str(t2v.prompts), out=str(tmp_path / "x")):
        assert encode.main([*t2v.encode_options, "--prompts", prompts, "--out", out, *more]) == 2
        return capsys.readouterr().err

    assert "columns file and prompt" in error(prompts=write_prompts(tmp_path / "p", [], ("a", "b")))
    assert "must be a CSV file" in error(prompts=str(tmp_path / "none.csv"))
    assert "multiples of 16" in error("--height", "40")
    assert "1 more than a multiple of 4" in error("--frames", "8")
    assert "encoded with other settings: fps (16 there, 8 now)" in error(
        "--fps", "8", out=str(t2v.data)
    )
    assert "has no model_index.json" in error("--model", str(tmp_path))


def test_bad_data_is_named(t2v, tmp_path):
    with pytest.raises(ValueError, match="a folder made by"):
        EncodedData(tmp_path)
    data = tmp_path / "data"
    shutil.copytree(t2v.data, data)
    files = [entry["file"] for entry in EncodedData(data).entries]
    (data / files[2]).unlink()
    with pytest.raises(ValueError, match=rf"names 1 missing file\(s\): {files[2]}"):
        EncodedData(data)
    (data / files[2]).write_bytes(b"cut off")
    with pytest.raises(ValueError, match="cannot be read"):
        EncodedData(data)[2]
    (data / "manifest.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no samples"):
        EncodedData(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_index.json": {"expand_timesteps": True}}, "a timestep of its own"),
        (
            {"model_index.json": {"transformer_2": ["diffusers", "WanTransformer3DModel"]}},
            "two transformers",
        ),
        ({"transformer/config.json": {"pos_embed_seq_len": 514}}, "a last frame too"),
        ({"transformer/config.json": {"in_channels": 5}}, r"take 4 channels \(T2V\) or 12"),
    ],
)
def test_a_wan_that_the_recipe_does_not_know_is_an_error(t2v, tmp_path, change, message):
    model = tmp_path / "model"
    shutil.copytree(t2v.model, model)
    for name, values in change.items():
        settings = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(settings | values))
    with pytest.raises(ValueError, match=message):
        read_kind(str(model))


def test_wans_own_shapes_are_known():
    with torch.device("meta"):
        transformer = WanTransformer3DModel(in_channels=36, image_dim=1280, num_layers=1)
    assert transformer.config.in_channels == 2 * transformer.config.out_channels + 4


def test_every_pass_over_the_data_is_a_new_shuffle_that_processes_share():
    def taken(processes: int, per_process: int, first: int = 0) -> list[int]:
        orders = [
            iter(Order(5, 2, seed=3, first=first, process=p, processes=processes))
            for p in range(processes)
        ]
        batches = [next(order) for _ in range(per_process) for order in orders]
        return [i for batch in batches for i in batch]

    alone = taken(1, 10)
    assert taken(2, 5) == alone
    assert taken(1, 6, first=4) == alone[8:]
    passes = [alone[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(p) == list(range(5)) for p in passes)
    assert len(set(map(tuple, passes))) > 1
