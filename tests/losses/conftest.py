from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from salt_losses import recompute, waiting


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The accelerator is played by the CPU: the shapes of what goes to "the host", whose buffers
    are new."""
    shapes: list[tuple[int, ...]] = []

    def wait_on_host(x: Tensor, before: Any) -> Any:
        shapes.append(tuple(x.shape))
        return waiting.wait_on_host(x, before)

    monkeypatch.setattr(recompute, "_OFFLOADING", {"cpu"})
    monkeypatch.setattr(recompute, "wait_on_host", wait_on_host)
    monkeypatch.setattr(waiting, "_hosts", {})
    return shapes
