"""What the blocks of a transformer return, without a change to it."""

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
    """Within the context, one forward pass leaves what some of its blocks returned in a list.

    The blocks may be wrapped or compiled each by itself, checkpointed, sharded; only a network that
    is compiled as a whole cannot be tapped, as its blocks are not called one by one any more, and
    that is an error. After the context nothing of it is left in the network, whatever happened.

    With FSDP's first version (`FullyShardedDataParallel`), a backward pass has to enter at the
    network's end, where FSDP waits for it. A loss of the features alone adds
    `0.0 * output.float().sum()`.

    Args:
        blocks: the network's blocks. Each is called once in a pass.
        indices: which blocks, in the order in which their outputs are wanted.
        stop_after: the blocks after the last of them are passed over: they return their first
            argument. It saves their time and memory where nothing but the features is needed; the
            network's own output means nothing then.

    Yields:
        A list, empty until the blocks are called, and then of what each returned, in the order
        of `indices`: the very tensors, on the autograd graph if the pass made one. (Under
        checkpointing with `use_reentrant=True` blocks run without a graph: use `False`.) The
        recomputation of a checkpointed block in the backward pass leaves the list as it is.

    Raises:
        TypeError, ValueError: `blocks` that is no `nn.ModuleList`, indices that are no integers,
            are given twice or name blocks that do not exist.
        RuntimeError: at the end of the context, if a block was not called; when a block is called
            for the second time: a second pass needs a second context.

    Examples:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU())
        >>> blocks = torch.nn.ModuleList(network)
        >>> with feature_tap(blocks, [1]) as features:
        ...     _ = network(torch.tensor([[-1.0, 2.0]]))
        >>> features
        [tensor([[0., 2.]])]
    """
    wanted = _check_indices(blocks, indices)
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


def _check_indices(blocks: object, indices: object) -> tuple[int, ...]:
    if not isinstance(blocks, nn.ModuleList):
        raise TypeError(f"blocks must be an nn.ModuleList; got {type(blocks).__name__}")
    checked = check_indices("indices", indices)
    for index in checked:
        if index >= len(blocks):
            raise ValueError(
                f"indices must name blocks that exist, 0 to {len(blocks) - 1}; got {index}"
            )
    return checked


def check_indices(name: str, indices: object) -> tuple[int, ...]:
    """Distinct indices of blocks, at least one."""
    if not isinstance(indices, Sequence) or isinstance(indices, str):
        raise TypeError(f"{name} must be a sequence of block indices; got {describe(indices)}")
    checked = tuple(check_count(f"{name}[{i}]", index, low=0) for i, index in enumerate(indices))
    if not checked or len(set(checked)) < len(checked):
        raise ValueError(f"{name} must name at least one block and none twice; got {checked}")
    return checked


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another `forward` for this one module."""
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
