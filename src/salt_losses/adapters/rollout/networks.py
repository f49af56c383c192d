"""The score networks of a trainer, for terms that read their blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.patches import Patches
from ...schedule import shift_time
from ...terms.trace import Network

NAMES = ("fake_score", "real_score")


class Networks:
    """Knows the networks of a model between two updates: during one, FSDP hides parameters.

    Args:
        model: the trainer's.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._parameters: dict[str, list[nn.Parameter]] = {
            name: list(network.parameters())
            for name in NAMES
            if isinstance(network := getattr(model, name, None), nn.Module)
        }

    def under(self, conditional_dict: dict[str, Any]) -> Callable[[str], Network]:
        """The networks by name, under these prompts."""

        def network(name: str) -> Network:
            module = getattr(self._model, name)

            def velocity(x: Tensor, t: Tensor) -> Tensor:
                timestep = (1000 * t)[:, None].expand(x.shape[:2])
                # minWM keeps a video's cameras there, and its networks take them by name.
                cameras = {
                    n: conditional_dict[n] for n in ("viewmats", "Ks") if n in conditional_dict
                }
                with _own_checkpointing_off(module):
                    v: Tensor = module(
                        noisy_image_or_video=x,
                        conditional_dict=conditional_dict,
                        timestep=timestep,
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
        """As the DMD loss draws its own: uniform, then shifted, and kept off both ends."""
        model = self._model
        if not isinstance(uniform, Tensor):
            return float(self.level(torch.tensor(uniform, dtype=torch.float64)))
        t = shift_time(uniform, float(model.timestep_shift))
        return t.clamp(model.min_step / 1000, model.max_step / 1000)


@contextmanager
def _own_checkpointing_off(network: Any) -> Iterator[None]:
    """The blocks are checkpointed here, whatever the network's own setting, and not twice."""
    with Patches() as patches:
        for module in network.modules():
            if vars(module).get("gradient_checkpointing"):
                patches.set(module, "gradient_checkpointing", False)
        yield
