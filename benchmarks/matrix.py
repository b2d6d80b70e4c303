"""The tables of small pairs: what each rival takes, by size and by number.

Owns: how the figures of the workloads ``rows_…`` stand in the docs. Does not own: how they
are measured (`benchmarks.small`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["PREFIX", "tables"]

PREFIX = "rows_"  # how the names of these workloads begin


def tables(
    rows: Iterable[dict[str, Any]],
    stopped: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> str:
    """The rows of written runs as reStructuredText: a table a figure, a line a rival.

    Parameters
    ----------
    rows : iterable of dict
        Of all workloads; those whose name begins with `PREFIX` are taken.
    stopped : mapping of (workload, rival) to str
        What to say of those that took too long.

    Returns
    -------
    str
        Empty when there are none. Medians, a column for each workload in the order in
        which they come.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    columns: dict[str, None] = {}
    for row in rows:
        if not row["workload"].startswith(PREFIX):
            continue
        columns[row["workload"]] = None
        by_rival = found.setdefault(row["figure"], {})
        by_rival.setdefault(row["rival"], {})[row["workload"]] = _text(row["median"])
    lines: list[str] = []
    for figure, by_rival in found.items():
        lines += [f".. csv-table:: {figure}", "   :header-rows: 1", ""]
        head = ["rival", *(f"``{name}``" for name in columns)]
        body = [
            [
                rival,
                *(cells.get(n, stopped.get((n, rival), "–")) for n in columns),
            ]
            for rival, cells in by_rival.items()
        ]
        lines += [
            "   " + ",".join(f'"{cell}"' for cell in line) for line in [head, *body]
        ]
        lines.append("")
    return "\n".join(lines)


def _text(value: float) -> str:
    """Three digits, never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
