"""Training progress: a table and a plot of losses."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

RECENT = 50


class History:
    """Losses by step, kept in a CSV file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, float]] = []
        if path.exists():
            with path.open() as file:
                self.rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]

    def add(self, step: int, **values: float) -> None:
        """Record the values of a step."""
        while self.rows and self.rows[-1]["step"] >= step:  # from an interrupted run
            self.rows.pop()
        self.rows.append({"step": step, **values})

    def recent(self, name: str) -> float:
        """Mean over the last steps."""
        rows = self.rows[-RECENT:]
        return sum(row[name] for row in rows) / max(len(rows), 1)

    def save(self) -> None:
        """Write the table."""
        with self._path.open("w") as file:
            writer = csv.DictWriter(file, list(self.rows[-1]))
            writer.writeheader()
            writer.writerows(self.rows)


def plot(histories: dict[str, History], path: Path) -> None:
    """Draw the losses of all stages side by side."""
    figure, axes = plt.subplots(1, len(histories), figsize=(6 * len(histories), 4), squeeze=False)
    for axis, (title, history) in zip(axes[0], histories.items(), strict=True):
        for name in [name for name in (history.rows or [{}])[0] if name != "step"]:
            steps = [row["step"] for row in history.rows]
            values = [row[name] for row in history.rows]
            smooth = [
                sum(values[max(0, i - RECENT) : i + 1]) / len(values[max(0, i - RECENT) : i + 1])
                for i in range(len(values))
            ]
            axis.plot(steps, smooth, label=name)
        axis.set(title=title, xlabel="step", ylabel="loss", yscale="log")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
