from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import harness
import pytest
import tiny
import torch


@pytest.fixture(autouse=True, scope="module")
def trainers_leave_no_trace() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more than one fights over a busy CPU
    yield
    torch.set_num_threads(threads)
    harness.deactivate()


FOLLOW_A_LIST = ["tiny_video", *harness.TRAINERS]


@pytest.fixture(scope="module", params=FOLLOW_A_LIST)
def model(request: pytest.FixtureRequest) -> Any:
    """Each trainer's model, and the miniature's, so that there is always one; `model.name` says
    which. Skipped where the checkout is not named."""
    return built(request.param)


@pytest.fixture(scope="module", params=[*FOLLOW_A_LIST, *harness.SOLVERS])
def every_model(request: pytest.FixtureRequest) -> Any:
    """As `model`, with those whose rollouts follow no step list."""
    return built(request.param)


def built(name: str) -> Any:
    if name == "tiny_video":
        return tiny.build_model()
    if harness.checkout(name) is None:
        variable = harness.KNOWN[name].variable
        pytest.skip(f"set {variable} to a checkout of the trainer to run this")
    model = harness.build_model(name)
    model.name = name
    return model


@pytest.fixture
def require() -> Any:
    """`require(name)` skips the test where the trainer's checkout is not named."""

    def check(name: str) -> str:
        if harness.checkout(name) is None:
            variable = harness.KNOWN[name].variable
            pytest.skip(f"set {variable} to a checkout of the trainer to run this")
        return name

    return check
