"""A rollout under a step list, watched by one proxy of the generator and one of the exit draw.

A generator call passes

    the trainer's rollout -> Proxy (counts the step, verifies it, emits events) -> its generator

and an exit draw passes `generate_and_sync_list` -> the trainer's own. The student's rollout, the
reference and the discriminator's second rollout are each a `Watched`; one that runs inside another
(the reference, before the student's first step) replaces it for that time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from ...runtime.patches import Patches
from ...runtime.step_lists import noise_levels
from .steps import Steps, compare

FIRST_LIST = "denoising_step_list_first_chunk"


class Proxy:
    """Replaces a trainer's callable: has its attributes, and calls `ours` instead of `own`."""

    def __init__(self, own: Any, ours: Callable[..., Any]) -> None:
        self.own, self._ours = own, ours

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ours(*args, **kwargs)


def _own(value: Any) -> Any:
    while isinstance(value, Proxy):
        value = value.own
    return value


class CallCounter:
    """Finds the chunk and step of each generator call, without waiting for the device.

    A chunk's calls are its steps up to its exit step, and the context pass. A call that starts
    before the present chunk caches earlier frames again (LongLive, after a switch of prompts).
    `chunk` is that of the next step.
    """

    def __init__(self, exits: Sequence[int], start: int) -> None:
        self._exits, self._start = exits, start
        self.chunk, self._step = 0, 0

    def count(self, current_start: int) -> tuple[int, int] | None:
        """Return `(chunk, step)` of a denoising call; None for any other call."""
        if current_start < self._start or self.chunk == len(self._exits):
            return None
        chunk, step = self.chunk, self._step
        if step <= self._exits[chunk]:
            self._start, self._step = current_start, step + 1
            return chunk, step
        self._start, self.chunk, self._step = current_start + 1, chunk + 1, 0
        return None


class Place(NamedTuple):
    """The objects of a trainer that its rollouts need.

    Attributes:
        pipeline: the trainer's.
        model: the trainer's.
        lists: puts step lists into pipelines.
        streaming: `generate_chunk_with_cache` makes chunks of one long rollout.
    """

    pipeline: Any
    model: Any
    lists: Steps
    streaming: bool


