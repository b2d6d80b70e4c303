"""P11: what somebody else could have written does not run; signed chests; read-only."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chest import Chest, errors
from tests.failures import faults, scenes

SECRET = b"a key of 32 bytes, just for this"


class Bomb:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code-has-run"


@pytest.fixture
def planted(chest_dir: Path, mark: Path) -> Path:
    """A chest with a pickle in it that runs code, as a key's value and as a key."""
    with Chest(chest_dir) as c:
        c["good"] = [1]
        c["bomb"] = Bomb(mark)
    return chest_dir


OPERATIONS: dict[str, Callable[[Chest], object]] = {
    "len": len,
    "iter": list,
    "in": lambda c: "bomb" in c,
    "entry": lambda c: c.entry("bomb"),
    "repr": repr,
    "stats": Chest.stats,
    "verify": Chest.verify,
    "get": lambda c: c.get("bomb"),
    "items": lambda c: list(c.items()),
    "prefetch": lambda c: c.prefetch(["bomb"]),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("writable", ["folder", "file"])
def test_planted_pickles_do_not_run(
    planted: Path, mark: Path, writable: str, name: str
) -> None:
    if writable == "folder":
        planted.chmod(0o777)
        with pytest.raises(errors.UntrustedError, match="chmod go-w"):
            Chest(planted)
        options = {"readonly": True}
    else:
        (planted / "bomb").chmod(0o666)
        options = {}
    with Chest(planted, **options) as c:
        try:
            OPERATIONS[name](c)
        except errors.UntrustedError as error:
            message = str(error)
            assert "trust='any'" in message
            assert "trust='data'" in message
            assert name in ("get", "items", "prefetch")
        else:
            assert name not in ("get", "items", "prefetch")
        if writable == "file":
            c.compact()
            assert c["good"] == [1]
    assert not mark.exists()


def test_a_world_writable_folder_is_refused_before_data_goes_in(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(errors.UntrustedError, match="777") as caught:
        Chest(tmp_path)
    assert caught.value.path == str(tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_owner_may_take_the_risk(planted: Path, mark: Path) -> None:
    planted.chmod(0o777)
    with Chest(planted, trust="any") as c:
        assert c["good"] == [1]
        c.get("bomb")
    assert mark.exists()


class OddKey:
    """A key that is pickled, and whose pickle leaves a mark."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __hash__(self) -> int:
        return hash(self.mark)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OddKey) and self.mark == other.mark

    def __reduce__(self) -> Any:
        return _made, (self.mark,)


def _made(mark: str) -> OddKey:
    Path(mark).touch()
    return OddKey(mark)


def test_pickled_keys_are_not_loaded_from_an_open_folder(
    chest_dir: Path, mark: Path
) -> None:
    with Chest(chest_dir) as c:
        c[OddKey(str(mark))] = 1
        c["plain"] = 2
    mark.unlink()  # who sets a key sees whether it comes back equal
    chest_dir.chmod(0o777)
    with Chest(chest_dir, readonly=True) as c:
        assert len(c) == 2
        assert [key for key in c if isinstance(key, str)] == ["plain"]
        assert "pickled key" in repr(list(c))
    assert not mark.exists()
    chest_dir.chmod(0o700)
    with Chest(chest_dir) as c:
        assert OddKey(str(mark)) in c
    assert mark.exists()


def test_a_planted_key_list_of_chest_1x_does_not_run(
    chest_dir: Path, mark: Path
) -> None:
    (chest_dir / ".keys").write_bytes(pickle.dumps(Bomb(mark), protocol=1))
    chest_dir.chmod(0o777)
    for options in ({"readonly": True}, {"trust": "data"}):
        with pytest.raises(errors.ChestError):
            Chest(chest_dir, **options)
    assert not mark.exists()


def test_links_are_not_followed_out_of_the_folder(
    planted: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    shutil.move(planted / "good", outside)
    (planted / "good").symlink_to(outside)
    with Chest(planted) as c:
        with pytest.raises(errors.CorruptValueError, match="not a plain file"):
            c["good"]
        c["good"] = 2
        c.flush()
        assert c["good"] == 2
    assert pickle.loads(outside.read_bytes()) == [1]


# -- trust="data" ----------------------------------------------------------------------

PLAIN = {
    "list": [1, 2.5, None, "x", b"y", (1, 2), {"a": {3}}],
    "array": np.arange(30_000).reshape(100, 300),
}


def test_data_chests_never_pickle(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exploding(AssertionError):
        pass

    def explode(*args: object, **kwargs: object) -> None:
        raise Exploding

    for name in ("dumps", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, explode)
    for name in ("Pickle5.dump", "Pickle5.load", "unpickle"):
        monkeypatch.setattr(f"chest.formats.pickle5.{name}", explode)
    with Chest(PLAIN, chest_dir, trust="data") as c:
        c.flush()
        assert scenes.equal(c, PLAIN)
        c["list"].append(1)
        c.flush()
    chest_dir.chmod(0o777)
    with Chest(chest_dir, trust="data") as c:
        assert c["list"] == [*PLAIN["list"], 1]
        assert c.verify() == []
        with pytest.raises(errors.EncodingError):
            c["no"] = object()
        assert "no" not in c


def test_data_chests_refuse_pickles_that_are_there(planted: Path, mark: Path) -> None:
    with Chest(planted, trust="data") as c:
        for key in c:
            with pytest.raises(errors.UntrustedError, match="trust='data'"):
                c[key]
        with pytest.raises(ValueError, match="trust='data'"):
            c.set("x", 1, format="pickle")
        c["good"] = [2]
        c.flush()
        assert c["good"] == [2]
    assert not mark.exists()


# -- readonly --------------------------------------------------------------------------


def snapshot_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    paths = [folder, *folder.rglob("*")]
    stats = {str(path): path.stat() for path in paths}
    return {name: (s.st_mtime_ns, s.st_size, s.st_ino) for name, s in stats.items()}


def test_readonly_writes_nothing(chest_dir: Path) -> None:
    scenes.prepare(chest_dir)
    with open(chest_dir / ".keys", "ab") as log:
        log.write(b"torn")
    (chest_dir / ".tmp-dead").write_bytes(b"left by the dead")
    before = snapshot_of(chest_dir)
    c = Chest(chest_dir, readonly=True, available_memory=10_000)
    assert scenes.equal(c, scenes.OLD)
    assert c.verify() == []
    c["a"].append("changed in place")
    for change in (
        lambda: c.__setitem__("x", 1),
        lambda: c.__delitem__("a"),
        lambda: c.pop("a"),
        lambda: c.setdefault("x", 1),
        lambda: c.update(x=1),
        c.clear,
        c.compact,
        c.drop,
        c.popitem,
    ):
        with pytest.raises(errors.ReadOnlyError) as caught:
            change()
        assert caught.value.path == str(chest_dir)
    with pytest.raises(errors.ReadOnlyError), c.edit("a"):
        pass
    assert "x" not in c
    c.close()
    assert snapshot_of(chest_dir) == before


def test_readonly_needs_no_permission_to_write() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as top:  # where others may look in
        folder = scenes.prepare(Path(top, "c"))
        log = Path(top, "error")
        log.touch()
        log.chmod(0o666)
        for path in [*folder.rglob("*"), folder, Path(top)]:
            path.chmod(0o555 if path.is_dir() else 0o444)

        def read() -> None:
            if os.getuid() == 0:  # whom no mode stops
                os.setgid(65534)
                os.setuid(65534)
            with pytest.raises(PermissionError):
                (folder / "new").touch()
            with Chest(folder, readonly=True) as c:
                assert scenes.equal(c, scenes.OLD)

        try:
            assert faults.in_child(read, log) == 0, log.read_text()
        finally:
            for path in [Path(top), *folder.rglob("*"), folder]:
                path.chmod(0o700)


def test_a_folder_without_a_chest_is_not_made_into_one_readonly(tmp_path: Path) -> None:
    with pytest.raises(errors.ChestError, match="not a chest"):
        Chest(tmp_path, readonly=True)
    with pytest.raises(errors.StoreError):
        Chest(tmp_path / "nothing", readonly=True)
    assert os.listdir(tmp_path) == []


# -- modes -----------------------------------------------------------------------------


def test_what_is_made_is_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with Chest({"x": 1, ("a", "b"): 2}, tmp_path / "c"):
            pass
        with Chest({"x": 1}) as temporary:
            temporary.flush()
            check_private(Path(temporary.path))
    finally:
        os.umask(old)
    check_private(tmp_path / "c")


def check_private(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_the_umask_decides_when_it_is_asked(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with Chest({"x": 1}, tmp_path / "c", umask=True):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "c" / "x").stat().st_mode) == 0o640


# -- signed ----------------------------------------------------------------------------


@pytest.fixture
def signed(chest_dir: Path) -> Path:
    with Chest({"a": [1], "b": [2]}, chest_dir, sign_key=SECRET) as c:
        c.sync()
        c["gone"] = np.arange(20_000)
        c.sync()
        del c["gone"]
    return chest_dir


def no_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: object, **kwargs: object) -> None:
        raise AssertionError("parsed before the signature was checked")

    monkeypatch.setattr("chest.formats.pickle5.unpickle", explode)


def test_a_signed_chest_reads_back(signed: Path) -> None:
    with Chest(signed, sign_key=SECRET) as c:
        assert dict(c) == {"a": [1], "b": [2]}
        assert c.verify() == []
        c.compact()
    with Chest(signed, sign_key=lambda: SECRET) as c:
        assert dict(c) == {"a": [1], "b": [2]}


@pytest.mark.parametrize("place", [0, 10, 30, -40, -1])
def test_a_changed_file_is_noticed_before_it_is_parsed(
    signed: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray((signed / "a").read_bytes())
    data[place] ^= 1
    (signed / "a").write_bytes(data)
    with Chest(signed, sign_key=SECRET) as c:
        no_parsing(monkeypatch)
        with pytest.raises(errors.SignatureError) as caught:
            c["a"]
        assert caught.value.key == "a"


def test_a_swapped_file_is_noticed(signed: Path) -> None:
    shutil.copy(signed / "b", signed / "a")
    with Chest(signed, sign_key=SECRET) as c:
        with pytest.raises(errors.SignatureError):
            c["a"]
        assert c["b"] == [2]


def test_a_forged_record_is_refused(signed: Path) -> None:
    """A record of an unsigned chest, and one moved to another place in the log."""
    manifest = signed / ".keys"
    good = manifest.read_bytes().splitlines(keepends=True)
    for bad in (
        [*good, good[1]],
        [good[0], good[2], good[1], *good[3:]],
        [good[0], *good[2:]],
        [*good[:2], bytes([*good[2][:-4], good[2][-4] ^ 1, *good[2][-3:]]), *good[3:]],
    ):
        manifest.write_bytes(b"".join(bad))
        with pytest.raises(errors.CorruptError):
            Chest(signed, sign_key=SECRET)


@pytest.mark.parametrize("flip", [1, 0x20])
def test_any_flipped_byte_of_a_signed_manifest_is_refused(
    signed: Path, flip: int
) -> None:
    manifest = signed / ".keys"
    good = manifest.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= flip
        manifest.write_bytes(bad)
        try:
            c = Chest(signed, sign_key=SECRET, readonly=True)
        except (errors.CorruptError, errors.VersionError):
            continue
        assert dict(c) == {"a": [1], "b": [2]}, place
        c.close()


@pytest.mark.parametrize("key", [b"another key of 32 bytes, for this", None])
def test_the_wrong_key_opens_nothing(signed: Path, key: bytes | None) -> None:
    with pytest.raises(errors.SignatureError):
        Chest(signed, sign_key=key)


def test_an_unsigned_chest_is_refused_with_a_key(chest_dir: Path) -> None:
    with Chest({"a": 1}, chest_dir):
        pass
    with pytest.raises(errors.SignatureError, match="sign_key"):
        Chest(chest_dir, sign_key=SECRET)


def test_the_key_is_stored_nowhere(signed: Path) -> None:
    for path in signed.rglob("*"):
        assert SECRET not in path.read_bytes()
        assert SECRET.hex().encode() not in path.read_bytes()
    with Chest(signed, sign_key=SECRET) as c:
        with pytest.raises(TypeError, match="env:NAME"):
            pickle.dumps(c)


def test_a_signed_handle_travels_without_its_key(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHEST_TEST_KEY", SECRET.decode())
    with Chest(signed, sign_key="env:CHEST_TEST_KEY") as c:
        data = pickle.dumps(c)
        assert SECRET not in data
        with pickle.loads(data) as again:
            assert again["a"] == [1]


def test_a_planted_key_list_of_0_2_3_is_named_as_untrusted(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".keys").write_bytes(pickle.dumps([("x", "x")], protocol=1))
    (tmp_path / "c").chmod(0o777)
    with pytest.raises(errors.UntrustedError, match=r"0\.2\.3"):
        Chest(tmp_path / "c", readonly=True)
