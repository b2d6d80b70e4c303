"""The command line: ``python -m benchmarks [workload ...] [options]``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from benchmarks import growth, legacy, report
from benchmarks.plan import FULL, QUICK, Workload
from benchmarks.rivals import RIVALS
from benchmarks.runner import Outcome, run
from benchmarks.workloads import ABOUT, WORKLOADS

__all__ = ["main"]

QUICK_REPEAT = 2
PLOT, PAGES = "plot", "pages"  # of a written run


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    lines = "\n".join(f"  {name:13} {about}" for name, about in ABOUT.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure chest beside its rivals; `plot FILE.json` draws a run, "
        "`pages FILE.json …` prints runs for docs/performance-figures.txt.",
        epilog=f"workloads (default: all but rows_… and growth):\n{lines}\n\n"
        f"rivals: {', '.join(RIVALS)}",
    )
    add = parser.add_argument
    add("workloads", nargs="*", metavar="workload")
    add("--quick", action="store_true", help="small data: does it run? not: how fast")
    add("--json", type=Path, metavar="FILE", help="write all samples there as well")
    add("--rivals", type=lambda text: text.split(","), help="only these: a,b,c")
    add("--repeat", type=int, help="repetitions (default: 2 to 9, by workload)")
    add("--folder", type=Path, help="where the stores go (default: a temporary one)")
    add("--legacy", metavar="FILE", help="chest 0.2.3's sdist, or `download`")
    arguments = parser.parse_args(argv)
    if arguments.workloads[:1] in ([PLOT], [PAGES]):
        command, *files = arguments.workloads
        if not files or (command == PLOT and len(files) > 1):
            parser.error(f"{command} takes {'one ' * (command == PLOT)}FILE.json")
        return arguments
    for given, known in ((arguments.workloads, WORKLOADS), (arguments.rivals, RIVALS)):
        if unknown := sorted(set(given or ()) - set(known)):
            parser.error(f"unknown: {', '.join(unknown)}; see --help")
    if arguments.repeat is not None and arguments.repeat < 1:
        parser.error("--repeat must be at least 1")
    return arguments


def _repeats(workload: Workload, arguments: argparse.Namespace) -> int:
    """Repetitions of one workload."""
    if arguments.repeat is not None:
        return int(arguments.repeat)
    return QUICK_REPEAT if arguments.quick else workload.repeat


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and print the tables.

    Parameters
    ----------
    argv : sequence of str, optional
        Without it, those of the process.

    Returns
    -------
    int
        0; 1 when a rival failed. A goal that is not met is no failure.
    """
    arguments = _arguments(argv)
    if arguments.workloads[:1] == [PLOT]:
        print(report.plot(Path(arguments.workloads[1])))
        return 0
    if arguments.workloads[:1] == [PAGES]:
        sources = [Path(name) for name in arguments.workloads[1:]]
        print(report.pages(*sources), end="")
        found = growth.curves(report.written(*sources))
        if found:
            print(f"\n{growth.table(found)}", end="")
            growth.draw(found)
        return 0
    with tempfile.TemporaryDirectory(
        prefix="benchmarks-", dir=arguments.folder, ignore_cleanup_errors=True
    ) as name:
        if arguments.legacy is not None:
            sdist = Path(arguments.legacy)
            if arguments.legacy == "download":
                sdist = legacy.download(Path(name))
            os.environ[legacy.SDIST] = str(sdist.resolve())
        return _measure(arguments, Path(name))


def _measure(arguments: argparse.Namespace, folder: Path) -> int:
    """Run the workloads in *folder*, printing each as it ends."""
    sizes = QUICK if arguments.quick else FULL
    usual = [name for name, workload in WORKLOADS.items() if not workload.asked]
    chosen = [WORKLOADS[name] for name in arguments.workloads or usual]
    found: list[report.Row] = []
    outcomes: list[Outcome] = []
    print(report.machine(folder))
    if arguments.quick:
        print("quick: with less data than the titles say; no measure of the goals")
    print()
    for workload in chosen:
        repeat = _repeats(workload, arguments)
        with tqdm(
            total=repeat * len(workload.rivals), leave=False, disable=None
        ) as bar:

            def tick(text: str, bar: tqdm[NoReturn] = bar) -> None:
                bar.set_description(text)
                bar.update()

            ended = run(
                workload,
                sizes,
                folder,
                repeat=repeat,
                rivals=arguments.rivals,
                tick=tick,
            )
        evaluated = report.rows(workload, ended, sizes)
        print(report.table(workload, evaluated, ended), flush=True)
        found += evaluated
        outcomes += ended
        if arguments.json is not None:
            text = report.as_json(found, outcomes, sizes, folder)
            arguments.json.write_text(text, encoding="utf-8")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
