"""The settings of a Salt run: what belongs to the run, and one block for each term."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from typing_extensions import Self

from ._checks import describe
from .errors import SettingError, checked
from .mixed_step import MixedStepScheduler
from .presets import PRESETS
from .terms.adversarial import Adversarial
from .terms.alignment import Alignment
from .terms.base import Run, Term, no_effect, warn
from .terms.self_consistency import SelfConsistency

_T = TypeVar("_T", bound=Term)
BLOCKS: dict[str, type[Term]] = {"sc": SelfConsistency, "align": Alignment, "adv": Adversarial}
# Keys of the former, flat form, and where they are now.
MOVED = {
    "sc_steps": "sc.step_counts",
    "align_at": "align.to",
    "align_noise": "align.reference_noise",
    "align_levels": "align.noise_range",
    "adv_levels": "adv.noise_range",
    "adv_kind": "adv.kind",
    "adv_penalty": None,
    "adv_sigma": None,
    "adv_updates": None,
    "sweep_every": "the argument `sweep_every` of `record`",
    "sweep_prompts": "the argument `sweep_prompts` of `record`",
}


@dataclasses.dataclass(frozen=True)
class SaltConfig:
    """Every setting of a Salt run.

    Settings are kept as they were checked (tuples, plain numbers), so a config from a YAML or JSON
    file equals the same one from keywords, and `from_mapping(config.to_mapping())` is `config`.

    The paper gives `step_counts`, `probs` and `inference_steps`; for the terms' defaults see
    `salt_losses.terms`.

    Args:
        step_counts, probs, inference_steps, first_chunk_steps, seed: see `MixedStepScheduler`.
        shift: time shift of the grids; `None`: the trainer's own (adapters), 1 elsewhere.
        sc: the self-consistency term; `None` is off.
        align: the alignment; `None` is off.
        adv: the adversarial term; `None` is off.
        terms: terms from elsewhere, each with its own name.

    Raises:
        SettingError: a setting of the wrong type or out of range; `.setting` is its path.

    Examples:
        >>> SaltConfig(sc=SelfConsistency(weight=0.5)).scheduler().step_counts
        (2, 4, 8)
    """

    step_counts: Sequence[int] = (2, 4, 8)
    probs: Sequence[float] = (0.2, 0.4, 0.4)
    shift: float | None = None
    inference_steps: int = 4
    first_chunk_steps: int | Mapping[int, int] | None = dataclasses.field(default=None, hash=False)
    seed: int = 0
    sc: SelfConsistency | None = SelfConsistency()  # noqa: RUF009  # frozen
    align: Alignment | None = None
    adv: Adversarial | None = None
    terms: Sequence[Term] = ()

    def __post_init__(self) -> None:
        for name, kind in BLOCKS.items():
            block = getattr(self, name)
            if block is not None and not isinstance(block, kind):
                raise SettingError(
                    name, f"{name} must be {kind.__name__}(...) or None; got {describe(block)}"
                )
        if not isinstance(self.terms, Sequence) or isinstance(self.terms, str):
            raise SettingError("terms", f"terms must be a sequence; got {describe(self.terms)}")
        object.__setattr__(self, "terms", tuple(self.terms))
        for i, term in enumerate(self.terms):
            if not isinstance(term, Term):
                name = f"terms[{i}]"
                raise SettingError(name, f"{name} must be a Term; got {describe(term)}")
        names = [*BLOCKS, *(term.name for term in self.terms)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SettingError("terms", f"terms must have different names; got {twice!r} twice")
        scheduler = self.scheduler()
        for name in ("step_counts", "probs", "inference_steps", "first_chunk_steps", "seed"):
            object.__setattr__(self, name, getattr(scheduler, name))
        if self.shift is not None:
            object.__setattr__(self, "shift", scheduler.shift)
        warn(no_effect(Run(self)), "SaltConfig")

    @property
    def all_terms(self) -> tuple[Term, ...]:
        """The terms of the run, in the order in which they are computed; not those of weight 0."""
        own = (term for term in (self.sc, self.align, self.adv) if term is not None)
        return tuple(term for term in (*own, *self.terms) if term.weight > 0)

    def scheduler(self, shift: float | None = None) -> MixedStepScheduler:
        """Return the scheduler of these settings; `shift` is used if `self.shift` is `None`."""
        own = 1.0 if shift is None else shift
        sc, align = self.sc, self.align
        settings: dict[str, Any] = {"sc_steps": ()}
        if sc is not None and sc.weight > 0:
            on = self.step_counts if sc.step_counts is None else sc.step_counts
            settings = {"sc_steps": on, "sc_warmup": sc.warmup}
        settings["align_reference"] = {}
        if align is not None and align.weight > 0:
            settings["align_reference"] = align.reference
            settings |= {"align_warmup": align.warmup, "align_prob": align.prob}
        return MixedStepScheduler(
            self.step_counts,
            self.probs,
            shift=own if self.shift is None else self.shift,
            inference_steps=self.inference_steps,
            seed=self.seed,
            first_chunk_steps=self.first_chunk_steps,
            terms=self.all_terms,
            **settings,
        )

    # From and to files.

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Read the settings of a parsed YAML or JSON file.

        Settings that it leaves out, within a term's block too, keep their defaults, or have the
        values of the `"preset"` that it names. `sc: null` is off. `"sc.weight"` is `"weight"` in
        the block `"sc"`. A term from elsewhere is `{"_target_": "package.Class", ...}` under
        `"terms"`.

        Raises:
            SettingError: an unknown key; suggests the nearest known one, or a moved one's place.
            TypeError: not a mapping.

        Examples:
            >>> SaltConfig.from_mapping({"preset": "paper", "sc": {"weight": 0.5}}).sc.weight
            0.5
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping must be a mapping of settings; got {describe(mapping)}")
        fields = [field.name for field in dataclasses.fields(cls)]
        given = _nested(mapping)
        for key in given:
            _check_key(str(key), ["preset", *fields], "")
        settings = _preset(given.pop("preset")) if "preset" in given else {}
        for name, kind in BLOCKS.items():
            if name in given:
                given[name] = _block(name, kind, given[name], settings.get(name))
        if "terms" in given:
            given["terms"] = _terms(given["terms"])
        name = "first_chunk_steps"
        if name in given:
            given[name] = _integer_keys(name, given[name])
        return cls(**{**settings, **given})

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values for JSON and YAML, which `from_mapping` takes back."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in BLOCKS:
            settings[name] = None if settings[name] is None else _plain_term(settings[name])
        settings["terms"] = [
            {"_target_": f"{type(t).__module__}.{type(t).__qualname__}", **_plain_term(t)}
            for t in self.terms
        ]
        return {name: _plain(value) for name, value in settings.items()}

    @classmethod
    def preset(cls, name: str) -> Self:
        """Return the settings of a published recipe; `dataclasses.replace` changes some of them.

        `"paper"`: arXiv 2604.03118. `salt_losses.presets` marks what it does not give and is ours:
        the weights, and most of `align`.

        `"released_self_forcing"`, `"released_causal_forcing"`, `"released_longlive"`: the authors'
        release (github.com/XingtongGe/Salt at 020d04f), mixed steps with both terms. They differ in
        `align.warmup` (1000, 700, 1200) and `align.reference_noise` (own, shared, shared).
        `align.warmup` counts the trainer's steps, here as there; every fifth updates the generator.

        No setting reproduces these of the release:

        - One triple for the whole rollout and all ranks; here each chunk, sample and rank draws its
          own: the same mean, less variance.
        - A step count and exit of every rollout; here generator and critic share the step count.
        - Times cut to integers (937 for 937.5), up to 0.001 away from the rollout's levels.
        - Endpoints in bfloat16, whose rounding hides velocity gaps below 0.007 to 0.024 (root mean
          square), and token relations in bfloat16; both are float32 here.
        - An exception in the alignment drops the term on that rank; here it raises.
        - Learning rates, EMA, batch, guidance and teacher, which are the trainer's settings.

        Raises:
            SettingError: an unknown name.

        Examples:
            >>> SaltConfig.preset("released_longlive").align.warmup
            1200
        """
        return cls(**_preset(name))


def _nested(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Put `"sc.weight"` as `"weight"` into the block `"sc"`; later keys win."""
    nested: dict[str, Any] = {}
    for key, value in mapping.items():
        block, dot, field = str(key).partition(".")
        if not dot:
            nested[key] = value
            continue
        there = nested.get(block)
        nested[block] = {**(there if isinstance(there, Mapping) else {}), field: value}
    return nested


