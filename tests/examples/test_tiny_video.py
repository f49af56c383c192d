"""The miniature trainer: it works, and it has the properties that adapters must cope with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import itertools

from examples.tiny_video import __main__ as command
from examples.tiny_video.checkpoint import Run, SettingsDiffer
from examples.tiny_video.config import PRESETS
from examples.tiny_video.data import NULL_PROMPT, DigitVideos, bounce, load_scans
from examples.tiny_video.metrics import ClassifierTrainer, Judge, frechet_distance
from examples.tiny_video.pipeline import CachedVideo, sample
from examples.tiny_video.teacher import TeacherTrainer
from examples.tiny_video.trainer import Trainer
from examples.tiny_video.wrapper import DigitPrompts, VideoDiffusionWrapper
from salt_losses import SaltConfig
from salt_losses.adapters import record, self_forcing
from salt_losses.cli import main as report

CPU = torch.device("cpu")
TOY = PRESETS["smoke"]
SHAPE = TOY.image_or_video_shape


def randomised(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights without the head's zeros, which would hide everything before the head."""
    rng = torch.Generator().manual_seed(0)
    return {
        name: 0.2 * torch.randn(value.shape, generator=rng)
        for name, value in network.state_dict().items()
    }


def new_trainer(**settings: object) -> Trainer:
    config = replace(TOY, **settings)
    return Trainer(config, randomised(VideoDiffusionWrapper(config, is_causal=False)), CPU)


