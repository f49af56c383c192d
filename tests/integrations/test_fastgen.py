"""Salt in FastGen, on its real code where `SALT_FASTGEN` names a checkout."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fastgen_real as fw
import pytest
import random_plans
import torch
import yaml
from naive_defect import RELEASED, Call, naive_loss
from tools import merged, reference, sc_loss
from torch import Tensor

from salt_losses import step_schedule
from salt_losses.cli.calls import (
    NONE,
    expected_critic_update,
    expected_generator_update,
)
from salt_losses.cli.calls import (
    Calls as Counted,
)
from salt_losses.cli.grids import step_lists
from salt_losses.cli.trainers import TRAINERS
from salt_losses.terms import alignment

KINDS = ("dmd2", "self_forcing")
EVERY = {  # the defect term in every iteration, and the framework's own step list
    "step_counts": [4], "probs": [1.0], "sc": {"step_counts": [4]}, "inference_steps": 2
}  # fmt: skip
ALIGNED = {
    "align": {"weight": 0.0, "reference": {4: 8}, "prob": 1.0, "warmup": 0, "margin": 0.0}
}  # fmt: skip
pytestmark = pytest.mark.skipif(
    fw.checkout() is None, reason=f"set {fw.VARIABLE} to a checkout of FastGen to run this"
)


@pytest.fixture(autouse=True, scope="module")
def importable() -> None:
    fw.activate()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def settings(kind: str, sc: float, align: float, /, **more: Any) -> dict[str, Any]:
    """A model that predicts from data has no alignment."""
    aligned = merged(ALIGNED, {"align": {"weight": align}}) if kind == "self_forcing" else {}
    return merged(EVERY, aligned, {"sc": {"weight": sc}}, more)


def step(model: Any, iteration: int = 2, seed: int = 0) -> tuple[dict, list[Tensor | None]]:
    """An iteration's losses, and gradients of all that trains: an even one is the student's."""
    losses, _ = model.single_train_step(fw.batch(seed), iteration)
    losses["total_loss"].backward()
    return losses, [p.grad for net in (model.net, model.fake_score) for p in net.parameters()]


def equal(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_lists_begin_where_the_frameworks_do_and_take_its_own_points(kind):
    model = fw.build(kind, {})
    lists = {k: model._steps(step_schedule(k, 5.0)) for k in (1, 2, 4, 8)}
    assert lists[4] == [0.999, 0.937, 0.833, 0.624, 0.0]
    assert lists[8][::2] == lists[4]
    assert lists[4][::2] == lists[2]
    assert lists[1] == [0.999, 0.0]
    even = fw.build(kind, {}, t_list=None)
    theirs = even.net.noise_scheduler.get_t_list(4).tolist()
    assert even._steps(step_schedule(4)) == pytest.approx(theirs, abs=1e-3)


def test_the_config_is_as_it_was_after_a_step(kind):
    model = fw.build(kind, {"seed": 3})
    before = (model.config.student_sample_steps, list(model.config.sample_t_cfg.t_list))
    for iteration in (1, 2):
        step(model, iteration)
    assert (model.config.student_sample_steps, list(model.config.sample_t_cfg.t_list)) == before


class Calls:
    """Keeps the student's denoising calls: input, level, keywords, gradient, cache before it."""

    def __init__(self, model: Any) -> None:
        self.made: list[tuple[Any, ...]] = []
        self._net = model.net
        self.hook = model.net.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, net: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not kwargs.get("store_kv"):
            self.made.append((*args, kwargs, torch.is_grad_enabled(), fw.cloned_caches(net)))

    @property
    def with_gradient(self) -> list[tuple[Any, ...]]:
        return [call for call in self.made if call[3]]


