import math
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from salt_losses import ShortcutTriple, shortcut_triple_sampler, step_schedule

DRAWS = 5_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pair_probabilities(t_s, train, inference, nearest=None):
    """Eq. 9 by enumeration, `t_e` from the highest few: {(t_m, t_e): probability}."""
    choices = {
        t_e: [t_m for t_m in train if t_e < t_m < t_s]
        for t_e in inference
        if t_e < t_s
    }  # fmt: skip
    choices = {t_e: inside for t_e, inside in choices.items() if inside}
    choices = {t_e: choices[t_e] for t_e in sorted(choices, reverse=True)[:nearest]}
    return {
        (t_m, t_e): 1 / len(choices) / len(inside)
        for t_e, inside in choices.items()
        for t_m in inside
    }


def assert_distribution(triple, expected, grid):
    def nearest(t):
        return min(grid, key=lambda point: abs(point - t))

    pairs = zip(triple.t_m.tolist(), triple.t_e.tolist())
    counts = Counter((nearest(t_m), nearest(t_e)) for t_m, t_e in pairs)
    assert set(counts) == set(expected)
    chi_square = sum((counts[p] - DRAWS * q) ** 2 / (DRAWS * q) for p, q in expected.items())
    degrees = len(expected) - 1
    # Five standard deviations of a chi-square; the seed is fixed, so it holds or it doesn't.
    assert chi_square <= degrees + 5 * math.sqrt(2 * degrees) + 1e-9


@pytest.mark.parametrize("rounding", ["none", "float32", "timestep"])
@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("i", range(9))
def test_every_start_of_the_training_grid_draws_eq_9(i, shift, rounding):
    train, inference = step_schedule(8, shift), step_schedule(4, shift)
    expected = pair_probabilities(train[i].item(), train.tolist(), inference.tolist())
    t_s = train[i].expand(DRAWS)
    if rounding == "float32":
        t_s = t_s.float()
    elif rounding == "timestep":  # what a trainer's float32 timestep table does to it
        t_s = (1000 * t_s).float() / 1000
    triple = shortcut_triple_sampler(t_s, train, inference, generator=seeded(i))
    assert triple.t_s is t_s
    assert triple.t_m.dtype == triple.t_e.dtype == t_s.dtype
    if not expected:
        assert i in (7, 8)  # one step above clean, and clean itself
        assert not triple.feasible.any()
        assert torch.equal(triple.t_m, t_s)
        assert torch.equal(triple.t_e, t_s)
        return
    assert triple.feasible.all()
    assert (triple.t_e < triple.t_m).all()
    assert (triple.t_m < t_s - 1e-3).all()
    assert_distribution(triple, expected, train.tolist())


@pytest.mark.parametrize("nearest", [1, 2, 3, 9])
@pytest.mark.parametrize("i", range(7))
def test_the_nearest_ends_are_drawn_from_the_highest_choices_of_eq_9(i, nearest):
    train, inference = step_schedule(8, 5.0), step_schedule(4, 5.0)
    expected = pair_probabilities(train[i].item(), train.tolist(), inference.tolist(), nearest)
    t_s = (1000 * train[i].expand(DRAWS)).float() / 1000  # as from a trainer's table of timesteps
    triple = shortcut_triple_sampler(
        t_s, train, inference, nearest=nearest, generator=seeded(i)
    )  # fmt: skip
    assert triple.feasible.all()
    assert_distribution(triple, expected, train.tolist())


def test_the_two_nearest_ends_are_those_of_the_authors_release():
    # Timesteps of its shift-5 table: at each exit the two highest ends below the next step.
    steps = (1000, 972, 937, 892, 833, 750, 625, 416)
    ends = {1000: {937, 833}, 972: {833, 625}, 937: {833, 625}, 892: {625, 0}, 833: {625, 0},
            750: {0}, 625: {0}}  # fmt: skip
    train, inference = step_schedule(8, 5.0), step_schedule(4, 5.0)
    for t_s in train[:-2]:
        triple = shortcut_triple_sampler(
            t_s.expand(200), train, inference, nearest=2, generator=seeded()
        )
        assert {int(1000 * t) for t in triple.t_e.tolist()} == ends[int(1000 * t_s)]
        assert {int(1000 * t) for t in triple.t_m.tolist()} <= {
            s for s in steps if s < int(1000 * t_s)
        }


