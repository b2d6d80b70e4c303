"""`chest.memoize` and `chest.map`. Defects of other libraries stand at their tests."""

from __future__ import annotations

import asyncio
import cmath
import contextlib
import copy
import functools
import inspect
import logging
import os
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

import chest
from chest import Chest, errors, memoize
from chest.memo.decorator import Failure
from tests.unit.test_fingerprint import define


@pytest.fixture
def c(chest_dir: Path) -> Iterator[Chest]:
    with Chest(chest_dir) as c:
        yield c


class Counter:
    """A function that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def memoized(self, c: Chest, **options: Any) -> Any:
        calls = self.calls

        @memoize(c, **options)
        def f(x: Any, y: int = 2, *rest: int, z: int = 3, **more: int) -> Any:
            calls.append(x)
            return [x, y, rest, z, more]

        return f


@contextlib.contextmanager
def waiting(callers: int) -> Iterator[threading.Event]:
    """An event that is set when so many callers wait for another's computation."""
    everyone, waits = [callers], threading.Event()
    enter = chest.memo.flights._enter

    def count(name: Any) -> Any:
        other = enter(name)
        if other is not None:
            everyone[0] -= 1
            if everyone[0] == 0:
                waits.set()
        return other

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chest.memo.flights, "_enter", count)
        yield waits


# -------------------------------------------------------------------------- the call


def test_however_a_call_is_spelled_it_is_one(c):
    """diskcache#264, #240: positions, names and defaults gave different keys."""
    counter = Counter()
    f = counter.memoized(c)

    assert f(1) == f(x=1) == f(1, 2) == f(1, z=3) == f(y=2, x=1) == [1, 2, (), 3, {}]
    assert counter.calls == [1]
    assert f(1, 2, 5, k=1) == f(1, 2, 5, z=3, k=1) == [1, 2, (5,), 3, {"k": 1}]
    assert counter.calls == [1, 1]


def test_wrong_arguments_are_refused_as_the_function_does(c):
    f = Counter().memoized(c)

    with pytest.raises(TypeError, match=r"f\(\) missing 1 required .* 'x'"):
        f()


def test_equal_numbers_of_other_types_are_other_calls(c):
    @memoize(c)
    def kind(x):
        return f"{type(x).__name__}{x}"

    for _ in range(3):
        assert [kind(x) for x in (1, 1.0, True, 0.0, -0.0, 0)] == [
            "int1",
            "float1.0",
            "boolTrue",
            "float0.0",
            "float-0.0",
            "int0",
        ]


def test_the_result_is_a_value_under_a_readable_key(c):
    @memoize(c)
    def add(x, y):
        return x + y

    add(1, 2)

    key = add.key(1, 2)
    assert list(c) == [key]
    assert key[:2] == ("memo", f"{__name__}.{add.__qualname__}")
    assert c[key] == 3
    assert [*add.keys()] == [key]


def test_a_result_is_seen_by_others_at_once(c, chest_dir):
    @memoize(c)
    def f(x):
        return x * 2

    f(21)

    with Chest(chest_dir) as other:
        assert other[f.key(21)] == 42


def test_nothing_is_left_in_the_folder_but_values(c):
    @memoize(c)
    def f(x):
        assert [name for name in os.listdir(c.path) if name.startswith(".tmp-memo-")]
        return x

    f(1)

    assert os.listdir(c.path) == [".keys"]


def test_results_are_there_in_the_next_run(chest_dir):
    counter = Counter()
    for _ in range(2):
        with Chest(chest_dir) as c:
            counter.memoized(c)([1, {"a"}])

    assert len(counter.calls) == 1


def test_none_is_a_result(c):
    counter = Counter()
    f = memoize(c)(lambda x: counter.calls.append(x))

    assert f(1) is f(1) is None
    assert counter.calls == [1]


