"""P8, P9, P10: what handles and processes see of one another, and what a failure costs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chest import Chest, errors
from tests.buckets import free_port, make_bucket

pytest.importorskip("obstore", reason="obstore is not installed")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def two(bucket: str) -> Any:
    """Two handles on one place, the second of which asks at each access."""
    with Chest(bucket, trust="any") as one:
        with Chest(bucket, trust="any", max_age=0) as other:
            yield one, other


# -- what others see ---------------------------------------------------------------------


def test_what_one_puts_the_other_gets(two: Any) -> None:
    one, other = two
    one["x"] = np.arange(100_000)
    assert "x" not in other
    one.sync()
    assert "x" in other
    assert list(other) == ["x"]
    assert other["x"].sum() == 4999950000
    one["x"] = "new"
    one.flush()
    assert other["x"] == "new"
    del one["x"]
    assert "x" not in other
    with pytest.raises(KeyError):
        other["x"]
    assert other.get("x") is None
    assert len(other) == 0
    assert other.memory_usage == 0


def test_a_value_in_memory_is_served_until_its_age_or_a_refresh(bucket: str) -> None:
    with Chest(bucket, trust="any", max_age=float("inf")) as patient:
        with Chest(bucket, trust="any") as other:
            patient["x"] = 1
            patient.sync()
            other["x"] = 2
            other.flush()
            assert patient["x"] == 1
            patient.refresh()
            assert patient["x"] == 2


def test_a_value_that_is_still_the_same_does_not_travel_again(two: Any) -> None:
    one, other = two
    one["x"] = np.arange(100_000)
    one.flush()
    first = other["x"]
    loads = other.stats().loads
    assert other["x"] is first
    assert other.stats().loads == loads


def test_a_dirty_value_is_served_and_wins_when_it_is_put(two: Any) -> None:
    one, other = two
    one["x"] = "mine"
    other["x"] = "theirs"
    other.flush()
    assert one["x"] == "mine"
    one.flush()
    assert other["x"] == "mine"


def test_a_value_changed_in_place_is_put_again(two: Any) -> None:
    one, other = two
    one["x"] = [1]
    one.sync()
    one["x"].append(2)
    one.flush()
    assert other["x"] == [1, 2]


def test_a_value_changed_in_place_gives_way_to_a_newer_one(two: Any) -> None:
    one, other = two
    one["x"] = [1]
    one.sync()
    one["x"].append(2)
    other["x"] = ["new"]
    other.flush()
    one.flush()
    assert one["x"] == other["x"] == ["new"]


def test_a_clean_value_is_not_put_again(two: Any) -> None:
    one, other = two
    one["x"] = {"a", "b", "c" * 50}
    one.flush()
    one.update(y=one["x"])
    one.flush()
    writes = one.stats().writes
    assert other["x"] == one["x"]
    one.flush()
    other.flush()
    assert (one.stats().writes, other.stats().writes) == (writes, 0)


def test_large_arrays_come_back_as_views_of_what_was_got(two: Any) -> None:
    one, other = two
    one["x"] = np.arange(1e6)
    one.flush()
    assert not other["x"].flags.writeable
    assert not other["x"].flags.owndata
    assert other["x"].flags.aligned
    with Chest(one.path, trust="any", mapped="copy") as c:
        c["x"][0] = 5
        assert c["x"][0] == 5
    assert other["x"][0] == 5
    with Chest(one.path, trust="any", mapped=False) as c:
        assert c["x"].flags.writeable


def test_the_budget_holds_and_the_largest_go_first(bucket: str) -> None:
    with Chest(bucket, trust="any", available_memory=1_000_000) as c:
        c["small"] = np.zeros(10_000)
        c["large"] = np.zeros(100_000)
        assert set(c.inmem) == {"small"} or set(c.inmem) == {"large", "small"}
        c["more"] = np.ones(40_000)
        assert c.memory_usage <= 1_000_000
        assert "large" not in c.inmem
        c["huge"] = np.ones(200_000)
        assert "huge" not in c.inmem
        assert c["huge"].sum() == 200_000
        assert {key: value.size for key, value in c.items()} == {
            "huge": 200_000,
            "large": 100_000,
            "more": 40_000,
            "small": 10_000,
        }
        assert c.memory_usage <= 1_000_000


def test_the_object_is_a_plain_pickle(bucket: str) -> None:
    import obstore

    with Chest(bucket, trust="any") as c:
        c["x"] = {"a": [1, 2], "b": np.arange(1e5)}
        c.flush()
        data = bytes(obstore.get(c._store._store, "x").bytes())
    assert pickle.loads(data)["a"] == [1, 2]


def test_each_publishes_at_once_and_ttl_ends(two: Any) -> None:
    one, other = two
    one.set("x", "y", ttl=0.5)
    one.set("for ever", 1, ttl=float("inf"))
    assert other["x"] == "y"
    assert sorted(other) == ["for ever", "x"]
    assert other.expires("x") - time.time() < 0.6
    assert other.expires("for ever") is None
    assert other.touch("x", ttl=0.3)
    deadline = other.expires("x")
    assert one["x"] == "y"
    while time.time() <= deadline:
        threading.Event().wait(deadline - time.time() + 0.01)
    one.refresh()  # or for `max_age` the first deadline would count
    for c in (one, other):
        assert "x" not in c
        assert c.get("x") is None
        assert list(c) == ["for ever"]
        assert not c.touch("x", 5)
    assert one.add("x", "anew")
    assert other["x"] == "anew"
    assert list(other) == ["for ever", "x"]


def test_many_at_once(two: Any) -> None:
    one, other = two
    one.set_many({f"k{n}": n for n in range(50)})
    assert other.get_many(["k3", "none", "k1"]) == {"k3": 3, "k1": 1}
    one.set_many([("e", 1)], ttl=1000)
    assert other.expires("e") is not None
    assert other.delete_many([*(f"k{n}" for n in range(40)), "none"]) == 40
    assert len(one) == 11


def test_what_was_popped_leaves_a_mark_that_compaction_removes(two: Any) -> None:
    one, other = two
    one.set_many({"a": 1, "b": 2})
    assert other.pop("a") == 1
    assert list(one) == ["b"]
    assert one.compact() == 1
    assert one.compact() == 0
    assert dict(one) == {"b": 2}


def test_drop_leaves_nothing(bucket: str) -> None:
    import obstore

    c = Chest(bucket, trust="any")
    c.set_many({"a": 1, "b": 2}, ttl=100)
    c.pop("a")
    store = c._store._store
    c.drop()
    assert obstore.list(store).collect() == []
    with pytest.raises(errors.ClosedError):
        c["a"]


# -- exact operations --------------------------------------------------------------------


def _work(address: str, number: int) -> list[Any]:
    with Chest(address, trust="any") as c:
        won = [n for n in range(10) if c.add(f"add{n}", number)]
        for _ in range(25):
            c.incr("count")
            c.transact(lambda t: t.__setitem__("list", [*t.get("list", []), number]))
        got = [c.pop(f"job{n}", None) for n in range(10)]
        return [won, [each for each in got if each is not None]]


def test_processes_lose_no_update_and_share_nothing_twice(bucket: str) -> None:
    with Chest(bucket, trust="any") as c:
        c.set_many({f"job{n}": n for n in range(10)})
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            done = pool.starmap(_work, [(bucket, n) for n in range(4)])
            pool.close()
            pool.join()
        won = sorted(n for each, _ in done for n in each)
        got = sorted(n for _, each in done for n in each)
        assert won == got == [*range(10)]
        assert c["count"] == 100
        assert sorted(c["list"]) == sorted([*range(4)] * 25)
        for number, (mine, _) in enumerate(done):
            assert all(c[f"add{n}"] == number for n in mine)


def test_threads_of_one_handle_lose_no_update(bucket: str) -> None:
    with Chest(bucket, trust="any") as c:

        def work() -> None:
            for _ in range(20):
                c.incr("count")

        threads = [threading.Thread(target=work) for _ in range(5)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert c["count"] == 100


def test_a_transaction_that_raises_changes_nothing(two: Any) -> None:
    one, other = two
    one["x"] = 1

    def fail(t: Any) -> None:
        t["x"] = 2
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        one.transact(fail)
    with pytest.raises(errors.UnsupportedError, match="several keys"):
        one.transact(lambda t: t.update(x=3, y=4))
    one.transact(lambda t: t.pop("x"))
    assert "x" not in one
    assert list(other) == []


def test_edit_changes_a_copy(two: Any) -> None:
    one, other = two
    one["x"] = [1]
    with one.edit("x") as value:
        value.append(2)
        assert one["x"] == [1]
    assert other["x"] == one["x"] == [1, 2]
    with pytest.raises(ZeroDivisionError), one.edit("x") as value:
        value.append(1 / 0)
    assert one["x"] == [1, 2]


def test_counters(two: Any) -> None:
    one, other = two
    assert one.incr("x", 5) == 5
    assert other.incr("x") == 6
    assert one.decr("x", 2) == 4
    one["x"] = 10
    assert one.incr("x") == 11
    with pytest.raises(KeyError):
        one.incr("y", default=None)
    one["text"] = "a"
    with pytest.raises(TypeError, match="no sum"):
        one.incr("text")
    assert one["text"] == "a"


def test_a_store_without_conditions_refuses_what_needs_them(tmp_path: Path) -> None:
    with Chest(f"file://{tmp_path}/place", trust="any") as c:
        assert c.honours == (True, False)
        c["x"] = 1
        c.flush()
        assert c.add("y", 2)
        assert not c.add("y", 3)
        assert c.setdefault("y", 4) == 2
        for use in (
            lambda: c.incr("x"),
            lambda: c.pop("x"),
            lambda: c.popitem(),
            lambda: c.transact(lambda t: t.update(x=2)),
            lambda: c.touch("x", 5),
        ):
            with pytest.raises(errors.UnsupportedError, match="does not honour"):
                use()
        assert dict(c) == {"x": 1, "y": 2}
        del c["x"]
        assert list(c) == ["y"]
        c.drop()
    assert not (tmp_path / "place").exists()


# -- handles -----------------------------------------------------------------------------


def test_a_pickled_handle_has_no_secret(s3_server: str, bucket: str) -> None:
    storage = {
        "endpoint": s3_server,
        "access_key_id": "ID-that-is-mine",
        "secret_access_key": "secret-that-is-mine",
        "client_options": {"allow_http": True, "default_headers": {"x": "secret"}},
    }
    with Chest(bucket, trust="any", storage=storage) as c:
        c["x"] = 1
        travelling = pickle.dumps(c)
        for word in (b"that-is-mine", b"default_headers"):
            assert word not in travelling
        with pickle.loads(travelling) as again:
            assert again["x"] == 1
            assert again._settings.storage["endpoint"] == s3_server


def _options() -> dict[str, Any]:
    return {"endpoint": os.environ["AWS_ENDPOINT_URL"]}


def test_options_may_be_a_function_that_travels_by_name(bucket: str) -> None:
    with Chest(bucket, trust="any", storage=_options) as c:
        c["x"] = 1
        with pickle.loads(pickle.dumps(c)) as again:
            assert again["x"] == 1


def test_a_forked_child_is_told_what_to_do(bucket: str) -> None:
    # What Python itself says about the fork, from 3.12 on, is left out.
    script = """
