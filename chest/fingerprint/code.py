"""Fingerprints of functions and classes: what they do, not how they are written down.

Owns: which code and captured data count, what is installed and what is the user's own,
and noticing that any of it was replaced.
Does not own: values that are passed (`values`).

Comments, docstrings, annotations and line numbers do not count: the compiled instructions
do, with the constants, names and helpers they refer to. So other minor versions of Python
have other fingerprints. Of what is installed only the name counts.
"""

from __future__ import annotations

import builtins
import contextlib
import datetime
import decimal
import dis
import enum
import functools
import importlib.util
import marshal
import numbers
import operator
import os
import pathlib
import re
import site
import sys
import sysconfig
import types
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from chest.errors import FingerprintError
from chest.fingerprint import libraries
from chest.fingerprint.values import HANDLERS, SCALARS, VERSION, Walk, named, sealed

__all__ = ["Code", "is_own", "plain_function"]

assert libraries is not None  # it registers its types

KINDS: Final = (
    0x04 | 0x08 | 0x20 | 0x80 | 0x200
)  # of co_flags: *args to async generator
SILENT: Final = frozenset({"EXTENDED_ARG", "NOP", "PRECALL", "RESUME"})
ATTRIBUTE: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
NOTES: Final = frozenset(  # what the compiler notes in a class, and says nothing
    {"__doc__", "__firstlineno__", "__static_attributes__"}
)
UNSAID: Final = NOTES | {
    "__abstractmethods__",
    "__annotate__",
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__dataclass_params__",
    "__dict__",
    "__module__",
    "__weakref__",
    "_abc_impl",
}
IMMUTABLE: Final = (
    str,
    bytes,
    numbers.Number,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.tzinfo,
    decimal.Decimal,
    enum.Enum,
    operator.attrgetter,
    operator.itemgetter,
    operator.methodcaller,
    pathlib.PurePath,
    range,
    re.Pattern,
    slice,
    uuid.UUID,
)
IMMUTABLE_ELSEWHERE: Final = frozenset({("numpy", "generic"), ("numpy", "dtype")})


class Code:
    """What a function or class does.

    Parameters
    ----------
    thing : function or type

    Attributes
    ----------
    token : bytes
        Stands for it, its helpers and what it captured.
    """

    __slots__ = ("_check", "token")

    def __init__(self, thing: Any) -> None:
        survey = _Survey()
        survey.visit(thing)
        self.token = sealed(b"code", *survey.parts)
        self._check = _checker(survey)

    def holds(self) -> bool:
        """Whether nothing that counts was replaced since; well below a microsecond."""
        try:
            return self._check()
        except (KeyError, ValueError):
            return False  # it is gone: a deleted global, an emptied cell


def _checker(survey: _Survey) -> Callable[[], bool]:
    """A function of no arguments that is true as long as all is what it was."""
    # One compiled expression: a loop over the same would make each hit twice as slow.
    held: dict[str, Any] = {}
    checks: list[str] = []

    def name(thing: Any) -> str:
        word = f"h{len(held)}"
        held[word] = thing
        return word

    checks += [
        f"{name(function)}.__code__ is {name(function.__code__)}"
        for function in survey.functions
    ]
    checks += [
        f"{name(function)}.{each} is {name(defaults)}"
        for function in survey.functions
        for each in ("__defaults__", "__kwdefaults__")
        if (defaults := getattr(function, each)) is not None
    ]
    checks += [
        f"{name(cell)}.cell_contents is {name(cell.cell_contents)}"
        for cell in survey.cells
    ]
    for space, found in survey.spaces.values():
        there = name(space)
        checks += [f"{there}[{key!r}] is {name(value)}" for key, value in found.items()]
    for space, missing in survey.missing.values():
        there = name(space)
        checks += [f"{key!r} not in {there}" for key in missing]
    check: Callable[[], bool] = eval(
        "lambda: " + (" and ".join(checks) or "True"), held
    )
    return check