def test_a_caller_cannot_change_what_others_get(c):
    """tkem/cachetools#184: a caller mutated the cached object."""
    np = pytest.importorskip("numpy")

    @memoize(c)
    def make(n):
        return {"list": [n], "array": np.arange(n)}

    first = make(3)
    first["list"].append("mine")
    make(3)["array"][0] = 99
    c.flush()

    assert make(3)["list"] == [3]
    assert make(3)["array"].tolist() == [0, 1, 2]


def test_a_large_array_comes_back_as_a_map(c):
    np = pytest.importorskip("numpy")

    @memoize(c)
    def make(n):
        return np.arange(n)

    mine = make(500_000)
    mine[0] = 7

    assert make(500_000)[0] == 0
    assert not make(500_000).flags.writeable
    assert make(500_000) is make(500_000)
    assert c.memory_usage <= c.available_memory


def test_a_result_larger_than_the_budget_is_kept(chest_dir):
    with Chest(chest_dir, available_memory=1000) as c:
        f = memoize(c)(lambda n: list(range(n)))

        assert f(5000) == f(5000)
        assert f.cache_info().misses == 1
        assert c.memory_usage <= 1000


def test_what_is_ignored_makes_no_other_call(c):
    """diskcache#240, #264: nothing but positions could be ignored."""
    counter = Counter()
    f = counter.memoized(c, ignore=["y", "k"])

    assert f(1, 5, k=1) == f(1, 6, k=2) == f(1)
    assert counter.calls == [1]
    with pytest.raises(ValueError, match=r"no parameter 'nothing' to ignore; it has x"):
        memoize(c, ignore="nothing")(lambda x: x)


def test_a_key_function_stands_for_the_arguments(c):
    calls: list[Any] = []
    f = memoize(c, key=lambda x, **_: x["id"])(lambda x, **_: calls.append(x))

    f({"id": 1, "lock": threading.Lock()}, k=1)
    f({"id": 1, "lock": threading.Lock()}, k=2)

    assert len(calls) == 1


def test_an_argument_without_fingerprint_is_named_and_nothing_is_called(c):
    """joblib#896: what could not be pickled was a silent miss for ever."""
    counter = Counter()
    f = counter.memoized(c)

    with pytest.raises(
        errors.FingerprintError, match=r"argument 'x' .* ignore='x'.* key"
    ):
        f(threading.Lock())
    assert counter.calls == []


def test_a_result_that_cannot_be_kept_is_an_error_that_names_it(c):
    """joblib#896."""
    f = memoize(c)(lambda: threading.Lock())

    with pytest.raises(errors.EncodingError, match=r"result of .*lambda.*, a lock"):
        f()
    assert len(c) == 0


def test_a_full_disk_loses_no_result(c, monkeypatch):
    def refuse(*_: object) -> None:
        raise errors.StoreError("full")

    f = memoize(c)(lambda x: x + 1)
    monkeypatch.setattr(type(c), "_keep", refuse)

    with pytest.warns(errors.SpillWarning, match="could not be written"):
        assert f(1) == 2


def test_a_damaged_result_is_computed_again_with_a_warning(chest_dir):
    f: Any
    with Chest(chest_dir) as c:
        f = memoize(c)(lambda: list(range(50_000)))
        f()
        key = f.key()
        path = Path(c.key_to_filename(key))
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)

        with pytest.warns(RuntimeWarning, match="computed again"):
            assert f() == list(range(50_000))
        assert f() == list(range(50_000))
        assert f.cache_info().misses == 2


def test_a_result_ends_after_its_time(c, monkeypatch):
    from chest import expiry

    now = [1000.0]
    monkeypatch.setattr(expiry, "now", lambda: now[0])
    counter = Counter()
    f = counter.memoized(c, ttl=60)

    f(1)
    now[0] += 59
    f(1)
    assert counter.calls == [1]
    now[0] += 2
    f(1)
    f(1)

    assert counter.calls == [1, 1]
    with pytest.raises(ValueError, match="ttl"):
        memoize(c, ttl=0)


# -------------------------------------------------------------------------- the code


