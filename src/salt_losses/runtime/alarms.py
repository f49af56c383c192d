"""Warnings of a run that goes wrong, from its metrics (docs/health.md)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

# Good runs stayed far from these limits, and bad runs crossed them: docs/health.md.
COLLAPSED = 0.3  # latent_std_ratio below it
RUN_AWAY = 0.5  # critic_lag above it: 1.6 times the teacher's loss
ZEROED = 5  # updates in a row without DMD; one may be a bad sample
LAG, DEVIATION = "salt/health/critic_lag", "salt/health/latent_std_ratio"
NO_DMD = "salt/health/dmd_zeroed"


class Alarms:
    """Warns once for each cause, and calls `sound` with `iteration`, `cause` and `message`."""

    def __init__(self, sound: Callable[[dict[str, object]], None]) -> None:
        self._sound, self._causes = sound, set[str]()
        self._zeroed = 0  # updates in a row

    def __call__(self, metrics: dict[str, float]) -> None:
        """Look at one generator update's metrics."""
        deviation, lag = metrics.get(DEVIATION, 1.0), metrics.get(LAG, 0.0)
        self._zeroed = self._zeroed + 1 if metrics.get(NO_DMD) == 1 else 0
        found = {}
        broken = [f"{n} is {value}" for n, value in metrics.items() if not math.isfinite(value)]
        if broken:
            found["not finite"] = ", ".join(broken)
        if deviation < COLLAPSED:
            found["collapsed"] = (
                f"the latents have collapsed: {DEVIATION} is {deviation:.3g}, below {COLLAPSED:g}"
            )
        if RUN_AWAY < lag < math.inf:
            found["critic"] = (
                f"the critic has run away from the generator: {LAG} is {lag:.3g}, "
                f"above {RUN_AWAY:g}"
            )
        if self._zeroed == ZEROED:
            found["no direction"] = (
                f"DMD's direction has no finite entry: {NO_DMD} is 1 in {ZEROED} updates in a row, "
                "as when the critic has diverged, and the student trains on by the other terms only"
            )
        for cause in [c for c in found if c not in self._causes]:
            self._causes.add(cause)
            iteration, message = int(metrics["iteration"]), found[cause]
            self._sound({"iteration": iteration, "cause": cause, "message": message})
            warnings.warn(f"Salt, iteration {iteration}: {message} (docs/health.md)", stacklevel=2)
