"""Terms: each regularizer of DMD is one object that knows everything about itself.

`Term` is the protocol; write `loss` and pass the object to `SaltConfig(terms=(...))`
(docs/own_term.md). `SelfConsistency`, `Alignment` and `Adversarial` are the library's own.
"""

from .adversarial import Adversarial
from .alignment import Alignment
from .base import Calls, Chunks, Run, Start, Term
from .self_consistency import SelfConsistency
from .trace import ExitStep, Network, Reference, Rollout, Trace

__all__ = [
    "Adversarial",
    "Alignment",
    "Calls",
    "Chunks",
    "ExitStep",
    "Network",
    "Reference",
    "Rollout",
    "Run",
    "SelfConsistency",
    "Start",
    "Term",
    "Trace",
]
