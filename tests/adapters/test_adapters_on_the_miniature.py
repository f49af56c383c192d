"""What a handle offers, and training runs with it, on the trainer of `examples/tiny_video`."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from harness import as_trainer
from ranks import run_two_ranks

from salt_losses import SaltConfig, shift_time
from salt_losses.adapters import MissingSeamError, self_forcing
from salt_losses.terms import Alignment, SelfConsistency, alignment
from tests.nested import changed

# Terms from the first iteration on; with 1 and 2 steps some exits admit no triple.
BUSY = SaltConfig(
    step_counts=(1, 2, 4),
    probs=(0.3, 0.3, 0.4),
    sc=SelfConsistency(step_counts=(2, 4)),
    align=Alignment(reference={1: 2, 2: 4}, warmup=1, prob=0.7, weight=0.1, to="end"),
    inference_steps=2,
)

ALIGNED = SaltConfig(
    step_counts=(2,),
    probs=(1.0,),
    sc=SelfConsistency(step_counts=()),
    align=Alignment(warmup=0, prob=1.0, weight=0.1, margin=0.0, to="end"),
)


def train(trainer: Any, until: int) -> None:
    torch.manual_seed(100 + trainer.step)
    trainer.train(until)


def test_reference_generator_and_critic_follow_the_plan_of_the_trainers_step() -> None:
    trainer = tiny.build_trainer(dfake_gen_update_ratio=1)
    rollout = trainer.model._consistency_backward_simulation
    steps: list[tuple[int, int]] = []

    def watched(**kwargs: Any) -> Any:
        steps.append((trainer.step, len(trainer.model.inference_pipeline.denoising_step_list)))
        return rollout(**kwargs)

    trainer.model._consistency_backward_simulation = watched
    with self_forcing.attached(trainer, BUSY) as handle:
        train(trainer, 6)
        assert handle.plan.iteration == 6
    expected = []
    for plan in map(BUSY.scheduler().plan, range(6)):
        # The reference runs inside the student's rollout; the critic's has none.
        counts = [plan.num_steps, plan.reference_steps, plan.num_steps]
        expected += [(plan.iteration, count) for count in counts if count is not None]
    assert steps == expected
    assert len(steps) > 12


def test_metrics_are_the_log_dicts_numbers_as_floats_and_callbacks_get_them() -> None:
    model = tiny.build_model()
    config = SaltConfig(
        step_counts=(4,), probs=(1.0,), sc=SelfConsistency(step_counts=(4,)), inference_steps=1
    )
    with self_forcing.attached(as_trainer(model), config) as handle:
        seen: list[dict[str, float]] = []
        handle.on_metrics(seen.append)
        assert handle.metrics == {}
        loss, log = model.generator_loss(**tiny.loss_inputs(model))
    salt = {name: value for name, value in log.items() if name.startswith("salt/")}
    assert set(salt) == {"salt/num_steps", "salt/dmd_loss", "salt/sc_loss"}
    assert all(value.shape == () and not value.requires_grad for value in salt.values())
    [metrics] = seen
    own = {name: x for name, x in metrics.items() if not name.startswith("salt/health/")}
    assert own == {"iteration": 0, **{name: value.item() for name, value in salt.items()}}
    total = salt["salt/dmd_loss"] + config.sc.weight * salt["salt/sc_loss"]
    assert float(loss.detach()) == pytest.approx(float(total))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"align": {"block": 5, "weight": 0.1}},
            "align.block must be an index into the 2 blocks of fake_score; got 5",
        ),
        (
            {
                "step_counts": (600,),
                "probs": (1.0,),
                "sc": {"step_counts": ()},
                "align": {"reference": {600: 1200}},
            },
            "step_counts and the table do not fit: a grid of 1200 steps is too fine for the "
            "trainer's timesteps: two of its points coincide there",
        ),
    ],
)
def test_settings_that_do_not_fit_the_trainer_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    model = tiny.build_model()
    before = {name: id(value) for name, value in vars(model).items()}
    with pytest.raises(ValueError) as error:
        self_forcing.attach(as_trainer(model), changed(SaltConfig(), **settings))
    assert str(error.value) == message
    assert {name: id(value) for name, value in vars(model).items()} == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"step_counts": (1, 2), "probs": (0.5, 0.5), "inference_steps": 1},
            r"set sc.step_counts to .*\[2\]",
        ),
        ({"step_counts": (4,), "probs": (1.0,)}, r"sc never turns on: .*set sc.step_counts to"),
        ({"align": {"weight": 0.1, "prob": 0.0}}, "align.prob is 0"),
        ({"align": {"weight": 0.1}}, "align.warmup is 600: .* the run's 100 iterations"),
    ],
)
def test_a_term_that_never_turns_on_is_said_when_salt_is_attached(
    settings: dict[str, Any], message: str
) -> None:
    trainer = tiny.build_trainer()
    trainer.config = SimpleNamespace(max_iters=100)
    with pytest.warns(UserWarning, match=f"^(SaltConfig|Self Forcing): .*{message}") as said:
        self_forcing.attach(trainer, changed(SaltConfig(), **settings)).detach()
    assert len([w for w in said if re.search(message, str(w.message))]) == 1  # not said twice


@pytest.mark.parametrize("warped", [False, True])
def test_the_trainers_own_list_is_trained_for_its_length_and_named_where_it_does_not_nest(
    warped: bool,
) -> None:
    own = {"denoising_step_list": (1000, 357), "warp_denoising_step": warped}
    trainer = tiny.build_trainer(dfake_gen_update_ratio=1, **own)
    trainers = trainer.model.denoising_step_list.tolist()
    called: dict[int, set[float]] = {2: set(), 4: set()}

    def note(module: Any, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():
            level = float(kwargs["timestep"].flatten()[0])
            called[len(trainer.model.denoising_step_list)].add(level)

    config = SaltConfig(step_counts=(2, 4), probs=(0.5, 0.5), sc=None)
    with pytest.warns(UserWarning, match="Self Forcing: the trainer's own list of 2 steps"):
        handle = self_forcing.attach(trainer, config)
    lists = handle._losses.lists
    trainer.model.generator.register_forward_pre_hook(note, with_kwargs=True)
    train(trainer, 16)
    handle.detach()
    assert called[2] == set(trainers)
    assert called[4] == set(lists.of(4)) != set(trainers)
    # A shift replaces it, and an alignment to what does not hold it is refused.
    with self_forcing.attached(trainer, changed(config, shift=5.0)) as handle:
        assert handle._losses.lists.of(2) == pytest.approx([1000, 833.3], abs=0.4)
    with pytest.raises(ValueError, match=r"align\.reference\[2\] needs lists that nest"):
        self_forcing.attach(trainer, changed(config, align={"weight": 0.1}))
    assert "_salt_handle" not in dir(trainer.model.generator_loss)


def test_settings_that_have_an_effect_are_attached_in_silence() -> None:
    asd = {
        "step_counts": (1, 2),
        "probs": (0.5, 0.5),
        "sc": {"step_counts": ()},
        "first_chunk_steps": 4,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for config in (
            SaltConfig(),
            changed(SaltConfig(), **asd),
            SaltConfig.preset("paper"),
            BUSY,
        ):
            self_forcing.attach(tiny.build_trainer(), config).detach()


def test_a_method_that_is_none_is_named() -> None:
    model = tiny.build_model()
    model.critic_loss = None
    with pytest.raises(MissingSeamError, match=r"model\.critic_loss: must be callable; got None"):
        self_forcing.attach(as_trainer(model))


def test_a_compiled_score_network_whose_blocks_are_out_of_reach_is_refused() -> None:
    model = tiny.build_model()
    blocks = model.fake_score.model.blocks
    model.fake_score.model.forward = lambda x, *_, **__: x
    with (
        self_forcing.attached(as_trainer(model), ALIGNED),
        pytest.raises(RuntimeError, match="was not called within feature_tap"),
    ):
        model.generator_loss(**tiny.loss_inputs(model))
    assert all("forward" not in vars(block) for block in blocks)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_ranks_that_disagree_follow_rank_0_or_all_say_so(tmp_path: Path) -> None:
    one, other = run_two_ranks("ranks_worker.py", tmp_path)
    assert one == other
    assert one["settings"] == (
        "the settings must be the same on all ranks; got "
        "seed (rank 0: 0, rank 1: 1), sc.weight (rank 0: 1.0, rank 1: 2.0)"
    )
    assert one["state"] == (
        "state_dict must be the same on all ranks; got iteration (rank 0: 0, rank 1: 1)"
    )
    assert one["iteration"] == 700  # only rank 0 had the file
    assert str(tmp_path / "disk_0" / "broken" / "start" / "salt.json") in one["broken"]
    # On rank 0 alone, and nobody waits for it.
    assert one["unreadable"] == "no such disk"
    assert "sweep_prompts must be given" in one["no prompts"]
    assert "of another package" in one["unsendable"]


def test_the_noise_range_is_the_range_of_the_features_level_before_the_shift(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    levels: list[float] = []
    real = alignment.rollout_align_loss

    def align_loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        levels.append(args[4])
        return real(*args, **kwargs)

    monkeypatch.setattr(alignment, "rollout_align_loss", align_loss)
    model = tiny.build_model()
    inputs = tiny.loss_inputs(model)
    with self_forcing.attached(
        as_trainer(model), changed(ALIGNED, align={"noise_range": (0.1, 0.2)})
    ):
        for _ in range(20):
            model.generator_loss(**inputs)
    lowest, highest = (shift_time(u, model.timestep_shift) for u in (0.1, 0.2))
    assert lowest <= min(levels) < max(levels) <= highest
    assert max(levels) - min(levels) > 0.5 * (highest - lowest)
    levels.clear()
    with self_forcing.attached(
        as_trainer(model), changed(ALIGNED, align={"noise_range": (0.0, 1e-9)})
    ):
        model.generator_loss(**inputs)
    assert levels == [model.min_step / 1000]
