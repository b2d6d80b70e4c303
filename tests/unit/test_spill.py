"""The spill tier: write, publish, read, and what a failure leaves (S1, S2)."""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chest import errors, system
from chest.folder import Folder
from chest.index import AnyEntry
from chest.opening import open_tier
from chest.settings import Settings
from chest.small import SLOW_NBYTES
from chest.spill import Job, SpillTier


@pytest.fixture
def tier(chest_dir: Path) -> Iterator[SpillTier]:
    made = open_tier(str(chest_dir), Settings())
    yield made
    made.close()
    made.close()


def job(key: str, value: Any, nbytes: int = 100) -> Job:
    return Job(key, value, 1, nbytes, 0.0, "pickle", None)


def put(tier: SpillTier, key: str, value: Any) -> None:
    written = tier.encode(job(key, value))
    with tier.exclusive():
        replaced = tier.publish([written])
    tier.delete(replaced)


def live(tier: SpillTier, keys: str) -> dict[Hashable, AnyEntry]:
    return {key: tier.manifest.index.entries[key] for key in keys}


def files(folder: Path) -> set[str]:
    return set(os.listdir(folder)) - {".keys"}


def test_what_was_published_reads_back(tier: SpillTier, chest_dir: Path) -> None:
    put(tier, "x", [1, 2])
    entry = tier.manifest.index.get("x")
    assert entry is not None
    assert tier.read("x", entry, "r").value == [1, 2]
    assert tier.verify("x", entry) is None
    assert files(chest_dir) == {"x"}
    assert (tier.written, tier.loaded) == (1, 1)


def test_the_old_file_goes_after_the_new_record(
    tier: SpillTier, chest_dir: Path
) -> None:
    put(tier, "x", 1)
    written = tier.encode(job("x", 2))
    with tier.exclusive():
        assert (chest_dir / "x").exists()
        assert tier.publish([written]) == []
        assert files(chest_dir) == {"x~1"}


def test_a_large_file_loses_its_name_at_once_and_goes_when_the_lock_is_free(
    tier: SpillTier, chest_dir: Path
) -> None:
    put(tier, "x", bytes(SLOW_NBYTES))
    with tier.exclusive():
        [aside] = tier.remove(live(tier, "x"))
    assert aside.startswith(".tmp-")
    assert (chest_dir / aside).stat().st_size > SLOW_NBYTES
    assert not (chest_dir / "x").exists()
    tier.delete([aside])
    assert files(chest_dir) == set()


def test_what_was_not_published_leaves_no_file(
    tier: SpillTier, chest_dir: Path
) -> None:
    written = [tier.encode(job(key, key)) for key in "ab"]
    tier.discard(written)
    with pytest.raises(errors.EncodingError) as caught:
        tier.encode(job("bad", (n for n in ())))
    assert caught.value.key == "bad"
    assert files(chest_dir) == set()


