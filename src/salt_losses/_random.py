"""Draws that never touch the global random stream, in eager mode and under `torch.compile`.

`torch.compile` cannot take a `torch.Generator` into a graph (torch 2.13). While it traces, each
draw gets a key instead, by which an opaque operator looks its generator up; the trace is guarded on
the generator's identity, so another generator means another trace. A draw without a generator needs
none: its key is negative, and means the same in every process that an exported program runs in.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ._checks import describe

# Strong references on purpose: an identity that a graph is guarded on must not be used again.
_generators: dict[int, torch.Generator] = {}
_keys = itertools.count()
# Older versions of torch (2.4 is one) do not tell an export from a compilation.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)

torch.library.define(
    "salt_losses::draw",
    "(SymInt[] shape, ScalarType dtype, Device device, bool normal, int key) -> Tensor",
    # Keeps the compiler from drawing again in backward.
    tags=(torch.Tag.nondeterministic_seeded,),
)


@torch.library.impl("salt_losses::draw", "BackendSelect")
def _draw_op(
    shape: list[int], dtype: torch.dtype, device: torch.device, normal: bool, key: int
) -> Tensor:
    return _draw(shape, dtype, device, normal, None if key < 0 else _generators[key])


@torch.library.register_fake("salt_losses::draw")  # type: ignore[untyped-decorator]
def _draw_fake(
    shape: list[int], dtype: torch.dtype, device: torch.device, normal: bool, key: int
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _register(generator: torch.Generator | None) -> int:
    # A key for each draw: the partitioner of the backward graph merges calls with equal arguments.
    key = next(_keys)
    if generator is None:
        return -1 - key
    _generators[key] = generator
    return key


def _draw(
    shape: list[int],
    dtype: torch.dtype,
    device: torch.device,
    normal: bool,
    generator: torch.Generator | None,
) -> Tensor:
    if generator is None:
        generator = torch.Generator(device)
        generator.seed()
    sample = torch.randn if normal else torch.rand
    return sample(shape, dtype=dtype, device=device, generator=generator)


def check_generator(generator: object, device: torch.device) -> None:
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None; got {describe(generator)}")
    if not torch.compiler.is_compiling() and generator.device.type != device.type:
        raise ValueError(
            f"generator must be on the device of the draw, {device.type}; "
            f"got one on {generator.device.type}"
        )


def draw(
    shape: torch.Size, like: Tensor, generator: torch.Generator | None, *, normal: bool
) -> Tensor:
    """Draw uniform [0, 1) or standard normal values with the dtype and device of `like`.

    Without a generator the operating system seeds the draw; the global stream is never used.
    """
    if torch.compiler.is_compiling():
        if generator is not None and _is_exporting():
            raise ValueError(
                "generator must be None in torch.export: a program that is saved cannot hold a "
                "torch.Generator; without one, each of its runs is seeded afresh"
            )
        op = torch.ops.salt_losses.draw
        key = _register(generator)
        return op(list(shape), like.dtype, like.device, normal, key)  # type: ignore[no-any-return]
    return _draw(list(shape), like.dtype, like.device, normal, generator)
