"""Salt for LongLive 2.0 (github.com/NVlabs/LongLive, branch `main`): its DMD stage, LoRA or full.

    handle = longlive2.attach(trainer, SaltConfig())
    trainer.train()

UniPC, a multistep solver, makes its rollouts from a step count: mixed steps are mixed counts, and
the grids are the solver's own, of whole timesteps, and not the paper's consistency rollouts. The
self-consistency term, the alignment and a discriminator against rollouts of one step more work as
elsewhere. A student that generates all frames at once (`generator_is_causal: false`) has mixed
steps and the self-consistency term.
"""

from ..trainers import TRAINERS
from .family.attach import Adapter

_adapter = Adapter(TRAINERS["longlive2"], solver=True)
attach = _adapter.attach
attached = _adapter.attached

__all__ = ["attach", "attached"]
