"""`python -m examples.wan.encode`: videos and prompts to latents and embeddings on disk.

settings.json          what they were made with
manifest.jsonl         a line for each sample that is done: file, source, prompt
skipped.jsonl          a line for each source of the last run that was not: source, reason
negative.safetensors   the negative prompt's embedding, which the teacher is guided away from
samples/               one safetensors file each
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from .data import MANIFEST, NEGATIVE, SETTINGS, read_manifest
from .pretrained import encode_video, load_encoders, read_kind, vae_facts

IMAGES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True)
class Format:
    """What a clip is cut to: `frames` at `fps` from the source's beginning, scaled and cropped."""

    height: int = 480
    width: int = 832
    frames: int = 81
    fps: int = 16
    text_length: int = 512


class Encoder:
    """The frozen encoders of a model, for one format.

    Raises:
        ValueError: a model that the recipe doesn't know, a format that its VAE can't take.
    """

    def __init__(self, model: str, format: Format, device: torch.device) -> None:
        self.model, self.format, self.device = model, format, device
        self.kind, self.vae = read_kind(model), vae_facts(model)
        time, space = self.vae["temporal"], self.vae["spatial"]
        # The transformer's patches are 2 x 2.
        if format.height % (2 * space) or format.width % (2 * space):
            raise ValueError(
                f"height and width must be multiples of {2 * space}; "
                f"got {format.height} x {format.width}"
            )
        if (format.frames - 1) % time:
            raise ValueError(
                f"frames must be 1 more than a multiple of {time}; got {format.frames}"
            )
        frames = (format.frames - 1) // time + 1
        size = [frames, format.height // space, format.width // space]
        self.shapes = {"latents": [self.kind.latent_channels, *size]}
        if self.kind.name == "i2v":
            self.shapes["condition"] = [time + self.kind.latent_channels, *size]
        self._pipeline: Any = None

    @property
    def pipeline(self) -> Any:
        if self._pipeline is None:  # a resumed run with nothing to do loads nothing
            self._pipeline = load_encoders(self.model, self.kind).to(self.device)
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline

    def settings(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "kind": self.kind.name,
            "image_embedding": self.kind.image_embedding,
            "vae": self.vae["fingerprint"],
            "shapes": self.shapes,
            **asdict(self.format),
        }

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """`[n, D]`, without the zeros after the prompt's end."""
        embedding, _ = self.pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=self.format.text_length,
            device=self.device,
        )
        ends = embedding[0].any(-1).nonzero()
        return embedding[0, : int(ends.max()) + 1 if len(ends) else 1].cpu().contiguous()

    @torch.no_grad()
    def sample(self, frames: list[Image.Image], prompt: str) -> dict[str, Tensor]:
        """One image: no `latents`, but for a T2V model that is an error before this."""
        sample = {"text": self.text(prompt)}
        if len(frames) == self.format.frames:
            pixels = torch.from_numpy(np.stack([np.asarray(f) for f in frames]))
            video = pixels.permute(3, 0, 1, 2)[None].float().div(127.5).sub(1)
            sample["latents"] = encode_video(self.pipeline.vae, video)[0]
        if self.kind.name == "i2v":
            sample |= self._image_condition(frames[0])
        return {name: value.cpu().contiguous() for name, value in sample.items()}

    def _image_condition(self, image: Image.Image) -> dict[str, Tensor]:
        """Mask and encoded first frame, and its embedding, by diffusers' own pipeline."""
        pipeline, form = self.pipeline, self.format
        pixels = pipeline.video_processor.preprocess(image, form.height, form.width)
        _, condition = pipeline.prepare_latents(
            pixels.to(self.device, torch.float32),
            1,
            self.kind.latent_channels,
            form.height,
            form.width,
            form.frames,
            torch.float32,
            self.device,
            torch.Generator(self.device).manual_seed(0),  # of noise that nobody uses
        )
        result = {"condition": condition[0]}
        if self.kind.image_embedding:
            result["image"] = pipeline.encode_image(image, self.device)[0]
        return result