def generator_gradient(trainer: Trainer, extra_call: str | None, seed: int = 1) -> torch.Tensor:
    """The DMD gradient; `extra_call`: one more call per exit step, its result unused."""
    model = trainer.model
    model._initialize_inference_pipeline()
    original = model.generator

    def generator(**kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        result = original(**kwargs)
        if extra_call is not None and torch.is_grad_enabled():
            cache = kwargs["kv_cache"]
            if extra_call == "alias":
                cache = [
                    {k: v.detach() if k in "kv" else v.clone() for k, v in c.items()} for c in cache
                ]
            timestep = 0.5 * kwargs["timestep"]
            original(**kwargs | {"kv_cache": cache, "timestep": timestep})
        return result

    generator.model = original.model
    model.inference_pipeline.generator = generator
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    trainer.fwdbwd_one_step({"prompts": ["3", "5"]}, True)
    return torch.cat([p.grad.flatten() for p in original.parameters()])


def test_a_naive_extra_generator_call_changes_the_dmd_gradient() -> None:
    trainer = new_trainer()
    plain = generator_gradient(trainer, None)
    naive = generator_gradient(trainer, "naive")
    assert (naive - plain).norm() > 1e-3 * plain.norm()


def test_an_extra_call_on_detached_aliases_leaves_the_dmd_gradient_bit_identical() -> None:
    trainer = new_trainer()
    for seed in range(3):
        plain = generator_gradient(trainer, None, seed)
        assert torch.equal(plain, generator_gradient(trainer, None, seed))
        assert torch.equal(plain, generator_gradient(trainer, "alias", seed))


def test_a_student_whose_critic_has_diverged_stays_as_it_is() -> None:
    trainer = new_trainer(dfake_gen_update_ratio=1)
    trainer.train(1)
    before = [p.clone() for p in trainer.model.generator.parameters()]
    critic = trainer.model.fake_score.state_dict()
    broken = {name: torch.full_like(value, torch.nan) for name, value in critic.items()}
    trainer.model.fake_score.load_state_dict(broken)
    with self_forcing.attached(trainer, SaltConfig()):  # its term is finite
        trainer.train(3)
    assert all(map(torch.equal, before, trainer.model.generator.parameters()))
    critic = {name: torch.zeros_like(value) for name, value in broken.items()}
    trainer.model.fake_score.load_state_dict(critic)
    trainer.train(4)
    assert not all(map(torch.equal, before, trainer.model.generator.parameters()))
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize("name", ["generator_loss", "critic_loss"])
def test_an_update_whose_gradient_is_not_finite_is_left_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer(dfake_gen_update_ratio=1)
    trainer.train(1)
    real = getattr(trainer.model, name)

    def spoiled(**inputs: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, log = real(**inputs)
        return loss * torch.nan, log

    monkeypatch.setattr(trainer.model, name, spoiled)
    network = trainer.model.generator if name == "generator_loss" else trainer.model.fake_score
    before = [p.clone() for p in network.parameters()]
    trainer.train(2)
    assert all(map(torch.equal, before, network.parameters()))
    monkeypatch.undo()
    trainer.train(3)
    assert not all(map(torch.equal, before, network.parameters()))
    assert all(p.isfinite().all() for p in network.parameters())


def test_backward_through_a_rollout_needs_gradient_checkpointing() -> None:
    generator_gradient(new_trainer(gradient_checkpointing=True), None)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        generator_gradient(new_trainer(gradient_checkpointing=False), None)


def test_a_rollout_leaves_an_autograd_history_in_the_cache() -> None:
    trainer = new_trainer()
    generator_gradient(trainer, None)
    trainer.model._run_generator(SHAPE, trainer.model.text_encoder(["1", "2"]))
    cache = trainer.model.inference_pipeline.kv_cache1
    assert all(c["k"].requires_grad and c["v"].requires_grad for c in cache)
    assert all(int(c["global_end_index"]) == c["k"].shape[1] for c in cache)


def test_chunks_through_the_cache_equal_one_causal_pass_without_it() -> None:
    wrapper = VideoDiffusionWrapper(TOY, is_causal=True)
    wrapper.load_state_dict(randomised(wrapper))
    torch.manual_seed(0)
    videos = torch.randn(SHAPE)
    prompts = DigitPrompts()(["1", "7"])
    per_chunk = TOY.num_frame_per_block
    timestep = torch.zeros(SHAPE[:2])
    timestep[:, -per_chunk:] = 700.0  # a noisy chunk on clean context
    with torch.no_grad():
        expected, _ = wrapper(videos, prompts, timestep)
        grown = CachedVideo(wrapper, prompts, SHAPE[1])
        for chunk in videos.split(per_chunk, dim=1)[:-1]:
            grown.append(chunk)
        last = videos[:, -per_chunk:]
        # Twice, as a sampler's steps overwrite one another's keys and values.
        grown.velocity_fn(torch.randn_like(last), torch.full((2,), 0.9))
        found = grown.velocity_fn(last, torch.full((2,), 0.7))
    torch.testing.assert_close(found, expected[:, -per_chunk:], rtol=1e-4, atol=1e-5)


def test_a_causal_network_does_not_see_later_chunks_and_a_bidirectional_one_does() -> None:
    wrapper = VideoDiffusionWrapper(TOY, is_causal=True)
    wrapper.load_state_dict(randomised(wrapper))
    videos, timestep = torch.randn(SHAPE), torch.full(SHAPE[:2], 500.0)
    changed = videos.clone()
    changed[:, -1] += 1
    prompts = DigitPrompts()(["1", NULL_PROMPT])
    first = TOY.num_training_frames - TOY.num_frame_per_block

    def seen() -> bool:
        with torch.no_grad():
            a, b = wrapper(videos, prompts, timestep)[0], wrapper(changed, prompts, timestep)[0]
        return not torch.allclose(a[:, :first], b[:, :first])

    assert not seen()
    wrapper.is_causal = False
    assert seen()


def test_the_wrapper_returns_a_velocity_and_the_x0_that_follows_from_it() -> None:
    wrapper = VideoDiffusionWrapper(TOY, is_causal=True)
    wrapper.load_state_dict(randomised(wrapper))
    scheduler = wrapper.get_scheduler()
    x, timestep = torch.randn(SHAPE), scheduler.timesteps[[0, 250]][:, None].expand(SHAPE[:2])
    flow, x0 = wrapper(x, DigitPrompts()(["0", "9"]), timestep)
    sigma = scheduler.sigmas[[0, 250]].view(2, 1, 1, 1, 1)
    assert float(scheduler.sigmas[250]) == pytest.approx(0.9)  # 0.75, shifted by 3
    torch.testing.assert_close(x0, x - sigma * flow)


def test_step_lists_are_warped_through_the_schedulers_table() -> None:
    steps = new_trainer().model.denoising_step_list
    assert steps.dtype == torch.float32
    assert steps.tolist() == pytest.approx([1000.0, 900.0, 750.0, 500.0])


def test_one_generator_step_trains_only_the_generator_and_a_critic_step_only_the_critic() -> None:
    trainer = new_trainer()
    for train_generator in (True, False):
        trainer.model.zero_grad(set_to_none=True)
        trainer.fwdbwd_one_step({"prompts": ["4", "4"]}, train_generator)
        for network, trained in (
            (trainer.model.generator, train_generator),
            (trainer.model.fake_score, not train_generator),
            (trainer.model.real_score, False),
        ):
            assert all((p.grad is not None) == trained for p in network.parameters())


def test_the_generator_moves_once_in_dfake_gen_update_ratio_steps() -> None:
    trainer = new_trainer(dfake_gen_update_ratio=3)
    seen = []

    def record() -> None:
        seen.append(trainer.model.generator.model.head.weight.clone())

    record()
    trainer.train(6, record)
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert moved == [True, False, False, True, False, False]


def test_an_adapter_and_record_take_the_miniature_as_it_is(tmp_path: Path) -> None:
    trainer = new_trainer(dfake_gen_update_ratio=1)
    trainer.output_path = str(tmp_path)
    with self_forcing.attached(trainer, SaltConfig()) as handle:
        record(handle, trainer)
        trainer.train(2)
        trainer.save()
    assert (tmp_path / "salt_metrics.jsonl").read_text().count("\n") == 2
    checkpoint = tmp_path / "checkpoint_model_000002"
    assert (checkpoint / "salt.json").is_file()
    states = torch.load(checkpoint / "model.pt", weights_only=True)
    again = new_trainer()
    again.model.generator.load_state_dict(states["generator"])
    again.model.fake_score.load_state_dict(states["critic"])
    assert report(["report", str(tmp_path)]) == 0
    assert (tmp_path / "salt_report.html").is_file()


def test_without_backward_simulation_both_losses_see_noised_real_videos() -> None:
    """Real videos of one brightness: what enters has its mean, less what the noise took."""
    frames = TOY.num_training_frames
    trainer = new_trainer(
        backward_simulation=False, num_frame_per_block=frames, same_step_across_blocks=False
    )
    model, seen = trainer.model, []
    original = model.generator.forward

    def watched(**kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((kwargs["noisy_image_or_video"], kwargs["timestep"]))
        return original(**kwargs)

    model.generator.forward = watched
    batch = {"prompts": ["1"] * 64, "clean_latent": torch.full((64, *SHAPE[1:]), 5.0)}
    for train_generator in (True, False):
        trainer.fwdbwd_one_step(batch, train_generator)
        ((x_s, timestep),) = seen
        assert set(timestep.unique().tolist()) == set(model.denoising_step_list.tolist())
        level = model.scheduler.sigma(timestep)
        assert (timestep == timestep[:, :1]).all()
        mean = x_s.mean((1, 2, 3, 4))
        torch.testing.assert_close(mean, 5.0 * (1 - level[:, 0]), atol=0.15, rtol=0.0)
        seen.clear()


def test_without_backward_simulation_the_trainer_trains_on_real_videos() -> None:
    trainer = new_trainer(backward_simulation=False, num_frame_per_block=TOY.num_training_frames)
    trainer.train(2)
    batch = next(trainer.dataloader)
    assert batch["clean_latent"].shape == tuple(SHAPE)
    assert len(batch["prompts"]) == TOY.batch_size


def test_without_backward_simulation_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="num_frame_per_block must be num_training_frames, 6"):
        new_trainer(backward_simulation=False)


def test_videos_move_by_whole_steps_and_show_the_whole_scan() -> None:
    scans, digits = load_scans("held_out")
    rng = torch.Generator().manual_seed(0)
    videos, motion = bounce(scans, 6, (16, 24), rng)
    assert videos.shape == (397, 6, 1, 16, 24)
    assert videos.min() >= -1
    assert videos.max() <= 1
    assert set(motion.tolist()) == set(range(8))
    assert set(digits.tolist()) == set(range(10))
    ink = (videos + 1).sum(dim=(2, 3, 4))
    torch.testing.assert_close(ink, (scans + 1).sum(dim=(1, 2))[:, None].expand(-1, 6))
    assert ((videos[:, 1:] - videos[:, :-1]).abs().amax(dim=(1, 2, 3, 4)) > 0).all()


def test_held_out_scans_are_not_trained_on() -> None:
    train, held_out = load_scans("train")[0], load_scans("held_out")[0]
    assert len(train) + len(held_out) == 1797
    with pytest.raises(ValueError, match="split must be 'train' or 'held_out'; got 'test'"):
        load_scans("test")


def test_the_distance_ranks_real_below_blurred_below_noise() -> None:
    config = replace(TOY, num_videos=200)
    torch.manual_seed(0)
    classifier = ClassifierTrainer(config, CPU)
    classifier.train(60)
    judge = Judge(config, classifier.model)
    real, _, _ = DigitVideos("train", 6, TOY.canvas).sample(200, torch.Generator().manual_seed(5))
    blurred = torch.nn.functional.avg_pool3d(real, (1, 3, 3), 1, (0, 1, 1))
    distances = [judge.distance(v) for v in (real, blurred, torch.randn_like(real))]
    assert 2 * distances[0] < distances[1] < distances[2]


def test_the_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    a = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(a.T.cov())).T
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, 3 * a + 2.0) == pytest.approx(3 * 2.0**2 + 3 * (3 - 1) ** 2)


