"""A trainer as its own configuration file sets it up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ..trainers import Facts
from .errors import CommandError
from .networks import NETWORKS
from .trainers import Trainer, replaced


def salt_block(trainer: Trainer, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Salt's settings in a configuration that has them beside the trainer's own."""
    sections = {"lightx2v": ("training", "dmd"), "fastvideo": ("method",), "examples.wan": ()}
    if trainer.adapter not in sections:
        return None
    for name in sections[trainer.adapter]:
        config = _section(config, name)
    return _section(config, "salt") if "salt" in config else None


def with_config(trainer: Trainer, config: Mapping[str, Any], name: str) -> Trainer:
    """Return the trainer as its own configuration file sets it up.

    Raises:
        CommandError: a value that is not allowed, or a `trainer` that is not DMD's.
    """
    if trainer.adapter in _READERS:
        return _READERS[trainer.adapter](trainer, config, name)
    return _of_family(trainer, config, name)


def _of_family(trainer: Trainer, config: Mapping[str, Any], name: str) -> Trainer:
    """Read the facts that `attach` finds in a live trainer, and how its rollouts go."""
    if trainer.solver:  # LongLive 2.0's is in sections, which its script spreads out
        sections = [part for part in config.values() if isinstance(part, Mapping)]
        config = {**config, **{name: x for part in sections for name, x in part.items()}}
    kind = config.get("trainer")
    if kind != "score_distillation":
        got = (
            f"it has {kind!r}"
            if kind is not None
            else f"no configuration of {trainer.title} has none"
        )
        raise CommandError(f"{name}: Salt needs `trainer: score_distillation`; {got}", 1)
    streams = bool(config.get("streaming_training"))
    if streams != trainer.streaming:
        wanted = "longlive_streaming" if streams else "longlive"
        raise CommandError(
            f"{name}: streaming_training is {'on' if streams else 'off'}, for which there is "
            f"--trainer {wanted}",
            1,
        )
    kwargs = _section(config, "model_kwargs")
    first = [t for t in config.get("denoising_step_list_first_chunk") or () if t]
    facts = Facts(
        own_first_steps=len(first) or None,
        last_step_only=bool(config.get("last_step_only")),
        generator_type=str(config.get("generator_type", "causal")),
        at_once=trainer.solver and not config.get("generator_is_causal", True),
        simulates=bool(config.get("backward_simulation", True)),
        i2v=bool(config.get("i2v")),
        teacher_forcing=bool(config.get("teacher_forcing")),
        manual_generator_backward=bool(config.get("manual_generator_backward")),
        sp_size=config.get("sp_size") or 1,
        local_attn_size=kwargs.get("local_attn_size", config.get("local_attn_size")),
    )
    found = {
        "shift": kwargs.get("timestep_shift"),
        "warped": config.get("warp_denoising_step"),
        "steps": len([t for t in config.get("denoising_step_list") or () if t])
        or config.get("sampling_steps"),
        "update_every": config.get("dfake_gen_update_ratio"),
        "iterations": config.get("max_iters"),
        "chunk": config.get("num_frame_per_block"),
        # Streaming has other chunks than this setting, which it does not use.
        "frames": None if trainer.streaming else config.get("num_training_frames"),
    }
    return dataclasses.replace(
        replaced(trainer, _given(found), name),
        facts=facts,
        generator=_size(config.get("generator_name") or kwargs.get("model_name"))
        or trainer.generator,
        teacher=_size(config.get("real_name")) or trainer.teacher,
    )


def _of_lightx2v(trainer: Trainer, config: Mapping[str, Any], name: str) -> Trainer:
    training = config.get("training") or {}
    method, dmd = training.get("method"), training.get("dmd") or {}
    if method not in ("video_ar_dmd", "salt_video_ar_dmd"):
        wanted = "`training.method: salt_video_ar_dmd`"
        raise CommandError(f"{name}: what plan knows of LightX2V is {wanted}; it has {method!r}", 1)
    scheduler, model = _section(config, "scheduler"), _section(config, "model")
    shift = _section(scheduler, "time_shift_settings")
    levels = scheduler.get("num_train_timesteps", 1000)
    pictures = dmd.get("num_frames")
    own = dmd.get("denoising_step_list")
    generator = _size(model.get("pretrained_model_name_or_path")) or trainer.generator
    teacher = _section(model, "teacher").get("pretrained_model_name_or_path")
    pixels = 32 if generator == "5B" else 16  # of a token's side
    found = {
        "shift": shift.get("time_shift_mu"),
        "warped": dmd.get("warp_denoising_step"),
        "steps": len(own or ()) or dmd.get("num_inference_steps"),
        "critic_updates": dmd.get("fake_update_ratio"),
        "chunk": dmd.get("num_frame_per_chunk"),
        "frames": pictures and (pictures - 1) // 4 + 1,
        "iterations": training.get("max_train_iters"),
        "tokens": (dmd.get("height") or 0) // pixels * ((dmd.get("width") or 0) // pixels) or None,
    }
    facts = Facts(
        iterations=training.get("max_train_iters"),
        sp_size=_ranks_of_a_sample(config),
        levels=(dmd.get("num_train_timestep", levels), levels),
        time_shift_power=shift.get("time_shift_power", 1.0),
        own_list=tuple(own or ()),
        earliest=int(bool(_section(dmd, "div_loss").get("enabled"))),
    )
    trainer = replaced(trainer, _given(found), name)
    if own is not None and not all(map(_is_timestep, own)):
        raise CommandError(f"{name}: denoising_step_list must be timesteps; got {own!r}", 1)
    spaced = [round(1000 * (1 - i / trainer.steps)) for i in range(trainer.steps)]
    return dataclasses.replace(
        trainer,
        facts=facts,
        own_list=tuple(spaced if own is None else own),
        generator=generator,
        teacher=_size(teacher) or generator,
    )


