"""Argument checks of the public functions: each message names the argument and what is wanted."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor

Times: TypeAlias = "float | Tensor"

# Types of devices that have no float64.
NO_FLOAT64 = ("mps",)


def describe(value: object) -> str:
    """Show `value` in an error message: never the contents of a tensor."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {dtype} tensor of shape {list(value.shape)}"
    if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r} ({type(value).__name__})"


def values_readable(tensor: Tensor) -> bool:
    """Return True if looking at the values costs no host synchronisation and breaks no tracing."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype a loss is computed in: float32 at least, float64 if an input has it."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def check_float_tensor(name: str, value: object, *, min_dim: int = 1) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor; got {describe(value)}")
    if value.dim() < min_dim:
        raise ValueError(
            f"{name} must have at least {min_dim} dimension{'s' if min_dim > 1 else ''}; "
            f"got {describe(value)}"
        )
    if value.numel() == 0:
        raise ValueError(f"{name} must not be empty; got {describe(value)}")
    return value


def check_like(name: str, value: object, like_name: str, like: Tensor) -> Tensor:
    """Check a float tensor with the shape and device of `like`. Its dtype may differ."""
    tensor = check_float_tensor(name, value)
    if tensor.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape of {like_name}, {list(like.shape)}; "
            f"got {list(tensor.shape)}"
        )
    check_device(name, tensor, like_name, like)
    return tensor


def check_alike(**tensors: Tensor) -> None:
    """Check by their names that all are float tensors with the first one's shape and device."""
    (first_name, first), *others = tensors.items()
    check_float_tensor(first_name, first)
    for name, tensor in others:
        check_like(name, tensor, first_name, first)


def check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be callable; got {describe(value)}")


