"""Figures show the numbers they were given: the curves and pictures are read back from matplotlib."""

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.diffusion.grids import make_grid
from safelight.diffusion.schedule import noise_schedule
from safelight.errors import InputError, MissingPartError
from safelight.pipeline.pictures import to_pil
from safelight.pipeline.seeing import figures
from safelight.pipeline.seeing.attention import AttentionMaps
from safelight.pipeline.seeing.measuring import Pull, RoundTrip

pytest.importorskip("matplotlib")

SCHEDULE = noise_schedule()


def curves(axes):
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def shown(axes):
    return [np.asarray(image.get_array()) for image in axes.images]


def test_a_schedule_is_three_curves():
    panels = figures.schedule_figure(SCHEDULE).axes
    for axes, values in zip(panels, (SCHEDULE.betas, SCHEDULE.alphas_cumprod, SCHEDULE.sigmas), strict=True):
        assert curves(axes) == [(list(range(1000)), values.tolist())]
    assert [axes.get_ylabel() for axes in panels] == ["beta", "alphas_cumprod", "sigma"]


def test_grids_stand_together():
    names = ["karras", "linspace", "trailing"]
    falling, places = figures.sigmas_figure(SCHEDULE, names, 8).axes
    for name, (_, sigmas), (timesteps, row) in zip(names, curves(falling), curves(places), strict=True):
        grid = make_grid(SCHEDULE, 8, name)
        assert sigmas == list(grid.sigmas[:-1]) and timesteps == list(grid.timesteps)
        assert row == [names.index(name)] * 8
    assert [text.get_text() for text in falling.get_legend().texts] == names
    with pytest.raises(InputError, match="no grid"):
        figures.sigmas_figure(SCHEDULE, [])


def test_guidance_is_three_curves():
    pulls = [Pull(k, 10.0 / k, 900 / k, 1.0, 0.1 * k, 0.75 * k) for k in (1, 2, 3)]
    (axes,) = figures.guidance_figure(pulls).axes
    assert [y for _, y in curves(axes)] == [[getattr(p, n) for p in pulls] for n in ("noise", "difference", "term")]
    assert "7.5" in axes.figure.legends[0].texts[2].get_text()


def test_channels_share_one_scale():
    latent = torch.linspace(-2, 3, 4 * 5 * 6).view(4, 5, 6)
    picture = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, *channels, _ = figures.latents_figure(RoundTrip(picture, latent[None], picture)).axes
    assert (shown(first)[0] == np.asarray(to_pil(picture[0]))).all()
    for axes, channel in zip(channels, latent, strict=True):
        assert np.allclose(shown(axes)[0], channel.numpy())
    (limits,) = {axes.images[0].get_clim() for axes in channels}
    assert limits[0] == -limits[1]


def test_words_have_panels_with_their_heat_over_the_picture():
    maps = torch.rand(14, 4, 5, generator=torch.Generator().manual_seed(0))
    seen = AttentionMaps(Image.new("RGB", (40, 32), "teal"), tuple("abcdefghijklmn"), maps)
    first, *panels = figures.attention_figure(seen).axes
    assert len(panels) == 12 and first.get_title() == "picture"
    for axes, word, heat in zip(panels, seen.words, maps, strict=False):
        assert axes.get_title() == word
        grey, over = shown(axes)
        assert grey.shape == (32, 40, 3)
        assert np.allclose(over, (heat - heat.min()) / (heat.max() - heat.min()), atol=1e-6)
        assert axes.images[1].get_extent() == axes.images[0].get_extent()


def test_a_round_trip_shows_both_pictures_and_the_error():
    generator = torch.Generator().manual_seed(0)
    picture, again = (torch.rand(1, 3, 24, 40, generator=generator) * 2 - 1 for _ in range(2))
    trip = RoundTrip(picture, torch.zeros(1, 4, 3, 5), again)
    before, after, error, _ = figures.roundtrip_figure(trip).axes
    assert (shown(before)[0] == np.asarray(to_pil(picture[0]))).all()
    assert (shown(after)[0] == np.asarray(to_pil(again[0]))).all()
    assert np.allclose(shown(error)[0], (again - picture).abs().mean(1)[0] * 127.5, atol=1e-4)
    assert "4×3×5" in after.get_title() and f"{trip.psnr:.1f}" in error.get_title()


def test_figures_are_written_by_suffix_and_never_over_another(tmp_path):
    figure = figures.schedule_figure(SCHEDULE)
    assert figures.save_figure(figure, tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    assert Image.open(figures.save_figure(figure, tmp_path / "a.png")).format == "PNG"
    assert figures.save_figure(figure, tmp_path / "a.png").name == "a-2.png"
    with pytest.raises(InputError, match=r"\.png, \.svg, \.pdf"):
        figures.save_figure(figure, tmp_path / "a.bmp")
    assert len(list(tmp_path.iterdir())) == 3


def test_without_matplotlib_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingPartError, match="pip install"):
        figures.schedule_figure(SCHEDULE)
