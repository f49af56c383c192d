"""Files are read as a viewer shows them. Each video says by its colour which picture it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageCms

from examples.wan.media import Format, play, read_frames, read_image

SIZE = (48, 32)
RED, BLUE = (200, 30, 30), (30, 30, 200)


def ffmpeg(*options: object, pixels: bytes | None = None) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, options)]
    subprocess.run(command, input=pixels, check=True)


def video(path: Path, pictures: np.ndarray, fps: float, *options: object) -> Path:
    """Of `[T, H, W, C]`; nearly without loss."""
    height, width, channels = pictures.shape[1:]
    raw = ["-f", "rawvideo", "-s", f"{width}x{height}", "-r", fps]
    raw += ["-pix_fmt", {3: "rgb24", 4: "rgba"}[channels]]
    if "-c:v" not in options:
        options = (*options, "-c:v", "libx264", "-crf", 1, "-pix_fmt", "yuv420p")
    ffmpeg(*raw, "-i", "-", *options, path, pixels=pictures.tobytes())
    return path


def numbered(count: int) -> np.ndarray:
    """Picture i is of the gray 3 i."""
    gray = np.arange(count, dtype=np.uint8) * 3
    return np.broadcast_to(gray[:, None, None, None], (count, *SIZE[::-1], 3))


def two_colours(count: int = 4) -> np.ndarray:
    """Red on the left, blue on the right, and white above both."""
    picture = np.empty((*SIZE[::-1], 3), np.uint8)
    picture[:, :24], picture[:, 24:], picture[:8] = RED, BLUE, 255
    return np.stack([picture] * count)


def numbers(path: Path, fps: int) -> list[int]:
    return [round(picture.getpixel((9, 9))[0] / 3) for picture in play(path, fps)]


def close(picture: Image.Image, **places: tuple[int, int, int]) -> bool:
    """Whether the colours at a side's middle are these."""
    width, height = picture.size
    middles = {"left": (2, height // 2), "right": (width - 3, height // 2)}
    middles |= {"top": (width // 2, 2), "bottom": (width // 2, height - 3)}
    wanted = [(picture.getpixel(middles[side]), colour) for side, colour in places.items()]
    return all(np.abs(np.subtract(*pair)).max() < 8 for pair in wanted)


def test_a_video_of_variable_rate_is_read_at_the_speed_it_plays_at(tmp_path):
    # 60 pictures a second, then 15: the header's 25 on average are right nowhere.
    stamps = "settb=1/6000,setpts='if(lt(N,40),N*100,4000+(N-40)*400)'"
    path = video(tmp_path / "v.mp4", numbered(80), 60, "-vf", stamps, "-fps_mode", "vfr")
    times = [i / 60 if i < 40 else 40 / 60 + (i - 40) / 15 for i in range(80)]
    wanted = [max(i for i in range(80) if times[i] <= n / 16 + 1e-3) for n in range(33)]
    assert numbers(path, 16)[:33] == wanted
    assert times[wanted[-1]] == pytest.approx(2.0)
    frames = read_frames(path, Format(*SIZE[::-1], frames=33, fps=16), "t2v")
    assert [round(frame.getpixel((9, 9))[0] / 3) for frame in frames] == wanted


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi"])
@pytest.mark.parametrize("rate", [8, 16, 24, 29.97, 60])
def test_a_constant_rate_is_what_it_was_in_every_container(tmp_path, name, rate):
    count = round(rate)
    read = numbers(video(tmp_path / name, numbered(count), rate), 16)[:16]
    # Matroska rounds its stamps to milliseconds.
    allowed = [{int((n / 16 + e) * rate) for e in (0.0, 2e-3)} for n in range(16)]
    assert all(i in either for i, either in zip(read, allowed, strict=True))


def test_what_is_cut_off_by_an_edit_list_is_not_read(tmp_path):
    video(tmp_path / "whole.mp4", numbered(60), 30)
    ffmpeg("-ss", 0.5, "-i", tmp_path / "whole.mp4", "-c", "copy", tmp_path / "cut.mp4")
    assert numbers(tmp_path / "cut.mp4", 30) == list(range(15, 60))


def test_a_video_begins_with_its_first_picture_though_its_sound_is_earlier(tmp_path):
    whole = video(tmp_path / "whole.mp4", numbered(30), 30)
    sound = ["-f", "lavfi", "-i", "sine=d=2", "-itsoffset", 1, "-i", whole]
    ffmpeg(*sound, "-map", "0:a", "-map", "1:v", "-c:v", "copy", tmp_path / "late.mp4")
    assert numbers(tmp_path / "late.mp4", 30) == list(range(30))


def test_a_video_is_turned_and_stretched_as_its_file_says(tmp_path):
    plain = video(tmp_path / "plain.mp4", two_colours(), 16)
    assert close(next(play(plain, 16)), left=RED, right=BLUE, top=(255,) * 3)
    turned = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", 90, "-i", plain, "-c", "copy", turned)
    picture = next(play(turned, 16))
    assert picture.size == (32, 48)
    assert close(picture, left=(255,) * 3, top=BLUE, bottom=RED)
    wide = video(tmp_path / "wide.mp4", two_colours(), 16, "-vf", "setsar=2/1")
    picture = next(play(wide, 16))
    assert picture.size == (96, 32)
    assert close(picture, left=RED, right=BLUE)


def test_colours_are_those_that_the_file_is_tagged_with(tmp_path):
    tagged = "scale=out_range=pc:out_color_matrix=bt709,format=yuv420p"
    options = ["-vf", tagged, "-colorspace", "bt709", "-color_range", "pc", "-c:v", "libx264"]
    path = video(tmp_path / "v.mp4", two_colours(), 16, *options, "-crf", 1)
    assert close(next(play(path, 16)), left=RED, right=BLUE)


@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_is_refused_as_its_colours_would_be_wrong(tmp_path, transfer, name):
    tags = f"setparams=color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc"
    options = ["-vf", f"format=yuv420p10,{tags}", "-c:v", "libx264"]
    path = video(tmp_path / "v.mp4", two_colours(), 16, *options)
    with pytest.raises(ValueError, match=rf"is in HDR \({name}\)"):
        read_frames(path, Format(*SIZE[::-1], frames=1), "t2v")


def test_an_interlaced_picture_has_no_comb(tmp_path):
    bar = np.zeros((40, *SIZE[::-1], 3), np.uint8)
    for i, picture in enumerate(bar):
        picture[:, i : i + 6] = 255
    options = ["-vf", "interlace=scan=tff:lowpass=off", "-flags", "+ildct+ilme"]
    path = video(tmp_path / "v.mp4", bar, 50, *options)
    rows = [np.asarray(picture.convert("L"), int) for picture in play(path, 25)]
    assert len(rows) == 20
    assert max(np.abs(np.diff(picture, axis=0)).mean() for picture in rows) < 2  # 20 with combs


def test_what_is_transparent_is_on_white(tmp_path):
    picture = np.zeros((*SIZE[::-1], 4), np.uint8)
    picture[:, :24] = (*RED, 255)
    Image.fromarray(picture).save(tmp_path / "still.png")
    Image.fromarray(picture).quantize().save(tmp_path / "palette.png")
    for name in ("still.png", "palette.png"):
        assert close(read_image(tmp_path / name), left=RED, right=(255,) * 3), name
    film = video(tmp_path / "v.mov", np.stack([picture] * 4), 16, "-c:v", "qtrle")
    assert close(next(play(film, 16)), left=RED, right=(255,) * 3)


def test_an_animation_plays_with_its_own_pauses(tmp_path):
    pictures = [Image.new("RGB", SIZE, (100 * i,) * 3) for i in range(3)]
    settings = {"save_all": True, "append_images": pictures[1:], "duration": [100, 300, 100]}
    pictures[0].save(tmp_path / "a.gif", **settings)
    assert numbers(tmp_path / "a.gif", 10) == [0, 33, 33, 33, 67]
    pictures[0].save(tmp_path / "a.webp", lossless=True, **settings)
    assert read_image(tmp_path / "a.webp").getpixel((9, 9)) == (0, 0, 0)  # as an image: its first


def test_an_image_is_turned_as_exif_says(tmp_path):
    image = Image.fromarray(two_colours(1)[0])
    exif = image.getexif()
    exif[0x0112] = 6  # a camera held upright
    for name in ("i.jpg", "i.png", "i.webp"):
        image.save(tmp_path / name, exif=exif, quality=95)
        read = read_image(tmp_path / name)
        assert read.size == (32, 48)
        assert close(read, top=RED, bottom=BLUE, right=(255,) * 3), name


def test_an_image_of_16_bits_or_of_gray_keeps_its_tones(tmp_path):
    ramp = np.linspace(0, 65535, 48).astype(np.uint16)
    Image.fromarray(np.stack([ramp] * 32)).save(tmp_path / "deep.png")
    read = np.asarray(read_image(tmp_path / "deep.png"))
    assert read.shape == (32, 48, 3)
    assert np.abs(read[0, :, 0] - ramp / 257).max() <= 0.5
    Image.new("L", SIZE, 90).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png").getpixel((3, 3)) == (90, 90, 90)


def test_an_images_colour_profile_is_followed(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"****").replace(b"bXYZ", b"rXYZ").replace(b"****", b"bXYZ")
    image = Image.new("RGB", SIZE, (255, 0, 0))
    image.save(tmp_path / "i.png", icc_profile=swapped)  # its red is sRGB's blue
    assert close(read_image(tmp_path / "i.png"), left=(0, 0, 255))
    for broken in (b"none", profile[:200]):
        image.save(tmp_path / "i.png", icc_profile=broken)
        assert read_image(tmp_path / "i.png").getpixel((3, 3)) == (255, 0, 0)
    cmyk = Image.new("CMYK", SIZE, (0, 255, 255, 0))
    cmyk.save(tmp_path / "i.jpg")
    assert close(read_image(tmp_path / "i.jpg"), left=(255, 0, 0))
