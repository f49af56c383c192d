"""The scored video, the score networks' predictions, and their blocks for terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import describe
from ...dmd import guide
from ...runtime.health import Vitals
from ...runtime.patches import Patches
from ...schedule import shift_time
from ...terms.trace import Network

SCORE, DIRECTION = "compute_distribution_matching_loss", "_compute_kl_grad"
NAMES = ("fake_score", "real_score")


class Scored:
    """The video that the trainer hands to its DMD loss.

    Attributes:
        video: `[B, F, C, H, W]`, on the generator's graph; the last frames of a longer rollout,
            the first of which the trainers encode again as an image.
        conditional_dict: the prompts.
        mask: where the trainer's own loss looks, like `video`; None: everywhere.
        dmd: `dmd(video)`: the trainer's DMD loss on another video.
    """

    video: Tensor
    conditional_dict: dict[str, Any]
    mask: Tensor | None
    dmd: Callable[[Tensor], Tensor]

    @classmethod
    @contextmanager
    def by(cls, model: Any, *, without_loss: bool = False) -> Iterator[Scored]:
        """Fill in what the trainer scores in this context; the loss itself can be left out."""
        scored, score = cls(), getattr(model, SCORE)

        def watched(**kwargs: Any) -> Any:
            scored.video = kwargs["image_or_video"]
            scored.conditional_dict = kwargs["conditional_dict"]
            scored.mask = kwargs.get("gradient_mask")
            scored.dmd = lambda video: score(**{**kwargs, "image_or_video": video})[0]
            return (scored.video.new_zeros(()), {}) if without_loss else score(**kwargs)

        with Patches() as patches:
            patches.set(model, SCORE, watched)
            yield scored


@contextmanager
def watch_scores(model: Any, vitals: Vitals, predictions: dict[str, Any]) -> Iterator[None]:
    """Keep the update direction, and what both scores predict, as the trainer computes them.

    Args:
        model: the trainer's.
        vitals: gets the direction and both predictions under the prompt.
        predictions: its keys, among `"fake_x0"` and `"real_x0"`, are filled in for terms.
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
        vitals.direct(result[0], *(calls[0] if calls else None for calls in (fake, real)))
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
    """Yield `(x0, timestep)` of a score network's calls, or only of the first, with the prompt."""
    calls: list[Any] = []

    def keep(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if every or not calls:
            calls.append((output[1].detach(), kwargs["timestep"]))

    hook = network.register_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def real_videos(arguments: dict[str, Any], term: str) -> Tensor:
    """Return the data among the arguments of `generator_loss`.

    Raises:
        ValueError: there is none, or its shape is not the rollout's.
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


class Networks:
    """The score networks of a model, for terms that read their blocks.

    Made between two updates: during one, FSDP hides parameters.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._parameters: dict[str, list[nn.Parameter]] = {
            name: list(network.parameters())
            for name in NAMES
            if isinstance(network := getattr(model, name, None), nn.Module)
        }

    def under(self, conditional_dict: dict[str, Any]) -> Callable[[str], Network]:
        """Return the networks by name, under these prompts."""
        # minWM keeps a video's cameras there, and its networks take them by name.
        cameras = {n: conditional_dict[n] for n in ("viewmats", "Ks") if n in conditional_dict}

        def network(name: str) -> Network:
            module = getattr(self._model, name)

            def velocity(x: Tensor, t: Tensor) -> Tensor:
                with _own_checkpointing_off(module):
                    v: Tensor = module(
                        noisy_image_or_video=x,
                        conditional_dict=conditional_dict,
                        timestep=(1000 * t)[:, None].expand(x.shape[:2]),
                        **cameras,
                    )[0]
                return v

            pipeline = self._model.inference_pipeline
            return Network(
                velocity,
                module.model.blocks,
                self._parameters[name],
                tokens_per_frame=getattr(pipeline, "frame_seq_length", None),
                dim=getattr(module.model, "dim", None),
            )

        return network

    def level(self, uniform: Any) -> Any:
        """Make a noise level of a uniform draw as the DMD loss does: shift it and clamp it."""
        model = self._model
        if not isinstance(uniform, Tensor):
            return float(self.level(torch.tensor(uniform, dtype=torch.float64)))
        t = shift_time(uniform, float(model.timestep_shift))
        return t.clamp(model.min_step / 1000, model.max_step / 1000)


@contextmanager
def _own_checkpointing_off(network: Any) -> Iterator[None]:
    """Salt checkpoints the blocks, whatever the network's own setting, and not twice."""
    with Patches() as patches:
        for module in network.modules():
            if vars(module).get("gradient_checkpointing"):
                patches.set(module, "gradient_checkpointing", False)
        yield
