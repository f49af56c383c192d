"""Images and videos as a viewer shows them, scaled and cropped to a format."""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

IMAGES = {".png", ".jpg", ".jpeg", ".webp"}
# Pillow's names of formats. MPO is a camera's JPEG.
READ = {"PNG", "JPEG", "MPO", "WEBP"}
MOVING = {"GIF", "MPEG", "FLI"}  # Pillow would read the first picture; these are videos
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
        ValueError, OSError: no such file, too short, damaged, HDR, an image where a video is
            wanted, an image of an unknown type. A decoder's error for a broken file is its own.
    """
    if not path.is_file():
        raise ValueError("no such file")
    size = (format.width, format.height)
    if image := image_type(path):
        if kind != "i2v":
            raise ValueError("is an image, and this is a text-to-video model")
        if image not in READ:
            raise ValueError(f"is an image of an unknown type ({image}): make it PNG, JPEG or WebP")
        return [ImageOps.fit(read_image(path), size, Image.Resampling.LANCZOS)]
    with closing(play(path, format.fps, format.frames)) as pictures:
        frames = [ImageOps.fit(picture, size, Image.Resampling.LANCZOS) for picture in pictures]
    if (
        len(frames) == 1 < format.frames
    ):  # HEIC, EXR and others that ffmpeg reads and Pillow doesn't
        raise ValueError(
            f"is one picture, where a video of {format.frames} frames is wanted; an image must be "
            "PNG, JPEG or WebP, and the model an image-to-video one"
        )
    if len(frames) < format.frames:
        raise ValueError(
            f"is too short: {len(frames)} frames at {format.fps} fps, "
            f"and {format.frames} are wanted"
        )
    return frames


def image_type(path: Path) -> str | None:
    """Pillow's name of an image's format, such as `"PNG"`, by its content; `None` for a video."""
    try:
        with Image.open(path) as image:
            return None if image.format in MOVING else image.format
    except UnidentifiedImageError:
        # A broken image: Pillow says so when it is read.
        return "PNG" if path.suffix.lower() in IMAGES else None


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


def play(path: Path, fps: int, count: int | None = None) -> Iterator[Image.Image]:
    """What is on the screen at 0, 1 / fps, 2 / fps ... seconds after the first picture; the first
    `count` of them.

    By the pictures' own timestamps: the header's rate is an average, and wrong for a variable one.
    ffmpeg itself turns them as the file says and leaves out what an edit list cuts off.

    Raises:
        ValueError: the video is HDR, whose colours would need a tone mapping; or, after the last
            picture, it is damaged.
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
    mode = "RGBA" if TRANSPARENT.match(source) else "RGB"
    options = ["-vf", ",".join(filters), "-pix_fmt", {"RGBA": "rgba", "RGB": "rgb24"}[mode]]
    if count is not None:
        options += ["-frames:v", str(count)]  # damage behind them does no harm
    for size, pixels in decode(path, options):
        yield on_white(Image.frombytes(mode, size, pixels))


def decode(path: Path, options: list[str]) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Size and pixels of each picture that ffmpeg makes of the file.

    A decoder conceals an error: it repeats what it has, guesses the rest, or goes on after a gap.
    `-xerror -err_detect explode` ends most decoders at the first one; some (VP9, FFV1, GIF, what
    Matroska's reader skips) only write a line, which counts as well.

    Raises:
        ValueError: ffmpeg has found an error; after the last picture.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error"]
    command += ["-xerror", "-err_detect", "explode", "-i", str(path)]
    command += [*options, "-f", "image2pipe", "-c:v", "pam", "-"]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        try:
            while header := read_header(process.stdout):
                width, height, depth = (int(header[k]) for k in (b"WIDTH", b"HEIGHT", b"DEPTH"))
                yield (width, height), process.stdout.read(width * height * depth)
            code = process.wait()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if code or said:
        first = re.sub(r"^\[[^\]]* @ [^\]]*\] ", "", said[0]) if said else f"exit code {code}"
        raise ValueError(f"is damaged: {first}")


def read_header(stream: IO[bytes]) -> dict[bytes, bytes]:
    """The fields of a PAM picture; none at the stream's end."""
    fields = {}
    while (line := stream.readline().strip()) not in (b"", b"ENDHDR"):
        name, _, value = line.partition(b" ")
        fields[name] = value
    return fields
