import dataclasses
import fractions
import hashlib
import json
import pickle

import pytest
import torch
import yaml

from examples.own_term.moments import Moments
from salt_losses import MixedStepScheduler, SaltConfig, SettingError, salt_loss
from salt_losses.terms import Adversarial, Alignment, SelfConsistency, Term


@dataclasses.dataclass(frozen=True)
class Mine(Term):
    name = "mine"
    weight: float = 0.1

    def loss(self, rollout):
        return (rollout.video - rollout.real_x0).square().mean()


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
    assert salt_loss(DMD, plan, **given).item() == expected
    assert salt_loss(DMD, plan, sc=SC, align=ALIGN).item() == expected


def test_the_gradient_of_salt_loss_is_one_and_the_weights():
    terms = [u.clone().requires_grad_() for u in (DMD, SC, ALIGN)]
    plan = plan_with(CONFIG, sc=True, align=True)
    salt_loss(terms[0], plan, sc=terms[1], align=terms[2]).backward()
    assert [u.grad.item() for u in terms] == [1.0, 0.5, 3.0]


def test_without_terms_salt_loss_is_the_dmd_loss_itself():
    plan = plan_with(CONFIG, sc=False, align=False)
    assert salt_loss(DMD, plan) is DMD


@pytest.mark.parametrize(
    "off", [{"sc": None, "align": None}, {"sc": SelfConsistency(0.0), "align": Alignment(0.0)}]
)
def test_a_term_that_is_off_need_not_be_given_and_is_not_added(off):
    plan = dataclasses.replace(CONFIG, **off).scheduler().plan(0)
    assert salt_loss(DMD, plan) is DMD
    assert salt_loss(DMD, plan, sc=SC * float("nan"), align=ALIGN).item() == 2.0


def test_terms_of_ones_own_are_added_by_their_names():
    config = dataclasses.replace(CONFIG, sc=None, align=None, terms=(Mine(0.25),))
    plan = config.scheduler().plan(0)
    assert salt_loss(DMD, plan, mine=SC).item() == 2.0 + 0.25 * 5.0
    with pytest.raises(ValueError, match="yours is not a term of the plan, which has"):
        salt_loss(DMD, plan, mine=SC, yours=SC)
    with pytest.raises(ValueError, match="make it with SaltConfig"):
        salt_loss(DMD, MixedStepScheduler().plan(0), sc=SC)


@pytest.mark.parametrize(("missing", "other"), [("sc", "align"), ("align", "sc")])
def test_a_term_that_the_plan_wants_is_never_silently_zero(missing, other):
    plan = plan_with(CONFIG, sc=True, align=True)
    with pytest.raises(ValueError, match=f"^{missing} must be given"):
        salt_loss(DMD, plan, **{other: SC})


def test_the_plans_weights_say_what_is_on():
    config = SaltConfig(
        step_counts=(2, 4), probs=(0.5, 0.5), sc=SelfConsistency(weight=2.0, step_counts=(4,)),
        align=Alignment(reference={2: 4}, prob=0.5, warmup=5),
        adv=Adversarial(step_counts=(4,), warmup=10), terms=(Mine(0.5, warmup=20),),
    )  # fmt: skip
    for plan in (config.scheduler().plan(iteration) for iteration in range(30)):
        late = plan.iteration >= 20
        assert plan.weights == {
            "sc": 2.0 if plan.use_sc else 0.0,
            "align": 0.1 if plan.use_align else 0.0,
            # Its discriminator is trained in the warm-up, too.
            "adv": 0.03 if plan.num_steps == 4 else 0.0,
            "mine": 0.5 if late else 0.0,
        }
        assert plan.use_sc == (plan.num_steps == 4)


