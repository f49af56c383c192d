"""What is looked at before a run begins."""

from __future__ import annotations

from accelerate import Accelerator, DistributedType

from .config import Config
from .data import EncodedData
from .pretrained import read_kind, vae_facts


def check_data(data: EncodedData, config: Config) -> None:
    """Raises ValueError where the data was made for another model."""
    kind, settings = read_kind(config.model), data.settings
    wanted = {"kind": kind.name, "image_embedding": kind.image_embedding}
    for name, value in wanted.items():
        if settings[name] != value:
            raise ValueError(
                f"{config.data} was encoded for another model ({settings['model']}): {name} must "
                f"be {value!r}; got {settings[name]!r}"
            )
    images = data.images()
    hungry = [term.name for term in config.salt.all_terms if "data" in term.needs]
    if images and hungry:
        raise ValueError(
            f"{hungry[0]} needs real videos: {len(images)} of the {len(data)} samples of "
            f"{config.data} are images ({images[0]}, for one)"
        )
    if images and not config.backward_simulation:
        raise ValueError(
            f"backward_simulation must be true for {config.data}: {len(images)} of its "
            f"{len(data)} samples are images ({images[0]}, for one), which have no video to noise"
        )
    if settings["vae"] != vae_facts(config.model)["fingerprint"]:
        raise ValueError(
            f"{config.data} holds latents of another VAE ({settings['model']}'s) than that of "
            f"{config.model}: encode the videos again"
        )


def check_accelerator(accelerator: Accelerator, config: Config) -> None:
    """Raises ValueError where accelerate was told what the recipe cannot do."""
    kind, state = accelerator.distributed_type, accelerator.state
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM) or (
        kind == DistributedType.FSDP and state.fsdp_plugin.fsdp_version != 2
    ):
        name = "FSDP1" if kind == DistributedType.FSDP else kind.value
        raise ValueError(
            f"accelerate is configured for {name}: this recipe runs on one device, with DDP or "
            "with FSDP2 (fsdp_version: 2); see examples/wan/accelerate"
        )
    compiler = getattr(state, "dynamo_plugin", None)
    if getattr(compiler, "use_regional_compilation", False) and compiler.backend != "NO":
        # It compiles a copy of the roles, which would not see which role is on.
        raise ValueError(
            "accelerate is configured for regional compilation, which this recipe's roles do not "
            "work with: set dynamo_use_regional_compilation to false in its configuration "
            "(accelerate config asks for it); compiling the whole model is no problem"
        )
    count, own = accelerator.gradient_accumulation_steps, config.gradient_accumulation_steps
    if count != own:
        raise ValueError(
            f"gradient_accumulation_steps must be the recipe's, {own}, and accelerate's own "
            f"configuration says {count}: leave it out there"
        )