def test_a_change_computes_again_and_undoing_it_finds_the_old_result(c):
    """joblib PR#129: a change threw away the results of all versions."""
    calls: list[int] = []
    text = "def f(x):\n    calls.append(x)\n    return g(x)\ndef g(x): return x + {}\n"

    def version(n: int) -> Any:
        return memoize(c)(define(text.format(n), calls=calls)["f"])

    assert [version(1)(1), version(2)(1), version(1)(1)] == [2, 3, 2]
    assert calls == [1, 1]
    assert len(c) == 2


def test_a_helper_that_is_replaced_while_the_program_runs_counts(c):
    space = define("def f(x): return g(x)\ndef g(x): return x + 1\n")
    f = memoize(c)(space["f"])
    assert [f(1), f(1)] == [2, 2]

    exec("def g(x): return x + 2", space)

    assert [f(1), f(1)] == [3, 3]


def test_a_result_that_map_found_before_a_change_answers_for_no_later_call(c):
    space = define("def g(x): return x\ndef f(x): return g(x)\n")
    f = memoize(c)(space["f"])
    found = chest.map(f, range(3), progress=False)
    space["g"] = lambda x: x + 100
    assert f(1) == 101

    assert found[1] == 1  # what there was to be had when it was asked for

    assert [f(1), f(1)] == [101, 101]


def test_a_thread_that_waited_through_a_change_files_nothing_for_later_calls(c):
    begun, go = threading.Event(), threading.Event()

    def pause(x: int) -> int:
        begun.set()
        go.wait(20)
        return x

    space = define("def f(x): return g(x)\n", g=pause)
    f = memoize(c)(space["f"])
    threads = [threading.Thread(target=f, args=(1,)) for _ in range(2)]
    with waiting(1) as waits:
        for thread in threads:
            thread.start()
        begun.wait(20)
        waits.wait(20)
        space["g"] = lambda x: x + 100
        assert f(2) == 102  # which sees the change
        go.set()
        for thread in threads:
            thread.join()

    assert [f(1), f(1)] == [101, 101]


def test_a_default_that_is_changed_in_place_counts(c):
    for options in ({}, {"version": 1}):

        @memoize(c, **options)
        def f(x, weights=[1]):  # noqa: B006
            return x * weights[0]

        weights = f.__wrapped__.__defaults__[0]
        assert [f(5), f(5), f(x=5)] == [5, 5, 5]

        weights[0] = 2

        assert [f(5), f(5), f(x=5)] == [10, 10, 10]


def test_a_default_of_a_helper_that_is_changed_in_place_counts(c):
    space = define("def g(x, w=[1]): return x * w[0]\ndef f(x): return g(x)\n")
    f = memoize(c)(space["f"])
    assert [f(5), f(5)] == [5, 5]

    space["g"].__defaults__[0][0] = 2

    assert [f(5), f(5)] == [10, 10]


def test_notebooks_functions_of_one_name_do_not_answer_for_each_other(c):
    """joblib#1096."""
    one = memoize(c)(define("def f(x): return 'one'")["f"])
    other = memoize(c)(define("def f(x): return 'other'")["f"])

    assert one.name == other.name
    assert [one(1), other(1), one(1), other(1)] == ["one", "other"] * 2


def test_a_version_takes_over_from_the_code(c):
    """joblib PR#680: there was no way to say that a change does not matter."""
    for n, version in [(1, "a"), (2, "a"), (3, "b")]:
        f = memoize(c, version=version)(define(f"def f(x): return {n}")["f"])
        assert f(1) == {"a": 1, "b": 3}[version]


def adder(n: int) -> Any:
    return lambda x: x + n


def test_functions_of_one_name_are_other_arguments_also_under_a_version(c):
    @memoize(c, version=1)
    def apply(function, x):
        return function(x)

    @memoize(c, key=lambda function, x: (function, x))
    def keyed(function, x):
        return function(x)

    for f in (apply, keyed):
        assert f(lambda x: x + 1, 1) == 2
        assert f(lambda x: x + 2, 1) == 3
        assert f(adder(3), 1) == 4
        assert f(adder(4), 1) == 5


