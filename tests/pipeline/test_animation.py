from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from safelight.errors import InputError, MissingPartError
from safelight.pipeline import animation
from safelight.pipeline.animation import check_animation, save_animation
from safelight.pipeline.files import write_new


@pytest.fixture
def frames():
    """Seven smooth pictures of an odd size, each brighter than the one before."""
    y, x = np.mgrid[0:45, 0:67]
    return [Image.fromarray(np.stack([x * 2, y * 3, x * 0 + 30 * k], -1).astype(np.uint8)) for k in range(7)]


def apart(a, b):
    """The mean distance of two pictures in levels of 255."""
    return np.abs(np.asarray(a.convert("RGB"), float) - np.asarray(b, float)).mean()


@pytest.mark.parametrize(("suffix", "levels"), [(".gif", 6), (".webp", 3)])
def test_frames_come_back_at_their_speed_and_repeat(frames, tmp_path, suffix, levels):
    with Image.open(save_animation(frames, tmp_path / f"film{suffix}", fps=24)) as film:
        assert (film.n_frames, film.size, film.info["loop"]) == (7, (67, 45), 0)
        durations = []
        for k, frame in enumerate(frames):
            film.seek(k)
            film.load()
            durations.append(film.info["duration"])
            assert apart(film, frame) < levels  # 256 colours, or a lossy codec at quality 95
    assert sum(durations) == pytest.approx(7 * 1000 / 24, abs=5)  # half a tick of GIF's clock, however many frames


def test_an_mp4_holds_the_frames(frames, tmp_path):
    av = pytest.importorskip("av")
    path = save_animation(frames, tmp_path / "film.mp4", fps=12.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 12.5)
        shown = [frame.to_image() for frame in container.decode(stream)]
    assert [image.size for image in shown] == [(68, 46)] * 7
    for image, frame in zip(shown, frames, strict=True):
        assert apart(image.crop((0, 0, 67, 45)), frame) < 4  # lossy, and colours at half the resolution
    brightness = [np.asarray(image)[..., 2].mean() for image in shown]
    assert all(a < b for a, b in pairwise(brightness))


def test_no_file_is_written_over(frames, tmp_path):
    first, second = (save_animation(frames[:2], tmp_path / "new" / "a.gif") for _ in range(2))
    assert (first.name, second.name) == ("a.gif", "a-2.gif")
    assert first.read_bytes() == second.read_bytes()


def test_nothing_is_left_of_a_file_that_could_not_be_finished(tmp_path):
    def write(file):
        file.write(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_new(tmp_path / "a.gif", write)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "fps", "words"), [("a.avi", 8, ".gif, .webp, .mp4"), ("a.gif", 60, "50"), ("a.webp", 0, "more than 0")]
)
def test_bad_names_and_speeds_are_told_before_any_frame_is_drawn(tmp_path, name, fps, words):
    with pytest.raises(InputError, match=words):
        check_animation(tmp_path / name, fps)


def test_frames_must_be_there_and_of_one_size(frames, tmp_path):
    with pytest.raises(InputError, match="needs frames"):
        save_animation([], tmp_path / "a.gif")
    with pytest.raises(InputError, match="frames 0 and 2 are 67x45 and 9x9"):
        save_animation([*frames[:2], Image.new("RGB", (9, 9))], tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_an_mp4_without_pyav_names_the_remedy(frames, tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "find_spec", lambda name: None)
    with pytest.raises(MissingPartError, match="pip install av"):
        save_animation(frames, tmp_path / "a.mp4")