class Watched:
    """Gives a pipeline's rollouts a step list, and checks that they follow it.

    Every rollout is compared by the number of steps that exits are drawn from, which the host
    knows. The timesteps are on the device: they are read together at the rollout's end, and for
    the same lists only again if a rollout goes further down a list.

    Causal Forcing's pipeline has a separate list for the first chunk,
    `denoising_step_list_first_chunk`, and draws that chunk's exit step separately. For a pipeline
    without one, the same draws and calls are made here. The pipeline reads `denoising_step_list`
    for every chunk, and exit steps at every step (the first one of the list if all chunks leave at
    the same), so both are replaced at the first chunk's context pass.

    Args:
        place: the trainer's objects.
        steps: step list `[K]`.
        first_steps: the first chunk's; None: the trainer's own if it has one.
    """

    def __init__(self, place: Place, steps: Tensor, first_steps: Tensor | None = None) -> None:
        self.place, self.steps, self._given_first = place, steps, first_steps
        self.pipeline, self.lists = place.pipeline, place.lists
        pipeline = self.pipeline
        self._native = hasattr(pipeline, FIRST_LIST)
        self._num_steps = len(steps)  # of the plan
        self._owner, self._name = place.model, "_consistency_backward_simulation"
        if place.streaming:
            self._owner, self._name = pipeline, "generate_chunk_with_cache"
        # The trainer's own, below another `Watched`.
        self.own_rollout = _own(getattr(self._owner, self._name))
        self.own_draw = _own(pipeline.generate_and_sync_list)
        self.own_generator = _own(pipeline.generator)
        self._rollouts = 0
        self.kwargs: dict[str, Any] = {}
        self._first: Tensor | None = getattr(pipeline, FIRST_LIST, None)
        self._forget()

    def _forget(self) -> None:
        self.exits: list[int] = []  # of each chunk
        self.step_lists: list[Tensor] = []
        self._returned: list[int] = []
        self._counter: CallCounter | None = None
        self._calls: list[tuple[int, int, Tensor]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Give the pipeline its lists, and check that it follows them.

        Raises:
            RuntimeError: a rollout did not follow them, or there was none.
        """
        pipeline = self.pipeline
        draw = Proxy(self.own_draw, self._draw_exits)
        with Patches() as patches:
            self.lists.put(patches, self.steps, pipeline, self.place.model)
            patches.set(self._owner, self._name, Proxy(self.own_rollout, self._roll_out))
            patches.set(pipeline, "generate_and_sync_list", draw)
            patches.set(pipeline, "generator", Proxy(self.own_generator, self._call))
            yield
        self._finish()

    def run(self, **kwargs: Any) -> Any:
        """Make one rollout of the trainer's under this list."""
        with self.watching():
            return self._roll_out(**kwargs)

    # For subclasses.

    def begin(self) -> None:
        """Do what must happen between the draw of the exits and the first step."""

    def draw(self, num_chunks: int, num_steps: int, device: Any) -> list[int]:
        exits: list[int] = self.own_draw(num_chunks, num_steps, device=device)
        return exits

    def step(self, chunk: int, step: int, kwargs: dict[str, Any]) -> Any:
        return self.own_generator(**kwargs)

    def times(self, chunk: int) -> list[float]:
        """Return the noise levels of a chunk's step list."""
        return noise_levels(self.step_lists[chunk])

    # The three places where a trainer's rollout is watched.

    def _roll_out(self, **kwargs: Any) -> Any:
        self.kwargs = kwargs
        with Patches() as patches:
            self._first = self._first_list(kwargs)
            if self._native:
                patches.set(self.pipeline, FIRST_LIST, self._first)
            elif self._first is not None:
                patches.set(self.pipeline, "denoising_step_list", self._first)
            return self.own_rollout(**kwargs)

    def _first_list(self, kwargs: dict[str, Any]) -> Tensor | None:
        """Return the first chunk's separate list in this rollout."""
        if kwargs.get("current_start_frame", 0) > 0:  # a later part of a long rollout
            return None
        if self._given_first is None:
            own: Tensor | None = getattr(self.pipeline, FIRST_LIST, None)
            return own
        # With as many steps the lists are the same, and the trainer draws one exit step for all.
        same = len(self._given_first) == self._num_steps
        return None if same else self._given_first

    def _draw_exits(self, num_blocks: int, num_denoising_steps: int, device: Any) -> list[int]:
        if self._counter is not None:  # another rollout begins
            self._finish()
            self._forget()
        first = None if self.exits else self._first
        steps = self.steps if first is None else first
        if num_denoising_steps != len(steps):
            raise RuntimeError(
                f"the rollout draws its exit from {num_denoising_steps} steps, and Salt gave it "
                f"{len(steps)}: it does not follow the step list"
            )
        if first is None or self._native:
            return self._keep(self.draw(num_blocks, num_denoising_steps, device), steps)
        self._returned = self._keep(self.draw(1, len(first), device), first)
        if num_blocks > 1:
            others = self.draw(num_blocks - 1, len(self.steps), device)
            self._returned = self._returned + self._keep(others, self.steps)
        return self._returned

    def _keep(self, exits: list[int], steps: Tensor) -> list[int]:
        # A trainer draws one for each chunk even if all leave at the first one's.
        same = self.pipeline.same_step_across_blocks
        self.exits += exits[:1] * len(exits) if same else exits
        self.step_lists += [steps] * len(exits)
        return exits

    def _call(self, **kwargs: Any) -> Any:
        if not self.exits:
            return self.own_generator(**kwargs)
        if self._counter is None:
            # Frames before it are given, or cached again.
            chunk = self.kwargs.get("current_start_frame", 0) * self.pipeline.frame_seq_length
            self._counter = CallCounter(self.exits, max(kwargs["current_start"], chunk))
            self._rollouts += 1
            self.begin()
        at = self._counter.count(kwargs["current_start"])
        if at is None:
            if len(self._returned) > 1 and self._counter.chunk == 1:
                self.pipeline.denoising_step_list = self.steps
                self._returned[0], self._returned = self._returned[1], []
            return self.own_generator(**kwargs)
        # The first frames may be given ones, whose timestep is 0.
        self._calls.append((*at, kwargs["timestep"].detach().flatten()[-1]))
        return self.step(*at, kwargs)

    def _finish(self) -> None:
        if not self._rollouts:
            raise RuntimeError(
                "the plan had no effect: the rollout drew no exit steps from "
                "pipeline.generate_and_sync_list, or called no pipeline.generator after it"
            )
        if self._calls:
            key = len(self.step_lists[0]), len(self.step_lists[-1]), len(self.step_lists)
            self.lists.followed.look(key, max(self.exits), self._compare)

    def _compare(self) -> None:
        # Reading a list on a GPU waits for it as well.
        timesteps = {id(steps): steps.tolist() for steps in self.step_lists}
        compare(
            [f"step {step} of chunk {chunk}" for chunk, step, _ in self._calls],
            [timesteps[id(self.step_lists[chunk])][step] for chunk, step, _ in self._calls],
            [timestep for _, _, timestep in self._calls],
        )


def peek_pipeline(model: Any) -> Any:
    """Return the model's pipeline, or one that is built now and forgotten: it only stores."""
    if model.inference_pipeline is not None:
        return model.inference_pipeline
    try:
        model._initialize_inference_pipeline()
        return model.inference_pipeline
    finally:
        model.inference_pipeline = None


def velocity_of(
    generator: Callable[..., Any], kwargs: dict[str, Any]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `velocity(x, t)`: a generator call at another state and times `[B]` in float64."""
    timestep = kwargs["timestep"]

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        # In double precision there and back, this is the table's own number again.
        t_m = 1000 * t
        t_m = (t_m if timestep.is_floating_point() else t_m.round()).to(timestep.dtype)
        other = {"noisy_image_or_video": x, "timestep": t_m[:, None].expand_as(timestep)}
        v: Tensor = generator(**{**kwargs, **other})[0]
        return v

    return velocity
