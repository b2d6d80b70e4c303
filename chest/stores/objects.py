"""Objects in a bucket, through obstore: S3, GCS, Azure; also a folder, and memory.

Owns: opening the store of an address, whole objects put, got and listed, puts on a
condition and whether a store honours them, what its errors mean. Does not own: which
objects exist for a chest, what is in them (`chest.objects`).

Invariants
----------
O1  A put is all or nothing, and what was put is got by everyone from then on.
O2  Of several puts on the same condition one succeeds; a store in which that does not
    hold, as tried, refuses them all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from chest import errors

__all__ = [
    "Found",
    "Listed",
    "ObjectStore",
    "Tag",
    "check_process",
    "forget_memory",
    "open_store",
]

TIMEOUT = 15.0  # seconds for which a request is tried again
CONNECT, LONGEST_REQUEST = 5, 3600  # seconds
# The clock for an answer runs while a body is sent: at 15 s it would want 32 Mbit/s of a
# large put, of which twelve parts of 5 MiB go at a time.
LONGEST_PUT = 300  # seconds for one part
LARGE_PUT = 64 << 10  # bytes
DOWN = "error sending request"  # of the message that nobody answers
MOST_RETRIES = 6
PAGE = 1000  # names in one answer, and deletions in one request
PROBE = ".chest/probe-"  # begins the names of objects that are put to see what holds

_used = False  # obstore's threads run in this process
_forked = False  # they ran in the process that this one was forked from
_memories: dict[str, Any] = {}  # by address: stores of this process
_honours: dict[str, tuple[bool, bool, bool]] = {}  # by address: what was tried
_guard = threading.Lock()


class Tag(NamedTuple):
    """Which state of an object: equal exactly if the object was not put since."""

    etag: str
    version: str | None = None  # GCS wants it for a condition


class Found(NamedTuple):
    """An object, or the end of one."""

    data: memoryview
    size: int
    tag: Tag
    modified: float  # Unix time


class Listed(NamedTuple):
    """What a listing tells of one object."""

    name: str
    size: int
    etag: str
    modified: float  # Unix time


class ObjectStore:
    """The objects below one address.

    Parameters
    ----------
    address : str
    opened : object
        obstore's store.
    patient : object, optional
        The same, which waits longer for an answer: for large puts.

    Notes
    -----
    Threads may share it. Every method is one request, but for those that say otherwise,
    and raises `StoreError` when the store refuses or does not answer.
    """

    def __init__(self, address: str, opened: Any, patient: Any = None) -> None:
        self.address = address
        self._store = opened
        self._patient = patient or opened

    # -- whole objects -----------------------------------------------------------------

    def get(self, name: str, *, unless: str = "") -> Found | None:
        """An object; None when there is none.

        Parameters
        ----------
        name : str
        unless : str, optional
            An etag: if the object has it still, it comes without its bytes.
        """
        import obstore

        options = {"if_none_match": unless} if unless else None
        with self._asking(name):
            try:
                result = obstore.get(self._store, name, options=options)
                return _found(result.meta, result.bytes())
            except obstore.exceptions.NotModifiedError:
                return Found(memoryview(b""), 0, Tag(unless), 0.0)
            except FileNotFoundError as error:
                _check_bucket(error)
                return None

    def get_end(self, name: str, nbytes: int) -> Found | None:
        """The last bytes of an object; None when there is none. One request, or two."""
        import obstore

        def part(wanted: Any) -> Found:
            result = obstore.get(self._store, name, options={"range": wanted})
            return _found(result.meta, result.bytes())

        with self._asking(name):
            try:
                try:
                    return part({"suffix": nbytes})
                except (obstore.exceptions.BaseError, NotImplementedError) as error:
                    if DOWN in str(error):
                        raise
                    # The store knows no such range, or the object is empty.
                    meta = obstore.head(self._store, name)
                    size = meta["size"]
                    if not size:
                        return _found(meta, b"")
                    return part((max(0, size - nbytes), size))
            except FileNotFoundError as error:
                _check_bucket(error)
                return None

    def put(self, name: str, data: bytes | bytearray) -> Tag:
        """Put an object, in the place of any that has the name.

        Large ones go in parts, several at a time; they are there when all of them are.
        """
        import obstore

        with self._asking(name):
            return self._tag_of(name, obstore.put(self._for(data), name, data))

    def create(self, name: str, data: bytes | bytearray) -> Tag | None:
        """Put an object if none has the name; None: one has."""
        self._check(create=True)
        return self._put_if(name, data, "create")

    def replace(self, name: str, data: bytes | bytearray, tag: Tag) -> Tag | None:
        """Put an object in the place of the one with that tag; None: it is another."""
        bare = self._check(create=False)
        return self._put_if(name, data, _condition(tag, bare=bare))

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects; those that are not there are passed over. O(names / 1000)."""
        import obstore

        for start in range(0, len(names), PAGE):
            some: Any = list(names[start : start + PAGE])
            with self._asking(some[0]):
                try:
                    obstore.delete(self._store, some)
                except FileNotFoundError:
                    # Some stores give the whole list up when one of it is missing.
                    for name in some:
                        with contextlib.suppress(FileNotFoundError):
                            obstore.delete(self._store, name)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """The objects whose names begin so, in no order. O(objects / 1000) requests."""
        import obstore

        with self._asking(prefix):
            for page in obstore.list(self._store, prefix or None, chunk_size=PAGE):
                for meta in page:
                    yield Listed(
                        meta["path"],
                        meta["size"],
                        meta["e_tag"] or "",
                        meta["last_modified"].timestamp(),
                    )

    def url(self, name: str) -> str:
        """The address of an object."""
        return f"{self.address}/{name}" if name else self.address

    def remove_folder(self, *, only_empty: bool = False) -> None:
        """Remove the folder of a ``file://`` address, and what is in it."""
        parts = urlsplit(self.address)
        if parts.scheme != "file":
            return
        path = unquote(parts.path)
        if not only_empty:
            shutil.rmtree(path, ignore_errors=True)
            return
        for folder, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):  # there is something else in it
                os.rmdir(folder)

    # -- puts on a condition -----------------------------------------------------------

    @property
    def honours(self) -> tuple[bool, bool]:
        """Whether "if there is none" and "if it is still this one" hold here.

        Tried once in a process, by five requests.
        """
        return self._tried()[:2]

    def _check(self, *, create: bool) -> bool:
        """Refuse a condition that this store does not honour; how etags are sent."""
        creates, replaces, bare = self._tried()
        if creates if create else replaces:
            return bare
        what = "if there is no such key" if create else "if nobody has changed the key"
        msg = (
            f"{self.address} does not honour 'put {what}', as was tried just now, so "
            f"nothing that several processes do at once can be exact there. Use "
            f"c[key] = value and del c[key], or keep the chest in a folder or in a "
            f"store that does (S3, GCS, Azure, MinIO)"
        )
        raise errors.UnsupportedError(msg, path=self.address)

    def _tried(self) -> tuple[bool, bool, bool]:
        known = _honours.get(self.address)
        if known is None:
            with _guard:
                known = _honours.get(self.address)
                if known is None:
                    known = _honours[self.address] = self._try()
        return known

    def _try(self) -> tuple[bool, bool, bool]:
        """Put an object again on conditions that hold and that do not."""
        import obstore

        name = PROBE + secrets.token_hex(8)

        def put(data: bytes, mode: Any) -> Any:
            try:
                return obstore.put(self._store, name, data, mode=mode)
            except (
                obstore.exceptions.AlreadyExistsError,
                obstore.exceptions.PreconditionError,
                obstore.exceptions.NotSupportedError,
                NotImplementedError,
            ):
                return None

        with self._asking(name):
            try:
                first = put(b"1", "create")
                creates = first is not None and put(b"2", "create") is None
                old = self._tag_of(name, first or obstore.put(self._store, name, b"3"))
                for bare in (False, True):
                    if put(b"4", _condition(old, bare=bare)) is not None:
                        # What was right a moment ago must not be so any more.
                        stale = put(b"5", _condition(old, bare=bare)) is None
                        return creates, stale, bare
                return creates, False, False
            finally:
                self.delete([name])

    # -- steps -------------------------------------------------------------------------

    def _put_if(self, name: str, data: bytes | bytearray, mode: Any) -> Tag | None:
        """Put an object on a condition; None: it did not hold."""
        import obstore

        with self._asking(name):
            try:
                result = obstore.put(self._for(data), name, data, mode=mode)
            except (
                obstore.exceptions.AlreadyExistsError,
                obstore.exceptions.PreconditionError,
            ):
                return None
            except FileNotFoundError as error:
                if mode == "create":
                    raise
                _check_bucket(error)
                return None
            return self._tag_of(name, result)

    def _for(self, data: bytes | bytearray) -> Any:
        """The store of obstore for a put of so many bytes."""
        return self._patient if len(data) > LARGE_PUT else self._store

    def _tag_of(self, name: str, result: Any) -> Tag:
        """The tag of what was put just now."""
        if not result["e_tag"]:  # some servers do not tell it of what came in parts
            import obstore

            result = obstore.head(self._store, name)
        return _tag(result)

    @contextlib.contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Raise what obstore says within the block as an error of ours."""
        check_process(self.address)
        import obstore

        try:
            yield
        except errors.ChestError:
            raise
        except (
            obstore.exceptions.BaseError,
            OSError,
            ValueError,
            NotImplementedError,
        ) as error:
            raise _refused(error, self.url(name)) from error


def check_process(address: str) -> None:
    """Raise where obstore would wait for ever for threads that did not come along."""
    global _used
    if _forked:
        msg = (
            f"{address} was in use when this process was forked, and obstore does not "
            f"answer in a forked child: use the start method 'spawn' or 'forkserver' "
            f"of multiprocessing"
        )
        raise errors.UnsupportedError(msg, path=address)
    _used = True


def _after_fork() -> None:
    global _forked, _guard
    _forked = _used
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# -- opening -----------------------------------------------------------------------------


def open_store(
    address: str,
    options: Mapping[str, Any],
    timeout: float | None,
    *,
    readonly: bool = False,
) -> ObjectStore:
    """The store of an address, which is asked once whether it is there.

    Parameters
    ----------
    address : str
        ``s3://bucket/prefix``, ``gs://…``, ``az://…``, ``file:///folder``,
        ``memory://name`` (of this process).
    options : Mapping
        What obstore's store takes; the rest comes from the environment.
    timeout : float or None
        Seconds for which a request is tried again; None: 15.
    readonly : bool
        Make no folder.

    Raises
    ------
    MissingDependency
        obstore is not installed.
    ValueError
        No such kind of address, or no such option.
    StoreError
        It does not answer, or does not let us in.
    """
    try:
        import obstore.store
    except ImportError as error:
        msg = f"{address} needs obstore: pip install 'chest[s3]'"
        raise errors.MissingDependency(msg, path=address) from error
    check_process(address)
    address = address.rstrip("/") if not address.endswith("://") else address
    _check_address(address)
    try:
        opened, patient = _opened(address, options, timeout, readonly=readonly)
    except (obstore.exceptions.BaseError, TypeError, ValueError) as error:
        msg = f"{address} cannot be opened: {_line(error)}"
        raise ValueError(msg) from error
    store = ObjectStore(address, opened, patient)
    next(store.list(".chest/"), None)
    return store


def _check_address(address: str) -> None:
    """Refuse what would be passed over, or shown and pickled though it is secret."""
    if urlsplit(address).password is not None:
        msg = (
            "an address cannot carry a password: pass storage=, or set the environment"
        )
        raise ValueError(msg)
    for mark in "?#":
        if mark in address:
            msg = (
                f"{address}: what comes after {mark!r} would be passed over, so that two "
                f"addresses were one place; write %{ord(mark):02X} for it, or choose "
                f"another prefix"
            )
            raise ValueError(msg)


def _opened(
    address: str,
    options: Mapping[str, Any],
    timeout: float | None,
    *,
    readonly: bool,
) -> tuple[Any, Any]:
    """The stores of obstore of an address: for answers, and for large puts."""
    from obstore.store import LocalStore, MemoryStore, from_url

    parts = urlsplit(address)
    if parts.scheme == "memory":
        if address == "memory://":
            return MemoryStore(), None
        return _memories.setdefault(address, MemoryStore()), None
    if parts.scheme == "file":
        path = unquote(parts.path)
        if parts.netloc or not path:
            msg = "a file:// address has three slashes and a full path"
            raise ValueError(msg)
        if not readonly:
            os.makedirs(path, mode=0o700, exist_ok=True)
        elif not os.path.isdir(path):
            msg = f"{address}: there is no such folder, and with readonly=True none is made"
            raise errors.StoreError(msg, path=address, errno=errno.ENOENT)
        return LocalStore(path), None
    given = dict(options)
    seconds = TIMEOUT if timeout is None else timeout
    client = {
        "connect_timeout": timedelta(seconds=CONNECT),
        "read_timeout": timedelta(seconds=max(2 * CONNECT, seconds)),
        "timeout": timedelta(seconds=LONGEST_REQUEST),  # a large put is one request
    }
    if _is_plain_http(given):
        client["allow_http"] = True  # type: ignore[assignment]
    wanted = given.pop("client_options", {})
    retry = {
        "max_retries": MOST_RETRIES,
        "retry_timeout": timedelta(seconds=seconds),
        "backoff": {
            "init_backoff": timedelta(milliseconds=50),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    } | given.pop("retry_config", {})
    given |= {"retry_config": retry}
    patience = {"read_timeout": timedelta(seconds=max(LONGEST_PUT, seconds))}
    return (
        from_url(address, client_options=client | wanted, **given),
        from_url(address, client_options=client | patience | wanted, **given),
    )


def _is_plain_http(options: Mapping[str, Any]) -> bool:
    """The user named an endpoint without TLS, so it is meant."""
    named = [options.get(name) for name in ("endpoint", "endpoint_url", "aws_endpoint")]
    named += [os.environ.get("AWS_ENDPOINT_URL"), os.environ.get("AWS_ENDPOINT")]
    first = next((each for each in named if each), "")
    return str(first).startswith("http://")


def forget_memory(address: str) -> None:
    """Let the objects of a ``memory://`` address go."""
    _memories.pop(address, None)
    _honours.pop(address, None)


