"""Whether Salt with vanishing weights leaves an update as it was, bit for bit.

That can be told only where the trainer alone repeats itself. Of torch's attentions on a GPU the
flash kernel's backward pass is deterministic, but only if deterministic algorithms are asked for
without `warn_only`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.real_size.subjects import Subject
from benchmarks.real_size.workbench import Workbench

# The first that runs is taken: a kernel, whether it is pinned, and whether an operation without a
# deterministic form is an error.
PINS = (
    ("flash, deterministic", SDPBackend.FLASH_ATTENTION, True),
    ("flash, not deterministic, as another operation is not", SDPBackend.FLASH_ATTENTION, False),
    ("torch's choice, not deterministic", None, False),
)  # fmt: skip
ON_A_CPU = ("torch's choice on a CPU, which repeats", None, True)

Outcome = tuple[Tensor, dict[str, Tensor], list[Any]]


def compare(bench: Workbench, subject: Subject) -> dict[str, Any]:
    """The row: whether plain repeats, and what differs with Salt."""
    attention, (first, again, salted) = _three(bench, subject)
    return {
        "attention": attention,
        "plain_repeats": same(first, again) == {"loss": True, "gradients": True, "stream": True},
        "plain_differs_by": distance(first, again),
        "same": same(first, salted),
        "gradients_differ_by": distance(first, salted),
    }


def _three(bench: Workbench, subject: Subject) -> tuple[str, list[Outcome]]:
    plain = replace(subject, settings=None)
    for attention, kernel, strict in PINS if bench.device == "cuda" else [ON_A_CPU]:
        try:
            with pinned(kernel, strict):
                return attention, [bench.gradients(s, 0) for s in (plain, plain, subject)]
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            refused = error
    raise refused


@contextmanager
def pinned(kernel: SDPBackend | None, strict: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    # Not filled, which is for finding reads of what was never written, and takes time.
    filled = torch.utils.deterministic.fill_uninitialized_memory
    with ExitStack() as undo:
        undo.callback(torch.use_deterministic_algorithms, before, warn_only=warned)
        undo.callback(setattr, torch.utils.deterministic, "fill_uninitialized_memory", filled)
        torch.use_deterministic_algorithms(True, warn_only=not strict)
        torch.utils.deterministic.fill_uninitialized_memory = False
        if kernel is not None:
            undo.enter_context(sdpa_kernel(kernel))
        yield


def same(one: Outcome, other: Outcome) -> dict[str, bool]:
    gradients = one[1].keys() == other[1].keys() and all(
        torch.equal(value, other[1][name]) for name, value in one[1].items()
    )
    streams = all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(one[2], other[2])
    )
    return {"loss": torch.equal(one[0], other[0]), "gradients": gradients, "stream": streams}


def distance(one: Outcome, other: Outcome) -> float:
    """Of the gradients, relative to their norm."""
    square = sum(float(value.double().square().sum()) for value in one[1].values())
    apart = sum(
        float((value.double() - other[1][name].double()).square().sum())
        for name, value in one[1].items()
    )
    return float((apart / square) ** 0.5)
