import dataclasses
import fractions
import json
import pickle

import pytest
import torch

from salt_losses import MixedStepScheduler, SaltConfig, salt_loss
from salt_losses.terms import Adversarial, Alignment, SelfConsistency


def plan_with(config, *, sc, align):
    scheduler = config.scheduler()
    for i in range(10_000):
        plan = scheduler.plan(i)
        if (plan.use_sc, plan.use_align) == (sc, align):
            return plan
    raise AssertionError("no such plan")


# The alignment may be on at K = 8 too, so that one plan has both terms.
CONFIG = SaltConfig(
    sc=SelfConsistency(weight=0.5),
    align=Alignment(weight=3.0, warmup=0, reference={2: 4, 4: 8, 8: 16}),
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
    config = dataclasses.replace(CONFIG, sc=None, align=None)
    plan = plan_with(config, sc=True, align=True)
    assert salt_loss(DMD, plan, config) is DMD
    assert salt_loss(DMD, plan, config, sc=SC * float("nan"), align=ALIGN).item() == 2.0


@pytest.mark.parametrize(("missing", "other"), [("sc", "align"), ("align", "sc")])
def test_a_term_that_the_plan_wants_is_never_silently_zero(missing, other):
    plan = plan_with(CONFIG, sc=True, align=True)
    with pytest.raises(ValueError, match=f"^{missing} must be given"):
        salt_loss(DMD, plan, CONFIG, **{other: SC})


def test_the_adversarial_term_counts_at_its_step_counts_after_its_warmup():
    config = SaltConfig(
        step_counts=(2, 4), probs=(0.5, 0.5), sc=SelfConsistency(step_counts=()), adv=Adversarial(weight=0.5, step_counts=(4,), warmup=10))  # fmt: skip
    one, three = torch.tensor(1.0), torch.tensor(3.0)
    plans = [config.scheduler().plan(iteration) for iteration in range(30)]
    felt = [plan.num_steps == 4 and plan.iteration >= 10 for plan in plans]
    assert {plan.num_steps for plan in plans[:10]} == {plan.num_steps for plan in plans[10:]}
    for plan, is_felt in zip(plans, felt):
        assert salt_loss(one, plan, config, adv=three) == (2.5 if is_felt else 1.0)
        if is_felt:
            with pytest.raises(ValueError, match="adv must be given"):
                salt_loss(one, plan, config)
        else:
            assert salt_loss(one, plan, config) == 1.0
    assert [config.has_adversary(k) for k in (2, 4)] == [False, True]
    assert dataclasses.replace(config, adv=Adversarial(step_counts=None)).has_adversary(2)
    assert not dataclasses.replace(config, adv=None).has_adversary(4)


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
        "step_counts": (1, 3, 6), "probs": (0.1, 0.2, 0.7), "shift": 2.0, "sc": {"step_counts": (6,), "warmup": 6}, "align": {"reference": {3: 6}, "warmup": 4, "prob": 0.9}, "inference_steps": 3, "seed": 11, "first_chunk_steps": {1: 3, 6: 12}
    }  # fmt: skip
    expected = MixedStepScheduler(**settings).state_dict()
    assert SaltConfig(**settings).scheduler().state_dict() == expected
    assert SaltConfig(**settings).scheduler(7.0).state_dict() == expected  # its own shift wins


def test_the_trainers_shift_stands_in_for_a_shift_of_none():
    assert SaltConfig().scheduler(5.0).shift == 5.0
    assert SaltConfig().scheduler().shift == 1.0


def test_from_mapping_reads_what_a_yaml_file_holds():
    config = SaltConfig.from_mapping(
        {"step_counts": [2, 8], "probs": [0.5, 0.5], "align": {"reference": {2: 4}, "block": 3}}
    )
    assert config.scheduler().step_counts == (2, 8)
    assert config.align.block == 3
    assert config.align.margin == SaltConfig().align.margin


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [("sc_wieght", "sc_weight"), ("alignmargin", "align_margin"), ("step_count", "step_counts")],
)
def test_an_unknown_setting_is_refused_with_the_nearest_known_one(typo, nearest):
    with pytest.raises(ValueError, match=f"'{typo}'; did you mean '{nearest}'"):
        SaltConfig.from_mapping({typo: 1})


