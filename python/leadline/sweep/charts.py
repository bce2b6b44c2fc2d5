"""Charts of a sweep, as Vega-Lite: fronts, what matters, and how parameters act together."""

from __future__ import annotations

from typing import Any

from leadline.report.charts import DEEP, RUNS, WARN, load_altair
from leadline.sweep.outcome import Results


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


def importance(shares: dict[str, float], metric: str) -> Any:
    """Shares of the variance of a metric that parameters explain."""
    alt = load_altair()
    rows = [{"parameter": key, "share": round(share, 4)} for key, share in shares.items()]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=DEEP)
        .encode(
            x=alt.X("share:Q", title=f"importance for {metric}", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("parameter:N", sort="-x", title=None),
            tooltip=["parameter:N", "share:Q"],
        )
    )


def interaction(results: Results, first: str, second: str, metric: str) -> Any:
    """The mean of a metric over the values of one parameter, a line for each value of another: parallel lines act
    independently. The one with more values lies along the axis."""
    alt = load_altair()
    levels = {key: len({row.values.get(key) for row in results.complete}) for key in (first, second)}
    if levels[second] > levels[first]:
        first, second = second, first
    means: dict[tuple[Any, str], list[float]] = {}
    for row in results.complete:
        if metric in row.figures:
            means.setdefault((row.values.get(first), str(row.values.get(second))), []).append(row.figures[metric])
    rows = [{"x": key, "line": line, "mean": sum(found) / len(found)} for (key, line), found in means.items()]
    numbers = all(isinstance(row["x"], int | float) and not isinstance(row["x"], bool) for row in rows)
    rows = rows if numbers else [row | {"x": str(row["x"])} for row in rows]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("x:Q", title=first, scale=alt.Scale(zero=False))
            if numbers
            else alt.X("x:N", title=first, sort=None),
            y=alt.Y("mean:Q", title=f"mean {metric}", scale=alt.Scale(zero=False)),
            color=alt.Color("line:N", title=second, scale=alt.Scale(range=list(RUNS)), legend=alt.Legend(orient="top")),
            tooltip=[alt.Tooltip("x:N", title=first), alt.Tooltip("line:N", title=second), "mean:Q"],
        )
    )


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
