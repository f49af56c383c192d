from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from examples.wan import tiny
from examples.wan.config import Config
from examples.wan.roles import TRAINED, Condition, Roles, add_loras

SETTINGS = {"model": "", "data": "", "out": "", "lora_rank": 2, "weights": "float32"}


def make(**settings) -> Roles:
    torch.manual_seed(0)
    base = tiny.make_transformer().requires_grad_(False).eval()
    roles = Roles(base, Config(**SETTINGS | settings))
    for role in TRAINED:  # LoRAs begin as zeros: as if trained, and each differently
        for parameter in roles.trained(role).values():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return roles


def inputs() -> tuple[torch.Tensor, torch.Tensor, Condition]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 2, 4, 6, generator=generator)
    return x, torch.tensor([1.0, 0.5]), Condition(torch.randn(2, 7, 16, generator=generator))


def gradients(roles: Roles, role: str) -> list[torch.Tensor | None]:
    return [p.grad for p in roles.trained(role).values()]


def call(base, x, t, condition):
    return base(x, 1000 * t, condition.text, return_dict=False)[0]


def test_the_trap_another_role_before_backward_leaves_the_student_without_a_gradient():
    base = make(gradient_checkpointing=False).network("student")
    base.enable_adapters()
    base.set_adapter("student")
    loss = call(base, *inputs()).square().mean()
    base.set_adapter("fake_score")  # as the critic's forward needs it
    loss.backward()  # no error
    named = {n: p for n, p in base.named_parameters() if ".student." in n}
    assert named
    assert all(p.grad is None for p in named.values())


def test_the_trap_under_checkpointing_backward_recomputes_the_wrong_role():
    def student_gradients(role_in_backward: str) -> list[torch.Tensor]:
        base = make(gradient_checkpointing=True).network("student")
        base.enable_adapters()
        base.set_adapter("student")
        loss = call(base, *inputs()).square().mean()
        base.set_adapter(role_in_backward)
        for name, parameter in base.named_parameters():  # flags alone do not mend it
            parameter.requires_grad_("lora_" in name)
        loss.backward()
        return [p.grad for n, p in base.named_parameters() if ".student." in n]

    right, wrong = student_gradients("student"), student_gradients("fake_score")  # no error
    assert any(w is not None for w in wrong)
    assert not any(torch.equal(r, w) for r, w in zip(right, wrong, strict=True) if w is not None)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_roles_used_between_forward_and_backward_change_no_gradient(checkpointing):
    expected, got = (make(gradient_checkpointing=checkpointing) for _ in range(2))
    x, t, condition = inputs()
    with expected.enter("student"):
        expected("student", x, t, condition).square().mean().backward()
    with got.enter("student"):
        velocity = got("student", x, t, condition)
        with torch.no_grad():
            others = got("fake_score", x, t, condition), got("teacher", x, t, condition)
        velocity.square().mean().backward()
    assert not torch.equal(*others)
    assert all(g is not None and g.any() for g in gradients(got, "student"))
    for a, b in zip(gradients(expected, "student"), gradients(got, "student"), strict=True):
        assert torch.equal(a, b)
    assert all(g is None for g in gradients(got, "fake_score"))


@pytest.mark.parametrize("roles_are", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_backward_in_the_wrong_role_raises(roles_are, checkpointing):
    roles = make(roles=roles_are, gradient_checkpointing=checkpointing)
    x, t, condition = inputs()
    with roles.enter("student"):
        loss = roles("student", x, t, condition).square().mean()
    with pytest.raises(RuntimeError, match="backward through 'student' while 'teacher' is on"):
        loss.backward()
    with roles.enter("fake_score"), pytest.raises(RuntimeError, match="'fake_score' is on"):
        roles("student", x, t, condition).square().mean().backward()
    assert all(g is None for g in gradients(roles, "student"))


def test_no_flag_stays_flipped_whichever_role_is_on():
    """diffusers' EMAModel, for one, copies what has no gradient in place of averaging it."""
    roles = make()
    for role in ("student", "teacher", "fake_score", "teacher"):
        with roles.enter(role):
            assert all(p.requires_grad for r in TRAINED for p in roles.trained(r).values())
    assert all(p.requires_grad for r in TRAINED for p in roles.trained(r).values())


def test_each_role_of_one_base_is_what_its_own_copy_would_be():
    roles = make()
    x, t, condition = inputs()
    teacher = copy.deepcopy(tiny.make_transformer())
    with torch.no_grad():
        torch.manual_seed(0)
        teacher = tiny.make_transformer().eval()
        assert torch.equal(roles("teacher", x, t, condition), call(teacher, x, t, condition))
        outputs = {role: roles(role, x, t, condition) for role in TRAINED}
        for role, output in outputs.items():
            # The LoRA's update written out: W + alpha / rank * B A, on a plain transformer.
            merged = copy.deepcopy(teacher)
            weights = {n.removesuffix(".weight"): p for n, p in roles.trained(role).items()}
            for name in {n.rsplit(".lora_", 1)[0] for n in weights}:
                low, high = weights[f"{name}.lora_A"], weights[f"{name}.lora_B"]
                merged.get_submodule(name).weight += 64 / 2 * high @ low
            assert torch.allclose(output, call(merged, x, t, condition), atol=1e-4)
    assert not torch.allclose(*outputs.values(), atol=1e-2)


def test_the_role_from_before_is_on_again_even_after_an_error():
    roles = make()
    with pytest.raises(ZeroDivisionError), roles.enter("student"), roles.enter("fake_score"):
        1 / 0  # noqa: B018
    assert roles.active == "teacher"
    with pytest.raises(ValueError, match="role must be one of"), roles.enter("critic"):
        pass


def test_an_adapter_name_that_is_taken_is_an_error_and_adds_nothing():
    roles = make()
    base = roles.network("teacher")
    before = [n for n, _ in base.named_parameters()]
    with pytest.raises(ValueError, match="adapter named 'fake_score' already"):
        add_loras(base, Config(**SETTINGS))
    assert [n for n, _ in base.named_parameters()] == before


def test_a_lora_target_that_the_model_does_not_have_is_an_error():
    """peft leaves it out as long as it finds one of the others."""
    for target in ("to_qq", "q", "blocks"):
        with pytest.raises(ValueError, match=f"lora_targets must name linear layers .* '{target}'"):
            make(lora_targets=("to_q", target))
    assert len(make(lora_targets=("to_q", "blocks.0.ffn.net.2")).trained("student")) == 2 * 5


def test_the_global_random_stream_stays_where_it_was():
    base = tiny.make_transformer()
    before = torch.get_rng_state()
    Roles(base, Config(**SETTINGS))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_condition_of_image_to_video_reaches_the_network_untouched():
    roles = make()
    roles = Roles(tiny.make_transformer("i2v").requires_grad_(False), Config(**SETTINGS))
    seen = {}
    roles.network("student").register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    x, condition = torch.randn(1, 16, 2, 4, 6), torch.randn(1, 20, 2, 4, 6)
    image = torch.randn(1, 5, tiny.IMAGE_DIM)
    roles("student", x, torch.ones(1), Condition(torch.randn(1, 7, 16), condition, image))
    assert seen["hidden_states"].shape[1] == 36
    assert torch.equal(seen["hidden_states"][:, :16], x)
    assert torch.equal(seen["hidden_states"][:, 16:], condition)
    assert torch.equal(seen["encoder_hidden_states_image"], image)
