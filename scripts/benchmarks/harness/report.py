"""A benchmark's results: a table, figures with targets, plots and raw data."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Bound = Literal["at least", "at most"]
Series = Mapping[Any, Sequence[float]]  # x to the values of all rounds


@dataclass(frozen=True)
class Figure:
    """A number with a target."""

    what: str
    value: float
    bound: Bound
    target: float

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.bound == "at least" else self.value <= self.target


@dataclass(frozen=True)
class Panel:
    """One plot of medians and ranges; names as x values make a bar chart."""

    title: str
    x: str
    y: str
    series: Mapping[str, Series]


@dataclass
class Report:
    """The results of one benchmark."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """Title, table, figures with targets, and notes."""
        verdicts = [
            [f.what, f"{f.value:.3g}", f"{f.bound} {f.target:g}", "yes" if f.met else "**no**"]
            for f in self.figures
        ]
        parts = [f"## {self.name}: {self.title}"]
        if self.rows:
            parts.append(_table(self.columns, self.rows))
        if verdicts:
            parts.append(_table(["figure", "measured", "target", "met"], verdicts))
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def write(self, directory: Path) -> None:
        """Write ``NAME.md``, ``NAME.json`` and ``NAME.png``."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{self.name}.md").write_text(self.markdown(), "utf-8")
        figures = [{**vars(figure), "met": figure.met} for figure in self.figures]
        content = {"title": self.title, "figures": figures, "notes": self.notes, **self.data}
        (directory / f"{self.name}.json").write_text(json.dumps(content, indent=1), "utf-8")
        _plot(self, directory / f"{self.name}.png")


def median(values: Sequence[float]) -> float:
    """The median of the rounds."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The given percentile (nearest rank)."""
    ordered = sorted(values)
    return ordered[round(percent / 100 * (len(ordered) - 1))]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _plot(report: Report, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    count = max(1, len(report.panels))
    figure, grid = pyplot.subplots(
        1, count, figsize=(5.5 * count, 4), layout="constrained", squeeze=False
    )
    for axes, panel in zip(grid[0], report.panels, strict=False):
        for label, series in panel.series.items():
            xs, medians = list(series), [median(values) for values in series.values()]
            if xs and isinstance(xs[0], str):
                axes.bar(xs, medians, label=label)
            else:
                axes.plot(xs, medians, marker="o" if len(xs) < 20 else "", label=label)
            for x, values in series.items():
                axes.vlines(x, min(values), max(values), alpha=0.5, color="grey")
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if len(panel.series) > 1:
            axes.legend()
    figure.suptitle(textwrap.fill(report.title, 75 * count), fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
