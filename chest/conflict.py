"""What becomes of a value that meets one that another process has published since.

Owns: asking the user's hook, again while others publish again. Does not own: how a
conflict is noticed (`chest.packing`), writing.
"""

from __future__ import annotations

from collections.abc import Sequence

from chest.engine import MOST_LOOKS, Engine
from chest.ledger import generation
from chest.memory import Slot, weigh

__all__ = ["Settling"]


class Settling(Engine):
    """An engine that asks before it replaces what others published."""

    __slots__ = ()

    def _write_out(
        self, slots: Sequence[Slot], *, keep: bool
    ) -> list[tuple[Slot, Exception]]:
        # docstring inherited
        if self._settings.on_conflict is None:
            return super()._write_out(slots, keep=keep)
        failed: list[tuple[Slot, Exception]] = []
        # Others may publish again while the hook is asked and while values are written.
        for _ in range(MOST_LOOKS):
            slots = self._settled(slots, failed)
            failed += super()._write_out(slots, keep=keep)
            kept = {id(slot) for slot, _ in failed}
            with self.lock:
                slots = [
                    slot
                    for slot in slots
                    if slot.alive and id(slot) not in kept
                    if self._is_in_conflict(slot, self._manifest.index.get(slot.key))
                ]
            if not slots:
                break
        return failed + [(slot, self._too_fast(slot.key)) for slot in slots]

    def _settled(
        self, slots: Sequence[Slot], failed: list[tuple[Slot, Exception]]
    ) -> list[Slot]:
        """The slots, with what the hook made of those in conflict. No lock is held."""
        self._look()
        result = []
        for slot in slots:
            try:
                result.append(self._settled_one(slot))
            except Exception as error:  # noqa: BLE001
                # The hook is the user's: flush raises it, once the rest is written.
                failed.append((slot, error))
        return result

    def _settled_one(self, slot: Slot) -> Slot:
        hook, key = self._settings.on_conflict, slot.key
        with self.lock:
            known = self._manifest.index.get(key)
            if not slot.alive or not self._is_in_conflict(slot, known):
                return slot
            mine = self._values[key]
        try:
            theirs, entry, _ = self._read(key, mapped="copy")
        except KeyError:
            return slot  # gone again
        assert hook is not None
        value = hook(key, mine, theirs)
        weight = weigh(value)
        with self.lock:
            if (
                self._slots.get(key) is not slot
            ):  # another thread set it, knowing theirs
                return slot
            new = self._memory.put(key, value, *weight, slot, slot.options)
            new.seen = generation(entry)
        return new
