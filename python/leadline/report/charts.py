"""Charts of the report, as Vega-Lite through altair: they answer to the pointer and to menus, and need no network."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from leadline.files import kept, to_json
from leadline.types import refuse

if TYPE_CHECKING:
    import altair

DEEP, WARN = "#0b4f6c", "#d1495b"
FLOAT = "#8a97a5"
RUNS = ("#d1495b", "#0b4f6c", "#edae49", "#5b8e7d", "#7b4b94", "#30638e")
"""Colours of recipes, in their order."""


def available() -> bool:
    """Whether the report extra is installed."""
    return find_spec("altair") is not None and find_spec("vl_convert") is not None


def script() -> str:
    """Vega, Vega-Lite and vega-embed as one script to be put into a page; bundling takes seconds, so it is kept."""

    def bundle() -> str:
        import vl_convert

        made: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
        return made.replace("</script", "<\\/script")

    return kept(f"vega-{version('vl-convert-python')}.js", bundle)


def layers(tensors: list[dict[str, Any]]) -> str:
    """SQNR of every tensor in the order of computation."""
    alt = load_altair()
    rows = [
        {"order": t["order"], "tensor": t["name"], "operator": t["op"], "dB": round(min(t["sqnr"], 80.0), 2)}
        for t in tensors
    ]
    chart = (
        alt.Chart(alt.Data(name="rows"))
        .mark_bar(color=DEEP)
        .encode(
            x=alt.X("order:O", title="tensors, in the order of computation", axis=alt.Axis(labels=False, ticks=False)),
            y=alt.Y("dB:Q", title="SQNR, dB"),
            color=alt.condition("datum.dB < 10", alt.value(WARN), alt.value(DEEP)),
            tooltip=["tensor:N", "operator:N", "dB:Q"],
        )
    )
    return spec(chart, 220, rows=rows)


def histograms(rows: list[dict[str, Any]], densities: dict[str, list[float]], first: str) -> str:
    """One tensor's values and the range chosen for it, picked from a menu."""
    alt = load_altair()
    data = []
    for row in rows:
        if row["name"] not in densities:
            continue
        shares = densities[row["name"]]
        lo, hi = row["seen"]
        step = (hi - lo) / len(shares)
        data += [
            {"tensor": row["name"], "from": _short(lo + i * step), "to": _short(lo + (i + 1) * step), "share": share}
            for i, share in enumerate(shares)
            if share
        ]
    marks = [
        {"tensor": row["name"], "limit": _short(limit), "clipped": round(100 * row["clipped"], 4)}
        for row in rows
        if row["name"] in densities
        for limit in row["chosen"]
    ]
    names = [row["name"] for row in rows if row["name"] in densities]
    menu = alt.param(
        name="tensor",
        value=first if first in names else names[0],
        bind=alt.binding_select(options=names, name="tensor "),
    )
    chosen = "datum.tensor == tensor"
    bars = (
        alt.Chart(alt.Data(name="shares"))
        .transform_filter(chosen)
        .mark_bar(color=DEEP)
        .encode(
            x=alt.X("from:Q", title="value", scale=alt.Scale(zero=False, nice=False)),
            x2="to:Q",
            y=alt.Y("share:Q", title="share of values, % (root scale)", scale=alt.Scale(type="sqrt")),
            y2=alt.datum(0),
            tooltip=["from:Q", "to:Q", "share:Q"],
        )
    )
    limits = (
        alt.Chart(alt.Data(name="marks"))
        .transform_filter(chosen)
        .mark_rule(color=WARN, strokeWidth=2)
        .encode(
            x="limit:Q",
            tooltip=[alt.Tooltip("limit:Q", title="end of the grid"), alt.Tooltip("clipped:Q", title="clipped, %")],
        )
    )
    return spec((bars + limits).add_params(menu), 220, shares=data, marks=marks)


