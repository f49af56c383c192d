"""Warnings of a run that goes wrong, from its metrics (docs/health.md)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

# What no run that went well came near, and runs that went wrong did: docs/health.md.
COLLAPSED = 0.3  # latent_std_ratio below it
RUN_AWAY = 0.5  # critic_lag above it: 1.6 times the teacher's loss
ZEROED = 5  # updates in a row without DMD: one bad sample is one
LAG, DEVIATION = "salt/health/critic_lag", "salt/health/latent_std_ratio"
NO_DMD = "salt/health/dmd_zeroed"


class Alarms:
    """One warning for each cause, with the number and the iteration.

    Args:
        sound: called with `iteration`, `cause` and `message` beside the warning.
    """

    def __init__(self, sound: Callable[[dict[str, object]], None]) -> None:
        self._sound, self._causes = sound, set[str]()
        self._zeroed = 0  # updates in a row

    def __call__(self, metrics: dict[str, float]) -> None:
        """Looks at one generator update's metrics."""
        broken = [f"{n} is {value}" for n, value in metrics.items() if not math.isfinite(value)]
        if broken:
            self._raise(metrics, "not finite", ", ".join(broken))
        deviation, lag = metrics.get(DEVIATION, 1.0), metrics.get(LAG, 0.0)
        if deviation < COLLAPSED:
            message = f"the latents have collapsed: {DEVIATION} is {deviation:.3g}"
            self._raise(metrics, "collapsed", f"{message}, below {COLLAPSED:g}")
        if RUN_AWAY < lag < math.inf:
            message = f"the critic has run away from the generator: {LAG} is {lag:.3g}"
            self._raise(metrics, "critic", f"{message}, above {RUN_AWAY:g}")
        self._zeroed = self._zeroed + 1 if metrics.get(NO_DMD) == 1 else 0
        if self._zeroed == ZEROED:
            message = f"DMD's direction has no finite entry: {NO_DMD} is 1 in {ZEROED} updates"
            self._raise(
                metrics,
                "no direction",
                f"{message} in a row, as where the critic has diverged, and the student trains on "
                "by the other terms only",
            )

    def _raise(self, metrics: dict[str, float], cause: str, message: str) -> None:
        if cause in self._causes:
            return
        self._causes.add(cause)
        iteration = int(metrics["iteration"])
        self._sound({"iteration": iteration, "cause": cause, "message": message})
        warnings.warn(f"Salt, iteration {iteration}: {message} (docs/health.md)", stacklevel=2)
