"""The alignment's reference: the student's rollout again on a denser grid, without gradient.

The reference of `align.to` "end" and "exit" runs inside the student's rollout, between the draw of
the exit steps and the first step: the student has no graph yet, its random stream is where its
noise will come from, and nothing is drawn or sent twice. With "input" it needs the student's exit
inputs, and runs after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ...flow import euler_step
from ...mixed_step import StepPlan
from ...runtime import streams
from ...runtime.blocks import Block
from ...runtime.patches import Patches
from ...terms.trace import Reference
from ...trainers.seams import KV_CACHES
from .calls import Watched

if TYPE_CHECKING:
    from .student import StudentRollout

CACHES = (*KV_CACHES, "prope_kv_cache", "crossattn_cache")


class ReferenceRollout(Watched):
    """The reference of one student rollout.

    With shared noise it draws from the student's stream, and so draws the student's noise before
    each step that both take. Before a step that the student does not take, an Euler step replaces
    the noise and the stream is set back. A solver draws no noise between its steps.

    Args:
        student: the student's rollout.
        plan: the iteration's.
        align: the alignment's settings.
        seed: of the reference's noise, if that is separate.

    Attributes:
        exit_inputs: the student's exit inputs, chunk by chunk.
    """

    def __init__(self, student: StudentRollout, plan: StepPlan, align: Any, seed: int) -> None:
        lists, first = student.lists, plan.reference_first_times
        steps = lists.timesteps(cast(Tensor, plan.reference_times))
        super().__init__(student.place, steps, None if first is None else lists.timesteps(first))
        self._student, self._align, self._seed = student, align, seed
        self.exit_inputs: list[Tensor] = []
        self._shared = align.reference_noise == "shared" and lists.draws_noise
        self._blocks: list[Block] = []
        self._targets: list[Tensor] = []
        self._result = Reference(None, [])
        self._x = self._v = torch.empty(0)  # the last step's input and velocity
        self._after: list[Tensor] = []  # the random stream after it

    # The student's side.

    def student_begins(self) -> None:
        """Run once the student has drawn its exit steps, and nothing else."""
        self._blocks = [
            Block.of(exit, len(steps), self._steps_of(i, steps), self._align.to)
            for i, (exit, steps) in enumerate(zip(self._student.exits, self._student.step_lists))
        ]
        if not any(block.takes_part for block in self._blocks):
            return
        self._device = self._student.kwargs["noise"].device
        self._stream = streams.get_state(self._device)
        caches = {n: getattr(self.pipeline, n) for n in CACHES if hasattr(self.pipeline, n)}
        # Streaming writes into the existing caches; other rollouts make new ones.
        self._caches = {n: clone(c) if self.place.streaming else c for n, c in caches.items()}
        if self._align.to != "input":
            self._accompany()

    def student_ends(self) -> Reference:
        """Return the reference of the rollout that has just ended."""
        if self._align.to == "input" and any(block.takes_part for block in self._blocks):
            self._accompany()
        return self._result

    def _steps_of(self, chunk: int, students: Tensor) -> int:
        """Return the reference's step count in a chunk."""
        first = chunk == 0 and self._student.step_lists[0] is not self._student.steps
        if not first:
            return len(self.steps)
        # The trainer's own first list is the reference's too.
        return len(students if self._given_first is None else self._given_first)

    # The reference's own rollout.

    def _accompany(self) -> None:
        # LongLive enables gradients unless it is asked not to.
        no_grad = {"requires_grad": False} if self.place.streaming else {}
        self._remaining = [block.reference_exit for block in self._blocks]
        with streams.preserve(self._device), torch.no_grad(), Patches() as patches:
            for name, cache in self._caches.items():
                patches.set(self.pipeline, name, cache)
            if self._align.reference_noise == "shared":
                streams.set_state(self._device, self._stream)
            else:
                streams.set_seed(self._device, self._seed)
            output = self.run(**{**self._student.kwargs, **no_grad})[0]
        targets = torch.cat(self._targets, dim=1)
        given = output.shape[1] - targets.shape[1]  # frames that the rollout started from
        frames = [False] * given
        for block, x0 in zip(self._blocks, self._targets):
            frames += [block.takes_part] * x0.shape[1]
        self._result = Reference(torch.cat([output[:, :given], targets], dim=1), frames)
        del self._caches, self._targets

    def _first_list(self, kwargs: dict[str, Any]) -> Tensor | None:
        """Return a separate list only if the student has one in this rollout."""
        students = self._student.step_lists
        if not students or students[0] is self._student.steps:
            return None
        return students[0] if self._given_first is None else self._given_first

    def draw(self, num_chunks: int, num_steps: int, device: Any) -> list[int]:
        exits, self._remaining = self._remaining[:num_chunks], self._remaining[num_chunks:]
        return exits

    def step(self, chunk: int, step: int, kwargs: dict[str, Any]) -> Any:
        block = self._blocks[chunk]
        if self._shared and step > 0 and not block.student_meets(step):
            times = self.times(chunk)
            x = euler_step(self._x, self._v, times[step - 1], times[step])
            kwargs = {**kwargs, "noisy_image_or_video": x}
            streams.set_state(self._device, self._after)
        result = self.own_generator(**kwargs)
        self._x, self._v = kwargs["noisy_image_or_video"], result[0]
        self._after = streams.get_state(self._device)
        if step == block.reference_exit:
            x0 = result[1]
            if self._align.to == "input" and block.takes_part:
                # To the cache one more step: the context pass overwrites its slots.
                own = {**kwargs, "noisy_image_or_video": self.exit_inputs[chunk]}
                x0 = self.own_generator(**own)[1]
            self._targets.append(x0)
        return result


def clone(cache: Any) -> Any:
    """Copy lists, dicts and tensors, so that a rollout cannot reach the originals."""
    if cache is None:
        return None
    return [
        {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in block.items()}
        for block in cache
    ]
