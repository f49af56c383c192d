"""In a compiled graph, on the random streams, and on an accelerator: what must not change."""

import random
import shutil
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import salt_losses
from salt_losses import (
    MixedStepScheduler,
    ShortcutTriple,
    StepPlan,
    add_noise,
    adversarial_discriminator_loss,
    adversarial_generator_loss,
    backward_simulation,
    consistency_sample,
    critic_loss,
    dmd_grad,
    dmd_loss,
    euler_sample,
    euler_step,
    finite_difference_penalty,
    guide,
    relational_align_loss,
    salt_loss,
    semigroup_defect,
    semigroup_defect_loss,
    shift_time,
    shortcut_triple_sampler,
    step_schedule,
    to_velocity,
    velocity_to_x0,
    x0_to_velocity,
)

COARSE, FINE = (1.0, 0.5, 0.0), (1.0, 0.75, 0.5, 0.25, 0.0)
GRID = torch.tensor(FINE, dtype=torch.float64)
WEIGHTS = {"sc": 0.5, "align": 2.0}
PLAN = StepPlan(0, 8, GRID, True, True, 16, GRID, GRID, GRID, weights=WEIGHTS)
MASK = torch.tensor([[True, False, True], [True, True, True]])


def triple_for(x):
    like = {"device": x.device, "dtype": torch.float32}
    return ShortcutTriple(
        torch.full((2, 3), 1.0, **like), torch.full((2, 3), 0.75, **like),
        torch.full((2, 3), 0.5, **like), MASK.to(x.device),
    )  # fmt: skip


def velocity_fn(x, t):
    return torch.sin(x) * t.reshape(t.shape + (1,) * (x.dim() - t.dim()))


def defect_loss(**settings):
    def call(x, y, z):
        triple, given = triple_for(x), dict(settings)
        if settings.get("v_s"):
            given["v_s"] = velocity_fn(x, triple.t_s)
        if settings.get("weight"):
            given["weight"] = 1.25 - triple.t_s
        return semigroup_defect_loss(velocity_fn, x, triple, **given, mask=MASK.to(x.device))

    return call


def classes(x):
    return torch.ones(len(x), dtype=torch.long, device=x.device)