def test_the_defect_terms_gradient_is_that_of_a_slow_computation_on_a_cloned_cache(
    kind, monkeypatch
):
    from salt_losses.terms import self_consistency as term

    triples = []
    sampler = term.shortcut_triple_sampler

    def kept(*args: Any, **kwargs: Any) -> Any:
        triples.append(sampler(*args, **kwargs))
        return triples[-1]

    monkeypatch.setattr(term, "shortcut_triple_sampler", kept)
    tried = 0
    for seed in range(5):
        model = fw.build(kind, settings(kind, 1, 0), seed=seed)
        triples.clear()  # those of the settings' check
        model._salt.begin(2)
        model._updating = True
        data = fw.batch(seed)
        calls = Calls(model)
        x, t, *_ = model._generate_noise_and_time(data["real"])
        model.gen_data_from_net(x, t, condition=data["condition"])
        calls.hook.remove()
        loss = sc_loss(model._salt)
        if loss is None or not any(triple.feasible.all() for triple in triples):
            continue
        tried += 1
        parameters = [p for p in model.net.parameters() if p.requires_grad]
        fast = torch.autograd.grad(loss, parameters, allow_unused=True)
        made, terms = calls.with_gradient, []
        for triple in triples:
            x_s, t_s, kwargs, _, caches = made.pop(0)
            if not triple.feasible.all():
                continue
            made.pop(0)  # the fast one's
            _, t_m, t_e = (u.item() for u in triple[:3])

            def velocity(x, t, kwargs=kwargs, caches=caches, like=t_s, net=model.net):
                fw.use_caches(net, caches)  # a clone for each call
                call = {**kwargs, "fwd_pred_type": "flow"}
                return net(x.float(), torch.full_like(like, t), **call).double()

            x_s, s = x_s.double(), t_s.item()
            v_s = velocity(x_s, s)
            x_m = x_s - (s - t_m) * v_s
            direct, composed = x_s - (s - t_e) * v_s, x_m - (t_m - t_e) * velocity(x_m, t_m)
            terms.append((direct - composed).square().mean())
        slow = torch.autograd.grad(torch.stack(terms).mean(), parameters, allow_unused=True)
        pairs = [(a, b) for a, b in zip(fast, slow, strict=True) if b is not None]
        scale = max(b.abs().max() for _, b in pairs)
        assert max((a - b).abs().max() for a, b in pairs) < 2e-6 * scale
    assert tried > 1


def test_the_loss_of_the_released_presets_is_a_naive_one(kind):
    """`sc.nearest` 2 and `sc.time_weight` "clean"."""
    found = []
    for seed in range(6):
        model = fw.build(kind, RELEASED, seed=seed)
        made: list[Call] = []

        def noted(
            net: Any, args: Any, kwargs: dict[str, Any], x0: Tensor, made: list[Call] = made
        ) -> None:
            if torch.is_grad_enabled() and not kwargs.get("store_kv"):
                x, t = (value.detach().double() for value in args)
                v = (x - x0.detach().double()) / t[:, None, None, None, None]
                made.append(Call(x, t, v))

        model.net.register_forward_hook(noted, with_kwargs=True)
        losses, _ = step(model, 2, seed)
        grid = model._steps(model._salt.plan.train_times)
        found.append(float(losses["salt/sc_loss"]))
        expected = naive_loss(made, model._salt, grid, lockstep=kind == "dmd2")
        assert found[-1] == pytest.approx(expected, rel=1e-4)
    assert sum(value > 0 for value in found) > 1


def test_the_defect_term_costs_one_call_per_exit_step_and_nothing_when_off(kind):
    exits = 1 if kind == "dmd2" else fw.FRAMES
    for seed in range(4):
        counts = {}
        for name, salt in {
            "parent": None,
            "off": settings(kind, 0, 0),
            "on": settings(kind, 1, 0),
        }.items():
            model = fw.build(kind, salt, seed=seed)
            calls = Calls(model)
            step(model, seed=seed)
            counts[name] = (len(calls.made), len(calls.with_gradient))
            if name == "parent":
                left_last = sum(call[1].item() == 0.624 for call in calls.with_gradient)
        assert counts["off"] == counts["parent"]
        assert counts["parent"][1] == exits
        # Where ranks leave at steps of their own, the call is made without a triple too.
        extra = 1 if kind == "dmd2" else exits - left_last
        assert counts["on"] == (counts["parent"][0] + extra, exits + extra)


