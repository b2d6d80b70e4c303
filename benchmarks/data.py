"""The data that all rivals get: random, and the same at each call."""

from __future__ import annotations

import random
from typing import Any

__all__ = ["SEED", "array", "frame", "name", "names", "pairs", "shuffled"]

SEED = 2016


def array(nbytes: int, seed: int = SEED) -> Any:
    """Random float64 numbers, which no codec can shrink."""
    import numpy as np

    return np.random.default_rng(seed).random(nbytes // 8)


def name(number: int) -> str:
    """The key with that number."""
    return f"k{number:07d}"


def names(count: int) -> list[str]:
    """Keys in the order they are set."""
    return [name(number) for number in range(count)]


def shuffled(keys: list[str]) -> list[str]:
    """The same keys in a random order, the same at each call."""
    return random.Random(SEED).sample(keys, len(keys))


def pairs(keys: list[str], nbytes: int = 100) -> list[tuple[str, str]]:
    """A value of *nbytes* characters for each key."""
    return [(key, f"{key:x>{nbytes}}") for key in keys]


def frame(rows: int) -> Any:
    """An Arrow-backed DataFrame of floats, datetimes and strings."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    numbers = np.random.default_rng(SEED)
    seconds = numbers.integers(0, 2**31, rows).astype("datetime64[s]")
    words = np.array([f"word number {n}" for n in range(1_000)])
    columns = {f"float{n}": pa.array(numbers.random(rows)) for n in range(4)}
    columns["when"] = pa.array(seconds.astype("datetime64[us]"))
    columns["what"] = pa.array(words[numbers.integers(0, len(words), rows)].tolist())
    return pa.table(columns).to_pandas(types_mapper=pd.ArrowDtype)