def test_memoized_functions_are_arguments_by_their_code_or_version(c):
    @memoize(c)
    def apply(function, x):
        return function(x)

    def of(n: int, **options: Any) -> Any:
        return memoize(c, **options)(define(f"def f(x): return x + {n}")["f"])

    assert [apply(of(n), 1) for n in (1, 2)] == [2, 3]
    assert [apply(of(n, version=n), 1) for n in (1, 2)] == [2, 3]
    assert apply.key(of(1, version=1), 1) == apply.key(of(2, version=1), 1)

    class Sum:
        def __init__(self, n: int) -> None:
            self.n = n

        @memoize(c)
        def add(self, x):
            return self.n + x

    assert [apply(Sum(n).add, 1) for n in (5, 6)] == [6, 7]
    assert apply.key(Sum(5).add, 1) == apply.key(Sum(5).add, 1)


def test_a_step_depends_on_the_steps_that_it_calls(c):
    text = "@memo\ndef low(x): return x * {}\n@memo\ndef f(x): return low(x) + 1\n"

    found = [define(text.format(n), memo=memoize(c))["f"](2) for n in (1, 2, 1)]

    assert found == [3, 5, 3]


def test_a_call_is_bound_as_the_wrapper_takes_it(c):
    def slow_mode(inner):
        @functools.wraps(inner)
        def outer(x, mode="slow"):
            return inner(x, mode=mode)

        return outer

    def fast_unless_asked(inner):
        @functools.wraps(inner)
        def outer(*args, mode="fast", **more):
            return inner(*args, mode=mode, **more)

        return outer

    def with_seven(inner):
        @functools.wraps(inner)
        def outer(*args, **more):
            return inner(7, *args, **more)

        return outer

    def through(inner):
        @functools.wraps(inner)
        def outer(*args, **more):
            return inner(*args, **more)

        return outer

    def work(x, mode="slow"):
        return mode, x

    f = memoize(c)(fast_unless_asked(work))
    assert [f(1), f(1, mode="slow")] == [("fast", 1), ("slow", 1)]
    f = memoize(c)(with_seven(lambda x, y: (x, y)))
    assert [f(1), f(2), f(1)] == [(7, 1), (7, 2), (7, 1)]
    f = memoize(c)(slow_mode(lambda x, mode: (mode, x)))
    assert [f(1), f(1, "fast")] == [("slow", 1), ("fast", 1)]
    f = memoize(c)(through(work))
    assert f.key(1) == f.key(x=1) == f.key(1, mode="slow")
    with pytest.raises(TypeError):
        f(1, 2, 3)


def test_partials_of_one_function_are_told_apart(c):
    """joblib#1497: partials of one function threw out each other's results."""
    counter = Counter()

    def f(x: int, y: Any) -> Any:
        counter.calls.append(x)
        return x, y

    one = memoize(c)(functools.partial(f, y=[1]))
    other = memoize(c)(functools.partial(f, y=[2]))

    assert [one(1), other(1), one(1), other(1)] == [(1, [1]), (1, [2])] * 2
    assert counter.calls == [1, 1]


# ------------------------------------------------------------- what can be memoized


class Scaled:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def times(self, x: int) -> int:
        return self.factor * x

    @staticmethod
    def twice(x: int) -> int:
        return 2 * x

    @classmethod
    def kind(cls) -> str:
        return cls.__name__


def test_methods_depend_on_their_object(c):
    class A(Scaled):
        times = memoize(c)(Scaled.times)
        twice = staticmethod(memoize(c)(Scaled.twice))
        kind = classmethod(memoize(c)(Scaled.kind.__func__))

    assert [A(2).times(3), A(3).times(3), A(2).times(3)] == [6, 9, 6]
    assert A.times.cache_info()[:2] == (1, 2)
    assert A(2).times.check(3)
    assert A(2).times.key(3) == A.times.key(A(2), 3)
    assert A(2).times.forget(3) == 1
    assert not A(2).times.check(3)
    assert A(3).times.was_hit is True
    assert A(3).times.forget(older_than=0) == 1
    assert (A.twice(4), A.kind()) == (8, "A")


