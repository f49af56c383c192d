"""Salt in FastGen on every network class and task that it has a DMD2 or Self Forcing config for:
the calls stay as they are, and where a network writes its condition, that is no defect."""

from __future__ import annotations

import dataclasses
from typing import Any

import fastgen_networks as networks
import fastgen_real as fw
import pytest
import torch
from tools import merged
from torch import Tensor

from salt_losses.terms import Trace

pytestmark = pytest.mark.skipif(
    fw.checkout() is None, reason=f"set {fw.VARIABLE} to a checkout of FastGen to run this"
)
EVERY = {"step_counts": [4], "probs": [1.0], "sc": {"step_counts": [4]}, "inference_steps": 2}
ALIGNED = {"align": {"weight": 0.0, "reference": {4: 8}, "prob": 1.0, "warmup": 0, "margin": 0.0}}
CASES = [("dmd2", task) for task in networks.TASKS]
CASES += [("self_forcing", task) for task in networks.CAUSAL]
WRITTEN = [case for case in CASES if case[1] in networks.WRITES]


@pytest.fixture(autouse=True, scope="module")
def importable() -> None:
    fw.activate()


def settings(kind: str, weight: float, /, **more: Any) -> dict[str, Any]:
    aligned = merged(ALIGNED, {"align": {"weight": weight}}) if kind == "self_forcing" else {}
    return merged(EVERY, aligned, {"sc": {"weight": weight}}, more)


def step(model: Any, task: str, *, iteration: int = 2, seed: int = 0, size: int = 1) -> Any:
    """Losses, the rollout, gradients of all that trains, and the stream after an iteration."""
    losses, outputs = model.single_train_step(fw.batch(seed, size, task), iteration)
    losses["total_loss"].backward()
    nets = (model.net, model.fake_score)
    gradients = [p.grad for net in nets for p in net.parameters() if p.grad is not None]
    return losses, outputs["gen_rand_train"].detach(), gradients, torch.get_rng_state()


