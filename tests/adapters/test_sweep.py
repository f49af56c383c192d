"""Step sweeps: what they write, and that the training is as if there were none."""

from __future__ import annotations

import contextlib
import json
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import pytest
import sweep_worker
import tiny
import torch
from harness import as_trainer, assert_same
from ranks import run_two_ranks
from test_adapters import adapter, own_steps
from test_adapters_on_the_miniature import BUSY
from torch import Tensor

from examples.tiny_video.pipeline import CachedVideo
from salt_losses import SaltConfig, SettingError, add_noise, semigroup_defect, step_schedule
from salt_losses.adapters import record, self_forcing
from salt_losses.adapters.watch import sheet, sweep
from salt_losses.adapters.watch.averages import averaged
from salt_losses.adapters.watch.sweep import Sweeps
from salt_losses.adapters.watch.sweep_measures import concordance
from salt_losses.runtime import streams
from salt_losses.runtime.step_lists import StepLists
from salt_losses.terms import SelfConsistency
from tests.nested import changed

PROMPTS = ["3", "7"]


def recorded(
    folder: Path, config: SaltConfig = BUSY, every: int = 2, prompts: Any = PROMPTS
) -> Any:
    trainer = tiny.build_trainer(folder, dfake_gen_update_ratio=2)
    handle = self_forcing.attach(trainer, config)
    record(handle, trainer, sweep_every=every, sweep_prompts=prompts)
    return trainer


def sweeps_of(
    handle: Any, folder: Path | None, trainer: Any = None, prompts: Any = PROMPTS
) -> Sweeps:
    """Of a handle, at each iteration."""
    lists = handle._losses.lists
    return Sweeps(handle._model, trainer, handle.config, lists, folder, every=1, prompts=prompts)


def after_training(trainer: Any, until: int = 4) -> list[Tensor]:
    torch.manual_seed(0)
    random.seed(0)
    trainer.train(until)
    weights = [*trainer.model.parameters(), *trainer.generator_ema.parameters()]
    drawn = torch.tensor(random.random(), dtype=torch.float64)
    return [*(p.detach().clone() for p in weights), torch.get_rng_state(), drawn]


def sweep_of(folder: Path, iteration: int, name: str = "sweep.json") -> Any:
    return json.loads((folder / "salt_sweeps" / f"iteration_{iteration:06d}" / name).read_text())


# Neutral.


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"first_chunk_steps": 4, "align": {"to": "input"}},
        {"adv": {"weight": 0.1, "against": "more_steps", "blocks": (0,)}},
    ],
    ids=str,
)
def test_a_run_with_sweeps_ends_with_the_bits_of_one_without(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    config = changed(BUSY, **settings)
    swept = after_training(recorded(tmp_path / "swept", config))
    plain = after_training(recorded(tmp_path / "plain", config, every=0))
    assert all(torch.equal(a, b) for a, b in zip(swept, plain, strict=True))
    for iteration in (0, 2):
        assert sweep_of(tmp_path / "swept", iteration)["iteration"] == iteration
    assert not (tmp_path / "plain" / "salt_sweeps").exists()
    metrics = [(tmp_path / run / "salt_metrics.jsonl").read_text() for run in ("swept", "plain")]
    assert metrics[0] == metrics[1]


class Update:
    """A loss and its gradients in every trainer; with a sweep before it, if there is a folder."""

    def __init__(self, model: Any, folder: Path | None, critic: bool) -> None:
        import harness

        model.zero_grad(set_to_none=True)
        model.inference_pipeline = None
        torch.manual_seed(1)
        random.seed(1)
        streams = model.name == "longlive_streaming"
        target = harness.build_streaming(model) if streams else model
        inputs = (tiny if model.name == "tiny_video" else harness).loss_inputs(model)
        steps = own_steps(model)
        config = SaltConfig(
            step_counts=(steps,),
            probs=(1.0,),
            sc=SelfConsistency(step_counts=(steps,)),
            inference_steps=steps // 2,
        )
        with adapter(model).attached(as_trainer(target), config) as handle:
            if streams:  # a chunk before, so that there is a cache to lose
                target.generate_next_chunk(requires_grad=False)
                handle._losses.clock._call = (-1, 0)
            if folder is not None:
                handle._losses.sweeps = sweeps_of(handle, folder, prompts=PROMPTS[:1])
            if streams:
                chunk, info = target.generate_next_chunk(requires_grad=not critic)
                compute = target.compute_critic_loss if critic else target.compute_generator_loss
                loss, _ = compute(chunk=chunk, chunk_info=info)
            else:
                loss, _ = (model.critic_loss if critic else model.generator_loss)(**inputs)
            loss.backward()
            self.metrics = handle.metrics
        network = model.fake_score if critic else model.generator
        self.result = loss.detach(), harness.gradients(network)
        self.streams = torch.get_rng_state(), random.getstate()
        self.settings = [
            (name, key, value)
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str))
        ]
        self.caches = {
            f"{index}.{key}": value.detach().clone()
            for index, block in enumerate(model.inference_pipeline.kv_cache1)
            for key, value in block.items()
            if isinstance(value, Tensor)
        }