def test_sampling_depends_on_the_seed_alone() -> None:
    wrapper = VideoDiffusionWrapper(TOY, is_causal=True)
    wrapper.load_state_dict(randomised(wrapper))
    noise, prompts = torch.randn(SHAPE), DigitPrompts()(["1", "2"])
    before = torch.get_rng_state()
    a, b, c = (
        sample(wrapper, noise, prompts, 4, torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


def test_the_first_chunk_may_be_sampled_in_more_steps_than_the_others() -> None:
    wrapper = VideoDiffusionWrapper(TOY, is_causal=True)
    wrapper.load_state_dict(randomised(wrapper))
    noise, prompts = torch.randn(SHAPE), DigitPrompts()(["1", "2"])
    calls: list[float] = []
    wrapper.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(float(kwargs["timestep"].flatten()[0])),
        with_kwargs=True,
    )

    def sampled(steps: int, first: int | None = None) -> torch.Tensor:
        rng = torch.Generator().manual_seed(2)
        return sample(wrapper, noise, prompts, steps, rng, first_chunk_steps=first)

    two, four = sampled(2), sampled(4)
    calls.clear()
    both = sampled(2, 4)
    assert len(calls) == (4 + 1) + 2 * (2 + 1)  # each chunk's steps, and the call for the cache
    assert torch.equal(both[:, :2], four[:, :2])
    assert not torch.equal(both[:, :2], two[:, :2])
    assert not torch.equal(both[:, 2:], four[:, 2:])
    assert torch.equal(sampled(4, 2), four)


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("kind", [TeacherTrainer, Trainer])
def test_an_interrupted_run_ends_with_the_numbers_of_an_uninterrupted_one(
    kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examples.tiny_video.checkpoint.SECONDS_BETWEEN_SAVES", -1.0)
    config = replace(TOY, teacher_steps=6)

    def build() -> TeacherTrainer | Trainer:
        torch.manual_seed(0)
        return new_trainer() if kind is Trainer else TeacherTrainer(config, CPU)

    def weights(trainer: TeacherTrainer | Trainer) -> torch.Tensor:
        network = trainer.generator_ema if kind is Trainer else trainer.model
        return torch.cat([p.flatten() for p in network.parameters()])

    whole = build()
    Run(tmp_path / "whole", config.as_dict(), CPU).train("stage", whole, 6)

    interrupted = build()
    original = interrupted.train

    def stop_after_three(until: int, on_step: object) -> None:
        original(3, on_step)
        raise Interrupt

    interrupted.train = stop_after_three
    with pytest.raises(Interrupt):
        Run(tmp_path / "parts", config.as_dict(), CPU).train("stage", interrupted, 6)
    torch.manual_seed(99)
    resumed = build()
    run = Run(tmp_path / "parts", config.as_dict(), CPU)
    run.train("stage", resumed, 6)
    assert torch.equal(weights(whole), weights(resumed))


def test_checkpoints_of_other_settings_are_refused_and_restart_discards_them(
    tmp_path: Path,
) -> None:
    Run(tmp_path, TOY.as_dict(), CPU)
    other = replace(TOY, dim=48).as_dict()
    with pytest.raises(SettingsDiffer, match=r"dim \(32 there, 48 now\).*--restart"):
        Run(tmp_path, other, CPU)
    Run(tmp_path, other, CPU, restart=True)


def test_the_command_writes_its_results_and_repeats_them_from_the_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for name in ("a", "b"):
        out = tmp_path / name
        assert command.main(["--preset", "smoke", "--out", str(out), "--seed", "3"]) == 0
        results.append(json.loads((out / "metrics.json").read_text()))
        for file in ("same_seed.png", "curves.png", "samples.gif"):
            assert (out / file).stat().st_size > 0
    assert results[0]["students"] == results[1]["students"]
    assert set(results[0]["students"]) == set(command.STUDENTS)
    assert set(results[0]["students"]["DMD"]["distance"]) == {"1", "2", "4", "8"}
    assert "semigroup defect" in capsys.readouterr().out

    assert command.main(["--preset", "smoke", "--out", str(tmp_path / "a"), "--seed", "4"]) == 2
    assert "seed (3 there, 4 now)" in capsys.readouterr().err
