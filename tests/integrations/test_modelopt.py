"""Salt in NVIDIA Model-Optimizer, on its real pipeline where `nvidia-modelopt` is installed."""

from __future__ import annotations

import copy
import gc
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from modelopt_real import SHAPE, T_LIST, Toy, batch, build, wan
from torch import Tensor, nn
from torch.optim import optimizer

from salt_losses import add_noise

fastgen = pytest.importorskip("modelopt.torch.fastgen", reason="nvidia-modelopt is not installed")

from salt_losses.integrations.modelopt import SaltDMDPipeline  # noqa: E402
from salt_losses.terms import Term  # noqa: E402
from salt_losses.terms import self_consistency as term  # noqa: E402

KINDS = ("flow", "v", "x0", "eps")


def student_step(pipeline: Any, seed: int = 0) -> tuple[dict[str, Tensor], list[Tensor], Tensor]:
    """Losses, the student's gradients, and where the global stream is then."""
    losses = pipeline.compute_student_loss(*batch(seed))
    losses["total"].backward()
    return losses, [p.grad for p in pipeline.student.parameters()], torch.get_rng_state()


def student_update(pipeline: Any, seed: int = 0, micro_batches: int = 1) -> list[dict[str, Tensor]]:
    """The losses of its micro-batches, and a step of the student's optimizer."""
    losses = [student_step(pipeline, 10 * seed + i)[0] for i in range(micro_batches)]
    torch.optim.SGD(pipeline.student.parameters(), 1e-3).step()
    return losses


