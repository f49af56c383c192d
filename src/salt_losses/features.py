"""Outputs of a transformer's blocks, without a change to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_count, describe


@contextmanager
def feature_tap(
    blocks: nn.ModuleList, indices: Sequence[int], *, stop_after: bool = False
) -> Iterator[list[Any]]:
    """Collect what some blocks return in one forward pass within the context.

    The blocks may be compiled one by one, checkpointed or sharded; a network that is compiled as a
    whole is an error. After the context nothing of it is left in the network.

    With FSDP's first version (`FullyShardedDataParallel`), a backward pass has to enter at the
    network's end: a loss of only the features adds `0.0 * output.float().sum()`.

    Args:
        blocks: the network's blocks. Each is called once in a pass.
        indices: which blocks, in the order in which their outputs are wanted.
        stop_after: the blocks after the last of them are skipped: they return their first argument.
            The network's own output means nothing then.

    Yields:
        A list, empty until the blocks are called, and then of what each returned, in the order
        of `indices`, on the autograd graph if the pass made one. (Under checkpointing with
        `use_reentrant=True` blocks run without a graph: use `False`.) The recomputation of a
        checkpointed block in the backward pass leaves the list as it is.

    Raises:
        TypeError, ValueError: `blocks` is not an `nn.ModuleList`, or indices are not integers, are
            given twice or out of range.
        RuntimeError: a block was not called, or was called twice: a second pass needs a second
            context.

    Examples:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU())
        >>> blocks = torch.nn.ModuleList(network)
        >>> with feature_tap(blocks, [1]) as features:
        ...     _ = network(torch.tensor([[-1.0, 2.0]]))
        >>> features
        [tensor([[0., 2.]])]
    """
    if not isinstance(blocks, nn.ModuleList):
        raise TypeError(f"blocks must be an nn.ModuleList; got {type(blocks).__name__}")
    wanted = check_indices("indices", indices)
    if max(wanted) >= len(blocks):
        index = next(index for index in wanted if index >= len(blocks))
        raise ValueError(
            f"indices must name blocks that exist, 0 to {len(blocks) - 1}; got {index}"
        )
    outputs: dict[int, Any] = {}
    features: list[Any] = []
    # -1, or the backward pass that we are in already: a checkpointed caller's recomputation.
    entered_in = torch._C._current_graph_task_id()

    def keep(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if torch._C._current_graph_task_id() != entered_in:
                return
            if index in outputs:
                raise RuntimeError(
                    f"block {index} was called twice within one feature_tap, which is for one "
                    "forward pass: open another for the next"
                )
            outputs[index] = output
            features[:] = [outputs[i] for i in wanted if i in outputs]

        return hook

    with ExitStack() as undo:
        for index in wanted:
            undo.callback(blocks[index].register_forward_hook(keep(index)).remove)
        if stop_after:
            for later in list(blocks)[max(wanted) + 1 :]:
                undo.enter_context(forward_replaced(later, _first_argument))
        yield features
    missing = [index for index in wanted if index not in outputs]
    if missing:
        raise RuntimeError(
            f"block {missing[0]} was not called within feature_tap: no forward pass was made, or "
            "the network is compiled as a whole (compile its blocks instead)"
        )


def check_indices(name: str, indices: object) -> tuple[int, ...]:
    """Return distinct indices of blocks, at least one."""
    if not isinstance(indices, Sequence) or isinstance(indices, str):
        raise TypeError(f"{name} must be a sequence of block indices; got {describe(indices)}")
    checked = tuple(check_count(f"{name}[{i}]", index, low=0) for i, index in enumerate(indices))
    if not checked or len(set(checked)) < len(checked):
        raise ValueError(f"{name} must name at least one block and none twice; got {checked}")
    return checked


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give this one module another `forward`."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _first_argument(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x
