"""Sections -> one HTML file. Its data is compressed and only ever shown as text; a policy forbids all network."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from vineppo.machine.files import write_file
from vineppo.machine.terminal import printable
from vineppo.report.charts import PALETTE

ASSETS = Path(__file__).parent
SCRIPTS = ("page.js", "charts.js", "tables.js", "inspector.js")


def write_page(sections: Sequence[Mapping[str, Any]], out: Path, *, refresh_s: int | None = None) -> None:
    """`refresh_s` makes the browser load the page again and again, while a run goes on."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, make_page(sections, refresh_s=refresh_s))  # a browser that loads it now sees the old or the new


def make_page(sections: Sequence[Mapping[str, Any]], *, refresh_s: int | None = None) -> str:
    title = ", ".join(dict.fromkeys(str(section["title"]) for section in sections)) + " - vineppo"
    script = "".join(asset(name) for name in SCRIPTS)
    return Template(asset("page.html")).substitute(
        title=html.escape(printable(title)),  # half a character is not UTF-8
        policy=security_policy([vega(), script]),
        refresh=f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else "",
        style=asset("page.css"),
        data=pack({"sections": sections, "palette": PALETTE, "refresh_s": refresh_s}),
        vega=vega(),
        script=script,
    )


def asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@functools.cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed, from the package that also draws the figures.

    The newest Vega-Lite that it has, since it has one Vega only, which older ones warn of.
    """
    import vl_convert

    newest = vl_convert.get_vegalite_versions()[-1]
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", vl_version=newest)
    return bundle.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "\\x3c!--")


def pack(data: Any) -> str:
    """Base64 has no character that means anything in HTML."""
    text = json.dumps(without_nan(data), separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def without_nan(data: Any) -> Any:
    """No browser reads Python's NaN and Infinity; what such a number was is not known."""
    if isinstance(data, Mapping):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def security_policy(scripts: Sequence[str]) -> str:
    """Only these scripts run, and nothing is loaded from anywhere."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
