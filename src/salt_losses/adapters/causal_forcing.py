"""Salt for Causal Forcing (github.com/thu-ml/Causal-Forcing): its DMD stage, chunk- and frame-wise.

    handle = causal_forcing.attach(trainer, SaltConfig())
    trainer.train()

A step list of the first chunk's own (`denoising_step_list_first_chunk`) is left alone, unless
`first_chunk_steps` asks for another: mixed steps replace the list of the other chunks. Where that
first list admits shortcut triples, the defect term covers the first chunk as well.
"""

from ..trainers import TRAINERS
from .family.attach import Adapter

_adapter = Adapter(TRAINERS["causal_forcing"])
attach = _adapter.attach
attached = _adapter.attached

__all__ = ["attach", "attached"]
