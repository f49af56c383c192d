"""What is measured, in order of worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from salt_losses import SaltConfig
from salt_losses.cli.calls import Calls, critic_update, generator_update
from salt_losses.cli.seconds import Sizes, Work, work_of

OFF: dict[str, Any] = {"sc": None, "align": None, "adv": None}
# Times any float32 it is 0, but the term is computed.
VANISHING = 1e-60


@dataclass(frozen=True)
class Subject:
    """One kind of update.

    Attributes:
        name: its row's.
        settings: of Salt beside `step_counts`; None where it is not attached.
        steps: K.
        exit: the step at which every block leaves.
        kind: "generator", "critic", "neutral" (plain against vanishing weights), or "sweep".
        teacher: 1.3B or 14B.
    """

    name: str
    settings: dict[str, Any] | None
    steps: int = 4
    kind: str = "generator"
    teacher: str = "1.3B"

    @property
    def exit(self) -> int:
        return self.steps // 2

    @property
    def salt(self) -> SaltConfig | None:
        """This step count and its terms in every update, from the first one on."""
        if self.settings is None:
            return None
        first = {
            "step_counts": (self.steps,),
            "probs": (1.0,),
            "inference_steps": max(1, self.steps // 2),
        }
        always = {
            "align.reference": {self.steps: 2 * self.steps},
            "align.warmup": 0,
            "align.prob": 1.0,
        }
        own = {k: v for k, v in self.settings.items() if not k.startswith("sweep_")}
        aligned = always if any(k.startswith("align.") for k in own) else {}
        return SaltConfig.from_mapping({**first, **OFF, **aligned, **own})

    @property
    def sweeps(self) -> dict[str, Any]:
        """Arguments of `record`."""
        return {k: v for k, v in (self.settings or {}).items() if k.startswith("sweep_")}

    @property
    def key(self) -> str:
        """No two subjects share it."""
        kind = "" if self.kind == "generator" else f", {self.kind}"
        return f"{self.name}, K = {self.steps}{kind}, teacher {self.teacher}"

    def calls(self, blocks: int) -> Calls:
        """Of the generator, by the formulas of docs/cost.md."""
        exits = [self.exit] * blocks
        salt = self.salt
        if salt is not None and salt.first_chunk_steps is not None:
            exits[0] = self._first_exit
        if self.kind == "critic":
            return critic_update(exits)
        reference = None if salt is None or salt.align is None else salt.align.reference[self.steps]
        return generator_update(salt, self.steps, reference, exits)

    @property
    def _first_exit(self) -> int:
        """The first chunk's, where that has a grid of its own."""
        salt = self.salt
        if salt is None or salt.first_chunk_steps is None:
            return self.exit
        return int(salt.first_chunk_steps) // 2  # type: ignore[arg-type]

    def work(self, sizes: Sizes) -> Work:
        salt, calls = self.salt, self.calls(sizes.blocks)
        if self.kind == "critic":
            return work_of(salt, sizes, calls, critic_updates=1)
        return work_of(
            salt,
            sizes,
            calls,
            generator_updates=1,
            alignments=float(salt is not None and salt.align is not None),
            adversaries=float(salt is not None and salt.adv is not None),
        )


DEFECT = {"sc.weight": 1.0}
ALIGNED = {"align.weight": 0.1, "align.features": "fake_score"}
OPPONENT = {"adv.weight": 0.03}
# But for its warm-up.
RELEASED = {
    "align.weight": 0.1,
    "align.to": "exit",
    "align.features": "real_score",
    "align.block": 20,
    "align.noise_range": (0.0, 0.2),
}
NEUTRAL = {
    "defect": {"sc.weight": VANISHING, "sc.step_counts": (4,)},
    "alignment": {**ALIGNED, "align.to": "end", "align.weight": VANISHING},
    "discriminator": {"adv.weight": VANISHING, "adv.against": "more_steps"},
}

SUBJECTS = (
    Subject("plain", None),
    Subject("attached, terms off", {}),
    Subject("defect", {**DEFECT, "sc.step_counts": (8,)}, steps=8),
    Subject("attached, terms off", {}, steps=8),
    Subject("plain", None, kind="critic"),
    *(Subject(name, settings, kind="neutral") for name, settings in NEUTRAL.items()),
    Subject("alignment at exit", {**ALIGNED, "align.to": "exit"}),
    Subject("discriminator on data", {**OPPONENT, "adv.against": "data"}),
    Subject("alignment at end", {**ALIGNED, "align.to": "end"}),
    Subject("alignment at input", {**ALIGNED, "align.to": "input"}),
    Subject("discriminator on n + 1 steps", {**OPPONENT, "adv.against": "more_steps"}),
    Subject("plain", None, steps=8),
    Subject("plain", None, steps=2),
    Subject("first chunk in 4", {"first_chunk_steps": 4}, steps=2),
    Subject("attached, terms off", {}, kind="critic"),
    Subject("sweep", {"sweep_every": 1, "sweep_prompts": ("a cat", "a dog")}, kind="sweep"),
    Subject("plain", None, teacher="14B"),
    Subject("the release's alignment", RELEASED, teacher="14B"),
)
