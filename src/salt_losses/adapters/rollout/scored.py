"""What a trainer scores, and the same from a rollout of more steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import describe
from ...training import streams
from ...training.health import Vitals
from ...training.patches import Patches
from .reference import CACHES, cloned
from .steps import Steps

SCORE, DIRECTION = "compute_distribution_matching_loss", "_compute_kl_grad"


class Scored:
    """What the trainer hands to its DMD loss.

    Attributes:
        video: `[B, F, C, H, W]`, on the generator's graph. Of a longer rollout the last frames, the
            first of which the trainers encode anew as an image.
        conditional_dict: the prompts.
        mask: where the trainer's own loss looks, like `video`; None: everywhere.
    """

    video: Tensor
    conditional_dict: dict[str, Any]
    mask: Tensor | None

    @classmethod
    @contextmanager
    def by(cls, model: Any, *, without_loss: bool = False) -> Iterator[Scored]:
        """Filled in when the trainer scores a video; the loss itself is left out if asked."""
        scored, score = cls(), getattr(model, SCORE)

        def watched(**kwargs: Any) -> Any:
            scored.video = kwargs["image_or_video"]
            scored.conditional_dict = kwargs["conditional_dict"]
            scored.mask = kwargs.get("gradient_mask")
            return (scored.video.new_zeros(()), {}) if without_loss else score(**kwargs)

        with Patches() as patches:
            patches.set(model, SCORE, watched)
            yield scored


@contextmanager
def watching(model: Any, vitals: Vitals) -> Iterator[None]:
    """Keep the update direction, and what both scores predict, as the trainer computes them."""
    if not hasattr(model, DIRECTION):
        yield
        return
    compute = getattr(model, DIRECTION)

    def watched(*args: Any, **kwargs: Any) -> Any:
        with _first_call(model.fake_score) as fake, _first_call(model.real_score) as real:
            result = compute(*args, **kwargs)
        vitals.directed(result[0], *(calls[0] if calls else None for calls in (fake, real)))
        return result

    with Patches() as patches:
        patches.set(model, DIRECTION, watched)
        yield


@contextmanager
def _first_call(network: nn.Module) -> Iterator[list[Any]]:
    """Gets `(x0, timestep)` of the first call of a score network: the one with the prompt."""
    calls: list[Any] = []

    def called(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not calls:
            calls.append((output[1].detach(), kwargs["timestep"]))

    hook = network.register_forward_hook(called, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def real_videos(arguments: dict[str, Any]) -> Tensor:
    """The data among the arguments of `generator_loss`.

    Raises:
        ValueError: there is none, or of another shape than the rollout's.
    """
    data, shape = arguments.get("clean_latent"), list(arguments["image_or_video_shape"])
    if not isinstance(data, Tensor):
        raise ValueError(
            "adv_against='data' needs real videos as the clean_latent of generator_loss; the "
            f"trainer gives {describe(data)}. Have its loop pass them, with the prompts that "
            "belong to them, or set adv_against='more_steps'"
        )
    if list(data.shape) != shape:
        raise ValueError(
            f"clean_latent must have the image_or_video_shape, {shape}; got {list(data.shape)}"
        )
    return data


def rolled(
    run: Callable[[], Tensor],
    model: Any,
    pipeline: Any,
    lists: Steps,
    steps: Tensor,
    seed: int,
    streaming: Any,
) -> Tensor:
    """The video of one more rollout, without gradient: of all `steps`, from noise of its own.

    It comes before the student's rollout: there is no graph yet, and no cache but one that lives on
    between rollouts, of which it gets a copy.

    Args:
        run: the trainer's own rollout, as it would run now.
        model, pipeline: the trainer's.
        lists: how it is given its steps.
        steps: step list `[K]`.
        seed: of all noise.
        streaming: the streaming model, which writes down what it has rolled; None without one.
    """
    owner, name = model, "_consistency_backward_simulation"
    if streaming is not None:
        owner, name = pipeline, "generate_chunk_with_cache"
    rollout = getattr(owner, name)
    took_place = False

    def from_other_noise(**kwargs: Any) -> Any:
        # Only here: how many frames there are was drawn before, and is as the student will draw it.
        nonlocal took_place
        took_place, noise = True, kwargs["noise"]
        streams.set_seed(noise.device, seed)
        return rollout(**{**kwargs, "noise": torch.randn_like(noise)})

    def last_step(num_blocks: int, num_denoising_steps: int, device: Any) -> list[int]:
        return [num_denoising_steps - 1] * num_blocks

    with streams.untouched(torch.device(model.device)), torch.no_grad(), Patches() as patches:
        for cache in CACHES:
            if hasattr(pipeline, cache):
                there = getattr(pipeline, cache)
                patches.set(pipeline, cache, there if streaming is None else cloned(there))
        lists.put(patches, steps, pipeline, model)
        patches.set(pipeline, "generate_and_sync_list", last_step)
        patches.set(owner, name, from_other_noise)
        state = {} if streaming is None else dict(streaming.state)
        watching = lists.followed.watching
        try:
            with watching(pipeline, steps, streaming=streaming is not None):
                video = run()
        finally:
            if streaming is not None:
                streaming.state.clear()
                streaming.state.update(state)
    if not took_place:
        raise RuntimeError(f"there was no rollout of more steps: {name} was not called")
    return video.detach()
