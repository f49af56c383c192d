from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import subjects
from frameworks import FRAMEWORKS


@pytest.fixture(autouse=True, scope="module")
def trainers_leave_no_trace() -> Iterator[None]:
    yield
    harness.deactivate()


@pytest.fixture(scope="module", params=[*subjects.SUBJECTS, *FRAMEWORKS])
def subject(request: pytest.FixtureRequest) -> subjects.Subject:
    """Each trainer in turn; skipped where its checkout is not named."""
    torch.set_num_threads(1)
    name = request.param
    made = FRAMEWORKS[name](name) if name in FRAMEWORKS else subjects.SUBJECTS[name]()
    if (reason := made.missing()) is not None:
        pytest.skip(reason)
    made.build()
    return made
