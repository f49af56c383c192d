"""Salt in existing training loops, one module for each trainer.

`attach(trainer, config)` adds it and `handle.detach()` removes it; only instance attributes of the
given objects change. The modules import nothing of the trainers.
"""

from .family.handle import SaltHandle
from .family.seams import MissingSeamError
from .watch.record import record

__all__ = ["MissingSeamError", "SaltHandle", "record"]