def test_bound_methods_and_builtins_can_be_memoized(c):
    f = memoize(c)(Scaled(2).times)
    g = memoize(c)(Scaled(3).times)

    assert (f(2), g(2), f(2)) == (4, 6, 4)
    assert memoize(c)(max)(1, 2) == 2


def test_generators_are_refused_by_name(c):
    def numbers():
        yield 1

    async def later():
        yield 1

    for f in (numbers, later):
        with pytest.raises(TypeError, match=rf"{f.__name__} is a generator function"):
            memoize(c)(f)
    with pytest.raises(TypeError, match="@classmethod above"):
        memoize(c)(Scaled.__dict__["kind"])
    with pytest.raises(TypeError, match="takes a function"):
        memoize(c)(3)
    with pytest.raises(TypeError, match="needs a Chest"):
        memoize(Counter)
    with pytest.raises(ValueError, match="on_error"):
        memoize(c, on_error="ignore")


def test_a_coroutine_function_stays_one(c):
    """diskcache#239, #125: the coroutine itself was kept."""
    counter = Counter()

    @memoize(c)
    async def fetch(x):
        await asyncio.sleep(0)
        counter.calls.append(x)
        return [x]

    async def main() -> list[Any]:
        return [await asyncio.gather(*[fetch(1) for _ in range(5)]), await fetch(1)]

    assert asyncio.run(main()) == [[[1]] * 5, [1]]
    assert counter.calls == [1]
    assert fetch.was_hit
    assert inspect.iscoroutinefunction(fetch) or asyncio.iscoroutinefunction(fetch)
    assert asyncio.run(fetch.call(1)) == [1]
    assert len(counter.calls) == 2


def test_a_waiting_task_can_be_cancelled_without_harm(c):
    async def main() -> list[Any]:
        begun, go = asyncio.Event(), asyncio.Event()

        @memoize(c, ignore=("begun", "go"))
        async def fetch(x, begun, go):
            begun.set()
            await go.wait()
            return x

        tasks = [asyncio.create_task(fetch(1, begun, go)) for _ in range(3)]
        await begun.wait()
        await asyncio.sleep(0)
        tasks[1].cancel()
        go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, third = asyncio.run(main())

    assert (first, third) == (1, 1)
    assert isinstance(second, asyncio.CancelledError)


def test_recursion_does_not_wait_for_itself(c):
    @memoize(c)
    def fib(n):
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    assert fib(20) == 6765
    assert fib.cache_info().misses == 21


def test_a_call_with_the_same_arguments_inside_itself_is_computed(c):
    depth = [0]

    @memoize(c)
    def f(x):
        depth[0] += 1
        return f(x) if depth[0] < 3 else "end"

    assert f(1) == "end"
    assert depth == [3]


def test_a_memoized_function_can_be_pickled(c):
    local = Counter().memoized(c)

    copied = pickle.loads(pickle.dumps(local))
    try:
        assert copied.key(1) == local.key(1)
        assert pickle.loads(pickle.dumps(at_module_level)) is at_module_level
    finally:
        copied.chest.close()


class Times:
    def __init__(self, by: int) -> None:
        self.by = by

    def of(self, x: int) -> int:
        return self.by * x


def test_a_memoized_method_of_an_object_can_be_copied_and_pickled(c):
    bound = memoize(c)(Times.of).__get__(Times(3))

    copied = pickle.loads(pickle.dumps(bound))
    try:
        assert copied(2) == bound(2) == copy.copy(bound)(2) == 6
        assert copied.key(2) == bound.key(2)
    finally:
        copied.__func__.chest.close()


