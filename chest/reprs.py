"""Numbers as people read them.

Owns: the text of sizes, counts and times, the budget's own notation, the shape of a
chest's ``repr`` and of its HTML, the bar of a long look.
Does not own: where the numbers come from; nothing here knows a chest.
"""

from __future__ import annotations

import html as markup
import math
import re
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

__all__ = [
    "UNLIMITED",
    "bytes_text",
    "count_text",
    "html",
    "line",
    "parse_bytes",
    "seconds_text",
    "shown",
    "table",
]

T = TypeVar("T")

UNLIMITED: Final = sys.maxsize
"""The number of bytes that an infinite budget is."""

PREFIXES: Final = "kMGTPE"
AMOUNT: Final = re.compile(r"([0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*([a-z%]*)", re.I)
UNITS: Final = {"": 1, "b": 1} | {
    prefix.lower() + end: base ** (power + 1)
    for power, prefix in enumerate(PREFIXES)
    for end, base in (("", 1000), ("b", 1000), ("i", 1024), ("ib", 1024))
}


def bytes_text(count: float) -> str:
    """Write a number of bytes with three figures at most, in decimal units.

    Parameters
    ----------
    count : int or float
        Bytes.

    Returns
    -------
    str
        What `parse_bytes` reads, up to rounding; ``"unlimited"`` for `UNLIMITED`.

    Examples
    --------
    >>> bytes_text(1_234_567), bytes_text(1e9), bytes_text(12), bytes_text(999_950)
    ('1.2 MB', '1 GB', '12 B', '1 MB')
    """
    if count >= UNLIMITED:
        return "unlimited"
    return _scaled(count, ("B", *(prefix + "B" for prefix in PREFIXES)))


def count_text(count: int, noun: str = "", plural: str = "") -> str:
    """Write a whole number with separators, and what it counts.

    Parameters
    ----------
    count : int
        How many.
    noun : str, optional
        One of what is counted.
    plural : str, optional
        Several of them; *noun* and an s by default.

    Examples
    --------
    >>> count_text(1), count_text(1_234_567, "key"), count_text(1, "key")
    ('1', '1,234,567 keys', '1 key')
    """
    text = f"{count:,}"
    if not noun:
        return text
    return f"{text} {noun if count == 1 else plural or noun + 's'}"


def seconds_text(seconds: float) -> str:
    """Write a duration in the unit that suits it.

    Parameters
    ----------
    seconds : float
        Of either sign.

    Examples
    --------
    >>> seconds_text(0.0000123), seconds_text(2.5), seconds_text(3700)
    ('12 µs', '2.5 s', '1 h 1 min')
    """
    if seconds < 0:
        return "-" + seconds_text(-seconds)
    if not math.isfinite(seconds):
        return "for ever" if seconds > 0 else "unknown"
    if 0 < seconds < 59.95:
        return _scaled(seconds * 1e9, ("ns", "µs", "ms", "s"))
    whole = round(seconds)
    for large, small, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")
    if whole:
        rest = whole % 60
        return f"{whole // 60} min" + (f" {rest} s" if rest else "")
    return "0 s"


def parse_bytes(
    amount: str | float,
    *,
    option: str = "amount",
    limit: Callable[[], int] | None = None,
) -> int:
    """Read an amount of memory, or of disk.

    Parameters
    ----------
    amount : str, int or float
        Bytes; or ``"4GB"``, ``"512 MiB"``, ``"1.5e9"``, ``"25%"``. Units ending in iB
        are binary, others decimal; case does not matter. ``inf`` is `UNLIMITED`.
    option : str
        What the amount was given as, for the message.
    limit : callable, optional
        Tells the bytes that a percentage is of; called for no other amount. Without it
        percentages are refused.

    Returns
    -------
    int
        Bytes, rounded down.

    Raises
    ------
    ValueError
        For what is no amount, negative, not a number, or more than 100%.

    Examples
    --------
    >>> parse_bytes("4GB", limit=lambda: 0), parse_bytes("25%", limit=lambda: 1000)
    (4000000000, 250)
    """
    split = _split(amount)
    number, unit = split or (0.0, "")
    taken = UNITS.keys() | ({"%"} if limit else set())
    if split is None or unit not in taken or not number >= 0:
        shares = ", or '25%'" if limit else "; a share is not taken"
        message = f"{option}={amount!r}: bytes, or text like '4GB' or '512 MiB'{shares}"
        raise ValueError(message)
    factor: float = UNITS.get(unit, 0)
    if unit == "%":
        if number > 100:
            message = f"{option}={amount!r}: a share of all is at most '100%'"
            raise ValueError(message)
        assert limit is not None
        factor = limit() / 100
    if number * factor >= UNLIMITED:
        return UNLIMITED
    return int(number * factor)