def equal(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Calls:
    """Keeps the student's calls: its arguments, its output, whether it had gradient."""

    def __init__(self, pipeline: Any) -> None:
        self.made: list[tuple[dict[str, Any], Any, bool]] = []
        pipeline.student.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, net: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self.made.append((kwargs, output, torch.is_grad_enabled()))


class Look(Term):
    name = "look"

    def loss(self, rollout: Any) -> Tensor:
        self.real_x0 = rollout.real_x0
        return rollout.video.mean()


def test_the_teachers_prediction_is_guided_at_the_scale_of_the_call():
    seen = []
    for scale in (1.0, None, 3.0):  # None: the config's
        look = Look()
        pipeline = build({"sc": None, "terms": [look]}, network=wan, guidance_scale=2.0)
        latents, noise, text = batch(0)
        pipeline.compute_student_loss(
            latents, noise, text, negative_encoder_hidden_states=-text, guidance_scale=scale
        )
        seen.append(look.real_x0)
    assert not torch.equal(seen[0], seen[1])
    torch.testing.assert_close(seen[2] - seen[1], seen[1] - seen[0])


def test_images_are_videos_of_one_frame_to_terms():
    from salt_losses.integrations.modelopt import _back, _flip

    for shape, ours in (((2, 3, 5, 4, 4), (2, 5, 3, 4, 4)), ((2, 3, 4, 4), (2, 1, 3, 4, 4))):
        x = torch.randn(shape)
        assert _flip(x).shape == ours
        assert torch.equal(_back(_flip(x), x), x)


def test_the_terms_call_has_the_students_dtype():
    pipeline = build({"sc": {"weight": 1.0}})
    for network in (pipeline.student, pipeline.teacher, pipeline.fake_score):
        network.bfloat16()
    calls = Calls(pipeline)
    latents, noise, *rest = batch(0)
    pipeline.compute_student_loss(latents.bfloat16(), noise.bfloat16(), *rest)
    given = [kwargs["hidden_states"].dtype for kwargs, _, grad in calls.made if grad]
    assert given == [torch.bfloat16] * 2


SETTINGS = [
    {},
    {"pred_type": "x0"},
    {"pred_type": "eps"},
    {"backward_simulation": True, "student_sample_type": "sde"},
    {"gan_loss_weight_gen": 0.03},
    {"student_sample_steps": 1},
]


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_at_weight_0_all_losses_gradients_and_streams_are_theirs_bit_for_bit(config):
    for seed in range(3):
        theirs, ours = (build(salt, seed=seed, **config) for salt in (None, {"sc": None}))
        a, b = student_step(theirs, seed), student_step(ours, seed)
        assert a[0].keys() == b[0].keys()
        assert equal([*a[0].values(), *a[1], a[2]], [*b[0].values(), *b[1], b[2]])
        updates = ["compute_fake_score_loss"]
        if config.get("gan_loss_weight_gen"):
            updates.append("compute_discriminator_loss")
        for update in updates:
            their_losses = getattr(theirs, update)(*batch(seed))
            our_losses = getattr(ours, update)(*batch(seed))
            assert equal([*their_losses.values()], [*our_losses.values()])


@pytest.mark.parametrize(
    "network", [Toy, lambda: Toy(dropout=0.3), wan], ids=["toy", "drop", "wan"]
)
@pytest.mark.parametrize("simulate", [False, True])
def test_at_a_vanishing_weight_the_gradients_and_streams_are_theirs(network, simulate):
    for seed in range(3):
        more = {"seed": seed, "network": network, "backward_simulation": simulate}
        a = student_step(build(None, **more), seed)
        b = student_step(build({"sc": {"weight": 1e-38}}, **more), seed)
        assert simulate or b[0]["sc"] > 0  # a simulation may leave where no triple is
        assert equal([a[0]["total"], *a[1], a[2]], [b[0]["total"], *b[1], b[2]])


@pytest.mark.parametrize("network", [Toy, wan])
@pytest.mark.parametrize("simulate", [False, True])
def test_the_term_costs_one_call_of_the_student_and_none_at_weight_0(network, simulate):
    for seed in range(3):
        made = []
        for salt in (None, {"sc": None}, {"sc": {"weight": 1.0}}):
            more = {"seed": seed, "network": network, "backward_simulation": simulate}
            pipeline = build(salt, **more)
            calls = Calls(pipeline)
            student_step(pipeline, seed)
            made.append((len(calls.made), sum(grad for *_, grad in calls.made)))
        assert made[0] == made[1]
        assert made[2] == (made[0][0] + 1, 2)


def literal(pipeline: Any, calls: Calls, triple: Any) -> Tensor:
    """eq. 6-8, sample by sample, with endpoints that are made and subtracted."""
    (made, _, grad), *_ = (call for call in calls.made if call[2])
    assert grad
    kind, scale = pipeline.config.pred_type, pipeline.config.num_train_timesteps or 1
    terms = []
    for i in range(SHAPE[0]):
        if not triple.feasible[i]:
            continue
        t_s, t_m, t_e = (float(u[i]) for u in triple[:3])

        def velocity(x: Tensor, t: float, i: int = i) -> Tensor:
            out = pipeline.student(
                hidden_states=x,
                timestep=torch.tensor([scale * t]).to(made["timestep"]),
                encoder_hidden_states=made["encoder_hidden_states"][i : i + 1],
            )
            out = out if isinstance(out, Tensor) else out[0]
            if kind == "x0":
                return (x - out) / t
            if kind == "eps":
                return (out - x) / (1 - t)
            return out

        x_s = made["hidden_states"][i : i + 1].detach()
        v_s = velocity(x_s, t_s)
        x_m = x_s - (t_s - t_m) * v_s
        direct, composed = x_s - (t_s - t_e) * v_s, x_m - (t_m - t_e) * velocity(x_m, t_m)
        terms.append((direct - composed).square().mean())
    return torch.stack(terms).mean()


@pytest.fixture
def triples(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    drawn: list[Any] = []
    sampler = term.shortcut_triple_sampler

    def kept(*args: Any, **kwargs: Any) -> Any:
        drawn.append(sampler(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(term, "shortcut_triple_sampler", kept)
    return drawn


@pytest.mark.parametrize("network", [Toy, wan])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("simulate", [False, True])
def test_the_terms_gradient_is_that_of_a_slow_literal_computation(network, kind, simulate, triples):
    tried = 0
    for seed in range(2):
        pipeline = build(
            {"sc": {"weight": 0.7}},
            seed=seed,
            network=network,
            dtype=torch.float64,
            pred_type=kind,
            backward_simulation=simulate,
        )
        calls = Calls(pipeline)
        losses = pipeline.compute_student_loss(*batch(seed, torch.float64))
        parts = losses["vsd"] + 0.7 * losses["sc"]
        assert torch.allclose(losses["total"], parts, rtol=1e-12)
        assert torch.allclose(losses["salt"], 0.7 * losses["sc"], rtol=1e-12)
        triple = triples.pop()
        if not triple.feasible.any():
            assert losses["sc"] == 0
            continue
        tried += 1
        slow = literal(pipeline, calls, triple)
        assert torch.allclose(losses["sc"], slow, rtol=1e-5)
        parameters = list(pipeline.student.parameters())
        a, b = (
            torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            for term in (losses["total"] - losses["vsd"], 0.7 * slow)
        )
        pairs = [(x, y) for x, y in zip(a, b, strict=True) if y is not None]
        scale = max(y.abs().max() for _, y in pairs)
        assert scale > 0
        assert max((x - y).abs().max() for x, y in pairs) < 1e-5 * scale
    assert tried


def test_middle_times_are_from_their_list_and_ends_from_every_second_of_it(triples):
    pipeline = build({"sc": {"weight": 1.0}, "inference_steps": 2})
    triples.clear()  # those of the settings' check
    for seed in range(20):
        student_step(pipeline, seed)
    drawn = [torch.cat([t[i][t.feasible] for t in triples]) for i in range(3)]
    t_s, t_m, t_e = ({round(t, 6) for t in column.tolist()} for column in drawn)
    assert t_s == {0.98, 0.9, 0.8}  # between 0.6 and 0 there is nothing
    assert t_m == {0.9, 0.8, 0.6}
    assert t_e == {0.8, 0.0}


def test_beside_a_discriminator_the_total_has_all_three_parts():
    losses, *_ = student_step(build({"sc": {"weight": 2.0}}, gan_loss_weight_gen=0.03))
    total = losses["vsd"] + 0.03 * losses["gan_gen"] + 2.0 * losses["sc"]
    assert torch.allclose(losses["total"], total)
    assert losses["sc"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_the_networks_outputs_are_rounded_and_nothing_after_them(kind, triples):
    pipeline = build({"sc": {"weight": 1.0}}, dtype=torch.bfloat16, pred_type=kind)
    calls = Calls(pipeline)
    sc = pipeline.compute_student_loss(*batch(1, torch.bfloat16))["sc"].detach()

    def velocity(made: dict[str, Any], out: Tensor) -> Tensor:
        x, out = made["hidden_states"].double(), out.double()
        t = made["timestep"].double()[:, None, None, None, None]
        if kind == "x0":
            return (x - out) / t
        return (out - x) / (1 - t) if kind == "eps" else out

    (at_s, out_s, _), (at_m, out_m, _) = calls.made
    assert at_s["hidden_states"].dtype == at_m["hidden_states"].dtype == torch.bfloat16
    gap = (velocity(at_m, out_m) - velocity(at_s, out_s)).square().flatten(1).mean(1)
    _, t_m, t_e, feasible = triples.pop()
    slow = (gap * (t_m - t_e) ** 2)[feasible].mean()
    assert sc.dtype == torch.float32
    assert torch.allclose(sc.double(), slow, rtol=1e-4)


def test_without_gradient_the_losses_are_theirs_and_no_update_is_counted():
    pipeline = build({"sc": {"weight": 1.0}})
    with torch.no_grad():
        assert set(pipeline.compute_student_loss(*batch(0))) == {"vsd", "total"}
    assert pipeline.state_dict()["iteration"] == 0


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
def test_a_warm_up_counts_the_students_updates_and_not_micro_batches(micro_batches):
    pipeline = build({"sc": {"weight": 1.0, "warmup": 2}})
    critic = torch.optim.SGD(pipeline.fake_score.parameters(), 1e-3)
    found = []
    for seed in range(4):
        found.append(["sc" in losses for losses in student_update(pipeline, seed, micro_batches)])
        for _ in range(2):  # updates of another network, and a second step without a loss
            pipeline.compute_fake_score_loss(*batch(seed))["total"].backward()
            critic.step()
            torch.optim.SGD(pipeline.student.parameters(), 0.0).step()
    assert found == [[on] * micro_batches for on in (False, False, True, True)]
    assert pipeline.state_dict()["iteration"] == 4


def test_micro_batches_of_one_update_draw_triples_of_their_own(triples):
    pipeline = build({"sc": {"weight": 1.0}})
    for _ in range(2):
        student_update(pipeline, micro_batches=8)
    drawn = [tuple(triple.t_m.tolist()) for triple in triples]
    assert len(set(drawn[:8])) > 1
    assert drawn[:8] != drawn[8:]


def test_updates_are_counted_at_weight_0_too():
    pipeline = build({"sc": None})
    for seed in range(3):
        student_update(pipeline, seed, 2)
    assert pipeline.state_dict()["iteration"] == 3


def test_a_student_that_no_optimizer_of_pytorchs_updates_is_said(monkeypatch):
    monkeypatch.setattr("salt_losses.integrations.modelopt.MANY_CALLS", 3)
    pipeline = build({"sc": {"weight": 1.0, "warmup": 1}})
    for seed in range(2):
        student_step(pipeline, seed)
    with pytest.warns(UserWarning, match="3 calls of compute_student_loss, and no torch.optim"):
        student_step(pipeline)
    monkeypatch.setattr("salt_losses.integrations.modelopt.MANY_CALLS", 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(9):
            student_update(pipeline, seed, 2)


def test_a_pipeline_that_is_gone_watches_no_optimizer():
    hooks = optimizer._global_optimizer_post_hooks
    gc.collect()
    before = len(hooks)
    pipeline = build({"sc": {"weight": 1.0}})
    assert len(hooks) == before + 1
    del pipeline
    gc.collect()
    assert len(hooks) == before


def test_a_resumed_run_draws_the_triples_that_it_would_have_drawn(triples):
    whole = build({"sc": {"weight": 1.0}})
    triples.clear()  # those of the settings' check
    for seed in range(4):
        student_update(whole, seed, 2)
    drawn = list(triples)
    first = build({"sc": {"weight": 1.0}})
    for seed in range(2):
        student_update(first, seed, 2)
    resumed = build({"sc": {"weight": 1.0}})
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    triples.clear()
    for seed in range(2, 4):
        student_update(resumed, seed, 2)
    assert equal([t.t_m for t in drawn[4:]], [t.t_m for t in triples])
    assert not equal([t.t_m for t in drawn[:4]], [t.t_m for t in triples])
    with pytest.raises(ValueError, match=r"seed \(state: 0, here: 1\)"):
        build({"sc": {"weight": 1.0}, "seed": 1}).load_state_dict(first.state_dict())


def test_other_settings_after_a_resume_are_taken_and_named():
    state = build({"sc": {"weight": 1.0}}).state_dict()
    other = build({"sc": {"weight": 30.0, "stop_grad": "direct"}})
    with pytest.warns(
        UserWarning, match="other settings .*: sc.weight 1 -> 30, sc.stop_grad None -> 'direct'$"
    ):
        other.load_state_dict(state)


class Packed(nn.Module):
    """The call of Qwen-Image's transformer: packed tokens, and a guidance that matters."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, hidden_states: Tensor, guidance: Tensor | None = None, **_: Any) -> Tensor:
        out = torch.tanh(self.mix(hidden_states))
        return out if guidance is None else out * guidance[:, None, None].to(out)


def qwen(salt: dict[str, Any] | None, **more: Any) -> Any:
    """A pipeline of Qwen-Image's plug-in, ours unless `salt` is None."""
    from modelopt.torch.fastgen.plugins.qwen_image import QwenImageDMDPipeline

    class SaltQwen(SaltDMDPipeline, QwenImageDMDPipeline):
        pass

    torch.manual_seed(0)
    times = {"t_list": T_LIST, "time_dist_type": "uniform"}
    config = fastgen.DMDConfig(pred_type="flow", student_sample_steps=4, sample_t_cfg=times)
    roles = (Packed(), Packed(), Packed(), config)
    if salt is None:
        return QwenImageDMDPipeline(*roles, **more)
    return SaltQwen(*roles, salt=salt, **more)


def test_their_plugins_pipeline_comes_second_with_its_own_arguments():
    latents, noise, text = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.randn(3, 5, 16)
    for more in ({}, {"guidance": 2.5}):
        pipeline = qwen({"sc": {"weight": 1.0}}, **more)
        calls = Calls(pipeline)
        losses = pipeline.compute_student_loss(latents, noise, text)
        losses["total"].backward()
        assert losses["sc"] > 0
        assert len(calls.made) == 2
        for kwargs, *_ in calls.made:
            seen = kwargs["guidance"]
            assert (seen is None) if not more else torch.all(seen == 2.5)
        theirs = qwen(None, **more)
        torch.manual_seed(1)
        vsd = theirs.compute_student_loss(latents, noise, text)["vsd"]
        ours = qwen({"sc": {"weight": 1.0}}, **more)
        torch.manual_seed(1)
        assert torch.equal(ours.compute_student_loss(latents, noise, text)["vsd"], vsd)


def test_an_argument_that_nobody_takes_is_theirs_to_refuse():
    roles = (Toy(), Toy(), Toy(), fastgen.DMDConfig())
    with pytest.raises(TypeError, match="guidance"):
        SaltDMDPipeline(*roles, salt={"sc": None}, guidance=1.0)


def test_a_term_that_counts_for_nothing_is_said_where_the_pipeline_is_made():
    times = {"t_list": [1.0, 0.5, 0.0]}
    settings = {"student_sample_steps": 2, "sample_t_cfg": times}
    with pytest.warns(UserWarning, match="sc.time_weight 'clean' leaves out the level 1"):
        build({"sc": {"weight": 1.0, "time_weight": "clean"}}, **settings)


BAD = {
    "one step": ({}, {"student_sample_steps": 1}, "student_sample_steps must be at least 2"),
    "no list": ({}, {"sample_t_cfg": {}}, "t_list must be the list"),
    "eps at 1": (
        {},
        {"pred_type": "eps", "sample_t_cfg": {"t_list": [1.0, 0.5, 0.0]}},
        "must begin below 1 where pred_type is 'eps'",
    ),
    "a typing error": ({"sc_wieght": 1}, {}, "unknown setting 'sc_wieght'"),
    "mixed steps": (
        {"step_counts": [2, 4], "probs": [0.5, 0.5]},
        {},
        "mixed steps are not supported there",
    ),
    "an alignment": (
        {"align": {"weight": 0.1}},
        {},
        "align needs .* which Model-Optimizer does not offer",
    ),
    "a shift": ({"shift": 5.0}, {}, "shift must be null in Model-Optimizer"),
    "a coarse grid": ({"inference_steps": 3}, {}, "inference_steps must divide"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused(case):
    salt, config, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        build(salt, **config)


@pytest.mark.parametrize("steps", [2, 3, 4, 6, 8])
def test_a_list_of_any_length_has_a_grid_of_ends(steps):
    times = {"t_list": [0.99 * (1 - i / steps) for i in range(steps)] + [0.0]}
    pipeline = build({"sc": {"weight": 1.0}}, student_sample_steps=steps, sample_t_cfg=times)
    assert any(student_step(pipeline, seed)[0]["sc"] > 0 for seed in range(5))


def test_another_version_of_theirs_is_named_in_one_sentence(monkeypatch):
    monkeypatch.delattr(fastgen.DMDPipeline, "_call_model")
    monkeypatch.delitem(sys.modules, "salt_losses.integrations.modelopt")
    with pytest.raises(
        ImportError, match=r"has no _call_model\(.*known to work is nvidia-modelopt"
    ):
        import salt_losses.integrations.modelopt  # noqa: F401


def test_without_theirs_the_import_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelopt.torch.fastgen", None)
    monkeypatch.delitem(sys.modules, "salt_losses.integrations.modelopt")
    with pytest.raises(ImportError, match="cannot import what Salt extends in Model-Optimizer"):
        import salt_losses.integrations.modelopt  # noqa: F401


def test_the_student_learns_to_compose_where_the_term_is_all_that_moves_it():
    """The defect falls over some updates: the gradient points the right way."""
    pipeline = build({"sc": {"weight": 1.0}})
    optimizer = torch.optim.Adam(pipeline.student.parameters(), lr=1e-2)
    values = []
    for seed in range(40):
        optimizer.zero_grad()
        losses = pipeline.compute_student_loss(*batch(seed % 4))
        (losses["total"] - losses["vsd"]).backward()
        optimizer.step()
        values.append(float(losses["sc"].detach()))
    assert sum(values[-8:]) < 0.5 * sum(values[:8])


def test_the_state_where_the_term_is_made_is_theirs():
    """`x_s` of the extra call's base is data noised to the drawn level, as their step has it."""
    pipeline = build({"sc": {"weight": 1.0}})
    calls = Calls(pipeline)
    latents, noise, text = batch(0)
    pipeline.compute_student_loss(latents, noise, text)
    at_s = calls.made[0][0]
    x_s = add_noise(latents, noise, at_s["timestep"])
    assert torch.allclose(at_s["hidden_states"], x_s, atol=1e-6)


def test_the_example_of_the_docs_runs_as_it_stands():
    text = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()
    section = text[text.index("## Model-Optimizer") :]
    latents, noise, words = batch(0)
    names = {"latents": latents, "noise": noise, "text": words, "negative_text": words}
    names |= {"student": wan(), "teacher": wan(), "fake_score": wan()}
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0], names)
    assert names["losses"].keys() == {"vsd", "sc", "salt", "total"}
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in names["student"].parameters())
