import numpy as np
import pytest
import torch
from PIL import Image

from safelight.errors import Cancelled, InputError
from safelight.pipeline.developing import decode
from safelight.pipeline.pictures import to_pil
from safelight.pipeline.seeing.film import film, save_film, views
from safelight.pipeline.seeing.watching import Record, together
from safelight.pipeline.tasks import image_to_image, text_to_image

ASKED = {"steps": 4, "seed": 3, "sampler": "euler", "width": 64, "height": 72}


@pytest.fixture(scope="module")
def shot(model):
    return film(model, "a red fox", **ASKED)


def test_a_film_is_of_the_very_run_that_draws_the_picture(model, shot):
    alone = text_to_image(model, "a red fox", **ASKED)
    assert torch.equal(shot.pictures.latents, alone.latents)
    grid = model.grid("karras", 4)
    assert [view.sigma for view in shot.views] == list(grid.sigmas[:-1])
    assert [view.t for view in shot.views] == pytest.approx(grid.timesteps, abs=1e-6)
    assert [(view.number, view.total) for view in shot.views] == [(k, 4) for k in (1, 2, 3, 4)]
    assert shot.views[-1].foreseen.tobytes() == alone[0].tobytes()  # Euler's last step goes to x0 itself


def test_x_t_is_shown_at_unit_variance(model):
    record = Record()
    text_to_image(model, "a fox", watch=record, **ASKED)
    (view, *_) = views(model, record.steps[:1])
    latent = record.steps[0].x / (1 + record.steps[0].sigma ** 2) ** 0.5
    assert latent.std().item() == pytest.approx(1, abs=0.15)  # 288 normal numbers: within 3.6 standard errors
    assert view.noisy.tobytes() == to_pil(decode(model, latent)[0]).tobytes()


def test_any_task_has_its_film(model, picture):
    record = Record()
    image_to_image(model, "a fox", picture, strength=0.5, steps=6, seed=1, watch=record)
    assert len(views(model, record.steps)) == 3


def test_frames_hold_both_pictures_enlarged(shot):
    frames = shot.frames()
    assert len({frame.size for frame in frames}) == 1
    factor = 4  # 64 x 72 becomes 256 x 288
    pixels, size = np.asarray(frames[2]), 14
    left = pixels[size : size + 72 * factor : factor, size : size + 64 * factor : factor]
    right = pixels[size : size + 72 * factor : factor, 2 * size + 256 : 2 * size + 512 : factor]
    assert (left == np.asarray(shot.views[2].noisy)).all()
    assert (right == np.asarray(shot.views[2].foreseen)).all()


def test_both_passes_of_a_larger_picture_are_in_its_film(model, tmp_path):
    larger = film(model, "a red fox", hires=2, hires_strength=0.5, **ASKED)
    assert [(view.number, view.noisy.size) for view in larger.views] == [
        *((k, (64, 72)) for k in (1, 2, 3, 4)), (1, (128, 144)), (2, (128, 144)),
    ]  # fmt: skip
    assert len({frame.size for frame in larger.frames()}) == 1
    assert save_film(larger, tmp_path / "film.gif").is_file() and larger.strip().width > 6 * 64


def test_a_strip_has_the_first_and_the_last_step(shot):
    wide, narrow = shot.strip(), shot.strip(columns=2)
    assert wide.width > narrow.width and wide.height == narrow.height
    column = wide.width - narrow.width  # two columns: those of steps 2 and 3
    (first, last) = narrow.crop((40, 0, 40 + column // 2, 300)), narrow.crop((40 + column // 2, 0, narrow.width, 300))
    assert first.tobytes() == wide.crop((40, 0, 40 + column // 2, 300)).tobytes()
    assert last.tobytes() == wide.crop((40 + 3 * column // 2, 0, wide.width, 300)).tobytes()


def test_films_are_written_by_suffix_and_hold_the_last_frame(shot, tmp_path):
    assert Image.open(save_film(shot, tmp_path / "a.png")).size == shot.strip().size
    with Image.open(save_film(shot, tmp_path / "a.webp", fps=4)) as moving:
        assert moving.size == shot.frames()[0].size
        durations = []
        for k in range(moving.n_frames):
            moving.seek(k)
            moving.load()
            durations.append(moving.info["duration"])
    assert sum(durations) == 2000  # four steps in a second, and the last frame a second longer
    with pytest.raises(InputError, match="mkv"):
        save_film(shot, tmp_path / "a.mkv")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "a.webp"]


def test_watchers_are_called_in_turn_and_any_may_stop_the_run(model):
    seen = []

    def stop(step):
        if step.index == 1:
            raise Cancelled("stopped by the watcher")

    watch = together(lambda step: seen.append(("first", step.index)), None, stop, lambda step: seen.append(step.index))
    with pytest.raises(Cancelled):
        text_to_image(model, "a fox", watch=watch, **ASKED)
    assert seen == [("first", 0), 0, ("first", 1)]
    assert together() is None and together(None, None) is None
    assert together(None, stop) is stop


def test_a_film_shows_one_picture(model, shot):
    with pytest.raises(InputError, match="count=2"):
        film(model, "a fox", count=2)
    with pytest.raises(InputError, match="columns=1"):
        shot.strip(columns=1)
