"""P10: whatever the system refuses, and when, the value stays and the chest goes on."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chest import Chest, errors
from tests.failures import faults, scenes

ERRNOS = ["ENOSPC", "EIO", "EMFILE", "EACCES", "EDQUOT", "EROFS", "ENOLCK"]
CALLS = faults.WRITES | faults.READS
Operation = Callable[[Chest], object]


def put(c: Chest) -> None:
    c["a"] = "newer"
    c["new"] = scenes.BIG
    c.sync()


def flush(c: Chest) -> None:
    c["big"] = scenes.BIG
    c.flush()


def spill(c: Chest) -> None:
    c.available_memory = 9_000
    c["new"] = np.arange(1000)
    c["new2"] = np.arange(1000.0)


def delete(c: Chest) -> None:
    del c["one", "two"]


def pop(c: Chest) -> None:
    assert c.pop("a") == [1, "old"]


def setdefault(c: Chest) -> None:
    c.setdefault("new", [5])


def edit(c: Chest) -> None:
    with c.edit("a") as value:
        value.append("edited")


def get(c: Chest) -> None:
    assert scenes.same(c["big"], scenes.OLD["big"])


def pack(c: Chest) -> None:
    c.update(scenes.SMALL)
    c.flush()


def settle(c: Chest) -> None:
    """Two values lie in the log until the flush."""
    c["p0"] = scenes.SMALL["p0"]
    c.sync()
    c["p1"] = scenes.SMALL["p1"]
    c.sync()
    c.flush()


OPERATIONS: dict[str, tuple[Operation, dict[Any, Any]]] = {
    # What each leaves, apart from what was there; None: the key is gone.
    "put": (put, {"a": "newer", "new": scenes.BIG}),
    "flush": (flush, {"big": scenes.BIG}),
    "spill": (spill, {"new": np.arange(1000), "new2": np.arange(1000.0)}),
    "delete": (delete, {("one", "two"): None}),
    "pop": (pop, {"a": None}),
    "setdefault": (setdefault, {"new": [5]}),
    "edit": (edit, {"a": [1, "old", "edited"]}),
    "get": (get, {}),
    "clear": (Chest.clear, dict.fromkeys(scenes.OLD)),
    "compact": (Chest.compact, {}),
    "pack": (pack, scenes.SMALL),
    "settle": (settle, {key: scenes.SMALL[key] for key in ("p0", "p1")}),
    "update": (lambda c: c.update(other), {"a": "theirs", "more": scenes.BIG}),
}
other: Any = None


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    global other
    folder = tmp_path_factory.mktemp("templates")
    with Chest({"a": "theirs", "more": scenes.BIG}, folder / "other") as other:
        other.sync()
        yield scenes.prepare(folder / "c")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def after(name: str) -> scenes.State:
    """What an operation leaves when nothing goes wrong."""
    state = {**scenes.OLD, **OPERATIONS[name][1]}
    return {key: value for key, value in state.items() if value is not None}


def check(error: BaseException, number: int, path: str) -> None:
    assert isinstance(error, errors.StoreError), repr(error)
    assert error.errno == number
    assert error.path is not None
    assert error.path.startswith(os.path.dirname(path))
    assert os.strerror(number) in str(error)


def fault_at(
    name: str, template: Path, path: str, number: int, first: int, forever: bool
) -> bool:
    """One operation with one fault; False when the fault came too late to matter."""
    operation = OPERATIONS[name][0]
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(template, path)
    failed = False
    act = faults.failing(number, first, forever=forever)
    c = Chest(path)
    before = open_descriptors()
    with warnings.catch_warnings(), faults.acting(act, CALLS) as system:
        warnings.simplefilter("ignore", errors.SpillWarning)
        try:
            operation(c)
        except Exception as error:
            failed = True
            check(error, number, path)
    c._spill.packs.close()  # which stay open on purpose
    assert open_descriptors() == before
    old, new = scenes.OLD, after(name)
    c.available_memory = 1e9
    for key in {*c, *old, *new}:  # the chest is usable, and nothing is half done
        value, states = c.get(key), [new.get(key)]
        if failed:
            states.append(old.get(key))
        assert any(scenes.same(value, state) for state in states), (key, value)
    got = dict(c)
    c["after"] = 1
    c.flush()
    c.compact()
    c.close()
    with Chest(path) as c:
        assert scenes.equal(c, {**got, "after": 1})
        assert c.verify() == []
        assert scenes.files_in(path) == {".keys", *(c.entry(key).name for key in c)}
    return system.count >= first


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for-ever"])
@pytest.mark.parametrize("code", ERRNOS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_refusal_at_any_call_loses_nothing(
    name: str, code: str, forever: bool, template: Path, tmp_path: Path
) -> None:
    path, first = str(tmp_path / "c"), 1
    while fault_at(name, template, path, getattr(errno, code), first, forever):
        first += 1


@pytest.mark.parametrize("code", ERRNOS)
def test_a_refusal_while_opening_says_so_and_changes_nothing(
    code: str, template: Path, tmp_path: Path
) -> None:
    """F3: no permission for ``.keys`` is not an empty chest."""
    number, first = getattr(errno, code), 0
    path = str(shutil.copytree(template, tmp_path / "c"))
    before, files = open_descriptors(), scenes.files_in(path)
    while True:
        first += 1
        act = faults.failing(number, first, forever=False)
        with faults.acting(act, CALLS) as system:
            try:
                c = Chest(path)
            except Exception as error:
                check(error, number, path)
                c = None
        if c is not None:
            assert scenes.equal(c, scenes.OLD)
            c.close()
        assert open_descriptors() == before
        assert scenes.files_in(path) == files
        if system.count < first:
            break
    assert first > 4


def test_a_value_that_cannot_be_spilled_stays_with_a_warning(chest_dir: Path) -> None:
    c = Chest(chest_dir, available_memory=20_000)
    act = faults.failing(errno.ENOSPC, 1, forever=True)
    with faults.acting(act, faults.WRITES):
        with pytest.warns(errors.SpillWarning, match="'x'.*space"):
            c["x"] = np.arange(4000)
        with pytest.warns(errors.SpillWarning):
            c["y"] = np.arange(3000)
        assert np.array_equal(c["x"], np.arange(4000))
        with pytest.raises(errors.StoreError) as caught:
            c.flush()
    assert caught.value.key in ("x", "y")
    assert caught.value.errno == errno.ENOSPC
    c["z"] = np.arange(1000)
    assert c.memory_usage <= c.available_memory
    c.close()
    with Chest(chest_dir) as c:
        assert np.array_equal(c["x"], np.arange(4000))
        assert np.array_equal(c["y"], np.arange(3000))


def test_flush_writes_all_others_before_it_raises(chest_dir: Path) -> None:
    """F13: and a second flush raises again, because the value is still there."""

    class Stubborn:
        def __reduce__(self) -> Any:
            raise RuntimeError("not me")

    c = Chest(chest_dir)
    stubborn = c["bad"] = Stubborn()
    c["worse"] = Stubborn()
    c["good"] = 1
    for _ in range(2):
        with pytest.raises(errors.EncodingError, match="not me") as caught:
            c.flush()
        assert caught.value.key == "bad"
        assert "1 more" in caught.value.__notes__[0]
        assert c["bad"] is stubborn
    assert dict(Chest(chest_dir, readonly=True)) == {"good": 1}
    del c["bad"], c["worse"]
    c.close()
    assert scenes.files_in(chest_dir) == {".keys", "good"}


def test_file_size_limit_is_reported_and_survived(chest_dir: Path) -> None:
    """A real refusal by the kernel, in the middle of a write."""
    c = Chest(chest_dir)
    c["small"] = 1
    c.flush()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        c["big"] = np.arange(20_000)
        with pytest.raises(errors.StoreError) as caught:
            c.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.key == "big"
    assert np.array_equal(c["big"], np.arange(20_000))
    assert scenes.files_in(chest_dir) == {".keys", "small"}
    c.close()
    with Chest(chest_dir) as c:
        assert np.array_equal(c["big"], np.arange(20_000))


def test_short_writes_are_completed(chest_dir: Path) -> None:
    def act(count: int, name: str, real: Any, args: Any, kwargs: Any) -> Any:
        if name in ("write", "pwrite"):
            return real(args[0], memoryview(args[1])[:7], *args[2:])
        if name == "writev":
            first = next(part for part in args[1] if len(part))
            return os.write(args[0], memoryview(first).cast("B")[:1000])
        return real(*args, **kwargs)

    with faults.acting(act, faults.WRITES), Chest(chest_dir) as c:
        c["big"] = np.arange(20_000)
        c["more"] = {"a": b"x" * 70_000}
    with Chest(chest_dir) as c:
        assert c.verify() == []
        assert np.array_equal(c["big"], np.arange(20_000))
        assert c["more"] == {"a": b"x" * 70_000}


@pytest.mark.root
def test_full_disk_is_reported_and_survived(tmp_path: Path) -> None:
    """R14: a tmpfs of 1 MiB, filled, then freed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = f"size=1m,mode=700,uid={os.getuid()}"
    assert os.system(f"mount -t tmpfs -o {options} none {disk}") == 0
    try:
        c = Chest(disk / "c")
        c["small"] = [1]
        c.flush()
        filler = disk / "filler"
        filler.write_bytes(bytes(900_000))
        for number in range(3):
            c[number] = np.full(20_000, number)
        with pytest.raises(errors.StoreError) as caught:
            c.flush()
        assert caught.value.errno == errno.ENOSPC
        filler.unlink()
        c.close()
        with Chest(disk / "c") as c:
            assert c["small"] == [1]
            for number in range(3):
                assert np.array_equal(c[number], np.full(20_000, number))
    finally:
        assert os.system(f"umount {disk}") == 0