class _Survey:
    """One walk through a function and all that it refers to."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.functions: list[Any] = []
        self.cells: list[Any] = []
        self.spaces: dict[int, tuple[Mapping[str, Any], dict[str, Any]]] = {}
        self.missing: dict[int, tuple[Mapping[str, Any], set[str]]] = {}
        self._seen: dict[int, tuple[int, Any]] = {}
        self._walk = Walk()

    def say(self, *about: Any) -> None:
        """Add plain data."""
        self.parts.append(self._walk.token(about))

    def visit(self, thing: Any) -> None:
        """Add what *thing* does, or is; where it was met before, only where."""
        if type(thing) in SCALARS:
            self.say(thing)
            return
        known = self._seen.get(id(thing))
        if known is not None:
            self.say("seen", known[0])
            return
        self._seen[id(thing)] = len(self._seen), thing
        version = getattr(thing, "__memo_version__", None)
        if version is not None:
            self.say("version", version)
        elif isinstance(thing, types.FunctionType):
            self._function(thing)
        elif isinstance(thing, type):
            self._class(thing)
        else:
            self._object(thing)

    def _object(self, thing: Any) -> None:
        """Captured data, or what wraps a function."""
        inner = _inside(thing)
        if inner is not None:
            self._each(inner)
        elif isinstance(thing, types.BuiltinFunctionType | types.ModuleType):
            self.say(getattr(thing, "__module__", None), thing.__name__)
            owner = getattr(thing, "__self__", None)
            if not isinstance(owner, types.ModuleType):
                self.visit(owner)  # a method, of a text say
        elif isinstance(thing, tuple):
            self.say(type(thing).__qualname__, len(thing))
            self._each(thing)
        elif isinstance(thing, frozenset):
            self.parts.append(sealed(b"set", *sorted(map(self._alone, thing))))
        elif _is_immutable(thing):
            self.say(thing)
        else:
            self._mutable(thing)

    def _mutable(self, thing: Any) -> None:
        """What can change does not count; what its class does, does."""
        self.say("mutable")
        if not _is_own_module(type(thing).__module__):
            return
        self.visit(type(thing))
        if callable(thing):  # perhaps a decorator, with the function that it wraps
            for name, held in sorted(getattr(thing, "__dict__", {}).items()):
                if isinstance(held, types.FunctionType | types.MethodType | type):
                    self.say(name)
                    self.visit(held)

    def _default(self, value: Any) -> None:
        """A default, which stands in the code also where it is a list."""
        if type(value) in (list, dict, set):
            with contextlib.suppress(FingerprintError):
                self.say(value)
                return
        self.visit(value)

    def _each(self, things: Iterable[Any]) -> None:
        for thing in things:
            self.visit(thing)

    def _alone(self, thing: Any) -> bytes:
        """One member of a set, wherever in the set it stands."""
        other = _Survey()
        other.visit(thing)
        return sealed(b"member", *other.parts)

    # -- functions ---------------------------------------------------------------------

    def _function(self, function: types.FunctionType) -> None:
        code = function.__code__
        self.functions.append(function)
        own = is_own(code.co_filename)
        stored: set[str] = set()
        if own:
            facts = _Facts(self._walk, code)
            stored = facts.stored
            self.say("function", facts.token)
            for default in function.__defaults__ or ():
                self._default(default)
            for name, default in sorted((function.__kwdefaults__ or {}).items()):
                self.say(name)
                self._default(default)
            self._globals(function.__globals__, facts)
        else:
            self.say("installed", function.__module__, code.co_qualname)
        registry = getattr(function, "registry", None)  # of functools.singledispatch
        if isinstance(registry, types.MappingProxyType):
            for kind in sorted(registry, key=operator.attrgetter("__qualname__")):
                self._each([kind, registry[kind]])
        for name, cell in zip(
            code.co_freevars, function.__closure__ or (), strict=True
        ):
            if name in stored:
                continue  # it changes while the function runs: state, no constant
            try:
                content = cell.cell_contents
            except ValueError:
                continue  # still empty
            self.cells.append(cell)
            self.say(name)
            self.visit(content)

    def _globals(self, space: dict[str, Any], facts: _Facts) -> None:
        for chain in sorted(facts.chains):
            if chain[0] not in facts.stored:
                self._follow(space, chain)
        for home, names in sorted(facts.imports):
            module = _own_import(home, space)
            if module is not None:
                for name in names:
                    self._follow(vars(module), (name,))

    def _follow(self, space: Mapping[str, Any], chain: tuple[str, ...]) -> None:
        """Visit what a name stands for, through modules of the user's own."""
        self.say("name", ".".join(chain))
        name, *rest = chain
        if name not in space:
            self.missing.setdefault(id(space), (space, set()))[1].add(name)
            self.say("builtin" if hasattr(builtins, name) else "missing")
            return
        value = space[name]
        self.spaces.setdefault(id(space), (space, {}))[1][name] = value
        if isinstance(value, types.ModuleType):
            if rest and _is_own_module(value.__name__):
                self._follow(vars(value), tuple(rest))
            else:
                self.say("module", value.__name__)
            return
        self.visit(value)

    # -- classes -----------------------------------------------------------------------

    def _class(self, kind: type) -> None:
        self.say("class", kind.__module__, kind.__qualname__)
        if not _is_own_module(kind.__module__):
            return
        for base in (*kind.__bases__, type(kind)):
            self.visit(base)
        space = vars(kind)
        if issubclass(kind, enum.Enum):
            members = kind.__members__.items()
            self.say("members", [(name, str(each.value)) for name, each in members])
        for name in sorted(space):
            value = space[name]
            if name in UNSAID or isinstance(value, enum.Enum):
                continue
            self.spaces.setdefault(id(space), (space, {}))[1][name] = value
            self.say(name)
            self.visit(value)
        # What a base class does, until somebody gives the class its own.
        above = [
            vars(base) for base in kind.__mro__[1:] if _is_own_module(base.__module__)
        ]
        inherited = set().union(*above) - set(space) - UNSAID
        self.missing.setdefault(id(space), (space, set()))[1].update(inherited)