def same(theirs: Any, ours: Any) -> bool:
    pairs = [(theirs[1], ours[1]), (theirs[3], ours[3]), *zip(theirs[2], ours[2], strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_with_every_weight_0_student_and_critic_are_the_parents_bit_for_bit(kind, task, size):
    for iteration in (1, 2):
        theirs, ours = (
            step(fw.build(kind, salt, task=task), task, iteration=iteration, size=size)
            for salt in (None, settings(kind, 0))
        )
        assert same(theirs, ours)
        assert all(torch.equal(loss, ours[0][name]) for name, loss in theirs[0].items())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_with_vanishing_weights_rollout_and_gradients_are_the_parents(
    kind, task, size, checkpointing
):
    found = 0
    for seed in range(2):
        built = {"task": task, "checkpointing": checkpointing, "seed": seed}
        theirs, ours = (
            step(fw.build(kind, salt, **built), task, seed=seed, size=size)
            for salt in (None, settings(kind, 1e-38))
        )
        assert same(theirs, ours)
        assert torch.equal(theirs[0]["vsd_loss"], ours[0]["vsd_loss"])
        found += float(ours[0]["salt/sc_loss"]) > 0
    assert found


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_beside_the_discriminator_that_its_configs_have_nothing_else_changes(kind, task):
    from fastgen.utils import LazyCall

    gan = {"gan_loss_weight_gen": 0.03, "gan_use_same_t_noise": True, "fake_score_pred_type": "x0"}
    gan |= {"discriminator": LazyCall(networks.Discriminator)()}
    for weight in (0, 1e-38):
        for iteration in (1, 2):
            theirs, ours = (
                step(fw.build(kind, salt, task=task, **gan), task, iteration=iteration)
                for salt in (None, settings(kind, weight))
            )
            assert same(theirs, ours)
            parts = [loss[name] for loss, *_ in (theirs, ours) for name in loss if "gan" in name]
            assert parts
            assert any(float(part) != 0 for part in parts)


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("sample_type", ["sde", "ode"])
def test_a_causal_student_with_a_clean_frame_rolls_out_as_the_parents(chunk, sample_type):
    """A chunk that is the clean frame alone, and one that holds it."""
    built = {"task": "i2v_22", "net": {"chunk_size": chunk}, "student_sample_type": sample_type}
    for seed in range(3):
        theirs, ours = (
            step(fw.build("self_forcing", salt, seed=seed, **built), "i2v_22", seed=seed)
            for salt in (None, settings("self_forcing", 1e-38))
        )
        assert same(theirs, ours)


@pytest.mark.parametrize(("kind", "task"), WRITTEN)
def test_the_clean_frame_is_in_the_students_rollout(kind, task):
    _, rollout, *_ = step(fw.build(kind, settings(kind, 1), task=task), task)
    data = fw.batch(0, 1, task)
    first = data["first_frame_cond" if task == "i2v_22" else "conditioning_latents"]
    assert torch.equal(rollout[:, :, :1], first)


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize(("kind", "task"), WRITTEN)
def test_the_defect_is_a_literal_one_over_the_frames_that_are_not_written(
    kind, task, chunk, monkeypatch
):
    """The oracle asks for x0 as the rollout does, makes both endpoints and subtracts them."""
    from salt_losses.terms import self_consistency as term

    triples: list[Any] = []
    sampler = term.shortcut_triple_sampler
    monkeypatch.setattr(
        term,
        "shortcut_triple_sampler",
        lambda *a, **k: triples.append(sampler(*a, **k)) or triples[-1],
    )
    tried = 0
    for seed in range(4):
        net = {"chunk_size": chunk} if kind == "self_forcing" else None
        model = fw.build(kind, settings(kind, 1, align=None), task=task, net=net, seed=seed)
        triples.clear()  # those of the settings' check
        calls: list[Any] = []

        def noted(net: Any, args: Any, kwargs: Any, calls: Any = calls) -> None:
            if torch.is_grad_enabled() and not kwargs.get("store_kv"):
                calls.append((*args, kwargs, fw.cloned_caches(net)))

        hook = model.net.register_forward_pre_hook(noted, with_kwargs=True)
        losses, _ = model.single_train_step(fw.batch(seed, 2, task), 2)
        hook.remove()
        parameters = list(model.net.parameters())
        fast = losses["salt/sc_loss"]
        fast_gradient = torch.autograd.grad(
            losses["total_loss"] - losses["vsd_loss"], parameters, allow_unused=True
        )
        terms = []
        for triple in triples:
            x_s, _, call, caches = calls.pop(0)
            if not triple.feasible.any() and kind == "self_forcing":
                continue
            calls.pop(0)  # the fast one's
            first = 1 if kind == "dmd2" or call["cur_start_frame"] == 0 else 0
            if not triple.feasible.any() or first == x_s.shape[2]:
                continue

            def velocity(
                x: Tensor, t: Tensor, call: Any = call, caches: Any = caches, net: Any = model.net
            ) -> Tensor:
                fw.use_caches(net, caches)
                x0 = net(x.float(), t, **{**call, "fwd_pred_type": "x0"})
                return (x - x0.double()) / t[:, None, None, None, None]

            t_s, t_m, t_e = (t.double() for t in triple[:3])
            x_s, level = x_s.double(), lambda t: t[:, None, None, None, None]
            v_s = velocity(x_s, t_s)
            x_m = x_s - level(t_s - t_m) * v_s
            direct = x_s - level(t_s - t_e) * v_s
            composed = x_m - level(t_m - t_e) * velocity(x_m, t_m)
            squared = (direct - composed).square()
            assert first == 0 or squared[:, :, :first].max() < 1e-10
            terms.append(squared[triple.feasible][:, :, first:].mean())
        if not terms:
            assert fast == 0
            continue
        tried += 1
        slow = torch.stack(terms).mean()
        assert torch.allclose(fast.double(), slow, rtol=1e-4)
        slow_gradient = torch.autograd.grad(slow, parameters, allow_unused=True)
        pairs = [(a, b) for a, b in zip(fast_gradient, slow_gradient) if b is not None]
        scale = max(b.abs().max() for _, b in pairs)
        assert max((a - b).abs().max() for a, b in pairs) < 1e-4 * scale
    assert tried > 1


@pytest.mark.parametrize("task", ["i2v_22", "v2v"])
@pytest.mark.parametrize("sample_type", ["sde", "ode"])
def test_a_reference_on_the_students_own_list_is_the_students_rollout(task, sample_type):
    """With its noise and its steps, each call of the reference is one that the rollout made."""
    for seed in range(3):
        model = fw.build(
            "self_forcing", settings("self_forcing", 1), task=task, seed=seed,
            student_sample_type=sample_type, same_step_across_blocks=False,
        )  # fmt: skip
        model._salt.begin(2)
        data = fw.batch(seed, 2, task)
        _, condition, _ = model._prepare_training_data(data)
        x, t, *_ = model._generate_noise_and_time(data["real"])
        rollout = once_more(model, x, t, condition)
        assert torch.allclose(*rollout, atol=1e-5)


def once_more(model: Any, x: Tensor, t: Tensor, condition: Any) -> tuple[Tensor, Tensor]:
    """The student's rollout, and a reference with as many steps that leaves where it left."""
    from salt_losses.integrations import _reference
    from salt_losses.integrations.fastgen import rollout as ours
    from salt_losses.integrations.fastgen.prediction import Predictions

    salt = model._salt
    plan = salt.plan = dataclasses.replace(salt.plan, reference_times=salt.plan.times)
    trace = salt.watch(model._steps)
    with torch.no_grad(), model._rolling(), ours.NetTap(model.net, trace) as tap:
        output = super(type(model), model).gen_data_from_net(x, t, condition=condition)
    model.net.clear_caches()
    chunks = [chunk for chunk in tap.chunks if chunk.inputs]
    stochastic = model.config.student_sample_type == "sde"
    with torch.no_grad(), Predictions(model.net) as predictions:
        student = ours.ReferenceStudent(model.net, predictions, stochastic)
        again, _ = _reference.reference_rollout(
            salt, chunks, student, lambda t: model._steps(t)[:-1], frame_dim=2
        )
    assert plan.num_steps == 4
    return output, again.transpose(1, 2)


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_in_bfloat16_the_velocities_are_the_networks_own_and_rounded_once(kind, task, monkeypatch):
    """Those of an x0 in bfloat16 would be off by up to 0.004 |x0| / t."""
    made: list[Tensor] = []
    seen: list[tuple[Tensor, Any]] = []
    exit_step = Trace.exit_step

    def noted(self: Any, x: Tensor, v: Tensor, *args: Any, mask: Any, **more: Any) -> None:
        written = None if mask is None else mask.transpose(1, 2)
        seen.append((v.detach().transpose(1, 2), written))
        exit_step(self, x, v, *args, mask=mask, **more)

    monkeypatch.setattr(Trace, "exit_step", noted)
    model = fw.build(kind, settings(kind, 1), task=task, precision="bfloat16")
    convert = model.net.noise_scheduler.convert_model_output

    def raw(x: Tensor, output: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled():
            made.append(output.detach())
        return convert(x, output, *args, **kwargs)

    monkeypatch.setattr(model.net.noise_scheduler, "convert_model_output", raw)
    data = {name: value.bfloat16() for name, value in fw.batch(0, 2, task).items()}
    losses, _ = model.single_train_step(data, 2)
    assert torch.isfinite(losses["salt/sc_loss"])
    assert seen
    made = [output for output in made if output.dtype == torch.bfloat16]
    for v, mask in seen:
        own = [output for output in made if output.shape == v.shape]
        kept = torch.ones_like(v, dtype=torch.bool) if mask is None else mask
        assert any(torch.equal(output[kept].float(), v[kept].float()) for output in own)


def test_a_network_of_another_schedule_is_refused(monkeypatch):
    monkeypatch.setattr(networks, "network", edm(networks.network))
    with pytest.raises(ValueError, match=r"net\.schedule_type must be 'rf'"):
        fw.build("dmd2", {})


def edm(network: Any) -> Any:
    def built(**kwargs: Any) -> Any:
        net = network(**kwargs)
        net.schedule_type = "edm"
        return net

    return built
