"""Samples → medians, ratios, verdicts; these → a table, JSON, a page, a plot.

A ratio is the baseline's figure over the rival's, taken repetition by repetition
(they ran next to one another) and then the median: 2 is twice as fast.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import growth, matrix
from benchmarks.matrix import PREFIX
from benchmarks.plan import Goal, Sizes, Workload
from benchmarks.runner import Outcome

__all__ = [
    "Row",
    "Verdict",
    "as_json",
    "machine",
    "pages",
    "plot",
    "rows",
    "table",
    "versions",
    "written",
]

SUBJECT = "chest"  # whom the goals speak of
PACKAGES = (
    "chest",
    "numpy",
    "pandas",
    "pyarrow",
    "xxhash",
    "msgspec",
    "heapdict",
    "zict",
    "distributed",
    "joblib",
    "diskcache",
    "zarr",
    "lmdb",
    "sqlitedict",
    "persidict",
    "iodict",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal held against what was measured."""

    asked: str
    value: float
    met: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one rival in one workload.

    Attributes
    ----------
    workload, rival, figure : str
        What it is; *figure* ends in its unit.
    median, low, high : float
        Over the repetitions.
    ratios : dict of str to float
        Baseline → times as fast as it.
    verdicts : list of Verdict
        The goals for this figure; only chest has any.
    """

    workload: str
    rival: str
    figure: str
    median: float
    low: float
    high: float
    ratios: dict[str, tuple[float, float, float]]
    verdicts: list[Verdict]


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest, highest."""
    return statistics.median(values), min(values), max(values)


def _ratio(
    outcome: Outcome, base: Outcome | None, figure: str
) -> tuple[float, float, float] | None:
    """How many times as fast as *base*; None without a pair to compare."""
    if base is None:
        return None
    pairs = zip(base.samples, outcome.samples, strict=False)
    ratios = [
        theirs[figure] / ours[figure]
        for theirs, ours in pairs
        if theirs.get(figure, 0) > 0 and ours[figure] > 0
    ]
    return _spread(ratios) if ratios else None


def _verdict(
    goal: Goal, median: float, ratios: dict[str, Any], sizes: Sizes
) -> Verdict | None:
    """The goal held against the figure; None when its rival is missing."""
    value = median
    if goal.against is not None:
        if goal.against not in ratios:
            return None
        value = ratios[goal.against][0]
    return Verdict(goal.text(sizes), value, goal.met(value, sizes))


def rows(workload: Workload, outcomes: Sequence[Outcome], sizes: Sizes) -> list[Row]:
    """Evaluate the outcomes of one workload.

    Parameters
    ----------
    workload : Workload
        Whose goals and baselines count.
    outcomes : sequence of Outcome
        Of that workload.
    sizes : Sizes
        With which they were measured.

    Returns
    -------
    list of Row
        Figure by figure, rivals in the workload's order.
    """
    by_name = {outcome.rival: outcome for outcome in outcomes}
    measured = [outcome for outcome in outcomes if outcome.samples]
    found = []
    for figure in measured[0].samples[0] if measured else ():
        for outcome in measured:
            spread = _spread([sample[figure] for sample in outcome.samples])
            ratios = {
                name: ratio
                for name in workload.baselines
                if (ratio := _ratio(outcome, by_name.get(name), figure)) is not None
            }
            goals = [
                goal
                for goal in workload.goals
                if outcome.rival == SUBJECT and goal.figure == figure
            ]
            verdicts = [_verdict(goal, spread[0], ratios, sizes) for goal in goals]
            kept = [verdict for verdict in verdicts if verdict is not None]
            row = (workload.name, outcome.rival, figure, *spread, ratios, kept)
            found.append(Row(*row))
    return found


def _number(value: float, digits: int = 3) -> str:
    """So many digits, never an exponent."""
    if value >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:.{digits}g}"


def _cells(row: Row, baselines: Sequence[str]) -> list[str]:
    """The row as texts."""
    spread = f"[{_number(row.low)}–{_number(row.high)}]"
    cells = [row.figure, row.rival, _number(row.median), spread]
    for name in baselines:
        ratio = row.ratios.get(name)
        if ratio is None or name == row.rival:
            cells.append("–")
        else:
            middle, low, high = (_number(part, digits=2) for part in ratio)
            cells.append(f"{middle} [{low}–{high}]")
    cells.append("; ".join(verdict.asked for verdict in row.verdicts))
    cells.append("; ".join("met" if v.met else "NOT MET" for v in row.verdicts))
    return cells


