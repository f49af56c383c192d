"""The trainers and frameworks that Salt knows: one description of each.

`attach`, the frameworks' constructors, `plan` and `check` read the same one, so that a refusal is
written once and is the same before a run and in it. Importing this needs no torch.
"""

from .description import Facts, Problem, Trainer
from .known import TRAINERS

__all__ = ["TRAINERS", "Facts", "Problem", "Trainer"]
