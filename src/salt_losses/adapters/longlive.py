"""Salt for LongLive (github.com/NVlabs/LongLive, branch `v1.0`): both of its training modes.

    handle = longlive.attach(trainer, SaltConfig())
    trainer.train()

The target is the trainer, its `streaming_model`, or the `DMD` model alone. In streaming training
the KV cache lives on between chunks; rollouts beside the student's run on a copy of it.
"""

from ..trainers import TRAINERS
from .family.attach import Adapter

_adapter = Adapter(TRAINERS["longlive"], streaming=True)
attach = _adapter.attach
attached = _adapter.attached

__all__ = ["attach", "attached"]
