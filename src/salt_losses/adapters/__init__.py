"""Salt in existing training loops, one module for each trainer.

`attach(target, config)` adds it, `handle.detach()` takes it away; only instance attributes of the
given objects change (and where a model is attached without its trainer, PyTorch calls Salt after an
optimizer's step). The modules import nothing of the trainers.
"""

from ._launch import launch
from ._sample import sample
from .family.handle import SaltHandle
from .family.seams import MissingSeamError
from .watch.record import record

__all__ = ["MissingSeamError", "SaltHandle", "launch", "record", "sample"]