# -- what obstore says -------------------------------------------------------------------


def _found(meta: Mapping[str, Any], data: Any) -> Found:
    modified = meta["last_modified"].timestamp()
    return Found(memoryview(data), meta["size"], _tag(meta), modified)


def _tag(meta: Mapping[str, Any]) -> Tag:
    return Tag(meta["e_tag"] or "", meta.get("version"))


def _condition(tag: Tag, *, bare: bool) -> dict[str, str]:
    """The form that obstore has of "if it is still this one"."""
    # radosgw wants the etag without its quotes, others with them.
    condition = {"e_tag": tag.etag.strip('"') if bare else tag.etag}
    if tag.version is not None:
        condition["version"] = tag.version
    return condition


def _check_bucket(error: FileNotFoundError) -> None:
    """Raise when it is not the object that is not there, but the bucket."""
    if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
        raise error


_HINTS: Sequence[tuple[str, str]] = (
    ("169.254.169.254", "no credentials were found: set AWS_ACCESS_KEY_ID and "
     "AWS_SECRET_ACCESS_KEY, or pass storage="),
    ("metadata.google", "no credentials were found: set GOOGLE_APPLICATION_CREDENTIALS, "
     "or pass storage="),
    ("object with invalid path", "others keep something there whose name no listing of "
     "obstore's takes: remove it, or use a prefix of the chest's own"),
    ("NoSuchBucket", "there is no such bucket: make it first, or correct the address"),
    ("ContainerNotFound", "there is no such container: make it first"),
    ("404 Not Found", "there is no such bucket: make it first, or correct the address"),
    ("403 Forbidden", "these credentials are not allowed to"),
    ("401 Unauthorized", "these credentials are not known there"),
    (DOWN, "it does not answer: is the endpoint right, does it run?"),
    ("URL scheme is not allowed", "an endpoint with http:// needs "
     "storage={'client_options': {'allow_http': True}}"),
)  # fmt: skip


def _refused(error: Exception, url: str) -> errors.StoreError:
    """A `StoreError` for what obstore said, with the way out where there is one."""
    text = str(error)
    hint = next((way for word, way in _HINTS if word in text), "")
    what = f"{url}: {hint or 'the store refused'} ({_line(error)})"
    number = getattr(error, "errno", None) or errno.EIO
    return errors.StoreError(what, path=url, errno=number)


def _line(error: Exception) -> str:
    """The first line of what obstore says; the rest is its insides."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else ''}"