@pytest.mark.parametrize("critic", [False, True], ids=["generator", "critic"])
def test_an_iteration_with_a_sweep_in_it_is_bit_identical_in_every_trainer(
    model: Any, critic: bool, tmp_path: Path
) -> None:
    plain = Update(model, None, critic)
    with harness.warnings_as_errors():
        swept = Update(model, tmp_path, critic)
    assert_same(plain.result, swept.result)
    assert torch.equal(plain.streams[0], swept.streams[0])
    assert plain.streams[1] == swept.streams[1]
    assert plain.settings == swept.settings
    assert all(torch.equal(value, swept.caches[key]) for key, value in plain.caches.items())
    assert plain.metrics == swept.metrics
    if not critic:
        numbers = {"dmd_norm", "critic_loss", "critic_lag", "motion", "exit_step", "triples"}
        assert {f"salt/health/{name}" for name in numbers} <= set(plain.metrics)
        assert all(math.isfinite(value) for value in plain.metrics.values())
    found = sweep_of(tmp_path, 0)
    assert found["agreement"]["1-8"] < 1
    assert all(value > 0 for value in found["defect"]["per_interval"])


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_ranks_under_fsdp_sweep_together_and_train_as_without(tmp_path: Path) -> None:
    one, other = run_two_ranks("sweep_worker.py", tmp_path)
    for found in (one, other):
        for averages in ("whole", "shards"):
            assert torch.equal(found[averages], found["plain"])
    assert torch.equal(one["plain"], other["plain"])
    runs = [tmp_path / name / "salt_metrics.jsonl" for name in ("plain", "whole", "shards")]
    [plain, *swept] = [path.read_text() for path in runs]
    assert swept == [plain, plain]
    # What rank 0 logs is of its own batch: the first update is that of a single process.
    trainer = tiny.build_trainer(**sweep_worker.TRAINER)
    with self_forcing.attached(trainer, sweep_worker.SALT) as handle:
        torch.manual_seed(0)
        trainer.train(1)
        alone = handle.metrics
    assert "salt/health/sc_cosine" in alone
    assert json.loads(plain.splitlines()[0]) == pytest.approx(alone, rel=1e-4, abs=1e-6)
    # The averages are those of the weights at the start, in whichever way they are kept.
    for averages in ("whole", "shards"):
        start, ema = (
            sweep_of(tmp_path / averages, i, name)
            for i, name in ((0, "sweep.json"), (2, "sweep_ema.json"))
        )
        assert ema["agreement"] == pytest.approx(start["agreement"], abs=1e-6)
        assert sweep_of(tmp_path / averages, 2)["agreement"] != start["agreement"]
        assert not (tmp_path / averages / "of_rank_1").exists()


