"""The self-consistency term of a rollout against a naive computation, setting by setting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from salt_losses import SaltConfig, ShortcutTriple, step_schedule
from salt_losses.terms import SelfConsistency, Trace
from salt_losses.terms import self_consistency as term

TRAIN, ENDS = step_schedule(8).tolist(), step_schedule(4).tolist()


GAIN = torch.ones((), dtype=torch.float64, requires_grad=True)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    return GAIN * (x * (1 + t.view(-1, 1, 1, 1, 1).to(x))).sin()


def collected(
    exits: list[Tensor], *, lockstep: bool = False, masks: list[Tensor | None] | None = None,
    **settings: Any,
) -> tuple[Tensor, list[Tensor], list[ShortcutTriple], list[Tensor]]:  # fmt: skip
    """The loss, where the extra calls were made, the triples, and the states."""
    torch.manual_seed(0)
    triples, calls, states = list[ShortcutTriple](), list[Tensor](), list[Tensor]()
    sampler = term.shortcut_triple_sampler
    config = SaltConfig(step_counts=(8,), probs=(1.0,), sc=SelfConsistency(**settings))
    trace = Trace(
        config.all_terms, config.scheduler().plan(0), str, trainer="a trainer",
        times=lambda grid: grid.tolist(), lockstep=lockstep,
    )  # fmt: skip

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return velocity(x, t)

    def kept(*args: Any, **kwargs: Any) -> ShortcutTriple:
        triples.append(sampler(*args, **kwargs))
        return triples[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(term, "shortcut_triple_sampler", kept)
        for number, t_s in enumerate(exits):
            x = torch.randn(len(t_s), 2, 3, 4, 4, dtype=torch.float64)
            states.append(x)
            mask = None if masks is None else masks[number]
            trace.exit_step(x, velocity(x, t_s), t_s, counted, mask=mask)
    loss, _ = trace.objective(torch.zeros((), dtype=torch.float64))
    return loss, calls, triples, states


def naive(
    triples: list[ShortcutTriple], states: list[Tensor], *, clean: bool, constant: str | None = None
) -> Tensor:
    """eq. 8, sample by sample, from both endpoints."""
    terms = []
    for triple, x in zip(triples, states, strict=True):
        if not triple.feasible.any():
            continue
        samples = []
        for b in range(len(x)):
            if not triple.feasible[b]:
                continue
            x_s, (t_s, t_m, t_e) = x[b : b + 1], (u[b : b + 1] for u in triple[:3])
            v_s = velocity(x_s, t_s)
            x_m = x_s - (t_s - t_m) * v_s
            direct, composed = x_s - (t_s - t_e) * v_s, x_m - (t_m - t_e) * velocity(x_m, t_m)
            direct = direct.detach() if constant == "direct" else direct
            composed = composed.detach() if constant == "composed" else composed
            samples.append((1 - t_s if clean else 1) * (direct - composed).square().mean())
        terms.append(torch.stack([s.squeeze() for s in samples]).mean())
    return torch.stack(terms).mean()


def levels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The last of 8 steps admits no triple.
EXITS = [levels(1.0, 1.0), levels(0.75, 0.125), levels(0.125, 0.125), levels(0.5, 0.875)]


@pytest.mark.parametrize("constant", [None, "direct", "composed"])
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("nearest", [None, 1, 2])
@pytest.mark.parametrize("lockstep", [False, True])
def test_the_term_and_its_gradient_are_those_of_a_naive_computation(
    lockstep: bool, nearest: int | None, clean: bool, constant: str | None
) -> None:
    settings: dict[str, Any] = {"nearest": nearest, "time_weight": "clean" if clean else None}
    loss, _, triples, states = collected(EXITS, lockstep=lockstep, stop_grad=constant, **settings)
    expected = naive(triples, states, clean=clean, constant=constant)
    torch.testing.assert_close(loss, expected)
    found, wanted = (torch.autograd.grad(value, GAIN)[0] for value in (loss, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("nearest", "ends"), [(None, {0.5, 0.25, 0.0}), (1, {0.5}),
                                               (2, {0.5, 0.25})])  # fmt: skip
def test_nearest_bounds_where_a_triple_ends(nearest: int | None, ends: set[float]) -> None:
    _, _, triples, _ = collected([levels(*[0.75] * 64)], nearest=nearest)
    assert {*triples[0].t_e.tolist()} == ends


@pytest.mark.parametrize(
    ("settings", "lockstep", "made"),
    [
        ({}, False, 3),  # not where no triple is feasible
        ({"time_weight": "clean"}, False, 2),  # nor where 1 - t_s is 0
        # Ranks leave at steps of their own, and must make the same calls.
        ({}, True, 4),
        ({"time_weight": "clean"}, True, 4),
    ],
)
def test_calls_are_spared_only_where_all_ranks_spare_them(
    settings: dict[str, Any], lockstep: bool, made: int
) -> None:
    _, calls, _, _ = collected(EXITS, lockstep=lockstep, **settings)
    assert len(calls) == made


def test_a_level_1_in_a_batch_of_others_is_called_and_counts_as_0() -> None:
    loss, calls, triples, states = collected([levels(1.0, 0.75)], time_weight="clean")
    assert len(calls) == 1
    torch.testing.assert_close(loss, naive(triples, states, clean=True))


@pytest.mark.parametrize("lockstep", [False, True])
def test_exit_steps_of_which_no_element_counts_are_not_in_the_mean(lockstep: bool) -> None:
    exits = [levels(0.75), levels(0.5), levels(0.875), levels(0.125)]
    shape = (1, 2, 3, 4, 4)
    nothing, all_of_it = torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)
    masks = [nothing, all_of_it, all_of_it, nothing]  # the last one has no triple either
    loss, _, triples, states = collected(exits, lockstep=lockstep, masks=masks)
    torch.testing.assert_close(loss, naive(triples[1:], states[1:], clean=False))


def test_without_a_triple_there_is_no_term_and_without_an_exit_step_an_error() -> None:
    assert collected([levels(0.125)])[0] == 0
    assert collected([levels(0.125)], lockstep=True)[0] == 0
    with pytest.raises(RuntimeError, match="no call of the student with gradient"):
        collected([])
