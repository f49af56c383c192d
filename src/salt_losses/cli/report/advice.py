"""The meaning of a number out of its range, and what to change: the table of docs/health.md."""

from __future__ import annotations

from typing import NamedTuple


class Advice(NamedTuple):
    """Advice about a number out of its range.

    Attributes:
        key: of the measure.
        side: `"above"` or `"below"` its range, or if it has none, its earlier values.
        sees: what one sees, with the number as its subject.
    """

    key: str
    side: str
    sees: str
    means: str
    change: str


_CRITIC = "raise lr_critic, or make more critic updates to each of the generator's"
ADVICE = (
    Advice(
        "salt/health/dmd_norm",
        "below",
        "is small, and the critic's lag stays near 0",
        "the critic does not follow: it is still the teacher, so there is no direction",
        _CRITIC,
    ),
    Advice(
        "salt/health/dmd_zeroed",
        "above",
        "is above 0",
        "a score network's prediction is not finite, and the student trains without DMD",
        "go back to a checkpoint from before, and lower lr_critic",
    ),
    Advice(
        "salt/health/critic_lag",
        "above",
        "is above 0",
        "the critic knows the student's videos worse than the teacher does: it has lost them, or "
        "is unstable, and the student soon saturates",
        "lower lr_critic; then make more critic updates to each of the generator's, or lower the "
        "generator's learning rate",
    ),
    Advice(
        "salt/health/sc_ratio",
        "above",
        "is above 1",
        "the self-consistency term, not DMD, decides where the student goes",
        "lower sc.weight in proportion",
    ),
    Advice(
        "salt/health/sc_ratio",
        "below",
        "is very small",
        "the term does nothing",
        "raise sc.weight, if more steps do not help",
    ),
    Advice(
        "salt/health/sc_cosine",
        "below",
        "is well below 0",
        "the self-consistency term undoes what DMD does",
        "look at the critic first, as DMD's direction may be the wrong one; then lower sc.weight",
    ),
    Advice(
        "salt/health/latent_mean_shift",
        "above",
        "climbs and goes on climbing",
        "saturation: the samples' colours drift away",
        "look at the sweeps; lower the guidance scale or the generator's learning rate, stop "
        "earlier",
    ),
    Advice(
        "salt/health/latent_std_ratio",
        "above",
        "climbs and goes on climbing",
        "saturation: the samples' contrast grows",
        "look at the sweeps; lower the guidance scale or the generator's learning rate, stop "
        "earlier",
    ),
    Advice(
        "salt/health/latent_std_ratio",
        "below",
        "falls towards 0",
        "collapse: all samples become alike",
        "stop; look at the critic first, then lower the generator's learning rate",
    ),
    Advice(
        "salt/health/motion",
        "below",
        "falls while the deviation of the latents does not",
        "videos turn into stills",
        "stop earlier; look at the sweeps",
    ),
    Advice(
        "salt/health/sc_norm",
        "below",
        "is there in few updates",
        "few step counts have the term, or the exit steps admit no triple",
        "set probs or sc.step_counts",
    ),
)
NOT_FINITE = "start again from the last checkpoint before; lower the learning rates or sc.weight"


def advice(key: str, side: str) -> Advice | None:
    return next((a for a in ADVICE if (a.key, a.side) == (key, side)), None)
