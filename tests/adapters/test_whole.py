"""A student that generates all frames at once, on a stand-in of LongLive 2.0's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import as_trainer
from torch import Tensor, nn

from salt_losses import SaltConfig
from salt_losses.adapters import longlive2
from salt_losses.runtime.step_lists import SolverLists
from salt_losses.schedule import step_schedule
from salt_losses.terms import ExitStep, Rollout, Term

SHAPE = (2, 3, 1, 4, 4)


class Generator(nn.Module):
    """Returns a velocity, which depends on state and level, and x0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.levels: list[float] = []

    def forward(
        self, noisy_image_or_video: Tensor, conditional_dict: Any, timestep: Tensor,
        kv_cache: Any = None, crossattn_cache: Any = None, current_start: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        self.levels.append(float(timestep[0, 0]))
        t = (timestep.double() / 1000).to(noisy_image_or_video)[:, :, None, None, None]
        v = torch.tanh(self.weight * noisy_image_or_video) + t * self.weight
        return v, noisy_image_or_video - t * v


class Model:
    """Its rollouts take `args.sampling_steps` steps of a solver, shifted by `off` thousandths."""

    def __init__(self, exit: int, off: int = 0, more: int = 0) -> None:
        self.args = SimpleNamespace(generator_is_causal=False, sampling_steps=4)
        self.scheduler = SimpleNamespace(timesteps=torch.arange(1000, 0, -1.0), shift=5.0)
        self.denoising_step_list = torch.tensor([1000.0, 750.0, 500.0, 250.0])
        self.generator, self.inference_pipeline = Generator(), None
        self.real_score = self.fake_score = nn.Module()
        self.exit, self.off, self.more = exit, off, more

    def _initialize_inference_pipeline(self) -> None: ...

    def _consistency_backward_simulation(self, noise: Tensor) -> None: ...

    def _bidirectional_backward_simulation(self, noise: Tensor) -> Tensor:
        steps = SolverLists(self.scheduler).timesteps(step_schedule(self.args.sampling_steps))
        steps = [*(steps - self.off).tolist(), *[1] * self.more]
        x = noise
        for i, step in enumerate(steps):
            timestep = torch.full(noise.shape[:2], step)
            with torch.set_grad_enabled(torch.is_grad_enabled() and i == self.exit):
                v, x0 = self.generator(
                    noisy_image_or_video=x, conditional_dict={}, timestep=timestep
                )
            if i == self.exit and not self.more:
                return x0
            x = x - (step - [*steps[1:], 0][i]) / 1000 * v
        return x0

    def generator_loss(
        self, image_or_video_shape: Any, conditional_dict: Any, unconditional_dict: Any,
        clean_latent: Any = None, initial_latent: Any = None,
    ) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
        video = self._bidirectional_backward_simulation(noise=torch.randn(SHAPE))
        return video.square().mean(), {}

    critic_loss = generator_loss


class Direct(Term):
    """Keeps its exit step, and calls the generator once more."""

    name = "direct"

    def on_exit_step(self, step: ExitStep) -> Tensor:
        self.step = step
        self.again = step.velocity(step.x_s, step.t_s / 2)
        return self.again.square().mean()

    def loss(self, rollout: Rollout) -> Tensor:
        [value] = rollout.collected
        self.video = rollout.video
        return value


def config(term: Term) -> SaltConfig:
    return SaltConfig(step_counts=(8,), probs=(1.0,), sc=None, inference_steps=1, terms=(term,))


def loss(model: Model) -> tuple[Tensor, dict[str, Any]]:
    return model.generator_loss(list(SHAPE), {}, {})


@pytest.mark.parametrize("exit", [0, 3, 7])
def test_the_exit_step_of_the_plans_rollout_reaches_the_terms(exit: int) -> None:
    model, term = Model(exit), Direct()
    torch.manual_seed(0)
    with longlive2.attached(as_trainer(model), config(term)) as handle:
        _, log = loss(model)
        metrics = handle.metrics
    assert model.args == SimpleNamespace(generator_is_causal=False, sampling_steps=4)
    listed = SolverLists(model.scheduler).timesteps(step_schedule(8)).tolist()
    *steps, again = model.generator.levels
    assert steps == listed[: exit + 1]
    assert again == pytest.approx(listed[exit] / 2, abs=1)
    assert term.step.t_s.tolist() == [listed[exit] / 1000] * 2
    assert metrics["salt/health/exit_step"] == exit
    t = torch.full(SHAPE[:2], listed[exit])
    v, x0 = model.generator(term.step.x_s, {}, t)
    assert torch.equal(term.step.v_s, v)
    assert torch.equal(term.video, x0)
    assert float(log["salt/direct_loss"]) == float(term.again.detach().square().mean())


def test_a_critics_rollout_takes_the_plans_steps() -> None:
    model = Model(7)
    with longlive2.attached(as_trainer(model), config(Direct())):
        model.critic_loss(list(SHAPE), {}, {})
    assert len(model.generator.levels) == 8


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Model(2, off=5), "step 0 was expected at timestep 999; the trainer is at 994"),
        (Model(2, more=1), "makes more than 8 steps, and Salt gave it 8"),
    ],
)
@pytest.mark.parametrize("name", ["generator_loss", "critic_loss"])
def test_a_rollout_that_goes_its_own_way_is_an_error(model: Model, message: str, name: str) -> None:
    with (
        longlive2.attached(as_trainer(model), config(Direct())),
        pytest.raises(RuntimeError, match=message),
    ):
        getattr(model, name)(list(SHAPE), {}, {})


def test_a_rollout_that_calls_no_generator_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(0)
    monkeypatch.setattr(model, "_bidirectional_backward_simulation", lambda noise: noise)
    with (
        longlive2.attached(as_trainer(model), config(Direct())),
        pytest.raises(RuntimeError, match="the plan had no effect"),
    ):
        model.critic_loss(list(SHAPE), {}, {})


def test_a_rollout_that_went_further_down_the_list_is_looked_at_again() -> None:
    model = Model(0)
    with longlive2.attached(as_trainer(model), config(Direct())):
        for model.exit, model.off in ((0, 0), (2, 0), (1, 5)):  # known down to step 2
            loss(model)
        model.exit = 3
        with pytest.raises(RuntimeError, match="step 0 was expected"):
            loss(model)
