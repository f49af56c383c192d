"""Salt in LightX2V, on its real code where `SALT_LIGHTX2V` names a checkout."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightx2v_real as fw
import pytest
import torch
import yaml
from torch import Tensor

from salt_losses import step_schedule

KINDS = ("ar", "dmd")
EVERY = {  # the defect term in every iteration, and the framework's own step list
    "step_counts": [4], "probs": [1.0], "sc_steps": [4], "inference_steps": 2,
}  # fmt: skip
ALIGNED = {
    "align_reference": {4: 8}, "align_prob": 1.0, "align_warmup": 0, "align_margin": 0.0,
}  # fmt: skip
CACHES = {
    "as configured": {},
    "deferred": {"model__defer_kv_cache_updates": True, "model__detach_kv_cache_updates": False},
    "in the graph": {"model__detach_kv_cache_updates": False},
    "no checkpointing": {"training__gradient_checkpointing": False},
    "rolling": {"model__local_attn_size": 2, "training__gradient_checkpointing": False},
}
pytestmark = pytest.mark.skipif(
    fw.checkout() is None, reason=f"set {fw.VARIABLE} to a checkout of LightX2V to run this"
)


@pytest.fixture(autouse=True, scope="module")
def importable() -> None:
    fw.activate()
    from loguru import logger

    logger.remove()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def settings(sc: float, align: float, **more: Any) -> dict[str, Any]:
    return {**EVERY, **ALIGNED, "sc_weight": sc, "align_weight": align, **more}


def step(
    trainer: Any, seed: int = 0, stage: str = "student", size: int = 1
) -> tuple[dict, list[Tensor | None]]:
    """A forward and backward pass of a stage: its numbers, and the gradients of all that trains."""
    trainer._iteration = getattr(trainer, "_iteration", 0) + 1
    sample = fw.batch(seed, size)
    shape = trainer._latent_shape(sample)
    noise = trainer.sample_initial_latents(shape)
    conditions = trainer._encode_conditions(sample)
    result = trainer.forward_loss(shape, conditions, stage=stage, initial_noise=noise)
    result = result if isinstance(result, dict) else {"loss": result}
    result["loss"].backward()
    networks = (trainer.model.transformer, trainer.fake_model.transformer)
    return result, [p.grad for net in networks for p in net.parameters()]


def equal(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("stage", ["student", "fake"])
@pytest.mark.parametrize("seed", range(3))
def test_with_every_weight_0_a_step_is_the_parents_bit_for_bit(kind, seed, stage, tmp_path):
    theirs = step(fw.build(kind, None, tmp_path, seed=seed), seed, stage)
    their_stream = torch.get_rng_state()
    ours = step(fw.build(kind, settings(0, 0), tmp_path, seed=seed), seed, stage)
    assert all(torch.equal(theirs[0][name], ours[0][name]) for name in theirs[0])
    assert equal(theirs[1], ours[1])
    assert any(g is not None for g in theirs[1])
    assert torch.equal(their_stream, torch.get_rng_state())


@pytest.mark.parametrize("stop_grad", [None, "composed"])
@pytest.mark.parametrize("seed", range(3))
def test_with_vanishing_weights_the_gradients_are_the_parents(kind, seed, stop_grad, tmp_path):
    theirs = step(fw.build(kind, None, tmp_path, seed=seed), seed)
    their_stream = torch.get_rng_state()
    salt = settings(1e-38, 1e-38, sc_stop_grad=stop_grad)
    ours = step(fw.build(kind, salt, tmp_path, seed=seed), seed)
    assert {"salt/sc_loss", "salt/align_loss"} <= ours[0].keys()
    assert equal(theirs[1], ours[1])
    assert torch.equal(their_stream, torch.get_rng_state())


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("cache", CACHES)
def test_with_vanishing_weights_the_gradients_are_the_parents_in_every_kind_of_cache(
    cache, size, same, tmp_path
):
    more = {**CACHES[cache], "training__dmd__same_step_across_blocks": same}
    theirs, ours = (
        step(fw.build("ar", salt, tmp_path, seed=4, **more), 4, size=size)
        for salt in (None, settings(1e-38, 1e-38, align_at="end"))
    )
    assert ours[0]["salt/sc_loss"] > 0
    assert ours[0]["salt/align_loss"] > 0
    assert equal(theirs[1], ours[1])


@pytest.mark.parametrize("kind", KINDS)
def test_with_vanishing_weights_lora_adapters_have_the_parents_gradients(kind, tmp_path):
    lora = {"train_type": "lora", "lora": {"rank": 2, "alpha": 2}}
    more = {f"training__{role}__{k}": v for role in ("student", "fake") for k, v in lora.items()}
    # IDA wants full training.
    more["training__dmd__ida"] = {"enabled": False}
    torch.manual_seed(3)
    theirs = step(fw.build(kind, None, tmp_path, seed=1, **more), 1)
    torch.manual_seed(3)
    ours = step(fw.build(kind, settings(1e-38, 1e-38), tmp_path, seed=1, **more), 1)
    assert sum(g is not None for g in theirs[1]) > 0
    assert equal(theirs[1], ours[1])


def test_the_terms_are_felt_by_the_student_alone(kind, tmp_path):
    for seed in range(9):  # until the student leaves where there is a triple
        trainer = fw.build(kind, settings(1e-38, 1e-38), tmp_path, seed=seed)
        numbers, small = step(trainer, seed)
        if numbers["salt/sc_loss"] > 0:
            break
    trainer = fw.build(kind, settings(1, 1e-38), tmp_path, seed=seed)
    _, large = step(trainer, seed)
    assert not equal(small, large)
    assert all(p.grad is None for p in trainer.fake_model.transformer.parameters())
    assert all(p.requires_grad for p in trainer.fake_model.transformer.parameters())
    trainer = fw.build(kind, settings(1e-38, 1, align_at="end"), tmp_path, seed=seed)
    numbers, aligned = step(trainer, seed)
    assert numbers["salt/align_loss"] > 0
    assert not equal(small, aligned)
    assert all(p.grad is None for p in trainer.fake_model.transformer.parameters())


def test_the_step_lists_are_read_off_the_frameworks_table(kind, tmp_path):
    trainer = fw.build(kind, {}, tmp_path)
    lists = {k: trainer._step_list(step_schedule(k, 5.0)).tolist() for k in (2, 4, 8)}
    assert lists[4] == trainer.denoising_steps.tolist()
    assert lists[8][::2] == lists[4]
    assert lists[4][::2] == lists[2]
    table = set(trainer.denoising_scheduler.timesteps.tolist())
    assert all(set(steps) <= table for steps in lists.values())
    even = fw.build(kind, {}, tmp_path, training__dmd__warp_denoising_step=False)
    assert even._step_list(step_schedule(8)).tolist() == [125.0 * k for k in range(8, 0, -1)]


def test_the_trainers_own_list_is_in_its_place_after_a_step(kind, tmp_path):
    trainer = fw.build(kind, {"seed": 3, "sc_steps": [2, 4, 8]}, tmp_path)
    names = ("denoising_steps", "denoising_sigmas", "num_inference_steps")
    before = [getattr(trainer, name) for name in names]
    lengths = set()
    for _ in range(6):
        lengths.add(float(step(trainer)[0]["salt/num_steps"]))
        step(trainer, stage="fake")
    assert lengths == {2.0, 4.0, 8.0}
    assert all(getattr(trainer, n) is b for n, b in zip(names, before, strict=True))


class Calls:
    """Keeps the student's calls: arguments, whether they have gradient, caches before them, and
    what they return."""

    def __init__(self, trainer: Any) -> None:
        self.made: list[dict[str, Any]] = []
        student = trainer.model.transformer
        hooks = (
            student.register_forward_pre_hook(self._note, with_kwargs=True),
            student.register_forward_hook(lambda *call: self.made[-1].update(v=call[-1])),
        )
        self.end = lambda: [hook.remove() for hook in hooks]

    def _note(self, net: Any, args: Any, kwargs: dict[str, Any]) -> None:
        caches = {k: fw.cloned(v) for k, v in kwargs.items() if k.endswith("cache")}
        grad = torch.is_grad_enabled()
        held = [
            value.requires_grad
            for cache in kwargs.get("kv_cache") or []
            for value in cache.values()
        ]
        self.made.append(
            {"x": args[0], "kwargs": {**kwargs, **caches}, "grad": grad, "in_graph": any(held)}
        )

    @property
    def with_gradient(self) -> list[dict[str, Any]]:
        return [call for call in self.made if call["grad"]]


def tensor(batch: Any) -> Tensor:
    """What the bidirectional network takes and returns is a list of samples."""
    return batch if torch.is_tensor(batch) else torch.stack(list(batch))


def again(net: Any, kwargs: dict[str, Any], x: Tensor, t: Tensor) -> Tensor:
    """A student's call once more, on clones of its caches, at timesteps `[B]`."""
    causal = "kv_cache" in kwargs
    caches = {name: fw.cloned(v) for name, v in kwargs.items() if name.endswith("cache")}
    t = (t[:, None].expand(kwargs["t"].shape) if causal else t).to(kwargs["t"])
    x = x.float()
    return tensor(net(x if causal else list(x.unbind(0)), **{**kwargs, **caches, "t": t}))


