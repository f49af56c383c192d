"""The published recipes as settings."""

import dataclasses

import pytest
import torch

from salt_losses import (
    SaltConfig,
    ShortcutTriple,
    semigroup_defect_loss,
    shortcut_triple_sampler,
    step_schedule,
)
from salt_losses.config import BLOCKS
from salt_losses.presets import PRESETS

TRAINERS = ("self_forcing", "longlive", "causal_forcing")
SETTINGS = {field.name for field in dataclasses.fields(SaltConfig)}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_everything_but_what_belongs_to_a_run(name):
    assert set(PRESETS[name]) == SETTINGS - {"shift", "seed"}
    for block in ("sc", "align"):
        fields = {field.name for field in dataclasses.fields(BLOCKS[block])}
        assert set(PRESETS[name][block]) == fields - (
            {"step_counts"} if block == "align" else set()
        )


def test_the_released_recipes_differ_in_start_and_noise_only():
    recipes = [PRESETS[f"released_{trainer}"] for trainer in TRAINERS]
    for recipe in recipes:
        assert recipe | {"align": {}} == recipes[0] | {"align": {}}
    aligns = [recipe["align"] for recipe in recipes]
    differ = {name for name in aligns[0] if len({str(align[name]) for align in aligns}) > 1}
    assert differ == {"warmup", "reference_noise"}


def test_a_preset_in_a_mapping_can_be_overridden():
    mapping = {"preset": "released_longlive", "align": None}
    config = SaltConfig.from_mapping(mapping)
    expected = dataclasses.replace(SaltConfig.preset("released_longlive"), align=None)
    assert config == expected
    assert mapping["preset"] == "released_longlive"  # the caller's mapping is as it was
    assert SaltConfig.from_mapping({"preset": "paper"}) == SaltConfig.preset("paper")


def gradient_on_v_s(config, t_s):
    """The expected gradient of the weighted term w.r.t. v_s, for a velocity gap of one."""
    count = 100_000
    triple = shortcut_triple_sampler(
        t_s.expand(count), step_schedule(8, 5.0), step_schedule(4, 5.0),
        nearest=config.sc.nearest, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    v_s = torch.zeros(count, 1, dtype=torch.float64, requires_grad=True)
    loss = semigroup_defect_loss(
        lambda x, t: torch.ones_like(x), torch.zeros_like(v_s), triple, v_s=v_s,
        weight=1 - triple.t_s if config.sc.time_weight == "clean" else None,
        stop_grad=config.sc.stop_grad,
    )  # fmt: skip
    (config.sc.weight * loss).backward()
    return -v_s.grad.sum().item() / 2


def test_the_released_defect_term_pulls_as_hard_at_each_exit_as_the_release_does():
    # 0.2 (1 - t_s) E[(t_m - t_e)(t_s - t_e)], worked out from the release's own step lists; and
    # for the paper's equation E[(t_m - t_e)^2].
    released = (0, 0.0002, 0.0004, 0.0068, 0.0087, 0.0195, 0.0195)
    paper = (0.177, 0.215, 0.191, 0.243, 0.195, 0.283, 0.174)
    exits = step_schedule(8, 5.0)[:7]
    for name, expected in (("released_self_forcing", released), ("paper", paper)):
        config = SaltConfig.preset(name)
        measured = [gradient_on_v_s(config, t_s) for t_s in exits]
        tolerance = 1e-4 if name != "paper" else 1.5e-3
        assert measured == pytest.approx(expected, abs=tolerance)


def test_the_released_alignment_is_for_two_steps_towards_four_in_every_such_plan():
    scheduler = SaltConfig.preset("released_causal_forcing").scheduler(5.0)
    for i in range(0, 5000, 5):  # the release's generator updates, in steps of its trainer
        plan = scheduler.plan(i)
        assert plan.use_align == (i >= 700 and plan.num_steps == 2)
        assert plan.reference_steps == (4 if plan.use_align else None)
        assert plan.use_sc == (plan.num_steps == 8)


def test_the_clean_weight_leaves_a_start_at_pure_noise_without_any_effect():
    triple = ShortcutTriple(*torch.tensor([[1.0], [0.75], [0.5]]), torch.tensor([True]))
    v_s = torch.ones(1, 3, requires_grad=True)
    loss = semigroup_defect_loss(
        lambda x, t: 2 * x + 1, torch.ones(1, 3), triple, v_s=v_s, weight=1 - triple.t_s
    )
    loss.backward()
    assert loss == 0
    assert torch.equal(v_s.grad, torch.zeros_like(v_s))
