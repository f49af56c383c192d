"""Malformed calls, and the exact message that a user sees for each."""

import dataclasses
import re

import pytest
import torch

import salt_losses
from salt_losses import (
    DiscriminatorHead,
    MixedStepScheduler,
    SettingError,
    ShortcutTriple,
    StepPlan,
)
from salt_losses.terms import Adversarial, Alignment, SelfConsistency

X = torch.zeros(2, 3, 4)
GRID = torch.tensor([1.0, 0.5, 0.0])
NAMES = {
    **{name: getattr(salt_losses, name) for name in salt_losses.__all__},
    "torch": torch,
    "NAN": float("nan"),
    "INF": float("inf"),
    "X": X,
    "L": X[:, :, 0],  # logits
    "META": X.to("meta"),
    "T": torch.tensor([0.5, 1.0]),
    "COARSE": [1.0, 0.5, 0.0],
    "FINE": [1.0, 0.75, 0.5, 0.25, 0.0],
    "TRIPLE": ShortcutTriple(
        torch.tensor([1.0, 0.5]), torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.0]),
        torch.tensor([True, True]),
    ),
    "PLAN": dataclasses.replace(
        StepPlan(7, 8, GRID, True, True, 8, GRID, GRID, GRID),
        weights={"sc": 1.0, "align": 0.1, "adv": 0.03},
    ),
    "ReLU": torch.nn.ReLU,
    "BLOCKS": torch.nn.ModuleList([torch.nn.ReLU(), torch.nn.ReLU()]),
    "HEAD": DiscriminatorHead(4, (0, 1)),
    "ONE": torch.tensor(1.0),
    "STATE": MixedStepScheduler().state_dict(),
    "straight": lambda x, t: torch.ones_like(x),
    "SelfConsistency": SelfConsistency,
    "Alignment": Alignment,
    "Adversarial": Adversarial,
    "times": lambda *values: torch.tensor(values),
}  # fmt: skip