@contextlib.contextmanager
def kept_triples() -> Iterator[list[Any]]:
    from salt_losses.training import defect as term

    triples: list[Any] = []
    sampler = term.shortcut_triple_sampler

    def kept(*args: Any, **kwargs: Any) -> Any:
        triples.append(sampler(*args, **kwargs))
        return triples[-1]

    with mock.patch.object(term, "shortcut_triple_sampler", kept):
        yield triples


def student_rollout(trainer: Any, seed: int = 0, size: int = 1) -> Tensor:
    """A student's rollout as `forward_loss` makes it."""
    sample = fw.batch(seed, size)
    shape = trainer._latent_shape(sample)
    noise = trainer.sample_initial_latents(shape)
    condition, _ = trainer._encode_conditions(sample)
    with trainer._planned():
        return trainer.run_back_simulation(condition, shape, True, xt=noise)[0]


@pytest.mark.parametrize(("size", "cache"), [(2, "as configured"), (1, "in the graph"),
                                             (1, "no checkpointing"), (1, "deferred")])  # fmt: skip
def test_the_defect_terms_gradient_is_that_of_a_slow_computation_on_a_cloned_cache(
    kind, size, cache, tmp_path
):
    """The oracle's rollout is one without Salt: a backward pass leaves other keys in the cache."""
    tried = 0
    for seed in range(5):
        more = CACHES[cache] if kind == "ar" else {}
        more = {**more, "training__dmd__same_step_across_blocks": False}
        trainer = fw.build(kind, settings(1, 0), tmp_path, seed=seed, **more)
        trainer._salt.begin(0)
        with kept_triples() as triples:
            student_rollout(trainer, seed, size)
        loss = trainer._defect.loss()
        if loss is None or not any(triple.feasible.all() for triple in triples):
            continue
        tried += 1
        parameters = list(trainer.model.transformer.parameters())
        fast = torch.autograd.grad(loss, parameters, allow_unused=True)

        trainer = fw.build(kind, settings(0, 0), tmp_path, seed=seed, **more)
        trainer._salt.begin(0)
        calls = Calls(trainer)
        student_rollout(trainer, seed, size)
        calls.end()
        net, terms = trainer.model.transformer, []
        for triple, exit_step in zip(triples, calls.with_gradient, strict=True):
            if not triple.feasible.all():
                continue
            t_s, t_m, t_e = (u[:, None, None, None, None] for u in triple[:3])
            x_s, v_s = tensor(exit_step["x"]).double(), tensor(exit_step["v"]).double()
            x_m = x_s - (t_s - t_m) * v_s
            v_m = again(net, exit_step["kwargs"], x_m, 1000 * triple.t_m).double()
            direct, composed = x_s - (t_s - t_e) * v_s, x_m - (t_m - t_e) * v_m
            terms.append((direct - composed).square().mean())
        slow = torch.autograd.grad(
            torch.stack(terms).mean(), list(net.parameters()), allow_unused=True
        )
        pairs = [(a, b) for a, b in zip(fast, slow, strict=True) if b is not None]
        scale = max(b.abs().max() for _, b in pairs)
        assert scale > 0
        assert max((a - b).abs().max() for a, b in pairs) < 2e-6 * scale
    assert tried > 1