OTHER_GRIDS = {
    "step_counts": (1, 2, 6), "probs": (0.3, 0.3, 0.4), "inference_steps": 3, "seed": 3,
    "first_chunk_steps": {1: 4, 2: 6},
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "shift", "digest"),
    [
        (SaltConfig(seed=7, align=Alignment(warmup=0)), 5.0, "f563623c9d7c3c7a"),
        (
            SaltConfig(
                **OTHER_GRIDS,
                sc=SelfConsistency(step_counts=(6, 2), warmup=20),
                align=Alignment(reference={2: 6}, warmup=30, prob=0.7),
            ),
            None,
            "98fb4c2ae181c2a6",
        ),
    ],
)
def test_plans_of_one_seed_are_those_of_the_flat_settings(config, shift, digest):
    """Draw by draw, as at 0e54e92, so that recorded studies remain comparable."""
    scheduler, found = config.scheduler(shift), hashlib.sha256()
    for plan in map(scheduler.plan, range(500)):
        grids = (
            plan.times, plan.reference_times, plan.first_times, plan.reference_first_times,
        )  # fmt: skip
        rounded = (None if g is None else [round(t, 12) for t in g.tolist()] for g in grids)
        drawn = (plan.num_steps, plan.use_sc, plan.use_align, plan.reference_steps, *rounded)
        found.update(repr(drawn).encode())
    assert found.hexdigest()[:16] == digest


def test_a_plans_random_stream_depends_on_seed_iteration_and_purpose_only():
    def drawn(seed, iteration, purpose, weight=1.0):
        config = SaltConfig(seed=seed, sc=SelfConsistency(weight=weight))
        return config.scheduler().plan(iteration).random(purpose).random()

    assert drawn(0, 3, "a") == drawn(0, 3, "a", weight=0.5)
    assert len({drawn(0, 3, "a"), drawn(1, 3, "a"), drawn(0, 4, "a"), drawn(0, 3, "b")}) == 4


def test_the_configs_scheduler_has_its_settings():
    settings = {
        "step_counts": (1, 3, 6), "probs": (0.1, 0.2, 0.7), "shift": 2.0, "inference_steps": 3,
        "seed": 11, "first_chunk_steps": {1: 3, 6: 12},
    }  # fmt: skip
    terms = {
        "sc": SelfConsistency(step_counts=(6,), warmup=6),
        "align": Alignment(reference={3: 6}, warmup=4, prob=0.9),
    }
    flat = {
        "sc_steps": (6,), "sc_warmup": 6, "align_reference": {3: 6}, "align_warmup": 4,
        "align_prob": 0.9,
    }  # fmt: skip
    expected = MixedStepScheduler(**settings, **flat).state_dict()
    config = SaltConfig(**settings, **terms)
    assert config.scheduler().state_dict() == expected
    assert config.scheduler(7.0).state_dict() == expected  # its own shift wins


def test_the_trainers_shift_stands_in_for_a_shift_of_none():
    assert SaltConfig().scheduler(5.0).shift == 5.0
    assert SaltConfig().scheduler().shift == 1.0


def test_from_mapping_reads_what_a_yaml_file_holds():
    config = SaltConfig.from_mapping(
        {"step_counts": [2, 8], "probs": [0.5, 0.5], "align": {"reference": {"2": 4}, "block": 3}}
    )
    assert config.scheduler().step_counts == (2, 8)
    assert config.align == Alignment(reference={2: 4}, block=3)
    assert config.sc == SelfConsistency()
    assert SaltConfig.from_mapping({"sc": None}).sc is None
    assert SaltConfig.from_mapping({"sc.weight": 0.2, "sc.warmup": 3}).sc == SelfConsistency(
        0.2, warmup=3
    )