def _module_level() -> Any:
    """What a module's own function becomes, without a chest that outlives the test."""
    from chest.memo import Memo

    memo: Any = Memo.__new__(Memo)
    functools.update_wrapper(memo, _module_level)
    memo.__qualname__ = "at_module_level"
    return memo


at_module_level = _module_level()


# ---------------------------------------------------------------------- single flight


def test_threads_that_ask_for_one_result_wait_for_one_computation(c):
    """joblib#490, #73: parallel callers all computed."""
    begun, go, calls = threading.Event(), threading.Event(), []

    @memoize(c)
    def slow(x):
        calls.append(x)
        begun.set()
        go.wait(20)
        return [x]

    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(slow(1))) for _ in range(8)]
    with waiting(7) as waits:
        threads[0].start()
        begun.wait(20)
        for thread in threads[1:]:
            thread.start()
        assert waits.wait(20)
        go.set()
        for thread in threads:
            thread.join()

    assert found == [[1]] * 8
    assert calls == [1]
    assert slow.cache_info()[:2] == (7, 1)


def test_when_the_one_that_computes_raises_another_takes_over(c):
    begun, go, calls = threading.Event(), threading.Event(), []

    @memoize(c)
    def flaky(x):
        calls.append(x)
        if len(calls) == 1:
            begun.set()
            go.wait(20)
            raise ValueError("first")
        return x

    failed: list[Exception] = []

    def first() -> None:
        try:
            flaky(1)
        except ValueError as error:
            failed.append(error)

    found: list[int] = []
    threads = [
        threading.Thread(target=first),
        threading.Thread(target=lambda: found.append(flaky(1))),
    ]
    with waiting(1) as waits:
        threads[0].start()
        begun.wait(20)
        threads[1].start()
        assert waits.wait(20)
        go.set()
        for thread in threads:
            thread.join()

    assert found == [1]
    assert len(failed) == 1
    assert calls == [1, 1]


def test_a_stale_lock_file_is_no_obstacle(c):
    f = memoize(c)(lambda x: x)
    (Path(c.path) / f".tmp-memo-{chest.memo.decorator._file(f.key(1))}").touch()

    assert f(1) == 1
    assert os.listdir(c.path) == [".keys"]


def test_where_no_lock_can_be_had_it_is_computed_all_the_same(c, monkeypatch):
    from chest.folder import Folder

    def full(*_: object) -> int:
        raise OSError(28, "full")

    f = memoize(c)(lambda x: x)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "open", full)

        assert f(1) == 1


# ---------------------------------------------------------------------------- errors


def test_exceptions_are_not_kept_unless_asked(c):
    counter = Counter()

    def fail(x: int) -> None:
        counter.calls.append(x)
        raise ValueError(x)

    again, kept = memoize(c)(fail), memoize(c, on_error="cache", version=1)(fail)
    for f in (again, again, kept, kept, kept):
        with pytest.raises(ValueError, match="7"):
            f(7)

    assert len(counter.calls) == 3
    assert isinstance(c[kept.key(7)], Failure)
    assert kept.was_hit


def test_an_exception_that_cannot_be_kept_comes_through_all_the_same(c):
    class Locked(Exception):
        def __init__(self) -> None:
            self.lock = threading.Lock()

    @memoize(c, on_error="cache")
    def f(x):
        raise Locked

    with (
        pytest.warns(RuntimeWarning, match="the Locked that .*f raised cannot be kept"),
        pytest.raises(Locked),
    ):
        f(1)


@pytest.mark.parametrize(
    "error", [errors.LockTimeout("late"), errors.DroppedError("gone")], ids=type
)
def test_no_trouble_of_the_chest_loses_a_result(c, monkeypatch, error):
    def refuse(*_: object) -> None:
        raise error

    f = memoize(c)(lambda x: [x])
    monkeypatch.setattr(Chest, "_keep", refuse)

    with pytest.warns(errors.SpillWarning, match="could not be written"):
        assert f(1) == [1]


