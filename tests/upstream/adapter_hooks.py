"""What the processes of the distributed tests do with their trainer (`launch.run_trainer`)."""

from __future__ import annotations

import json
import os
from typing import Any

from salt_losses import SaltConfig
from salt_losses.adapters import causal_forcing, longlive, record, self_forcing

SETTINGS = "SALT_TEST_SETTINGS"
ADAPTERS = {"self": self_forcing, "longlive": longlive, "causal": causal_forcing}


def attach(trainer: Any) -> Any:
    settings = json.loads(os.environ[SETTINGS])
    settings["align_reference"] = {int(k): v for k, v in settings["align_reference"].items()}
    adapter = ADAPTERS[trainer.config.config_name.split("_")[0]]
    handle = adapter.attach(trainer, SaltConfig(**settings))
    record(handle, trainer)
    return handle


def report(trainer: Any, handle: Any) -> dict[str, Any]:
    plans = [handle._scheduler.plan(i) for i in range(6)]
    return {
        "state": handle.state_dict(),
        "plans": [(plan.num_steps, plan.use_align) for plan in plans],
        "metrics": handle.metrics,
    }