ADVERSARIAL = {
    f"adversarial {player}, {kind}": lambda x, y, z, loss=loss, kind=kind: loss(
        x[:, :, 0], y[:, :, 0], kind=kind, index=classes(x)
    )
    for kind in ("non_saturating", "hinge", "relativistic")
    for player, loss in {
        "discriminator": adversarial_discriminator_loss,
        "generator": lambda fake, real, kind, index: adversarial_generator_loss(
            fake, real if kind == "relativistic" else None, kind=kind, index=index
        ),
    }.items()
}
# Each takes three tensors [2, 3, 4].
LOSSES = {
    **ADVERSARIAL,
    "adversarial generator, [B, n]": lambda x, y, z: adversarial_generator_loss(x[..., 0]),
    "finite_difference_penalty": lambda x, y, z: finite_difference_penalty(
        x[:, :, 0], y[:, :, 0], 0.1, index=1
    ),
    "dmd_loss": lambda x, y, z: dmd_loss(x, y),
    "dmd_loss, mask": lambda x, y, z: dmd_loss(x, y, mask=MASK.to(x.device)),
    "critic_loss": lambda x, y, z: critic_loss(x, y, z),
    "critic_loss, mask": lambda x, y, z: critic_loss(x, y, z, mask=MASK.to(x.device)),
    "semigroup_defect_loss": defect_loss(),
    "semigroup_defect_loss, v_s": defect_loss(v_s=True),
    "semigroup_defect_loss, direct": defect_loss(stop_grad="direct", reduction="norm"),
    "semigroup_defect_loss, composed": defect_loss(stop_grad="composed", reduction="none"),
    "semigroup_defect_loss, weight": defect_loss(weight=True),
    "salt_loss": lambda x, y, z: salt_loss(x.mean(), PLAN, sc=x.sin().sum(), align=y.mean()),
}
DETERMINISTIC = {
    **LOSSES,
    "add_noise": lambda x, y, z: add_noise(x, y, 0.3),
    "add_noise, [B, F]": lambda x, y, z: add_noise(x, y, triple_for(x).t_m),
    "velocity_to_x0": lambda x, y, z: velocity_to_x0(x, y, triple_for(x).t_m[:, 0]),
    "x0_to_velocity": lambda x, y, z: x0_to_velocity(x, y, 0.5),
    "to_velocity, x0": lambda x, y, z: to_velocity(x, y, 0.5, "x0"),
    "to_velocity, noise": lambda x, y, z: to_velocity(x, y, triple_for(x).t_m, "noise"),
    "euler_step": lambda x, y, z: euler_step(x, y, triple_for(x).t_s, 0.25),
    "shift_time": lambda x, y, z: shift_time(x.sigmoid(), 3.0),
    "guide": lambda x, y, z: guide(x, y, 3.0),
    "dmd_grad": lambda x, y, z: dmd_grad(x, y, z),
    "dmd_grad, nan": lambda x, y, z: dmd_grad(x, y, z, none_finite="nan"),
    "euler_sample": lambda x, y, z: euler_sample(velocity_fn, x, FINE),
    "semigroup_defect, euler": lambda x, y, z: semigroup_defect(
        velocity_fn, x, COARSE, FINE, solver="euler"
    ).per_interval,
}  # fmt: skip
RANDOM = {
    "shortcut_triple_sampler": lambda x, g: torch.stack(
        [u.float() for u in shortcut_triple_sampler(x.sigmoid() * 0 + 1, FINE, COARSE, generator=g)]
    ),
    "shortcut_triple_sampler, nearest": lambda x, g: torch.stack(
        [
            u.float()
            for u in shortcut_triple_sampler(
                x * 0 + 1, GRID, (1.0, 0.75, 0.5, 0.0), nearest=2, generator=g
            )
        ]
    ),
    "shortcut_triple_sampler, tensors": lambda x, g: torch.stack(
        [u.float() for u in shortcut_triple_sampler(x * 0 + 1, GRID, GRID[::2], generator=g)]
    ),
    "backward_simulation": lambda x, g: backward_simulation(velocity_fn, x, FINE, 2, generator=g),
    "consistency_sample": lambda x, g: consistency_sample(velocity_fn, x, FINE, generator=g),
    "semigroup_defect": lambda x, g: (
        semigroup_defect(velocity_fn, x, COARSE, FINE, generator=g).per_interval
    ),
}


def inputs(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, 4, generator=generator).to(device).requires_grad_() for _ in range(3)
    ]  # fmt: skip


def value_and_gradients(function):
    tensors = inputs()
    value = function(*tensors)
    if value.requires_grad:
        value.sum().backward()
    return value.detach(), [t.grad for t in tensors]


