"""Pictures: signals as colours, panels, curves. Pictures are NumPy (H, W, 3) in [0, 1]; figures are Matplotlib's.

Colours can be told apart by people who are colour-blind (Okabe and Ito, "Color universal design", 2008; viridis for
quantities). The same input gives the same file, byte for byte. Matplotlib is imported only when a figure is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ua.files import atomic_path
from ua.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Picture = NDArray[np.float64]

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW, BLACK)
GREY = "#777777"
MISSING = (0.85, 0.85, 0.85)  # light grey: no value here
DPI = 150
LEGEND_ENTRY = 1.7  # inches that an entry of a legend may take
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "svg.hashsalt": "ua",
}


@dataclass(frozen=True)
class Panel:
    """One picture of a figure with a title above and a short caption below."""

    picture: Picture
    title: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        name: in the legend.
        x, y: its points.
        style: of Matplotlib's lines.
        level: a single y, drawn across the plot, with a marker at its x where it has one.
        band: (low, high) around every y, shaded; none: no band. NaN leaves a gap.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: Mapping[str, Any] = field(default_factory=dict)
    level: bool = False
    band: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Plot:
    """Curves over one x axis; `ticks` are its labelled places, where the usual ones will not do."""

    curves: Sequence[Curve]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    ticks: Sequence[float] = ()


@dataclass(frozen=True)
class Dots:
    """One value with its interval for each name, and a line at `reference`; names in `strong` stand out."""

    title: str
    values: Mapping[str, Interval]
    reference: float
    strong: Sequence[str] = ()


def image(picture: Tensor) -> Picture:
    """A guide (G, H, W) in [0, 1] as a picture: its first three channels, or one channel in grey."""
    channels = picture.detach().float().cpu().clamp(0, 1)
    channels = channels[:3] if len(channels) >= 3 else channels[:1].expand(3, -1, -1)
    return channels.permute(1, 2, 0).double().numpy()


def quantity(values: Tensor, low: float, high: float, colours: str = "viridis") -> Picture:
    """A map (H, W) of one quantity between `low` and `high`, in the Matplotlib colour map `colours`; NaN is grey."""
    import matplotlib

    numbers = values.detach().double().cpu().numpy()
    share = (numbers - low) / (high - low if high > low else 1.0)
    picture = matplotlib.colormaps[colours](np.clip(np.nan_to_num(share), 0, 1))[..., :3]
    picture[~np.isfinite(numbers)] = MISSING
    return picture


def classes(labels: Tensor, colours: Picture | None = None) -> Picture:
    """A map of classes as colours.

    Args:
        labels: (H, W) class numbers >= 0; negative ones (void) are grey.
        colours: (classes, 3) in [0, 1]; None: the palette, and for more than seven classes hues around the circle.
    """
    numbers = labels.detach().cpu().numpy()
    if colours is None:
        colours = _colours(int(numbers.max(initial=0)) + 1)
    picture = colours[np.maximum(numbers, 0)]
    picture[numbers < 0] = MISSING
    return picture


def pca(reference: Tensor, *features: Tensor) -> list[Picture]:
    """Pictures of feature maps in one shared colour space, the three main axes of a reference.

    The first axis is the first colour channel and so on; each is stretched from the 1st to the 99th percentile of the
    reference. The sign of an axis is fixed (its largest component is positive), so equal input gives equal colours.
    Values that are not finite are grey.

    Args:
        reference: (C, h, w), what the axes are computed from.
        features: each (C, H, W), of any size.
    """
    points = reference.detach().double().cpu().flatten(1).T.numpy()  # (h w, C)
    points = points[np.isfinite(points).all(1)]
    mean = points.mean(0)
    # The eigenvectors of the covariance: C x C, however many pixels there are.
    _, vectors = np.linalg.eigh((points - mean).T @ (points - mean))
    axes = vectors[:, ::-1][:, :3]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(0, keepdims=True), 0)
    axes = axes * np.where(largest < 0, -1.0, 1.0)
    low, high = np.percentile(points @ axes, [1, 99], axis=0)
    pictures = []
    for maps in features:
        # In the dtype of the maps: a copy of a thousand channels in float64 would be the largest thing in memory.
        weights = torch.from_numpy(axes.T.copy()).to(maps)
        values = torch.einsum("kc,chw->hwk", weights, maps.detach()).double().cpu().numpy()
        picture = np.full((*values.shape[:2], 3), 0.5)  # of fewer than three channels the others are grey
        picture[..., : axes.shape[1]] = np.clip((values - low) / np.where(high > low, high - low, 1.0), 0, 1)
        picture[~np.isfinite(values).all(-1)] = MISSING
        pictures.append(picture)
    return pictures


def class_colours(labels: Tensor, count: int) -> Picture:
    """Colours (count, 3) for `classes`, the palette for those that the map (H, W) has most of.

    So few classes out of many can be told apart.
    """
    pixels = np.bincount(labels.detach().cpu().numpy().clip(min=0).ravel(), minlength=count)
    rank = np.argsort(np.argsort(-pixels, kind="stable"), kind="stable")
    return _colours(count)[rank]


def panels(rows: Sequence[Sequence[Panel | None]], *, row_titles: Sequence[str] = (), width: float = 2.2) -> Figure:
    """A grid of pictures, `width` inches each; None leaves a place empty. Low-resolution pictures are shown in blocks.

    A title that is the same as the one above is written once.
    """
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    shown = [panel for row in rows for panel in row if panel is not None]
    sizes = [max((panel.picture.shape[:2] for panel in row if panel), default=(1, 1)) for row in rows]
    aspect = max(size[0] / size[1] for size in sizes)
    height = width * aspect + (0.2 if any(panel.caption for panel in shown) else 0) + 0.1
    with _style():
        figure = Figure(figsize=(columns * width + 0.25, len(rows) * height + 0.25))
        figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
        grid = figure.subplots(len(rows), columns, squeeze=False)
        titles = [""] * columns
        for axes_row, row, size in zip(grid, rows, sizes, strict=True):
            for place, axes in enumerate(axes_row):
                panel = row[place] if place < len(row) else None
                hide_title = panel is not None and panel.title == titles[place]
                _panel(axes, panel, size, hide_title)
                titles[place] = panel.title if panel is not None else ""
        for axes_row, title in zip(grid, row_titles, strict=False):
            axes_row[0].set_ylabel(title, fontsize=10)
    return figure


def curves(
    plots: Sequence[Sequence[Plot]],
    *,
    title: str = "",
    log_y: bool = False,
    width: float = 2.8,
    height: float = 2.3,
) -> Figure:
    """A grid of plots of `width` x `height` inches, the x axis logarithmic, with one legend below for all of them.

    Where an x is 0 the axis is linear from 0 to the next x, so that "0 steps" has its place.
    """
    from matplotlib.figure import Figure

    columns = max(map(len, plots))
    with _style():
        figure = Figure(figsize=(width * columns, height * len(plots) + 0.7), layout="constrained")
        grid = figure.subplots(len(plots), columns, squeeze=False)
        handles: dict[str, Any] = {}
        for axes_row, row in zip(grid, plots, strict=True):
            for axes, plot in zip(axes_row, row, strict=True):
                _plot(axes, plot, handles)
                if log_y:
                    axes.set_yscale("log")
                    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        figure.suptitle(title, fontsize=11)
        beside = max(1, int(width * columns / LEGEND_ENTRY))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(beside, len(handles)))
    return figure


def dots(plots: Sequence[Dots], *, title: str = "", columns: int = 4, width: float = 2.4) -> Figure:
    """Plots of values with their intervals, side by side, the names on the left; all plots have the same names."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for plot in plots for name in plot.values))
    columns = min(columns, len(plots))
    rows = -(-len(plots) // columns)
    with _style():
        figure = Figure(figsize=(width * columns + 1.6, rows * (0.2 * len(names) + 0.7) + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(plots) :]:
            axes.set_visible(False)
        for axes, plot in zip(grid.flat, plots, strict=False):
            axes.axvline(plot.reference, color=GREY, linewidth=1)
            for name, interval in plot.values.items():
                colour, place = (VERMILION if name in plot.strong else BLUE), names.index(name)
                axes.plot([interval.low, interval.high], [place, place], color=colour)
                axes.plot([interval.mean], [place], "o", color=colour)
            axes.set_title(plot.title)
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.5)
        figure.suptitle(title, fontsize=11)
    return figure


def baseline_styles() -> list[dict[str, Any]]:
    """Line styles: six that differ in colour and in dashes, then others that differ in either."""
    dashes: list[Any] = ["--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (1, 3))]
    colours = (BLACK, VERMILION, GREEN, ORANGE, PURPLE, GREY)  # yellow lines vanish on white
    shifted = (dashes[shift:] + dashes[:shift] for shift in range(len(dashes)))
    pairs = (pair for row in shifted for pair in zip(colours, row, strict=True))
    return [{"color": colour, "linestyle": dash} for colour, dash in pairs]


def save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG or PDF, whole or not at all, without date or version in it. Makes the folder where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = (
        {"Creator": None, "Producer": None, "CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
    )
    with atomic_path(path) as temporary, _style():
        figure.savefig(temporary, metadata=metadata)


def save_picture(picture: Picture, path: str | Path) -> None:
    """Writes a picture pixel by pixel as an 8-bit PNG, whole or not at all."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)).save(temporary)


def _panel(axes: Axes, panel: Panel | None, size: tuple[int, int], hide_title: bool) -> None:
    """Draws a panel stretched to `size` = (H, W), that of the largest picture in its row: cells need not be
    square."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if panel is not None:
        axes.imshow(panel.picture, interpolation="nearest", extent=(0, size[1], size[0], 0))
        axes.set_title("" if hide_title else panel.title, pad=3)
        axes.set_xlabel(panel.caption, labelpad=2, fontsize=8)


def _plot(axes: Axes, plot: Plot, handles: dict[str, Any]) -> None:
    """Draws one plot; adds what its curves look like to `handles`, by name."""
    from matplotlib.ticker import NullLocator

    xs = sorted({x for curve in plot.curves for x in curve.x})
    if xs and xs[0] > 0:
        axes.set_xscale("log")
    elif len(xs) > 1:
        axes.set_xscale("symlog", linthresh=xs[1], linscale=0.3)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    for curve in plot.curves:
        if curve.level:
            handle = axes.axhline(curve.y[0], **{"linewidth": 1.1, **curve.style})
            if curve.x:
                axes.plot(curve.x, curve.y, **{**curve.style, "marker": "D", "linestyle": "none"})
        else:
            (handle,) = axes.plot(curve.x, curve.y, **{"marker": "o", **curve.style})
            if curve.band:
                low, high = zip(*curve.band, strict=True)
                axes.fill_between(curve.x, low, high, color=handle.get_color(), alpha=0.15, linewidth=0)
        handles.setdefault(curve.name, handle)
    if plot.ticks:
        axes.set_xticks(plot.ticks)
    axes.set_title(plot.title)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _colours(count: int) -> Picture:
    """(count, 3): the palette, then hues a golden angle apart."""
    from matplotlib.colors import hsv_to_rgb, to_rgb

    first = [to_rgb(colour) for colour in PALETTE[:7]]
    more = [
        hsv_to_rgb((number * 0.618034 % 1, 0.75 - 0.3 * (number % 2), 0.95 - 0.2 * (number % 3)))
        for number in range(count - len(first))
    ]
    return np.array([*first, *more])[:count]


LUMA = np.array([0.299, 0.587, 0.114])  # of RGB: how bright a colour looks


@dataclass(frozen=True)
class Band:
    """Means with their intervals over x. `level`: a single mean, drawn across the plot without its interval.

    `style` is that of the line; the band takes its colour. An interval whose ends are NaN has no band.
    """

    name: str
    x: Sequence[float]
    y: Sequence[Interval]
    style: Mapping[str, Any] = field(default_factory=dict)
    level: bool = False


@dataclass(frozen=True)
class BandPlot:
    """Bands over one x axis.

    x_names: names of x = 0, 1, 2 ..., for an axis of categories, where means get bars and no line; none: the x axis is
    that of `curves`, with labels at `ticks`.
    """

    bands: Sequence[Band]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    ticks: Sequence[float] = ()
    x_names: Sequence[str] = ()


@dataclass(frozen=True)
class HeatMap:
    """A table of numbers as colours.

    values: (rows, columns), NaN where there is none; each is printed with `form`. better: "min" or "max" marks the best
    (where no other looks equal to it) and makes it the bright end of the colours; "" does neither.
    """

    values: NDArray[np.float64]
    x_names: Sequence[str]
    y_names: Sequence[str]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    form: str = ".3g"
    better: str = ""


def bands(
    plots: Sequence[BandPlot],
    *,
    title: str = "",
    columns: int = 3,
    legend: bool = True,
    width: float = 3.2,
    height: float = 2.4,
) -> Figure:
    """Plots of `width` x `height` inches side by side, `columns` a row; one legend below for all of them."""
    from matplotlib.figure import Figure

    columns = min(columns, len(plots))
    rows = -(-len(plots) // columns)
    names = list(dict.fromkeys(band.name for plot in plots for band in plot.bands))
    across = max(1, min(len(names), int(width * columns / (0.09 * max(map(len, names), default=1) + 0.7))))
    below = 0.2 + 0.19 * -(-len(names) // across) if legend else 0.0
    with _style():
        size = (width * columns, height * rows + below + (0.25 if title else 0))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        handles: dict[str, Any] = {}
        for axes in grid.flat[len(plots) :]:
            axes.set_visible(False)
        for axes, plot in zip(grid.flat, plots, strict=False):
            _bands(axes, plot, handles)
        figure.suptitle(title, fontsize=11)
        if legend:
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=across)
    return figure


def heat_maps(maps: Sequence[HeatMap], *, title: str = "", columns: int = 3) -> Figure:
    """Heat maps side by side, `columns` a row, each with the value in every cell."""
    from matplotlib.figure import Figure

    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    width = max(0.55 * len(each.x_names) + 0.09 * max(map(len, each.y_names)) + 0.6 for each in maps)
    height = max(0.36 * len(each.y_names) + 0.9 for each in maps)
    with _style():
        size = (max(3.2, width) * columns, height * rows + (0.25 if title else 0))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(maps) :]:
            axes.set_visible(False)
        for axes, each in zip(grid.flat, maps, strict=False):
            _heat_map(axes, each)
        figure.suptitle(title, fontsize=11)
    return figure


def svg(figure: Figure) -> str:
    """The figure as one <svg> element to be put into a page: text stays text, no background, date or address in it."""
    import io
    import re

    import matplotlib

    file = io.StringIO()
    nothing = {name: None for name in ("Creator", "Date", "Format", "Type")}
    with _style(), matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")


def _bands(axes: Axes, plot: BandPlot, handles: dict[str, Any]) -> None:
    """Draws one plot; adds what its bands look like to `handles`, by name."""
    dotted = {"linestyle": "none"} if plot.x_names else {}
    lines = [
        Curve(band.name, band.x, [y.mean for y in band.y], {**band.style, **({} if band.level else dotted)}, band.level)
        for band in plot.bands
    ]
    _plot(axes, Plot(lines, plot.title, plot.x_label, plot.y_label, plot.ticks), handles)
    alpha = min(0.16, 0.4 / max(1, len(lines)))  # where many bands overlap, none may hide the others
    for band in plot.bands:
        if band.level:
            continue
        low, high = [y.low for y in band.y], [y.high for y in band.y]
        colour = band.style.get("color")
        if plot.x_names:
            axes.vlines(band.x, low, high, color=colour, linewidth=1.6)
        else:
            axes.fill_between(band.x, low, high, color=colour, alpha=alpha, linewidth=0)
    if plot.x_names:
        axes.set_xscale("linear")
        slanted: Any = {"rotation": 30, "ha": "right"} if max(map(len, plot.x_names)) > 8 else {}
        axes.set_xticks(range(len(plot.x_names)), plot.x_names, **slanted)
        axes.set_xlim(-0.5, len(plot.x_names) - 0.5)


def _heat_map(axes: Axes, each: HeatMap) -> None:
    from matplotlib.patches import Rectangle

    finite = each.values[np.isfinite(each.values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    bright = low if each.better == "min" else high
    sign = -1.0 if each.better == "min" else 1.0
    colours = _heat_colours(each, sign)
    best = format(bright, each.form) if each.better and high > low else None
    alone = sum(format(value, each.form) == best for value in finite) == 1
    for row, column in np.ndindex(each.values.shape):
        value, colour = each.values[row, column], colours[row, column]
        label = "" if np.isnan(value) else format(value, each.form)
        axes.add_patch(Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, facecolor=tuple(colour), linewidth=0))
        strong = alone and label == best
        if strong:
            place = (column - 0.45, row - 0.43)
            axes.add_patch(Rectangle(place, 0.9, 0.86, fill=False, edgecolor=VERMILION, linewidth=2.2))
        style: Any = {"fontweight": "bold" if strong else "normal", "ha": "center", "va": "center"}
        axes.text(column, row, label, color="#111111" if colour @ LUMA > 0.45 else "#FFFFFF", **style)
    axes.set_xlim(-0.5, len(each.x_names) - 0.5)
    axes.set_ylim(len(each.y_names) - 0.5, -0.5)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(len(each.x_names)), each.x_names)
    axes.set_yticks(range(len(each.y_names)), each.y_names)
    axes.set_title(each.title)
    axes.set_xlabel(each.x_label)
    axes.set_ylabel(each.y_label)


def _heat_colours(each: HeatMap, sign: float) -> Picture:
    """Colours of a heat map over at least 2 % of the mean magnitude, so that noise looks like noise; grey if equal."""
    values = sign * each.values
    finite = values[np.isfinite(values)]
    if len({format(value, each.form) for value in finite}) < 2:
        return np.full((*values.shape, 3), 0.85)
    low, high = finite.min(), finite.max()
    missing = max(0.0, 0.02 * np.abs(finite).mean() - (high - low))
    return quantity(torch.from_numpy(values), low - missing / 2, high + missing / 2)