def line(
    name: str, path: str, keys: int | None, in_memory: int, used: int, budget: int
) -> str:
    """Describe a chest in one line, for ``repr``.

    Parameters
    ----------
    name : str
        Of the class.
    path : str
        Of the folder.
    keys, in_memory : int
        How many there are, and how many of them are in memory. None: it is not known.
    used, budget : int
        Bytes.

    Examples
    --------
    >>> line("Chest", "/tmp/x", 12, 3, 1_200_000, 10**9)
    '<Chest at /tmp/x: 12 keys, 3 in memory, 1.2 MB of 1 GB>'
    """
    memory = bytes_text(used)
    memory += ", no limit" if budget >= UNLIMITED else f" of {bytes_text(budget)}"
    known = "" if keys is None else f"{count_text(keys, 'key')}, "
    return f"<{name} at {path}: {known}{count_text(in_memory)} in memory, {memory}>"


def html(
    title: str,
    rows: Sequence[tuple[str, str]],
    bars: Sequence[tuple[str, int, int]] = (),
) -> str:
    """Make a small table that stands by itself, for a notebook.

    Everything is escaped; colours are those of the page, light or dark.

    Parameters
    ----------
    title : str
        Above the table.
    rows : sequence of (str, str)
        Name and text.
    bars : sequence of (str, int, int)
        Name, bytes used and bytes there may be.

    Examples
    --------
    >>> "&lt;x&gt;" in html("<x>", [("keys", "12")], [("memory", 1, 4)])
    True
    """
    cells = [_row(name, markup.escape(text)) for name, text in rows]
    cells += [_row(name, _bar(used, most)) for name, used, most in bars]
    return (
        '<div style="color:inherit">'
        f"<strong>{markup.escape(title)}</strong>"
        f'<table style="background:none">{"".join(cells)}</table></div>'
    )


def shown(steps: Collection[T], what: str, *, show: bool) -> Iterable[T]:
    """The steps, under a progress bar if one is wanted."""
    if not show:
        return steps
    from tqdm import tqdm

    # No thread that outlives the bar.
    bar: Any = type("Bar", (tqdm,), {"monitor_interval": 0})
    return cast("Iterable[T]", bar(steps, desc=what, unit="value", leave=False))


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Align rows of text under their headers, for the command line.

    Parameters
    ----------
    headers : sequence of str
        One for each column; the first row, and underlined.
    rows : sequence of sequences
        As many cells as there are headers; numbers stand to the right.

    Returns
    -------
    str
        Lines without a newline at the end.

    Examples
    --------
    >>> print(table(("key", "size"), [("x", 12), ("long", 3)]))
    key   size
    ----  ----
    x       12
    long     3
    """
    columns = [[str(cell) for cell in column] for column in zip(*rows, strict=True)]
    columns = columns or [[] for _ in headers]
    widths = [
        max(map(len, [head, *column]))
        for head, column in zip(headers, columns, strict=True)
    ]
    lines = [list(headers), ["-" * width for width in widths]]
    lines += [list(texts) for texts in zip(*columns, strict=True)]
    to_the_right = [
        bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        for i in range(len(headers))
    ]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, to_the_right, strict=True)
        ).rstrip()
        for texts in lines
    )


def _scaled(number: float, units: Sequence[str]) -> str:
    """Write *number*, given in the first unit, in the largest that suits it."""
    for unit in units[:-1]:
        text = _figures(number, whole=unit == "B")
        if abs(float(text)) < 1000:
            return f"{text} {unit}"
        number /= 1000
    return f"{_figures(number)} {units[-1]}"


def _figures(number: float, *, whole: bool = False) -> str:
    """Write one digit behind the point below ten, none above; none that is zero."""
    if whole or abs(number) >= 9.95:
        return f"{number:.0f}"
    return f"{number:.1f}".removesuffix(".0")


def _split(amount: str | float) -> tuple[float, str] | None:
    """Take an amount apart: number, unit in small letters; None for nonsense."""
    if isinstance(amount, str):
        found = AMOUNT.fullmatch(amount.strip())
        digits, unit = found.groups() if found else ("", "")
    else:
        digits, unit = ("" if isinstance(amount, bool) else amount), ""
    try:
        return float(digits), unit.lower()
    except (TypeError, ValueError):
        return None


def _row(name: str, inside: str) -> str:
    cell = '<td style="text-align:left">'
    return f"<tr>{cell}{markup.escape(name)}</td>{cell}{inside}</td></tr>"


def _bar(used: int, most: int) -> str:
    share = min(100.0, 100 * used / most) if most > 0 else 100.0
    text = f"{bytes_text(used)} of {bytes_text(most)}"
    return (
        '<div style="width:12em;height:.6em;border:1px solid currentColor">'
        f'<div style="width:{share:.1f}%;height:100%;background:currentColor;'
        f'opacity:.5"></div></div>{markup.escape(text)}'
    )