def _preset(name: object) -> dict[str, Any]:
    if not isinstance(name, str) or name not in PRESETS:
        raise SettingError(
            "preset", f"preset must be one of {', '.join(map(repr, PRESETS))}; got {name!r}"
        )
    settings = dict(PRESETS[name])
    for block, kind in BLOCKS.items():
        if settings.get(block) is not None:
            settings[block] = kind(**settings[block])
    return settings


def _block(name: str, kind: type[_T], given: object, base: Term | None) -> Term | None:
    if given is None or isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise SettingError(name, f"{name} must be a block of settings or null; got {given!r}")
    fields = [field.name for field in dataclasses.fields(kind)]
    for key in given:
        _check_key(str(key), fields, f"{name}.")
    values = dict(given)
    if "reference" in values:
        values["reference"] = _integer_keys(f"{name}.reference", values["reference"])
    return kind(**values) if base is None else dataclasses.replace(base, **values)


def _terms(given: object) -> list[Term]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise SettingError("terms", f"terms must be a list of blocks; got {describe(given)}")
    terms = []
    for i, block in enumerate(given):
        path = f"terms[{i}]"
        if isinstance(block, Term):
            terms.append(block)
            continue
        if not isinstance(block, Mapping) or not isinstance(block.get("_target_"), str):
            wanted = "a block with a _target_, package.Class"
            raise SettingError(path, f"{path} must be {wanted}; got {describe(block)}")
        values = dict(block)
        target = values.pop("_target_")
        module, _, name = target.rpartition(".")
        try:
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise SettingError(path, f"{path}._target_ cannot be imported: {error}") from error
        try:
            terms.append(checked(path, lambda _, v, kind=kind: kind.from_mapping(v), values))
        except SettingError as error:  # of a term that only the list names
            raise type(error)(error.setting, str(error), [*error.rests_on, "terms"]) from error
    return terms


