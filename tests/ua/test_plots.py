"""Pictures and figures: colours that mean the same everywhere, files that are the same every time."""

import numpy as np
import pytest
import torch

from ua import plots
from ua.statistics import Interval


def test_pca_axes_are_those_of_the_reference():
    torch.manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(5, 5)).Q
    sources = torch.randn(5, 12, 12) * torch.tensor([9.0, 3.0, 1.0, 0.01, 0.01])[:, None, None]
    low = torch.einsum("cd,dhw->chw", mixing, sources)
    first, big = plots.pca(low, low, low.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert first.shape == (12, 12, 3) and big.shape == (24, 24, 3)
    np.testing.assert_allclose(big[::2, ::2], first)
    for axis in range(3):  # up to sign a channel is one of the sources, stretched
        correlation = np.corrcoef(first[..., axis].ravel(), sources[axis].numpy().ravel())[0, 1]
        assert abs(correlation) > 0.95
    np.testing.assert_array_equal(plots.pca(low, low)[0], first)


def test_pca_of_few_channels_and_missing_values():
    low = torch.rand(2, 4, 4)
    high = low.clone()
    high[:, 0, 0] = torch.nan
    (picture,) = plots.pca(low, high)
    assert picture.shape == (4, 4, 3) and np.isfinite(picture).all()
    np.testing.assert_allclose(picture[0, 0], plots.MISSING)
    (flat,) = plots.pca(torch.ones(3, 4, 4), torch.ones(3, 4, 4))
    assert np.isfinite(flat).all()


def test_quantities_share_a_scale():
    picture = plots.quantity(torch.tensor([[0.0, 5.0, 10.0, 20.0, torch.nan]]), 0, 10)
    np.testing.assert_allclose(picture[0, 2], picture[0, 3])
    assert not np.allclose(picture[0, 0], picture[0, 1])
    np.testing.assert_allclose(picture[0, 4], plots.MISSING)
    assert np.isfinite(plots.quantity(torch.full((2, 2), 3.0), 3, 3)).all()


def test_classes_have_their_own_colours():
    picture = plots.classes(torch.arange(-1, 40)[None])
    np.testing.assert_allclose(picture[0, 0], plots.MISSING)
    colours = {tuple(np.round(colour, 3)) for colour in picture[0, 1:]}
    assert len(colours) == 40
    own = plots.classes(torch.tensor([[1, 0]]), np.array([[0.0, 0, 0], [1, 1, 1]]))
    np.testing.assert_array_equal(own[0], [[1, 1, 1], [0, 0, 0]])


def test_the_commonest_classes_have_the_palette():
    colours = plots.class_colours(torch.tensor([[9, 9, 9, 4, 4, -1]]), 20)
    assert colours.shape == (20, 3)
    first, second = plots.classes(torch.tensor([[0, 1]]))[0]
    np.testing.assert_allclose([colours[9], colours[4]], [first, second])
    assert len({tuple(colour) for colour in colours}) == 20


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_guides_of_any_number_of_channels(channels):
    assert plots.image(torch.rand(channels, 5, 6)).shape == (5, 6, 3)


def make_curves():
    ours = plots.Curve("ours", [0, 1, 10], [20.0, 25.0, 30.0], {"color": plots.BLUE})
    line = plots.Curve("bilinear", [], [22.0], plots.baseline_styles()[0], level=True)
    point = plots.Curve("jbu", [0.5], [24.0], plots.baseline_styles()[1], level=True)
    return plots.curves([[plots.Plot([ours, line, point], "PSNR", "steps", ticks=[0, 1, 10])]], title="Title")


def test_curves():
    figure = make_curves()
    (axes,) = figure.axes
    assert axes.get_xscale() == "symlog"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "bilinear", "jbu"]
    assert [tick for tick in axes.get_xticks()] == [0, 1, 10]
    positive = plots.curves([[plots.Plot([plots.Curve("a", [1, 10], [1, 2])])]], log_y=True).axes[0]
    assert positive.get_xscale() == positive.get_yscale() == "log"


def test_panels_leave_places_empty_and_write_a_title_once():
    panel = plots.Panel(np.zeros((4, 6, 3)), "guide", "4 x 6")
    figure = plots.panels([[panel, panel], [panel, None]], row_titles=["depth", "labels"])
    axes = figure.axes
    assert [each.get_title() for each in axes] == ["guide", "guide", "", ""]
    assert [len(each.images) for each in axes] == [1, 1, 1, 0]
    assert axes[0].images[0].get_extent() == [0, 6, 4, 0]
    assert [axes[0].get_ylabel(), axes[2].get_ylabel()] == ["depth", "labels"]


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_the_same_figure_is_the_same_file(tmp_path, suffix):
    for name in ("first", "second"):
        plots.save(make_curves(), tmp_path / "new" / f"{name}.{suffix}")
    first, second = (path.read_bytes() for path in sorted((tmp_path / "new").iterdir()))
    assert first == second