def test_an_attribute_of_the_function_does_not_take_the_memos_place(c):
    def f(x):
        return x

    f.name, f.chest = "mine", None

    assert memoize(c)(f).name.endswith("f")
    assert memoize(c)(f)(1) == 1


# --------------------------------------------------------------------------- knowing


def test_one_can_know_whether_it_was_a_hit(c):
    """joblib#1342."""
    f = Counter().memoized(c)
    assert f.was_hit is None
    seen: list[bool] = []

    for x in (1, 1, 2, 1):
        f(x)
        seen.append(f.was_hit)
    thread = threading.Thread(target=lambda: seen.append(f.was_hit))
    thread.start()
    thread.join()

    assert seen == [False, True, False, True, None]


def test_counts_of_threads_that_ended_stay(c):
    f = memoize(c)(lambda x: x)
    for _ in range(3):
        thread = threading.Thread(target=f, args=(1,))
        thread.start()
        thread.join()

    assert f.cache_info()[:3] == (2, 1, 1)


def test_one_entry_can_be_dropped(c):
    """joblib#1559, PR#1542."""
    f = Counter().memoized(c)
    f(1), f(2)

    assert f.check(1)
    assert f.forget(1) == 1
    assert f.forget(1) == 0
    assert not f.check(1)
    assert f.check(2)
    with pytest.raises(TypeError, match="not both"):
        f.forget(1, older_than=3)


@pytest.mark.parametrize("length", [1, 1000, 100_000], ids=["small", "packed", "file"])
def test_old_versions_are_forgotten_by_age_wherever_they_were_moved(
    chest_dir, monkeypatch, length
):
    text = "def f(x): return [x, {}] * {}"
    now = time.time()
    with Chest(chest_dir) as c:
        for n, age in ((1, 7200), (2, 0)):
            monkeypatch.setattr(time, "time", lambda age=age: now - age)
            f = memoize(c)(define(text.format(n, length))["f"])
            f(1)
            c.compact()
        old, new = f.keys()
    with Chest(chest_dir) as c:
        f = memoize(c)(f.__wrapped__)

        assert f.forget(older_than=3 * 3600) == 0
        assert f.forget(older_than=3600) == 1
        assert [*f.keys()] == [new] != [old]
        assert f.forget(older_than=0) == 1
        assert len(c) == 0


def test_forget_without_a_call_says_how_to_forget_all(c):
    f = Counter().memoized(c)
    with pytest.raises(TypeError) as raised:
        f.forget()
    assert "older_than=0" in raised.value.__notes__[0]


def test_a_key_that_is_no_function_is_refused_at_the_decoration(c):
    with pytest.raises(TypeError, match="key='path': a function"):
        memoize(c, key="path")


def test_call_computes_always(c):
    counter = Counter()
    f = counter.memoized(c)

    f(1), f.call(1), f(1)

    assert counter.calls == [1, 1]


def test_time_is_counted_and_logged(c, chest_dir, caplog):
    f = memoize(c)(lambda x: sum(range(x)))
    with caplog.at_level(logging.INFO, "chest"):
        f(100_000)
    f(100_000)

    assert "was computed in" in caplog.text
    assert f.cache_info().computed > 0
    assert c.stats().saved == pytest.approx(f.cache_info().computed, abs=1e-6)
    assert repr(f) == f"<memoized {f.name} in {c.path}>"


def test_hits_of_a_later_run_count_the_time_of_the_first(chest_dir):
    for _ in range(2):
        with Chest(chest_dir) as c:
            f = memoize(c)(lambda x: sum(range(x)))
            f(1_000_000)
            saved = c.stats().saved

    assert saved > 0


def test_more_calls_than_are_remembered_are_found(c, monkeypatch):
    monkeypatch.setattr(chest.memo.decorator, "MOST_QUICK", 3)
    f = memoize(c)(lambda x: x)

    assert [f(x) for x in [*range(9)] * 3] == [*range(9)] * 3
    assert f.cache_info().misses == 9


