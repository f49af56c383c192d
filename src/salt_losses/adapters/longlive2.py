"""Salt for LongLive 2.0 (github.com/NVlabs/LongLive, branch `main`): its DMD stage, LoRA or full.

    handle = longlive2.attach(trainer, SaltConfig())
    trainer.train()

Its rollouts are made by UniPC, a multistep solver, from a step count: mixed steps are mixed counts,
and the grids are the solver's own, of whole timesteps. So they are no consistency rollouts as the
paper has them; the defect term, the alignment and a discriminator against rollouts of one step more
are as ever. A student that sees all frames at once (`generator_is_causal: false`) has mixed steps
and the defect term.
"""

from ..trainers import TRAINERS
from .family.attach import Adapter

_adapter = Adapter(TRAINERS["longlive2"], solver=True)
attach = _adapter.attach
attached = _adapter.attached

__all__ = ["attach", "attached"]
