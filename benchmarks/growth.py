"""The picture of how a chest grows.

Owns: reading the figures of the workload ``growth`` and drawing them. Does not own: how
they are measured (`benchmarks.small`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["PICTURE", "WORKLOAD", "curves", "draw", "table"]

PICTURE = Path(__file__).parents[1] / "docs" / "growth.svg"
WORKLOAD = "growth"
INK, LINE = "#808080", "#d9822b"  # both can be read upon white and upon black


def curves(rows: Iterable[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The rows of a written run by figure: (keys, median), fewest keys first.

    Parameters
    ----------
    rows : iterable of dict
        Of all workloads; those of ``growth`` are taken.

    Returns
    -------
    dict of str to list
        Empty when the run has no ``growth``.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["workload"] == WORKLOAD:
            keys, _, figure = row["figure"].partition(" keys: ")
            found.setdefault(figure, []).append((int(keys), row["median"]))
    return {figure: sorted(points) for figure, points in found.items()}


def table(found: dict[str, list[tuple[int, float]]]) -> str:
    """What `curves` made as one reStructuredText table, a line for each size."""
    by_keys: dict[int, list[str]] = {}
    for points in found.values():
        for keys, value in points:
            by_keys.setdefault(keys, []).append(
                f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
            )
    lines = [".. csv-table:: ``growth``", "   :header-rows: 1", ""]
    rows = [
        ["keys", *found],
        *([f"{keys:,}", *cells] for keys, cells in by_keys.items()),
    ]
    lines += ["   " + ",".join(f'"{cell}"' for cell in cells) for cells in rows]
    return "\n".join(lines) + "\n"


def draw(found: dict[str, list[tuple[int, float]]], target: Path = PICTURE) -> Path:
    """Draw a panel for each figure, both axes logarithmic, without a background.

    Parameters
    ----------
    found : dict of str to list
        What `curves` made.
    target : Path, optional
        The SVG that is written.

    Returns
    -------
    Path
        *target*.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # The same data give the same bytes, so that a commit shows what changed.
    matplotlib.rcParams["svg.hashsalt"] = WORKLOAD
    lines = -(-len(found) // 3)
    picture, axes = pyplot.subplots(
        lines, 3, figsize=(9, 2.6 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(found) :]:
        axis.remove()
    for axis, (figure, points) in zip(axes.flat, found.items(), strict=False):
        shown = [(keys, value) for keys, value in points if value > 0]
        keys, values = [keys for keys, _ in shown], [value for _, value in shown]
        axis.plot(keys, values, "o-", color=LINE)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(figure, fontsize="medium", color=INK)
        axis.grid(visible=True, color=INK, alpha=0.25)
        axis.tick_params(which="both", colors=INK)
        axis.spines[:].set_color(INK)
    picture.supxlabel("keys", color=INK)
    picture.savefig(target, transparent=True, metadata={"Date": None})
    pyplot.close(picture)
    return target
