"""Step lists: the trainer's own for its length, a grid's for the others."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from salt_losses import SaltConfig, SettingError, shift_time, step_schedule
from salt_losses.runtime.step_lists import SolverLists, StepLists
from salt_losses.terms.nesting import not_nested, unaligned
from salt_losses.trainers import TRAINERS, Facts

TABLE = 1000 * shift_time(torch.linspace(1.0, 0.0, 1001)[:-1], 5.0)
SCHEDULER = SimpleNamespace(timesteps=TABLE, shift=5.0)


def lists(*own: int, warped: bool = False, shift: float | None = None) -> StepLists:
    steps = torch.tensor(own)
    return StepLists(TABLE[1000 - steps] if warped else steps, SCHEDULER, shift)


@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("own", [(1000, 357), (1000, 100), (1000, 757, 522), (1000,)])
def test_the_own_list_is_kept_for_its_length_and_others_are_a_grids(
    own: tuple[int, ...], warped: bool
) -> None:
    made = lists(*own, warped=warped)
    kept = torch.tensor(own)
    kept = TABLE[1000 - kept] if warped else kept
    steps = made.timesteps(step_schedule(len(own), made.shift))
    assert torch.equal(steps, kept)
    assert steps.dtype == kept.dtype
    assert made.own_steps == len(own)
    assert made.shift == (5.0 if warped else 1.0)
    grid = step_schedule(4, made.shift)
    near = torch.tensor(made.of(4), dtype=torch.float64)
    torch.testing.assert_close(near, 1000 * grid[:-1], rtol=0, atol=0.51)
    assert made.times(grid) == [*(t / 1000 for t in made.of(4)), 0.0]


@pytest.mark.parametrize("warped", [False, True])
def test_a_shift_replaces_the_own_list(warped: bool) -> None:
    made = lists(1000, 357, warped=warped, shift=3.0)
    assert made.own_steps is None
    assert made.shift == 3.0
    assert made.of(2) == pytest.approx([1000, 750], abs=0.51)


def test_a_0_at_the_end_is_not_a_step() -> None:
    made = lists(1000, 757, 522, 0)
    assert made.own_steps == 3
    assert made.of(3) == [1000, 757, 522]
    assert made.of(4) == [1000, 750, 500, 250]


@pytest.mark.parametrize("own", [(1000, 1000), (500, 750), (1200, 500), (1000, -1)])
def test_a_list_that_is_none_of_decreasing_steps_is_named_unless_a_shift_replaces_it(
    own: tuple[int, ...],
) -> None:
    with pytest.raises(ValueError, match=r"strictly decreasing, from at most 1000; got \["):
        lists(*own)
    assert lists(*own, shift=5.0).of(2) == [1000, 833]


# What does not nest.

HALF = {"step_counts": (2,), "probs": (1.0,), "sc": {"step_counts": (2,)}, "inference_steps": 2}


def config_of(settings: dict[str, Any]) -> SaltConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of terms that never turn on
        return SaltConfig.from_mapping({"align.weight": 0.1} | settings)


def named(made: StepLists, **settings: Any) -> list[str]:
    return not_nested(config_of(settings), made.of, made.own_steps)


@pytest.mark.parametrize(
    ("own", "settings"),
    [
        ((1000, 750, 500, 250), {}),
        ((1000, 500), {}),
        ((1000,), {}),
        ((1000, 357, 200), {}),  # a length that is not used
        ((1000, 900, 800, 700), HALF | {"align": None}),
        ((1000, 357), HALF | {"align": None}),  # the only list
        ((1000, 357), {"step_counts": (4, 8), "probs": (0.5, 0.5)}),
        ((1000, 357), {"probs": (0.0, 0.5, 0.5)}),
    ],
)
def test_a_list_that_nests_or_is_not_used_is_passed_over(
    own: tuple[int, ...], settings: dict[str, Any]
) -> None:
    assert named(lists(*own), **settings) == []


def test_a_list_that_does_not_nest_is_named_with_what_does_not_hold() -> None:
    (message,) = named(lists(1000, 357), sc=None)
    assert message.startswith(
        "the trainer's own list of 2 steps, [1000, 357], is trained as it is and does not nest "
        "with the lists of [4, 8] steps. What does not hold then: the step counts do not share "
        "their levels; an alignment of 2 to 4 steps cannot share the student's noise"
    )
    assert message.endswith("set shift, which replaces it")
    assert "triples" not in message
    assert named(lists(1000, 357, shift=5.0), sc=None) == []


@pytest.mark.parametrize(
    ("own", "settings", "off"),
    [
        ((1000, 357), {}, None),  # the term is on at 8 steps, where no list of 2 has a part
        ((1000, 357), {"sc": {"step_counts": (2, 8)}}, "at [2] steps"),
        ((1000, 357), {"inference_steps": 2}, "at [8] steps"),
        ((1000, 900, 800, 700), {}, "at [8] steps"),  # t_e is from it
        ((1000, 900, 800, 700, 600, 500, 400, 300), {}, "at [8] steps"),
        ((1000, 900, 800, 700), {"sc": {"step_counts": ()}}, None),
        (
            (1000, 900, 800, 700),
            {"inference_steps": 2, "sc": {"step_counts": (4,)}},
            "at [4] steps",
        ),
        (
            (1000, 900, 800, 700),
            {
                "step_counts": (2, 8),
                "probs": (0.5, 0.5),
                "inference_steps": 2,
                "sc": {"step_counts": (2,)},
                "first_chunk_steps": 4,
            },
            "at [2] steps",
        ),
    ],
)
def test_the_defect_terms_part_is_said_where_the_list_has_one(
    own: tuple[int, ...], settings: dict[str, Any], off: str | None
) -> None:
    (message,) = named(lists(*own), **settings)
    assert ("triples" in message) == (off is not None)
    assert off is None or f"{off} the self-consistency term's triples" in message


@pytest.mark.parametrize(
    ("own", "settings", "pair"),
    [
        ((1000, 357), {}, (2, 2, 4)),
        ((1000, 900, 800, 700), {}, (2, 2, 4)),
        ((1000, 900, 800, 700), {"align.reference": {4: 8}}, (4, 4, 8)),
        (
            (1000, 900, 800, 700),
            {"align.reference": {2: 8}, "first_chunk_steps": 4},
            (2, 4, 8),
        ),
        ((1000, 357), {"align.to": "end", "align.reference_noise": "shared"}, (2, 2, 4)),
        ((1000, 357), {"align.to": "exit", "align.reference_noise": "own"}, (2, 2, 4)),
    ],
)
def test_an_alignment_between_lists_that_do_not_nest_is_refused(
    own: tuple[int, ...], settings: dict[str, Any], pair: tuple[int, int, int]
) -> None:
    made, config = lists(*own), config_of(settings)
    low, coarse, fine = pair
    message = f"align.reference\\[{low}\\] needs lists that nest: that of {fine} steps does not "
    with pytest.raises(SettingError, match=f"{message}hold that of {coarse}, "):
        TRAINERS["fastvideo"].check(config, Facts(made.timesteps, made.shift))


@pytest.mark.parametrize(
    "settings",
    [
        {"align": None},
        {"align.prob": 0.0},
        {"align.to": "end", "align.reference_noise": "own"},  # from and to its own end
        {"probs": (0.0, 0.5, 0.5)},
        {"align.reference": {4: 8}},
    ],
)
def test_an_alignment_that_needs_no_nesting_is_let_be(settings: dict[str, Any]) -> None:
    assert unaligned(config_of(settings), lists(1000, 357).of) == []
    shifted = lists(1000, 357, shift=3.0)
    assert unaligned(config_of({}), shifted.of) == []


def test_it_is_a_warning_that_names_the_trainer() -> None:
    made = lists(1000, 357)
    with pytest.warns(UserWarning, match="^LongLive v1.0: the trainer's own list of 2 steps"):
        TRAINERS["longlive"].warn(SaltConfig(), Facts(made.timesteps, made.shift, made.own_steps))


def test_a_solvers_lists_are_whole_timesteps_cut_off() -> None:
    lists = SolverLists(SimpleNamespace(shift=5.0))
    assert [lists.of(k) for k in (2, 4)] == [[999, 833], [999, 937, 833, 624]]
    assert lists.times(step_schedule(2)) == [0.999, 0.833, 0.0]
    with pytest.raises(ValueError, match="a grid of 1500 steps is too fine"):
        lists.of(1500)