def check_device(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(
            f"{name} must be on the device of {like_name}, {like.device}; got {tensor.device}"
        )


def check_choice(name: str, value: object, known: Sequence[object]) -> None:
    if not any(value is k or (isinstance(value, str) and value == k) for k in known):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Return True for a real number, NumPy's included, that is not a boolean."""
    return isinstance(value, (int, float, numbers.Real)) and not isinstance(value, bool)


def check_number(
    name: str, value: object, *, low: float = -math.inf, above: float = -math.inf
) -> float:
    """Check a finite real number, `>= low` and `> above`."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number; got {describe(value)}")
    number = float(value)
    # Only comparisons: while torch.compile traces, the number may be a symbol.
    if not (-math.inf < number < math.inf and number >= low and number > above):
        if above > -math.inf:
            wanted = f"a finite number above {above:g}"
        elif low > -math.inf:
            wanted = f"a finite number of at least {low:g}"
        else:
            wanted = "a finite number"
        raise ValueError(f"{name} must be {wanted}; got {value!r}")
    return number


def check_count(name: str, value: object, *, low: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):
        raise TypeError(f"{name} must be an integer; got {describe(value)}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}; got {value}")
    return int(value)


def moved(t: Tensor, device: torch.device) -> Tensor:
    """Move times to a device, as float32 if it has no float64: cast before it sees them.

    From the CPU the host need not wait: the driver copies the few bytes before it returns.
    """
    if t.dtype == torch.float64 and device.type in NO_FLOAT64:
        t = t.float()
    return t.to(device, non_blocking=t.device.type == "cpu")


def as_times(name: str, t: object, x: Tensor, x_name: str = "x") -> Tensor:
    """`t` as a tensor `[B]` or `[B, F]` on the device of `x`, its values checked where readable.

    A float becomes `[B]` in float64, so that differences of times stay exact until they meet `x`;
    so does a 0-dim tensor, a point of a grid, in its own dtype.
    """
    if is_number(t):
        if not 0.0 <= float(t) <= 1.0:
            raise ValueError(f"{name} must be a noise level in [0, 1]; got {t!r}")
        dtype = torch.float32 if x.device.type in NO_FLOAT64 else torch.float64
        return torch.full(x.shape[:1], float(t), dtype=dtype, device=x.device)
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise TypeError(f"{name} must be a float or a floating-point tensor; got {describe(t)}")
    if t.dim() == 0:
        check_unit_interval(name, t)
        if t.device.type != "cpu":
            check_device(name, t, x_name, x)
        return moved(t, x.device).expand(x.shape[:1])
    if t.dim() not in (1, 2) or t.shape != x.shape[: t.dim()]:
        wanted = f"[{x.shape[0]}]"
        if x.dim() > 1:
            wanted += f" or {list(x.shape[:2])}"
        raise ValueError(
            f"{name} must be a float or of shape {wanted}, the leading dimensions of {x_name}; "
            f"got shape {list(t.shape)}"
        )
    check_device(name, t, x_name, x)
    check_unit_interval(name, t)
    return t


def check_unit_interval(name: str, t: Tensor) -> None:
    if values_readable(t):
        _raise_first(~((t >= 0) & (t <= 1)), f"{name} must hold noise levels in [0, 1]", t)


def check_weights(name: str, weight: Tensor) -> None:
    if values_readable(weight):
        bad = ~((weight >= 0) & weight.isfinite())
        _raise_first(bad, f"{name} must hold finite numbers of at least 0", weight)


def check_order(
    low_name: str, low: Tensor, high_name: str, high: Tensor, where: Tensor | None = None
) -> None:
    """Check `low < high` elementwise (where `where`); with no `where`, `low <= high`."""
    if not (values_readable(low) and values_readable(high)):
        return
    if where is None:
        # In the coarser dtype: one noise level in float32 and in float64 is one noise level.
        coarse = min(low.dtype, high.dtype, key=lambda dtype: dtype.itemsize)
        bad, relation = low.to(coarse) > high.to(coarse), "must not lie above"
    else:
        bad, relation = (low >= high) & where, "must lie below"
    _raise_first(bad, f"{low_name} {relation} {high_name}", low, high, names=(low_name, high_name))


def _raise_first(bad: Tensor, message: str, *values: Tensor, names: Sequence[str] = ()) -> None:
    """Raise `message` with the values at the first True of `bad`, if there is one."""
    if not bad.any():
        return
    index = tuple(bad.nonzero()[0].tolist())
    got = [f"{value[index].item():g}" for value in values]
    if names:
        got = [f"{name}={number}" for name, number in zip(names, got)]
    where = f" at index {index[0] if len(index) == 1 else index}" if index else ""
    raise ValueError(f"{message}; got {', '.join(got)}{where}")


def align_left(t: Tensor, x: Tensor) -> Tensor:
    """`t` with the leading dimensions of `x`, shaped to broadcast against it."""
    return t.reshape(t.shape + (1,) * (x.dim() - t.dim()))


def spread(t: Tensor, x: Tensor) -> Tensor:
    """`[B]` or `[B, F]` times, shaped to broadcast against `x` and in its compute dtype."""
    return align_left(t.to(compute_dtype(x.dtype)), x)


def as_grid(name: str, times: object, device: torch.device) -> Tensor:
    """Return a grid of at least two strictly decreasing noise levels as a tensor on `device`."""
    if not isinstance(times, Tensor):
        times = torch.tensor(grid_floats(name, times), dtype=torch.float64, device="cpu")
    if not times.is_floating_point():
        raise TypeError(f"{name} must hold floating-point noise levels; got {describe(times)}")
    if times.dim() != 1:
        raise ValueError(
            f"{name} must be a grid of noise levels, [K + 1]; got shape {list(times.shape)}"
        )
    if times.device.type not in ("cpu", device.type):
        where = "the CPU" if device.type == "cpu" else f"the CPU or on {device}"
        raise ValueError(f"{name} must be on {where}; got {times.device}")
    if times.shape[0] < 2:
        raise ValueError(
            f"{name} must hold at least two noise levels; got shape {list(times.shape)}"
        )
    if values_readable(times):
        _check_grid(name, times.tolist())
    return moved(times, device)


def grid_floats(name: str, times: object) -> list[float]:
    """Return the grid as Python floats. A tensor that is not on the CPU has to be waited for."""
    if isinstance(times, Tensor):
        if times.is_meta:
            raise ValueError(f"{name} must hold values; got a tensor on the meta device")
        grid: list[float] = as_grid(name, times, times.device).tolist()
    elif isinstance(times, Sequence) and not isinstance(times, str):
        for value in times:
            if not is_number(value):
                raise TypeError(f"{name} must hold floats; got {describe(value)}")
        grid = [float(value) for value in times]
    else:
        raise TypeError(f"{name} must be a tensor or a sequence of floats; got {describe(times)}")
    _check_grid(name, grid)
    return grid


def _check_grid(name: str, grid: list[float]) -> None:
    if len(grid) < 2:
        raise ValueError(f"{name} must hold at least two noise levels; got {grid}")
    if not all(0.0 <= t <= 1.0 for t in grid):
        raise ValueError(f"{name} must hold noise levels in [0, 1]; got {grid}")
    if not all(s < t for t, s in zip(grid, grid[1:])):
        raise ValueError(f"{name} must be strictly decreasing; got {grid}")


def as_mask(mask: object, x: Tensor, x_name: str) -> Tensor:
    """Return a boolean mask of `x` or of its leading dimensions, shaped to broadcast."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a boolean tensor; got {describe(mask)}")
    if mask.dim() == 0 or mask.shape != x.shape[: mask.dim()]:
        raise ValueError(
            f"mask must have the shape of {x_name}, {list(x.shape)}, or of its leading "
            f"dimensions; got shape {list(mask.shape)}"
        )
    check_device("mask", mask, x_name, x)
    return align_left(mask, x)
