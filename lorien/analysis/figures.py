"""The notebooks' figures: Plotly's, with a picture beside each for readers that run no scripts.

``show`` gives a notebook both: where its viewer knows Plotly the figure can be hovered and zoomed, elsewhere (a page of
a code host, a PDF) the picture is seen. The picture is drawn by Matplotlib, so that it needs no browser. Numbers go in
as lists: older viewers do not read the packed form in which Plotly stores arrays.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lorien.analysis.roofline import Roofline
from lorien.errors import MissingExtra

try:
    import plotly.graph_objects as go
except ModuleNotFoundError:
    raise MissingExtra("plotly", "notebooks") from None

FloatArray = npt.NDArray[np.float64]

# Okabe and Ito's colours: told apart by those who see few.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WIDTH, HEIGHT = 760, 400
LABEL = 40
"""Characters of a name beside a bar."""
MOST_GROUPS = 6
"""Colours that can be told apart; the groups of fewest points share the last."""
_DOTS_PER_INCH = 100
_DASHES = {"dash": "--", "dot": ":"}


def lines(
    title: str, x: tuple[str, FloatArray], y: str, curves: Mapping[str, FloatArray], *, log_x: bool = False
) -> go.Figure:
    """Curves over one axis; one whose name begins with "random" is dotted, with "perfect" dashed."""
    figure = _figure(title, x[0], y, log_x=log_x)
    for index, (name, values) in enumerate(curves.items()):
        dash = "dot" if name.startswith("random") else "dash" if name.startswith("perfect") else "solid"
        style = {"color": COLOURS[index % len(COLOURS)], "dash": dash, "width": 2.5}
        figure.add_trace(go.Scatter(x=x[1].tolist(), y=values.tolist(), name=name, mode="lines", line=style))
    return figure


def band(title: str, x: tuple[str, FloatArray], y: str, values: FloatArray) -> go.Figure:
    """Median of (rows, len(x)) over the rows, the middle half and the range between the tenths shaded."""
    figure = _figure(title, x[0], y)
    low, quarter, median, upper, high = np.nanquantile(values, (0.1, 0.25, 0.5, 0.75, 0.9), axis=0)
    for name, bottom, top, colour in (
        ("nine in ten to one in ten", low, high, "rgba(0, 114, 178, 0.15)"),
        ("middle half", quarter, upper, "rgba(0, 114, 178, 0.3)"),
    ):
        figure.add_trace(
            go.Scatter(
                x=x[1].tolist(), y=bottom.tolist(), mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip"
            )
        )
        shade = {"mode": "lines", "line": {"width": 0}, "fill": "tonexty", "fillcolor": colour}
        figure.add_trace(go.Scatter(x=x[1].tolist(), y=top.tolist(), name=name, hoverinfo="skip", **shade))
    figure.add_trace(
        go.Scatter(
            x=x[1].tolist(), y=median.tolist(), name="median", mode="lines", line={"color": COLOURS[0], "width": 3}
        )
    )
    return figure


def bars(title: str, x: str, values: Mapping[str, float], *, most: int = 20) -> go.Figure:
    """Horizontal bars, the largest on top; only the ``most`` largest."""
    kept = sorted(values.items(), key=lambda item: item[1])[-most:]
    figure = _figure(title, x, "")
    names, sizes = [name for name, _ in kept], [size for _, size in kept]
    places = list(range(len(kept)))
    style = {"orientation": "h", "marker": {"color": COLOURS[0]}, "showlegend": False}
    figure.add_trace(
        go.Bar(x=sizes, y=places, text=names, hovertemplate="%{text}<br>%{x}", textposition="none", **style)
    )
    figure.update_yaxes(tickvals=places, ticktext=[_short(name) for name in names])
    figure.update_layout(height=130 + 24 * len(kept))
    return figure


def points(
    title: str,
    x: tuple[str, FloatArray],
    y: tuple[str, FloatArray],
    *,
    names: Sequence[str] = (),
    groups: Sequence[str] = (),
    diagonal: bool = False,
) -> go.Figure:
    """Points, named when hovered, coloured by group; with ``diagonal`` the line on which both are equal."""
    figure = _figure(title, x[0], y[0])
    counts = Counter(groups or [""] * len(x[1]))
    largest = [group for group, _ in counts.most_common(MOST_GROUPS if len(counts) <= MOST_GROUPS else MOST_GROUPS - 1)]
    of = np.array([group if group in largest else "others" for group in (groups or [""] * len(x[1]))])
    for index, group in enumerate(dict.fromkeys([*largest, *of.tolist()])):
        own = np.flatnonzero(of == group)
        figure.add_trace(
            go.Scatter(
                x=x[1][own].tolist(),
                y=y[1][own].tolist(),
                name=str(group),
                showlegend=bool(groups),
                mode="markers",
                marker={"color": COLOURS[index % len(COLOURS)], "size": 5, "opacity": 0.6},
                text=[names[place] for place in own.tolist()] if names else None,
            )
        )
    if diagonal:
        ends = [0.0, float(max(x[1].max(), y[1].max()))]
        line = {"color": "#888888", "dash": "dash", "width": 1.5}
        figure.add_trace(go.Scatter(x=ends, y=ends, name="equal", mode="lines", line=line))
    return figure


def shares(title: str, names: Sequence[str], values: FloatArray, columns: FloatArray, *, most: int = 12) -> go.Figure:
    """What each column adds to each prediction (rows, columns): a row of points for each of the largest.

    A point's colour is the column's own value, by rank among the rows: dark where it is low, bright where it is high.
    """
    largest = np.argsort(-np.abs(values).mean(axis=0))[:most][::-1]
    figure = _figure(title, "share of the prediction (fraction of the best)", "")
    rng = np.random.default_rng(0)
    for place, column in enumerate(largest):
        rank = np.argsort(np.argsort(columns[:, column], kind="stable")) / max(1, len(columns) - 1)
        figure.add_trace(
            go.Scatter(
                x=values[:, column].tolist(),
                y=(place + rng.uniform(-0.3, 0.3, len(values))).tolist(),
                mode="markers",
                name=names[column],
                showlegend=False,
                marker={"color": rank.tolist(), "colorscale": "Viridis", "size": 4, "opacity": 0.7},
                hovertemplate=f"{names[column]}<br>%{{x:.3f}}",
            )
        )
    labels = [names[column] for column in largest]
    figure.update_yaxes(tickvals=list(range(len(largest))), ticktext=labels)
    figure.update_layout(height=90 + 34 * len(largest))
    return figure


def roof(title: str, found: Roofline, groups: Sequence[str]) -> go.Figure:
    """Candidates under the roofs that the fastest of them draw, both axes logarithmic."""
    figure = points(
        title,
        ("operations for each byte of the arguments", found.intensity),
        ("GFLOPS", found.flop_per_s / 1e9),
        groups=groups,
    )
    ends = np.geomspace(found.intensity.min(), found.intensity.max(), 60)
    top = found.roof(ends) / 1e9
    style = {"color": "#000000", "width": 2}
    figure.add_trace(go.Scatter(x=ends.tolist(), y=top.tolist(), name="fastest seen", mode="lines", line=style))
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return figure


def show(figure: go.Figure) -> None:
    """Display a figure in a notebook: interactive, and as a picture for viewers that cannot."""
    from IPython.display import display

    bundle = {"application/vnd.plotly.v1+json": figure.to_plotly_json(), "image/png": picture(figure)}
    display({**bundle, "text/plain": figure.layout.title.text}, raw=True)


def picture(figure: go.Figure) -> bytes:
    """A figure of this module as PNG, drawn by Matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layout = figure.layout
    size = (layout.width / _DOTS_PER_INCH, layout.height / _DOTS_PER_INCH)
    drawn = Figure(figsize=size, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    bottom: Any = None
    for trace in figure.data:
        bottom = _draw(axes, trace, bottom)
    axes.set(title=layout.title.text, xlabel=layout.xaxis.title.text, ylabel=layout.yaxis.title.text)
    for axis, scale in ((axes.set_xscale, layout.xaxis.type), (axes.set_yscale, layout.yaxis.type)):
        if scale:  # set to what it is, it would forget the names on it
            axis(scale)
    if layout.yaxis.ticktext:
        axes.set_yticks(layout.yaxis.tickvals, layout.yaxis.ticktext)
    axes.grid(alpha=0.3)
    if any(trace.showlegend is not False for trace in figure.data):
        axes.legend(fontsize="small")
    out = io.BytesIO()
    drawn.savefig(out, format="png")
    return out.getvalue()


def _draw(axes: Any, trace: Any, bottom: Any) -> Any:
    """Draw one trace; ``bottom`` is the trace before, to which a shade reaches down."""
    label = trace.name if trace.showlegend is not False else None
    if trace.type == "bar":
        axes.barh(trace.y, trace.x, color=trace.marker.color)
    elif trace.fill:
        axes.fill_between(trace.x, bottom.y, trace.y, color=COLOURS[0], alpha=0.2, linewidth=0, label=label)
    elif trace.mode == "lines" and trace.line.width:
        style = _DASHES.get(trace.line.dash, "-")
        axes.plot(
            trace.x, trace.y, color=trace.line.color, linestyle=style, linewidth=trace.line.width * 0.7, label=label
        )
    elif trace.mode == "markers":
        colour = (
            {"c": trace.marker.color, "cmap": "viridis"} if trace.marker.colorscale else {"color": trace.marker.color}
        )
        axes.scatter(trace.x, trace.y, s=trace.marker.size**2 / 2, alpha=trace.marker.opacity, label=label, **colour)
    return trace


def _short(name: str) -> str:
    """A long name by its two ends: blocks at one, the last shape at the other."""
    return name if len(name) <= LABEL else f"{name[: LABEL // 2 - 2]}...{name[1 - LABEL // 2 :]}"


def _figure(title: str, x: str, y: str, *, log_x: bool = False) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        title=title,
        width=WIDTH,
        height=HEIGHT,
        template="plotly_white",
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        xaxis_title=x,
        yaxis_title=y,
        yaxis_automargin=True,
    )
    if log_x:
        figure.update_xaxes(type="log")
    return figure