def test_a_result_that_was_deleted_is_computed_again(c):
    counter = Counter()
    f = memoize(c)(lambda x: counter.calls.append(x))
    f(1), f(1)
    del c[f.key(1)]
    f(1)

    assert counter.calls == [1, 1]


def test_a_read_only_chest_answers_and_refuses_before_it_computes(chest_dir):
    counter = Counter()
    with Chest(chest_dir) as c:
        counter.memoized(c)(1)
    with Chest(chest_dir, readonly=True) as c:
        f = counter.memoized(c)
        assert f(1)[0] == 1
        with pytest.raises(errors.ReadOnlyError):
            f(2)
    assert counter.calls == [1]


# ------------------------------------------------------------------------------- map


def test_map_computes_what_is_missing_and_equal_items_once(c):
    counter = Counter()
    f = counter.memoized(c)
    f(2)

    found = chest.map(f, [1, 2, 3, 1], progress=False)

    assert [x[0] for x in found] == [1, 2, 3, 1]
    assert counter.calls == [2, 1, 3]
    assert len(found) == 4
    assert found[-1] == found[0]
    assert [each[0] for each in found[1:3]] == [2, 3]
    assert "4 results of" in repr(found)


def test_map_goes_on_where_it_was_interrupted(c):
    counter, stop = Counter(), [3]

    @memoize(c)
    def f(x):
        if x == stop[0]:
            raise KeyboardInterrupt
        counter.calls.append(x)
        return x

    with pytest.raises(KeyboardInterrupt):
        chest.map(f, range(6), progress=False)
    stop[0] = -1

    assert list(chest.map(f, range(6), progress=False)) == [*range(6)]
    assert counter.calls == [0, 1, 2, 3, 4, 5]


def test_map_names_the_item_that_failed(c):
    f = memoize(c)(lambda x, y: x / y)

    with pytest.raises(ZeroDivisionError) as caught:
        chest.map(f, [1, 2], [1, 0], progress=False)

    assert caught.value.__notes__ == ["raised for the item (2, 0)"]
    assert f.check(1, 1)


def test_map_shows_how_far_it_is(c, capsys):
    f = memoize(c)(lambda x: x)

    chest.map(f, range(3))

    assert "3/3" in capsys.readouterr().err


def test_map_takes_memoized_functions_only(c):
    async def later() -> None: ...

    with pytest.raises(TypeError, match="memoized function"):
        chest.map(len, [])
    with pytest.raises(TypeError, match=r"asyncio\.gather"):
        chest.map(memoize(c)(later), [])


def test_map_computes_again_what_was_deleted_meanwhile(c):
    f = memoize(c)(lambda x: x)
    found = chest.map(f, range(2), progress=False)
    f.forget(older_than=0)

    assert list(found) == [0, 1]


class Here(Executor):
    """Runs what is submitted at once."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def test_map_runs_where_it_is_told(c):
    f = memoize(c)(lambda x: x * 2)

    assert list(chest.map(f, range(3), executor=Here(), progress=False)) == [0, 2, 4]
    assert f.cache_info()[:2] == (3, 0)  # they were computed by a copy
    chest.memo.elsewhere.loaded.cache_clear()


def test_complex_numbers_that_differ_in_the_sign_of_a_zero_are_other_calls(c):
    @memoize(c)
    def root(z: complex) -> complex:
        return cmath.sqrt(z)

    for _ in range(3):
        assert root(complex(-1, 0.0)) == 1j
    assert root(complex(-1, -0.0)) == -1j


def test_a_result_of_another_kind_than_the_last_time_is_its_callers_alone(c):
    results: list[Any] = [7, [1], ValueError("late")]

    @memoize(c, on_error="cache")
    def f(x: int) -> Any:
        value = results.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    for _ in range(3):
        assert f(1) == 7
    f.call(1)
    f(1).append(2)
    assert f(1) == [1]
    with pytest.raises(ValueError, match="late"):
        f.call(1)
    with pytest.raises(ValueError, match="late"):
        f(1)
