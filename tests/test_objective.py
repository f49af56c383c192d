import dataclasses

import pytest
import torch

from salt_losses import MixedStepScheduler, SaltConfig, salt_loss


def plan_with(config, *, sc, align):
    scheduler = config.scheduler()
    for i in range(10_000):
        plan = scheduler.plan(i)
        if (plan.use_sc, plan.use_align) == (sc, align):
            return plan
    raise AssertionError("no such plan")


# The alignment may be on at K = 8 too, so that one plan has both terms.
CONFIG = SaltConfig(
    sc_weight=0.5, align_weight=3.0, align_warmup=0, align_reference={2: 4, 4: 8, 8: 16}
)
DMD, SC, ALIGN = (torch.tensor(v, dtype=torch.float64) for v in (2.0, 5.0, 7.0))


@pytest.mark.parametrize("sc", [False, True])
@pytest.mark.parametrize("align", [False, True])
def test_salt_loss_adds_the_terms_that_the_plan_has_on(sc, align):
    plan = plan_with(CONFIG, sc=sc, align=align)
    expected = 2.0 + (0.5 * 5.0 if sc else 0.0) + (3.0 * 7.0 if align else 0.0)
    given = {"sc": SC if sc else None, "align": ALIGN if align else None}
    assert salt_loss(DMD, plan, CONFIG, **given).item() == expected
    assert salt_loss(DMD, plan, CONFIG, sc=SC, align=ALIGN).item() == expected


def test_the_gradient_of_salt_loss_is_one_and_the_weights():
    terms = [u.clone().requires_grad_() for u in (DMD, SC, ALIGN)]
    plan = plan_with(CONFIG, sc=True, align=True)
    salt_loss(terms[0], plan, CONFIG, sc=terms[1], align=terms[2]).backward()
    assert [u.grad.item() for u in terms] == [1.0, 0.5, 3.0]


def test_without_terms_salt_loss_is_the_dmd_loss_itself():
    plan = plan_with(CONFIG, sc=False, align=False)
    assert salt_loss(DMD, plan, CONFIG) is DMD


def test_a_term_of_weight_zero_need_not_be_given_and_is_not_added():
    config = dataclasses.replace(CONFIG, sc_weight=0.0, align_weight=0.0)
    plan = plan_with(config, sc=True, align=True)
    assert salt_loss(DMD, plan, config) is DMD
    assert salt_loss(DMD, plan, config, sc=SC * float("nan"), align=ALIGN).item() == 2.0


@pytest.mark.parametrize(("missing", "other"), [("sc", "align"), ("align", "sc")])
def test_a_term_that_the_plan_wants_is_never_silently_zero(missing, other):
    plan = plan_with(CONFIG, sc=True, align=True)
    with pytest.raises(ValueError, match=f"^{missing} must be given"):
        salt_loss(DMD, plan, CONFIG, **{other: SC})


def test_the_config_has_the_schedulers_settings_under_the_same_names_and_defaults():
    scheduler = MixedStepScheduler()
    for name, value in scheduler.state_dict()["settings"].items():
        ours = getattr(SaltConfig(), name)
        if name == "shift":
            assert ours is None  # the trainer's own
        elif name == "align_reference":
            assert sorted(map(list, ours.items())) == value
        else:
            assert (list(ours) if isinstance(value, list) else ours) == value


def test_the_configs_scheduler_has_its_settings():
    settings = {
        "step_counts": (1, 3, 6), "probs": (0.1, 0.2, 0.7), "shift": 2.0, "sc_steps": (6,),
        "align_reference": {3: 6}, "align_warmup": 4, "align_prob": 0.9, "inference_steps": 3,
        "seed": 11,
    }  # fmt: skip
    expected = MixedStepScheduler(**settings).state_dict()
    assert SaltConfig(**settings).scheduler().state_dict() == expected
    assert SaltConfig(**settings).scheduler(7.0).state_dict() == expected  # its own shift wins


def test_the_trainers_shift_stands_in_for_a_shift_of_none():
    assert SaltConfig().scheduler(5.0).shift == 5.0
    assert SaltConfig().scheduler().shift == 1.0


def test_from_mapping_reads_what_a_yaml_file_holds():
    config = SaltConfig.from_mapping(
        {"step_counts": [2, 8], "probs": [0.5, 0.5], "align_reference": {2: 4}, "align_block": 3}
    )
    assert config.scheduler().step_counts == (2, 8)
    assert config.align_block == 3
    assert config.align_margin == SaltConfig().align_margin


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [("sc_wieght", "sc_weight"), ("alignmargin", "align_margin"), ("step_count", "step_counts")],
)
def test_an_unknown_setting_is_refused_with_the_nearest_known_one(typo, nearest):
    with pytest.raises(ValueError, match=f"'{typo}'; did you mean '{nearest}'"):
        SaltConfig.from_mapping({typo: 1})


def test_the_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SaltConfig().sc_weight = 2.0