# What they find.


def test_a_sweep_has_a_sheet_a_video_for_each_step_count_and_the_numbers(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    trainer = recorded(tmp_path)
    after_training(trainer, 3)
    folder = tmp_path / "salt_sweeps" / "iteration_000002"
    kinds = [f"steps_{k}.gif" for k in (1, 2, 4, 8)] + ["sheet.png", "sweep.json"]
    averaged = [name.replace(".", "_ema.") for name in kinds]
    assert sorted(path.name for path in folder.iterdir()) == sorted(kinds + averaged)
    with image.open(folder / "steps_4.gif") as video:
        assert video.n_frames == trainer.config.num_training_frames
    with image.open(folder / "sheet.png") as sheet, image.open(folder / "sheet_ema.png") as ema:
        assert sheet.size == ema.size
        assert sheet.tobytes() != ema.tobytes()
    student, ema = sweep_of(tmp_path, 2), sweep_of(tmp_path, 2, "sweep_ema.json")
    assert (student["weights"], ema["weights"]) == ("student", "ema")
    assert student["prompts"] == PROMPTS
    assert student["step_counts"] == [1, 2, 4, 8]
    assert set(student["agreement"]) == {"1-2", "1-4", "1-8", "2-4", "2-8", "4-8"}
    assert student["agreement"] != ema["agreement"]


def sampled(
    model: Any, noise: Tensor, prompt: str, num_steps: int, grids: tuple[list[float], list[float]]
) -> tuple[Tensor, Tensor]:
    """The video and eq. 16 of each interval, by the library's own functions on a growing video."""
    lists = StepLists(model.denoising_step_list, model.scheduler)
    times = lists.times(step_schedule(num_steps, lists.shift))
    video = CachedVideo(model.generator, model.text_encoder([prompt]), noise.shape[1])
    frames, defects = [], []
    for x in noise.split(model.num_frame_per_block, dim=1):
        per_interval = []
        for t_s, t_e in zip(times, times[1:]):
            if grids[0] == times:
                short = semigroup_defect(video.velocity_fn, x, [t_s, t_e], grids[1])
                per_interval.append(short.mean)
            x0 = x - t_s * video.velocity_fn(x, torch.full((1,), t_s))
            fresh = torch.randn_like(x0.flatten(0, 1)).unflatten(0, x0.shape[:2]) if t_e else x0
            x = add_noise(x0, fresh, t_e)
        torch.randn_like(x0)  # of the context pass
        video.append(x0)
        frames.append(x0)
        if per_interval:
            defects.append(torch.stack(per_interval))
    return torch.cat(frames, 1), torch.stack(defects).mean(0) if defects else torch.empty(0)


def test_the_numbers_are_those_of_the_librarys_own_sampler_and_defect(tmp_path: Path) -> None:
    model = tiny.build_model()
    handle = self_forcing.attach(as_trainer(model), changed(BUSY, inference_steps=4))
    sweeps = sweeps_of(handle, tmp_path)
    sweeps.look(0)
    found = sweep_of(tmp_path, 0)
    lists, shift = handle._losses.lists, handle._losses.lists.shift
    grids = lists.times(step_schedule(4, shift)), lists.times(step_schedule(8, shift))
    videos: dict[int, list[Tensor]] = {1: [], 4: []}
    defects = []
    for index, prompt in enumerate(PROMPTS):
        noise = sweeps._noise(index)
        for k, made in videos.items():
            torch.manual_seed(streams.seed_of(f"salt-losses sweep {index}"))
            with torch.no_grad():
                video, defect = sampled(model, noise, prompt, k, grids)
            made.append(video)
            defects += [defect] if k == 4 else []
    one, four = (torch.cat(made) for made in videos.values())
    assert found["agreement"]["1-4"] == pytest.approx(concordance(one, four), abs=1e-5)
    spread = four.double().var((0, 1, 3, 4), correction=0).sqrt().mean()
    assert found["deviation"]["4"] == pytest.approx(float(spread), rel=1e-5)
    assert set(found["deviation"]) == {"1", "2", "4", "8"}
    expected = torch.stack(defects).mean(0)
    assert found["defect"]["per_interval"] == pytest.approx(expected.tolist(), rel=1e-3)
    assert found["defect"]["mean"] == pytest.approx(float(expected.mean()), rel=1e-3)
    assert found["defect"]["times"] == grids[0]


def test_concordance_is_lins_coefficient_and_sees_contrast_and_brightness() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 2, 8, 8, generator=generator) for _ in range(2))
    assert concordance(a, a) == 1
    assert abs(concordance(a, b)) < 0.1
    x, y = a[0, :, 1].flatten().double(), (0.5 * a[0, :, 1] + 1).flatten().double()
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    lin = (
        2
        * covariance
        / (x.var(correction=0) + y.var(correction=0) + (x.mean() - y.mean()).square())
    )
    only = a[:1, :, 1:2]
    assert concordance(only, 0.5 * only + 1) == pytest.approx(float(lin))