# Every setting away from its default, as Python code has it.
OTHER = SaltConfig(
    step_counts=(1, 3, 6), probs=(0.1, 0.2, 0.7), shift=2.0, sc=SelfConsistency(step_counts=(3, 6), weight=2.0, stop_grad="composed", time_weight="clean", nearest=2, warmup=9), align=Alignment(reference={3: 6, 1: 4}, warmup=4, prob=0.9, weight=0.3, margin=0.2, features="real_score", block=20, to="input", reference_noise="own", noise_range=(0.1, 0.2)), adv=Adversarial(weight=0.03, against="more_steps", step_counts=(1, 3), kind="hinge", features="real_score", blocks=(1, 0), noise_range=(0.5, 0.6), lr=0.1, warmup=7), inference_steps=3, seed=11, first_chunk_steps={3: 6, 1: 4}, adv_penalty=2.0, adv_sigma=0.05, adv_updates=5, sweep_every=500, sweep_prompts=("a cat", "a dog"))  # fmt: skip


@pytest.mark.parametrize("config", [SaltConfig(), OTHER], ids=["defaults", "others"])
def test_asdict_json_pickle_and_replace_give_the_config_back(config):
    settings = dataclasses.asdict(config)
    for same in (
        SaltConfig(**settings),
        SaltConfig.from_mapping(settings),
        SaltConfig.from_mapping(json.loads(json.dumps(settings))),
        dataclasses.replace(config),
        pickle.loads(pickle.dumps(config)),
    ):
        assert same == config
        assert hash(same) == hash(config)
        assert dataclasses.asdict(same) == settings


def test_every_setting_counts_in_a_comparison():
    for name, value in dataclasses.asdict(OTHER).items():
        # These go together.
        if name not in ("step_counts", "probs", "inference_steps", "adv_step_counts"):
            assert dataclasses.replace(SaltConfig(), **{name: value}) != SaltConfig()


def test_equal_configs_are_one_key_of_a_dict_whatever_they_were_made_from():
    lists = SaltConfig(
        step_counts=[2, 4, 8], probs=[0.2, 0.4, 0.4], align=Alignment(reference={4: 8, 2: 4})
    )
    assert {
        SaltConfig(): 1,
        lists: 2,
        SaltConfig(sc=SelfConsistency(weight=1), align=Alignment(noise_range=[0, 1])): 3,
    } == {SaltConfig(): 3}
    assert OTHER not in {SaltConfig(): 1}


def test_a_config_does_not_change_with_what_it_was_made_from():
    counts, reference, first = [2, 4, 8], {2: 4}, {2: 4}
    config = SaltConfig(
        step_counts=counts, align=Alignment(reference=reference), first_chunk_steps=first
    )
    before = dataclasses.asdict(config)
    counts[0], reference[4], first[4] = 1, 16, 16
    config.scheduler().align.reference[2] = config.scheduler().first_chunk_steps[2] = 6
    assert dataclasses.asdict(config) == before


def test_numbers_of_numpy_are_numbers():
    np = pytest.importorskip("numpy")
    config = SaltConfig(
        step_counts=list(np.array([2, 4, 8])), probs=list(np.array([0.25, 0.25, 0.5], np.float32)), shift=np.float32(5), align=Alignment(reference={np.int64(2): np.int32(4)}, margin=fractions.Fraction(1, 4), block=np.int8(20), noise_range=(np.float32(0), np.float64(0.5))), sc=SelfConsistency(weight=np.float16(0.5), nearest=np.int16(2)), seed=np.uint8(3), first_chunk_steps=np.int8(8))  # fmt: skip
    expected = SaltConfig(
        probs=(0.25, 0.25, 0.5), shift=5.0, align=Alignment(reference={2: 4}, margin=0.25, block=20, noise_range=(0.0, 0.5)), sc=SelfConsistency(weight=0.5, nearest=2), seed=3, first_chunk_steps=8)  # fmt: skip
    assert config == expected
    assert json.dumps(dataclasses.asdict(config)) == json.dumps(dataclasses.asdict(expected))
    assert json.dumps(config.scheduler().state_dict()) == json.dumps(
        expected.scheduler().state_dict()
    )
    for truth in (np.bool_(True), np.array([1.0]), np.complex64(1)):
        with pytest.raises(TypeError, match="sc_weight must be a number"):
            SaltConfig(sc=SelfConsistency(weight=truth))


def test_the_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SaltConfig().sc.weight = 2.0
