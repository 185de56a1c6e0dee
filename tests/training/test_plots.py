import pytest
from PIL import Image

from safelight.training.loop.log import Figures, Log, read_log
from safelight.training.loop.plots import figure_names, plot_curves, smoothed
from safelight.training.loop.sheets import contact_sheet, wrapped

torch = pytest.importorskip("torch")


def test_a_running_mean_starts_at_the_start_and_follows():
    assert smoothed([3.0] * 100) == pytest.approx([3.0] * 100)
    assert smoothed([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]  # so few points are their own mean
    late = smoothed([0.0] * 100 + [1.0] * 100)
    assert late[99] == 0 and 0.9 < late[-1] < 1 and late == sorted(late)


def test_panels_are_for_what_was_measured(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"step": i, "seconds": i, "skipped": 0, "speed": 5.0, "loss": 1 / i, "odd": float("nan")} for i in (1, 2, 3)
    ]
    assert figure_names(rows) == ["loss", "speed"]
    assert Image.open(plot_curves(rows, tmp_path / "a.png")).format == "PNG"


def test_what_is_measured_over_decades_has_a_logarithmic_axis_and_a_learning_rate_has_not(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    savefig = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), savefig(self, *a, **k)))
    rows = [{"step": i, "loss": 10.0**-i, "learning_rate": 10.0**-i} for i in range(1, 5)]
    plot_curves(rows, tmp_path / "a.png")
    assert [axes.get_yscale() for axes in drawn[0].axes] == ["log", "linear"]


def test_the_log_drops_what_will_be_made_again_and_half_a_line(tmp_path):
    log = Log(tmp_path)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": float("nan") if step == 2 else 0.5})
    log.path.write_text(log.path.read_text() + '{"step": 4, "lo')
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3]
    Log(tmp_path, after=2)
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2]


def test_figures_are_means_of_what_is_finite():
    figures = Figures(torch.device("cpu"))
    for value in (1.0, 3.0, float("nan")):
        figures.add({"loss": torch.tensor(value)})
    for skipped in (1.0, 0.0, 1.0, 1.0):
        figures.count(torch.tensor(skipped))
    assert figures.read() == {"loss": 2.0} and figures.read() == {}
    assert (figures.skipped, figures.in_a_row) == (3, 2)


def test_a_sheet_has_room_for_every_picture_and_its_words():
    pictures = [Image.new("RGB", (32, 48), color) for color in ("red", "green", "blue", "black", "yellow")]
    sheet = contact_sheet(pictures, ["a long caption that must be broken into lines"] * 5, columns=3)
    colors = {color for _, color in sheet.getcolors(100_000)}
    assert {(255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0)} <= colors
    assert sheet.width == 8 + 3 * (96 + 8)
    from PIL import ImageFont

    font = ImageFont.load_default(10)
    lines = wrapped("a long caption that must be broken into lines", 96, font)
    assert len(lines) > 1 and all(font.getlength(line) <= 96 for line in lines)