def test_the_defect_term_costs_one_call_per_exit_step_and_nothing_when_off(kind, tmp_path):
    exits = 1 if kind == "dmd" else fw.FRAMES
    for seed in range(4):
        counts, left = {}, 0.0
        for name, salt in {"parent": None, "off": settings(0, 0), "on": settings(1, 0)}.items():
            trainer = fw.build(kind, salt, tmp_path, seed=seed)
            calls = Calls(trainer)
            result, _ = step(trainer, seed)
            calls.end()
            counts[name] = (len(calls.made), len(calls.with_gradient))
            left = float(calls.with_gradient[0]["kwargs"]["t"].flatten()[0])
        assert counts["off"] == counts["parent"]
        assert counts["parent"][1] == exits
        extra = 0 if left < 700 else exits  # from the list's last level there is no triple
        assert counts["on"] == (counts["parent"][0] + extra, counts["parent"][1] + extra)


def test_the_cache_holds_constants_when_an_extra_call_comes(tmp_path):
    for cache, in_graph in (("as configured", False), ("in the graph", True)):
        trainer = fw.build("ar", settings(1, 0), tmp_path, seed=4, **CACHES[cache])
        calls = Calls(trainer)
        numbers, _ = step(trainer, 4)
        calls.end()
        assert numbers["salt/sc_loss"] > 0
        own, ours = calls.with_gradient[::2], calls.with_gradient[1::2]
        assert [call["in_graph"] for call in own] == [False, in_graph, in_graph]
        assert not any(call["in_graph"] for call in ours)


