"""What the processes of the distributed tests do with their trainer (`launch.run_trainer`)."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from salt_losses import SaltConfig
from salt_losses.adapters import causal_forcing, longlive, longlive2, record, self_forcing
from salt_losses.adapters.watch import sweep

SETTINGS = "SALT_TEST_SETTINGS"
OF_A_RANK = ("terms", "health")
ADAPTERS = {
    "self": self_forcing,
    "longlive": longlive,
    "longlive2": longlive2,
    "causal": causal_forcing,
}


def attach(trainer: Any) -> Any:
    settings = json.loads(os.environ[SETTINGS])
    sweeps = {name: settings.pop(name) for name in list(settings) if name.startswith("sweep_")}
    handle = _adapter(trainer).attach(trainer, SaltConfig.from_mapping(settings))
    record(handle, trainer, **sweeps)
    trainer.first_head = head(handle)
    return handle


def attach_sweeping(trainer: Any) -> Any:
    """Two step counts are enough to gather and give back all weights."""
    sweep.STEP_COUNTS = (1, 2)
    return attach(trainer)


def head(handle: Any) -> str | None:
    """The discriminator's weights."""
    for term in handle.terms:
        if term.name == "adv":
            weights = [p.detach().numpy().tobytes() for p in term.head.parameters()]
            return hashlib.sha256(b"".join(weights)).hexdigest()
    return None


def _adapter(trainer: Any) -> Any:
    return ADAPTERS[trainer.config.config_name.split("_")[0]]


def report(trainer: Any, handle: Any) -> dict[str, Any]:
    plans = [handle._losses.scheduler.plan(i) for i in range(6)]
    return {
        "state": {name: x for name, x in handle.state_dict().items() if name not in OF_A_RANK},
        "plans": [(plan.num_steps, plan.use_align) for plan in plans],
        "metrics": handle.metrics,
        "heads": (getattr(trainer, "first_head", None), head(handle)),
    }
