"""A chest as a store of zarr: zarr's own tests, and what they do not ask."""

from __future__ import annotations

import asyncio
import functools
import inspect
import pickle

import numpy as np
import pytest
import zarr
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from zarr.core.buffer import Buffer, cpu, default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore
from zarr.testing.stateful import ZarrHierarchyStateMachine, ZarrStoreStateMachine
from zarr.testing.store import StoreTests

from chest import Chest, zarr_store
from chest.zarrstore import ChestStore

pytestmark = pytest.mark.filterwarnings(
    "ignore:Consolidated metadata is currently not part",
    "ignore:The data type .* does not have a Zarr V3 spec",
)


class Counting(MemoryStore):
    """Knows what was read of it."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.read = []

    async def get(self, key, prototype=None, byte_range=None):
        self.read.append(key)
        return await super().get(key, prototype, byte_range)


def in_a_loop(method):
    """A coroutine as an ordinary test."""

    @functools.wraps(method)
    def run(*args, **options):
        return asyncio.run(method(*args, **options))

    return run


def without_plugins(tests):
    """The class with each of its coroutines, inherited or not, run in a loop."""
    for name, method in inspect.getmembers(tests, inspect.iscoroutinefunction):
        if name.startswith("test_"):
            setattr(tests, name, in_a_loop(method))
    return tests


@pytest.fixture
def chest(tmp_path):
    with Chest(tmp_path / "chest", available_memory="50MB") as c:
        yield c


@without_plugins
class TestAlone(StoreTests):
    store_cls = ChestStore
    buffer_cls = cpu.Buffer

    async def set(self, store, key: str, value: Buffer) -> None:
        store.chest[key] = value.to_bytes()

    async def get(self, store, key: str) -> Buffer:
        return self.buffer_cls.from_bytes(store.chest[key])

    @pytest.fixture
    def store_kwargs(self, chest):
        return {"chest": chest}

    @pytest.fixture
    def store(self, open_kwargs):
        return asyncio.run(self.store_cls.open(**open_kwargs))

    @pytest.fixture
    def store_not_open(self, store_kwargs):
        return self.store_cls(**store_kwargs)

    def test_store_repr(self, store):
        assert repr(store) == f"ChestStore('chest://{store.chest.path}')"

    def test_store_supports_writes(self, store):
        assert store.supports_writes

    def test_store_supports_listing(self, store):
        assert store.supports_listing


@without_plugins
class TestOverAnother(TestAlone):
    async def set(self, store, key: str, value: Buffer) -> None:
        await store.origin.set(key, value)

    async def get(self, store, key: str) -> Buffer:
        return await store.origin.get(key, default_buffer_prototype())

    @pytest.fixture
    def store_kwargs(self, chest, tmp_path):
        return {"chest": chest, "origin": LocalStore(tmp_path / "origin")}

    def test_store_repr(self, store):
        assert f"over {store.origin}" in repr(store)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("machine", [ZarrHierarchyStateMachine, ZarrStoreStateMachine])
@pytest.mark.parametrize("budget", [100, 10**8])
def test_zarrs_own_state_machines_find_nothing(machine, budget, tmp_path):
    counter = iter(range(10**6))

    def make():
        path = tmp_path / str(next(counter))
        chest = Chest(path, available_memory=budget)
        made = machine(zarr_store(chest))
        end = made.teardown

        def teardown():
            end()
            chest.close()

        made.teardown = teardown
        return made

    quick = settings(max_examples=5, stateful_step_count=15, deadline=None)
    run_state_machine_as_test(make, settings=quick)


def test_what_is_read_of_a_slow_store_is_read_once(chest):
    origin = Counting()
    a = np.arange(1000.0)
    zarr.create_array(origin, data=a, chunks=100)
    z = zarr.open_array(zarr_store(chest, origin), mode="r")
    assert (z[:] == a).all()
    origin.read.clear()

    assert (z[:] == a).all()
    assert (zarr.open_array(zarr_store(chest, origin), mode="r")[:] == a).all()

    assert [key for key in origin.read if key.startswith("c/")] == []


def test_what_is_written_is_in_both_and_read_from_the_chest(chest):
    origin = Counting()
    z = zarr.create_array(zarr_store(chest, origin), shape=10, chunks=5, dtype="i8")
    z[:] = 7
    origin.read.clear()

    assert (z[:] == 7).all()
    assert origin.read == []
    assert (zarr.open_array(origin, mode="r")[:] == 7).all()


def test_an_object_that_was_written_while_the_old_one_was_fetched_is_not_lost(chest):
    class Slow(MemoryStore):
        async def get(self, key, prototype=None, byte_range=None):
            found = await super().get(key, prototype, byte_range)
            fetched.set()
            await go_on.wait()
            return found

    fetched, go_on = asyncio.Event(), asyncio.Event()
    old, new = cpu.Buffer.from_bytes(b"old"), cpu.Buffer.from_bytes(b"new")

    async def scene():
        origin = Slow()
        await origin.set("k", old)
        store = zarr_store(chest, origin)
        reader = asyncio.create_task(store.get("k"))
        await fetched.wait()
        await store.set("k", new)
        go_on.set()
        assert (await reader).to_bytes() == b"old"
        return (await store.get("k")).to_bytes()

    assert asyncio.run(scene()) == b"new"


@pytest.mark.parametrize("other", ["made", "read only", "travelled"])
def test_stores_that_share_a_chest_keep_no_old_object(other, chest):
    class Slow(MemoryStore):
        async def get(self, key, prototype=None, byte_range=None):
            found = await super().get(key, prototype, byte_range)
            fetched.set()
            await go_on.wait()
            return found

    fetched, go_on = asyncio.Event(), asyncio.Event()
    old, new = cpu.Buffer.from_bytes(b"old"), cpu.Buffer.from_bytes(b"new")

    async def scene():
        origin = Slow()
        await origin.set("k", old)
        writer = zarr_store(chest, origin)
        reader = zarr_store(chest, origin)
        if other == "read only":
            reader = writer.with_read_only(read_only=True)
        elif other == "travelled":
            state = reader.__getstate__()
            reader = ChestStore.__new__(ChestStore)
            reader.__setstate__(state)
        late = asyncio.create_task(reader.get("k"))
        await fetched.wait()
        await writer.set("k", new)
        go_on.set()
        assert (await late).to_bytes() == b"old"
        return (await reader.get("k")).to_bytes()

    assert asyncio.run(scene()) == b"new"


def test_what_came_into_the_chest_meanwhile_is_not_replaced_by_what_was_fetched(chest):
    class Slow(MemoryStore):
        async def get(self, key, prototype=None, byte_range=None):
            found = await super().get(key, prototype, byte_range)
            chest["k"] = b"new"  # as another process does
            return found

    async def scene():
        origin = Slow()
        await origin.set("k", cpu.Buffer.from_bytes(b"old"))
        store = zarr_store(chest, origin)
        await store.get("k")
        return (await store.get("k")).to_bytes()

    assert asyncio.run(scene()) == b"new"


def test_a_write_that_the_origin_refuses_leaves_nothing_in_the_chest(chest):
    class Full(MemoryStore):
        async def set(self, key, value, byte_range=None):
            raise OSError(28, "No space left on device")

    store = zarr_store(chest, Full())
    chest["k"] = b"before"

    with pytest.raises(OSError, match="No space"):
        asyncio.run(store.set("k", cpu.Buffer.from_bytes(b"x")))

    assert "k" not in chest


def test_a_dataset_larger_than_the_budget_spills_and_comes_back(tmp_path):
    a = np.random.default_rng(0).random((64, 4096))
    with Chest(tmp_path / "c", available_memory=200_000) as c:
        zarr.create_array(zarr_store(c), data=a, chunks=(4, 4096))
        assert c.memory_usage <= 200_000
        assert c.stats().spills > 0
    with Chest(tmp_path / "c", available_memory=200_000) as c:
        assert (zarr.open_array(zarr_store(c), mode="r")[:] == a).all()


def test_the_users_array_may_change_after_it_was_written_uncompressed(chest):
    a = np.arange(100)
    z = zarr.create_array(zarr_store(chest), data=a, chunks=100, compressors=None)
    a[:] = 0

    assert (z[:] == np.arange(100)).all()


def test_two_stores_and_other_keys_share_a_chest(chest):
    chest["mine"] = [1]
    chest["b/zarr.json", 1] = 2
    first, second = zarr_store(chest, prefix="a/"), zarr_store(chest, prefix="b/")
    zarr.create_array(first, data=np.zeros(3))
    zarr.create_array(second, data=np.ones(3))

    assert (zarr.open_array(second)[:] == 1).all()
    asyncio.run(first.clear())

    assert set(chest) == {"mine", "b/zarr.json", "b/c/0", ("b/zarr.json", 1)}


def test_a_key_that_zarr_did_not_write_is_refused_by_name(chest):
    chest["zarr.json"] = {"not": "bytes"}

    with pytest.raises(TypeError, match=r"'zarr\.json' in the chest is a dict"):
        zarr.open_array(zarr_store(chest), mode="r")


def test_an_opened_array_travels_with_its_chest(chest):
    z = zarr.create_array(zarr_store(chest), data=np.arange(5))

    again = pickle.loads(pickle.dumps(z))

    assert (again[:] == np.arange(5)).all()
    again.store.chest.close()


def test_xarray_writes_to_it_and_reads_from_it(chest):
    xarray = pytest.importorskip("xarray")
    data = xarray.Dataset({"t": (("y", "x"), np.arange(12.0).reshape(3, 4))})

    data.to_zarr(zarr_store(chest), consolidated=False)

    assert xarray.open_zarr(zarr_store(chest), consolidated=False).t.equals(data.t)