import os, sys, signal, warnings
from chest import Chest, errors
warnings.filterwarnings("ignore", "This process .* is multi-threaded")
c = Chest(sys.argv[1], trust="any")
c["x"] = 1
c.sync()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    count = 0
    for use in (lambda: c.get("y"), lambda: c.__setitem__("y", 1), lambda: len(c),
                lambda: Chest(sys.argv[1], trust="any")):
        try:
            use()
        except errors.UnsupportedError as error:
            assert "spawn" in str(error)
            count += 1
    sys.exit(count)
_, status = os.waitpid(pid, 0)
c["y"] = 2
c.close()
print(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, bucket],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert (done.stdout, done.stderr) == ("4\n", "")
    with Chest(bucket, trust="any") as c:
        assert dict(c) == {"x": 1, "y": 2}


def test_what_is_dirty_is_put_at_the_end_of_the_process(bucket: str) -> None:
    script = """
import sys
from chest import Chest
c = Chest(sys.argv[1], trust="any")
for n in range(20):
    c[n] = [n]
c.sync()
c[3].append("changed")
c["last"] = 1
"""
    subprocess.run([sys.executable, "-c", script, bucket], check=True, cwd=ROOT)
    with Chest(bucket, trust="any") as c:
        assert (len(c), c["last"], c[3]) == (21, 1, [3, "changed"])