# A call, and indented below it what it raises.
TABLE = """
# flow
add_noise([1.0], X, 0.5)
    TypeError: x0 must be a floating-point tensor; got [1.0] (list)
add_noise(X.long(), X, 0.5)
    TypeError: x0 must be a floating-point tensor; got a int64 tensor of shape [2, 3, 4]
add_noise(torch.zeros(()), torch.zeros(()), 0.5)
    ValueError: x0 must have at least 1 dimension; got a float32 tensor of shape []
add_noise(torch.zeros(0, 3), torch.zeros(0, 3), 0.5)
    ValueError: x0 must not be empty; got a float32 tensor of shape [0, 3]
add_noise(X, X[:1], 0.5)
    ValueError: noise must have the shape of x0, [2, 3, 4]; got [1, 3, 4]
add_noise(X, X[..., 0], 0.5)
    ValueError: noise must have the shape of x0, [2, 3, 4]; got [2, 3]
add_noise(X, None, 0.5)
    TypeError: noise must be a floating-point tensor; got None (NoneType)
add_noise(X, META, 0.5)
    ValueError: noise must be on the device of x0, cpu; got meta
add_noise(X, X, 1.5)
    ValueError: t must be a noise level in [0, 1]; got 1.5
add_noise(X, X, -0.1)
    ValueError: t must be a noise level in [0, 1]; got -0.1
add_noise(X, X, NAN)
    ValueError: t must be a noise level in [0, 1]; got nan
add_noise(X, X, "0.5")
    TypeError: t must be a float or a floating-point tensor; got '0.5' (str)
add_noise(X, X, True)
    TypeError: t must be a float or a floating-point tensor; got True (bool)
add_noise(X, X, torch.tensor([500, 750]))
    TypeError: t must be a float or a floating-point tensor; got a int64 tensor of shape [2]
add_noise(X, X, torch.tensor([500.0, 750.0]))
    ValueError: t must hold noise levels in [0, 1]; got 500 at index 0
add_noise(X, X, times(0.5))
    ValueError: t must be a float or of shape [2] or [2, 3], the leading dimensions of x0; got
    shape [1]
add_noise(X, X, torch.tensor(1.5))
    ValueError: t must hold noise levels in [0, 1]; got 1.5
add_noise(X, X, torch.tensor(1))
    TypeError: t must be a float or a floating-point tensor; got a int64 tensor of shape []
add_noise(X, X, torch.tensor(0.5, device="meta"))
    ValueError: t must be on the device of x0, cpu; got meta
add_noise(X, X, torch.tensor([0.5]))
    ValueError: t must be a float or of shape [2] or [2, 3], the leading dimensions of x0; got
    shape [1]
add_noise(X, X, torch.full((2, 1), 0.5))
    ValueError: t must be a float or of shape [2] or [2, 3], the leading dimensions of x0; got
    shape [2, 1]
add_noise(X, X, torch.full((2, 3, 4), 0.5))
    ValueError: t must be a float or of shape [2] or [2, 3], the leading dimensions of x0; got
    shape [2, 3, 4]
add_noise(X, X, times(0.5, NAN))
    ValueError: t must hold noise levels in [0, 1]; got nan at index 1
add_noise(X, X, torch.zeros(2, device="meta"))
    ValueError: t must be on the device of x0, cpu; got meta
add_noise(X, X, torch.tensor([[0.5, 0.5, 0.5], [0.5, -2.0, 0.5]]))
    ValueError: t must hold noise levels in [0, 1]; got -2 at index (1, 1)
velocity_to_x0(X, X[:, :1], 0.5)
    ValueError: v must have the shape of x_t, [2, 3, 4]; got [2, 1, 4]
velocity_to_x0(X, X, 2.0)
    ValueError: t must be a noise level in [0, 1]; got 2.0
x0_to_velocity(X, X, 0.0)
    ValueError: t must be above 0: the velocity is not determined at noise level 0
x0_to_velocity(X, X, times(0.5, 0.0))
    ValueError: t must be above 0: the velocity is not determined at noise level 0
x0_to_velocity(X, X.int(), 0.5)
    TypeError: x0 must be a floating-point tensor; got a int32 tensor of shape [2, 3, 4]
to_velocity(X, X, 0.5, "epsilon")
    ValueError: kind must be one of 'velocity', 'x0', 'noise'; got 'epsilon'
to_velocity(X[:1], X, 0.5, "velocity")
    ValueError: prediction must have the shape of x_t, [2, 3, 4]; got [1, 3, 4]
to_velocity(META, X, 0.5, "noise")
    ValueError: prediction must be on the device of x_t, cpu; got meta
to_velocity(X, X, 500, "velocity")
    ValueError: t must be a noise level in [0, 1]; got 500
to_velocity(X, X, 0.0, "x0")
    ValueError: t must be above 0: the velocity is not determined at noise level 0
to_velocity(X, X, 1.0, "noise")
    ValueError: t must be below 1: noise does not determine the velocity at level 1
to_velocity(X, X, T, "noise")
    ValueError: t must be below 1: noise does not determine the velocity at level 1
euler_step(X, X, 0.25, 0.5)
    ValueError: s must not lie above t; got s=0.5, t=0.25 at index 0
euler_step(X, X, T, times(0.4, 1.5))
    ValueError: s must hold noise levels in [0, 1]; got 1.5 at index 1
euler_step(X, X, T, torch.tensor([[0.5, 0.5, 0.6], [1.0, 1.0, 1.0]]))
    ValueError: s must not lie above t; got s=0.6, t=0.5 at index (0, 2)
euler_step(X, X[:1], 0.5, 0.25)
    ValueError: v must have the shape of x, [2, 3, 4]; got [1, 3, 4]

# schedule
shift_time(1.5, 3.0)
    ValueError: t must be a noise level in [0, 1]; got 1.5
shift_time(0.5, 0.0)
    ValueError: shift must be a finite number above 0; got 0.0
shift_time(0.5, NAN)
    ValueError: shift must be a finite number above 0; got nan
shift_time(0.5, "3")
    TypeError: shift must be a number; got '3' (str)
shift_time(times(0.5, 1.5), 3.0)
    ValueError: t must hold noise levels in [0, 1]; got 1.5 at index 1
shift_time([0.5], 3.0)
    TypeError: t must be a float or a floating-point tensor; got [0.5] (list)
shift_time(torch.tensor([1, 0]), 3.0)
    TypeError: t must be a float or a floating-point tensor; got a int64 tensor of shape [2]
step_schedule(0)
    ValueError: num_steps must be at least 1; got 0
step_schedule(4.0)
    TypeError: num_steps must be an integer; got 4.0 (float)
step_schedule(True)
    TypeError: num_steps must be an integer; got True (bool)
step_schedule(4, shift=-1.0)
    ValueError: shift must be a finite number above 0; got -1.0
step_schedule(4, shift=INF)
    ValueError: shift must be a finite number above 0; got inf
step_schedule(4, shift=1e300)
    ValueError: shift must leave 4 steps distinct in float64; got 1e+300

# dmd
guide(X, X[:1], 3.0)
    ValueError: uncond must have the shape of cond, [2, 3, 4]; got [1, 3, 4]
guide(X, X, NAN)
    ValueError: scale must be a finite number; got nan
guide(X, X, X)
    TypeError: scale must be a number; got a float32 tensor of shape [2, 3, 4]
guide(X.long(), X, 1.0)
    TypeError: cond must be a floating-point tensor; got a int64 tensor of shape [2, 3, 4]
dmd_grad(torch.zeros(3), torch.zeros(3), torch.zeros(3))
    ValueError: generated must have at least 2 dimensions; got a float32 tensor of shape [3]
dmd_grad(X[:1], X, X)
    ValueError: fake_x0 must have the shape of generated, [2, 3, 4]; got [1, 3, 4]
dmd_grad(X, X[..., :1], X)
    ValueError: real_x0 must have the shape of generated, [2, 3, 4]; got [2, 3, 1]
dmd_grad(X, META, X)
    ValueError: real_x0 must be on the device of generated, cpu; got meta
dmd_grad(X, X, None)
    TypeError: generated must be a floating-point tensor; got None (NoneType)
dmd_grad(X, X, X, normalize="frame")
    ValueError: normalize must be one of 'sample', None; got 'frame'
dmd_grad(X, X, X, normalize=True)
    ValueError: normalize must be one of 'sample', None; got True
dmd_grad(X, X, X, none_finite="inf")
    ValueError: none_finite must be one of 'zero', 'nan'; got 'inf'
dmd_loss(X, X[:1])
    ValueError: grad must have the shape of generated, [2, 3, 4]; got [1, 3, 4]
dmd_loss(X, META)
    ValueError: grad must be on the device of generated, cpu; got meta
dmd_loss(X, X, mask=torch.ones(2, 3, 4))
    TypeError: mask must be a boolean tensor; got a float32 tensor of shape [2, 3, 4]
dmd_loss(X, X, mask=torch.ones(3, dtype=torch.bool))
    ValueError: mask must have the shape of generated, [2, 3, 4], or of its leading dimensions;
    got shape [3]
dmd_loss(X, X, mask=torch.ones(2, 1, 4, dtype=torch.bool))
    ValueError: mask must have the shape of generated, [2, 3, 4], or of its leading dimensions;
    got shape [2, 1, 4]
dmd_loss(X, X, mask=torch.ones((), dtype=torch.bool))
    ValueError: mask must have the shape of generated, [2, 3, 4], or of its leading dimensions;
    got shape []
dmd_loss(X, X, mask=torch.ones(2, dtype=torch.bool, device="meta"))
    ValueError: mask must be on the device of generated, cpu; got meta
dmd_loss(X, X, mask=[True, False])
    TypeError: mask must be a boolean tensor; got [True, False] (list)
critic_loss(X, X[:, :1], X)
    ValueError: generated must have the shape of velocity_pred, [2, 3, 4]; got [2, 1, 4]
critic_loss(X, X, X[0])
    ValueError: noise must have the shape of velocity_pred, [2, 3, 4]; got [3, 4]
critic_loss(X, META, X)
    ValueError: generated must be on the device of velocity_pred, cpu; got meta
critic_loss(X.bool(), X, X)
    TypeError: velocity_pred must be a floating-point tensor; got a bool tensor of shape [2, 3,
    4]
critic_loss(X, X, X, mask=torch.ones(1, dtype=torch.bool))
    ValueError: mask must have the shape of velocity_pred, [2, 3, 4], or of its leading
    dimensions; got shape [1]

# shortcut
shortcut_triple_sampler(0.5, FINE, COARSE)
    TypeError: t_s must be a float32 or float64 tensor; got 0.5 (float)
shortcut_triple_sampler(T.bfloat16(), FINE, COARSE)
    TypeError: t_s must be a float32 or float64 tensor; got a bfloat16 tensor of shape [2]
shortcut_triple_sampler(torch.tensor([1, 0]), FINE, COARSE)
    TypeError: t_s must be a float32 or float64 tensor; got a int64 tensor of shape [2]
shortcut_triple_sampler(T * 1000, FINE, COARSE)
    ValueError: t_s must hold noise levels in [0, 1]; got 500 at index 0
shortcut_triple_sampler(T, FINE, COARSE, nearest=0)
    ValueError: nearest must be at least 1; got 0
shortcut_triple_sampler(T, FINE, COARSE, nearest=2.0)
    TypeError: nearest must be an integer; got 2.0 (float)
shortcut_triple_sampler(T, FINE, COARSE, nearest=True)
    TypeError: nearest must be an integer; got True (bool)
shortcut_triple_sampler(T, [], COARSE)
    ValueError: train_times must hold at least two noise levels; got []
shortcut_triple_sampler(T, FINE, [1.0])
    ValueError: inference_times must hold at least two noise levels; got [1.0]
shortcut_triple_sampler(T, FINE[::-1], COARSE)
    ValueError: train_times must be strictly decreasing; got [0.0, 0.25, 0.5, 0.75, 1.0]
shortcut_triple_sampler(T, [1.0, 0.5, 0.5, 0.0], COARSE)
    ValueError: train_times must be strictly decreasing; got [1.0, 0.5, 0.5, 0.0]
shortcut_triple_sampler(T, [1000.0, 500.0, 0.0], COARSE)
    ValueError: train_times must hold noise levels in [0, 1]; got [1000.0, 500.0, 0.0]
shortcut_triple_sampler(T, [1.0, NAN, 0.0], COARSE)
    ValueError: train_times must hold noise levels in [0, 1]; got [1.0, nan, 0.0]
shortcut_triple_sampler(T, [1.0, "0.5", 0.0], COARSE)
    TypeError: train_times must hold floats; got '0.5' (str)
shortcut_triple_sampler(T, 8, COARSE)
    TypeError: train_times must be a tensor or a sequence of floats; got 8 (int)
shortcut_triple_sampler(T, "grid", COARSE)
    TypeError: train_times must be a tensor or a sequence of floats; got 'grid' (str)
shortcut_triple_sampler(T, FINE, torch.tensor([1000, 500, 0]))
    TypeError: inference_times must hold floating-point noise levels; got a int64 tensor of
    shape [3]
shortcut_triple_sampler(T, FINE, torch.zeros(2, 3))
    ValueError: inference_times must be a grid of noise levels, [K + 1]; got shape [2, 3]
shortcut_triple_sampler(T, FINE, torch.ones(1))
    ValueError: inference_times must hold at least two noise levels; got shape [1]
shortcut_triple_sampler(T, torch.tensor([0.0, 1.0]), COARSE)
    ValueError: train_times must be strictly decreasing; got [0.0, 1.0]
shortcut_triple_sampler(T, torch.zeros(3, device="meta"), COARSE)
    ValueError: train_times must be on the CPU; got meta
shortcut_triple_sampler(T, COARSE, FINE)
    ValueError: train_times must be at least as fine as inference_times, whose intervals its
    points divide; got 2 steps and 4: are the two swapped?
shortcut_triple_sampler(T, FINE, COARSE, generator=0)
    TypeError: generator must be a torch.Generator or None; got 0 (int)
shortcut_triple_sampler(T.to("meta"), FINE, COARSE, generator=torch.Generator())
    ValueError: generator must be on the device of the draw, meta; got one on cpu

# semigroup
semigroup_defect_loss(X, X, TRIPLE)
    TypeError: velocity_fn must be callable; got a float32 tensor of shape [2, 3, 4]
semigroup_defect_loss(straight, X.long(), TRIPLE)
    TypeError: x_s must be a floating-point tensor; got a int64 tensor of shape [2, 3, 4]
semigroup_defect_loss(straight, X, None)
    TypeError: triple must be a ShortcutTriple(t_s, t_m, t_e, feasible); got None (NoneType)
semigroup_defect_loss(straight, X, TRIPLE[:3])
    TypeError: triple must be a ShortcutTriple(t_s, t_m, t_e, feasible); got a tuple of 3
semigroup_defect_loss(straight, X[:1], TRIPLE)
    ValueError: triple.t_s must be a float or of shape [1] or [1, 3], the leading dimensions of
    x_s; got shape [2]
semigroup_defect_loss(straight, X, TRIPLE._replace(t_m=times(0.7)))
    ValueError: triple.t_m must be a float or of shape [2] or [2, 3], the leading dimensions of
    x_s; got shape [1]
semigroup_defect_loss(straight, X, TRIPLE._replace(t_m=torch.full((2, 3), 0.6)))
    ValueError: triple must hold tensors of one shape; got t_s [2], t_m [2, 3], t_e [2],
    feasible [2]
semigroup_defect_loss(straight, X, TRIPLE._replace(t_m=times(0.4, 0.25)))
    ValueError: t_e must lie below t_m; got t_e=0.5, t_m=0.4 at index 0
semigroup_defect_loss(straight, X, TRIPLE._replace(t_m=times(0.75, 0.6)))
    ValueError: t_m must lie below t_s; got t_m=0.6, t_s=0.5 at index 1
semigroup_defect_loss(straight, X, TRIPLE._replace(t_s=1000 * TRIPLE.t_s))
    ValueError: triple.t_s must hold noise levels in [0, 1]; got 1000 at index 0
semigroup_defect_loss(straight, X, TRIPLE._replace(t_e=times(0.5, NAN)))
    ValueError: triple.t_e must hold noise levels in [0, 1]; got nan at index 1
semigroup_defect_loss(straight, X, TRIPLE._replace(t_e=torch.tensor([0, 0])))
    TypeError: triple.t_e must be a float or a floating-point tensor; got a int64 tensor of
    shape [2]
semigroup_defect_loss(straight, X, TRIPLE._replace(feasible=torch.ones(2)))
    TypeError: triple.feasible must be a boolean tensor; got a float32 tensor of shape [2]
semigroup_defect_loss(straight, X, TRIPLE._replace(feasible=torch.tensor([True])))
    ValueError: triple must hold tensors of one shape; got t_s [2], t_m [2], t_e [2], feasible
    [1]
semigroup_defect_loss(straight, X, TRIPLE._replace(feasible=META[:, 0, 0].bool()))
    ValueError: triple.feasible must be on the device of x_s, cpu; got meta
semigroup_defect_loss(straight, META, TRIPLE)
    ValueError: triple.t_s must be on the device of x_s, meta; got cpu
semigroup_defect_loss(straight, X, TRIPLE, v_s=X[:1])
    ValueError: v_s must have the shape of x_s, [2, 3, 4]; got [1, 3, 4]
semigroup_defect_loss(straight, X, TRIPLE, v_s=META)
    ValueError: v_s must be on the device of x_s, cpu; got meta
semigroup_defect_loss(straight, X, TRIPLE, weight=0.5)
    TypeError: weight must be a floating-point tensor; got 0.5 (float)
semigroup_defect_loss(straight, X, TRIPLE, weight=torch.tensor([1, 0]))
    TypeError: weight must be a floating-point tensor; got a int64 tensor of shape [2]
semigroup_defect_loss(straight, X, TRIPLE, weight=torch.ones(2, 1))
    ValueError: weight must have the shape of triple.t_s, [2]; got [2, 1]
semigroup_defect_loss(straight, X, TRIPLE, weight=META[:, 0, 0])
    ValueError: weight must be on the device of triple.t_s, cpu; got meta
semigroup_defect_loss(straight, X, TRIPLE, weight=times(1.0, -0.5))
    ValueError: weight must hold finite numbers of at least 0; got -0.5 at index 1
semigroup_defect_loss(straight, X, TRIPLE, weight=times(NAN, 0.5))
    ValueError: weight must hold finite numbers of at least 0; got nan at index 0
semigroup_defect_loss(straight, X, TRIPLE, weight=times(INF, 0.5))
    ValueError: weight must hold finite numbers of at least 0; got inf at index 0
semigroup_defect_loss(straight, X, TRIPLE, mask=torch.ones(2))
    TypeError: mask must be a boolean tensor; got a float32 tensor of shape [2]
semigroup_defect_loss(straight, X, TRIPLE, mask=torch.ones(2, 1, dtype=torch.bool))
    ValueError: mask must have the shape of x_s, [2, 3, 4], or of its leading dimensions; got
    shape [2, 1]
semigroup_defect_loss(straight, X, TRIPLE, stop_grad="both")
    ValueError: stop_grad must be one of None, 'direct', 'composed'; got 'both'
semigroup_defect_loss(straight, X, TRIPLE, stop_grad=True)
    ValueError: stop_grad must be one of None, 'direct', 'composed'; got True
semigroup_defect_loss(straight, X, TRIPLE, reduction="sum")
    ValueError: reduction must be one of 'mean', 'norm', 'none'; got 'sum'
semigroup_defect_loss(straight, X, TRIPLE, reduction=None)
    ValueError: reduction must be one of 'mean', 'norm', 'none'; got None
semigroup_defect_loss(lambda x, t: x[:, :1], X, TRIPLE)
    ValueError: velocity_fn's result must have the shape of x, [2, 3, 4]; got [2, 1, 4]
semigroup_defect_loss(lambda x, t: (x, x), X, TRIPLE)
    TypeError: velocity_fn's result must be a floating-point tensor; got a tuple of 2
semigroup_defect_loss(lambda x, t: META, X, TRIPLE)
    ValueError: velocity_fn's result must be on the device of x, cpu; got meta
semigroup_defect_loss(lambda x, t: None, X, TRIPLE, v_s=X)
    TypeError: velocity_fn's result must be a floating-point tensor; got None (NoneType)
semigroup_defect(None, X, COARSE, FINE)
    TypeError: velocity_fn must be callable; got None (NoneType)
semigroup_defect(straight, X, FINE, COARSE)
    ValueError: train_times must be at least as fine as inference_times, whose intervals its
    points divide; got 2 steps and 4: are the two swapped?
semigroup_defect(straight, X.int(), COARSE, FINE)
    TypeError: noise must be a floating-point tensor; got a int32 tensor of shape [2, 3, 4]
semigroup_defect(straight, X, COARSE, FINE, solver="heun")
    ValueError: solver must be one of 'consistency', 'euler'; got 'heun'
semigroup_defect(straight, X, COARSE[::-1], FINE)
    ValueError: inference_times must be strictly decreasing; got [0.0, 0.5, 1.0]
semigroup_defect(straight, X, COARSE, [])
    ValueError: train_times must hold at least two noise levels; got []
semigroup_defect(straight, X, COARSE, torch.zeros(3, device="meta"))
    ValueError: train_times must hold values; got a tensor on the meta device
semigroup_defect(straight, META, COARSE, FINE, generator=torch.Generator())
    ValueError: generator must be on the device of the draw, meta; got one on cpu
semigroup_defect(lambda x, t: x.sum(), X, COARSE, FINE)
    ValueError: velocity_fn's result must have at least 1 dimension; got a float32 tensor of
    shape []

# sampling
euler_sample(4, X, COARSE)
    TypeError: velocity_fn must be callable; got 4 (int)
euler_sample(straight, X, [0.0, 1.0])
    ValueError: times must be strictly decreasing; got [0.0, 1.0]
euler_sample(straight, X, torch.tensor([1.0, 0.5, 0.75]))
    ValueError: times must be strictly decreasing; got [1.0, 0.5, 0.75]
euler_sample(straight, X, [1.0])
    ValueError: times must hold at least two noise levels; got [1.0]
euler_sample(straight, X, 4)
    TypeError: times must be a tensor or a sequence of floats; got 4 (int)
euler_sample(straight, None, COARSE)
    TypeError: noise must be a floating-point tensor; got None (NoneType)
euler_sample(lambda x, t: x[..., 0], X, COARSE)
    ValueError: velocity_fn's result must have the shape of x, [2, 3, 4]; got [2, 3]
euler_sample(lambda x, t: x.long(), X, COARSE)
    TypeError: velocity_fn's result must be a floating-point tensor; got a int64 tensor of shape
    [2, 3, 4]
consistency_sample(straight, X, [1.0, 0.5, -0.1])
    ValueError: times must hold noise levels in [0, 1]; got [1.0, 0.5, -0.1]
backward_simulation(straight, X, COARSE, 2)
    ValueError: exit_step must be one of the 2 steps of times, counted from 0; got 2
backward_simulation(straight, X, COARSE, -1)
    ValueError: exit_step must be at least 0; got -1
backward_simulation(straight, X, COARSE, 1.0)
    TypeError: exit_step must be an integer; got 1.0 (float)
backward_simulation(straight, X, COARSE[::-1], 0)
    ValueError: times must be strictly decreasing; got [0.0, 0.5, 1.0]
backward_simulation(None, X, COARSE, 0)
    TypeError: velocity_fn must be callable; got None (NoneType)
backward_simulation(straight, X, COARSE, 1, generator="cpu")
    TypeError: generator must be a torch.Generator or None; got 'cpu' (str)
backward_simulation(lambda x, t: x[:, :1], X, COARSE, 1)
    ValueError: velocity_fn's result must have the shape of x, [2, 3, 4]; got [2, 1, 4]
consistency_sample(straight, X, COARSE, generator="cpu")
    TypeError: generator must be a torch.Generator or None; got 'cpu' (str)
consistency_sample(straight, META, COARSE, generator=torch.Generator())
    ValueError: generator must be on the device of the draw, meta; got one on cpu

# kv_cache
detached_alias("cache")
    TypeError: cache must be a tensor or a nesting of lists, tuples, dicts and dataclasses of
    tensors; got 'cache' (str)
detached_alias(ShortcutTriple)
    TypeError: cache must be a tensor or a nesting of lists, tuples, dicts and dataclasses of
    tensors; got <class 'salt_losses.shortcut.ShortcutTriple'> (type)

# mixed_step
MixedStepScheduler(step_counts=())
    ValueError: step_counts must hold at least one step count; got none
MixedStepScheduler(step_counts="248")
    TypeError: step_counts must be a sequence of step counts; got '248' (str)
MixedStepScheduler(step_counts=8)
    TypeError: step_counts must be a sequence of step counts; got 8 (int)
MixedStepScheduler(step_counts=(2, 4, 4))
    ValueError: step_counts must be distinct; got [2, 4, 4]
MixedStepScheduler(step_counts=(0, 4, 8))
    ValueError: step_counts[0] must be at least 1; got 0
MixedStepScheduler(step_counts=(2, 4.0, 8))
    TypeError: step_counts[1] must be an integer; got 4.0 (float)
MixedStepScheduler(probs=(0.5, 0.5))
    ValueError: probs must hold one probability for each of the 3 step_counts; got 2
MixedStepScheduler(probs=(0.2, 0.4, 0.5))
    ValueError: probs must sum to 1; got [0.2, 0.4, 0.5], which sum to 1.1
MixedStepScheduler(probs=(-0.2, 0.6, 0.6))
    ValueError: probs[0] must be a finite number of at least 0; got -0.2
MixedStepScheduler(probs=(NAN, 0.5, 0.5))
    ValueError: probs[0] must be a finite number of at least 0; got nan
MixedStepScheduler(probs=1.0)
    TypeError: probs must be a sequence of probabilities; got 1.0 (float)
MixedStepScheduler(shift=0)
    ValueError: shift must be a finite number above 0; got 0
MixedStepScheduler(shift=None)
    TypeError: shift must be a number; got None (NoneType)
MixedStepScheduler(sc_steps=8)
    TypeError: sc_steps must be a sequence of step counts; got 8 (int)
MixedStepScheduler(sc_steps=(-8,))
    ValueError: sc_steps[0] must be at least 1; got -8
MixedStepScheduler(align_reference=[(2, 4)])
    TypeError: align_reference must map step counts to step counts; got [(2, 4)] (list)
MixedStepScheduler(align_reference={2: 3})
    ValueError: align_reference[2] must be a larger multiple of 2, so that the grids nest; got 3
MixedStepScheduler(align_reference={4: 2})
    ValueError: align_reference[4] must be a larger multiple of 4, so that the grids nest; got 2
MixedStepScheduler(align_reference={"2": 4})
    TypeError: align_reference's key must be an integer; got '2' (str)
MixedStepScheduler(sc_warmup=-1)
    ValueError: sc_warmup must be at least 0; got -1
MixedStepScheduler(align_warmup=-1)
    ValueError: align_warmup must be at least 0; got -1
MixedStepScheduler(align_prob=1.5)
    ValueError: align_prob must be a probability in [0, 1]; got 1.5
MixedStepScheduler(align_prob=NAN)
    ValueError: align_prob must be a finite number of at least 0; got nan
MixedStepScheduler(inference_steps=3)
    ValueError: inference_steps must divide the largest step count, 8, so that the inference
    grid is part of the training grid; got 3
MixedStepScheduler(inference_steps=0)
    ValueError: inference_steps must be at least 1; got 0
MixedStepScheduler(seed=0.5)
    TypeError: seed must be an integer; got 0.5 (float)
MixedStepScheduler(first_chunk_steps=6)
    ValueError: first_chunk_steps must be a multiple of the step count 4, so that the grids
    nest; got 6
MixedStepScheduler(first_chunk_steps={2: 3})
    ValueError: first_chunk_steps must be a multiple of the step count 2, so that the grids
    nest; got 3
MixedStepScheduler(first_chunk_steps={16: 24})
    ValueError: first_chunk_steps must be a multiple of the step count 16, so that the grids
    nest; got 24
MixedStepScheduler(first_chunk_steps={4: 2})
    ValueError: first_chunk_steps must be a multiple of the step count 4, so that the grids
    nest; got 2
MixedStepScheduler(first_chunk_steps={2: 0})
    ValueError: first_chunk_steps[2] must be at least 1; got 0
MixedStepScheduler(first_chunk_steps={"2": 4})
    TypeError: first_chunk_steps' key must be an integer; got '2' (str)
MixedStepScheduler(first_chunk_steps=0)
    ValueError: first_chunk_steps must be at least 1; got 0
MixedStepScheduler(first_chunk_steps=4.0)
    TypeError: first_chunk_steps must be an integer; got 4.0 (float)
MixedStepScheduler(first_chunk_steps=True)
    TypeError: first_chunk_steps must be an integer; got True (bool)
MixedStepScheduler(first_chunk_steps=(4, 4, 8))
    TypeError: first_chunk_steps must be a number of steps, a mapping from step counts to such,
    or None; got (4, 4, 8) (tuple)
MixedStepScheduler().plan(-1)
    ValueError: iteration must be at least 0; got -1
MixedStepScheduler().plan("3")
    TypeError: iteration must be an integer; got '3' (str)
MixedStepScheduler().load_state_dict(3)
    ValueError: state_dict must be the state of a MixedStepScheduler, with keys 'iteration' and
    'settings'; got 3 (int)
MixedStepScheduler().load_state_dict({"iteration": 3})
    ValueError: state_dict must be the state of a MixedStepScheduler, with keys 'iteration' and
    'settings'; got ['iteration']
MixedStepScheduler().load_state_dict({**STATE, "settings": None})
    ValueError: state_dict['settings'] must be a mapping; got None (NoneType)
MixedStepScheduler().load_state_dict({**STATE, "iteration": -1})
    ValueError: state_dict['iteration'] must be at least 0; got -1
MixedStepScheduler().load_state_dict({**STATE, "iteration": 1.5})
    TypeError: state_dict['iteration'] must be an integer; got 1.5 (float)
MixedStepScheduler(seed=1, shift=3.0).load_state_dict(STATE)
    ValueError: state_dict is from other settings: shift (state: 1.0, here: 3.0), seed (state:
    0, here: 1)

# objective
SelfConsistency(weight=-1.0)
    ValueError: sc.weight must be a finite number of at least 0; got -1.0
SelfConsistency(weight=NAN)
    ValueError: sc.weight must be a finite number of at least 0; got nan
Alignment(weight="1")
    TypeError: align.weight must be a number; got '1' (str)
Alignment(margin=-0.1)
    ValueError: align.margin must be a finite number of at least 0; got -0.1
Alignment(features="teacher")
    ValueError: align.features must be one of 'fake_score', 'real_score'; got 'teacher'
Alignment(block=-1)
    ValueError: align.block must be at least 0; got -1
Alignment(block=1.0)
    TypeError: align.block must be an integer; got 1.0 (float)
SaltConfig(probs=(0.5, 0.4, 0.4))
    ValueError: probs must sum to 1; got [0.5, 0.4, 0.4], which sum to 1.3
SaltConfig(shift=-3.0)
    ValueError: shift must be a finite number above 0; got -3.0
SaltConfig.from_mapping([("sc.weight", 1.0)])
    TypeError: mapping must be a mapping of settings; got [('sc.weight', 1.0)] (list)
SaltConfig.from_mapping({"lambda_sc": 1.0})
    ValueError: unknown setting 'lambda_sc'; known are preset, step_counts, probs, shift,
    inference_steps, first_chunk_steps, seed, sc, align, adv, terms
SaltConfig.from_mapping({"sc.wieght": 1.0})
    ValueError: unknown setting 'sc.wieght'; did you mean 'sc.weight'?
SaltConfig.from_mapping({"preset": "released"})
    ValueError: preset must be one of 'paper', 'released_self_forcing',
    'released_causal_forcing', 'released_longlive'; got 'released'
SaltConfig.from_mapping({"preset": None})
    ValueError: preset must be one of 'paper', 'released_self_forcing',
    'released_causal_forcing', 'released_longlive'; got None
SaltConfig.from_mapping({"preset": "paper", "sc.nearst": 2})
    ValueError: unknown setting 'sc.nearst'; did you mean 'sc.nearest'?
SaltConfig.from_mapping({"align.reference": {"two": 4}})
    TypeError: align.reference's key must be an integer; got 'two' (str)
SaltConfig.from_mapping({"align.reference": {"2": 4, 2: 8}})
    ValueError: align.reference must not name a step count twice; got {'2': 4, 2: 8}
SaltConfig.from_mapping({"align.reference": {"2": "4"}})
    TypeError: align.reference[2] must be an integer; got '4' (str)
SaltConfig.from_mapping({"first_chunk_steps": {"2": 4, 2: 8}})
    ValueError: first_chunk_steps must not name a step count twice; got {'2': 4, 2: 8}
SaltConfig.from_mapping({"first_chunk_steps": {"one": 4}})
    TypeError: first_chunk_steps' key must be an integer; got 'one' (str)
SaltConfig(first_chunk_steps=3)
    ValueError: first_chunk_steps must be a multiple of the step count 2, so that the grids
    nest; got 3
SaltConfig(first_chunk_steps="4")
    TypeError: first_chunk_steps must be a number of steps, a mapping from step counts to such,
    or None; got '4' (str)
SaltConfig.preset("salt")
    ValueError: preset must be one of 'paper', 'released_self_forcing',
    'released_causal_forcing', 'released_longlive'; got 'salt'
SelfConsistency(stop_grad="both")
    ValueError: sc.stop_grad must be one of None, 'direct', 'composed'; got 'both'
SelfConsistency(time_weight=True)
    ValueError: sc.time_weight must be one of None, 'clean'; got True
SelfConsistency(nearest=0)
    ValueError: sc.nearest must be at least 1; got 0
SelfConsistency(nearest="2")
    TypeError: sc.nearest must be an integer; got '2' (str)
Alignment(to="last")
    ValueError: align.to must be one of 'end', 'exit', 'input'; got 'last'
Alignment(reference_noise=None)
    ValueError: align.reference_noise must be one of 'own', 'shared'; got None
Alignment(noise_range=0.2)
    TypeError: align.noise_range must be two noise levels; got 0.2
Alignment(noise_range=(0.0, 0.2, 1.0))
    TypeError: align.noise_range must be two noise levels; got (0.0, 0.2, 1.0)
Alignment(noise_range=(0.0, "1"))
    TypeError: align.noise_range[1] must be a number; got '1' (str)
Alignment(noise_range=(-0.1, 0.2))
    ValueError: align.noise_range[0] must be a finite number of at least 0; got -0.1
Alignment(noise_range=(0.2, 0.2))
    ValueError: align.noise_range must be two noise levels in [0, 1], the lower one first; got
    (0.2, 0.2)
Alignment(noise_range=(0.0, 200))
    ValueError: align.noise_range must be two noise levels in [0, 1], the lower one first; got
    (0.0, 200)
Adversarial(weight=-0.03)
    ValueError: adv.weight must be a finite number of at least 0; got -0.03
Adversarial(against="teacher")
    ValueError: adv.against must be one of 'data', 'more_steps'; got 'teacher'
Adversarial(step_counts=4)
    TypeError: adv.step_counts must be a sequence of step counts; got 4 (int)
Adversarial(step_counts=(2, 2))
    ValueError: adv.step_counts must be distinct; got [2, 2]
Adversarial(step_counts=(2.0,))
    TypeError: adv.step_counts[0] must be an integer; got 2.0 (float)
Adversarial(kind="wgan")
    ValueError: adv.kind must be one of 'non_saturating', 'hinge', 'relativistic'; got 'wgan'
Adversarial(features="generator")
    ValueError: adv.features must be one of 'fake_score', 'real_score'; got 'generator'
Adversarial(blocks=15)
    TypeError: adv.blocks must be a sequence of block indices; got 15 (int)
Adversarial(blocks=(1, 1))
    ValueError: adv.blocks must name at least one block and none twice; got (1, 1)
Adversarial(blocks=(-1,))
    ValueError: adv.blocks[0] must be at least 0; got -1
Adversarial(noise_range=(0.5, 0.5))
    ValueError: adv.noise_range must be two noise levels in [0, 1], the lower one first; got
    (0.5, 0.5)
Adversarial(lr=0.0)
    ValueError: adv.lr must be a finite number above 0; got 0.0
SelfConsistency(warmup=0.5)
    TypeError: sc.warmup must be an integer; got 0.5 (float)
Adversarial(warmup=1.5)
    TypeError: adv.warmup must be an integer; got 1.5 (float)
SaltConfig.from_mapping({"sc.weight": None})
    TypeError: sc.weight must be a number; got None (NoneType)
salt_loss(1.0, PLAN)
    TypeError: dmd must be a 0-dim floating-point tensor; got 1.0 (float)
salt_loss(times(1.0), PLAN)
    ValueError: dmd must be a 0-dim floating-point tensor; got a float32 tensor of shape [1]
salt_loss(torch.tensor(1), PLAN)
    TypeError: dmd must be a 0-dim floating-point tensor; got a int64 tensor of shape []
salt_loss(ONE, None)
    TypeError: plan must be a StepPlan; got None (NoneType)
salt_loss(ONE, PLAN)
    ValueError: sc must be given: the plan of iteration 7 has it on, with weight 1
salt_loss(ONE, PLAN, sc=ONE)
    ValueError: align must be given: the plan of iteration 7 has it on, with weight 0.1
salt_loss(ONE, PLAN, sc=0.5, align=ONE)
    TypeError: sc must be a 0-dim floating-point tensor; got 0.5 (float)
salt_loss(ONE, PLAN, sc=times(1.0, 2.0), align=ONE)
    ValueError: sc must be a 0-dim floating-point tensor; got a float32 tensor of shape [2]
salt_loss(ONE, PLAN, sc=ONE.to("meta"), align=ONE)
    ValueError: sc must be on the device of dmd, cpu; got meta
salt_loss(ONE, PLAN, sc=ONE)
    ValueError: align must be given: the plan of iteration 7 has it on, with weight 0.1
salt_loss(ONE, PLAN, sc=ONE, adv=times(1.0))
    ValueError: adv must be a 0-dim floating-point tensor; got a float32 tensor of shape [1]

# relational
relational_align_loss(X, X[..., :2])
    ValueError: ref must have the shape of low, [2, 3, 4]; got [2, 3, 2]
relational_align_loss(X, X.double())
    TypeError: ref must have the dtype of low, torch.float32; got torch.float64
relational_align_loss(X[0], X[0])
    ValueError: low must be [B, F, S, D] or [F, S, D]; got a float32 tensor of shape [3, 4]
relational_align_loss(X, META)
    ValueError: ref must be on the device of low, cpu; got meta
relational_align_loss(X.long(), X)
    TypeError: low must be a floating-point tensor; got a int64 tensor of shape [2, 3, 4]
relational_align_loss(X, X, margin=-0.1)
    ValueError: margin must be a finite number of at least 0; got -0.1
relational_align_loss(X, X, margin=NAN)
    ValueError: margin must be a finite number of at least 0; got nan
relational_align_loss(X, X, reduction="sum")
    ValueError: reduction must be one of 'mean', 'none'; got 'sum'
relational_align_loss(X, X, backend="cuda")
    ValueError: backend must be one of 'auto', 'reference', 'chunked', 'bmm', 'triton'; got
    'cuda'

# adversarial
adversarial_generator_loss(L, kind="wasserstein")
    ValueError: kind must be one of 'non_saturating', 'hinge', 'relativistic'; got 'wasserstein'
adversarial_discriminator_loss(L, L, kind=None)
    ValueError: kind must be one of 'non_saturating', 'hinge', 'relativistic'; got None
adversarial_generator_loss(0.5)
    TypeError: fake_logits must be a floating-point tensor; got 0.5 (float)
adversarial_generator_loss(L.long())
    TypeError: fake_logits must be a floating-point tensor; got a int64 tensor of shape [2, 3]
adversarial_generator_loss(ONE)
    ValueError: fake_logits must have at least 1 dimension; got a float32 tensor of shape []
adversarial_generator_loss(X)
    ValueError: fake_logits must be [B] or [B, n]; got a float32 tensor of shape [2, 3, 4]
adversarial_generator_loss(L[:0])
    ValueError: fake_logits must not be empty; got a float32 tensor of shape [0, 3]
adversarial_generator_loss(L, kind="relativistic")
    ValueError: real_logits must be given with kind='relativistic'
adversarial_generator_loss(L, L, kind="hinge")
    ValueError: real_logits is for kind='relativistic' only; got a float32 tensor of shape [2,
    3] with kind='hinge'
adversarial_generator_loss(L[:1], L, kind="relativistic")
    ValueError: fake_logits must have the shape of real_logits, [2, 3]; got [1, 3]
adversarial_discriminator_loss(L, L[:1])
    ValueError: fake_logits must have the shape of real_logits, [2, 3]; got [1, 3]
adversarial_discriminator_loss(L, L[:, 0])
    ValueError: fake_logits must have the shape of real_logits, [2, 3]; got [2]
adversarial_discriminator_loss(L, L.to("meta"))
    ValueError: fake_logits must be on the device of real_logits, cpu; got meta
adversarial_discriminator_loss(L, L, index=3)
    ValueError: index must lie in [0, 2], the classes of real_logits; got 3
adversarial_discriminator_loss(L, L, index=-1)
    ValueError: index must be at least 0; got -1
adversarial_discriminator_loss(L, L, index=torch.tensor([0, 3]))
    ValueError: index must lie in [0, 2], the classes of real_logits; got 3 at index 1
adversarial_discriminator_loss(L, L, index=torch.tensor([-1, 0]))
    ValueError: index must lie in [0, 2], the classes of real_logits; got -1 at index 0
adversarial_discriminator_loss(L, L, index=torch.tensor([0]))
    ValueError: index must hold a class for each sample of real_logits, [2]; got shape [1]
adversarial_discriminator_loss(L, L, index=T)
    TypeError: index must hold integers; got a float32 tensor of shape [2]
adversarial_discriminator_loss(L, L, index=1.0)
    TypeError: index must be an integer; got 1.0 (float)
adversarial_discriminator_loss(L, L, index=torch.zeros(2, dtype=torch.long, device="meta"))
    ValueError: index must be on the device of real_logits, cpu; got meta
adversarial_generator_loss(L[:, 0], index=0)
    ValueError: index is for logits [B, n] only; got fake_logits [2]
finite_difference_penalty(L, L[:1], 0.1)
    ValueError: perturbed_logits must have the shape of logits, [2, 3]; got [1, 3]
finite_difference_penalty(L, L, 0.0)
    ValueError: sigma must be a finite number above 0; got 0.0
finite_difference_penalty(L, L, INF)
    ValueError: sigma must be a finite number above 0; got inf
finite_difference_penalty(L, L, T)
    TypeError: sigma must be a number; got a float32 tensor of shape [2]

# features
feature_tap([ReLU()], [0]).__enter__()
    TypeError: blocks must be an nn.ModuleList; got list
feature_tap(BLOCKS, 1).__enter__()
    TypeError: indices must be a sequence of block indices; got 1 (int)
feature_tap(BLOCKS, "01").__enter__()
    TypeError: indices must be a sequence of block indices; got '01' (str)
feature_tap(BLOCKS, [0, 1.0]).__enter__()
    TypeError: indices[1] must be an integer; got 1.0 (float)
feature_tap(BLOCKS, [0, -1]).__enter__()
    ValueError: indices[1] must be at least 0; got -1
feature_tap(BLOCKS, [0, 2]).__enter__()
    ValueError: indices must name blocks that exist, 0 to 1; got 2
feature_tap(BLOCKS, [1, 1]).__enter__()
    ValueError: indices must name at least one block and none twice; got (1, 1)
feature_tap(BLOCKS, []).__enter__()
    ValueError: indices must name at least one block and none twice; got ()

# discriminator
DiscriminatorHead(0, 1)
    ValueError: dim must be at least 1; got 0
DiscriminatorHead(4.0, 1)
    TypeError: dim must be an integer; got 4.0 (float)
DiscriminatorHead(4, 0)
    ValueError: blocks must be at least 1; got 0
DiscriminatorHead(4, None)
    TypeError: blocks must be a sequence of block indices; got None (NoneType)
DiscriminatorHead(4, (3, -1))
    ValueError: blocks[1] must be at least 0; got -1
DiscriminatorHead(4, (3, 3))
    ValueError: blocks must name at least one block and none twice; got (3, 3)
DiscriminatorHead(4, 1, num_classes=0)
    ValueError: num_classes must be at least 1; got 0
DiscriminatorHead(4, 1, generator=0)
    TypeError: generator must be a torch.Generator or None; got 0 (int)
HEAD(X)
    TypeError: features must be a list or tuple; got a float32 tensor of shape [2, 3, 4]
HEAD([X])
    ValueError: features must hold the tokens of 2 blocks; got 1
HEAD([X, None])
    TypeError: features[1] must be a floating-point tensor; got None (NoneType)
HEAD([X, X.long()])
    TypeError: features[1] must be a floating-point tensor; got a int64 tensor of shape [2, 3,
    4]
HEAD([X, L])
    ValueError: features[1] must be [B, tokens, 4]; got a float32 tensor of shape [2, 3]
HEAD([X, X[..., :3]])
    ValueError: features[1] must be [B, tokens, 4]; got a float32 tensor of shape [2, 3, 3]
HEAD([X, X[:1]])
    ValueError: features[1] must have the batch of features[0], 2; got 1
HEAD([X, META])
    ValueError: features[1] must be on the device of the head, cpu; got meta"""


SETTINGS = ("SaltConfig(", "MixedStepScheduler(", "SelfConsistency(", "Alignment(", "Adversarial(")


def rows():
    calls = []
    for line in TABLE.strip().splitlines():
        if line.startswith("    "):
            calls[-1][1].append(line.strip())
        elif line and not line.startswith("#"):
            calls.append((line, []))
    return [(call, " ".join(message)) for call, message in calls]


@pytest.mark.parametrize(("call", "error"), rows(), ids=[call for call, _ in rows()])
def test_a_malformed_call_says_what_came_and_what_is_wanted(call, error):
    with pytest.raises((ValueError, TypeError)) as raised:
        eval(call, NAMES)
    kind = "TypeError" if isinstance(raised.value, TypeError) else "ValueError"
    assert f"{kind}: {raised.value}" == error
    if call.startswith(SETTINGS) and ")." not in call:
        assert isinstance(raised.value, SettingError)
        assert raised.value.setting == re.match(r"[\w.]+", str(raised.value))[0]
