"""The frameworks as subjects: FastVideo on a stand-in and, as the others, on its own code.

Salt is a class of its own there, which is built from the config's settings. To attach is to build
it, and to detach is to build the framework's again, both with the same weights.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from subjects import Subject
from torch import Tensor, nn

from salt_losses import SaltConfig

INTEGRATIONS = Path(__file__).parents[1] / "integrations"
CHUNKED = frozenset(
    {"adv-data", "adv-more-steps"}
)  # cases that a framework with a KV cache refuses
WHOLE = CHUNKED | {"align-input"}


class Handle:
    """What the suite asks of a handle."""

    def __init__(self, subject: Framework) -> None:
        self._subject, self._salt = subject, subject.trainer._salt
        self._loaded = False

    @property
    def terms(self) -> tuple[Any, ...]:
        return self._salt.terms

    @property
    def plan(self) -> Any:
        salt = self._salt
        return salt.scheduler.plan(salt.scheduler.iteration) if self._loaded else salt.plan

    @property
    def metrics(self) -> dict[str, float]:
        return {name: float(number) for name, number in self._salt.metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        return self._subject.salt_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._subject.load_salt_state(state)
        self._loaded = True

    def detach(self) -> None:
        state = self._subject.save()
        self._subject.build()
        self._subject.load(state)


class Framework(Subject):
    """One class of a framework. `trainer` is the present object."""

    module = ""  # of the tests, with the framework's `build`
    kind = ""
    no_data = "frameworks offer no real videos to terms"
    trainer: Any

    def __init__(self, name: str) -> None:
        self.name = name
        self.refuses = CHUNKED if self.chunked else WHOLE
        self.iteration = 0
        self.lacks = {
            "naive": "tests/integrations has the literal computations on its own layouts",
            "after_detach": "nothing is changed: Salt is another class",
            "raises_the_alarm": "alarms are the adapters'",
        }
        if not self.chunked:
            self.lacks["calls_that_it_says"] = "without a cache there is no context pass to count"

    chunked = True

    @property
    def fw(self) -> Any:
        sys.path.append(str(INTEGRATIONS))
        try:
            return importlib.import_module(self.module)
        finally:
            sys.path.remove(str(INTEGRATIONS))

    def missing(self) -> str | None:
        if self.fw.checkout() is not None:
            return None
        return f"set {self.fw.VARIABLE} to a checkout of the framework to run this"

    def make(self, salt: dict[str, Any] | None) -> Any:
        return self.fw.build(self.kind, salt, Path(tempfile.mkdtemp()))

    def build(self) -> None:
        self.fw.activate()
        self.iteration = 0
        self.trainer = self.make(None)

    def attach(self, config: SaltConfig) -> Handle:
        self.trainer = self.make(config.to_mapping())
        return Handle(self)

    def advance(self) -> None:
        self.iteration += 1

    def save(self) -> dict[str, Any]:
        return super().save() | {"iteration": {"count": torch.tensor(self.iteration)}}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.iteration = int(state["iteration"]["count"])

    def salt_state(self) -> dict[str, Any]:
        return self.trainer._salt.state_dict()

    def load_salt_state(self, state: Mapping[str, Any]) -> None:
        self.trainer._salt.load_state_dict(state)


class FastVideo(Framework):
    def backward(self, loss: Tensor) -> None:
        from fastvideo.forward_context import set_forward_context

        # Blocks are computed again, where attention asks for it.
        with set_forward_context(current_timestep=torch.zeros(1), attn_metadata=None):
            loss.backward()

    @property
    def student(self) -> nn.Module:  # type: ignore[override]
        return self.trainer.student.transformer

    @property
    def critic(self) -> nn.Module:  # type: ignore[override]
        return self.trainer.critic.transformer

    def restart(self, seed: int) -> None:
        super().restart(seed)
        self.trainer.cuda_generator.manual_seed(seed)

    def streams(self) -> Tensor:
        return torch.cat([torch.get_rng_state(), self.trainer.cuda_generator.get_state()])

    def losses(self, critic: bool) -> tuple[Tensor, dict[str, Any]]:
        losses, _, metrics = self.trainer.single_train_step(self.fw.batch(0), self.iteration)
        return losses["fake_score_loss" if critic else "generator_loss"], {**losses, **metrics}

    def salt_state(self) -> dict[str, Any]:
        return self.trainer.checkpoint_state()["salt"].state_dict()

    def load_salt_state(self, state: Mapping[str, Any]) -> None:
        self.trainer.checkpoint_state()["salt"].load_state_dict(state)


class FastVideoSelfForcing(FastVideo):
    kind = "self_forcing"


class FastVideoDMD2(FastVideo):
    kind, chunked = "dmd2", False


class StandIn(FastVideo):
    module = "fastvideo_stand_in"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.lacks["calls_that_it_says"] = "it writes its cache without a call"

    def missing(self) -> str | None:
        if os.environ.get("SALT_FASTVIDEO"):
            return "FastVideo's own code is used in this process"
        return None


class StandInSelfForcing(StandIn, FastVideoSelfForcing):
    pass


class StandInDMD2(StandIn, FastVideoDMD2):
    pass


class RealFastVideoSelfForcing(FastVideoSelfForcing):
    module = "fastvideo_real"


class RealFastVideoDMD2(FastVideoDMD2):
    module = "fastvideo_real"


class FastGen(Framework):
    """An even iteration is the student's."""

    module, kind = "fastgen_real", "self_forcing"
    iterations_per_step = 2

    @property
    def student(self) -> nn.Module:  # type: ignore[override]
        return self.trainer.net

    @property
    def critic(self) -> nn.Module:  # type: ignore[override]
        return self.trainer.fake_score

    def losses(self, critic: bool) -> tuple[Tensor, dict[str, Any]]:
        iteration = 2 * self.iteration + critic
        losses, _ = self.trainer.single_train_step(self.fw.batch(0), iteration)
        return losses["total_loss"], losses