def test_a_writer_that_is_killed_leaves_each_key_old_or_new(bucket: str) -> None:
    script = """
import sys
import numpy as np
from chest import Chest
c = Chest(sys.argv[1], trust="any")
for round in range(1, 1000):
    for n in range(12):
        c[n] = np.full(30_000 + 200_000 * (n == 5), round)
    print(round, flush=True)
    c.flush()
"""
    with Chest(bucket, trust="any") as c:
        for _ in range(3):
            writer = subprocess.Popen(
                [sys.executable, "-c", script, bucket], stdout=subprocess.PIPE, cwd=ROOT
            )
            assert writer.stdout is not None
            for _ in range(3):
                last = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            last = max([last, *map(int, writer.stdout.read().split())])
            writer.stdout.close()
            assert c.verify() == []
            assert len(c) == 12
            for value in c.values():
                assert set(value.tolist()) <= {*range(last - 2, last + 1)}
                assert len(set(value.tolist())) == 1
            c["goes on"] = 1
            c.flush()
            del c["goes on"]


# -- failures ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["s3://no-such-bucket/x", "s3://no-such-bucket"])
def test_a_bucket_that_is_not_there_is_told_at_once(s3_server: str, place: str) -> None:
    with pytest.raises(errors.StoreError, match="no such bucket"):
        Chest(place, trust="any")