def rounding(rows: list[dict[str, Any]]) -> str:
    """SQNR of every quantised weight and bias, and how much of its grid it uses."""
    alt = load_altair()
    data = [
        {
            "order": order,
            "weight": row["name"],
            "bits": row["bits"],
            "dB": round(min(row["sqnr"], 80.0), 2),
            "codes in use, %": round(100 * row["used"], 2),
            "at the ends, %": round(100 * row["at_ends"], 3),
            "not the nearest, %": round(100 * row["not_nearest"], 3),
            "values": row["size"],
        }
        for order, row in enumerate(rows)
    ]
    chart = (
        alt.Chart(alt.Data(name="rows"))
        .mark_bar()
        .encode(
            x=alt.X("order:O", title="weights, in the order of the network", axis=alt.Axis(labels=False, ticks=False)),
            y=alt.Y("dB:Q", title="SQNR of the weight, dB"),
            color=alt.Color("codes in use, %:Q", scale=alt.Scale(domain=[0, 100], range=["#b9c7d3", DEEP])),
            tooltip=["weight:N", *(f"{key}:Q" for key in data[0] if key not in ("order", "weight"))],
        )
    )
    return spec(chart, 220, rows=data)


def learned(steps: list[dict[str, Any]]) -> str | None:
    """What chosen codes leave of each layer's error; None where a recipe rounds to nearest."""
    rows = [step for step in steps if step["step"] == "round" and step.get("before")]
    if not rows:
        return None
    alt = load_altair()
    data = [
        {
            "order": order,
            "layer": row["target"],
            "how": row.get("note", ""),
            "error left, %": _short(100 * (row["after"] if row["kept"] else row["before"]) / row["before"]),
            "nearest": _short(row["before"]),
            "chosen": _short(row["after"]),
        }
        for order, row in enumerate(rows)
    ]
    chart = (
        alt.Chart(alt.Data(name="rows"))
        .mark_bar(color=DEEP)
        .encode(
            x=alt.X("order:O", title="layers, in the order of the network", axis=alt.Axis(labels=False, ticks=False)),
            y=alt.Y("error left, %:Q", title="error left, % of nearest rounding's", scale=alt.Scale(domain=[0, 100])),
            tooltip=["layer:N", "how:N", "error left, %:Q", "nearest:Q", "chosen:Q"],
        )
    )
    return spec(chart, 180, rows=data)


def profile(series: dict[str, list[float]], unit: str) -> str:
    """Figures over a video's frames, a line for each network."""
    alt = load_altair()
    data = [
        {"frame": i + 1, "network": name, "value": round(value, 4)}
        for name, values in series.items()
        for i, value in enumerate(values)
    ]
    names = list(series)
    runs = [name for name in names if name != "float"]
    colours = [FLOAT if name == "float" else RUNS[runs.index(name) % len(RUNS)] for name in names]
    chart = (
        alt.Chart(alt.Data(name="rows"))
        .mark_line(point=True)
        .encode(
            x=alt.X("frame:Q", title="frame"),
            y=alt.Y("value:Q", title=unit, scale=alt.Scale(zero=False)),
            color=alt.Color(
                "network:N", scale=alt.Scale(domain=names, range=colours), legend=alt.Legend(orient="top", title=None)
            ),
            tooltip=["network:N", "frame:Q", "value:Q"],
        )
    )
    return spec(chart, 200, rows=data)


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def spec(chart: altair.TopLevelMixin, height: int, **tables: list[dict[str, Any]]) -> str:
    """JSON that may stand inside a script element. Data that bear the name of a table become it: altair would look at
    each of its values several times."""
    spec = chart.properties(width="container", height=height).configure(font="system-ui, sans-serif").to_dict()
    for part in (spec, *spec.get("layer", ())):
        name = part.get("data", {}).get("name")
        if name in tables:
            part["data"] = {"values": tables[name]}
    return to_json(spec, indent=None).replace("<", "\\u003c")


def load_altair() -> Any:
    """The module; raises InputError where the report extra is missing."""
    try:
        import altair
    except ImportError:
        raise refuse("report", "charts need pip install 'leadline[report]'", "no altair") from None
    return altair