@pytest.mark.parametrize("same", [True, False])
def test_the_first_chunk_has_a_list_and_an_exit_step_of_its_own(same):
    salt = {
        "step_counts": [2],
        "probs": [1.0],
        "sc": {"step_counts": []},
        "inference_steps": 1,
        "first_chunk_steps": 4,
    }
    seen = set()
    for seed in range(5):
        model = fw.build("self_forcing", salt, seed=seed, same_step_across_blocks=same)
        first, others = ([0.999, 0.937, 0.833, 0.624], [0.999, 0.833])
        blocks: list[list[float]] = [[]]

        def noted(net: Any, args: Any, kwargs: Any, blocks: Any = blocks) -> None:
            if kwargs["store_kv"]:
                blocks.append([])
            else:
                blocks[-1].append(args[1].item())

        model.net.register_forward_pre_hook(noted, with_kwargs=True)
        model._salt.begin(1)
        data = fw.batch(seed)
        x, t, *_ = model._generate_noise_and_time(data["real"])
        with torch.no_grad():
            model.gen_data_from_net(x, t, condition=data["condition"])
        blocks.pop()
        assert len(blocks) == fw.FRAMES
        assert blocks[0] == pytest.approx(first[: len(blocks[0])])
        assert all(block == pytest.approx(others[: len(block)]) for block in blocks[1:])
        assert not same or len({len(block) for block in blocks[1:]}) == 1
        seen |= {("first", len(blocks[0]))} | {("others", len(block)) for block in blocks[1:]}
        assert model.config.sample_t_cfg.t_list == [0.999, 0.937, 0.833, 0.624, 0.0]
        assert "get_t_list" not in vars(model.net.noise_scheduler)
    assert max(seen) == ("others", 2)
    assert max(n for which, n in seen if which == "first") > 2


def test_a_first_chunk_of_as_many_steps_changes_nothing():
    one, other = (
        step(fw.build("self_forcing", settings("self_forcing", 1, 1, **first)))
        for first in ({}, {"first_chunk_steps": 4})
    )
    assert equal(one[1], other[1])


@pytest.mark.parametrize("align_at", ["exit", "end", "input"])
@pytest.mark.parametrize("context_noise", [0.0, 0.1])
@pytest.mark.parametrize("first", [None, 8])
def test_the_matched_reference_is_a_literal_one(align_at, context_noise, first):
    """The oracle is the framework's own rollout on the denser list, with its noise exchanged."""
    for seed in range(3):
        salt = settings("self_forcing", 0, 1, align={"to": align_at}, seed=seed)
        salt |= {"first_chunk_steps": first}
        model = fw.build("self_forcing", salt, seed=seed, context_noise=context_noise)
        model.config.same_step_across_blocks = False
        model._salt.begin(2)
        model._updating = True
        data = fw.batch(seed)
        x, t, *_ = model._generate_noise_and_time(data["real"])
        noises: list[Tensor] = []
        exits: list[int] = []
        randn_like, draw = torch.randn_like, model._sample_denoising_end_steps
        draw_some = model._draw_exits

        def drawn(x: Tensor, noises=noises, randn_like=randn_like, **kwargs: Any) -> Tensor:
            noises.append(randn_like(x, **kwargs))
            return noises[-1]

        def left(n: int, exits=exits, draw=draw) -> list[int]:
            exits.extend(draw(n))
            return exits

        def some_left(n: int, steps: int, exits=exits, draw=draw_some) -> list[int]:
            some = draw(n, steps)
            exits.extend(some)
            return some

        with (
            mock.patch.object(torch, "randn_like", drawn),
            mock.patch.object(model, "_sample_denoising_end_steps", left),
            mock.patch.object(model, "_draw_exits", some_left),
        ):
            model.gen_data_from_net(x, t, condition=data["condition"])
        output, aligned = reference(model._salt)
        target = output.transpose(1, 2)
        literal, parts = literal_reference(model, x, t, data, exits, noises, align_at)
        assert aligned == parts
        assert torch.allclose(target, literal, atol=1e-5, rtol=1e-5)


