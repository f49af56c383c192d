"""Salt in existing training loops, one module for each trainer.

`attach(target, config)` adds it, `handle.detach()` takes it away; only instance attributes of the
given objects change (and where a model is attached without its trainer, PyTorch calls Salt after an
optimizer's step). The modules import nothing of the trainers.
"""

from ._engine import SaltHandle
from ._launch import launch
from ._record import record
from ._sample import sample
from ._seams import MissingSeamError

__all__ = ["MissingSeamError", "SaltHandle", "launch", "record", "sample"]
