"""`python -m examples.wan.tiny FOLDER`: a tiny random Wan and a few clips, without a download.

To see in a minute that the five commands run, and for the tests. Nothing it makes can draw: the
weights are random.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.utils import export_to_video
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from examples.tiny_video.data import DigitVideos

TEXT_DIM, IMAGE_DIM = 16, 8
FRAMES, HEIGHT, WIDTH = 5, 32, 48  # of a clip; [C, 2, 4, 6] as latents


def make_transformer(kind: str = "t2v") -> WanTransformer3DModel:
    """25,592 parameters with `kind="t2v"` and 4 latent channels; `"i2v"` has Wan's own 36."""
    latent = latent_channels(kind)
    image = {"image_dim": IMAGE_DIM, "added_kv_proj_dim": 24} if kind == "i2v" else {}
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=latent if kind == "t2v" else 2 * latent + 4,
        out_channels=latent,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        **image,
    )


def latent_channels(kind: str) -> int:
    return {"t2v": 4, "i2v": 16}[kind]


def make_vae(kind: str = "t2v") -> AutoencoderKLWan:
    channels = latent_channels(kind)
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1 * i for i in range(channels)],
        latents_std=[1.0 + 0.1 * i for i in range(channels)],
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Every character a token, so that no vocabulary has to be learned."""
    characters = [chr(i) for i in range(32, 127)]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_pretrained(folder: Path, kind: str = "t2v", seed: int = 0) -> Path:
    """A pipeline with random weights in diffusers' layout; `kind` is `"t2v"` or `"i2v"`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = make_tokenizer()
        parts = {
            "transformer": make_transformer(kind),
            "vae": make_vae(kind),
            "text_encoder": UMT5EncoderModel(
                UMT5Config(
                    vocab_size=len(tokenizer),
                    d_model=TEXT_DIM,
                    d_kv=8,
                    d_ff=16,
                    num_layers=1,
                    num_heads=2,
                )
            ),
            "tokenizer": tokenizer,
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        }
        if kind == "i2v":
            vision = CLIPVisionConfig(
                hidden_size=IMAGE_DIM,
                projection_dim=IMAGE_DIM,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=32,
                intermediate_size=16,
                patch_size=16,
            )
            parts["image_encoder"] = CLIPVisionModel(vision)
            parts["image_processor"] = CLIPImageProcessor(
                crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32}
            )
        pipeline = {"t2v": WanPipeline, "i2v": WanImageToVideoPipeline}[kind](**parts)
        pipeline.save_pretrained(folder)
    return folder


def make_clips(folder: Path, count: int = 4, seed: int = 0, frames: int = FRAMES) -> Path:
    """Bouncing digits as `clip_0.mp4`, ..., and `prompts.csv` beside them; returns that."""
    folder.mkdir(parents=True, exist_ok=True)
    canvas = (HEIGHT // 2, WIDTH // 2)
    generator = torch.Generator().manual_seed(seed)
    videos, digits, _ = DigitVideos("train", frames, canvas).sample(count, generator)
    prompts = folder / "prompts.csv"
    with prompts.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "prompt"])
        for i, (video, digit) in enumerate(zip(videos, digits.tolist())):
            large = video.repeat_interleave(2, -1).repeat_interleave(2, -2)
            frames_ = (large.add(1).div(2)).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
            export_to_video(list(frames_), str(folder / f"clip_{i}.mp4"), fps=16)
            writer.writerow([f"clip_{i}.mp4", f"the digit {digit} bounces"])
    return prompts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.wan.tiny", description=__doc__)
    parser.add_argument("folder", type=Path, help="becomes FOLDER/model and FOLDER/clips")
    parser.add_argument("--kind", choices=("t2v", "i2v"), default="t2v")
    options = parser.parse_args(arguments)
    make_pretrained(options.folder / "model", options.kind)
    print(options.folder / "model")
    print(make_clips(options.folder / "clips"))


if __name__ == "__main__":
    main()
