"""The manifest: what exists, how it is told, and how others learn of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chest import errors, records, writing
from chest.folder import Folder
from chest.keys import encode, line
from chest.manifest import LOOK_EACH, Manifest
from chest.packs import Packs
from chest.records import Entry
from chest.rewrite import CHECKPOINT_FROM
from chest.stores.local import LocalStore

Open = Callable[..., Manifest]


@pytest.fixture
def opened(chest_dir: Path) -> Iterator[Open]:
    made = []

    def make(**options: object) -> Manifest:
        home = Folder(str(chest_dir))
        store = LocalStore(home, private=True, folder_is_private=True)
        made.append(Manifest(home, Packs(home, store.check_private), **options))
        return made[-1]

    yield make
    for manifest in made:
        manifest.close()


def put(manifest: Manifest, *keys: str) -> None:
    """Publish the keys in one record."""
    with manifest.exclusive():
        manifest.append(
            [(key, Entry(key, manifest.index.next_birth(), key)) for key in keys]
        )


def remove(manifest: Manifest, key: str) -> None:
    with manifest.exclusive():
        manifest.append([(key, Entry(key, gone="key"))])


def live(manifest: Manifest) -> list[object]:
    return list(manifest.index.ordered())


def test_readers_tail_what_writers_append(opened: Open) -> None:
    writer, reader = opened(), opened()
    assert not reader.tail()
    put(writer, "a")
    assert reader.word[1] != reader.seen
    assert reader.tail()
    assert reader.word[1] == reader.seen
    assert live(reader) == ["a"]
    assert reader.changed == {"a"}
    remove(writer, "a")
    assert reader.tail()
    assert live(reader) == []


def test_generations_number_the_records(opened: Open) -> None:
    manifest = opened()
    put(manifest, "a", "b")
    put(manifest, "c")
    entries = manifest.index.entries
    assert entries["a"].generation == entries["b"].generation == 1
    assert entries["c"].generation == 2


def test_compaction_keeps_generations_and_births_and_resurrects_nothing(
    opened: Open,
) -> None:
    """M5."""
    manifest, reader = opened(), opened()
    for key in "abcd":
        put(manifest, key)
    remove(manifest, "b")
    put(manifest, "a")
    before = {k: (e.birth, e.generation) for k, e in manifest.index.ordered().items()}
    with manifest.exclusive():
        manifest.compact()
    for other in (manifest, opened(), reader):
        other.tail()
        entries = other.index.ordered()
        assert {k: (e.birth, e.generation) for k, e in entries.items()} == before
        assert list(entries) == ["c", "d", "a"]
    put(reader, "e")
    assert reader.index.entries["e"].birth > max(birth for birth, _ in before.values())
    assert reader.index.entries["e"].generation > 6


def test_a_reader_of_the_old_file_finds_the_new_one(opened: Open) -> None:
    """M4."""
    writer, reader = opened(), opened()
    put(writer, "a")
    reader.tail()
    for key in "bcd":
        with writer.exclusive():
            writer.compact()
        put(writer, key)
        reader.tail()
        assert live(reader) == live(writer)
    assert reader.reloaded


def test_a_marked_file_whose_marker_died_goes_on(opened: Open) -> None:
    """Killed between the mark and the rename of a compaction."""
    writer, reader = opened(), opened()
    put(writer, "a")
    writer.mark_moved()
    reader.tail()
    assert live(reader) == ["a"]
    put(reader, "b")
    assert writer.tail()
    assert live(writer) == ["a", "b"]


def test_a_batch_is_visible_whole_or_not_at_all(opened: Open, chest_dir: Path) -> None:
    put(opened(), "a", "b", "c")
    path = chest_dir / ".keys"
    whole = path.read_bytes()
    for size in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:size])
        assert live(opened(readonly=True)) == []
    path.write_bytes(whole)
    assert live(opened(readonly=True)) == ["a", "b", "c"]


def test_a_torn_tail_is_cut_off_before_the_next_record(
    opened: Open, chest_dir: Path
) -> None:
    """M2; a reader waits for it to be finished."""
    writer, reader = opened(), opened()
    put(writer, "a")
    with open(chest_dir / ".keys", "ab") as log:
        log.write(b"0123456789abcdef {")
    reader.tail()
    assert live(reader) == ["a"]
    put(writer, "b")
    reader.tail()
    assert live(reader) == live(opened()) == ["a", "b"]


def test_a_reader_follows_a_record_that_was_taken_back(
    opened: Open, chest_dir: Path
) -> None:
    writer, reader = opened(), opened()
    put(writer, "a")
    size = (chest_dir / ".keys").stat().st_size
    put(writer, "b")
    reader.tail()
    os.truncate(chest_dir / ".keys", size)
    reader.tail()
    assert live(reader) == ["a"]
    assert reader.reloaded


def test_a_torn_tail_of_which_no_word_speaks_is_cut_off(
    opened: Open, chest_dir: Path
) -> None:
    """It may be longer than the next record, so that some of it would stay behind that."""
    manifest, reader = opened(), opened()
    put(manifest, "a")
    with open(chest_dir / ".keys", "ab") as log:
        log.write(b"\0" * 700 + b"0123456789abcdef {")
    put(manifest, "b")
    with open(chest_dir / ".keys", "ab") as log:
        log.write(b"\0" * 700)
    newcomer = opened()
    put(newcomer, "c")
    for each in (manifest, reader, newcomer, opened()):
        each.tail()
        assert live(each) == ["a", "b", "c"]


def test_a_word_that_is_not_the_log_s_length_is_set_right(opened: Open) -> None:
    reader, writer, newcomer = opened(), opened(), opened()
    put(writer, "a")
    reader.tail()
    writer.word[1] += 1
    assert not reader.tail()
    assert reader.word[1] != reader.seen
    put(newcomer, "b")
    assert reader.tail()
    assert live(reader) == ["a", "b"]
    assert reader.word[1] == reader.seen


def test_nothing_is_to_be_seen_in_a_log_without_records(opened: Open) -> None:
    manifest = opened()
    assert manifest.word[1] == manifest.seen
    put(manifest, "a")
    with manifest.exclusive():
        manifest.compact()
    assert manifest.word[1] == manifest.seen == opened().seen


@pytest.mark.parametrize("written", [False, True])
def test_an_interrupted_publication_does_not_mar_the_next(
    opened: Open, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    manifest, reader = opened(), opened()
    put(manifest, "a")
    pwrite = os.pwrite

    def interrupted(fd: int, data: bytes, offset: int) -> int:
        if written:
            pwrite(fd, data, offset)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("chest.log.os.pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            put(manifest, "b")
    put(manifest, "c")
    told = ["a", "b", "c"] if written else ["a", "c"]
    for each in (manifest, reader, opened()):
        each.tail()
        assert live(each) == told


def test_a_reader_is_not_led_astray_by_what_follows_a_record_that_was_taken_back(
    opened: Open, chest_dir: Path
) -> None:
    """The next one is longer, so that what was read seems to go on in the middle of it."""
    writer, reader = opened(), opened()
    put(writer, "a")
    size = (chest_dir / ".keys").stat().st_size
    put(writer, "b")
    reader.tail()
    os.truncate(chest_dir / ".keys", size)
    put(opened(), "longer than b")
    reader.tail()
    assert live(reader) == live(opened()) == ["a", "longer than b"]
    assert reader.reloaded


def test_the_lock_is_exclusive_and_nests(opened: Open) -> None:
    one, two = opened(timeout=0), opened(timeout=0)
    with one.exclusive(), one.exclusive():
        with pytest.raises(errors.LockTimeout), two.exclusive():
            pass
    with two.exclusive():
        pass


def test_readonly_takes_no_lock_and_makes_no_file(
    opened: Open, chest_dir: Path
) -> None:
    with pytest.raises(errors.ChestError, match="not a chest"):
        opened(readonly=True)
    writer = opened()
    put(writer, "a")
    with writer.exclusive():
        reader = opened(readonly=True)
        assert live(reader) == ["a"]
    with pytest.raises(errors.ReadOnlyError), reader.exclusive():
        pass


def test_a_failed_sync_is_not_believed(
    opened: Open, chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F4: what was taken for written may not be there, so the log is written anew."""
    manifest = opened(sync=True)
    put(manifest, "a")
    inode = (chest_dir / ".keys").stat().st_ino
    with monkeypatch.context() as patch:

        def fail(fd: int) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr("chest.system.sync_file", fail)
        with pytest.raises(errors.StoreError):
            put(manifest, "b")
    assert live(opened()) == ["a"]
    put(manifest, "c")
    assert (chest_dir / ".keys").stat().st_ino != inode
    assert live(opened()) == ["a", "c"]


