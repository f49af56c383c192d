"""What a discriminator says, keeps and refuses, on the trainer of `examples/tiny_video`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from harness import as_trainer
from ranks import run_two_ranks
from test_adapters_on_the_miniature import train

from salt_losses import SaltConfig
from salt_losses.adapters import MissingSeamError, record, self_forcing
from salt_losses.terms import Adversarial, SelfConsistency
from tests.nested import changed

CONFIG = SaltConfig(
    step_counts=(1, 2),
    probs=(0.5, 0.5),
    sc=SelfConsistency(step_counts=(2,)),
    adv=Adversarial(weight=0.5, against="more_steps", kind="relativistic", lr=1e-2),
    inference_steps=1,
)
KEYS = {
    "salt/adv_d_loss",
    "salt/adv_g_loss",
    "salt/adv_real_logit",
    "salt/adv_fake_logit",
    "salt/adv_gap",
    "salt/adv_skipped",
}


def build(**settings: Any) -> Any:
    return tiny.build_trainer(dfake_gen_update_ratio=1, **settings)


def adversary(handle: Any) -> Any:
    """The term in the run, with its head."""
    return next(term for term in handle.terms if term.name == "adv")


def weights(handle: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in adversary(handle).head.parameters()])


def test_it_learns_to_tell_a_student_that_stands_still_from_the_data() -> None:
    trainer = build(real_videos=True, batch_size=8, lr=0.0)
    config = SaltConfig(
        step_counts=(1,),
        probs=(1.0,),
        sc=SelfConsistency(step_counts=()),
        adv=Adversarial(weight=0.5, noise_range=(0.0, 0.3), lr=1e-3),
    )
    gaps: list[float] = []
    with self_forcing.attached(trainer, config) as handle:
        handle.on_metrics(lambda metrics: gaps.append(metrics["salt/adv_gap"]))
        train(trainer, 40)
    assert sum(gaps[-10:]) / 10 > sum(gaps[:10]) / 10 + 0.5


@pytest.mark.filterwarnings("ignore:SaltConfig")
@pytest.mark.parametrize(("steps", "first", "calls"), [(1, 4, [5, 3, 3]), (2, 2, [4, 4, 4])])
def test_the_first_chunk_of_more_steps_is_on_the_students_own_list(
    steps: int, first: int, calls: list[int]
) -> None:
    model = tiny.build_model()
    config = changed(
        CONFIG, step_counts=(steps,), probs=(1.0,), sc={"step_counts": ()}, first_chunk_steps=first
    )
    starts: list[int] = []
    model.generator.register_forward_pre_hook(
        lambda module, args, kwargs: starts.append(kwargs["current_start"]), with_kwargs=True
    )
    with self_forcing.attached(as_trainer(model), config):
        model.generator_loss(**tiny.loss_inputs(model))
    per_chunk = model.inference_pipeline.frame_seq_length * model.num_frame_per_block
    rolled = starts[: starts.index(0, 5)]  # the student begins again
    # The steps of each chunk and its context pass; a first list of the same length is no other.
    assert [rolled.count(chunk * per_chunk) for chunk in range(3)] == calls


def test_its_numbers_are_logged_in_every_iteration_that_has_it_and_add_up() -> None:
    trainer = build()
    config = changed(CONFIG, adv={"warmup": 2, "kind": "non_saturating"})
    seen: list[dict[str, float]] = []
    with self_forcing.attached(trainer, config) as handle:
        handle.on_metrics(seen.append)
        logs: list[Any] = []
        step = trainer.fwdbwd_one_step

        def logged(batch: Any, train_generator: bool) -> Any:
            logs.append(step(batch, train_generator))
            return logs[-1]

        trainer.fwdbwd_one_step = logged
        train(trainer, 5)
    assert all(set(metrics) >= KEYS for metrics in seen)
    assert len(seen) == 5
    for iteration, (metrics, log) in enumerate(zip(seen, logs[::2])):
        terms = metrics["salt/dmd_loss"]
        terms += metrics.get("salt/sc_loss", 0.0) * config.sc.weight
        felt = iteration >= config.adv.warmup
        terms += config.adv.weight * metrics["salt/adv_g_loss"] * felt
        assert float(log["generator_loss"]) == pytest.approx(terms, rel=1e-5)
        gap = metrics["salt/adv_real_logit"] - metrics["salt/adv_fake_logit"]
        assert metrics["salt/adv_gap"] == pytest.approx(gap, abs=1e-6)


def test_each_step_count_has_a_logit_of_its_own_against_more_steps() -> None:
    heads = {
        against: adversary(self_forcing.attach(build(), changed(CONFIG, adv={"against": against})))
        for against in ("data", "more_steps")
    }
    classes = {against: term.head.classifier[-1].out_features for against, term in heads.items()}
    assert classes == {"data": 1, "more_steps": 2}


# State.


def recorded(folder: Path, config: SaltConfig = CONFIG, step: int = 0, **start: Any) -> Any:
    trainer = build(folder=folder)
    trainer.step = step
    trainer.config = SimpleNamespace(**vars(trainer.config), **start)
    trainer.config.image_or_video_shape = tiny.CONFIG.image_or_video_shape
    handle = self_forcing.attach(trainer, config)
    record(handle, trainer)
    return handle, trainer


def test_a_resumed_run_goes_on_with_the_same_head_bit_by_bit(tmp_path: Path) -> None:
    whole_handle, whole = recorded(tmp_path / "whole")
    for until in (2, 4):
        train(whole, until)

    first_handle, first = recorded(tmp_path / "parts")
    train(first, 2)
    first.save()
    checkpoint = tmp_path / "parts" / "checkpoint_model_000002"
    assert sorted(p.name for p in checkpoint.iterdir()) == ["salt.json", "salt_terms.pt"]
    assert json.loads((checkpoint / "salt.json").read_text())["terms"] == "salt_terms.pt"

    handle, second = recorded(tmp_path / "parts", step=2)
    assert torch.equal(weights(handle), weights(first_handle))
    second.model.load_state_dict(first.model.state_dict())
    for name in ("generator_optimizer", "critic_optimizer"):
        getattr(second, name).load_state_dict(getattr(first, name).state_dict())
    train(second, 4)
    assert torch.equal(weights(handle), weights(whole_handle))
    for one, other in zip(whole.model.generator.parameters(), second.model.generator.parameters()):
        assert torch.equal(one, other)
    # Without a state it is another head that goes on.
    assert not torch.equal(weights(recorded(tmp_path / "none")[0]), weights(first_handle))


def test_a_state_of_another_shape_or_none_is_refused_and_changes_nothing() -> None:
    handle = self_forcing.attach(build(), CONFIG)
    wide = self_forcing.attach(build(dim=64), CONFIG).state_dict()
    with pytest.raises(ValueError, match=r"(?s)'adv'\] is corrupt: .*readers.0.registers"):
        handle.load_state_dict(wide | {"iteration": 7})
    for state, message in (
        ({"adv": {"head": {}}}, r"must hold \['head', 'optimizer', 'settings'\]"),
        (["adv"], "'terms'] must be a mapping; got .*list"),
    ):
        with pytest.raises(ValueError, match=message):
            handle.load_state_dict(handle.state_dict() | {"iteration": 7, "terms": state})
    assert handle.plan.iteration == 0


def test_a_state_of_the_optimizer_as_it_was_before_goes_on_with_this_ones_settings() -> None:
    """It was not fused, and counted its steps on the CPU."""
    trainer = build()
    handle = self_forcing.attach(trainer, CONFIG)
    train(trainer, 1)
    state = copy.deepcopy(handle.state_dict())
    group = state["terms"]["adv"]["optimizer"]["param_groups"][0]
    group.update(fused=None, betas=(0.5, 0.5), lr=9.0)
    other = self_forcing.attach(build(), CONFIG)
    other.load_state_dict(state)
    [ours] = adversary(other).optimizer.param_groups
    assert (ours["fused"], ours["betas"], ours["lr"]) == (True, (0.0, 0.999), CONFIG.adv.lr)


def test_a_head_file_that_is_gone_or_broken_is_named(tmp_path: Path) -> None:
    _, trainer = recorded(tmp_path)
    trainer.step = 3
    trainer.save()
    folder = tmp_path / "checkpoint_model_000003"
    # Nobody asks for it: nobody reads it.
    head = folder / "salt_terms.pt"
    head.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=rf"{folder / 'salt.json'}: salt_terms.pt is not a file"):
        recorded(tmp_path, step=3)
    head.unlink()
    assert recorded(tmp_path, changed(CONFIG, adv=None), step=3)[0].plan.iteration == 3
    with pytest.raises(FileNotFoundError, match=str(head)):
        recorded(tmp_path, step=3)


def test_a_run_that_had_none_goes_on_with_a_new_one(tmp_path: Path) -> None:
    _, trainer = recorded(tmp_path, changed(CONFIG, adv=None))
    trainer.step = 5
    trainer.save()
    handle, _ = recorded(tmp_path, step=5)
    assert handle.plan.iteration == 5


def test_under_accumulation_the_head_is_updated_at_each_loss_call() -> None:
    model = build().model
    steps: list[int] = []
    with self_forcing.attached(as_trainer(model), CONFIG) as handle:
        adversary(handle).optimizer.register_step_post_hook(lambda *_: steps.append(1))
        for _ in range(2):  # of one update
            model.generator_loss(**tiny.loss_inputs(model))[0].backward()
        assert len(steps) == 2
        assert handle.plan.iteration == 0


# What it refuses.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "adv needs real videos .*the trainer gives None"),
        (torch.zeros(1, 3, 1, 8, 16), r"image_or_video_shape, \[1, 6, 1, 8, 16\]; got \[1, 3, 1"),
    ],
)
def test_without_fitting_data_there_is_an_error_before_anything_is_called(
    data: Any, message: str
) -> None:
    model = tiny.build_model()
    calls: list[Any] = []
    model.generator.register_forward_pre_hook(lambda *_: calls.append(1))
    stream = torch.get_rng_state()
    with self_forcing.attached(
        as_trainer(model), changed(CONFIG, adv={"against": "data"})
    ) as handle:
        with pytest.raises(ValueError, match=message):
            model.generator_loss(**tiny.loss_inputs(model) | {"clean_latent": data})
        assert handle.plan.iteration == 0
    assert calls == []
    assert torch.equal(stream, torch.get_rng_state())


def test_blocks_that_do_not_exist_are_refused() -> None:
    model = tiny.build_model()
    before = {name: id(value) for name, value in vars(model).items()}
    with pytest.raises(ValueError) as error:
        self_forcing.attach(as_trainer(model), changed(CONFIG, adv={"blocks": (0, 5)}))
    assert str(error.value) == (
        "adv.blocks must be indices into the 2 blocks of fake_score; got [0, 5]"
    )
    assert {name: id(value) for name, value in vars(model).items()} == before


@pytest.mark.parametrize(
    ("path", "name"),
    [("model.real_score.model", "dim"), ("model", "device"), ("model", "max_step")],
)
def test_a_missing_seam_is_named(path: str, name: str) -> None:
    model = tiny.build_model()
    owner = model
    for part in path.split(".")[1:]:
        owner = getattr(owner, part)
    delattr(owner, name)
    config = changed(CONFIG, adv={"features": "real_score"})
    with pytest.raises(MissingSeamError, match=f"{path}.{name}: no attribute '{name}'"):
        self_forcing.attach(as_trainer(model), config)
    self_forcing.attach(as_trainer(model), changed(CONFIG, adv=None)).detach()


def test_a_grid_of_one_more_step_that_the_trainers_table_cannot_hold_is_refused() -> None:
    config = changed(CONFIG, step_counts=(1000,), probs=(1.0,), sc={"step_counts": ()})
    self_forcing.attach(build(), changed(config, adv=None)).detach()
    with pytest.raises(ValueError, match="a grid of 1001 steps is too fine"):
        self_forcing.attach(build(), config)


def test_without_a_rollout_there_are_no_more_steps() -> None:
    trainer = build(backward_simulation=False, num_frame_per_block=6)
    with (
        self_forcing.attached(trainer, CONFIG),
        pytest.raises(RuntimeError, match="the plan had no effect"),
    ):
        train(trainer, 1)


# Several ranks.


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_ranks_under_fsdp_hold_one_head(tmp_path: Path) -> None:
    one, other = run_two_ranks("adversary_worker.py", tmp_path)
    for against in ("data", "more_steps"):
        assert one[against]["first"] == other[against]["first"]
        assert one[against]["heads"] == other[against]["heads"]
        assert len(set(one[against]["heads"])) == 3  # it moves
        assert one[against]["gaps"] != other[against]["gaps"]  # by what each rank sees
        assert one[against]["keys"] == other[against]["keys"]
        assert torch.equal(one[against]["parameters"], other[against]["parameters"])
        assert one[against]["resumed"] == other[against]["resumed"] == one[against]["heads"][-1]
    assert one["mean"] == other["mean"] == 1.5
    assert one["one bad video"] == other["one bad video"]
    before, skipped, learned = one["one bad video"]["heads"]
    assert before == skipped != learned
    assert one["one bad video"]["counts"] == [1, 0]
    assert one["disagree"] == other["disagree"]
    assert "state_dict must be the same on all ranks; got terms.adv" in one["disagree"]
