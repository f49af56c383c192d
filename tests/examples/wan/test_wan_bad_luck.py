"""One bad batch, one bad file, an accelerate that is configured for something else."""

from __future__ import annotations

import json
import resource
import shutil

import pytest
import torch
from accelerate import Accelerator, DistributedType
from PIL import Image
from safetensors.torch import load_file, save_file

from examples.wan import checkpoint, encode, train
from examples.wan.checks import check_accelerator
from examples.wan.config import Config
from examples.wan.data import EncodedData, Order, collate
from tests.examples.wan.runs import assert_same, contents, fork_two, run


def with_samples(t2v, folder, spoil):
    """The data again, with `spoil(path)` called on the chosen samples' files."""
    shutil.copytree(t2v.data, folder)
    for index, entry in enumerate(EncodedData(folder).entries):
        spoil(index, folder / entry["file"])
    return folder


def nan_in(*indices):
    def spoil(index, path):
        if index in indices:
            sample = load_file(path)
            sample["latents"][0, 0, 0, 0] = float("nan")
            save_file(sample, path)

    return spoil


def options_of(t2v, data, out, **settings):
    options = t2v.train_options(out, **settings)
    options[options.index("--data") + 1] = str(data)
    return options


def updates_with(index, updates, accumulation, seed=0, processes=1):
    """How many updates of a run see the sample `index` of 3."""
    order = iter(Order(3, 1, seed))
    taken = [next(order)[0] for _ in range(updates * accumulation * processes)]
    each = accumulation * processes
    return sum(index in taken[i : i + each] for i in range(0, len(taken), each))


def rows_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def all_finite(out):
    weights, training, _ = contents(out)
    tensors = [v for values in weights.values() for v in values.values()]
    for state in training["optimizers"].values():
        tensors += [v for slots in state.values() for v in slots.values()]
    return all(tensor.isfinite().all() for tensor in tensors)


def test_one_nan_in_one_latent_costs_the_updates_that_see_it_and_no_more(t2v, tmp_path, capsys):
    data, out = with_samples(t2v, tmp_path / "data", nan_in(1)), tmp_path / "run"
    assert train.main(options_of(t2v, data, out)) == 0
    assert all_finite(out)
    rows = rows_of(out)
    seen = updates_with(1, updates=4 * 3, accumulation=1)
    assert 0 < seen < 12
    assert sum(row["skipped"] for row in rows) == seen
    # The numbers of a skipped update are no numbers, and the log is JSON: no NaN in it.
    assert any(None in row.values() for row in rows)
    assert "NaN" not in (out / "log.jsonl").read_text()
    said = capsys.readouterr().err
    assert said.count("is not finite, and its update is left out") == seen
    assert said.count("not finite in clip_1.mp4") == seen
    optimizers = contents(out)[1]["optimizers"]
    taken = [max(float(slots["step"]) for slots in state.values()) for state in optimizers.values()]
    assert sum(taken) == 12 - seen


def test_an_update_that_is_left_out_changes_nothing(t2v, tmp_path, monkeypatch):
    """Not even the moments: as if it had not been."""
    config = train.load_config(train.parse(t2v.train_options(tmp_path / "run")))
    trainer = train.Trainer(config)
    trainer.step()
    before = {n: p.clone() for n, p in trainer.roles.named_parameters()}
    moments = [checkpoint.optimizer_state(o) for o in trainer.optimizers.values()]
    real = trainer.distillation.student_loss, trainer.distillation.critic_loss
    for name, loss in zip(("student_loss", "critic_loss"), real):

        def infinite(*args, loss=loss):
            value, logs = loss(*args)
            return value * float("inf"), logs

        monkeypatch.setattr(trainer.distillation, name, infinite)
    numbers = trainer.step()
    assert numbers["skipped"] == 3
    assert_same({n: p.detach() for n, p in trainer.roles.named_parameters()}, before)
    assert_same([checkpoint.optimizer_state(o) for o in trainer.optimizers.values()], moments)
    assert all(p.grad is None for p in trainer.roles.parameters())
    monkeypatch.undo()
    assert trainer.step()["skipped"] == 0
    assert not all(torch.equal(p, before[n]) for n, p in trainer.roles.named_parameters())


def test_a_run_of_nothing_but_bad_batches_stops_and_says_where_it_was(t2v, tmp_path, capsys):
    out = run(t2v, tmp_path / "run", iterations=2)
    before = contents(out)
    damaged = with_samples(t2v, tmp_path / "data", nan_in(0, 1, 2))  # since the first iterations
    assert train.main(options_of(t2v, damaged, out, iterations=40, save_every=40)) == 2
    error = capsys.readouterr().err
    assert f"the gradients of {train.MOST_SKIPPED} updates" in error
    assert f"The last checkpoint: {out / 'checkpoints' / '000002'}" in error
    assert_same(contents(out)[:2], before[:2])