def table(workload: Workload, found: Sequence[Row], outcomes: Iterable[Outcome]) -> str:
    """One workload as a plain-text table.

    Parameters
    ----------
    workload : Workload
        Gives the title and the columns.
    found : sequence of Row
        What `rows` made.
    outcomes : iterable of Outcome
        For the lines about rivals skipped, failed or stopped.

    Returns
    -------
    str
        Title, table, and a line for each rival that is missing in it.
    """
    versus = [f"× {name}" for name in workload.baselines]
    head = ["figure", "rival", "median", "[min–max]", *versus, "asked", "verdict"]
    body = [_cells(row, workload.baselines) for row in found]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    numeric = range(2, 4 + len(versus))
    lines = [f"{workload.name}: {workload.about}"]
    for cells in [head, ["-" * width for width in widths], *body]:
        padded = (
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        lines.append("  " + "  ".join(padded).rstrip())
    for outcome in outcomes:
        if outcome.skipped:
            lines.append(f"  {outcome.rival} skipped: {outcome.skipped}")
        if outcome.failed:
            lines.append(f"  {outcome.rival} FAILED: {outcome.failed}")
        if outcome.stopped:
            lines.append(f"  {outcome.rival} {outcome.stopped}")
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """Python's and the packages' versions, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine(folder: Path) -> str:
    """Processors, memory, system, and the file system that *folder* lies on."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    place, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, fstype = line.split()[:3]
        if folder.resolve().is_relative_to(mount) and len(mount) >= len(place):
            place, kind = mount, fstype
    parts = (
        f"{os.cpu_count()} processors ({platform.machine()})",
        f"{memory / 2**30:.0f} GiB",
        f"{platform.system()} {platform.release()}",
        kind,
    )
    return ", ".join(parts)


def as_json(
    found: Sequence[Row],
    outcomes: Sequence[Outcome],
    sizes: Sizes,
    folder: Path,
) -> str:
    """All that was measured, with what is needed to understand it later."""
    return json.dumps(
        {
            "machine": machine(folder),
            "versions": versions(),
            "sizes": asdict(sizes),
            "rows": [asdict(row) for row in found],
            "outcomes": [asdict(outcome) for outcome in outcomes],
        },
        indent=1,
        ensure_ascii=False,
    )


def written(*sources: Path) -> list[dict[str, Any]]:
    """The rows of written JSON files; of a workload that is in several, the last's."""
    by_workload: dict[str, list[dict[str, Any]]] = {}
    for source in sources:
        mine: dict[str, list[dict[str, Any]]] = {}
        for row in json.loads(source.read_text(encoding="utf-8"))["rows"]:
            mine.setdefault(row["workload"], []).append(row)
        by_workload |= mine
    return [row for rows in by_workload.values() for row in rows]


def stopped(*sources: Path) -> dict[tuple[str, str], str]:
    """(workload, rival) → that it took too long; as `written`."""
    found: dict[tuple[str, str], str] = {}
    for source in sources:
        for each in json.loads(source.read_text(encoding="utf-8"))["outcomes"]:
            found[each["workload"], each["rival"]] = each.get("stopped", "")
    return {pair: text for pair, text in found.items() if text}


def pages(*sources: Path) -> str:
    """Written JSON files as reStructuredText, one table per figure.

    Parameters
    ----------
    *sources : Path
        What ``--json`` wrote, in several runs perhaps.

    Returns
    -------
    str
        What ``docs/performance.rst`` includes.
    """
    run = json.loads(sources[0].read_text(encoding="utf-8"))
    found = written(*sources)
    known = [f"{name} {version}" for name, version in run["versions"].items()]
    installed = [text for text in known if not text.endswith(" not installed")]
    lines = [f"{run['machine']}. {', '.join(installed)}.", ""]
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in found:
        own = row["workload"] == growth.WORKLOAD or row["workload"].startswith(PREFIX)
        if not own:  # those have tables of their own
            panels.setdefault((row["workload"], row["figure"]), []).append(row)
    for (workload, figure), panel in panels.items():
        bases = list(dict.fromkeys(name for row in panel for name in row["ratios"]))
        head = [
            "rival",
            "median",
            "lowest",
            "highest",
            *(f"× {name}" for name in bases),
        ]
        lines += [f".. csv-table:: ``{workload}``, {figure}", "   :header-rows: 1", ""]
        for cells in [head, *(_page_cells(row, bases) for row in panel)]:
            lines.append("   " + ",".join(f'"{cell}"' for cell in cells))
        lines.append("")
    small = matrix.tables(found, stopped(*sources))
    return "\n".join([*lines, small] if small else lines)


def _page_cells(row: dict[str, Any], bases: Sequence[str]) -> list[str]:
    """One row of `pages`."""
    cells = [row["rival"], *(_number(row[name]) for name in ("median", "low", "high"))]
    for name in bases:
        ratio = row["ratios"].get(name)
        shown = ratio is not None and name != row["rival"]
        cells.append(_number(ratio[0], digits=2) if shown else "–")
    return cells


def plot(source: Path) -> Path:
    """Draw a written JSON file beside it, one panel per figure.

    Parameters
    ----------
    source : Path
        What ``--json`` wrote.

    Returns
    -------
    Path
        The picture, a PNG.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in json.loads(source.read_text())["rows"]:
        panels.setdefault((row["workload"], row["figure"]), []).append(row)
    points = sum(map(len, panels.values()))
    picture, axes = pyplot.subplots(
        len(panels),
        figsize=(8, 0.3 * points + 0.9 * len(panels)),
        height_ratios=[len(panel) + 1 for panel in panels.values()],
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, panel) in zip(axes[:, 0], panels.items(), strict=True):
        _draw(axis, ": ".join(title), panel)
    target = source.with_suffix(".png")
    picture.savefig(target, dpi=100)
    pyplot.close(picture)
    return target


def _draw(axis: Any, title: str, panel: list[dict[str, Any]]) -> None:
    """One figure of all rivals: median, lowest and highest; left is better."""
    for row in panel:
        spread = [[row["median"] - row["low"]], [row["high"] - row["median"]]]
        colour = "C1" if row["rival"] == SUBJECT else "C0"
        axis.errorbar(row["median"], row["rival"], xerr=spread, fmt="o", color=colour)
    if min(row["low"] for row in panel) > 0:
        # Bars would have no honest length upon it, so points.
        axis.set_xscale("log")
    axis.grid(axis="x", alpha=0.3)
    axis.margins(y=0.5 / len(panel))
    axis.invert_yaxis()
    axis.set_title(title, fontsize="small", loc="left")
