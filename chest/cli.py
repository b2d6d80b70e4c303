"""The command line: ``chest demo | info | ls | get | verify | compact | recover``.

Owns: arguments, exit codes, and errors as one line.
Does not own: anything that is done to a chest; each command is a few calls on one.

Exit codes: 0 all is well; 1 a problem was found (damage, a missing key); 2 wrong usage,
not a chest, or the system refused; 130 stopped by Ctrl-C; 141 the reader of the output
went away. Errors are one line on standard error, with ``--debug`` a traceback.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import itertools
import json
import os
import re
import shutil
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from chest import errors, reprs, system
from chest.folder import PACK, QUEUE
from chest.log import NAME
from chest.records import MAGIC
from chest.settings import is_address

if TYPE_CHECKING:
    from chest.core import Chest

__all__ = ["main"]

FINE, PROBLEM, REFUSED, STOPPED, READER_GONE = 0, 1, 2, 130, 141
TIMES = 20  # the demo's values over its budget, unless told otherwise
LONGEST_SHOWN = 4000  # characters of a value's repr without --repr
SHOWN = ("name", "format", "nbytes", "stored_nbytes", "generation", "birth")
COLUMNS = ("key", "format", "in memory", "stored", "generation", "file")
SEARCHED = 10_000  # keys looked through for one that was perhaps meant

# What a terminal obeys: controls (tab and newline are harmless), and what
# turns the direction of text or breaks lines.
_controls = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")


class _MissingKeyError(KeyError):
    """There is no such key; the message says so to people."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the arguments default to the process's.

    Errors become one line on standard error, a closed pipe is silent.

    Raises
    ------
    SystemExit
        From argparse: ``--help``, ``--version``, wrong usage.

    Examples
    --------
    >>> from chest import cli
    >>> cli.main(["info", "no/such/place"])
    2
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        if sys.stdout is not None:  # it was closed: `chest info PATH >&-`
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes at exit once more; that must not fail again.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return READER_GONE
    except KeyboardInterrupt:
        return STOPPED
    except Exception as error:  # noqa: BLE001
        if options.debug:
            traceback.print_exc()
        else:
            print(f"chest: {_explain(error)}", file=sys.stderr)
        damaged = (errors.CorruptError, errors.DecodingError, _MissingKeyError)
        return PROBLEM if isinstance(error, damaged) else REFUSED
    return code


def _explain(error: Exception) -> str:
    """One line that says what happened and what to do."""
    expected = errors.ChestError | OSError | ValueError | _MissingKeyError
    # A KeyError shows the repr of its message.
    message = error.args[0] if isinstance(error, _MissingKeyError) else str(error)
    if isinstance(error, OSError) and not isinstance(error, errors.ChestError):
        of = "" if error.filename is None else f"{error.filename}: "
        message = f"{of}{error.strerror}" if error.strerror else message
    line = _safe(" ".join(message.split()))
    if isinstance(error, expected) and line:
        return line
    return f"{type(error).__name__}: {line or '(no message)'} (--debug shows where)"


def _parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--debug",
        action="store_true",
        # The command's default would undo `chest --debug COMMAND`.
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    parser = argparse.ArgumentParser(
        prog="chest",
        description="Look into chests: dicts whose values lie in files of a folder.",
        epilog="exit codes: 0 fine, 1 a problem found, 2 wrong usage or refused",
    )
    parser.add_argument("--version", action=_Version)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands.add_parser("demo", parents=[common], help=_demo.__doc__))

    path = argparse.ArgumentParser(add_help=False, parents=[common])
    path.add_argument("path", metavar="PATH", help="the chest's folder")
    path.add_argument(
        "--trust",
        choices=["owner", "data", "any"],
        default="owner",
        help="whose pickles may be loaded (default: %(default)s; 'any' runs the code "
        "in them, whoever wrote it)",
    )
    for name, command, add in (
        ("info", _info, None),
        ("ls", _ls, _add_ls),
        ("get", _get, _add_get),
        ("verify", _verify, _add_verify),
        ("compact", _compact, None),
        ("recover", _recover, _add_recover),
    ):
        sub = commands.add_parser(name, parents=[path], help=command.__doc__)
        sub.set_defaults(command=command)
        if add is not None:
            add(sub)
    return parser