def test_nearest_leaves_the_same_starts_feasible():
    t_s = torch.rand(300, generator=seeded(), dtype=torch.float64)
    grids = step_schedule(8), step_schedule(4)
    every, one = (shortcut_triple_sampler(t_s, *grids, nearest=n) for n in (None, 1))
    assert torch.equal(every.feasible, one.feasible)
    assert torch.equal(one.t_e[~one.feasible], t_s[~one.feasible])


def test_a_start_between_the_grid_points_is_bounded_by_itself():
    train, inference = step_schedule(8), step_schedule(4)
    expected = pair_probabilities(0.6, train.tolist(), inference.tolist())
    triple = shortcut_triple_sampler(
        torch.full((DRAWS,), 0.6), train, inference, generator=seeded()
    )  # fmt: skip
    assert_distribution(triple, expected, train.tolist())


def test_t_e_is_uniform_over_the_choices_that_leave_a_t_m():
    # Below 1: 0.5 leaves one t_m, 0 leaves four; 0.75 leaves none and is never drawn.
    train, inference = [1.0, 0.75, 0.5, 0.4, 0.3, 0.0], [1.0, 0.75, 0.5, 0.0]
    triple = shortcut_triple_sampler(torch.ones(DRAWS), train, inference, generator=seeded())
    assert (triple.t_e == 0.5).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert (triple.t_e == 0.75).sum() == 0
    for t_m in (0.75, 0.5, 0.4, 0.3):
        share = (triple.t_m[triple.t_e == 0] == t_m).float().mean().item()
        assert share == pytest.approx(0.25, abs=0.04)


def test_feasible_and_infeasible_starts_share_a_batch():
    t_s = torch.tensor([[1.0, 0.125], [0.25, 0.0]])
    triple = shortcut_triple_sampler(t_s, step_schedule(8), step_schedule(4), generator=seeded())
    assert triple.feasible.tolist() == [[True, False], [True, False]]
    assert torch.equal(triple.t_m[:, 1], t_s[:, 1])
    assert torch.equal(triple.t_e[:, 1], t_s[:, 1])
    assert (triple.t_m[1, 0].item(), triple.t_e[1, 0].item()) == (0.125, 0.0)


def test_equal_grids_of_two_steps_admit_no_pair_below_the_middle():
    grid = [1.0, 0.5, 0.0]
    triple = shortcut_triple_sampler(torch.tensor([1.0, 0.5, 0.0]), grid, grid)
    assert triple.feasible.tolist() == [True, False, False]


def test_every_element_draws_for_itself():
    t_s = torch.ones(64, 2)
    triple = shortcut_triple_sampler(t_s, step_schedule(8), step_schedule(4), generator=seeded())
    assert not torch.equal(triple.t_m[:, 0], triple.t_m[:, 1])
    assert len(triple.t_m[:, 0].unique()) > 3


def test_the_generator_decides_the_draw():
    t_s = torch.ones(200)
    grids = step_schedule(8), step_schedule(4)
    a, b, c = (
        shortcut_triple_sampler(t_s, *grids, generator=seeded(seed)) for seed in (1, 1, 2)
    )  # fmt: skip
    assert all(torch.equal(u, v) for u, v in zip(a, b))
    assert not torch.equal(a.t_m, c.t_m)
    generator = seeded(1)
    first, second = (shortcut_triple_sampler(t_s, *grids, generator=generator) for _ in range(2))
    assert torch.equal(first.t_m, a.t_m)
    assert not torch.equal(second.t_m, a.t_m)


def test_without_a_generator_two_draws_differ():
    t_s = torch.ones(500)
    a, b = (shortcut_triple_sampler(t_s, step_schedule(8), step_schedule(4)) for _ in range(2))
    assert not torch.equal(a.t_m, b.t_m)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 5), (2, 3, 4)])
def test_all_fields_have_the_shape_of_t_s(shape):
    triple = shortcut_triple_sampler(torch.ones(shape), step_schedule(8), step_schedule(4))
    assert isinstance(triple, ShortcutTriple)
    assert [u.shape for u in triple] == [torch.Size(shape)] * 4
    assert triple.feasible.dtype == torch.bool


class CountOps(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_number_of_operations_does_not_depend_on_the_batch():
    def operations(batch):
        with CountOps() as mode:
            shortcut_triple_sampler(torch.ones(batch), step_schedule(8), step_schedule(4))
        return mode.count

    assert operations(2) == operations(3000)