@contextlib.contextmanager
def followed(exits: list[int] | None = None) -> Iterator[Any]:
    """A rollout of the framework's: its noises, exit steps and calls in order. Given `exits`, it
    leaves there."""
    from lightx2v_train.trainers.dmd.video_ar_trainer import VideoArDmdTrainer as Parent

    seen = SimpleNamespace(noises=[], exits=[], calls=[], draw=torch.randn_like)
    randn_like, sample, forward = (
        torch.randn_like, Parent._sample_exit_indices, Parent._forward_causal_chunk,
    )  # fmt: skip
    rest = None if exits is None else iter(exits)

    def drawn(like: Tensor, **_: Any) -> Tensor:
        seen.noises.append(randn_like(like) if seen.draw is randn_like else seen.draw(like))
        return seen.noises[-1]

    def left(self: Any, blocks: int, steps: int, device: Any) -> list[int]:
        if rest is not None:
            return list(itertools.islice(rest, blocks))
        seen.exits += (drawn := sample(self, blocks, steps, device))
        return drawn

    def noted(self: Any, model: Any, x: Tensor, t: Tensor, *args: Any, **place: Any) -> Tensor:
        v = forward(self, model, x, t, *args, **place)
        call = {"x": x, "t": float(t[0, 0]), "grad": torch.is_grad_enabled()}
        call |= {"x0": self._flow_to_x0(x, v, t)}
        call["again"] = lambda x: self._flow_to_x0(x, forward(self, model, x, t, *args, **place), t)
        seen.calls.append(call)
        return v

    with (
        mock.patch.object(torch, "randn_like", drawn),
        mock.patch.object(Parent, "_sample_exit_indices", left),
        mock.patch.object(Parent, "_forward_causal_chunk", noted),
    ):
        yield seen


@pytest.mark.parametrize("same", [True, False])
def test_the_first_chunk_has_a_list_and_an_exit_step_of_its_own(same, tmp_path):
    salt = {"step_counts": [2], "probs": [1.0], "sc_steps": [], "inference_steps": 1,
            "first_chunk_steps": 4}  # fmt: skip
    more = {"training__dmd__same_step_across_blocks": same, "training__dmd__ts_schedule": True}
    lengths = set()
    for seed in range(8):
        trainer = fw.build("ar", salt, tmp_path, seed=seed, **more)
        first = trainer.denoising_steps.tolist()
        trainer._salt.begin(0)
        shape = trainer._latent_shape(fw.batch())
        condition, _ = trainer._encode_conditions(fw.batch())
        with followed() as seen, trainer._planned():
            _, start, end = trainer.run_back_simulation(condition, shape, False)
        levels = [[]]
        for call in seen.calls:
            if call["t"] == 0:
                levels.append([])
            else:
                levels[-1].append(call["t"])
        assert levels.pop() == []
        assert len(levels) == fw.FRAMES
        assert levels[0] == first[: len(levels[0])]
        assert all(block == first[::2][: len(block)] for block in levels[1:])
        if same:  # the window of the scores' levels is that of the others' exit step
            exit_step = len(levels[1]) - 1
            assert all(len(block) == exit_step + 1 for block in levels[1:])
            assert (start, end) == [(1000, 500), (500, 0)][exit_step]
        else:
            assert (start, end) == (None, None)
        lengths |= {("first", len(levels[0]))} | {("others", len(block)) for block in levels[1:]}
    assert lengths >= {("others", 1), ("others", 2)}
    assert max(n for which, n in lengths if which == "first") > 2


def test_a_first_chunk_of_as_many_steps_changes_nothing(tmp_path):
    one, other = (
        step(fw.build("ar", settings(1, 1, **first), tmp_path, seed=4), 4)
        for first in ({}, {"first_chunk_steps": 4})
    )
    assert equal(one[1], other[1])


