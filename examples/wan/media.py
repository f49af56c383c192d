"""Images and videos as a viewer shows them, scaled and cropped to a format."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageCms, ImageOps

IMAGES = {".png", ".jpg", ".jpeg", ".webp"}
# Transfer functions by the names that ffmpeg has for them.
HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
TRANSPARENT = re.compile("yuva|gbrap|ya8|ya16|rgba|bgra|argb|abgr|pal8")


@dataclass(frozen=True)
class Format:
    """What a clip is cut to: `frames` at `fps` from the source's beginning, scaled and cropped."""

    height: int = 480
    width: int = 832
    frames: int = 81
    fps: int = 16
    text_length: int = 512


def read_frames(path: Path, format: Format, kind: str) -> list[Image.Image]:
    """`format.frames` frames of a video, or an image alone; scaled and cropped to the format.

    Raises:
        ValueError, OSError: no such file, too short, HDR, an image where a video is wanted. What a
            decoder raises for a broken file is its own.
    """
    if not path.is_file():
        raise ValueError("no such file")
    size = (format.width, format.height)
    if path.suffix.lower() in IMAGES:
        if kind != "i2v":
            raise ValueError("is an image, and this is a text-to-video model")
        return [ImageOps.fit(read_image(path), size, Image.Resampling.LANCZOS)]
    with closing(play(path, format.fps)) as pictures:
        frames = [
            ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
            for picture in islice(pictures, format.frames)
        ]
    if len(frames) < format.frames:
        raise ValueError(
            f"is too short: {len(frames)} frames at {format.fps} fps, "
            f"and {format.frames} are wanted"
        )
    return frames


def read_image(path: Path) -> Image.Image:
    """In RGB: turned as EXIF says, in sRGB, on white where it is transparent; an animation's first
    picture."""
    with Image.open(path) as file:
        profile = file.info.get("icc_profile")
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # 16 bits, of which `convert` would cut off what is above 255
        pixels = np.asarray(image, dtype=np.float64) / 257
        image = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    image = on_white(image)
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            image = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError):
            pass  # broken, or of other channels: viewers leave it out too
    return image.convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    """Without transparency; as it is where there is none."""
    if not (image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info):
        return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def play(path: Path, fps: int) -> Iterator[Image.Image]:
    """What is on the screen at 0, 1 / fps, 2 / fps ... seconds after the first picture.

    By the pictures' own timestamps: the header's rate is an average, and wrong for a variable one.
    ffmpeg itself turns them as the file says and leaves out what an edit list cuts off.

    Raises:
        ValueError: the video is HDR, whose colours would need a tone mapping.
    """
    with closing(imageio_ffmpeg.read_frames(str(path))) as probe:
        source = next(probe)["pix_fmt"]  # such as yuv420p(tv, bt709, top first)
    for transfer, name in HDR.items():
        if transfer in source:
            raise ValueError(f"is in HDR ({name}): convert it to SDR")
    filters = [
        # A millisecond early: where a container rounds its stamps, none may come too late.
        "settb=AVTB,setpts=PTS-STARTPTS-1000",
        f"fps={fps}:round=up",
        "scale=iw*sar:ih",  # pixels that are not square
    ]
    if "first" in source:  # the field that an interlaced picture begins with
        filters.insert(0, "bwdif=mode=send_frame:deint=interlaced")
    mode, depth = ("RGBA", 32) if TRANSPARENT.match(source) else ("RGB", 24)
    pictures = imageio_ffmpeg.read_frames(
        str(path),
        pix_fmt={"RGBA": "rgba", "RGB": "rgb24"}[mode],
        bits_per_pixel=depth,
        output_params=["-vf", ",".join(filters)],
    )
    with closing(pictures):
        size = next(pictures)["size"]
        for pixels in pictures:
            yield on_white(Image.frombytes(mode, size, pixels))