def test_pictures_are_written_pixel_by_pixel(tmp_path):
    from PIL import Image

    picture = np.array([[[0.0, 0.5, 1.0], [2.0, -1.0, 0.2]]])
    plots.save_picture(picture, tmp_path / "picture.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "picture.png")), [[[0, 128, 255], [255, 0, 51]]])


def test_dots_show_every_name_once_and_a_missing_interval(tmp_path):

    first = plots.Dots("a", {"x": Interval(1.0, 0.5, 1.5), "y": Interval(2.0, float("nan"), float("nan"))}, 1.0, ("x",))
    second = plots.Dots("b", {"y": Interval(3.0, 2.0, 4.0)}, 0.0)
    figure = plots.dots([first, second], title="both")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["x", "y"] and [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert [line.get_ydata()[0] for line in figure.axes[1].lines[1:]] == [1, 1]
    plots.save(figure, tmp_path / "dots.png")
    assert (tmp_path / "dots.png").stat().st_size > 1000


def make_bands():
    intervals = [Interval(20.0, 19.0, 21.0), Interval(25.0, float("nan"), float("nan")), Interval(30.0, 28.0, 33.0)]
    ours = plots.Band("ours", [0, 1, 10], intervals, {"color": plots.BLUE})
    level = plots.Band("bilinear", [], [Interval(22.0, 21.0, 23.0)], {"color": plots.BLACK}, level=True)
    curve = plots.BandPlot([ours, level], "PSNR", "steps", ticks=[0, 1, 10])
    names = plots.BandPlot(
        [plots.Band("ours", [0, 1, 2], intervals)], "PSNR", "init", x_names=["a", "b", "a long name"]
    )
    return plots.bands([curve, names], title="Title")


def test_bands():
    figure = make_bands()
    curve, names = figure.axes
    assert curve.get_xscale() == "symlog" and names.get_xscale() == "linear"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "bilinear"]
    (band,) = curve.collections
    assert band.get_datalim(curve.transData).y0 == 19 and band.get_datalim(curve.transData).y1 == 33
    assert [label.get_text() for label in names.get_xticklabels()] == ["a", "b", "a long name"]
    assert names.lines[0].get_linestyle() == "None" and len(names.collections[0].get_segments()) == 3
    assert not plots.bands([plots.BandPlot([])], legend=False).legends


@pytest.mark.parametrize(
    ("better", "best", "bright"), [("max", "3.0", (1, 1)), ("min", "1.0", (0, 0)), ("", None, (1, 1))]
)
def test_heat_maps_print_values_and_mark_the_best(better, best, bright):
    values = np.array([[1.0, 2.0], [np.nan, 3.0]])
    (axes,) = plots.heat_maps(
        [plots.HeatMap(values, ["x", "y"], ["p", "q"], "loss", "across", "down", ".1f", better)]
    ).axes
    texts = {text.get_position(): text for text in axes.texts}
    assert {place: text.get_text() for place, text in texts.items()} == {
        (0, 0): "1.0",
        (1, 0): "2.0",
        (0, 1): "",
        (1, 1): "3.0",
    }
    assert [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"] == ([best] if best else [])
    filled = [patch for patch in axes.patches if patch.get_fill()]
    colours = {(round(patch.get_center()[1]), round(patch.get_center()[0])): patch.get_facecolor() for patch in filled}
    np.testing.assert_allclose(colours[1, 0][:3], plots.MISSING)
    np.testing.assert_allclose(colours[bright][:3], (0.993248, 0.906157, 0.143936), atol=1e-6)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["p", "q"] and axes.yaxis_inverted()


def test_heat_maps_of_equal_or_no_values_mark_none():
    for values in (np.full((1, 2), 0.5), np.full((1, 2), np.nan)):
        (axes,) = plots.heat_maps([plots.HeatMap(values, ["x", "y"], ["p"], better="max")]).axes
        assert all(patch.get_fill() for patch in axes.patches)


def test_svg_is_one_element_that_names_no_place_and_no_time():
    text = plots.svg(make_bands())
    assert text == plots.svg(make_bands()) and text.startswith("<svg") and text.rstrip().endswith("</svg>")
    assert "http" not in text and "<metadata" not in text and "20" in text and ">Title</text>" in text