@pytest.mark.parametrize("align_at", ["exit", "end", "input"])
@pytest.mark.parametrize("context_noise", [0, 100])
@pytest.mark.parametrize("first", [None, 8])
def test_the_matched_reference_is_a_literal_one(align_at, context_noise, first, tmp_path):
    """The oracle is the framework's own rollout on the denser list, its noise exchanged."""
    more = {
        "training__dmd__same_step_across_blocks": False,
        "training__dmd__context_noise": context_noise,
    }
    for seed in range(3):
        salt = settings(0, 1, align_at=align_at, seed=seed, first_chunk_steps=first)
        trainer = fw.build("ar", salt, tmp_path, seed=seed, **more)
        trainer._salt.begin(0)
        shape = trainer._latent_shape(fw.batch(seed))
        noise = trainer.sample_initial_latents(shape)
        condition, _ = trainer._encode_conditions(fw.batch(seed))
        reference = trainer._reference
        with followed() as seen, trainer._planned():
            # The reference's own calls are not the rollout's.
            with mock.patch.object(trainer, "_reference", lambda blocks: blocks):
                trainer.run_back_simulation(condition, shape, True, xt=noise)
            blocks = trainer._target
        with torch.no_grad():
            target, aligned = reference(blocks)
        literal, parts = literal_reference(trainer, noise, condition, seen, align_at)
        assert aligned == parts
        assert torch.allclose(target, literal, atol=1e-5, rtol=1e-5)