class _Version(argparse.Action):
    """Prints the version; it is looked up only when somebody asks."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"chest {version('chest')}")
        except PackageNotFoundError:
            print("chest (run from its source, not installed)")
        parser.exit(FINE)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_demo)
    parser.add_argument(
        "--size", help=f"bytes of values, such as 2GB (default: {TIMES} x budget)"
    )
    parser.add_argument(
        "--budget", default="100MB", help="bytes of memory (default: %(default)s)"
    )
    parser.add_argument(
        "--path", help="new folder to keep the chest in (default: temporary)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="decides which values, in which order"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _add_ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prefix",
        metavar="PREFIX",
        nargs="?",
        help="how the keys begin: text, or a tuple such as \"('day',)\"",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--long", action="store_true", help="sizes, formats and files")
    shape.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--limit", type=_natural, help="at most so many keys")


def _add_get(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "key",
        metavar="KEY",
        help="a Python literal or plain text: x, 1, \"('a', 1)\"",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="copy the value's file there, as it is: a plain pickle (-: stdout)",
    )
    parser.add_argument("--repr", action="store_true", help="print all of a long value")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_recover(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sign-key", metavar="env:NAME", help="of a signed chest: where its key stands"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _natural(text: str) -> int:
    """A count of keys."""
    with contextlib.suppress(ValueError):
        if (number := int(text)) >= 0:
            return number
    message = f"{text!r} is no number of keys"
    raise argparse.ArgumentTypeError(message)


def _demo(options: argparse.Namespace) -> int:
    """Keep 20 times more than fits in memory, on real data, and check it."""
    from chest import demo

    budget = reprs.parse_bytes(
        options.budget, option="--budget", limit=system.memory_limit
    )
    size = TIMES * budget
    if options.size is not None:
        size = reprs.parse_bytes(
            options.size, option="--size", limit=system.memory_limit
        )
    report = demo.run(
        size=size,
        budget=budget,
        path=options.path,
        seed=options.seed,
        quiet=options.quiet,
    )
    print(report.text())
    return PROBLEM if report.differing else FINE


def _open(options: argparse.Namespace, *, readonly: bool = True) -> Chest:
    """The chest at the path of the command line, which has to be one already."""
    from chest.core import Chest

    path: str = options.path
    if not os.path.exists(os.path.join(path, NAME)):
        _check_folder(path)
        try:
            Chest(path, readonly=True, trust=options.trust)
        except errors.CorruptChestError:
            raise  # its values are there
        except errors.ChestError:
            message = f"{path} is not a chest: it has no file {NAME}"
            if queues := _queues(path):
                message += f"; of queues it has {queues}: see chest.DurableQueue"
            raise FileNotFoundError(message) from None
    return Chest(path, readonly=readonly, trust=options.trust)


def _check_folder(path: str) -> None:
    """Say what is wrong with a path that is no folder."""
    if is_address(path):
        message = f"{path}: only chests in folders; Chest({path!r}) opens this one"
        raise FileNotFoundError(message)
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        message = f"{path or repr(path)} does not exist"
        raise FileNotFoundError(message) from None
    if not is_folder:
        message = f"{path} is not a chest: a chest is a folder"
        raise FileNotFoundError(message)


def _info(options: argparse.Namespace) -> int:
    """Show what a chest holds, in numbers."""
    with _open(options) as chest:
        rows = list(_facts(chest, options.path))
    print(reprs.table(("chest", _safe(options.path)), rows))
    return FINE


def _facts(chest: Chest, path: str) -> Iterator[tuple[str, str]]:
    """Names and values of what is worth knowing of a chest."""
    stats = chest.stats()
    version, word = _header(path)
    files, used, log = _room(path)
    yield "format version", version
    yield "id", word
    yield "keys", f"{stats.keys:,}"
    yield "order", _order(chest)
    yield "files", f"{files:,}"
    yield "bytes", f"{stats.stored_nbytes:,} ({reprs.bytes_text(stats.stored_nbytes)})"
    yield "manifest bytes", f"{log:,}"
    yield "dead bytes", f"{used - stats.stored_nbytes:,}"
    if queues := _queues(path):
        yield "queues", queues


def _queues(path: str) -> str:
    """The names of the queues in a folder."""
    names = sorted(name for name in os.listdir(path) if name.startswith(QUEUE))
    return _safe(", ".join(repr(name.removeprefix(QUEUE)) for name in names))


def _header(path: str) -> tuple[str, str]:
    """Format version and id, from the first line of the manifest."""
    with open(os.path.join(path, NAME), "rb") as file:
        first = file.readline()
    if not first.startswith(MAGIC):
        return "that of chest 0.2.3", "none"
    body = first[first.index(b"{") : first.rindex(b"}") + 1]
    return first.split()[1].decode(), json.loads(body)["id"]


def _room(path: str) -> tuple[int, int, int]:
    """Files of values, their bytes, and the bytes of the manifest.

    Queues, and chests in folders below, are not of this chest.
    """
    files = used = 0
    for folder, below, names in os.walk(path):
        if folder != path and NAME in names:
            below.clear()
            continue
        below[:] = [name for name in below if not name.startswith(QUEUE)]
        for name in names:
            # A file that another process has just replaced is no longer there.
            with contextlib.suppress(FileNotFoundError):
                used += os.stat(os.path.join(folder, name)).st_size
                files += 1
    log = os.path.getsize(os.path.join(path, NAME))
    return files - 1, used - log, log


def _order(chest: Chest) -> str:
    """The first and the last key, in the order in which they were first set."""
    if not chest:
        return "no keys"
    first, last = next(iter(chest)), next(reversed(chest))
    return _safe(f"from {errors.short(first)} to {errors.short(last)}")


def _ls(options: argparse.Namespace) -> int:
    """List keys, in order, without loading values."""
    with _open(options) as chest:
        keys: Iterator[Hashable] = iter(chest)
        if options.prefix is not None:
            keys = filter(_begins(options.prefix), keys)
        keys = itertools.islice(keys, options.limit)
        if options.long:
            print(reprs.table(COLUMNS, [_long(chest, key) for key in keys]))
        elif options.json:
            for key in keys:
                print(_json(chest, key))
        else:
            for key in keys:
                print(_safe(repr(key)))
    return FINE


def _begins(prefix: str) -> Callable[[Hashable], bool]:
    """A test for keys that begin with *prefix*: a tuple by its parts, else by text."""
    wanted = next(_meant(prefix))
    if isinstance(wanted, tuple):
        length = len(wanted)
        return lambda key: isinstance(key, tuple) and key[:length] == wanted
    start = wanted if isinstance(wanted, str) else prefix
    return lambda key: _plain(key).startswith(start)


def _plain(key: Hashable) -> str:
    """A key as people write it: the parts of a tuple with slashes between."""
    return "/".join(map(_plain, key)) if isinstance(key, tuple) else str(key)


def _json(chest: Chest, key: Hashable) -> str:
    """What is known of a key without its value, as one line of JSON."""
    entry = chest.entry(key)
    facts = {name: getattr(entry, name) for name in SHOWN}
    return json.dumps({"key": repr(key), **facts})


def _long(chest: Chest, key: Hashable) -> tuple[str, ...]:
    """What is known of a key without its value, as one row of a table."""
    entry = chest.entry(key)
    return (
        _safe(repr(key)),
        entry.format,
        reprs.bytes_text(entry.nbytes),
        reprs.bytes_text(entry.stored_nbytes),
        str(entry.generation),
        _safe(entry.name),
    )


def _get(options: argparse.Namespace) -> int:
    """Print one value, or write its pickle to a file."""
    with _open(options) as chest:
        key = _find(chest, options.key)
        if options.output is None:
            print(_shown(chest[key], whole=options.repr))
        else:
            _write_out(chest, key, options.output)
    return FINE


def _meant(text: str) -> Iterator[Hashable]:
    """What *text* may stand for: a Python literal first, then itself."""
    with contextlib.suppress(
        ValueError, SyntaxError, TypeError, MemoryError, RecursionError
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash in plain text
            literal = ast.literal_eval(text)
        hash(literal)
        yield literal
    yield text


def _find(chest: Chest, text: str) -> Hashable:
    """The key that *text* stands for; a KeyError that helps where there is none."""
    for key in _meant(text):
        if key in chest:
            return key
    near = {_plain(key): key for key in itertools.islice(chest, SEARCHED)}
    close = [repr(near[name]) for name in difflib.get_close_matches(text, near)]
    hint = f"perhaps {' or '.join(close)}" if close else "`chest ls` lists the keys"
    message = f"no key {errors.short(next(_meant(text)))} in {chest.path}; {hint}"
    raise _MissingKeyError(message)


def _shown(value: object, *, whole: bool) -> str:
    """The value's repr without anything a terminal would obey."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    if len(text) > LONGEST_SHOWN and not whole:
        rest = len(text) - LONGEST_SHOWN
        text = f"{text[:LONGEST_SHOWN]} … ({rest:,} more characters: --repr)"
    return _safe(text)


