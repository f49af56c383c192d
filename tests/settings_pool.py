"""A few hundred settings, random and chosen, that `plan` and a trainer are to judge alike."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from salt_losses import SaltConfig, SettingError
from salt_losses.cli.foresight import foresee, remarks
from salt_losses.cli.trainers import Trainer
from salt_losses.terms import Rollout, Term


@dataclass(frozen=True)
class Judged(Term):
    """A term from elsewhere that needs what the frameworks do not give: real videos."""

    name = "judged"

    def loss(self, rollout: Rollout) -> Tensor:
        return (rollout.video - rollout.data).square().mean()


JUDGED = {"_target_": "tests.settings_pool.Judged", "weight": 0.1}
POOL: dict[str, list[Any]] = {
    "step_counts": [(2, 4, 8), (4,), (2,), (1, 3, 6), (1,), (8,), (700,)],
    "inference_steps": [1, 2, 4],
    "shift": [None, None, None, 3.0],
    "first_chunk_steps": [None, None, None, 4, 8],
    "sc": [None],
    "sc.weight": [0.0, 1.0, 1.0],
    "sc.step_counts": [(8,), (4,), (2, 4), (), None],
    "sc.time_weight": [None, "clean"],
    "sc.warmup": [0, 0, 60, 100],
    "align": [None, {}],
    "align.weight": [0.0, 0.1],
    "align.reference": [{2: 4, 4: 8}, {1: 4}, {}],
    "align.prob": [0.0, 0.5, 1.0],
    "align.warmup": [0, 0, 600],
    "align.margin": [0.1, 0.1, 2.5],
    "align.to": ["exit", "end", "input"],
    "align.block": [None, 0, 1, 40],
    "align.features": ["fake_score", "real_score"],
    "adv": [None, {}],
    "adv.weight": [0.0, 0.1],
    "adv.against": ["data", "more_steps"],
    "adv.blocks": [None, (0,), (40,)],
    "adv.features": ["fake_score", "real_score"],
    "adv.step_counts": [None, (2,)],
    "adv.kind": ["relativistic", "hinge"],
    "adv.warmup": [0, 600],
    "terms": [[], [], [JUDGED], [{**JUDGED, "step_counts": [3]}], [{**JUDGED, "warmup": 600}]],
}
CHOSEN: list[dict[str, Any]] = [
    {},
    {"align": {"prob": 0}},
    {"step_counts": [2], "probs": [1.0], "inference_steps": 2,
     "sc": {"step_counts": [2], "time_weight": "clean"}},
    {"step_counts": [2], "probs": [1.0], "inference_steps": 2,
     "sc": {"step_counts": [2], "time_weight": "clean"}, "align": {"margin": 2.5}},
    {"adv": {"kind": "hinge"}},
    {"step_counts": [3], "probs": [1.0]},
    {"adv": {"weight": 0.1, "warmup": 600}},
    {"terms": [JUDGED]},
    {"shift": 3.0},
    {"align": {"features": "real_score", "block": 40}},
]  # fmt: skip


def settings(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """All chosen ones, and random ones that are allowed in themselves."""
    yield from CHOSEN
    rng = random.Random(seed)
    while count:
        changed = rng.sample(sorted(POOL), rng.randint(1, 5))
        found = {name: rng.choice(POOL[name]) for name in changed}
        if "step_counts" in found:
            number = len(found["step_counts"])
            found["probs"] = [1 / number] * number
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                SaltConfig.from_mapping(found)
        except SettingError:
            continue
        yield found
        count -= 1


def compare(
    settings: dict[str, Any],
    run: Callable[[SaltConfig], object],
    trainer: Trainer,
    where: str,
    iterations: int = 100,
) -> None:
    """What `run` raises is `plan`'s first error; what is warned of is in its notes, and the notes
    are that and `plan`'s own remarks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config, refused = SaltConfig.from_mapping(settings), None
        try:
            run(config)
        except SettingError as error:
            refused = error
        texts = [str(w.message) for w in caught]
        # A framework makes the settings once more, from its configuration.
        made = {text for text in texts if text.startswith("SaltConfig: ")}
        said = [*made, *(text for text in texts if text.startswith(where))]
        said = [text.partition(": ")[2] for text in said]
        found = foresee(config, trainer, iterations, "tiny", "tiny", 16)
    told = f"{where} {json.dumps(settings)}"
    if refused is not None:
        assert found["problems"], f"{told}: only the trainer says {refused}"
        first = found["problems"][0]
        assert (first["setting"], first["problem"]) == (refused.setting, str(refused)), told
        return
    assert not found["problems"], f"{told}: only plan says {found['problems']}"
    own = remarks(config, trainer, iterations, found["step_counts"])
    assert len(said) == len(set(said)), f"{told}: said twice"
    assert sorted(found["notes"]) == sorted(said + own), told
