"""A sweep as one page, and its charts as PNG."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

from leadline.files import replacing, to_json
from leadline.report.artefacts import render, write_page
from leadline.report.charts import available, script, spec
from leadline.sweep import charts
from leadline.sweep.metrics import DIRECTIONS
from leadline.sweep.outcome import Results, Table, tables

FEWEST = 4
"""Cells from which importance can be told."""

PAIRS = 3
"""Interactions that the page shows, of the parameters that matter most."""

HEIGHT = 260


def write(results: Results, folder: Path) -> bool:
    """``report.html``, and each of its charts as ``<name>.png``; no charts without the report extra.

    Where one cannot be drawn there is a warning, and ``report-error.txt`` in place of the page; whether there is a page
    is returned.
    """

    def draw() -> str:
        drawn = _charts(results) if available() else {}
        for name, chart in drawn.items():
            _save(chart, folder, name)
        return page(
            title=results.about["name"],
            description=results.about["description"],
            counts={state: count for state, count in results.count().items() if count},
            tables=tables(results),
            drawn=drawn,
            failed=[(row.number, dict(row.values), row.error) for row in results.failed],
        )

    return write_page(folder / "report.html", draw)


def _save(chart: Any, folder: Path, name: str) -> None:
    import vl_convert

    content = to_json(chart.properties(width=640, height=HEIGHT).to_dict())
    with replacing(folder / (re.sub(r"[^\w.-]", "_", name) + ".png")) as temporary:
        temporary.write_bytes(vl_convert.vegalite_to_png(content, scale=2))


def page(
    *,
    title: str,
    description: str,
    counts: dict[str, int],
    tables: list[tuple[str, Table]],
    drawn: dict[str, Any],
    failed: list[tuple[int, dict[str, Any], str]],
) -> str:
    """The page itself."""
    return render(
        "sweep.html",
        title=title,
        description=description,
        counts=counts,
        tables=tables,
        charts={name: spec(chart, HEIGHT) for name, chart in drawn.items()},
        failed=failed,
        script=script() if drawn else None,
    )


def importances(results: Results, metric: str) -> dict[str, float]:
    """How much of a metric's variation each parameter explains, the largest first: Optuna's PED-ANOVA (Watanabe et al.,
    2023). Empty where too few cells or values are there to tell."""
    import optuna

    done = [row for row in results.complete if math.isfinite(row.figures.get(metric, math.nan))]
    choices = {
        key: list(dict.fromkeys(row.values.get(key) for row in done)) for key in results.about["varied"]
    }  # fmt: skip
    choices = {key: values for key, values in choices.items() if len(values) > 1}
    if len(done) < FEWEST or not choices or len({row.figures[metric] for row in done}) < 2:
        return {}
    space = {key: _distribution(values) for key, values in choices.items()}
    study = optuna.create_study(direction=DIRECTIONS[metric.rpartition(".")[2]])
    for row in done:
        params = {key: row.values.get(key) for key in space}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=row.figures[metric]))
    found = optuna.importance.get_param_importances(study)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _distribution(values: list[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(isinstance(value, float) for value in values):
        return FloatDistribution(min(values), max(values))
    return CategoricalDistribution(values)


def _charts(results: Results) -> dict[str, Any]:
    objectives, columns = results.about["objectives"], results.about["columns"]
    drawn: dict[str, Any] = {}
    pairs = list(itertools.combinations(objectives, 2)) or [
        (name, objectives[0]) for name in columns if name.rpartition(".")[2] == "size" and name not in objectives
    ]
    for y, x in pairs:
        if sum(x in row.figures and y in row.figures for row in results.complete) > 1:
            drawn[f"front-{x}-{y}"] = charts.front(results, x, y)
    for metric in objectives:
        drawn |= _parameters(results, metric)
    return drawn


def _parameters(results: Results, metric: str) -> dict[str, Any]:
    """What parameters do to a metric. In a grid each changes alone somewhere, so that its effect can be read off in the
    metric's own unit; cells that a search drew share out the variance instead."""
    shares = importances(results, metric)
    if not shares:
        return {}
    effects = results.effects(metric)
    if shares.keys() <= effects.keys():
        shares = effects
        drawn = {f"effect-{metric}": charts.shares(effects, f"{metric} moves by, this alone changed")}
    else:
        drawn = {f"importance-{metric}": charts.shares(shares, f"importance for {metric}", 1)}
    pairs = ((pair, _together(results, pair, metric, set(effects))) for pair in itertools.combinations(shares, 2))
    for pair, means in itertools.islice((found for found in pairs if found[1]), PAIRS):
        drawn[f"interaction-{metric}-{'-'.join(pair)}"] = charts.interaction(means, *pair, metric)
    return drawn


def _together(results: Results, pair: tuple[str, str], metric: str, alone: set[str]) -> dict[tuple[Any, ...], float]:
    """A metric by the values of two parameters. Of a grid the mean of those sets of cells that agree in all else and
    hold most combinations, so that nothing else is mixed in; none where each changes at one value of the other alone.
    Of cells that a search drew, where not both are among what changes `alone` somewhere, all."""
    sets = [cells for cells in results.apart(pair, metric) if _crossed(list(cells))]
    found: dict[tuple[Any, ...], list[float]] = {}
    for cells in sets:
        if len(cells) == max(map(len, sets)):
            for key, mean in cells.items():
                found.setdefault(key, []).append(mean)
    if not sets and not alone >= set(pair):
        for row in results.complete:
            if metric in row.figures:
                found.setdefault(tuple(row.values.get(key) for key in pair), []).append(row.figures[metric])
    return {key: sum(means) / len(means) for key, means in found.items()}


def _crossed(pairs: list[tuple[Any, ...]]) -> bool:
    levels = [{pair[side] for pair in pairs} for side in (0, 1)]
    return min(map(len, levels)) > 1 and len(pairs) >= sum(map(len, levels))