class _Facts:
    """What one code object says, with those inside it.

    Attributes
    ----------
    token : bytes
        Instructions and constants.
    chains : set of tuple of str
        Names that it looks up in its module, with attributes that follow.
    imports : set of (module, names)
        What it imports while it runs.
    stored : set of str
        Names outside that it sets itself.
    """

    def __init__(self, walk: Walk, code: types.CodeType) -> None:
        self.chains: set[tuple[str, ...]] = set()
        self.imports: set[tuple[str, tuple[str, ...]]] = set()
        self.stored: set[str] = set()
        self._walk = walk
        self.token = self._read(code)

    def _read(self, code: types.CodeType) -> bytes:
        said: list[Any] = [
            code.co_flags & KINDS,
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
            code.co_exceptiontable,
            *code.co_varnames[: code.co_argcount + code.co_kwonlyargcount],
        ]
        chain: list[str] = []
        imported: list[str] = []
        for step in dis.get_instructions(code):
            name, value = step.opname, step.argval
            if name in SILENT:
                continue
            if name == "KW_NAMES":  # Python 3.11 does not say which
                value = code.co_consts[step.arg or 0]
            if name.startswith("STORE_NAME") and value in NOTES:
                del said[-2:]
                continue
            if chain and name in ATTRIBUTE:
                chain.append(value)
            else:
                self._end(chain)
                chain = (
                    [value] if name in ("LOAD_GLOBAL", "LOAD_NAME") and value else []
                )
            imported = self._import(name, value, step.arg, said, imported)
            if name in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
                name == "STORE_DEREF" and value in code.co_freevars
            ):
                self.stored.add(value)
            if isinstance(value, types.CodeType):
                value = self._read(value)
            elif type(value) not in SCALARS:
                value = self._walk.token(value)
            said += [name, value]
        self._end(chain)
        if imported:
            self.imports.add((imported[0], tuple(imported[1:])))
        return self._walk.token(said)

    def _end(self, chain: list[str]) -> None:
        if chain:
            self.chains.add(tuple(chain))

    def _import(
        self, name: str, value: Any, arg: int | None, said: list[Any], known: list[str]
    ) -> list[str]:
        """Collect ``from home import names``; *said* has the level before the names."""
        if name == "IMPORT_NAME":
            if known:
                self.imports.add((known[0], tuple(known[1:])))
            level = next((each for each in said[-3::-2] if type(each) is int), 0)
            return ["." * level + value]
        if name == "IMPORT_FROM" and known:
            known.append(value)
        return known


