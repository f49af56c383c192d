"""Salt for LongLive (github.com/NVlabs/LongLive, branch `v1.0`), in both of its training modes.

    handle = longlive.attach(trainer, SaltConfig())
    trainer.train()

In streaming training the KV cache persists between chunks; the reference and the discriminator's
rollout run on a copy of it.
"""

from ..trainers import TRAINERS
from .family.attach import Adapter

_adapter = Adapter(TRAINERS["longlive"], streaming=True)
attach = _adapter.attach
attached = _adapter.attached

__all__ = ["attach", "attached"]
