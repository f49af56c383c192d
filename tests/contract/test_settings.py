"""Every setting of a term changes a run or is refused; what a term does wrong is named."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import pytest
import subjects
import torch
from cases import config
from torch import Tensor

from examples.own_term.extrapolated import Extrapolated
from examples.own_term.moments import Moments
from salt_losses import SaltConfig
from salt_losses.adapters import self_forcing
from salt_losses.errors import SettingError
from salt_losses.terms import Adversarial, Alignment, Rollout, SelfConsistency, Term
from salt_losses.terms.base import OFFERS, check_needs

OF_ALL = {"weight": 0.7, "warmup": 2, "step_counts": (2,)}
OTHERS: dict[type[Term], dict[str, Any]] = {
    SelfConsistency: OF_ALL | {"stop_grad": "direct", "time_weight": "clean", "nearest": 1},
    Alignment: OF_ALL
    | {
        "step_counts": SettingError,
        "reference": {2: 8},
        "prob": 0.0,
        "margin": 0.01,
        "to": "exit",
        "reference_noise": "shared",
        "features": "real_score",
        "block": 1,
        "noise_range": (0.5, 0.6),
    },
    Adversarial: OF_ALL
    | {
        "against": "more_steps",
        "kind": "hinge",
        "features": "real_score",
        "blocks": (0,),
        "noise_range": (0.5, 0.6),
        "lr": 0.1,
    },
    Moments: OF_ALL,
    Extrapolated: OF_ALL,
}
BASE = {
    SelfConsistency: SelfConsistency(1.0, step_counts=(4,)),
    Alignment: Alignment(
        1.0, warmup=0, reference={2: 4, 4: 8}, prob=1.0, margin=0.0, to="end",
        reference_noise="own", block=0,
    ),
    Adversarial: Adversarial(1.0, lr=1e-3),
    Moments: Moments(),
    Extrapolated: Extrapolated(),
}  # fmt: skip


def run(term: Term) -> list[float]:
    """All that is logged in some iterations of two and four steps."""
    trainer = subjects.tiny.build_trainer(dfake_gen_update_ratio=1, real_videos=True)
    block = next((name for name in ("sc", "align", "adv") if term.name == name), "terms")
    base = {"sc": None, block: (term,) if block == "terms" else term}
    salt = SaltConfig(step_counts=(2, 4), probs=(0.5, 0.5), inference_steps=2, **base)
    numbers: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with self_forcing.attached(trainer, salt) as handle:
            handle.on_metrics(lambda metrics: numbers.extend(metrics.values()))
            for step in range(3):
                torch.manual_seed(step)
                trainer.train(step + 1)
    return [*numbers, float(next(trainer.model.generator.parameters()).sum())]


@functools.cache
def base_run(kind: type[Term]) -> list[float]:
    return run(BASE[kind])


@pytest.mark.parametrize(
    ("kind", "setting"), [(kind, name) for kind, others in OTHERS.items() for name in others]
)
def test_a_setting_changes_the_run_or_is_refused(kind: type[Term], setting: str) -> None:
    other = OTHERS[kind][setting]
    if other is SettingError:
        with pytest.raises(SettingError, match=f"{BASE[kind].name}.{setting}"):
            dataclasses.replace(BASE[kind], **{setting: (2,)})
        return
    assert run(dataclasses.replace(BASE[kind], **{setting: other})) != base_run(kind)


@pytest.mark.parametrize("kind", list(OTHERS))
def test_the_table_above_has_every_setting(kind: type[Term]) -> None:
    assert set(OTHERS[kind]) == {field.name for field in dataclasses.fields(kind) if field.init}


# What a term may do wrong.


class Returns(Term):
    name = "returns"

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def loss(self, rollout: Rollout) -> Any:
        return self.value


@pytest.mark.parametrize("value", [None, 1.0, torch.zeros(2), torch.zeros((), dtype=torch.long)])
def test_a_term_that_returns_no_scalar_is_named(value: Any) -> None:
    subject = subjects.SUBJECTS["miniature"]()
    subject.build()
    with (
        subject.attached(config(None, 4, terms=(Returns(value),))),
        pytest.raises(RuntimeError, match="'returns' is on in iteration 0 and must return a 0-dim"),
    ):
        subject.one_update(0)


@dataclasses.dataclass(frozen=True)
class Indirect(Term):
    name = "indirect"
    needed: tuple[str, ...] = ()
    data: float = 1.0  # a field of an offer's name is not a need

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.needed)

    def loss(self, rollout: Rollout) -> Tensor:
        return _outside(rollout)


def _outside(rollout: Rollout) -> Tensor:
    return rollout.real_x0.mean()


def test_a_need_that_no_method_mentions_is_asked_for() -> None:
    subject = subjects.SUBJECTS["miniature"]()
    subject.build()
    for needed in ((), ("real_x0",)):
        with subject.attached(config(None, 4, terms=(Indirect(needed=needed),))):
            if needed:
                subject.one_update(0)
                continue
            with pytest.raises(
                RuntimeError, match=r"indirect uses .*: add 'real_x0' to its `needs"
            ):
                subject.one_update(0)


def test_needs_are_those_that_methods_mention() -> None:
    assert Moments().needs == {"video", "real_x0"}
    assert Extrapolated().needs == {"on_exit_step", "velocity", "dmd"}


def test_a_term_that_needs_what_a_trainer_lacks_is_refused_at_attach() -> None:
    subject = subjects.SUBJECTS["miniature"]()
    subject.build()
    subject.model._compute_kl_grad = None
    with pytest.MonkeyPatch.context() as patch:
        del subject.model._compute_kl_grad
        patch.delattr(type(subject.model), "_compute_kl_grad")
        before = vars(subject.model).copy()
        with pytest.raises(SettingError) as error:
            subject.attach(config(None, 4, terms=(Moments(),)))
        assert vars(subject.model) == before
        subject.attach(config(None, 4, terms=(Moments(0.0),))).detach()
    assert error.value.setting == "moments"
    assert str(error.value) == (
        "moments needs the teacher's predictions, which Self Forcing does not offer"
    )


def test_all_that_is_missing_is_in_one_sentence() -> None:
    with pytest.raises(SettingError) as error:
        check_needs([Extrapolated()], set(OFFERS) - {"velocity", "dmd"}, "My trainer")
    assert str(error.value) == (
        "extrapolated needs one more call of the generator at an exit step and its DMD loss on "
        "another video, which My trainer does not offer"
    )


@pytest.mark.parametrize("frames", [2, 6, 8])
def test_dmd_takes_the_last_frames_and_fills_the_first(frames: int) -> None:
    class OfFrames(Term):
        name = "frames"

        def loss(self, rollout: Rollout) -> Tensor:
            video = torch.zeros(1, frames, 1, 8, 16).requires_grad_()
            (gradient,) = torch.autograd.grad(rollout.dmd(video), video)
            felt = gradient.abs().sum((0, 2, 3, 4)) > 0
            assert felt.tolist() == [False] * max(0, frames - 6) + [True] * min(frames, 6)
            return rollout.video.mean()

    subject = subjects.SUBJECTS["miniature"]()
    subject.build()
    with subject.attached(config(None, 4, terms=(OfFrames(),))):
        subject.one_update(0)
