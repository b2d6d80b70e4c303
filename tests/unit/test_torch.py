"""Tensors: mapped like arrays, and as writable as tensors always are (P5, P6)."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chest import Chest
from chest.stores import local

torch = pytest.importorskip("torch")

SIDE = 200  # 160 kB as float32: large enough for a buffer of its own


@pytest.fixture(autouse=True)
def _map_small_files(monkeypatch):
    """What is above a MiB is hashed by a thread, which each test would wait for."""
    monkeypatch.setattr(local, "MAP_FROM", 1 << 16)


def square(dtype=torch.float32):
    return torch.arange(SIDE * SIDE).reshape(SIDE, SIDE).to(dtype)


def in_map(tensor, path):
    """Whether the memory of *tensor* belongs to a private map of the file at *path*."""
    at = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, mode, _, _, _, *name = line.split(None, 5)
        start, end = (int(part, 16) for part in where.split("-"))
        if start <= at < end:
            return mode == "rw-p" and name == [str(path)]
    return False


def state(path):
    return hashlib.sha256(Path(path).read_bytes()).digest()


TENSORS = {
    "plain": square,
    "bool": lambda: square().repeat(4, 1) % 2 == 0,
    "complex": lambda: square(torch.complex64),
    "bfloat16": lambda: square(torch.bfloat16).repeat(2, 1),
    "float8": lambda: square(torch.float8_e4m3fn).repeat(4, 1),
    "transposed": lambda: square().t(),
    "transposed bfloat16": lambda: square(torch.bfloat16).repeat(2, 1).t(),
    "channels last": lambda: torch.rand(4, 3, 50, 50).to(
        memory_format=torch.channels_last
    ),
    "requires grad": lambda: square().requires_grad_(),
    "row of many": lambda: square().repeat(4, 1)[SIDE : 3 * SIDE],
    "parameter": lambda: torch.nn.Parameter(square()),
    "frozen parameter": lambda: torch.nn.Parameter(square(), requires_grad=False),
}


@pytest.mark.parametrize("mapped", ["r", "copy"])
@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_comes_back_as_it_was_over_its_file(chest_dir, kind, mapped):
    tensor = TENSORS[kind]()
    with Chest(chest_dir, mapped=mapped) as c:
        c["x"] = tensor
        c.flush()
        found, path = c["x"], c.key_to_filename("x")
        assert type(found) is type(tensor)
        assert found.dtype is tensor.dtype
        assert found.shape == tensor.shape
        assert found.requires_grad is tensor.requires_grad
        assert found.stride() == tensor.stride()
        assert found.is_leaf
        as_bytes = [
            each.detach().contiguous().view(torch.uint8) for each in (found, tensor)
        ]
        assert torch.equal(*as_bytes)
        assert in_map(found, path)
        with open(path, "rb") as file:
            plain = pickle.load(file)
        assert torch.equal(plain.detach().contiguous().view(torch.uint8), as_bytes[1])


OTHERS = {
    "0-d": lambda: torch.tensor(2.5),
    "empty": lambda: torch.empty(0, 3),
    "small": lambda: torch.arange(10),
    "part with gaps": lambda: square()[:, ::2],
    "expanded": lambda: torch.arange(3.0).reshape(3, 1).expand(3, 100_000),
    "sparse": lambda: torch.eye(100).to_sparse(),
    "conjugated": lambda: square(torch.complex64).conj(),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_any_other_tensor_comes_back_equal(chest_dir, kind):
    tensor = OTHERS[kind]()
    with Chest(chest_dir) as c:
        c["x"] = tensor
        c.flush()
        found = c["x"]
        assert found.dtype is tensor.dtype
        assert found.shape == tensor.shape
        assert torch.equal(found.to_dense(), tensor.to_dense())


def test_a_row_of_a_large_tensor_is_stored_alone(chest_dir):
    rows = square().requires_grad_()
    with Chest(chest_dir) as c:
        c["row"] = rows.detach()[3]
        c["learning"] = rows[4]
        c.flush()
        assert c.entry("row").stored_nbytes < 10_000
        assert torch.equal(c["row"], square()[3])
        assert c["learning"].requires_grad
        assert torch.equal(c["learning"].detach(), square()[4])


def test_a_model_and_a_nested_dict_of_tensors_come_back(chest_dir):
    model = torch.nn.Linear(170, 180)
    table = {"a": square(), "deep": [{"b": square(torch.bfloat16), "n": 1}]}
    with Chest(chest_dir) as c:
        c["model"], c["table"] = model, table
    with Chest(chest_dir) as c:
        found = c["model"]
        assert in_map(found.weight, c.key_to_filename("model"))
        for (name, left), (other, right) in zip(
            found.state_dict().items(), model.state_dict().items(), strict=True
        ):
            assert name == other
            assert torch.equal(left, right)
        batch = torch.rand(2, 170)
        assert torch.equal(found(batch), model(batch))
        assert torch.equal(c["table"]["a"], table["a"])
        assert torch.equal(c["table"]["deep"][0]["b"], table["deep"][0]["b"])


def test_two_readers_do_not_see_what_the_other_writes(chest_dir):
    with Chest(chest_dir) as c:
        c["x"] = square()
        c.flush()
        path = c.key_to_filename("x")
        before = state(path)
        with Chest(chest_dir, readonly=True) as other:
            mine, theirs = c["x"], other["x"]
            mine.fill_(7)
            theirs[0, 0] = 5
            assert theirs[1, 1] == square()[1, 1]
            assert mine[0, 0] == 7
        assert state(path) == before
        c.drop()


def test_a_change_in_place_is_stored_in_a_new_file(chest_dir):
    """P6."""
    with Chest(chest_dir) as c:
        c["x"], c["same"] = square(), square()
        c.flush()
        path, written = c.key_to_filename("x"), c.stats().writes
        with open(path, "rb") as kept:
            c["x"][0, 0] = -1
            assert c["same"][0, 0] == 0
            c.flush()
            assert c.stats().writes == written + 1  # the other one is clean
            assert c.key_to_filename("x") != path
            assert pickle.load(kept)[0, 0] == 0
        assert c["x"][0, 0] == -1


def test_a_step_of_training_is_kept(chest_dir):
    with Chest(chest_dir) as c:
        c["model"] = torch.nn.Linear(170, 180, bias=False)
        c.flush()
        model = c["model"]
        before = model.weight.detach().clone()
        model(torch.ones(1, 170)).sum().backward()
        with torch.no_grad():
            model.weight -= 0.5 * model.weight.grad
        model.weight.grad = None
        del model
    with Chest(chest_dir) as c:
        assert torch.equal(c["model"].weight.detach(), before - 0.5)


def test_unmapped_and_signed_tensors_are_read_into_memory(tmp_path):
    for name, options in {"u": {"mapped": False}, "s": {"sign_key": b"k" * 32}}.items():
        with Chest(tmp_path / name, **options) as c:
            c["x"] = square()
            c.flush()
            found = c["x"]
            assert not in_map(found, c.key_to_filename("x"))
            found[0, 0] = 9
            assert torch.equal(found[1:], square()[1:])


def test_every_byte_of_a_tensor_is_checked_on_request(chest_dir):
    with Chest(chest_dir, verify="full") as c:
        c["x"] = square()
        c.flush()
        assert torch.equal(c["x"], square())
        assert c.verify() == []


def test_arrays_beside_tensors_are_writable_too(chest_dir):
    with Chest(chest_dir) as c:
        c["x"] = {"tensor": square(), "array": np.zeros(SIDE * SIDE)}
        c.flush()
        c["x"]["array"][3] = 1
        c.flush()
        assert c["x"]["array"][3] == 1


def test_writing_kills_no_process(chest_dir):
    """A tensor over read-only memory ends the process at the first write."""
    ones = torch.ones(600, 600)
    with Chest(chest_dir) as c:
        c["x"] = ones
    script = (
        "import sys; from chest import Chest\n"
        "with Chest(sys.argv[1]) as c:\n"
        "    c['x'].add_(1)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(chest_dir)], check=True)
    with Chest(chest_dir) as c:
        assert torch.equal(c["x"], ones + 1)
