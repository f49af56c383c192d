"""Salt for Self Forcing (github.com/guandeh17/Self-Forcing): `ScoreDistillationTrainer` with `DMD`.

handle = self_forcing.attach(trainer, SaltConfig())
trainer.train()
"""

from ..trainers import TRAINERS
from .family.attach import Adapter

_adapter = Adapter(TRAINERS["self_forcing"])
attach = _adapter.attach
attached = _adapter.attached

__all__ = ["attach", "attached"]