def test_a_failed_batch_publishes_nothing(
    tier: SpillTier, chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = [tier.encode(job(key, key)) for key in "abc"]

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("chest.log.os.pwrite", fail)
        with pytest.raises(errors.StoreError), tier.exclusive():
            tier.publish(written)
    assert files(chest_dir) == set()
    assert len(tier.manifest.index) == 0
    put(tier, "a", 1)
    assert files(chest_dir) == {"a"}


def test_large_batches_are_written_by_two_with_results_in_order(
    tier: SpillTier, chest_dir: Path
) -> None:
    jobs: list[Job] = [job(str(n), np.full(9, n), 1 << 20) for n in range(10)]
    jobs[3] = job("3", (n for n in ()), 1 << 20)
    results = tier.encode_many(jobs)
    assert isinstance(results[3], errors.EncodingError)
    good = [result for result in results if not isinstance(result, Exception)]
    assert [result.key for result in good] == [str(n) for n in range(10) if n != 3]
    tier.discard(good)
    assert files(chest_dir) == set()


def test_removal_is_one_record_for_many_keys(tier: SpillTier, chest_dir: Path) -> None:
    for key in "abc":
        put(tier, key, key)
    lines = (chest_dir / ".keys").read_bytes().count(b"\n")
    with tier.exclusive():
        assert tier.remove(live(tier, "ac")) == []
    assert files(chest_dir) == {"b"}
    assert list(tier.manifest.index.entries) == ["b"]
    with tier.exclusive():
        assert tier.remove_all() == []
    assert files(chest_dir) == set()
    assert (chest_dir / ".keys").read_bytes().count(b"\n") == lines + 2


def swept(tier: SpillTier) -> int:
    return tier.sweep(tier.manifest.index.names(), tier.store.listed())


def test_the_sweep_takes_what_the_dead_left(tier: SpillTier, chest_dir: Path) -> None:
    put(tier, "held", 1)
    (chest_dir / "orphan").write_bytes((chest_dir / "held").read_bytes())
    (chest_dir / ".tmp-dead").touch()
    living = tier.encode(job("later", 2))
    with tier.exclusive():
        assert swept(tier) == 2
        assert tier.publish([living]) == []
    assert files(chest_dir) == {"held", "later"}


def test_the_sweep_holds_the_lock_of_a_draft_that_it_removes(
    tier: SpillTier, chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A writer that made it just now waits for its lock, and then sees that it is gone.
    (chest_dir / ".tmp-dead").touch()
    unlink, free = Folder.unlink, []

    def watched(home: Folder, name: str, *, missing_ok: bool = False) -> None:
        fd = home.open(name)
        free.append(system.try_lock(fd))
        system.close(fd)
        unlink(home, name, missing_ok=missing_ok)

    monkeypatch.setattr(Folder, "unlink", watched)
    with tier.exclusive():
        assert swept(tier) == 1
    assert free == [False]


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked"])
def test_a_link_that_the_sweep_takes_is_not_adopted(
    tier: SpillTier, chest_dir: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    put(tier, "x", 1)
    draft = tier.store.draft()
    if moment == "before it is opened":
        do, what = Folder.open, Folder
    else:
        do, what = system.try_lock, system

    def late(*args: object) -> object:
        for link in chest_dir.glob(".tmp-*-link"):
            link.unlink()
        return do(*args)

    with monkeypatch.context() as patch:
        patch.setattr(what, do.__name__, late)
        assert not draft.adopt(str(chest_dir / "x"))
    assert (chest_dir / draft.name).exists()
    draft.discard()
    assert files(chest_dir) == {"x"}


def test_a_file_that_cannot_be_removed_is_left_to_the_sweep(
    tier: SpillTier, chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tier, "x", 1)
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr("chest.folder.os.unlink", fail)
        put(tier, "x", 2)
    assert files(chest_dir) == {"x", "x~1"}
    with tier.exclusive():
        assert swept(tier) == 1
    assert files(chest_dir) == {"x~1"}


@pytest.mark.parametrize("name", ["", "/abs", "../x", "a/../b", ".keys", "a//b", "x\0"])
def test_names_that_lead_out_are_refused(chest_dir: Path, name: str) -> None:
    made = open_tier(str(chest_dir), Settings(key_to_filename=lambda key: name))
    with pytest.raises(errors.KeyEncodingError, match="relative name"):
        put(made, "x", 1)
    assert files(chest_dir) == set()
    made.close()


def test_an_id_can_be_had_while_another_thread_is_given_one(tier: SpillTier) -> None:
    """They came from a generator, which raised while it ran for another thread."""
    found: list[str] = []

    def meanwhile(frame: object, event: str, argument: object) -> None:
        if event == "call":  # in the middle, wherever another thread may come in
            sys.setprofile(None)
            found.append(tier.new_file_id())
            sys.setprofile(meanwhile)

    sys.setprofile(meanwhile)
    try:
        found.append(tier.new_file_id())
    finally:
        sys.setprofile(None)
    assert len({*found}) == len(found) > 1
    assert {len(each) for each in found} == {16}