def test_a_preset_keeps_what_a_block_leaves_out():
    config = SaltConfig.from_mapping({"preset": "released_longlive", "align": {"weight": 1}})
    released = SaltConfig.preset("released_longlive")
    assert config.align == dataclasses.replace(released.align, weight=1)
    assert config.sc == released.sc


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ({"sc": {"wieght": 1}}, "'sc.wieght'; did you mean 'sc.weight'"),
        ({"align.margni": 1}, "'align.margni'; did you mean 'align.margin'"),
        ({"step_count": 1}, "'step_count'; did you mean 'step_counts'"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_known_one(typo, nearest):
    with pytest.raises(SettingError, match=nearest):
        SaltConfig.from_mapping(typo)


# All of the flat settings, where they are by block.
FLAT = {
    "sc": {"steps": "step_counts", **{n: n for n in (
        "weight", "stop_grad", "time_weight", "nearest", "warmup")}},
    "align": {"at": "to", "noise": "reference_noise", "levels": "noise_range", **{n: n for n in (
        "reference", "warmup", "prob", "weight", "margin", "features", "block")}},
    "adv": {"levels": "noise_range", **{n: n for n in (
        "weight", "against", "step_counts", "kind", "features", "blocks", "lr", "warmup")}},
}  # fmt: skip
PLACES = {
    **{f"{block}_{old}": f"it is now {block}.{new}"
       for block, names in FLAT.items() for old, new in names.items()},
    **{f"adv_{name}": "it is gone" for name in ("penalty", "sigma", "updates")},
    **{name: f"it is now the argument `{name}` of `record`"
       for name in ("sweep_every", "sweep_prompts")},
}  # fmt: skip


@pytest.mark.parametrize(("flat", "place"), PLACES.items())
def test_a_flat_setting_is_refused_with_its_new_place(flat, place):
    with pytest.raises(SettingError) as caught:
        SaltConfig.from_mapping({flat: 1})
    assert str(caught.value) == f"unknown setting {flat!r}; {place}"
    assert caught.value.setting == flat


def test_every_field_of_a_term_had_a_flat_setting():
    for block, names in FLAT.items():
        fields = {field.name for field in dataclasses.fields(getattr(OTHER, block))}
        assert fields - set(names.values()) == ({"step_counts"} if block == "align" else set())


def test_terms_from_elsewhere_are_named_by_their_class():
    target = "examples.own_term.moments.Moments"
    config = SaltConfig.from_mapping({"terms": [{"_target_": target, "weight": 0.5}]})
    assert config.terms[0].weight == 0.5
    assert config.to_mapping()["terms"][0]["_target_"] == target
    for block, words in (
        ({"weight": 1}, "must be a block with a _target_"),
        ({"_target_": "no.such.Term"}, "cannot be imported"),
    ):
        with pytest.raises(SettingError, match=words):
            SaltConfig.from_mapping({"terms": [block]})


class Plain(Term):
    """Not a dataclass: its class takes no warm-up."""

    name = "plain"

    def __init__(self, weight, *, kind="a"):
        super().__init__(weight=weight)
        self.kind = kind


def test_a_term_of_a_plain_class_is_written_as_what_its_class_takes():
    config = SaltConfig(terms=(Plain(0.5, kind="b"),))
    (block,) = config.to_mapping()["terms"]
    assert block == {"_target_": f"{__name__}.Plain", "weight": 0.5, "kind": "b"}
    (term,) = SaltConfig.from_mapping(config.to_mapping()).terms
    assert (term.weight, term.kind) == (0.5, "b")


def test_a_wrong_setting_of_a_listed_term_rests_on_the_list():
    block = {"_target_": "examples.own_term.moments.Moments", "weight": -1}
    with pytest.raises(SettingError, match=r"moments.weight must be") as caught:
        SaltConfig.from_mapping({"terms": [block]})
    assert (caught.value.setting, caught.value.rests_on) == ("moments.weight", ("terms",))


def test_terms_have_different_names():
    with pytest.raises(SettingError, match="'mine' twice"):
        SaltConfig(terms=(Mine(), Mine(2.0)))


def test_a_term_is_checked_where_it_is_made():
    assert (Mine().weight, Mine(0.5).warmup, Mine().step_counts) == (0.1, 0, None)
    with pytest.raises(SettingError, match=r"mine.weight must be .*; got -1") as caught:
        Mine(-1)
    assert caught.value.setting == "mine.weight"
    assert Mine().needs == {"video", "real_x0"}

    class Plain(Term):
        name = "plain"

        def __init__(self):
            super().__init__(weight=2.0)
            self.seen = []

        def on_exit_step(self, step):
            self.seen.append(step)

    assert Plain().needs == {"on_exit_step"}
    assert Plain().weight == 2.0


# Every setting away from its default, as Python code has it.
OTHER = SaltConfig(
    terms=(Moments(0.3, warmup=2, step_counts=(3,)),),
    step_counts=(1, 3, 6), probs=(0.1, 0.2, 0.7), shift=2.0, inference_steps=3, seed=11,
    first_chunk_steps={3: 6, 1: 4},
    sc=SelfConsistency(
        step_counts=(3, 6), weight=2.0, stop_grad="composed", time_weight="clean", nearest=2,
        warmup=9,
    ),
    align=Alignment(
        reference={3: 6, 1: 4}, warmup=4, prob=0.9, weight=0.3, margin=0.2, features="real_score",
        block=20, to="input", reference_noise="own", noise_range=(0.1, 0.2),
    ),
    adv=Adversarial(
        weight=0.3, against="more_steps", step_counts=(1, 3), kind="hinge", features="real_score",
        blocks=(1, 0), noise_range=(0.5, 0.6), lr=0.1, warmup=7,
    ),
)  # fmt: skip


@pytest.mark.parametrize("config", [SaltConfig(), OTHER], ids=["defaults", "others"])
def test_to_mapping_json_pickle_and_replace_give_the_config_back(config):
    settings = config.to_mapping()
    for same in (
        SaltConfig.from_mapping(settings),
        SaltConfig.from_mapping(json.loads(json.dumps(settings))),
        SaltConfig.from_mapping(yaml.safe_load(yaml.safe_dump(settings))),
        dataclasses.replace(config),
        pickle.loads(pickle.dumps(config)),
    ):
        assert same == config
        assert hash(same) == hash(config)
        assert same.to_mapping() == settings


def test_every_setting_counts_in_a_comparison():
    assert dataclasses.replace(OTHER, terms=()) != OTHER
    for block in ("sc", "align", "adv"):
        term = getattr(OTHER, block)
        for field in dataclasses.fields(term):
            value = getattr(term, field.name)
            if value is not None:  # align.step_counts
                default = type(term)()
                assert dataclasses.replace(default, **{field.name: value}) != default


def test_equal_configs_are_one_key_of_a_dict_whatever_they_were_made_from():
    plain = SaltConfig(align=Alignment())
    lists = SaltConfig(
        step_counts=[2, 4, 8], probs=[0.2, 0.4, 0.4], align=Alignment(reference={4: 8, 2: 4})
    )
    same = SaltConfig(sc=SelfConsistency(weight=1), align=Alignment(noise_range=[0, 1]))
    assert {plain: 1, lists: 2, same: 3} == {plain: 3}
    assert OTHER not in {SaltConfig(): 1}


def test_a_config_does_not_change_with_what_it_was_made_from():
    counts, reference, first = [2, 4, 8], {2: 4}, {2: 4}
    config = SaltConfig(
        step_counts=counts, align=Alignment(reference=reference), first_chunk_steps=first
    )
    before = config.to_mapping()
    counts[0], reference[4], first[4] = 1, 16, 16
    config.scheduler().align_reference[2] = config.scheduler().first_chunk_steps[2] = 6
    assert config.to_mapping() == before


def test_numbers_of_numpy_are_numbers():
    np = pytest.importorskip("numpy")
    config = SaltConfig(
        step_counts=list(np.array([2, 4, 8])),
        probs=list(np.array([0.25, 0.25, 0.5], np.float32)),
        shift=np.float32(5),
        align=Alignment(
            reference={np.int64(2): np.int32(4)},
            margin=fractions.Fraction(1, 4),
            block=np.int8(20),
            noise_range=(np.float32(0), np.float64(0.5)),
        ),
        sc=SelfConsistency(weight=np.float16(0.5), nearest=np.int16(2)),
        seed=np.uint8(3),
        first_chunk_steps=np.int8(8),
    )
    expected = SaltConfig(
        probs=(0.25, 0.25, 0.5),
        shift=5.0,
        align=Alignment(reference={2: 4}, margin=0.25, block=20, noise_range=(0.0, 0.5)),
        sc=SelfConsistency(weight=0.5, nearest=2),
        seed=3,
        first_chunk_steps=8,
    )
    assert config == expected
    assert json.dumps(config.to_mapping()) == json.dumps(expected.to_mapping())
    assert json.dumps(config.scheduler().state_dict()) == json.dumps(
        expected.scheduler().state_dict()
    )
    for truth in (np.bool_(True), np.array([1.0]), np.complex64(1)):
        with pytest.raises(TypeError, match=r"sc\.weight must be a number"):
            SaltConfig(sc=SelfConsistency(weight=truth))


def test_the_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SaltConfig().sc.weight = 2.0