def read_frames(path: Path, format: Format, kind: str) -> list[Image.Image]:
    """`format.frames` frames of a video, or an image alone; scaled and cropped to the format.

    Raises:
        ValueError, OSError: no such file, too short, an image where a video is wanted. What a
            decoder raises for a broken file is its own.
    """
    if not path.is_file():
        raise ValueError("no such file")
    if path.suffix.lower() in IMAGES:
        if kind != "i2v":
            raise ValueError("is an image, and this is a text-to-video model")
        wanted, pictures = [0], iter([iio.imread(path)])
    else:
        rate = iio.immeta(path, plugin="FFMPEG")["fps"]
        wanted = [round(i * rate / format.fps) for i in range(format.frames)]
        pictures = iio.imiter(path, plugin="FFMPEG")
    frames: list[Image.Image] = []
    for i, picture in enumerate(pictures):
        while len(frames) < len(wanted) and wanted[len(frames)] == i:
            image = Image.fromarray(picture).convert("RGB")
            size = (format.width, format.height)
            frames.append(ImageOps.fit(image, size, Image.Resampling.LANCZOS))
        if len(frames) == len(wanted):
            return frames
    raise ValueError(
        f"is too short: {len(frames)} frames at {format.fps} fps, and {format.frames} are wanted"
    )


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """Rows of a CSV file with the columns `file` and `prompt`.

    Raises:
        ValueError: no such file, or other columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"file", "prompt"} <= set(reader.fieldnames or ()):
                raise ValueError(
                    f"{path} must have a first line with the columns file and prompt; "
                    f"got {reader.fieldnames}"
                )
            return [(row["file"] or "", row["prompt"] or "") for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts must be a CSV file; {path}: {error}") from error


def encode(
    encoder: Encoder, videos: Path, prompts: Path, out: Path, negative_prompt: str = ""
) -> tuple[int, int]:
    """Encodes what is not in `out` yet; the numbers of samples there now, and of skipped files.

    Raises:
        ValueError: a prompts file that is none, or an `out` that was made with other settings.
    """
    rows = read_prompts(prompts)
    begin(out, encoder.settings() | {"negative_prompt": negative_prompt})
    if not (out / NEGATIVE).is_file():
        write(out / NEGATIVE, {"text": encoder.text(negative_prompt)})
    entries = read_manifest(out)
    lines = [json.dumps(entry) + "\n" for entry in entries]
    (out / "manifest.tmp").write_text("".join(lines), encoding="utf-8")  # without a cut-off line
    os.replace(out / "manifest.tmp", out / MANIFEST)
    done = {(entry["source"], entry["prompt"]) for entry in entries}
    skipped = []
    with (out / MANIFEST).open("a", encoding="utf-8") as manifest:
        for source, prompt in tqdm(rows, desc="encode", unit="clip"):
            if (source, prompt) in done:
                continue
            try:
                frames = read_frames(videos / source, encoder.format, encoder.kind.name)
            except Exception as error:  # decoders raise what they like
                skipped.append({"source": source, "reason": f"{error or type(error).__name__}"})
                tqdm.write(f"skipped {source}: {skipped[-1]['reason']}", file=sys.stderr)
                continue
            name = hashlib.sha256(f"{source}\n{prompt}".encode()).hexdigest()[:16]
            file = f"samples/{name}.safetensors"
            write(out / file, encoder.sample(frames, prompt))
            entry = {"file": file, "source": source, "prompt": prompt}
            manifest.write(json.dumps(entry) + "\n")
            manifest.flush()
            done.add((source, prompt))
    lines = [json.dumps(entry) + "\n" for entry in skipped]
    (out / "skipped.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(done), len(skipped)


def begin(out: Path, settings: dict[str, Any]) -> None:
    (out / "samples").mkdir(parents=True, exist_ok=True)
    path = out / SETTINGS
    if path.is_file():
        there = json.loads(path.read_text())
        differ = [
            f"{name} ({there.get(name)!r} there, {settings.get(name)!r} now)"
            for name in sorted(there.keys() | settings.keys())
            if there.get(name) != settings.get(name)
        ]
        if differ:
            raise ValueError(f"{out} was encoded with other settings: {', '.join(differ)}")
    else:
        path.with_suffix(".tmp").write_text(json.dumps(settings, indent=2) + "\n")
        os.replace(path.with_suffix(".tmp"), path)


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    os.replace(temporary, path)


def main(arguments: list[str] | None = None) -> int:
    form = Format()
    parser = argparse.ArgumentParser(
        prog="python -m examples.wan.encode",
        description="Encodes videos and prompts for examples.wan.train. Interrupt it at any time: "
        "the same command goes on. A file that cannot be read is named and skipped.",
    )
    parser.add_argument("--model", required=True, help="a folder in diffusers' layout or a hub id")
    parser.add_argument(
        "--videos",
        type=Path,
        required=True,
        help="folder of videos; for an I2V model, images too (backward_simulation only)",
    )
    parser.add_argument(
        "--prompts", type=Path, required=True, help="CSV file with the columns file and prompt"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the encoded data")
    for name in ("height", "width", "frames", "fps", "text_length"):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            default=getattr(form, name),
            help="(default: %(default)s)",
        )
    parser.add_argument(
        "--negative-prompt", default="", help="what the teacher is guided away from (default: '')"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    try:
        form = Format(**{name: getattr(options, name) for name in asdict(form)})
        encoder = Encoder(options.model, form, torch.device(options.device))
        done, skipped = encode(
            encoder, options.videos, options.prompts, options.out, options.negative_prompt
        )
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {done} samples; {skipped} skipped, named in skipped.jsonl")
    return 0 if done else 2


if __name__ == "__main__":
    sys.exit(main())
