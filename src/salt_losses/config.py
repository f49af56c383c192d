"""The settings of a Salt run: flat, checked when they are made, the same from every file format."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import Self

from ._checks import check_choice, check_count, check_number, describe
from .adversarial import AdversarialKind
from .effects import no_effect, warn_of
from .errors import SettingError, checked
from .features import check_indices
from .mixed_step import MixedStepScheduler
from .presets import PRESETS


@dataclasses.dataclass(frozen=True)
class SaltConfig:
    """Every setting of a Salt run. The scheduler's are under the same names as there: see
    `MixedStepScheduler` for `step_counts`, `probs`, `sc_steps`, `sc_warmup`, `align_reference`,
    `align_warmup`, `align_prob`, `inference_steps`, `seed` and `first_chunk_steps`.

    Settings are kept as they were checked: tuples, plain numbers, a dict of its own. So a config
    from a YAML or JSON file equals, and hashes like, the same one from keywords, and
    `from_mapping(dataclasses.asdict(config))` is `config` again, by way of JSON too.

    The paper gives `step_counts`, `probs`, `sc_steps`, `inference_steps`, `align_reference` and
    `align_warmup`; the other defaults are ours. What chose them (numbers in `docs/evidence`):

    - `sc_weight`: on the miniature video 1 is better than none at 4 and 8 steps and in long
      rollouts once training is long enough for more steps to get worse, where 0.2 gains half of
      that; before that it costs a little. In two dimensions 0.03 to 0.3 are best, and 1 is still
      better than none.
    - `sc_warmup`: 0, as in the published recipes. A later start gained nothing there, and made long
      rollouts worse.
    - `align_weight`: 0, as no form of the alignment was seen to be worth its cost on the miniature
      video. The paper does not give its own; 0.1 is that of the authors' release.
    - `align_at`, `align_noise`: no form was seen to be better than "exit" with "shared", which
      costs the fewest calls and no second KV cache beside the student's graph.
    - `align_margin`, `align_prob`, `align_block`: chosen, not measured with these forms.
    - `adv_weight`: 0, the paper's own system has no discriminator. Where it is on, FastGen (commit
      34f30e8) and One-Forcing (ca345b3) have 0.03, which on the miniature video was better than
      none at 1 step and undecided from 4 on, where 0.1 did harm (one seed). `adv_against`:
      One-Forcing's, there as good at 1 step as rollouts of one step more. `adv_kind`: ASD's; it
      and `adv_levels` were better there at 1 step than non-saturating and than all levels.
      `adv_blocks`, `adv_lr`: FastGen's for Wan 1.3B (15, 22 and 29 of 30; 1e-5; the miniature's
      short training had 1e-3). The others: ours.

    Args:
        shift: time shift of the grids; `None`: the trainer's own (adapters), 1 elsewhere.
        sc_weight: lambda_SC, the weight of the self-consistency term. 0 switches it off. The term
            is a mean over elements, next to a DMD loss whose gradient is normalised.
        align_weight: lambda_align, the weight of the alignment. 0 switches it off.
        align_margin: delta of eq. 12, in units of cosine similarity.
        align_features: the network whose features are aligned: `"fake_score"` or `"real_score"`.
        align_block: index of the transformer block whose output is taken; `None`: the middle one.
        sc_stop_grad: the endpoint of the self-consistency term that is a constant, `"direct"` or
            `"composed"` (see `semigroup_defect_loss`); `None`, eq. 8 as it is written: neither.
        sc_time_weight: `None`, or `"clean"`: the term of a state at `t_s` counts `1 - t_s`.
        sc_nearest: how many of the ends `t_e` below `t_s` are drawn from, the nearest ones; `None`:
            all (see `shortcut_triple_sampler`).
        align_at: what the student's prediction is aligned to. `"end"`: the reference's last one.
            `"exit"`: its prediction at the student's exit level; no alignment where the student
            leaves at its first step. `"input"`: the prediction from the student's own exit input
            on the reference's cache, so that only the cache differs.
        align_noise: the noise between the reference's steps. `"own"`, or `"shared"`: the student's
            own at the levels that both grids have, an Euler step at the others.
        align_levels: lowest and highest noise level of the aligned features, before the shift.
        adv_weight: weight of the adversarial term. 0 switches it off, and no discriminator is made.
        adv_against: what the discriminator tells the student's rollouts from. `"data"`: the
            trainer's `clean_latent`. `"more_steps"`: where the student has n steps, the same
            student's rollouts of n + 1 steps to the end, from noise of their own (ASD, arXiv
            2511.01419); one logit for each n.
        adv_step_counts: the step counts at which the term is on, of `step_counts`; `None`: all.
        adv_kind: `"non_saturating"`, `"hinge"` or `"relativistic"` (ASD's), see
            `adversarial_generator_loss`.
        adv_features: the network whose blocks the discriminator reads: `"fake_score"` or
            `"real_score"`.
        adv_blocks: indices of these blocks; `None`: the middle one, the one at three quarters and
            the last.
        adv_levels: lowest and highest noise level of what it sees, before the shift.
        adv_lr: learning rate of the discriminator's AdamW (betas 0 and 0.999).
        adv_penalty: weight of `finite_difference_penalty`, on real samples and on the student's. At
            0 its two passes are not made.
        adv_sigma: size of the penalty's perturbation.
        adv_warmup: iterations before the term reaches the student. The discriminator is trained
            from the first.
        adv_updates: updates of the discriminator at each loss call of the generator. Where
            gradients are accumulated over n calls, it has n times as many in one of its updates.
        sweep_every: iterations from one step sweep to the next, of a run that is recorded
            (`adapters.record`); 0: none. The training is the same with and without.
        sweep_prompts: the prompts of the sweeps; `None`: the first two of the trainer's own file.

    Warns of a term that these settings never turn on.

    Raises:
        SettingError: a setting of the wrong type (a `TypeError` too) or out of range; it is a
            `ValueError` with the setting's name as `setting`.

    Example:
        >>> SaltConfig(sc_weight=0.5).scheduler().step_counts
        (2, 4, 8)
    """

    step_counts: Sequence[int] = (2, 4, 8)
    probs: Sequence[float] = (0.2, 0.4, 0.4)
    shift: float | None = None
    sc_steps: Sequence[int] = (8,)
    align_reference: Mapping[int, int] = dataclasses.field(
        default_factory=lambda: {2: 4, 4: 8},
        hash=False,  # a dict has none
    )
    align_warmup: int = 600
    align_prob: float = 0.5
    inference_steps: int = 4
    seed: int = 0
    first_chunk_steps: int | Mapping[int, int] | None = dataclasses.field(default=None, hash=False)
    sc_weight: float = 1.0
    align_weight: float = 0.0
    align_margin: float = 0.1
    align_features: str = "fake_score"
    align_block: int | None = None
    sc_stop_grad: str | None = None
    sc_time_weight: str | None = None
    sc_nearest: int | None = None
    sc_warmup: int = 0
    align_at: str = "exit"
    align_noise: str = "shared"
    align_levels: tuple[float, float] = (0.0, 1.0)
    adv_weight: float = 0.0
    adv_against: str = "data"
    adv_step_counts: Sequence[int] | None = None
    adv_kind: AdversarialKind = "relativistic"
    adv_features: str = "fake_score"
    adv_blocks: Sequence[int] | None = None
    adv_levels: tuple[float, float] = (0.0, 0.5)
    adv_lr: float = 1e-5
    adv_penalty: float = 0.0
    adv_sigma: float = 0.1
    adv_warmup: int = 0
    adv_updates: int = 1
    sweep_every: int = 0
    sweep_prompts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        scheduler = self.scheduler()
        values: dict[str, Any] = {name: getattr(scheduler, name) for name in _SCHEDULERS}
        values["shift"] = None if self.shift is None else scheduler.shift
        for name in ("sc_weight", "align_weight", "align_margin", "adv_weight", "adv_penalty"):
            values[name] = checked(name, check_number, getattr(self, name), low=0.0)
        for name in ("adv_lr", "adv_sigma"):
            values[name] = checked(name, check_number, getattr(self, name), above=0.0)
        for name, low in (("adv_warmup", 0), ("adv_updates", 1), ("sweep_every", 0)):
            values[name] = checked(name, check_count, getattr(self, name), low=low)
        for name, low in (("align_block", 0), ("sc_nearest", 1)):
            value = getattr(self, name)
            values[name] = None if value is None else checked(name, check_count, value, low=low)
        for name, known in _CHOICES.items():
            checked(name, check_choice, getattr(self, name), known)
        for name in ("align_levels", "adv_levels"):
            values[name] = checked(name, _levels, getattr(self, name))
        if self.adv_blocks is not None:
            values["adv_blocks"] = checked("adv_blocks", check_indices, self.adv_blocks)
        if self.adv_step_counts is not None:
            known_counts = scheduler.step_counts
            values["adv_step_counts"] = checked(
                "adv_step_counts",
                _some_of,
                self.adv_step_counts,
                known_counts,
                rests_on=["step_counts"],
            )
        if self.sweep_prompts is not None:
            values["sweep_prompts"] = checked("sweep_prompts", _prompts, self.sweep_prompts)
        for name, value in values.items():
            object.__setattr__(self, name, value)  # as a frozen dataclass sets itself
        warn_of([f"SaltConfig: {note.sentence}" for note in no_effect(self)])

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """From a parsed YAML or JSON file. Settings that it leaves out keep their defaults, or have
        the values of the `"preset"` that it names.

        Raises:
            SettingError: an unknown key; the message suggests the nearest known one, if near.
            TypeError: not a mapping.

        Example:
            >>> SaltConfig.from_mapping({"preset": "paper", "sc_weight": 0.5}).sc_weight
            0.5
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping must be a mapping of settings; got {describe(mapping)}")
        known = ["preset", *(field.name for field in dataclasses.fields(cls))]
        for key in mapping:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                hint = _BLOCK if key == "salt" else hint
                raise SettingError(str(key), f"unknown setting {key!r}; {hint}")
        settings = dict(mapping)
        for name in {"align_reference", "first_chunk_steps"} & set(settings):
            settings[name] = checked(name, _integer_keys, settings[name])
        if "preset" in settings:
            settings = {**_preset(settings.pop("preset")), **settings}
        return cls(**settings)

    @classmethod
    def preset(cls, name: str) -> Self:
        """The settings of a published recipe; `dataclasses.replace` changes some of them.

        `"paper"`: arXiv 2604.03118. It gives the step counts and their probabilities, K = 8 for the
        self-consistency term, the references 2 -> 4 and 4 -> 8, and 600 iterations before the
        alignment; its equations give the loss without a constant endpoint or a weight in time, with
        ends from the whole grid. Ours, as it gives none: `sc_weight` and `align_weight` (1, 0.1),
        `align_margin`, `align_prob`, `align_noise`, `align_features`, `align_block`,
        `align_levels`. `align_at="input"` is how we read its sec. 3.3 ("the same input noise").

        `"released_self_forcing"`, `"released_causal_forcing"`, `"released_longlive"`: the authors'
        release (github.com/XingtongGe/Salt at 020d04f), mixed steps with both terms. They differ in
        `align_warmup` (1000, 700, 1200) and `align_noise` (own, shared, shared). `align_warmup`
        counts the trainer's steps, here as there; every fifth updates the generator.

        What no setting reproduces of the release, and what that means:

        - One triple for the whole rollout and all ranks; here each block, sample and rank draws its
          own. The same mean, less variance.
        - A step count and an exit of its own for every rollout; here an iteration's generator and
          critic share the step count. Each sees the same mixture; not measured beyond that.
        - Times cut to integers (937 for 937.5): the network is asked up to 0.001 away from every
          level that a rollout uses. Harmless, and not worth copying.
        - Endpoints in bfloat16: their rounding hides velocity gaps below 0.007 to 0.024 (root mean
          square). Here the gap itself is taken, in float32.
        - Token relations in bfloat16 under autocast; here in float32. And the whole step in
          autocast: that is the trainer's.
        - An exception in the alignment drops the term on that rank; here it raises.
        - Learning rates, EMA, a batch of 1 on 8 ranks, guidance 3 and the 14B teacher are the
          trainer's settings.

        Raises:
            ValueError: an unknown name.

        Example:
            >>> SaltConfig.preset("released_longlive").align_warmup
            1200
        """
        return cls(**_preset(name))

    def has_adversary(self, num_steps: int) -> bool:
        """Whether rollouts of so many steps are shown to a discriminator."""
        counts = self.step_counts if self.adv_step_counts is None else self.adv_step_counts
        return self.adv_weight > 0 and num_steps in counts

    def scheduler(self, shift: float | None = None) -> MixedStepScheduler:
        """The scheduler of these settings; `shift` stands in where `self.shift` is `None`."""
        own = 1.0 if shift is None else shift
        return MixedStepScheduler(
            self.step_counts,
            self.probs,
            shift=own if self.shift is None else self.shift,
            sc_steps=self.sc_steps,
            sc_warmup=self.sc_warmup,
            align_reference=self.align_reference,
            align_warmup=self.align_warmup,
            align_prob=self.align_prob,
            inference_steps=self.inference_steps,
            seed=self.seed,
            first_chunk_steps=self.first_chunk_steps,
        )


_SCHEDULERS = (
    "step_counts", "probs", "sc_steps", "sc_warmup", "align_reference", "align_warmup",
    "align_prob", "inference_steps", "seed", "first_chunk_steps",
)  # fmt: skip
_BLOCK = (
    "its settings stand here by themselves: a block of that name belongs in a framework's own "
    "config (docs/frameworks.md)"
)
_CHOICES = {
    "sc_stop_grad": (None, "direct", "composed"),
    "sc_time_weight": (None, "clean"),
    "align_at": ("end", "exit", "input"),
    "align_noise": ("own", "shared"),
    "align_features": ("fake_score", "real_score"),
    "adv_against": ("data", "more_steps"),
    "adv_kind": ("non_saturating", "hinge", "relativistic"),
    "adv_features": ("fake_score", "real_score"),
}


def _preset(name: str) -> dict[str, Any]:
    checked("preset", check_choice, name, tuple(PRESETS))
    return PRESETS[name]


def _integer_keys(name: str, value: object) -> object:
    """JSON knows keys of text only."""
    if not isinstance(value, Mapping):
        return value
    keys = [int(k) if isinstance(k, str) and k.isdecimal() else k for k in value]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{name} must hold each step count once; got {value!r}")
    return dict(zip(keys, value.values()))


def _levels(name: str, levels: object) -> tuple[float, float]:
    if not isinstance(levels, Sequence) or isinstance(levels, str) or len(levels) != 2:
        raise TypeError(
            f"{name} must be the lowest and the highest noise level; got {describe(levels)}"
        )
    low, high = (check_number(f"{name}[{i}]", u, low=0.0) for i, u in enumerate(levels))
    if not low < high <= 1:
        raise ValueError(f"{name} must be two rising noise levels in [0, 1]; got {levels!r}")
    return low, high


def _some_of(name: str, value: object, known: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be a sequence of step counts; got {describe(value)}")
    counts = tuple(check_count(f"{name}[{i}]", v) for i, v in enumerate(value))
    if not counts or len(set(counts)) < len(counts) or not set(counts) <= set(known):
        raise ValueError(
            f"{name} must be one or more of the step_counts, {list(known)}, none twice; "
            f"got {list(counts)}"
        )
    return counts


def _prompts(name: str, value: object) -> tuple[str, ...]:
    prompts = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"{name} must be a sequence of prompts or None; got {value!r}")
    return tuple(prompts)
