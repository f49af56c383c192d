"""Salt's part in every framework, without a framework: objective, state, streams, first chunk."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from salt_losses import SaltConfig
from salt_losses.integrations._first_chunk import ChunkSteps
from salt_losses.integrations._salt import Salt
from salt_losses.terms import Term


class Instead(Term):
    """Takes DMD's place, and keeps a number."""

    name = "instead"
    replaces_dmd = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.kept = 3.0

    def loss(self, rollout: Any) -> Tensor:
        return rollout.video.mean()

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def check_state(self, state: Any) -> None:
        if state["kept"] < 0:
            raise ValueError("kept must not be negative")

    def load_state_dict(self, state: Any) -> None:
        self.kept = state["kept"]


def built(**more: Any) -> Salt:
    config = SaltConfig(sc=None, terms=(Instead(),))
    return Salt(config, "a framework", shift=1.0, **more)


def test_a_term_takes_dmds_place_and_leaves_the_frameworks_other_losses() -> None:
    salt = built()
    salt.begin(0)
    salt.watch(lambda grid: grid.tolist())
    dmd, gan = torch.tensor(5.0), torch.tensor(0.25)
    video = torch.full((1, 2, 1, 2, 2), 7.0)
    loss = salt.objective(dmd + gan, {"video": video}, dmd)
    assert float(loss) == 7.25


def test_the_states_of_terms_are_saved_and_loaded_and_a_wrong_one_changes_nothing() -> None:
    salt, other = built(), built()
    salt.begin(4)
    salt.terms[0].kept = 8.0  # type: ignore[attr-defined]
    state = salt.state_dict()
    assert state["terms"] == {"instead": {"kept": 8.0}}
    other.load_state_dict(state)
    assert (other.terms[0].kept, other.scheduler.iteration) == (8.0, 5)  # type: ignore[attr-defined]
    third = built()
    with pytest.raises(ValueError, match="must not be negative"):
        third.load_state_dict({**state, "terms": {"instead": {"kept": -1.0}}})
    assert (third.terms[0].kept, third.scheduler.iteration) == (3.0, 0)  # type: ignore[attr-defined]


def test_ranks_that_share_a_sample_draw_alike_and_others_do_not() -> None:
    keys = []
    for rank in range(4):
        with (
            mock.patch.object(dist, "is_initialized", lambda: True),
            mock.patch.object(dist, "get_rank", lambda rank=rank: rank),
        ):
            keys.append(built(ranks_per_sample=2).key("noise"))
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_chunks_that_leave_together_take_the_others_exit_after_the_first() -> None:
    """A rollout that reads one exit for all chunks reads it anew for each."""
    lists = torch.tensor([1000.0, 750.0, 500.0, 250.0]), torch.tensor([1000.0, 500.0])
    chunks = ChunkSteps(*lists, counts=(4, 2))
    exits = chunks.draw(lambda blocks, steps: [steps - 1] * blocks, 3)
    assert exits == [3, 1, 1]
    seen = [(len(list(chunks)), exits[0]) for _ in range(3)]
    assert seen == [(4, 3), (2, 1), (2, 1)]
    chunks.check()