def _ranks_of_a_sample(config: Mapping[str, Any]) -> int:
    """LightX2V's, wherever its configuration has them."""
    distributed, model = _section(config, "distributed"), _section(config, "model")
    for name, default in (("sequence_parallel", False), ("sp", True)):
        parallel = distributed.get(name)
        if isinstance(parallel, Mapping) and ("size" in parallel or name == "sequence_parallel"):
            return int(parallel.get("size") or 1) if parallel.get("enabled", default) else 1
        if isinstance(parallel, int) and not isinstance(parallel, bool):
            return parallel
    sizes = (distributed.get("sp_size"), distributed.get("sequence_parallel_size"))
    return int(next(filter(None, sizes), None) or model.get("sequence_parallel_size") or 1)


def _of_fastvideo(trainer: Trainer, config: Mapping[str, Any], name: str) -> Trainer:
    method, training = _section(config, "method"), _section(config, "training")
    target = str(method.get("_target_")).rpartition(".")[2].removeprefix("Salt")
    known = {"SelfForcingMethod": "fastvideo", "DMD2Method": "fastvideo_dmd2"}
    causal = trainer.rollout.cache
    if (known.get(target) == "fastvideo") != causal or target not in known:
        instead = f"; --trainer {known[target]} is for that" if target in known else ""
        wanted = "SelfForcingMethod" if causal else "DMD2Method"
        raise CommandError(f"{name}: method._target_ must be {wanted}; it is {target}{instead}", 1)
    for setting, counted in _COUNTED.items():
        if causal and method.get(setting) not in (None, counted):
            raise CommandError(
                f"{name}: the calls are counted for {setting}: {counted}; got {method[setting]!r}",
                1,
            )
    own = method.get("dmd_denoising_steps")
    if not isinstance(own, list) or not own or not all(_is_timestep(t) for t in own):
        raise CommandError(
            f"{name}: dmd_denoising_steps must be timesteps from 1 to 1000; got {own!r}"
        )
    data = _section(training, "data")
    tokens = (data.get("num_height") or 0) // 16 * ((data.get("num_width") or 0) // 16)
    student, teacher = (_section(_section(config, "models"), k) for k in ("student", "teacher"))
    found = {
        "shift": _section(config, "pipeline").get("flow_shift")
        if causal
        else student.get("flow_shift", 3.0),
        "warped": bool(method.get("warp_denoising_step")),
        "steps": len(own),
        "update_every": max(1, method.get("generator_update_interval") or 1),
        "chunk": (method.get("chunk_size") or 3) if causal else None,
        "frames": data.get("num_latent_t"),
        "iterations": _section(training, "loop").get("max_train_steps"),
        "tokens": tokens or None,
    }
    trainer = replaced(trainer, _given(found), name)
    simulates = causal or str(method.get("rollout_mode")).startswith("sim")
    return dataclasses.replace(
        trainer,
        own_list=tuple(own),
        rollout=dataclasses.replace(
            trainer.rollout, before_exit=trainer.rollout.before_exit if simulates else "none"
        ),
        facts=Facts(
            simulates=simulates, sp_size=_section(training, "distributed").get("sp_size") or 1
        ),
        generator=_size(student.get("init_from")) or trainer.generator,
        teacher=_size(teacher.get("init_from")) or trainer.teacher,
    )


# Settings of a FastVideo rollout without which other calls are made than those that are counted.
_COUNTED = {
    "last_step_only": False,
    "enable_gradient_in_rollout": True,
    "start_gradient_frame": 0,
}


def _of_wan(trainer: Trainer, config: Mapping[str, Any], name: str) -> Trainer:
    own = {"salt", "roles", "critic_updates", "backward_simulation", "iterations", "score_shift"}
    if not own & set(config) or {"trainer", "training", "method"} & set(config):
        raise CommandError(
            f"{name} is no configuration of the Wan recipe: it has none of its settings", 1
        )
    found = {key: config.get(key) for key in ("shift", "critic_updates", "iterations")}
    trainer = replaced(trainer, _given(found), name)
    simulates = bool(config.get("backward_simulation"))
    size = _size(config.get("model")) or trainer.generator
    # The fake score's: in each of its updates, and in the student's. There the teacher has two.
    teacher = 1 if config.get("guidance_scale") == 0 else 2
    return dataclasses.replace(
        trainer,
        rollout=dataclasses.replace(trainer.rollout, before_exit="exit" if simulates else "none"),
        score_calls=trainer.critic_updates + 1 + teacher,
        generator=size,
        teacher=size,
        seed=int(config.get("seed") or 0),
    )


_READERS: dict[str, Callable[[Trainer, Mapping[str, Any], str], Trainer]] = {
    "lightx2v": _of_lightx2v,
    "fastvideo": _of_fastvideo,
    "examples.wan": _of_wan,
}


def _given(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if value is not None}


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _is_timestep(value: Any) -> bool:
    return isinstance(value, int) and 0 < value <= 1000


def _size(model: Any) -> str | None:
    """Return the size in a model's name."""
    return next((size for size in NETWORKS if size in str(model)), None)
