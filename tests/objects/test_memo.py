"""Memoized functions whose results lie in a bucket."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from chest import Chest, errors, memoize

pytest.importorskip("obstore", reason="obstore is not installed")


@pytest.fixture
def c(bucket: str) -> Any:
    with Chest(bucket, trust="any") as c:
        yield c


def test_a_result_is_computed_once_and_found_by_other_handles(c: Any) -> None:
    calls = []

    def square(n: int) -> Any:
        calls.append(n)
        return np.full(50_000, n * n)

    memo = memoize(c)(square)
    assert memo(3)[0] == memo(3)[0] == 9
    assert memo.check(3)
    assert not memo.check(4)
    with Chest(c.path, trust="any") as other:
        again = memoize(other)(square)
        assert again(3)[0] == 9
        assert again.was_hit
    assert calls == [3]
    assert memo.cache_info()[:3] == (1, 1, 1)
    assert memo.forget(older_than=1000) == 0
    assert memo.forget(3) == 1
    assert memo(3)[0] == 9
    assert calls == [3, 3]
    assert memo.forget(older_than=0) == 1


def test_a_result_is_the_callers_own(c: Any) -> None:
    @memoize(c)
    def numbers() -> list[int]:
        return [1]

    numbers().append(2)
    numbers().append(3)
    assert numbers() == [1]


def test_threads_that_ask_at_once_wait_for_one(c: Any) -> None:
    started, go, calls = threading.Event(), threading.Event(), []

    @memoize(c)
    def slow(n: int) -> int:
        calls.append(n)
        started.set()
        assert go.wait(20)
        return n

    threads = [threading.Thread(target=slow, args=(1,)) for _ in range(3)]
    threads[0].start()
    assert started.wait(20)
    for each in threads[1:]:
        each.start()
    go.set()
    for each in threads:
        each.join()
    assert calls == [1]


def test_results_may_end_and_exceptions_may_be_kept(c: Any) -> None:
    calls = []

    @memoize(c, ttl=1000, on_error="cache")
    def fail(n: int) -> None:
        calls.append(n)
        raise ZeroDivisionError(n)

    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="5"):
            fail(5)
    assert calls == [5]
    assert c.expires(fail.key(5)) is not None


def test_coroutines_are_memoized_as_well(c: Any) -> None:
    calls = []

    @memoize(c)
    async def square(n: int) -> int:
        calls.append(n)
        return n * n

    async def both() -> list[int]:
        return [await square(4), *(await asyncio.gather(square(4), square(4)))]

    assert asyncio.run(both()) == [16, 16, 16]
    assert calls == [4]


def test_nothing_is_computed_that_could_not_be_kept(c: Any) -> None:
    with Chest(c.path, trust="any", readonly=True) as readonly:

        @memoize(readonly)
        def never() -> None:
            raise AssertionError

        with pytest.raises(errors.ReadOnlyError):
            never()