OLD = torch.__version__.startswith("2.4.")
takes_generators = pytest.mark.skipif(
    OLD, reason="torch 2.4 cannot compile a call with a generator"
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_function_compiles_to_one_graph_and_equals_eager(name):
    eager = value_and_gradients(DETERMINISTIC[name])
    compiled = torch.compile(DETERMINISTIC[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_gradients(compiled), eager)


def test_step_schedule_compiles_to_one_graph():
    compiled = torch.compile(lambda: step_schedule(4, 3.0) * 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(), step_schedule(4, 3.0))


@takes_generators
@pytest.mark.parametrize("name", RANDOM)
def test_every_random_function_compiles_and_draws_what_eager_draws(name):
    function, x = RANDOM[name], inputs()[0].detach()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    eager_source, compiled_source = (torch.Generator().manual_seed(3) for _ in range(2))
    draws = []
    for _ in range(3):
        draws.append(compiled(x, compiled_source))
        torch.testing.assert_close(draws[-1], function(x, eager_source))
    assert not torch.equal(draws[0], draws[1])


@takes_generators
def test_another_generator_is_not_confused_with_the_one_that_was_compiled():
    function, x = RANDOM["consistency_sample"], inputs()[0].detach()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for seed in (3, 4, 3):
        ours, eager = (torch.Generator().manual_seed(seed) for _ in range(2))
        torch.testing.assert_close(compiled(x, ours), function(x, eager))
        torch.testing.assert_close(compiled(x, None).shape, x.shape)
        assert torch.equal(ours.get_state(), eager.get_state())


@takes_generators
@pytest.mark.parametrize("with_generator", [True, False])
def test_two_draws_in_one_graph_differ(with_generator):
    def two(x, generator):
        grids = (1.0, 0.75, 0.5, 0.25, 0.0), (1.0, 0.0)
        return [shortcut_triple_sampler(x, *grids, generator=generator).t_m for _ in range(2)]

    compiled = torch.compile(two, fullgraph=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(0) if with_generator else None
    a, b = compiled(torch.ones(300), generator)
    assert not torch.equal(a, b)
    c, _ = compiled(torch.ones(300), generator)
    assert not torch.equal(a, c)


@takes_generators
def test_a_compiled_training_rollout_draws_what_eager_draws_in_value_and_gradient():
    """With a backward graph the compiler merges equal calls: the draws must not be merged."""

    def loss(x, generator):
        return consistency_sample(velocity_fn, x, FINE, generator=generator).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        x, generator = inputs()[0], torch.Generator().manual_seed(1)
        value = function(x, generator)
        value.backward()
        results.append((value.detach(), x.grad, generator.get_state()))
    torch.testing.assert_close(*results)


class Sampler(torch.nn.Module):
    def __init__(self, generator=None):
        super().__init__()
        self.generator = generator

    def forward(self, x):
        return consistency_sample(velocity_fn, x, COARSE, generator=self.generator)


@takes_generators
def test_random_functions_compile_once_for_all_batch_sizes():
    def draws(x):
        times = shortcut_triple_sampler(x[:, 0, 0].sigmoid() * 0 + 1, FINE, COARSE).t_m
        return Sampler()(x), times

    compiled = torch.compile(draws, fullgraph=True, backend="aot_eager", dynamic=True)
    torch._dynamo.utils.counters.clear()
    for batch in range(2, 12):  # more than the compiler's limit of 8
        sample, times = compiled(torch.ones(batch, 3, 4))
        assert sample.shape == (batch, 3, 4)
        assert times.shape == (batch,)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


RUN_EXPORTED = """
import sys, torch, salt_losses
program = torch.export.load(sys.argv[1]).module()
torch.manual_seed(0)
before = torch.get_rng_state()
a, b = program(torch.ones(5, 3, 4)), program(torch.ones(5, 3, 4))
print(list(a.shape), torch.equal(a, b), torch.equal(before, torch.get_rng_state()))
"""


@takes_generators
def test_an_exported_sampler_draws_in_another_process_too(tmp_path):
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        Sampler(), (torch.ones(2, 3, 4),), dynamic_shapes={"x": {0: batch}}
    )
    torch.export.save(program, tmp_path / "sampler.pt2")
    command = [sys.executable, "-c", RUN_EXPORTED, str(tmp_path / "sampler.pt2")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[5, 3, 4] False True"


@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="this torch cannot tell an export"
)
def test_a_generator_cannot_be_exported():
    with pytest.raises(ValueError, match=r"generator must be None in torch\.export"):
        torch.export.export(Sampler(torch.Generator()), (torch.ones(2, 3, 4),), strict=False)


# Each takes two tensors and a number.
WITH_A_NUMBER = {
    "guide": guide,
    "shift_time": lambda x, y, number: shift_time(x.sigmoid(), 1 + number),
    "shift_time, float": lambda x, y, number: x * shift_time(number, 2 * number),
    "add_noise": add_noise,
    "to_velocity": lambda x, y, number: to_velocity(x, y, number, "noise"),
    "relational_align_loss": lambda x, y, number: relational_align_loss(x, y, margin=number),
    "relational_align_loss, defaults": lambda x, y, number: relational_align_loss(x, y),
}


@pytest.mark.skipif(OLD, reason="torch 2.4 traces no number that changes")
@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "default"])
@pytest.mark.parametrize("name", WITH_A_NUMBER)
def test_other_numbers_and_other_shapes_compile_to_one_graph_as_well(name, dynamic):
    function = WITH_A_NUMBER[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for number, tokens in ((0.1, 4), (0.25, 4), (0.5, 4), (0.5, 6), (0.75, 7)):
        x, y = inputs_of(2, 3, tokens, 5)
        results = []
        for run in (compiled, function):
            value = run(x, y, number)
            results.append((value, *torch.autograd.grad(value.sum(), x)))
        torch.testing.assert_close(*results)


def inputs_of(*shape):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for _ in range(2)]


