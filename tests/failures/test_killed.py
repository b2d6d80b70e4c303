"""P9: whoever dies, and at whichever system call, nothing acknowledged is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from chest import Chest, rewrite
from tests.failures import faults, scenes

MISSING = object()


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chests that each scene begins with."""
    folder = tmp_path_factory.mktemp("templates")
    scenes.prepare(folder / "c")
    with Chest(folder / "c-other") as other:
        other.update({"a": "theirs", "more": scenes.BIG})
    return folder


def copy_of(templates: Path, folder: Path) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(templates, folder)
    return str(folder / "c")


def check_after_death(path: str, states: list[scenes.State], acked: int) -> None:
    """Each key has its old or its new value, and the chest goes on."""
    old, new = states[acked], states[min(acked + 1, len(states) - 1)]
    with Chest(path) as c:
        got = dict(c)
        for key in {*old, *new, *got}:
            value = got.get(key, MISSING)
            assert scenes.same(value, old.get(key, MISSING)) or scenes.same(
                value, new.get(key, MISSING)
            ), f"{key!r} is {value!r}"
        assert c.verify() == []
        c["after"] = [1]
        c["a"] = np.arange(3)
        c.flush()
        c.compact()
        held = {c.entry(key).name for key in c}
    assert scenes.files_in(path) - {".index"} == {".keys", *held}
    with Chest(path) as c:
        assert scenes.equal(c, {**got, "after": [1], "a": np.arange(3)})


@pytest.mark.parametrize("name", ["compacting", "packing", "packing_over", "inlining"])
def test_killed_at_any_call_with_a_checkpoint_loses_nothing(
    name: str, templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "CHECKPOINT_FROM", 2)
    kill_at_each_call(name, torn=False, templates=templates, tmp_path=tmp_path)


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
@pytest.mark.parametrize("name", scenes.SCENES)
def test_killed_at_any_call_loses_nothing(
    name: str, torn: bool, templates: Path, tmp_path: Path
) -> None:
    kill_at_each_call(name, torn=torn, templates=templates, tmp_path=tmp_path)


def kill_at_each_call(
    name: str, *, torn: bool, templates: Path, tmp_path: Path
) -> None:
    scene, acks = scenes.SCENES[name], tmp_path / "acks"
    states = scenes.states_of(scene, copy_of(templates, tmp_path / "work"))
    status, at = faults.DIED, 0
    while status == faults.DIED:
        at += 1
        path = copy_of(templates, tmp_path / "work")
        acks.write_bytes(b"")

        def work(path: str = path, at: int = at) -> None:
            fd = os.open(acks, os.O_WRONLY | os.O_APPEND)
            with faults.acting(faults.dying(at, torn=torn), faults.WRITES):
                for _ in scene(path):
                    os.write(fd, b"!")

        status = faults.in_child(work, tmp_path / "error")
        assert status in (0, faults.DIED), (tmp_path / "error").read_text()
        check_after_death(path, states, acks.stat().st_size)
    assert at > len(states)


def test_recovery_itself_may_be_killed(templates: Path, tmp_path: Path) -> None:
    """A torn record, a dead writer's file, and deaths while both are mended."""
    path = copy_of(templates, tmp_path / "work")
    with open(f"{path}/.keys", "ab") as log:
        log.write(b'0123456789abcdef {"k":"torn"')
    Path(path, ".tmp-dead").write_bytes(b"x" * 100)
    os.rename(tmp_path / "work", tmp_path / "torn")
    status, at = faults.DIED, 0
    while status == faults.DIED:
        at += 1
        path = copy_of(tmp_path / "torn", tmp_path / "work")

        def work(path: str = path, at: int = at) -> None:
            with faults.acting(faults.dying(at, torn=False), faults.WRITES):
                with Chest(path) as c:
                    c.compact()

        status = faults.in_child(work, tmp_path / "error")
        assert status in (0, faults.DIED), (tmp_path / "error").read_text()
        check_after_death(path, [scenes.OLD], 0)
