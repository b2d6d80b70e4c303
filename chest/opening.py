"""Opening a chest's folder: who may, what is in it, and who reads it.

Owns: the checks before the first byte is read, and which formats a chest may use. Does
not own: anything after that.
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from collections.abc import Callable, Hashable
from typing import Any

from chest import errors, keys, system
from chest.folder import PRIVATE_FILE, PRIVATE_FOLDER, Folder, refusals, refused
from chest.formats.compressed import CODECS, Compressed, check_codec, form_of
from chest.formats.pickle5 import Pickle5, unpickle
from chest.log import NAME
from chest.manifest import Manifest
from chest.packs import Packs
from chest.protocols import Format
from chest.settings import Settings
from chest.signing import Key
from chest.spill import SpillTier
from chest.stores.local import LocalStore, untrusted

log = logging.getLogger("chest")

MAPPED_PART = 8  # of the budget, which mapped packs may take besides the values
Legacy = Callable[[bytes], list[tuple[Hashable, str]]]

__all__ = ["formats", "load_key", "open_folder", "open_tier", "temporary_folder"]


def temporary_folder() -> str:
    """A new, private folder for a chest without a path."""
    return tempfile.mkdtemp(suffix=".chest")


def open_tier(path: str, settings: Settings) -> SpillTier:
    """Open, or make, the chest in *path*.

    Raises
    ------
    UntrustedError
        Somebody else could have written the folder, and it was to be written to.
    CorruptChestError, VersionError, SignatureError
        Its manifest cannot be read; nothing was changed.
    StoreError
        The disk refused.
    """
    # First, because it may refuse: nothing is made yet.
    key = None if settings.sign_key is None else Key(settings.sign_key)
    forms = formats(settings)
    home = open_folder(path, settings)
    try:
        private = settings.trust == "owner"
        with refusals(path, "could not be read"):
            ours = system.is_private(home.status())
        if private and not ours and not settings.readonly:
            raise untrusted(path, home.status())
        if not settings.readonly:
            home.claim(settings.timeout)
        store = LocalStore(home, private=private, folder_is_private=ours)
        with refusals(path, "could not be read"):
            if home.stat(NAME) is None:
                _check_new(store, path)
        loads = settings.trust == "any" or (private and ours)
        mapped = settings.budget / MAPPED_PART
        packs = Packs(home, store.check_private, mapped)
        manifest = Manifest(
            home,
            packs,
            readonly=settings.readonly,
            sync=settings.durability == "power",
            timeout=settings.timeout,
            load_key=load_key if loads else None,
            sign=None if key is None else key.sign_record,
            # A key list of 0.2.3 carries no signature, so a signed chest has none.
            legacy=None if key else _legacy_reader(path, settings, loads=loads),
            legacy_format="custom" if settings.is_custom else "pickle",
        )
    except BaseException:
        home.close()
        raise
    return SpillTier(
        store,
        packs,
        manifest,
        forms,
        wanted_name=settings.key_to_filename,
        full=settings.verify == "full",
        key=key,
        fallback=settings.fallback,
        compression=settings.compression,
    )


def open_folder(path: str, settings: Settings) -> Folder:
    """Open, or make, a folder; nothing in it is looked at."""
    folder_mode = 0o777 if settings.umask else PRIVATE_FOLDER
    if not settings.readonly:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.mkdir(path, folder_mode)
        except FileExistsError:
            pass  # an existing chest, or a file: opening it will tell
        except OSError as error:
            raise refused(error, path, "could not be made") from error
    file_mode = 0o666 if settings.umask else PRIVATE_FILE
    return Folder(path, file_mode=file_mode, folder_mode=folder_mode)


def _check_new(store: LocalStore, path: str) -> None:
    """A folder with values but no manifest is a damaged chest, not a new one."""
    for name in store.sealed():
        if store.home.stat(NAME) is not None:
            return  # another process has just made it, and written values
        msg = (
            f"{path} holds values of a chest ({name}) but no manifest {NAME}: it was "
            f"lost. Nothing was changed; bring {NAME} back, make it anew (chest recover "
            f"{path}), or move the files away"
        )
        raise errors.CorruptChestError(
            msg,
            path=path,
        )


def formats(settings: Settings) -> dict[str, Format]:
    """The formats a chest may read and write, by name."""
    from chest.formats.custom import Custom
    from chest.formats.data import Data

    check_codec(settings.compression)
    found: dict[str, Format] = {"data": Data()}
    if settings.trust != "data":
        found["pickle"] = pickle = Pickle5()
        for codec in CODECS:
            found[form_of(codec)] = Compressed(codec, pickle)
    if settings.is_custom:
        found["custom"] = Custom(
            settings.dump, settings.load, settings.mode, settings.open
        )
    return found


def load_key(pickled: bytes) -> object:
    """The key that was pickled; one whose class cannot be had here is an `Opaque`.

    So that one key does not cost the others: its script's own class, say.
    """
    try:
        return unpickle(pickled)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a key's own code may raise anything
        _tell(f"{type(error).__name__}: {error}")
        return keys.Opaque(pickled)


@functools.lru_cache(maxsize=256)
def _tell(reason: str) -> None:
    """Log it, once: keys are read again and again."""
    log.warning(
        "A key cannot be loaded and is shown as what it is, pickled: %s. Import or "
        "define its class before the chest is opened",
        reason,
    )


def _legacy_reader(path: str, settings: Settings, *, loads: bool) -> Legacy:
    return lambda data: _legacy(data, path, settings, loads=loads)


def _legacy(
    data: bytes, path: str, settings: Settings, *, loads: bool
) -> list[tuple[Hashable, str]]:
    """The (key, name) pairs of a ``.keys`` that chest 0.2.3 wrote."""
    if not loads:
        # Whatever it is: nothing of it is read, for it may be a pickle.
        message = (
            f"{os.path.join(path, NAME)} is no manifest. It may be the key list of chest "
            f"0.2.3, which is a pickle, and with trust={settings.trust!r} none is loaded "
            f"here. If the folder is yours: chmod go-w {path}, or trust='any' at your own "
            f"risk"
        )
        raise errors.UntrustedError(message, path=path)
    try:
        if settings.is_custom:
            # Not from *data*: it may be compressed, as `open` knows.
            with settings.open(os.path.join(path, NAME), "r" + settings.mode) as file:
                pairs: Any = settings.load(file)
        else:
            pairs = unpickle(data)
        return [(_hashable(key), _relative(name)) for key, name in pairs]
    except (
        Exception
    ) as error:  # the user's load, or a damaged pickle, may raise anything
        msg = (
            f"{os.path.join(path, NAME)} is neither a manifest nor the key list of chest "
            f"0.2.3: {type(error).__name__}: {error}. Nothing was changed"
        )
        raise errors.CorruptChestError(
            msg,
            path=path,
        ) from error


def _hashable(key: Any) -> Hashable:
    """A key as it was before JSON made a list of its tuple."""
    if isinstance(key, list):
        return tuple([_hashable(part) for part in key])
    if isinstance(key, float) and key != key:
        key = keys.NAN
    keys.encode(key)
    return key  # type: ignore[no-any-return]


def _relative(name: str) -> str:
    parts = name.replace(os.sep, "/").split("/")
    if os.path.isabs(name) or any(part in ("", ".", "..") for part in parts):
        msg = f"{name!r} leads out of the chest's folder"
        raise ValueError(msg)
    return "/".join(parts)