def literal_reference(
    trainer: Any, noise: Tensor, condition: Any, student: Any, at: str
) -> tuple[Tensor, list[bool]]:
    plan, exits = trainer._salt.plan, student.exits
    ratios = [plan.reference_steps // plan.num_steps] * len(exits)
    lasts = [plan.reference_steps - 1] * len(exits)
    if plan.first_times is not None:
        ratios[0] = (len(plan.reference_first_times) - 1) // (len(plan.first_times) - 1)
        lasts[0] = len(plan.reference_first_times) - 2
    context = int(trainer.context_noise > 0)
    own, rest = [], list(student.noises)
    for exit_step in exits:
        own.append(rest[: exit_step + context])
        rest = rest[exit_step + context :]
    leaves = [e * r for e, r in zip(exits, ratios, strict=True)]
    takes_part = [at == "end" or leaf > e for leaf, e in zip(leaves, exits, strict=True)]
    leaves = lasts if at == "end" else leaves
    exit_inputs = [call["x"] for call in student.calls if call["grad"]]
    trainer._salt.plan = dataclasses.replace(
        plan,
        times=plan.reference_times,
        num_steps=plan.reference_steps,
        first_times=plan.reference_first_times,
    )

    def place(calls: int) -> tuple[int, int]:
        """The block and how many of its calls were made."""
        for block, leaf in enumerate(leaves):
            if calls <= leaf + 1:
                return block, calls
            calls -= leaf + 2
        return len(leaves), calls

    inputs: dict[int, Tensor] = {}

    def exchanged(_: Tensor) -> Tensor:
        block, reached = place(len(seen.calls))
        if reached > leaves[block]:
            return own[block][-1]
        ratio, call = ratios[block], seen.calls[-1]
        if reached % ratio == 0 and reached // ratio <= exits[block]:
            return own[block][reached // ratio - 1]
        t = call["t"] / 1000
        return (call["x"] - (1 - t) * call["x0"]) / t  # an Euler step

    class AtInput(list):
        def append(self, call: dict[str, Any]) -> None:
            super().append(call)
            block, reached = place(len(self))
            at_leaf = block < len(leaves) and reached == leaves[block] + 1
            if at == "input" and at_leaf and takes_part[block]:
                inputs[block] = call["again"](exit_inputs[block])

    with followed(leaves) as seen, trainer._planned(), torch.no_grad():
        seen.calls, seen.draw = AtInput(), exchanged
        output, *_ = trainer.run_back_simulation(condition, tuple(noise.shape), False, xt=noise)
    trainer._salt.plan = plan
    frames = [inputs.get(i, output[:, :, i : i + 1]) for i in range(len(exits))]
    return torch.cat(frames, dim=2), takes_part


@pytest.mark.parametrize("align_at", ["exit", "end"])
def test_the_matched_reference_of_a_bidirectional_rollout_is_a_literal_one(align_at, tmp_path):
    tried = set()
    for seed in range(6):
        trainer = fw.build("dmd", settings(0, 1, align_at=align_at), tmp_path, seed=seed)
        trainer._salt.begin(0)
        shape = trainer._latent_shape(fw.batch(seed))
        noise = trainer.sample_initial_latents(shape)
        condition, _ = trainer._encode_conditions(fw.batch(seed))
        calls = Calls(trainer)
        with trainer._planned():
            trainer.run_back_simulation(condition, shape, True, xt=noise)
        calls.end()
        target, aligned = trainer._target
        exit_step = [call["grad"] for call in calls.made].index(True)
        leaf = 7 if align_at == "end" else 2 * exit_step
        tried.add(exit_step)
        assert set(aligned) == {align_at == "end" or exit_step > 0}
        plan = trainer._salt.plan
        trainer._salt.plan = dataclasses.replace(
            plan, times=plan.reference_times, num_steps=plan.reference_steps
        )
        with mock.patch.object(trainer, "_sample_synced_int", lambda *_: leaf), trainer._planned():
            literal, *_ = trainer.run_back_simulation(condition, shape, False, xt=noise)
        assert torch.allclose(target, literal, atol=1e-5, rtol=1e-5)
    assert len(tried) > 2


def run(kind: str, salt: dict | None, folder: Path, **more: Any) -> str:
    """A whole run by the framework's `main`, by our launcher where it is ours; its log."""
    path = folder / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(fw.config(kind, salt, folder, **more)))
    if salt is None:
        from train import main
    else:
        from salt_losses.integrations.lightx2v.__main__ import main
    log = folder / "train" / "train.log"
    before = log.read_text() if log.exists() else ""
    torch.manual_seed(0)
    random.seed(0)
    with fw.main_on(path):
        main()
    return log.read_text()[len(before) :]


def saved(folder: Path, iteration: int, name: str = "model_state.pt") -> dict[str, Any]:
    path = folder / "train" / f"checkpoint-{iteration:09d}" / name
    return torch.load(path, weights_only=False)


SHORT = {
    "training__max_train_iters": 3,
    "training__save_every_iters": 3,
    "logging__train_log_every_iters": 1,
    "resume__auto_resume": False,
}


def test_a_whole_run_with_every_weight_0_ends_with_the_parents_networks(kind, tmp_path):
    """With the default config's own tricks, validation, logging and checkpoints."""
    ends = []
    for name, salt in (("theirs", None), ("ours", settings(0, 0))):
        more = {"training__gradient_accumulation_iters": 2, "data__train__batch_size": 2}
        log = run(kind, salt, tmp_path / name, **SHORT, **more)
        ends.append([saved(tmp_path / name, 3, f) for f in ("model_state.pt", FAKE)])
        losses = re.findall(r"iter=\d/3 (dmd=.*) lr", log)
        assert len(losses) == 3
        ends[-1].append(losses)
        videos = sorted(p.name for p in (tmp_path / name / "infer").glob("iter-*/*.mp4"))
        ends[-1].append(videos)
        assert videos
    (net, fake, losses, videos), (our_net, our_fake, our_losses, our_videos) = ends
    assert losses == our_losses
    assert videos == our_videos
    for a, b in ((net, our_net), (fake, our_fake)):
        assert all(torch.equal(a[name], b[name]) for name in a)


FAKE = "fake_model/model_state.pt"


def test_a_run_by_the_launcher_logs_salts_numbers_beside_the_frameworks(kind, tmp_path):
    from lightx2v_train.runtime.monitor import NoopMonitor

    noted: list[tuple[int, dict[str, float]]] = []
    with mock.patch.object(
        NoopMonitor, "log_metrics", lambda self, metrics, step=None: noted.append((step, metrics))
    ):
        log = run(kind, settings(1, 1, align_at="end"), tmp_path, **SHORT)
    terms = {"salt/num_steps", "salt/dmd_loss", "salt/sc_loss", "salt/align_loss"}
    assert [step for step, _ in noted] == [1, 2, 3]
    for _, metrics in noted:
        assert {"train/dmd", "train/fake", "train/lr"} < metrics.keys()
        assert {f"train/{name}" for name in terms} < metrics.keys()
        assert metrics["train/salt/dmd_loss"] == metrics["train/dmd"]
        assert metrics["train/salt/align_loss"] > 0
    assert any(metrics["train/salt/sc_loss"] > 0 for _, metrics in noted)
    lines = re.findall(r"iter=(\d) .*salt/num_steps=4 .*salt/sc_loss=", log)
    assert lines == ["1", "2", "3"]
    assert list((tmp_path / "infer").glob("iter-000000000/*.mp4"))


@contextlib.contextmanager
def seeded_stages() -> Iterator[None]:
    """The framework's checkpoints hold no random streams: each stage begins one of its own."""
    from lightx2v_train.trainers.dmd.video_trainer import VideoDmdTrainer as Parent

    stage_of = Parent._train_one_stage

    def seeded(self: Any, samples: Any, stage: str, grad_accum_iters: int) -> Any:
        torch.manual_seed(10 * self._iteration + len(stage))
        return stage_of(self, samples, stage, grad_accum_iters)

    with mock.patch.object(Parent, "_train_one_stage", seeded):
        yield


def test_a_run_resumed_from_the_frameworks_checkpoint_goes_on_as_if_it_had_not_stopped(
    kind, tmp_path
):
    salt = settings(1, 1, step_counts=[4, 8], probs=[0.5, 0.5], sc_steps=[4, 8], seed=1)
    more = {
        **SHORT,
        "training__save_every_iters": 2,
        "data__train__max_samples": 1,  # the data's order is not saved either
        "resume__auto_resume": True,
    }
    del more["training__max_train_iters"]
    with seeded_stages():
        whole = run(kind, salt, tmp_path / "whole", training__max_train_iters=6, **more)
        run(kind, salt, tmp_path / "parts", training__max_train_iters=2, **more)
        rest = run(kind, salt, tmp_path / "parts", training__max_train_iters=6, **more)

    def numbers(log: str) -> list[str]:
        return re.findall(r"iter=[3-6].*(?:salt/num_steps|dmd)=.*", log)

    assert len(numbers(whole)) == 8
    assert {"num_steps=4", "num_steps=8"} <= set(re.findall(r"num_steps=\d", rest))
    assert numbers(rest) == numbers(whole)
    for name in ("model_state.pt", FAKE):
        a, b = (saved(tmp_path / part, 6, name) for part in ("whole", "parts"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    state = saved(tmp_path / "parts", 6, "training_state.pt")
    assert state["salt"]["iteration"] == 6

    more["training__max_train_iters"] = 7
    with pytest.raises(ValueError, match=r"seed \(state: 1, here: 2\)"):
        run(kind, {**salt, "seed": 2}, tmp_path / "parts", **more)


def test_a_checkpoint_without_salt_is_resumed_with_a_warning(kind, tmp_path):
    more = {**SHORT, "resume__auto_resume": True, "training__save_every_iters": 1}
    run(kind, None, tmp_path, **{**more, "training__max_train_iters": 1})
    log = run(kind, settings(1, 0), tmp_path, **{**more, "training__max_train_iters": 2})
    assert "saved without Salt, which joins now" in log
    assert "iter=2/2" in log


def test_accumulated_gradients_are_the_mean_of_batches_with_plans_alike(kind, tmp_path):
    trainer = fw.build(kind, settings(1, 1, align_at="end"), tmp_path, seed=0)
    trainer.diversity_trick.enabled = False  # it has a loss of its own beside ours
    seen: list[dict[str, Tensor]] = []
    forward = trainer.forward_loss
    triples: list[Any] = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        seen.append({k: v.detach() for k, v in result.items()})
        return result

    with mock.patch.object(trainer, "forward_loss", noted), kept_triples() as triples:
        result = trainer._train_one_stage(iter([fw.batch(i, 2) for i in range(2)]), "student", 2)
    assert len(seen) == 2
    assert trainer._salt._at == (0, 1)
    for name in ("dmd", "salt/sc_loss", "salt/align_loss", "salt/num_steps"):
        mean = sum(float(numbers[name]) for numbers in seen) / 2
        assert result[name] == pytest.approx(mean)
        assert trainer._numbers.get(name, result[name]) == result[name]
    assert all(triple.t_s.shape == (2,) for triple in triples)


# Under DDP its own autoregressive trainer fails: it asks the wrapped network for `dim`, and DDP has
# one of its own, 0.
@pytest.mark.parametrize(("kind", "wrapping"), [("dmd", "ddp"), ("dmd", "fsdp"), ("ar", "fsdp")])
def test_two_ranks_follow_one_plan_and_keep_equal_parameters(kind, wrapping, tmp_path):
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    environment["MASTER_PORT"] = str(fw.free_port())
    worker = str(Path(__file__).parent / "lightx2v_worker.py")
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
    assert [s["train/salt/num_steps"] for s in first["steps"]] == [4.0, 8.0, 8.0, 8.0]
    assert first["steps"] == second["steps"]  # means over the ranks
    for term in ("train/salt/sc_loss", "train/salt/align_loss"):
        assert any(s.get(term, 0) > 0 for s in first["steps"])
    assert first["sums"] == second["sums"]
    assert {sharded for _, _, sharded in first["sums"].values()} == {wrapping == "fsdp"}


def test_bad_settings_are_refused(kind, tmp_path):
    def refused(pattern: str, salt: dict | None = None, **more: Any) -> None:
        with pytest.raises(ValueError, match=pattern):
            fw.build(kind, salt or {}, tmp_path, **more)

    refused("did you mean 'sc_weight'", {"sc_wieght": 1})
    refused("adv_weight must be 0.0 in LightX2V's Salt", {"adv_weight": 1.0})
    refused("num_train_timestep.*must be 1000", training__dmd__num_train_timestep=500)
    refused(
        "time_shift_power must be 1 with Salt",
        scheduler__time_shift_settings__time_shift_power=2.0,
    )
    refused("strictly decreasing and above 0", training__dmd__denoising_step_list=[1000, 500, 0])
    refused("too fine", {"step_counts": [2000], "sc_steps": []})
    refused("align_reference.4. needs lists that nest", settings(0, 1),
            training__dmd__denoising_step_list=[1000, 700, 500, 250])  # fmt: skip
    refused("index into the 3 blocks of fake_score", settings(0, 1, align_block=3))
    if kind == "dmd":
        refused("align_at must be one of 'exit', 'end'", settings(0, 1, align_at="input"))
        refused("first_chunk_steps must be None", {"first_chunk_steps": 8})
        refused("step_counts must be above 1 with div_loss", {"step_counts": [1, 2], "sc_steps": []})


def test_ranks_that_share_a_sample_are_refused(kind, tmp_path):
    from salt_losses.integrations.lightx2v import settings as ours

    with (
        mock.patch.object(ours, "get_sequence_parallel_world_size", lambda: 2),
        pytest.raises(ValueError, match="sequence_parallel.size must be 1 with Salt"),
    ):
        fw.build(kind, {}, tmp_path)


def test_another_version_of_the_parent_is_named_in_one_sentence(monkeypatch):
    from lightx2v_train.trainers.dmd.video_ar_trainer import VideoArDmdTrainer

    monkeypatch.delattr(VideoArDmdTrainer, "_forward_causal_chunk")
    for name in [n for n in sys.modules if n.startswith("salt_losses.integrations.lightx2v")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ImportError, match=r"has no _forward_causal_chunk.* known to work is lightx2v_train"
    ):
        import salt_losses.integrations.lightx2v  # noqa: F401


def test_another_train_py_than_the_frameworks_is_refused(monkeypatch, tmp_path):
    from salt_losses.integrations.lightx2v.__main__ import main

    (tmp_path / "train.py").write_text("")
    other = SimpleNamespace(__file__=str(tmp_path / "train.py"))
    monkeypatch.setitem(sys.modules, "train", other)
    with pytest.raises(SystemExit, match="must lie in"):
        main()


def test_the_example_has_the_frameworks_own_numbers_and_runs(tmp_path):
    path = Path(__file__).parents[2] / "examples" / "lightx2v" / "wan2_1_t2v_1_3b_ar_salt.yaml"
    ours, theirs = yaml.safe_load(path.read_text()), fw.own_config("ar")
    differ = []

    def compare(ours: Any, theirs: Any, name: str) -> None:
        if isinstance(ours, dict) and isinstance(theirs, dict):
            for key, value in ours.items():
                compare(value, theirs.get(key, "nothing"), f"{name}.{key}")
        elif ours != theirs:
            differ.append(name)

    compare(ours, theirs, "")
    assert differ == [
        ".training.method", ".training.dmd.salt", ".training.output_dir", ".model.student",
        ".inference.output_dir", ".inference.infer_every_iters",
    ]  # fmt: skip
    assert theirs["inference"]["infer_every_iters"] == "${training.save_every_iters}"
    del ours["model"]["student"]
    trainer = fw.build("ar", None, tmp_path, base=ours)
    assert trainer._salt.config.step_counts == (2, 4, 8)
    assert "salt/num_steps" in step(trainer)[0]
