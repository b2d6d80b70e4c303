"""An item and its bytes: in the record itself, or in a value file when it is large.

Owns: which way an item goes, and reading it back where that is allowed. Does not own: the
formats, the record, when a value file is deleted.
"""

from __future__ import annotations

import logging
import pickle
import secrets
from collections.abc import Sequence
from sys import getsizeof

import msgspec

from chest import errors
from chest.folder import VALUE, refused
from chest.formats.data import Data
from chest.formats.pickle5 import Pickle5, undecodable, unpickle
from chest.protocols import Buffer, Format, Source
from chest.settings import Settings
from chest.signing import Key
from chest.sizing import SCALARS, nbytes
from chest.stores.local import Draft, LocalStore

__all__ = ["Coder", "value_name"]

INLINE_NBYTES = 1 << 16  # an item that is larger gets a value file of its own
PLAIN, PICKLE, DATA, PICKLE_FILE, DATA_FILE = range(1, 6)  # kinds of records
IN_FILE = frozenset((PICKLE_FILE, DATA_FILE))
RUNS_CODE = frozenset((PLAIN, PICKLE, PICKLE_FILE))
ID = 16  # digits of the file id before a sealed payload
WHAT = "of a queue"  # stands for the key in messages

_dumps = pickle.dumps
log = logging.getLogger("chest")

# An item on its way into the queue: kind and payload of its record, and its value file,
# which nobody sees yet. A plain tuple, because it is made for every item.
Coded = tuple[int, bytes, Draft | None]


class _Facts(msgspec.Struct):
    """What a record says of its value file."""

    id: str
    size: int
    signature: str = ""


class _Sink:
    """What a format writes to: memory, and a file from `INLINE_NBYTES` on."""

    def __init__(self, store: LocalStore) -> None:
        self.path = store.home.path
        self._store = store
        self.pieces: list[bytes] = []
        self._size = 0
        self.draft: Draft | None = None

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers."""
        if self.draft is None:
            size = sum(memoryview(piece).nbytes for piece in buffers)
            if self._size + size <= INLINE_NBYTES:
                self.pieces += [bytes(piece) for piece in buffers]
                self._size += size
                return
            self.draft = self._store.draft()
            self.draft.write(self.pieces)
        self.draft.write(buffers)

    def restart(self) -> None:
        """Forget all that was written."""
        self.pieces, self._size = [], 0
        if self.draft is not None:
            self.draft.restart()


class Coder:
    """Makes bytes of items and items of bytes, for one queue.

    Parameters
    ----------
    store : LocalStore
        The value files of the queue, and who may have written them.
    settings : Settings
    key : Key or None
        Signs value files.
    """

    def __init__(self, store: LocalStore, settings: Settings, key: Key | None) -> None:
        self.store = store
        self._key = key
        self._pickles = settings.trust != "data" and settings.format != "data"
        self._loads = settings.trust != "data"
        self._full = settings.verify == "full"
        self._mapped = None if settings.mapped is False else "copy"
        self._sync = settings.durability == "power"
        self._pickle, self._data = Pickle5(), Data()

    def encode(self, item: object) -> Coded:
        """The record of an item; a large one is written to a draft first. No lock.

        Raises
        ------
        EncodingError
            It cannot be pickled. Nothing is left.
        StoreError
            The disk refused. Nothing is left.
        """
        if self._pickles:
            if type(item) in SCALARS:
                if getsizeof(item) <= INLINE_NBYTES:
                    return PLAIN, _dumps(item, 5), None
            elif nbytes(item) <= INLINE_NBYTES:
                data = self._pickle.dumps(item)
                if data is not None and len(data) <= INLINE_NBYTES:
                    return PLAIN, data, None
        sink = _Sink(self.store)
        try:
            return self._seal(item, sink)
        except BaseException as error:
            if sink.draft is not None:
                sink.draft.discard()
            if isinstance(error, OSError) and not isinstance(error, errors.ChestError):
                raise refused(error, sink.path, "takes no new file") from error
            raise

    def _seal(self, item: object, sink: _Sink) -> Coded:
        """Write an item in its format, with footer."""
        form: Format = self._pickle if self._pickles else self._data
        file_id = secrets.token_hex(ID // 2)
        form.dump(item, sink, key=WHAT, file_id=file_id)
        if sink.draft is None:
            kind = PICKLE if self._pickles else DATA
            return kind, b"".join([file_id.encode(), *sink.pieces]), None
        sink.draft.finish(sync=self._sync)
        facts = _Facts(file_id, sink.draft.size)
        if self._key is not None:
            facts.signature = self._key.sign_file(sink.draft.view())
        kind = PICKLE_FILE if self._pickles else DATA_FILE
        return kind, msgspec.json.encode(facts), sink.draft

    def decode(self, number: int, kind: int, payload: bytes) -> object:
        """The item of a record that was checked. No lock.

        Raises
        ------
        DecodingError
            A module or class it needs is not here.
        CorruptValueError, SignatureError, UntrustedError
            It must not, or cannot, be read.
        """
        if kind in RUNS_CODE and not self._loads:
            path = self.store.home.path
            msg = (
                f"an item of the queue in {path} is a pickle, which trust='data' never "
                f"loads. Open the queue with trust='owner' if you know who wrote it"
            )
            raise errors.UntrustedError(msg, path=path)
        if kind == PLAIN:
            try:
                return unpickle(payload)
            except Exception as error:  # a pickle may raise anything
                raise undecodable(self.store.home.path, WHAT, error) from error
        form: Format = self._pickle if kind in (PICKLE, PICKLE_FILE) else self._data
        if kind in IN_FILE:
            return self._read_file(number, kind, payload, form)
        file_id, view = payload[:ID].decode(), memoryview(payload)[ID:]
        source = Source(self.store.home.path, view, False, False, WHAT)
        return form.load(source, file_id=file_id, full=True)

    def _read_file(
        self, number: int, kind: int, payload: bytes, form: Format
    ) -> object:
        """The item in a value file."""
        facts = msgspec.json.decode(payload, type=_Facts)
        name = value_name(number)
        try:
            source = self.store.source(
                name,
                key=WHAT,
                size=facts.size,
                mapped=self._mapped,
                runs_code=kind in RUNS_CODE,
                private=self._key is not None,
            )
        except FileNotFoundError as error:
            path = self.store.home.join(name)
            msg = f"{path}, an item of a queue, is missing"
            raise errors.CorruptValueError(msg, path=path) from error
        if self._key is not None:
            self._key.check_file(source, facts.signature)
        return form.load(source, file_id=facts.id, full=self._full)

    def place(self, number: int, draft: Draft) -> None:
        """Give a draft the name that its item's number says. Under the lock."""
        home = self.store.home
        name = value_name(number)
        home.rename(draft.name, name)
        draft.name, draft.path = name, home.join(name)
        if self._sync:
            home.sync()

    def remove(self, number: int, kind: int) -> None:
        """Delete the value file of an item, if it has one.

        That the item is gone is published already: a file that cannot be deleted is no
        error, and goes when the queue is next opened by nobody else.
        """
        if kind not in IN_FILE:
            return
        name = value_name(number)
        try:
            self.store.delete(name)
        except OSError as error:
            log.info("%s is left: %s", self.store.home.join(name), error)


def value_name(number: int) -> str:
    """The name of the value file of the item with this number."""
    return f"{VALUE}{number:x}"
