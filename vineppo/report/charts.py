"""Figures as Vega-Lite specifications: one description becomes the page's chart, an SVG and a PDF.

A specification is plain JSON with its data inside; https://vega.github.io/vega-lite/docs has the words. Rows are dicts,
one per mark. Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vineppo.machine.tables import Row

Chart = dict[str, Any]

VERSION = "5.20"  # of Vega-Lite, the oldest that all of this needs
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#f0e442")
WIDTH, HEIGHT = 420, 260  # pixels


def lines(
    title: str, rows: Sequence[Row], *, x: str, y: str, by: str | None = None, ci: bool = False, log_x: bool = False
) -> Chart:
    """y over x, one line per value of `by`; with `ci` a band from `low` to `high` of each row."""
    scale = {"type": "log"} if log_x else {"zero": False}
    shared = {"x": field(x, "quantitative", scale=scale), **colour(by)}
    band = {
        "mark": {"type": "errorband", "opacity": 0.15},
        "encoding": {"y": field("low", "quantitative", title=y), "y2": {"field": "high"}},
    }
    line = {
        "mark": {"type": "line", "point": len(rows) <= 150, "tooltip": True},
        "encoding": {"y": field(y, "quantitative", scale={"zero": False})},
    }
    return chart(title, rows, encoding=shared, layer=[band, line] if ci else [line])


def points(
    title: str,
    rows: Sequence[Row],
    *,
    x: str,
    y: str,
    by: str | None = None,
    diagonal: tuple[float, float] | None = None,
    log: bool = False,
) -> Chart:
    """y against x, one point per row; `diagonal` draws y = x between two values; with `log` both axes are."""
    scale: dict[str, Any] = {"scale": {"type": "log"}} if log else {}
    axes = {"x": field(x, "quantitative", **scale), "y": field(y, "quantitative", **scale)}
    cloud = {
        "mark": {"type": "point", "filled": True, "opacity": 0.45, "tooltip": True},
        "encoding": {**axes, **colour(by)},
    }
    line = {
        "data": {"values": [{x: end, y: end} for end in diagonal or ()]},
        "mark": {"type": "line", "strokeDash": [4, 4], "color": "#888888"},
        "encoding": axes,
    }
    return chart(title, rows, layer=[cloud, line] if diagonal else [cloud])


def bars(title: str, rows: Sequence[Row], *, x: str, y: str, by: str | None = None, ci: bool = False) -> Chart:
    """A bar per row; `by` sets bars beside each other; with `ci` a whisker from `low` to `high`."""
    sort = list(dict.fromkeys(row[x] for row in rows))
    shared = {
        "x": field(x, "nominal", sort=sort, axis={"labelAngle": 0}),
        **({"xOffset": {"field": by, "sort": None}} if by else {}),
    }
    bar = {"mark": {"type": "bar", "tooltip": True}, "encoding": {"y": field(y, "quantitative"), **colour(by)}}
    whisker = {
        "mark": {"type": "rule", "color": "#888888", "strokeWidth": 2},
        "encoding": {"y": field("low", "quantitative", title=y), "y2": {"field": "high"}},
    }
    return chart(title, rows, encoding=shared, layer=[bar, whisker] if ci else [bar])


def dots(title: str, rows: Sequence[Row], *, x: str, y: str, by: str | None = None) -> Chart:
    """A dot per row on a logarithmic x, the names `y` below one another, with a whisker from `low` to `high`."""
    scale = {"type": "log"}
    shared = {"y": field(y, "nominal", sort=None), **colour(by)}
    whisker = {
        "mark": {"type": "rule", "opacity": 0.5},
        "encoding": {"x": field("low", "quantitative", title=x, scale=scale), "x2": {"field": "high"}},
    }
    dot = {
        "mark": {"type": "point", "filled": True, "size": 50, "tooltip": True},
        "encoding": {"x": field(x, "quantitative", scale=scale)},
    }
    return {**chart(title, rows, encoding=shared, layer=[whisker, dot]), "height": {"step": 20}}


def chart(title: str, rows: Sequence[Row], **body: Any) -> Chart:
    return {
        "$schema": f"https://vega.github.io/schema/vega-lite/v{VERSION}.json",
        "title": title,
        "width": WIDTH,
        "height": HEIGHT,
        "config": {"range": {"category": list(PALETTE)}, "mark": {"color": PALETTE[0]}, "background": "transparent"},
        "data": {"values": [dict(row) for row in rows]},
        **body,
    }


def field(name: str, kind: str, *, title: str | None = None, **more: Any) -> dict[str, Any]:
    """Vega-Lite reads dots and brackets in a field's name as paths into a row, so names must have none."""
    if set(name) & set(".[]\\"):
        raise ValueError(f"field {name!r}: Vega-Lite reads dots and brackets as paths")
    return {"field": name, "type": kind, "title": title or name, **more}


def colour(by: str | None) -> dict[str, Any]:
    return {"color": {"field": by, "type": "nominal", "title": by, "sort": None}} if by else {}


def save_figure(spec: Chart, path: Path) -> None:
    """Draws into a .svg, .pdf or .png file, on white, for a paper."""
    import vl_convert

    on_white = {**spec, "config": {**spec.get("config", {}), "background": "white"}}
    match path.suffix:
        case ".svg":
            path.write_text(vl_convert.vegalite_to_svg(on_white, vl_version=VERSION))
        case ".pdf":
            path.write_bytes(vl_convert.vegalite_to_pdf(on_white, vl_version=VERSION))
        case ".png":
            path.write_bytes(vl_convert.vegalite_to_png(on_white, vl_version=VERSION, scale=2))
        case other:
            raise ValueError(f"figures are .svg, .pdf or .png files, not {other!r}")