def _safe(text: str) -> str:
    """*text* with controls as escapes: what is stored must not run a terminal."""
    return _controls.sub(lambda match: ascii(match[0])[1:-1], text)


def _write_out(chest: Chest, key: Hashable, output: str) -> None:
    """Copy the value's file, as it is, to *output*."""
    path = chest.key_to_filename(key)
    if os.path.exists(path) and not os.path.basename(path).startswith(PACK):
        _copy(path, output)
        return
    from chest.core import Chest

    # It lies in the log, or shares a file with others.
    with Chest(pack=False) as own:
        own[key] = chest[key]
        own.flush()
        _copy(own.key_to_filename(key), output)


def _copy(path: str, output: str) -> None:
    """Copy a file to another, or to standard output."""
    if os.path.isdir(path):
        message = f"the value is a folder; copy it from {path}"
        raise IsADirectoryError(message)
    if output != "-":
        shutil.copyfile(path, output)
        return
    with open(path, "rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)


def _verify(options: argparse.Namespace) -> int:
    """Read every byte and compare it with its checksum."""
    with _open(options) as chest:
        count = len(chest)
        problems = list(chest.verify(progress=not options.quiet))
    for problem in problems:
        line = f"{problem.key!r}: {problem.path}: {problem.message}"
        print(_safe(" ".join(line.split())))
    if problems:
        return PROBLEM
    print(f"{count:,} values, every byte as it was written")
    return FINE


def _recover(options: argparse.Namespace) -> int:
    """Make a lost or damaged manifest anew from what is whole; keep the old one."""
    from chest.recovery import recover

    _check_folder(options.path)
    report = recover(
        options.path,
        trust=options.trust,
        sign_key=options.sign_key,
        progress=not options.quiet,
    )
    rows = [
        ("keys", f"{report.keys:,}"),
        ("told by records", f"{report.told:,}"),
        ("uncertain", f"{len(report.uncertain):,}"),
        ("damaged records", f"{report.records:,}"),
        ("problems", f"{len(report.problems):,}"),
        ("old manifest", _safe(report.kept) or "as it was, or none"),
    ]
    print(reprs.table(("chest", _safe(options.path)), rows))
    for problem in report.problems:
        print(_safe(f"{problem.path}: {problem.message}"))
    return PROBLEM if report.problems else FINE


def _compact(options: argparse.Namespace) -> int:
    """Give back the room that replaced and deleted values take."""
    with _open(options, readonly=False) as chest:
        before = sum(_room(options.path)[1:])
        chest.compact()
    after = sum(_room(options.path)[1:])
    print(f"{reprs.bytes_text(before)} -> {reprs.bytes_text(after)}")
    return FINE