@pytest.mark.parametrize("content", [b"iterations: [", b"lr: \xff\xfe", b"seed: 2026-13-45"])
def test_a_damaged_config_is_one_sentence_of_train(t2v, tmp_path, capsys, content):
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    options = t2v.train_options(tmp_path / "run")
    options[options.index("--config") + 1] = str(path)
    assert train.main(options) == 2
    assert capsys.readouterr().err.startswith(f"error: {path} is not a YAML file: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["sample_steps=[2", "seed=2026-13-45", "lr=@"])
def test_a_change_that_is_not_yaml_is_named(t2v, tmp_path, capsys, change):
    assert train.main([*t2v.train_options(tmp_path / "run"), "--set", change]) == 2
    assert capsys.readouterr().err.startswith(f"error: --set {change}: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name",
    [checkpoint.TRAINING_FILE, f"student/{checkpoint.LORA_FILE}", f"ema/{checkpoint.LORA_FILE}"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(t2v, tmp_path, capsys, name):
    out = run(t2v, tmp_path / "run", iterations=2, save_every=1)
    folder = checkpoint.latest(out)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert train.main(t2v.train_options(out, iterations=2, save_every=1)) == 2
    assert f"error: {folder / name} cannot be read (" in capsys.readouterr().err
    shutil.rmtree(folder)
    run(t2v, out, iterations=2, save_every=1)
    assert checkpoint.latest(out) == folder


def trainer_of(t2v, out, **settings):
    return train.Trainer(train.load_config(train.parse(t2v.train_options(out, **settings))))


def test_a_run_whose_fake_score_has_diverged_stops_and_its_student_stays(t2v, tmp_path):
    """DMD's direction would be 0, and the student's loss finite: that of its other term."""
    trainer = trainer_of(t2v, tmp_path / "run", iterations=150, critic_updates=5, save_every=150)
    trainer.step()
    for parameter in trainer.roles.trained("fake_score").values():
        parameter.data.fill_(float("nan"))
    before = {n: p.clone() for n, p in trainer.roles.trained("student").items()}
    message = f"{train.MOST_SKIPPED} updates of fake_score, one after the other.*checkpoint: none"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()
    assert_same({n: p.detach() for n, p in trainer.roles.trained("student").items()}, before)
    rows = rows_of(tmp_path / "run")
    assert [row["iteration"] for row in rows] == [2, 3, 4]  # it stops in the fifth
    assert all(row["salt/dmd_loss"] is None and row["critic"] is None for row in rows)
    assert [(r["skipped"], r["skipped_student"], r["skipped_critic"]) for r in rows] == [
        (6, 1, 5)
    ] * 3


@pytest.mark.parametrize("role", ["student", "fake_score"])
def test_updates_in_a_row_are_counted_for_each_network_and_from_0_after_a_good_one(
    t2v, tmp_path, monkeypatch, role
):
    monkeypatch.setattr(train, "MOST_SKIPPED", 3)
    trainer = trainer_of(t2v, tmp_path / "run", iterations=9, critic_updates=1)
    name = {"student": "student_loss", "fake_score": "critic_loss"}[role]
    real, bad = getattr(trainer.distillation, name), iter([1, 1, 0, 1, 1, 0, 1, 1, 1])

    def spoiled(*arguments):
        loss, logs = real(*arguments)
        return loss * (float("nan") if next(bad) else 1), logs

    monkeypatch.setattr(trainer.distillation, name, spoiled)
    own, other = "skipped_student", "skipped_critic"
    if role == "fake_score":
        own, other = other, own
    numbers = [trainer.step() for _ in range(8)]
    assert [n[own] for n in numbers] == [1, 1, 0, 1, 1, 0, 1, 1]
    assert [n["skipped"] for n in numbers] == [n[own] for n in numbers]
    assert not any(n[other] for n in numbers)
    with pytest.raises(FloatingPointError, match=f"3 updates of {role}, one after the other"):
        trainer.step()


class Float16(Accelerator):
    """accelerate's float16, which wants a GPU: its gradient scaler, with other matmuls.

    It starts so high that the first update of the critic is left out.
    """

    mixed_precision = "fp16"

    def __init__(self, **settings):
        super().__init__(**settings)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=100)
        self.native_amp = True


def test_float16s_gradient_scaler_goes_on_where_it_was(t2v, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "Accelerator", Float16)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run(t2v, straight, iterations=6)
    assert [row["skipped_critic"] > 0 for row in rows_of(straight)[:2]] == [True, False]
    run(t2v, stopped, iterations=3)
    run(t2v, stopped, iterations=6)
    assert_same(contents(stopped), contents(straight))
    scaler = contents(straight)[1]["scaler"]
    assert scaler["scale"] < 2.0**127
    assert scaler["_growth_tracker"] > 0

    file = checkpoint.latest(stopped) / "training.pt"  # of a run from before it was kept
    training = torch.load(file)
    del training["scaler"]
    torch.save(training, file)
    run(t2v, stopped, iterations=7)
    assert len(rows_of(stopped)) == 7


def test_a_bad_batch_of_one_process_is_left_out_by_both_though_they_share_the_weights(
    t2v, tmp_path, capfd
):
    data, out = with_samples(t2v, tmp_path / "data", nan_in(1)), tmp_path / "run"
    assert fork_two("fsdp2", options_of(t2v, data, out, iterations=3)) == [0, 0]
    assert all_finite(out)
    seen = updates_with(1, updates=3 * 3, accumulation=1, processes=2)
    assert 0 < seen < 9
    assert sum(row["skipped"] for row in rows_of(out)) == seen
    assert capfd.readouterr().err.count("not finite in clip_1.mp4") == seen


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_one_process_cannot_read_stops_both_with_its_name(
    t2v, tmp_path, capfd, num_workers
):
    def cut_off(index, path):
        if index == 1:
            path.write_bytes(path.read_bytes()[:100])

    data = with_samples(t2v, tmp_path / "data", cut_off)
    options = options_of(t2v, data, tmp_path / "run", num_workers=num_workers)
    assert fork_two("fsdp2", options) == [2, 2]
    said = f"error: {data / EncodedData(data).entries[1]['file']} cannot be read: "
    assert capfd.readouterr().err.count(said) == 2


def test_a_disk_that_is_full_under_one_process_stops_both(t2v, tmp_path, capfd):
    out = run(t2v, tmp_path / "alone", iterations=1)
    largest = max(p.stat().st_size for p in out.rglob("*") if p.is_file())
    capfd.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, hard))  # forks inherit it
    try:
        assert fork_two("fsdp2", t2v.train_options(tmp_path / "both")) == [2, 2]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capfd.readouterr().err.count("000002 could not be saved") == 2


@pytest.fixture(scope="module")
def mixed(i2v, tmp_path_factory):
    """Data of a video, an image and a video."""
    folder = tmp_path_factory.mktemp("mixed")
    files = folder / "files"
    shutil.copytree(i2v.prompts.parent, files)
    Image.new("RGB", (96, 64), "red").save(files / "clip_1.png")
    rows = "file,prompt\nclip_0.mp4,a\nclip_1.png,b\nclip_2.mp4,c\n"
    (folder / "p.csv").write_text(rows)
    options = [*i2v.encode_options, "--prompts", str(folder / "p.csv")]
    options[options.index("--videos") + 1] = str(files)
    assert encode.main([*options, "--out", str(folder / "data")]) == 0
    return folder / "data"


def test_images_and_videos_in_one_batch_train_by_backward_simulation(i2v, mixed, tmp_path, capsys):
    data, out = EncodedData(mixed), tmp_path / "run"
    assert data.images() == ["clip_1.png"]
    batch = collate([data[0], data[1]])
    assert set(batch) == {"text", "condition", "image"}
    assert torch.equal(batch["condition"][1], data[1]["condition"])
    assert set(collate([data[0], data[2]])) == {*batch, "latents"}
    settings = {"batch_size": 2, "iterations": 2, "sample_every": 2, "sample_steps": [1]}
    settings |= {"sample_count": 2}
    options = options_of(i2v, mixed, out, **settings)
    assert train.main(options) == 2
    assert "1 of its 3 samples are images (clip_1.png, for one)" in capsys.readouterr().err
    term = "salt.terms=[{_target_: tests.examples.wan.test_wan_distil.Real}]"
    assert train.main([*options, "--set", "backward_simulation=true", "--set", term]) == 2
    assert "real needs real videos: 1 of the 3 samples of" in capsys.readouterr().err
    assert not out.exists()
    assert train.main([*options, "--set", "backward_simulation=true"]) == 0
    assert len(list((out / "samples" / "000002").iterdir())) == 2


def test_what_accelerate_is_told_and_the_recipe_cannot_do_is_refused(
    t2v, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert train.main(t2v.train_options(tmp_path / "run")) == 2
    assert "recipe's, 1, and accelerate's own configuration says 4" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

    class Told:
        """What accelerate has of a machine with GPUs."""

        gradient_accumulation_steps = 1

        def __init__(self, kind, version=2):
            self.distributed_type = kind
            self.state = type("", (), {"fsdp_plugin": type("", (), {"fsdp_version": version})})

    config = Config(model="", data="", out="")
    check_accelerator(Told(DistributedType.FSDP), config)
    with pytest.raises(ValueError, match="configured for FSDP1"):
        check_accelerator(Told(DistributedType.FSDP, 1), config)
    with pytest.raises(ValueError, match="configured for DEEPSPEED"):
        check_accelerator(Told(DistributedType.DEEPSPEED), config)


def test_a_run_says_at_its_start_what_it_goes_on_from(t2v, tmp_path, capsys):
    out = run(t2v, tmp_path / "run", iterations=2)
    assert f"{out}: a new run; 3 samples; NO on 1 process(es), cpu" in capsys.readouterr().err
    run(t2v, out, iterations=3)
    assert f"goes on from {out / 'checkpoints' / '000002'}" in capsys.readouterr().err


def test_a_run_says_at_its_start_which_term_never_comes_on(t2v, tmp_path):
    settings = {"salt.step_counts": [4], "salt.probs": [1.0], "iterations": 1}
    options = train.parse(t2v.train_options(tmp_path / "run", **settings))
    with pytest.warns(UserWarning, match=r"sc never turns on: .* set sc.step_counts to"):
        train.Trainer(train.load_config(options))