@contextlib.contextmanager
def leaving(model: Any, exits: list[int]) -> Iterator[None]:
    rest = iter(exits)

    def some(n: int, steps: int) -> list[int]:
        return list(itertools.islice(rest, n))

    with (
        mock.patch.object(model, "_sample_denoising_end_steps", lambda n: exits),
        mock.patch.object(model, "_draw_exits", some),
    ):
        yield


def literal_reference(
    model: Any, x: Tensor, t: Tensor, data: Any, exits: list[int], noises: list[Tensor], at: str
) -> tuple[Tensor, list[bool]]:
    plan = model._salt.plan
    ratios = [plan.reference_steps // plan.num_steps] * len(exits)
    if plan.first_times is not None:
        ratios[0] = (len(plan.reference_first_times) - 1) // (len(plan.first_times) - 1)
    context = 1 if model.config.context_noise > 0 else 0
    own, rest = [], list(noises)
    for exit_step in exits:
        own.append(rest[: exit_step + context])
        rest = rest[exit_step + context :]
    leaves = [e * r for e, r in zip(exits, ratios, strict=True)]
    takes_part = [at == "end" or leaf > e for leaf, e in zip(leaves, exits, strict=True)]
    if at == "end":
        leaves = [plan.reference_steps - 1] * len(exits)
        if plan.first_times is not None:
            leaves[0] = len(plan.reference_first_times) - 2
    block, reached, x_in, state = 0, 0, exit_inputs(model, x, t, data, exits, noises), {}
    inputs = {}
    forward = model.net.forward

    def followed(x_t: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        nonlocal block, reached
        out = forward(x_t, t, **kwargs)
        if kwargs["store_kv"]:
            block, reached = block + 1, 0
            return out
        if at == "input" and reached == leaves[block] and takes_part[block]:
            inputs[block] = forward(x_in[block], t, **kwargs)
        state.update(x=x_t, t=t.item(), x0=out)
        reached += 1
        return out

    def exchanged(like: Tensor, **_: Any) -> Tensor:
        if reached > leaves[block]:
            return own[block][-1]
        ratio = ratios[block]
        if reached % ratio == 0 and reached // ratio <= exits[block]:
            return own[block][reached // ratio - 1]
        return (state["x"] - (1 - state["t"]) * state["x0"]) / state["t"]  # an Euler step

    model._salt.plan = dataclasses.replace(
        plan,
        times=plan.reference_times,
        num_steps=plan.reference_steps,
        first_times=plan.reference_first_times,
    )
    model._updating = False
    with (
        mock.patch.object(model.net, "forward", followed),
        mock.patch.object(torch, "randn_like", exchanged),
        leaving(model, leaves),
        torch.no_grad(),
    ):
        output = model.gen_data_from_net(x, t, condition=data["condition"])
    model._salt.plan = plan
    frames = [inputs.get(i, output[:, :, i : i + 1]) for i in range(len(exits))]
    return torch.cat(frames, dim=2), takes_part


def exit_inputs(
    model: Any, x: Tensor, t: Tensor, data: Any, exits: list[int], noises: list[Tensor]
) -> list[Tensor]:
    """The student's own exit inputs, from its rollout once more."""
    last: list[Tensor] = [x]
    seen: list[Tensor] = []
    forward, rest = model.net.forward, iter(noises)

    def followed(x_t: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        if kwargs["store_kv"]:
            seen.append(last[0])
        else:
            last[0] = x_t
        return forward(x_t, t, **kwargs)

    model._updating = False
    with (
        mock.patch.object(model.net, "forward", followed),
        mock.patch.object(torch, "randn_like", lambda like, **_: next(rest)),
        leaving(model, exits),
        torch.no_grad(),
    ):
        model.gen_data_from_net(x, t, condition=data["condition"])
    return seen


def test_the_cache_holds_constants_when_the_extra_call_comes():
    model = fw.build("self_forcing", settings("self_forcing", 1, 0), seed=1)
    held = []

    def look(net: Any, args: Any, kwargs: Any) -> None:
        for block in getattr(net.transformer, "_external_self_kv_list", []):
            held.extend(v for tag in block.values() for v in tag.values() if torch.is_tensor(v))

    model.net.register_forward_pre_hook(look, with_kwargs=True)
    step(model)
    assert held
    assert not any(v.requires_grad for v in held)


def test_plans_are_saved_with_a_learning_rate_scheduler_and_refuse_others(kind):
    model = fw.build(kind, {})
    model._salt.begin(7)
    state = model.scheduler_dict["net"].state_dict()
    resumed = fw.build(kind, {})
    resumed.scheduler_dict["net"].load_state_dict(state)
    assert resumed._salt.scheduler.iteration == 8
    other = fw.build(kind, {"seed": 1})
    before = other.scheduler_dict["net"].state_dict()
    with pytest.raises(ValueError, match=r"seed \(state: 0, here: 1\)"):
        other.scheduler_dict["net"].load_state_dict({**state, "last_epoch": 99})
    assert other.scheduler_dict["net"].state_dict() == before
    other = fw.build(kind, {"sc": {"weight": 30, "stop_grad": "direct"}})
    with pytest.warns(UserWarning, match="sc.weight 1 -> 30, sc.stop_grad None -> 'direct'$"):
        other.scheduler_dict["net"].load_state_dict(state)


def test_a_run_resumed_from_the_trainers_checkpoint_goes_on_as_if_it_had_not_stopped(
    kind, tmp_path
):
    """FastGen seeds its streams by the iteration at a resume, so the whole run does so there."""
    from fastgen.utils.basic_utils import set_random_seed

    salt = settings(
        kind,
        1,
        1,
        step_counts=[4, 8],
        probs=[0.5, 0.5],
        sc={"step_counts": [4, 8]},
        seed=1,
    )

    def steps(trainer: Any, model: Any, iterations: range) -> list[dict[str, float]]:
        set_random_seed(0, iteration=iterations[0] - 1, by_rank=True)
        numbers = []
        for iteration in iterations:
            losses = fw.train_step(trainer, model, model, fw.batch(iteration), iteration)
            numbers.append({name: float(value) for name, value in losses.items()})
        return numbers

    whole = fw.build(kind, salt)
    trainer = fw.trainer(whole, tmp_path)
    steps(trainer, whole, range(1, 4))
    path = trainer.save_checkpoint(whole, 3)
    expected = steps(trainer, whole, range(4, 9))
    assert len({numbers.get("salt/num_steps") for numbers in expected}) == 3  # None: a critic's

    stream = torch.get_rng_state()

    resumed = fw.build(kind, salt, seed=5)
    trainer = fw.trainer(resumed, tmp_path)
    parts = (resumed.model_dict, resumed.optimizer_dict, resumed.scheduler_dict)
    assert trainer.checkpointer.load(*parts, resumed.grad_scaler, path=path) == 3
    assert resumed._salt.scheduler.iteration == 4
    assert steps(trainer, resumed, range(4, 9)) == expected
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(stream, torch.get_rng_state())


@pytest.mark.parametrize("wrapping", ["ddp", "fsdp"])
def test_two_ranks_follow_one_plan_and_keep_equal_parameters(kind, wrapping, tmp_path):
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    environment["MASTER_PORT"] = str(fw.free_port())
    worker = str(Path(__file__).parent / "fastgen_worker.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, worker, kind, wrapping, str(tmp_path)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=600)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    first, second = (json.loads((tmp_path / f"rank_{r}.json").read_text()) for r in range(2))
    plans = [[s.get("salt/num_steps") for s in rank["steps"]] for rank in (first, second)]
    assert plans == [[None, 8.0, None, 4.0, None]] * 2
    terms = {"salt/sc_loss"} | ({"salt/align_loss"} if kind == "self_forcing" else set())
    for rank in (first, second):
        assert terms <= rank["steps"][3].keys()
        assert all(rank["steps"][3][term] > 0 for term in terms)
    assert first["steps"] != second["steps"]  # of data and noise of their own
    assert first["sums"] == second["sums"]
    if wrapping == "fsdp":
        networks = {name.split(".transformer.")[0] for name in first["sharded"]}
        assert networks == {"net", "fake_score", "teacher"}


def test_bad_settings_are_refused(kind):
    with pytest.raises(ValueError, match="unknown setting 'sc_wieght'"):
        fw.build(kind, {"sc_wieght": 1})
    if kind == "dmd2":
        with pytest.raises(ValueError, match="align needs a reference rollout"):
            fw.build(kind, {"align": {"weight": 1}})


def test_a_list_and_a_term_that_are_never_used_are_said(kind):
    with pytest.warns(UserWarning, match=r"of length 3, is never used.* set step_counts to \[3\]"):
        fw.build(kind, {"sc": {"weight": 1.0}}, t_list=(0.999, 0.9, 0.7, 0.0))
    salt = {"step_counts": [1, 2], "probs": [0.5, 0.5], "inference_steps": 1}
    with pytest.warns(UserWarning, match=r"sc never turns on.* set sc.step_counts to some of"):
        fw.build(kind, salt)
    if kind == "self_forcing":
        with pytest.warns(UserWarning, match="leave only at their last step"):
            fw.build(kind, {}, last_step_only=True)


def test_another_version_of_the_parent_is_named_in_one_sentence(monkeypatch):
    import fastgen.methods as theirs

    monkeypatch.delattr(theirs.DMD2Model, "_student_update_step")
    for name in [n for n in sys.modules if n.startswith("salt_losses.integrations.fastgen")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ImportError, match=r"has no _student_update_step.* known to work is FastGen"
    ):
        import salt_losses.integrations.fastgen  # noqa: F401


EXAMPLE = Path(__file__).parents[2] / "examples" / "fastgen"
SCRIPT = """
import runpy, sys
import fastgen_real
fastgen_real.activate()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with the examples where their README puts them."""
    copy = tmp_path_factory.mktemp("fastgen") / "FastGen"
    for name in ("fastgen", "scripts"):
        shutil.copytree(fw.checkout() / name, copy / name)
    shutil.copy(fw.checkout() / "train.py", copy)
    copies = re.findall(r"cp \.\./salt-losses/(\S+) (\S+)", (EXAMPLE / "README.md").read_text())
    assert len(copies) == 2
    for source, target in copies:
        shutil.copy(EXAMPLE.parents[1] / source, copy / target)
    return copy


def dry_run(folder: Path, *command: str) -> tuple[str, dict[str, Any]]:
    """What one of FastGen's scripts prints, and the config that it makes of a command."""
    paths = [Path(__file__).parent, *sys.path]
    output = folder / "output"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *command, *(() if "--dryrun" in command else ["--dryrun"])],
        cwd=folder,
        env={
            **os.environ,
            fw.VARIABLE: str(folder),
            "PYTHONPATH": os.pathsep.join(map(str, filter(None, paths))),
            "FASTGEN_OUTPUT_ROOT": str(output),
        },
        capture_output=True,
        text=True,
    )
    files = list(output.rglob("config.yaml"))
    config = yaml.safe_load(files[0].read_text()) if files else {}
    shutil.rmtree(output, ignore_errors=True)
    return done.stdout + done.stderr, config


def commands(script: str) -> list[list[str]]:
    text = (EXAMPLE / "README.md").read_text().replace("\\\n", " ")
    lines = re.findall(rf"^    .*\b({re.escape(script)} .*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_the_readmes_commands_make_the_frameworks_own_scripts_train_with_salt(folder):
    train = commands("train.py")
    assert len(train) == 2
    other = [part.replace("config_sf", "config_dmd2") for part in train[0]]
    change = [*train[1], "model_class.salt.sc.weight=0.5"]
    at = change.index("-")
    change = [*change[:at], "--dryrun", *change[at:]]
    for command, name, weight in (
        (train[0], "SaltSelfForcingModel", "1.0"),
        (other, "SaltDMD2Model", "1.0"),
        (change, "SaltSelfForcingModel", "0.5"),
    ):
        said, config = dry_run(folder, *command)
        assert name in config["model_class"]["_target_"], said
        salt = config["model_class"]["salt"]
        assert (salt["step_counts"], salt["sc"]) == (["2", "4", "8"], {"weight": weight})
    assert config["trainer"]["fsdp"] == "True"
    assert "/path/to/videos" in str(config["dataloader_train"]["datatags"])


def test_the_readmes_command_samples_on_the_grids_of_training(folder):
    (command,) = commands("scripts/inference/video_model_inference.py")
    at = command.index("-")
    said, config = dry_run(folder, *command[:at], "--dryrun", *command[at:])
    times = config["model"]["sample_t_cfg"]["t_list"]
    assert [float(t) for t in times] == [0.999, 0.833, 0.0], said
    table = re.findall(r"^\| (\d) \| `\[(.*?)\]`", (EXAMPLE / "README.md").read_text(), re.M)
    assert [count for count, _ in table] == ["2", "4", "8"]
    model = fw.build("self_forcing", {})
    for count, times in table:
        expected = model._steps(step_schedule(int(count), TRAINERS["fastgen"].shift))
        assert [float(t) for t in times.split(",")] == pytest.approx(list(expected), abs=1e-4)


@pytest.mark.parametrize("path", [EXAMPLE / "config_sf.py", "../salt-losses/config_sf.py"])
def test_a_path_outside_of_the_checkout_is_none_that_the_framework_reads(folder, path):
    """The README says so; when this fails, its copies can go."""
    if not isinstance(path, Path):
        (folder.parent / "salt-losses").mkdir()
        shutil.copy(EXAMPLE / "config_sf.py", folder.parent / "salt-losses")
    said, config = dry_run(folder, "train.py", f"--config={path}")
    assert "TypeError: the 'package' argument is required" in said
    assert not config


@pytest.mark.parametrize(("low", "high", "level"), [(0.0, 1e-9, 0.001), (1 - 1e-9, 1.0, 0.999)])
def test_the_alignments_level_is_one_of_the_schedulers(low, high, level, monkeypatch):
    align = {"to": "end", "noise_range": [low, high]}
    model = fw.build("self_forcing", settings("self_forcing", 0, 1, align=align))
    seen, compute = [], alignment.rollout_align_loss

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(args[4])
        return compute(*args, **kwargs)

    monkeypatch.setattr(alignment, "rollout_align_loss", watched)
    step(model)
    assert seen == [pytest.approx(level)]


def test_blocks_that_leave_at_their_first_step_are_not_aligned(monkeypatch):
    model = fw.build(
        "self_forcing",
        settings("self_forcing", 0, 1, align={"to": "exit"}),
        same_step_across_blocks=False,
    )
    blocks = fw.FRAMES // model.net.chunk_size
    exits = [0, 2, *[0] * (blocks - 2)]
    monkeypatch.setattr(model, "_sample_denoising_end_steps", lambda _: exits)
    seen, compute = [], alignment.rollout_align_loss

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["frames"])
        return compute(*args, **kwargs)

    monkeypatch.setattr(alignment, "rollout_align_loss", watched)
    step(model)
    size = model.net.chunk_size
    assert seen == [list(range(size, 2 * size))]


@pytest.mark.parametrize("kind_of_sampling", ["ode", "sde"])
def test_the_reference_draws_noise_only_if_the_student_does(kind_of_sampling, monkeypatch):
    """Another stream of their own gives another reference, and none to an ODE's."""
    salt = settings("self_forcing", 0, 1, align={"to": "end", "reference_noise": "own"})
    losses = []
    for seed in (0, 1):
        model = fw.build("self_forcing", salt, student_sample_type=kind_of_sampling)
        key = model._salt.key
        monkeypatch.setattr(
            model._salt,
            "key",
            lambda purpose, key=key, seed=seed: (
                str(seed) if "reference" in purpose else key(purpose)
            ),
        )
        losses.append(float(step(model)[0]["salt/align_loss"]))
    assert (losses[0] == losses[1]) == (kind_of_sampling == "ode")


def test_the_references_cache_is_cleared_after_it():
    model = fw.build("self_forcing", settings("self_forcing", 0, 1, align={"to": "end"}))
    events: list[str] = []
    clear = model.net.clear_caches

    def cleared() -> None:
        events.append("cleared")
        clear()

    model.net.clear_caches = cleared
    model.net.register_forward_hook(lambda *_: events.append("call"))
    step(model)
    assert events[-1] == "cleared"


# What `salt-losses plan` says of it


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 16])
def test_a_plans_grids_are_the_models_step_lists(kind, count):
    trainer = TRAINERS["fastgen_dmd2" if kind == "dmd2" else "fastgen"]
    for shift in (None, 3.0):
        model = fw.build(kind, settings(kind, 1.0, 0.0, shift=shift))
        times = step_schedule(count, shift or trainer.shift)
        foreseen = step_lists(trainer, own=shift is None).timesteps(times).tolist()
        expected = [1000 * t for t in model._steps(times)[:-1]]
        assert foreseen == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("align_at", ["exit", "end", "input"])
def test_a_plans_calls_are_those_that_are_counted(kind, align_at, monkeypatch):
    trainer = TRAINERS["fastgen_dmd2" if kind == "dmd2" else "fastgen"]
    aligned = kind == "self_forcing"
    blocks = 1
    generator, critic = NONE, NONE
    for leaves, iteration in itertools.product(range(4), (1, 2)):
        align = {"align": {"to": align_at}} if aligned else {}
        model = fw.build(kind, settings(kind, 1.0, 0.1, **align))
        if aligned:
            blocks = fw.FRAMES // model.net.chunk_size
            exits = [leaves] * blocks
            monkeypatch.setattr(model, "_sample_denoising_end_steps", lambda _, exits=exits: exits)
        calls: list[bool] = []
        model.net.register_forward_pre_hook(lambda *_, to=calls: to.append(torch.is_grad_enabled()))
        model.single_train_step(fw.batch(), iteration)
        counted = Counted(sum(calls), len(calls) - sum(calls))
        if iteration % 2:  # the critic's alone
            critic = critic.plus(counted, 1 / 4)
        else:
            generator = generator.plus(counted, 1 / 4)
    config, rollout = model._salt.config, trainer.rollout
    reference = 8 if aligned else None
    assert expected_critic_update(config, 4, blocks, rollout) == critic
    assert expected_generator_update(config, 4, reference, blocks, rollout) == generator


@pytest.mark.parametrize("seed", random_plans.SEEDS)
def test_the_calls_of_random_settings_are_those_that_a_plan_expects(kind, seed, monkeypatch):
    """FastGen's lists begin at 0.999, so that `sc.time_weight` spares no call."""
    trainer = TRAINERS["fastgen_dmd2" if kind == "dmd2" else "fastgen"]
    chunks = kind == "self_forcing"
    drawn = random_plans.draw(seed, chunks=chunks, aligned=chunks)
    model = fw.build(kind, {"shift": 5.0, **drawn.salt})
    blocks = fw.FRAMES // model.net.chunk_size if chunks else 1
    calls: list[bool] = []
    model.net.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    def count(exits: list[int], of_student: bool) -> Counted:
        calls.clear()
        if chunks:
            rest = iter(exits)
            parent = next(c for c in type(model).__mro__ if c.__name__ == "SelfForcingModel")
            monkeypatch.setattr(
                parent, "_sample_denoising_end_steps", lambda _, n: [next(rest) for _ in range(n)]
            )
        model.single_train_step(fw.batch(), 2 if of_student else 1)
        return Counted(sum(calls), len(calls) - sum(calls))

    drawn.check(blocks, trainer.rollout, count, from_1=False)


@pytest.mark.parametrize(("name", "file"), [("fastgen", "sf"), ("fastgen_dmd2", "dmd2")])
def test_a_plans_trainer_is_as_its_own_configuration_has_it(name, file):
    module = importlib.import_module(f"fastgen.configs.experiments.WanT2V.config_{file}")
    config, trainer = module.create_config(), TRAINERS[name]
    times = config.model.sample_t_cfg
    assert [1000 * t for t in times.t_list] == pytest.approx([*trainer.own_list, 0])
    assert (times.shift, 1000 * times.max_t) == (trainer.shift, trainer.top)
    assert config.model.student_sample_steps == trainer.steps
    assert config.model.student_update_freq == trainer.update_every
    assert config.model.input_shape[1] == trainer.frames
    assert config.trainer.max_iter - 1 == trainer.iterations
    if name == "fastgen":
        assert config.model.net.chunk_size == trainer.chunk