# What may go wrong.


def test_an_error_in_a_sweep_is_told_once_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = recorded(tmp_path / "swept")
    made = Sweeps._decoded

    def full(*_: Any) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(Sweeps, "_decoded", full)
    with pytest.warns(UserWarning, match=r"sweep of iteration 0 failed.*no space") as warned:
        swept = after_training(trainer, 4)
    monkeypatch.setattr(Sweeps, "_decoded", made)
    assert len([w for w in warned if "sweep" in str(w.message)]) == 1
    plain = after_training(recorded(tmp_path / "plain", every=0), 4)
    assert all(torch.equal(a, b) for a, b in zip(swept, plain, strict=True))
    trainer.train(5)  # the next one is made
    assert sweep_of(tmp_path / "swept", 4)["iteration"] == 4


def test_a_rank_that_cannot_write_makes_all_the_calls_of_one_that_does_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny.build_trainer()
    handle = self_forcing.attach(trainer, BUSY)
    calls: list[int] = []

    def full(*_: Any) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(Sweeps, "_decoded", full)
    for folder in (None, tmp_path):
        calls.append(0)

        def count(*_: Any) -> None:
            calls[-1] += 1

        hook = trainer.model.generator.register_forward_pre_hook(count)
        sweeps = sweeps_of(handle, folder, trainer)
        with contextlib.nullcontext() if folder is None else pytest.warns(match="no space"):
            sweeps.look(0)
        hook.remove()
    # Two prompts of three chunks, the weights and their average: steps, context, intervals.
    assert calls == 2 * [2 * 2 * 3 * (15 + 4 + 2)]


def test_an_error_within_a_rollout_leaves_weights_and_hooks_as_they_were(tmp_path: Path) -> None:
    trainer = tiny.build_trainer()
    model = trainer.model
    weights = [p.detach().clone() for p in model.generator.parameters()]
    for average in trainer.generator_ema.parameters():
        average.data.add_(1.0)
    handle = self_forcing.attach(trainer, BUSY)
    sweeps = sweeps_of(handle, tmp_path, trainer)
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 200:  # of the averaged weights' rollouts
            raise KeyError("of the generator")

    hook = model.generator.register_forward_pre_hook(fail)
    with pytest.warns(UserWarning, match="of the generator"):
        sweeps.look(0)
    hook.remove()
    assert not model.generator._forward_hooks
    assert model.inference_pipeline is None
    assert all(torch.equal(a, b) for a, b in zip(weights, model.generator.parameters()))