class FastGenDMD2(FastGen):
    kind, chunked = "dmd2", False

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.refuses = self.refuses | {"align-exit", "align-end"}


class LightX2V(Framework):
    module, kind = "lightx2v_real", "ar"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.lacks["validation"] = "its validation samples, and asks for no loss"

    @property
    def student(self) -> nn.Module:  # type: ignore[override]
        return self.trainer.model.transformer

    @property
    def critic(self) -> nn.Module:  # type: ignore[override]
        return self.trainer.fake_model.transformer

    def losses(self, critic: bool) -> tuple[Tensor, dict[str, Any]]:
        trainer, stage = self.trainer, "fake" if critic else "student"
        trainer._iteration = self.iteration
        sample = self.fw.batch(0)
        shape = trainer._latent_shape(sample)
        noise = trainer.sample_initial_latents(shape)
        conditions = trainer._encode_conditions(sample)
        result = trainer.forward_loss(shape, conditions, stage=stage, initial_noise=noise)
        result = result if isinstance(result, dict) else {"loss": result}
        return result["loss"], result


class LightX2VDmd(LightX2V):
    kind, chunked = "dmd", False


class ModelOptimizer(Framework):
    """Its term entries have the terms' names."""

    module, chunked = "modelopt_real", False

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.refuses = self.refuses | {"align-exit", "align-end"}

    @property
    def student(self) -> nn.Module:  # type: ignore[override]
        return self.trainer.student

    @property
    def critic(self) -> nn.Module:  # type: ignore[override]
        return self.trainer.fake_score

    def missing(self) -> str | None:
        try:
            importlib.import_module("modelopt.torch.fastgen")
        except ImportError:
            return "nvidia-modelopt is not installed"
        return None

    def build(self) -> None:
        self.iteration, self.trainer = 0, self.make(None)

    def make(self, salt: dict[str, Any] | None) -> Any:
        return self.fw.build(salt)

    def attach(self, config: SaltConfig) -> Handle:
        salt = config.to_mapping()
        del salt["step_counts"], salt["probs"]
        if salt["sc"] is not None:
            del salt["sc"]["step_counts"]
        self.trainer = self.make(salt)
        return Handle(self)

    def losses(self, critic: bool) -> tuple[Tensor, dict[str, Any]]:
        pipeline, inputs = self.trainer, self.fw.batch(0)
        compute = pipeline.compute_fake_score_loss if critic else pipeline.compute_student_loss
        losses = compute(*inputs)
        return losses["total"], {**losses, **{f"salt/{k}_loss": v for k, v in losses.items()}}

    def salt_state(self) -> dict[str, Any]:
        return self.trainer.state_dict()

    def load_salt_state(self, state: Mapping[str, Any]) -> None:
        self.trainer.load_state_dict(state)


FRAMEWORKS: dict[str, Callable[[str], Subject]] = {
    "fastvideo stand-in": StandInSelfForcing,
    "fastvideo stand-in, dmd2": StandInDMD2,
    "fastvideo, each chunk": RealFastVideoSelfForcing,
    "fastvideo, dmd2": RealFastVideoDMD2,
    "fastgen": FastGen,
    "fastgen, dmd2": FastGenDMD2,
    "lightx2v": LightX2V,
    "lightx2v, dmd": LightX2VDmd,
    "model-optimizer": ModelOptimizer,
}
