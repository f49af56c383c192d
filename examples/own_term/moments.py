"""A term in ten lines: keep each sample's contrast at the teacher's.

Students that are distilled with DMD over-saturate. This term compares the standard deviation of
each sample and channel with that of the teacher's prediction of the same noised video, which DMD
has already made: no call of any network is added. It is an illustration, not a published method.

    from examples.own_term.moments import Moments
    handle = self_forcing.attach(trainer, SaltConfig(terms=(Moments(0.1),)))

and in the YAML of FastVideo, LightX2V or FastGen:

    salt: {terms: [{_target_: examples.own_term.moments.Moments, weight: 0.1}]}
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from salt_losses.terms import Rollout, Term


@dataclass(frozen=True)
class Moments(Term):
    """Match the standard deviation over frames and pixels, per sample and channel."""

    name = "moments"
    weight: float = 0.1

    def loss(self, rollout: Rollout) -> Tensor:
        ours, teacher = rollout.video, rollout.real_x0
        return (ours.std((1, 3, 4)) - teacher.std((1, 3, 4))).square().mean()
