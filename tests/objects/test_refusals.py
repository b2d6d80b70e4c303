"""P10: addresses, names and stores that refuse, and what an error says."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chest import Chest, DurableQueue, Ordered, errors
from chest.objects.naming import key_of, name_of
from chest.settings import Settings
from tests.buckets import BUCKET

obstore = pytest.importorskip("obstore", reason="obstore is not installed")

ROOT = Path(__file__).parents[2]
_numbers = itertools.count()


@pytest.fixture
def c() -> Iterator[Any]:
    with Chest(f"memory://refusing-{next(_numbers)}") as chest:
        yield chest
        chest.drop()


def down(*args: Any, **options: Any) -> Any:
    raise obstore.exceptions.GenericError("HTTP error: error sending request")


# -- addresses and names -----------------------------------------------------------------


@pytest.mark.parametrize("address", ["s3://b/x#1", "memory://x?y=1", "file:///x#y"])
def test_an_address_that_would_lose_its_end_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="passed over"):
        Chest(address, trust="any")


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="storage=") as caught:
        Chest("s3://id:hush@bucket/x", trust="any")
    assert "hush" not in str(caught.value)


def test_an_address_that_pathlib_spoiled_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="pathlib"):
        Chest(Path("s3://bucket/x"))
    assert os.listdir(tmp_path) == []


def test_secrets_are_in_no_repr_of_the_options() -> None:
    shown = repr(
        Settings(sign_key=b"hush" * 4, storage={"aws_secret_access_key": "x1"})
    )
    assert "hush" not in shown
    assert "x1" not in shown


@pytest.mark.parametrize("end", [".", "..", ".x", "...", "./x", "!", "é"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_long_key_may_end_like_a_folder(c: Any, end: str, folder: bool) -> None:
    text = "a" * (199 if folder else 200) + end
    key: Any = (text, "x") if folder else text
    c[key] = 1
    c["y"] = 2
    c.flush()
    assert c[key] == 1
    assert set(c) == {key, "y"}
    assert key_of(name_of(key)) == key


def test_a_copy_stays_in_its_own_folder(
    c: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address ends at ``#``: it lay in a neighbour's folder, and took that away."""
    neighbour, own = tmp_path / "a", tmp_path / "a#1%20"
    neighbour.mkdir()
    own.mkdir()
    (neighbour / "x").write_text("theirs")
    monkeypatch.setattr("tempfile.tempdir", str(own))
    c["x"] = 1
    with c.copy() as copy:
        copy.flush()
        assert len(os.listdir(own)) == 1
        assert dict(copy) == {"x": 1}
    assert os.listdir(own) == []
    assert (neighbour / "x").read_text() == "theirs"


def test_a_name_that_no_listing_takes_is_told_with_the_way_out(
    s3_server: str, bucket: str
) -> None:
    url = f"{s3_server}/{BUCKET}/{bucket.removeprefix(f's3://{BUCKET}/')}//x"
    urllib.request.urlopen(urllib.request.Request(url, b"", method="PUT")).close()
    with Chest(bucket, trust="any") as c:
        with pytest.raises(errors.StoreError, match="prefix of the chest's own"):
            len(c)


def test_views_and_arrays_say_the_way_out(c: Any) -> None:
    for use in (
        lambda: Ordered(c),
        lambda: DurableQueue(c),
        lambda: c.zarr("x"),
        lambda: c.array("x"),
        lambda: c.create("x", 3),
        lambda: c.store("x", [1]),
        lambda: c.set("x", 1, format="zarr"),
    ):
        with pytest.raises(errors.UnsupportedError, match=r"Chest\('folder'\)"):
            use()
    with pytest.raises(errors.UnsupportedError, match="update"):
        c.snapshot("folder")


# -- a store that does not answer --------------------------------------------------------