def test_no_credentials_are_told_in_seconds(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # The machine's own would be asked for minutes: the test's time would be over.
    with pytest.raises(errors.StoreError, match="credentials"):
        Chest(bucket, trust="any", timeout=2)


def test_a_server_that_is_down_is_told_in_seconds_and_the_value_kept(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends while a chest is in use, and comes back."""
    import obstore

    make_bucket(s3_server, "down")
    with Chest("s3://down/x", trust="any", timeout=2, available_memory=10_000) as c:
        c["before"] = "here"
        c.flush()
        opened = c._store._store
        retry = opened.retry_config
        assert retry["retry_timeout"] == timedelta(seconds=2)
        assert retry["backoff"]["max_backoff"] <= timedelta(seconds=2)
        down = f"http://127.0.0.1:{free_port()}"
        c._store._store = obstore.store.from_url(
            "s3://down/x",
            endpoint=down,
            retry_config=retry,
            client_options={"allow_http": True},
        )
        with pytest.raises(errors.StoreError, match="does not answer"):
            c["before"]
        c["x"] = "kept"
        with pytest.raises(errors.StoreError, match="does not answer"):
            c.flush()
        with pytest.warns(errors.SpillWarning, match="stays in memory"):
            c["big"] = "b" * 20_000
        with pytest.raises(errors.StoreError):
            Chest("s3://down/x", trust="any", storage={"endpoint": down}, timeout=2)
        assert (c["x"], len(c["big"])) == ("kept", 20_000)
        c._store._store = opened
        c.flush()
        assert sorted(c) == ["before", "big", "x"]


def test_a_value_that_cannot_be_written_stays_and_the_rest_is_put(two: Any) -> None:
    one, other = two
    one["a"], one["bad"], one["b"] = 1, threading.Lock(), 2
    with pytest.raises(errors.EncodingError):
        one.flush()
    assert dict(other) == {"a": 1, "b": 2}
    assert "bad" in one.inmem
    del one["bad"]


def test_readonly_writes_nothing(bucket: str) -> None:
    with Chest(bucket, trust="any") as c:
        c["x"] = [1]
    with Chest(bucket, trust="any", readonly=True) as c:
        assert c["x"] == [1]
        c["x"].append(2)
        for use in (
            lambda: c.__setitem__("y", 1),
            lambda: c.__delitem__("x"),
            lambda: c.pop("x"),
            lambda: c.clear(),
            lambda: c.incr("n"),
            lambda: c.drop(),
        ):
            with pytest.raises(errors.ReadOnlyError):
                use()
    with Chest(bucket, trust="any") as c:
        assert dict(c) == {"x": [1]}


# -- trust -------------------------------------------------------------------------------

KEY = b"0123456789abcdef"


class Evil:
    def __reduce__(self) -> Any:
        return os.putenv, ("EVIL", "1")


def test_pickles_need_a_word_of_trust(bucket: str) -> None:
    with pytest.raises(errors.UntrustedError) as caught:
        Chest(bucket)
    for way in ("sign_key=", "trust='data'", "trust='any'"):
        assert way in str(caught.value)


def test_data_runs_no_pickle(bucket: str) -> None:
    with Chest(bucket, trust="any") as c:
        c["evil"] = Evil()
    with Chest(bucket, trust="data") as c:
        c["x"] = [1, "a", np.arange(3)]
        with pytest.raises(errors.EncodingError):
            c["evil too"] = Evil()
        c.flush()
        assert c["x"][1] == "a"
        with pytest.raises(errors.UntrustedError):
            c["evil"]
        with pytest.raises(errors.KeyEncodingError, match="trust='any'"):
            c[len] = 1


def test_a_signed_object_is_checked_before_anything_is_read(bucket: str) -> None:
    import obstore

    with Chest(bucket, sign_key=KEY) as c:
        c["x"] = {"a": 1}
        c["y"] = np.arange(1e5)
        c.flush()
        assert c["x"] == {"a": 1}
        assert c.incr("n") == 1
        store = c._store._store
        c.flush()
        good = bytes(obstore.get(store, "y").bytes())
        for at in (0, 100, len(good) // 2, len(good) - 60, len(good) - 20):
            bad = bytearray(good)
            bad[at] ^= 1
            obstore.put(store, "y", bytes(bad))
            with pytest.raises(errors.SignatureError):
                c["y"]
            assert [each.key for each in c.verify()] == ["y"]
        obstore.put(store, "y", bytes(obstore.get(store, "x").bytes()))
        with pytest.raises(errors.CorruptValueError, match="another key"):
            c["y"]
        with pytest.raises(TypeError, match="sign_key"):
            pickle.dumps(c)
    with Chest(bucket, trust="any") as c:
        with pytest.raises(errors.SignatureError, match="sign_key="):
            c["x"]
        c["forged"] = Evil()
    with Chest(bucket, sign_key=KEY) as c:
        with pytest.raises(errors.SignatureError, match="no signature"):
            c["forged"]
    with Chest(bucket, sign_key=b"another key of 16") as c:
        with pytest.raises(errors.SignatureError):
            c["x"]
    assert "EVIL" not in os.environ


def test_damage_is_told_with_the_name_of_the_key(bucket: str) -> None:
    import obstore

    with Chest(bucket, trust="any", max_age=0) as c:
        c["x"] = np.arange(1e5)
        c["y"] = 1
        c.flush()
        store = c._store._store
        good = bytes(obstore.get(store, "x").bytes())
        for bad in (good[:-1], good[: len(good) // 2], b"x" * 100, good[5:]):
            obstore.put(store, "x", bad)
            with pytest.raises(errors.CorruptValueError, match="'x'"):
                c["x"]
            with pytest.raises(errors.CorruptValueError):
                c.get("x")
        for at in range(0, len(good), len(good) // 7):
            bad = bytearray(good)
            bad[at] ^= 1
            obstore.put(store, "x", bytes(bad))
            with pytest.raises(errors.CorruptValueError):
                c["x"]
        assert [each.key for each in c.verify()] == ["x"]
        newer = good[:-1] + b"9"
        obstore.put(store, "x", newer)
        with pytest.raises(errors.VersionError, match="upgrade"):
            c["x"]
        assert c["y"] == 1
        c["x"] = "mended"
        c.flush()
        assert c["x"] == "mended"


# -- conditions that a store does not honour ---------------------------------------------


def test_a_store_that_ignores_conditions_is_found_out(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    put = obstore.put
    monkeypatch.setattr(
        obstore, "put", lambda store, name, data, mode=None: put(store, name, data)
    )
    with Chest(bucket, trust="any") as c:
        c["x"] = 1
        assert c.honours == (False, False)
        for use in (
            lambda: c.add("y", 1),
            lambda: c.setdefault("y", 1),
            lambda: c.incr("x"),
            lambda: c.pop("x"),
        ):
            with pytest.raises(errors.UnsupportedError, match="does not honour"):
                use()
        c.flush()
        assert dict(c) == {"x": 1}


def test_a_store_that_wants_etags_without_quotes_gets_them_so(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    put = obstore.put

    def strict(store: Any, name: str, data: Any, mode: Any = None) -> Any:
        if isinstance(mode, dict):
            if mode["e_tag"].startswith('"'):
                raise obstore.exceptions.PreconditionError("quoted")
            mode = {"e_tag": f'"{mode["e_tag"]}"'}
        return put(store, name, data, mode=mode)

    monkeypatch.setattr(obstore, "put", strict)
    with Chest(bucket, trust="any") as c:
        assert c.honours == (True, True)
        assert (c.incr("n"), c.incr("n"), c.pop("n")) == (1, 2, 2)


@pytest.mark.parametrize("operation", ["add", "incr", "pop"])
def test_a_put_that_was_done_though_the_answer_was_lost_counts_once(
    bucket: str, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """The store did it, the connection broke, and asked again it said no."""
    import obstore

    with Chest(bucket, trust="any") as c:
        c.set_many({"incr": 5, "pop": 7})
        assert c.honours == (True, True)
        put, lost = obstore.put, []

        def unlucky(store: Any, name: str, data: Any, mode: Any = None) -> Any:
            done = put(store, name, data, mode=mode)
            if mode is not None and not lost:
                lost.append(name)
                raise obstore.exceptions.PreconditionError("not the same any more")
            return done

        monkeypatch.setattr(obstore, "put", unlucky)
        if operation == "add":
            assert c.add("add", 1)
        elif operation == "incr":
            assert c.incr("incr") == 6
        else:
            assert c.pop("pop") == 7
        assert lost == [operation]
        c.refresh()
        assert c.get(operation) == {"add": 1, "incr": 6, "pop": None}[operation]


def test_spilling_never_waits_for_the_key_that_is_changed() -> None:
    """More keys than locks, and no room: whoever changes one spills many others."""
    with Chest("memory://", available_memory=20_000) as c:

        def work(number: int) -> None:
            for n in range(150):
                c[number, n, "dirty"] = [n] * 50
                c.set((number, n), [n] * 50, ttl=1000)
                c.incr(("count", n))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert c.memory_usage <= 20_000
        assert {c["count", n] for n in range(150)} == {4}
        assert len(c) == 4 * 2 * 150 + 150