def test_a_failed_load_leaves_what_was_known(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while the new file is read is no reason to show an empty chest."""
    writer, reader = opened(), opened()
    put(writer, "a")
    reader.tail()
    with writer.exclusive():
        writer.compact()
    with monkeypatch.context() as patch:

        def fail(*_: object) -> bytes:
            raise OSError(5, "Input/output error")

        patch.setattr("chest.system.read_all", fail)
        with pytest.raises(errors.StoreError):
            reader.tail()
        assert live(reader) == ["a"]
    assert reader.tail()
    assert live(reader) == ["a"]


def test_a_removed_manifest_is_told(opened: Open, chest_dir: Path) -> None:
    manifest, reader = opened(), opened()
    manifest.mark_moved()
    (chest_dir / ".keys").unlink()
    with pytest.raises(errors.DroppedError):
        reader.tail()
    with pytest.raises(errors.DroppedError), manifest.exclusive():
        pass
    assert not (chest_dir / ".keys").exists()


def test_a_folder_that_was_removed_by_hand_is_noticed(
    opened: Open, chest_dir: Path
) -> None:
    """Nothing says so in the log itself, so a writer looks from time to time."""
    manifest = opened()
    put(manifest, "a")
    shutil.rmtree(chest_dir)

    def put_many() -> None:
        for number in range(LOOK_EACH):
            put(manifest, str(number))

    with pytest.raises(errors.DroppedError):
        put_many()


def test_records_of_one_plain_key_and_others_are_read_in_their_order(
    opened: Open,
) -> None:
    """The quick way for the usual record gives way to the other, and comes back."""
    writer, reader = opened(), opened()
    keys: list[Any] = ["a", ("t", 1), "b", 7, "c"]
    for key in keys:
        with writer.exclusive():
            entry = Entry(encode(key), writer.index.next_birth(), "name")
            writer.publish_one(key, entry, None, last=True)
    with writer.exclusive():
        writer.append([(key, Entry(key, gone="key")) for key in ("a", "b")])
    put(writer, "d")
    assert reader.tail()
    assert live(reader) == live(opened()) == [("t", 1), 7, "c", "d"]
    assert reader.changed == {*keys, "d"}


def test_a_record_that_ends_many_keys_is_read_without_an_entry_for_each(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = opened(), opened()
    keys: list[Any] = [f"k{i}" for i in range(50)]
    others: list[Any] = ["a", ("t", 1), 7, b"b", "\ud800", '","gone":"key"},{"k":"a']
    for named in (keys, others):
        with writer.exclusive():
            pairs = [
                (key, Entry(encode(key), writer.index.next_birth())) for key in named
            ]
            writer.append(pairs)
    reader.tail()
    reader.changed.clear()
    assert live(reader) == [*keys, *others]

    def refuse(*_: object) -> None:
        raise AssertionError("an entry was made")

    monkeypatch.setattr("chest.tail._decoded", refuse)
    with writer.exclusive():
        for gone in (keys[1:], others[1:]):
            writer.end([line(key) for key in gone], writer.index.find_many(gone))
    assert reader.tail()
    for manifest in (writer, reader):
        assert live(manifest) == ["k0", "a"]
    assert reader.changed == {*keys[1:], *others[1:]}
    monkeypatch.undo()
    assert live(opened()) == ["k0", "a"]


def test_damage_behind_whole_records_is_named_by_its_own_byte(
    opened: Open, chest_dir: Path
) -> None:
    writer, reader = opened(), opened()
    for key in "abc":
        put(writer, key)
    path = chest_dir / ".keys"
    whole = path.read_bytes()
    senseless = writer._lines._checked(b'{"k":"d","b":"one"}', 4)
    unkeyed = writer._lines._checked(b'{"k":{"no such kind":1}}', 4)
    cut = writer._lines._checked(b'{"k":"d","b":4}', 4)[:-1] + b"x"
    for bad in (senseless, unkeyed, cut, b"0123456789abcdef {}\n"):
        path.write_bytes(whole + bad)
        with pytest.raises(errors.CorruptChestError, match=f"byte {len(whole)}:"):
            reader.tail()
        with pytest.raises(errors.CorruptChestError, match=f"byte {len(whole)}:"):
            opened()
    path.write_bytes(whole)
    reader.tail()
    assert live(reader) == ["a", "b", "c"]


# -- one value at a time ---------------------------------------------------------------


def count(manifest: Manifest, number: int) -> bool:
    """Publish the next number of a counter; whether nobody was quicker."""
    old = manifest.index.get("n")
    birth = old.birth if old else manifest.index.next_birth()
    entry = Entry("n", birth, size=1, nbytes=28, value=b"%d" % number)
    if not manifest._depth:
        return manifest.publish_alone("n", entry, old, again=old is not None)
    manifest.publish_one("n", entry, old, last=True)
    return True


def count_to(manifest: Manifest, last: int) -> None:
    for number in range(last + 1):
        with manifest.exclusive():
            assert count(manifest, number)


def set_unseen(manifest: Manifest, key: str) -> bool:
    return manifest.publish_unseen(Entry(key, size=1, nbytes=28, value=b"x"))


def births(manifest: Manifest) -> dict[Any, int]:
    manifest.tail()
    return {key: entry.birth for key, entry in manifest.index.items()}


def append_bytes(manifest: Manifest, data: bytes) -> None:
    """What a writer that was killed has left behind the last record."""
    with open(manifest.path, "ab") as log:
        log.write(data)


def test_who_publishes_one_value_is_told_that_others_were_quicker(opened: Open) -> None:
    one, other = opened(), opened()
    count_to(one, 1)
    assert not count(other, 1)
    assert not other.is_held_here()
    other.tail()
    assert count(other, 2)
    assert births(one) == births(other) == {"n": 1}
    assert one.index.entries["n"].value == b"2"


def test_a_counter_that_is_counted_on_is_not_decoded(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = opened(), opened()
    count_to(writer, 19)
    put(writer, "a")
    decoded: list[bytes] = []
    decode = records._decode_entry
    monkeypatch.setattr(
        records, "_decode_entry", lambda body: decoded.append(body) or decode(body)
    )
    reader.tail()
    assert len(decoded) == 3  # the first, the last, and the other key
    assert reader.index.entries["n"].value == b"19"
    assert reader.generation == writer.generation == 21
    assert reader.index.records == writer.index.records == 21


@pytest.mark.parametrize("torn", [0, 1, 20, 40, -1])
def test_a_counter_is_read_where_the_next_record_is_torn(
    opened: Open, torn: int
) -> None:
    writer, spare = opened(), opened()
    count_to(writer, 4)
    entry = Entry("n", 1, size=1, nbytes=28, value=b"5")
    line = writer._lines.line(entry, writer.generation + 1)
    append_bytes(writer, line[:torn])
    spare.tail()
    assert spare.index.entries["n"].value == b"4"
    with writer.exclusive():  # which cuts it off
        assert count(writer, 5)
    for each in (spare, writer, opened()):
        each.tail()
        assert each.index.entries["n"].value == b"5"
        assert each.generation == 6


def test_a_damaged_record_behind_a_counter_is_an_error(opened: Open) -> None:
    """M3: also where the counter itself is passed over."""
    writer, reader = opened(), opened()
    count_to(writer, 4)
    data = Path(writer.path).read_bytes()
    at = data.rindex(b'"v":"') + 5
    Path(writer.path).write_bytes(data[:at] + b"A" + data[at + 1 :])
    with pytest.raises(errors.CorruptChestError):
        reader.tail()


def test_a_writer_passes_over_values_of_others(opened: Open) -> None:
    one, other = opened(), opened()
    for key in "abc":
        count_to(other, 2)
        assert set_unseen(one, key)
        assert set_unseen(one, key.upper())
    assert live(one) == []
    assert one.word[1] != one.seen
    assert births(one) == births(other) == births(opened())
    assert [*births(one)] == ["n", "a", "A", "b", "B", "c", "C"]
    assert one.generation == other.generation == 15


def test_a_value_set_unseen_keeps_the_place_that_others_gave_its_key(
    opened: Open,
) -> None:
    one, other = opened(), opened()
    assert set_unseen(other, "a")
    assert set_unseen(other, "b")
    assert set_unseen(one, "a")
    assert births(one) == births(other) == births(opened()) == {"a": 1, "b": 2}


@pytest.mark.parametrize("what", ["file", "deadline", "batch"])
def test_a_writer_reads_what_speaks_of_files_and_deadlines(
    opened: Open, what: str
) -> None:
    one, other = opened(), opened()
    fields: dict[str, Any] = {"value": b"1", "size": 1}
    if what == "deadline":
        fields["expires"] = 4e9
    with other.exclusive():
        pairs = [("k", Entry("k", 1, **({"name": "k"} if what == "file" else fields)))]
        if what == "batch":
            pairs.append(("l", Entry("l", 2, **fields)))
        other.append(pairs)
    assert not set_unseen(one, "a")
    assert not one.is_held_here()
    one.tail()
    assert live(one) == live(other)


def test_a_writer_does_not_pass_over_a_record_that_was_not_announced(
    opened: Open,
) -> None:
    """Its writer may have been killed in it."""
    one, other = opened(), opened()
    for data in (b"0123456789abcdef {", other._lines.line(Entry("k", 1, "k"), 1)):
        append_bytes(other, data)
        assert not set_unseen(one, "a")
        with one.exclusive():
            pass
    assert set_unseen(other, "b")
    assert [*births(one)] == ["k", "b"]


def test_a_writer_that_passes_over_goes_to_the_log_that_took_its_place(
    opened: Open,
) -> None:
    one, other = opened(), opened()
    assert set_unseen(other, "a")
    assert set_unseen(one, "b")
    with other.exclusive():
        other.compact()
    assert not set_unseen(one, "c")
    one.tail()
    assert set_unseen(one, "c")
    assert births(one) == births(other) == {"a": 1, "b": 2, "c": 3}


def test_a_writer_does_not_pass_over_without_end(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "MOST_UNSEEN", 300)
    one, other = opened(), opened()
    done = [set_unseen(each, f"{key}") for key in range(4) for each in (one, other)]
    assert done[:2] == [True, True]
    assert not all(done)


def test_births_agree_whatever_a_log_is_read_from(opened: Open) -> None:
    """The last born is gone again before the log, and its checkpoint, are written anew."""
    one, other = opened(), opened()
    for key in range(CHECKPOINT_FROM + 10):
        assert set_unseen(one, f"{key}")
        if not key % 3000:
            assert set_unseen(other, f"{key}")
    for _ in range(3):
        one.tail()
        remove(one, live(one)[-1])
    one.index.next_birth()  # of a key that is not published yet
    with one.exclusive():
        rewrite = one.rewrite()
        rewrite.write(log=False)
        assert one.take(rewrite)
    late = [opened()]
    assert late[0].index.base is not None
    for number, each in enumerate([other, *late, one]):
        each.tail()
        assert set_unseen(each, f"new {number}")
    with one.exclusive():
        one.compact()
    assert set_unseen(other, "last") is False
    known = births(one)
    assert births(other) == births(late[0]) == births(opened()) == known
    assert [*known][-3:] == ["new 0", "new 1", "new 2"]
    assert known["new 0"] == CHECKPOINT_FROM + 11


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_a_value_that_could_not_be_set_unseen_is_not_there(
    opened: Open, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    one, other = opened(), opened()
    assert set_unseen(other, "a")

    def refuse(*_: object) -> int:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("chest.log.os.pwrite", refuse)
        with pytest.raises((errors.StoreError, KeyboardInterrupt)):
            set_unseen(one, "b")
    assert not one.is_held_here()
    assert set_unseen(other, "c")
    with one.exclusive():
        pass
    assert births(one) == births(other) == {"a": 1, "c": 2}
    assert set_unseen(one, "d")


def test_a_record_that_a_power_cut_tore_is_not_passed_over(opened: Open) -> None:
    """All of it is there but for a sector, and the word says so."""
    one, other = opened(), opened()
    assert set_unseen(other, "a")
    entry = Entry("b", size=1, nbytes=9, value=b"x" * 1500)
    line = bytearray(other._lines.line(entry, 2))
    size = os.path.getsize(one.path)
    begin = -size % 512
    line[begin : begin + 512] = bytes(512)
    append_bytes(other, line)
    one._set_word(b"%08x" % (size + len(line)))
    late = opened()
    assert not set_unseen(late, "c")
    with late.exclusive():
        pass
    assert set_unseen(late, "c")
    assert [*births(opened())] == [*births(late)] == ["a", "c"]


def test_all_is_read_again_also_what_was_passed_over(opened: Open) -> None:
    """As when the checkpoint turns out to be damaged."""
    one, other = opened(), opened()
    put(other, "a", "b")
    one.tail()
    assert set_unseen(other, "c")
    assert set_unseen(one, "d")
    one._load(checkpointed=False)
    assert [*births(one)] == ["a", "b", "c", "d"]


def test_records_of_others_that_name_no_size_are_all_read(opened: Open) -> None:
    writer, reader = opened(), opened()
    for number, key in enumerate("abcdef"):
        with writer.exclusive():
            writer.publish_one(key, Entry(key, number + 1, value=b"x"), None, last=True)
    reader.tail()
    assert live(reader) == [*"abcdef"]