def test_an_error_of_the_store_names_the_key(
    c: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    c["x"] = 1
    with monkeypatch.context() as patch:
        for request in ("get", "put", "head"):
            patch.setattr(obstore, request, down)
        for use in (
            c.flush,
            lambda: c["y"],
            lambda: "y" in c,
            lambda: c.incr("y"),
            lambda: c.pop("y"),
            lambda: c.set("y", 1, ttl=5),
            lambda: c.__delitem__("y"),
            lambda: c.transact(lambda t: t["y"]),
        ):
            with pytest.raises(errors.StoreError, match="does not answer") as caught:
                use()
            assert caught.value.key == ("x" if use == c.flush else "y")
            assert str(caught.value.path).startswith(c.path)


def test_a_flush_does_not_ask_again_for_each_value_where_nobody_answers(
    c: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it would wait for as long as timeout= says."""
    asked = []
    for number in range(200):
        c[number] = [number]
    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put", lambda *args, **_: asked.append(1) or down())
        with pytest.raises(errors.StoreError, match="does not answer"):
            c.flush()
    assert len(asked) < 50
    assert len(c.inmem) == 200
    c.flush()
    assert len(c) == 200


def test_many_values_with_a_deadline_are_given_up_where_nobody_answers(
    c: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    c.set("x", 1, ttl=100)
    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put", lambda *args, **_: asked.append(1) or down())
        with pytest.raises(errors.StoreError, match="does not answer"):
            c.set_many(dict.fromkeys(range(200), 1), ttl=100)
    assert len(asked) < 50
    assert list(c) == ["x"]


def test_a_key_is_asked_for_once_where_nobody_answers(
    c: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    for request in ("get", "head"):
        monkeypatch.setattr(
            obstore, request, lambda *args, **_: asked.append(1) or down()
        )
    with pytest.raises(errors.StoreError):
        assert "x" in c
    assert asked == [1]


def test_a_large_put_may_take_longer_than_an_answer(bucket: str) -> None:
    """The clock for the answer runs while the body is sent."""
    with Chest(bucket, trust="any", timeout=3) as c:
        small, large = (c._store._for(bytes(size)) for size in (1000, 1_000_000))
        assert small.client_options["read_timeout"] == "10s"
        assert large.client_options["read_timeout"] == "5m"


def test_what_is_missing_keeps_no_other_object_from_being_deleted(
    c: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = obstore.delete

    def strict(store: Any, names: Any) -> None:
        for name in [names] if isinstance(names, str) else names:
            obstore.head(store, name)
            real(store, name)

    c.set_many({"x": 1, "y": 2})
    monkeypatch.setattr(obstore, "delete", strict)
    c._store.delete(["a", "x", "b", "y"])
    assert len(c) == 0


def test_a_readonly_handle_puts_no_probe(c: Any) -> None:
    with Chest(c.path, readonly=True) as reader:
        with pytest.raises(errors.ReadOnlyError):
            _ = reader.honours


# -- the end of a process ----------------------------------------------------------------


def run(script: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *args],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.stderr == ""
    return done.stdout


def test_a_forked_child_can_close_what_it_inherited(tmp_path: Path) -> None:
    script = """
import os, sys, signal
from chest import Chest
with Chest(sys.argv[1], trust="any") as c:
    c["clean"] = [1]
    c.sync()
    c["dirty"] = [2]
    if os.fork() == 0:
        signal.alarm(20)
    else:
        print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    address = f"file://{tmp_path}"
    assert run(script, address) == "0\n"
    with Chest(address, trust="any") as c:
        assert dict(c) == {"clean": [1], "dirty": [2]}


def test_flush_goes_on_where_no_thread_can_be_started_any_more(tmp_path: Path) -> None:
    script = """
import atexit, sys
from chest import Chest
c = Chest(sys.argv[1], trust="any")
atexit.register(lambda: (c.flush(), print(len(c.inmem))))
c["x"], c["y"] = 1, 2
"""
    assert run(script, f"file://{tmp_path}") == "0\n"