def test_without_pillow_the_frames_are_kept_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    sheet._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="pillow is not installed") as warned:
        after_training(recorded(tmp_path), 3)
    assert len([w for w in warned if "pillow" in str(w.message)]) == 1
    folder = tmp_path / "salt_sweeps" / "iteration_000002"
    names = ["sweep.json", "sweep.pt", "sweep_ema.json", "sweep_ema.pt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    frames = torch.load(folder / "sweep.pt", weights_only=True)
    assert {k: tuple(v.shape) for k, v in frames.items()} == dict.fromkeys(
        (1, 2, 4, 8), (2, 6, 8, 16, 3)
    )


def test_prompts_are_the_first_two_of_the_trainers_own_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("4\n\n 2 \n9\n")
    trainer = SimpleNamespace(config=SimpleNamespace(data_path=str(tmp_path / "prompts.txt")))
    assert sweep.first_prompts(trainer) == ("4", "2")


def test_without_prompts_a_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="sweep_prompts must be given") as refused:
        recorded(tmp_path, prompts=None)
    assert refused.value.setting == "sweep_prompts"
    assert not (tmp_path / "salt_run.json").exists()


def test_a_trainer_that_starts_from_images_is_refused(tmp_path: Path) -> None:
    model = tiny.build_model()
    handle = self_forcing.attach(as_trainer(model), BUSY)
    args = SimpleNamespace(image_or_video_shape=model.args.image_or_video_shape, i2v=True)
    model.args = args
    with pytest.raises(SettingError, match=r"sweep_every must be 0: .*i2v") as refused:
        sweeps_of(handle, tmp_path)
    assert refused.value.setting == "sweep_every"


@pytest.mark.parametrize(
    ("every", "prompts", "message"),
    [
        (-1, PROMPTS, "sweep_every must be .*; got -1"),
        (1.5, PROMPTS, "sweep_every must be .*; got 1.5"),
        (2, "a cat", "sweep_prompts must be a sequence of prompts or None; got 'a cat'"),
        (2, [], r"sweep_prompts must be a sequence of prompts or None; got \[\]"),
        (0, ["a", 3], r"sweep_prompts must be .*; got \['a', 3\]"),
    ],
)
def test_wrong_arguments_of_sweeps_are_named_and_nothing_is_written(
    every: Any, prompts: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        recorded(tmp_path, every=every, prompts=prompts)
    assert list(tmp_path.iterdir()) == []


# The VAE, and the averages.


def test_the_trainers_vae_decodes_and_goes_back_to_where_it_was(tmp_path: Path) -> None:
    class VAE(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.bfloat16))
            self.model = SimpleNamespace(clear_cache=lambda: cleared.append(1))

        def decode_to_pixel(self, latent: Tensor) -> Tensor:
            assert latent.dtype == torch.bfloat16
            return (self.scale * latent).expand(-1, -1, 3, -1, -1)

    cleared: list[int] = []
    model = tiny.build_model()
    handle = self_forcing.attach(as_trainer(model), BUSY)
    sweeps = sweeps_of(handle, tmp_path)
    latents = torch.randn(2, 6, 1, 8, 16)
    assert torch.equal(sweeps._decoded(latents), latents.expand(-1, -1, 3, -1, -1))
    model.vae = VAE()
    decoded = sweeps._decoded(latents)
    assert torch.equal(decoded, (latents.bfloat16() / 2).float().expand(-1, -1, 3, -1, -1))
    assert cleared == [1]


def test_averages_take_the_weights_place_for_a_while() -> None:
    trainer = tiny.build_trainer()
    generator, ema = trainer.model.generator, trainer.generator_ema
    for average in ema.parameters():
        average.data.mul_(2.0)
    own = [p.detach().clone() for p in generator.parameters()]
    shadow = SimpleNamespace(shadow={n: 3 * p for n, p in ema.named_parameters()})
    for averages, factor in ((ema, 2.0), (shadow, 6.0)):
        with contextlib.suppress(KeyError), averaged(generator, averages):
            assert all(torch.equal(p, factor * o) for p, o in zip(generator.parameters(), own))
            raise KeyError
        assert all(torch.equal(p, o) for p, o in zip(generator.parameters(), own))