def _check_key(key: str, known: Sequence[str], path: str) -> None:
    if key in known:
        return
    full = path + key
    if not path and key == "salt":
        hint = (
            "its settings are given directly here: a block of that name belongs in a framework's "
            "own config (docs/frameworks.md)"
        )
    elif not path and (place := _new_place(key)) is not None:
        hint = place
    else:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {path + near[0]!r}?" if near else f"known are {', '.join(known)}"
    raise SettingError(full, f"unknown setting {full!r}; {hint}")


def _new_place(key: str) -> str | None:
    """Return a hint to where a setting of the former, flat form is now."""
    if key in MOVED:
        place = MOVED[key]
        return "it is gone" if place is None else f"it is now {place}"
    block, _, field = key.partition("_")
    if block not in BLOCKS:
        return None
    fields = [f.name for f in dataclasses.fields(BLOCKS[block])]
    near = difflib.get_close_matches(field, fields, n=1)
    if field in fields:
        return f"it is now {block}.{field}"
    return f"did you mean '{block}.{near[0]}'?" if near else None


def _integer_keys(name: str, value: object) -> object:
    """Make integers of a mapping's keys, which JSON and some YAML files write as text."""
    if not isinstance(value, Mapping):
        return value
    keys = {k: int(k) if isinstance(k, str) and k.isdecimal() else k for k in value}
    if len(set(keys.values())) < len(keys):
        raise SettingError(name, f"{name} must not name a step count twice; got {dict(value)!r}")
    return {keys[k]: v for k, v in value.items()}


def _plain_term(term: Term) -> dict[str, Any]:
    """Return the arguments of its class that it keeps as attributes."""
    names = inspect.signature(type(term)).parameters
    return {name: _plain(getattr(term, name)) for name in names if hasattr(term, name)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k) if isinstance(k, int) else k: _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value