@takes_generators
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler for inductor"
)
@torch.no_grad()
def test_a_rollout_and_its_loss_under_inductor_equal_eager():
    def rollout(x, generator):
        sample = consistency_sample(velocity_fn, x, COARSE, generator=generator)
        return sample, critic_loss(sample, x, x)

    compiled = torch.compile(rollout, fullgraph=True)
    x, *generators = inputs()[0], *(torch.Generator().manual_seed(1) for _ in range(2))
    for _ in range(3):
        torch.testing.assert_close(*(f(x, g) for f, g in zip((rollout, compiled), generators)))


def test_no_function_draws_from_the_global_random_streams():
    before = torch.get_rng_state(), random.getstate()
    for function in DETERMINISTIC.values():
        function(*inputs())
    functions = list(RANDOM.values())
    if not OLD:
        compile_ = torch.compile(fullgraph=True, backend="aot_eager")
        functions.append(compile_(RANDOM["consistency_sample"]))
    for function in functions:
        for generator in (None, torch.Generator().manual_seed(0)):
            function(inputs()[0].detach(), generator)
    MixedStepScheduler().step()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


class Watch(TorchDispatchMode):
    """Which operations ran."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))


# Reading a value on the host; lift_fresh is torch.tensor, whose copy to a device waits.
SYNCHRONISING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::item",
    "aten::masked_select", "aten::unique", "aten::lift_fresh",
}  # fmt: skip


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    """CPU tensors that are treated like those whose values cannot be read for free."""
    for module in (salt_losses._checks, salt_losses.flow, salt_losses.adversarial):
        monkeypatch.setattr(module, "values_readable", lambda tensor: False)


WITHOUT_SYNC = {
    **LOSSES,
    **{name: DETERMINISTIC[name] for name in ("add_noise", "velocity_to_x0", "x0_to_velocity")},
    **{name: DETERMINISTIC[name] for name in ("euler_step", "guide", "dmd_grad", "shift_time")},
    **{name: DETERMINISTIC[name] for name in ("to_velocity, x0", "to_velocity, noise")},
    "dmd_grad, nan": DETERMINISTIC["dmd_grad, nan"],
    "shortcut_triple_sampler": lambda x, y, z: shortcut_triple_sampler(
        x * 0 + 1, GRID, GRID[::2], nearest=1
    ),
}


@pytest.mark.parametrize("name", WITHOUT_SYNC)
def test_no_loss_makes_the_host_wait_for_a_value(name, as_on_an_accelerator):
    tensors = inputs()
    with Watch() as watch:
        value = WITHOUT_SYNC[name](*tensors)
        if isinstance(value, torch.Tensor) and value.requires_grad:
            value.sum().backward()
    assert watch.seen
    assert not watch.seen & SYNCHRONISING


def test_the_watch_sees_the_value_checks_that_cpu_tensors_get():
    with Watch() as watch:
        add_noise(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0.5, 0.7]))
    assert watch.seen & SYNCHRONISING


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_function_needs_no_values_at_all(name):
    value = DETERMINISTIC[name](*inputs("meta"))
    assert value.device.type == "meta"