def _is_immutable(thing: Any) -> bool:
    if isinstance(thing, IMMUTABLE):
        return True
    homes = {(each.__module__.partition(".")[0], each) for each in type(thing).__mro__}
    return any((home, each.__name__) in IMMUTABLE_ELSEWHERE for home, each in homes)


# ---------------------------------------------------------------------- whose is it


@functools.cache
def _installed() -> tuple[str, ...]:
    """Folders of what is installed: the standard library, packages, chest itself."""
    paths = sysconfig.get_paths()
    found = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += [*site.getsitepackages(), site.getusersitepackages()]
    found.append(str(pathlib.Path(__file__).parents[1]))
    return tuple({os.path.realpath(path) + os.sep for path in found})


@functools.lru_cache(maxsize=4096)
def is_own(file: str) -> bool:
    """Whether code of this file is the user's: not installed, and not Python's.

    Examples
    --------
    >>> is_own("<stdin>"), is_own(os.__file__)
    (True, False)
    """
    if file.startswith("<"):
        return not file.startswith("<frozen ")
    return not os.path.realpath(file).startswith(_installed())


def _is_own_module(name: str) -> bool:
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is not None:
        return is_own(file)
    return name not in sys.builtin_module_names


def _own_import(home: str, space: dict[str, Any]) -> types.ModuleType | None:
    """A module of the user's own that a function imports when it runs."""
    try:
        name = importlib.util.resolve_name(home, space.get("__package__"))
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            if spec is None or not spec.origin or not is_own(spec.origin):
                return None
            importlib.import_module(name)
    except (ImportError, ValueError):
        return None  # the function itself will say so, if it comes to that
    return sys.modules[name] if _is_own_module(name) else None


def _inside(thing: Any) -> list[Any] | None:
    """What there is to visit in something that wraps it; None: it wraps nothing."""
    if isinstance(thing, types.MethodType | classmethod | staticmethod):
        return [thing.__func__]
    if isinstance(thing, property):
        return [thing.fget, thing.fset, thing.fdel]
    if isinstance(thing, functools.cached_property):
        return [thing.func]
    if isinstance(thing, functools.partial):
        named = [each for pair in sorted(thing.keywords.items()) for each in pair]
        return [thing.func, *thing.args, *named]
    if callable(getattr(thing, "__wrapped__", None)):
        return [thing.__wrapped__]
    params = getattr(type(thing), "__dataclass_params__", None)
    if getattr(params, "frozen", False):
        kind = type(thing)
        return [kind, *(getattr(thing, name) for name in kind.__dataclass_fields__)]
    return None


def plain_function(thing: Any) -> Any:
    """The function inside partials, methods and wrappers, for its name."""
    while True:
        if isinstance(thing, functools.partial):
            thing = thing.func
        elif isinstance(thing, types.MethodType | staticmethod | classmethod):
            thing = thing.__func__
        else:
            return thing


# ------------------------------------------------------------- functions as arguments

_codes: weakref.WeakKeyDictionary[Any, Code] = weakref.WeakKeyDictionary()


def _code(walk: Walk, thing: Any) -> bytes:
    """A function or class that is an argument, or an argument's type."""
    own = (
        _is_own_module(thing.__module__)
        if isinstance(thing, type)
        else is_own(thing.__code__.co_filename) or thing.__closure__
    )
    if not own or not walk.code:
        return named(walk, thing)
    name = marshal.dumps(f"{thing.__module__}.{thing.__qualname__}", VERSION)
    code = _codes.get(thing)
    if code is None or not code.holds():
        code = _codes[thing] = Code(thing)
    return sealed(b"own", name, code.token)


def _wrapper(walk: Walk, thing: Any) -> bytes:
    """What functools puts around a function."""
    return sealed(b"wrapper", walk.token(thing.__wrapped__))


HANDLERS[types.FunctionType] = _code
HANDLERS[type] = _code
HANDLERS[functools._lru_cache_wrapper] = _wrapper
