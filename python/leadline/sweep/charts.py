"""Charts of a sweep, as Vega-Lite: fronts, what matters, and how parameters act together."""

from __future__ import annotations

from typing import Any

from leadline.report.charts import DEEP, RUNS, WARN, load_altair
from leadline.sweep.outcome import Results

LEVELS = 12
"""Values of a parameter that get equal room on an axis; more of them are drawn to scale."""


def front(results: Results, x: str, y: str) -> Any:
    """All cells over two metrics, the Pareto front as a line."""
    alt = load_altair()
    varied = results.about["varied"]
    ahead = {row.number for row in results.front([x, y])}
    rows = [
        {_safe(key): str(row.values.get(key)) for key in varied}
        | {"x": row.figures[x], "y": row.figures[y], "front": row.number in ahead, "cell": row.number}
        for row in results.complete
        if x in row.figures and y in row.figures
    ]
    scale = alt.Scale(zero=False)
    tooltip = [
        "cell:Q",
        *(f"{_safe(key)}:N" for key in varied),
        alt.Tooltip("x:Q", title=x),
        alt.Tooltip("y:Q", title=y),
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("x:Q", title=x, scale=scale), y=alt.Y("y:Q", title=y, scale=scale)
    )
    points = base.mark_circle(size=70).encode(
        color=alt.condition("datum.front", alt.value(WARN), alt.value(DEEP)), tooltip=tooltip
    )
    line = base.transform_filter("datum.front").mark_line(color=WARN, strokeWidth=1.5).encode(order="x:Q")
    return line + points


def shares(found: dict[str, float], title: str, most: float | None = None) -> Any:
    """A bar for each parameter: what it explains or moves."""
    alt = load_altair()
    rows = [{"parameter": key, "share": float(f"{share:.4g}")} for key, share in found.items()]
    scale = alt.Scale() if most is None else alt.Scale(domain=[0, most])
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=DEEP)
        .encode(
            x=alt.X("share:Q", title=title, scale=scale),
            y=alt.Y("parameter:N", sort="-x", title=None, axis=alt.Axis(labelLimit=320)),
            tooltip=["parameter:N", alt.Tooltip("share:Q", title=title)],
        )
    )


def interaction(means: dict[tuple[Any, ...], float], first: str, second: str, metric: str) -> Any:
    """A metric over the values of one parameter, a line for each value of another: parallel lines act independently.
    The one with more values lies along the axis."""
    alt = load_altair()
    levels = [sorted({key[place] for key in means}, key=_rank) for place in (0, 1)]
    if len(levels[1]) > len(levels[0]):
        first, second, levels = second, first, levels[::-1]
        means = {key[::-1]: mean for key, mean in means.items()}
    many = len(levels[0]) > LEVELS and all(_rank(value)[0] == 1 for value in levels[0])
    names = [[_level(value) for value in found] for found in levels]
    rows = [{"x": x if many else _level(x), "line": _level(line), "mean": mean} for (x, line), mean in means.items()]
    lines = alt.Scale(domain=names[1], range=list(RUNS))
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("x:Q", title=first, scale=alt.Scale(zero=False))
            if many
            else alt.X("x:O", title=first, sort=names[0], axis=alt.Axis(labelAngle=0)),
            y=alt.Y("mean:Q", title=metric, scale=alt.Scale(zero=False)),
            color=alt.Color("line:N", title=second, scale=lines, legend=alt.Legend(orient="top")),
            tooltip=[alt.Tooltip("x:N", title=first), alt.Tooltip("line:N", title=second), "mean:Q"],
        )
    )


def _level(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _rank(value: Any) -> tuple[int, float, str]:
    """The order of a parameter's values: what is left out, numbers, names."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 1, float(value), ""
    return (0 if value is None else 2), 0.0, str(value)


def bars(table: list[dict[str, Any]], names: tuple[str, str]) -> Any:
    """SQNR of each tensor in two cells, in the order of computation."""
    alt = load_altair()
    rows = [
        {"order": row["order"], "tensor": row["name"], "cell": name, "dB": round(min(row[side], 80.0), 2)}
        for row in table
        for side, name in zip(("a", "b"), names, strict=True)
        if row[side] is not None
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("order:Q", title="tensors, in the order of computation"),
            y=alt.Y("dB:Q", title="SQNR, dB"),
            color=alt.Color(
                "cell:N",
                scale=alt.Scale(domain=list(names), range=[DEEP, WARN]),
                legend=alt.Legend(orient="top", title=None),
            ),
            tooltip=["tensor:N", "cell:N", "dB:Q"],
        )
    )


def _safe(key: str) -> str:
    """Vega reads dots and brackets in field names as paths."""
    return key.replace(".", " ").replace("[", " ").replace("]", " ")
