"""The trainers of the contract suite, behind one interface.

`test_contract.py` runs every test on every subject with every term of `cases.py`. To add a trainer
or framework, subclass `Subject`, implement what raises `NotImplementedError`, and register it in
`SUBJECTS`:

    missing()                 why it cannot run here ("set SALT_X to a checkout ..."), or None
    build()                   a fresh trainer with fixed random weights; may be called again
    attach(config)            add Salt; returns a `SaltHandle` or what behaves like one: `terms`,
                              `plan`, `metrics`, `state_dict`, `load_state_dict`, `detach`
    losses(critic)            the loss of the student, or of the critic, and what is logged
    advance()                 count an iteration
    student, critic           the networks that are trained
    objects()                 all objects that `attach` may change
    naive(seed, ...)          `one_update` of the trainer without Salt, with a term written in the
                              test added to its loss

and, if it differs, `restart(seed)` before each loss, `streams()`, `backward(loss)`, `save()` and
`load(state)`.

Class attributes say what the trainer cannot do: a term that needs it must then be refused, and a
test that needs it is skipped with the reason. `refuses` names these terms, and `lacks` the tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any

import harness
import tiny
import torch
from torch import Tensor, nn

from salt_losses import SaltConfig
from salt_losses.adapters import causal_forcing, longlive, longlive2, self_forcing

# on_exit(x_s, v_s, t_s, velocity) -> the term of a chunk, or None; on_video(video, real_x0).
OnExit = Callable[[Tensor, Tensor, float, Callable[[Tensor, float], Tensor]], Tensor | None]
OnVideo = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass
class Update:
    """One backward pass.

    Attributes:
        loss: as the trainer sees it.
        log: what the trainer logs.
        student, critic: gradients by name; a network without any has none.
        streams: the global random streams before the backward pass.
    """

    loss: Tensor
    log: dict[str, Any]
    student: dict[str, Tensor]
    critic: dict[str, Tensor]
    streams: tuple[Tensor, Any]


class Subject:
    """See the module."""

    name = ""
    own_steps = 4  # of the trainer's own list
    lacks: dict[str, str] = {}  # noqa: RUF012  # test -> reason
    no_data: str | None = None  # why a term cannot have real videos
    iterations_per_step = 1
    refuses: frozenset[str] = frozenset()  # cases of `cases.py`
    student: nn.Module
    critic: nn.Module

    def missing(self) -> str | None:
        return None

    def build(self) -> None:
        raise NotImplementedError

    def attach(self, config: SaltConfig) -> Any:
        raise NotImplementedError

    def losses(self, critic: bool) -> tuple[Tensor, dict[str, Any]]:
        raise NotImplementedError

    def advance(self) -> None:
        raise NotImplementedError

    def objects(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def naive(self, seed: int, on_exit: OnExit | None, on_video: OnVideo | None) -> Update:
        raise NotImplementedError

    # What a subject may do otherwise.

    def restart(self, seed: int) -> None:
        for network in (self.student, self.critic):
            network.zero_grad(set_to_none=True)
        seed_all(seed)

    def streams(self) -> Tensor:
        return torch.get_rng_state()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def save(self) -> dict[str, Any]:
        networks = {"student": self.student, "critic": self.critic}
        return {
            name: {k: v.clone() for k, v in network.state_dict().items()}
            for name, network in networks.items()
        }

    def load(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.critic.load_state_dict(state["critic"])

    # The same for all.

    def _update(self, seed: int, critic: bool) -> Update:
        self.restart(seed)
        loss, log = self.losses(critic)
        streams = self.streams(), random.getstate()
        self.backward(loss)
        gradients = map(harness.gradients, (self.student, self.critic))
        return Update(loss.detach(), log, *gradients, streams)

    def one_update(self, seed: int) -> Update:
        return self._update(seed, critic=False)

    def critic_update(self, seed: int) -> Update:
        return self._update(seed, critic=True)

    def step(self, seed: int) -> None:
        for critic, network in ((False, self.student), (True, self.critic)):
            self.restart(seed)
            self.backward(self.losses(critic)[0])
            trained = [p for p in network.parameters() if p.requires_grad]
            torch.optim.SGD(trained, lr=1e-2).step()  # holds nothing that a state must have
        self.advance()

    def validation(self, seed: int) -> Tensor:
        self.restart(seed)
        with torch.no_grad():
            return self.losses(critic=False)[0]

    @contextlib.contextmanager
    def attached(self, config: SaltConfig) -> Iterator[Any]:
        handle = self.attach(config)
        try:
            yield handle
        finally:
            handle.detach()

    @contextlib.contextmanager
    def calls(self) -> Iterator[dict[str, int]]:
        counts = {"grad": 0, "no_grad": 0}

        def called(*_: Any) -> None:
            counts["grad" if torch.is_grad_enabled() else "no_grad"] += 1

        hook = self.student.register_forward_pre_hook(called)
        try:
            yield counts
        finally:
            hook.remove()


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)


class Family(Subject):
    """A model of the Self Forcing family, without its trainer's loop."""

    adapter: Any = self_forcing
    model: Any

    @property
    def student(self) -> nn.Module:  # type: ignore[override]
        return self.model.generator

    @property
    def critic(self) -> nn.Module:  # type: ignore[override]
        return self.model.fake_score

    def inputs(self) -> dict[str, Any]:
        raise NotImplementedError

    def with_data(self) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(7)
        shape = list(self.model.args.image_or_video_shape)
        return self.inputs() | {"clean_latent": torch.randn(shape, generator=draw)}

    def attach(self, config: SaltConfig) -> Any:
        self.trainer = harness.as_trainer(self.model)
        return self.adapter.attach(self.trainer, config)

    def restart(self, seed: int) -> None:
        self.model.zero_grad(set_to_none=True)
        self.model.inference_pipeline = None
        seed_all(seed)

    def losses(self, critic: bool) -> tuple[Tensor, dict[str, Any]]:
        compute = self.model.critic_loss if critic else self.model.generator_loss
        loss, log = compute(**self.with_data())
        return loss, log

    def advance(self) -> None:
        self.trainer.step += 1

    def objects(self) -> tuple[Any, ...]:
        if self.model.inference_pipeline is None:
            self.model._initialize_inference_pipeline()
        networks = (self.student, self.critic, self.model.real_score)
        parts = [part for network in networks for part in network.modules()]
        return (self.model, self.model.inference_pipeline, *parts)

    def naive(self, seed: int, on_exit: OnExit | None, on_video: OnVideo | None) -> Update:
        model, terms = self.model, list[Tensor]()
        build = type(model)._initialize_inference_pipeline
        score, direct = model.compute_distribution_matching_loss, model._compute_kl_grad
        seen: dict[str, Any] = {}

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(model.generator, name)

            def __call__(self, **kwargs: Any) -> Any:
                result = model.generator(**kwargs)
                if torch.is_grad_enabled() and on_exit is not None:
                    t_s = float(kwargs["timestep"].flatten()[-1]) / 1000
                    x_s = kwargs["noisy_image_or_video"]
                    term = on_exit(x_s, result[0], t_s, lambda x, t: again(kwargs, x, t))
                    if term is not None:
                        terms.append(term)
                return result

        def again(kwargs: dict[str, Any], x: Tensor, t: float) -> Tensor:
            caches = {
                name: [
                    {k: v.detach().clone() if torch.is_tensor(v) else v for k, v in layer.items()}
                    for layer in cache
                ]
                for name, cache in kwargs.items()
                if name.endswith("kv_cache")
            }
            timestep = torch.full_like(kwargs["timestep"], 1000 * t)
            other = {"noisy_image_or_video": x, "timestep": timestep}
            v: Tensor = model.generator(**(kwargs | other | caches))[0]
            return v

        def build_pipeline() -> None:
            build(model)
            model.inference_pipeline.generator = Watched()

        def directed(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(direct).bind(*args, **kwargs).arguments
            x0 = [
                model.real_score(
                    noisy_image_or_video=given["noisy_image_or_video"],
                    conditional_dict=given[name],
                    timestep=given["timestep"],
                )[1]
                for name in ("conditional_dict", "unconditional_dict")
            ]
            scale = float(model.real_guidance_scale)
            seen["real_x0"] = x0[0] + (x0[0] - x0[1]) * scale if scale else x0[0]
            return direct(*args, **kwargs)

        def scored(**kwargs: Any) -> Any:
            loss, log = score(**kwargs)
            if on_video is not None:
                terms.append(on_video(kwargs["image_or_video"], seen["real_x0"]))
            term = torch.stack(terms).mean() if terms else torch.zeros(())
            return loss + term, log | {"naive": term.detach()}

        patched = {
            "_initialize_inference_pipeline": build_pipeline,
            "compute_distribution_matching_loss": scored,
        }
        if on_video is not None:
            patched["_compute_kl_grad"] = directed
        for name, value in patched.items():
            setattr(model, name, value)
        try:
            return self.one_update(seed)
        finally:
            for name in patched:
                delattr(model, name)


class Tiny(Family):
    """The miniature of `examples/tiny_video`."""

    def __init__(self, name: str, **settings: Any) -> None:
        self.name, self._settings = name, settings

    def build(self) -> None:
        self.model = tiny.build_trainer(**self._settings).model.eval()

    def inputs(self) -> dict[str, Any]:
        return tiny.loss_inputs(self.model)


class Real(Family):
    """A trainer's own code with a tiny Wan, where a variable names its checkout."""

    def __init__(self, name: str, adapter: Any) -> None:
        self.name, self.adapter = name, adapter
        if name == "longlive2":
            solver = "a solver's levels are its own: tests/adapters/test_longlive2*.py"
            self.lacks = {"naive": solver}

    def missing(self) -> str | None:
        if harness.checkout(self.name) is not None:
            return None
        return f"set {harness.KNOWN[self.name].variable} to a checkout of the trainer to run this"

    def build(self) -> None:
        self.model = harness.build_model(self.name, num_layers=2)
        solver = getattr(self.model.args, "sampling_steps", None)
        own = self.model.denoising_step_list
        self.own_steps = len(own) if solver is None else int(solver)

    def inputs(self) -> dict[str, Any]:
        return harness.loss_inputs(self.model)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "miniature": lambda: Tiny("miniature"),
    "miniature, an exit for each chunk": lambda: Tiny(
        "miniature, an exit for each chunk",
        same_step_across_blocks=False,
        guidance_scale=2.0,
        batch_size=2,
    ),
    "self_forcing": lambda: Real("self_forcing", self_forcing),
    "longlive": lambda: Real("longlive", longlive),
    "longlive2": lambda: Real("longlive2", longlive2),
    "causal_forcing": lambda: Real("causal_forcing", causal_forcing),
}
