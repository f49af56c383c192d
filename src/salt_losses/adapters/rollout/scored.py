"""What a trainer scores, and what its score networks predict of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..._checks import describe
from ...dmd import guide
from ...runtime.health import Vitals
from ...runtime.patches import Patches

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
    _again: Callable[[Tensor], Tensor]

    @classmethod
    @contextmanager
    def by(cls, model: Any, *, without_loss: bool = False) -> Iterator[Scored]:
        """Filled in when the trainer scores a video; the loss itself is left out if asked."""
        scored, score = cls(), getattr(model, SCORE)

        def watched(**kwargs: Any) -> Any:
            scored.video = kwargs["image_or_video"]
            scored.conditional_dict = kwargs["conditional_dict"]
            scored.mask = kwargs.get("gradient_mask")
            scored._again = lambda video: score(**{**kwargs, "image_or_video": video})[0]
            return (scored.video.new_zeros(()), {}) if without_loss else score(**kwargs)

        with Patches() as patches:
            patches.set(model, SCORE, watched)
            yield scored

    def dmd(self, video: Tensor) -> Tensor:
        """The trainer's DMD loss on another video."""
        return self._again(video)


@contextmanager
def watching(model: Any, vitals: Vitals, predictions: dict[str, Any]) -> Iterator[None]:
    """Keep the update direction, and what both scores predict, as the trainer computes them.

    Args:
        predictions: what terms use of `"fake_x0"` and `"real_x0"`: its keys are filled in.
    """
    if not hasattr(model, DIRECTION):
        yield
        return
    compute = getattr(model, DIRECTION)

    def watched(*args: Any, **kwargs: Any) -> Any:
        with (
            _calls(model.fake_score, "fake_x0" in predictions) as fake,
            _calls(model.real_score, "real_x0" in predictions) as real,
        ):
            result = compute(*args, **kwargs)
        vitals.directed(result[0], *(calls[0] if calls else None for calls in (fake, real)))
        for name, calls in (("fake", fake), ("real", real)):
            if f"{name}_x0" in predictions and calls:
                scale = float(getattr(model, f"{name}_guidance_scale", 0.0))
                x0s = [x0 for x0, _ in calls]
                guided = len(x0s) == 2
                predictions[f"{name}_x0"] = guide(x0s[0], x0s[1], scale) if guided else x0s[0]
        return result

    with Patches() as patches:
        patches.set(model, DIRECTION, watched)
        yield


@contextmanager
def _calls(network: nn.Module, every: bool) -> Iterator[list[Any]]:
    """Gets `(x0, timestep)` of a score network's calls, or of only the first: the one with the
    prompt.
    """
    calls: list[Any] = []

    def called(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if every or not calls:
            calls.append((output[1].detach(), kwargs["timestep"]))

    hook = network.register_forward_hook(called, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def real_videos(arguments: dict[str, Any], term: str) -> Tensor:
    """The data among the arguments of `generator_loss`.

    Raises:
        ValueError: there is none, or of another shape than the rollout's.
    """
    data, shape = arguments.get("clean_latent"), list(arguments["image_or_video_shape"])
    if not isinstance(data, Tensor):
        raise ValueError(
            f"{term} needs real videos as the clean_latent of generator_loss; the trainer gives "
            f"{describe(data)}. Have its loop pass them, with the prompts that belong to them"
        )
    if list(data.shape) != shape:
        raise ValueError(
            f"clean_latent must have the image_or_video_shape, {shape}; got {list(data.shape)}"
        )
    return data
