"""The velocity of a FastGen network that is asked for x0, as its rollouts and samplers ask it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from ..._checks import compute_dtype
from ...flow import x0_to_velocity
from ...runtime.patches import Patches


class Prediction(NamedTuple):
    """A network's prediction.

    Attributes:
        x0: as the network returned it.
        v: the velocity.
        written: where the network put its condition (a clean first frame); `None`: nowhere.
    """

    x0: Tensor
    v: Tensor
    written: Tensor | None


class Predictions:
    """Watches a network make an x0 of what it predicts, within the context.

    To ask for another kind would change the call: WanI2V writes its clean frame into whatever it is
    asked for, Cosmos into an x0 alone. And a velocity made of an x0 in bfloat16 is rounded once
    more, by up to `0.004 * |x0| / t`. So the velocity is that of the raw output, which the network
    hands to its noise scheduler. If the network wrote something, it is that of what it wrote,
    for which every state on the way is a mixture of that and noise, as in FastGen's own rollouts.
    """

    def __init__(self, net: Any) -> None:
        self._scheduler = net.noise_scheduler
        self._convert = self._scheduler.convert_model_output
        self._patches = Patches()
        self._raw: tuple[Any, ...] | None = None

    def __enter__(self) -> Self:
        self._patches.set(self._scheduler, "convert_model_output", self._watched)
        return self

    def __exit__(self, *_: Any) -> None:
        self._raw = None
        self._patches.restore()

    def _watched(
        self,
        xt: Tensor,
        model_output: Tensor,
        t: Tensor,
        src_pred_type: str = "x0",
        target_pred_type: str = "eps",
    ) -> Tensor:
        made: Tensor = self._convert(xt, model_output, t, src_pred_type, target_pred_type)
        self._raw = (xt, model_output, t, src_pred_type, made)
        return made

    def of(self, x: Tensor, t: Tensor, x0: Tensor) -> Prediction:
        """Return the prediction of the last call, at `x` and `t` `[B]`, that returned `x0`."""
        raw, self._raw = self._raw, None
        if raw is None:  # a network that does not ask its scheduler
            return Prediction(x0, _velocity(x, x0, t), None)
        xt, output, levels, kind, made = raw
        v: Tensor = self._convert(xt.to(compute_dtype(xt.dtype)), output, levels, kind, "flow")
        if x0 is made:
            return Prediction(x0, v, None)
        # All channels together: one may be equal by chance.
        differs = (x0.detach() - made.detach()).abs() > 0
        written = differs.any(dim=1, keepdim=True).expand_as(x0)
        return Prediction(x0, torch.where(written, _velocity(x, x0, t), v), written)


def _velocity(x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    return x0_to_velocity(x.to(compute_dtype(x.dtype)), x0, t)
