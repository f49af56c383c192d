"""Salt for Causal Forcing (github.com/thu-ml/Causal-Forcing): its DMD stage, chunk- and frame-wise.

    handle = causal_forcing.attach(trainer, SaltConfig())
    trainer.train()

Mixed steps replace the list of all chunks except the first, which keeps its separate list
(`denoising_step_list_first_chunk`) unless `first_chunk_steps` asks for another. If that list admits
shortcut triples, the self-consistency term covers the first chunk as well.
"""

from ..trainers import TRAINERS
from .family.attach import Adapter

_adapter = Adapter(TRAINERS["causal_forcing"])
attach = _adapter.attach
attached = _adapter.attached

__all__ = ["attach", "attached"]
