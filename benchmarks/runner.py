"""Runs workloads: rivals interleaved, fresh folders, failures kept as rows.

Owns: the order of the repetitions, the folders, the processes. Does not own: what is
timed (`benchmarks.workloads`) or how it is shown (`benchmarks.report`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import arrays as arrays  # enters its workloads
from benchmarks import queues as queues  # enters its workloads
from benchmarks import sharing as sharing  # and this its
from benchmarks import small as small  # and this its
from benchmarks.plan import Case, Figures, Sizes, Workload
from benchmarks.rivals import RIVALS
from benchmarks.workloads import WORKLOADS

__all__ = ["Outcome", "in_a_process", "run"]

Told = tuple[Figures | None, str]  # what was measured; or the error


@dataclass(slots=True)
class Outcome:
    """What one rival showed in one workload.

    Attributes
    ----------
    workload, rival : str
        Their names.
    samples : list of Figures
        One per repetition; the n-th of all rivals ran one after the other.
    skipped : str
        Why it did not take part; empty when it did.
    failed : str
        The error that ended it; empty when none did.
    stopped : str
        That it took longer than the workload's limit; empty when it did not.
    """

    workload: str
    rival: str
    samples: list[Figures] = field(default_factory=list)
    skipped: str = ""
    failed: str = ""
    stopped: str = ""


def run(
    workload: Workload,
    sizes: Sizes,
    folder: Path,
    *,
    repeat: int,
    rivals: Sequence[str] | None = None,
    fair: bool = True,
    tick: Callable[[str], object] = str,
) -> list[Outcome]:
    """Measure all rivals of *workload*, A B C A B C …

    Parameters
    ----------
    workload : Workload
        What to measure.
    sizes : Sizes
        With how much data.
    folder : Path
        Where the stores go; what is made in it is removed again.
    repeat : int
        Repetitions.
    rivals : sequence of str, optional
        Only these.
    fair : bool, optional
        Wait for the disk before large workloads, and give those that ask for it a
        process for each repetition. ``False``: only try whether it runs.
    tick : callable, optional
        Called with ``workload: rival`` before each repetition.

    Returns
    -------
    list of Outcome
        One per rival of the workload, also of those skipped or failed.
    """
    apart = fair and (workload.alone or workload.limit is not None)
    root = folder / workload.name
    outcomes = [
        Outcome(workload.name, name, skipped=_absence(workload, name))
        for name in workload.rivals
        if rivals is None or name in rivals
    ]
    try:
        for outcome in outcomes:
            home = root / outcome.rival
            if workload.prepare is not None and not outcome.skipped:
                home.mkdir(parents=True)
                _attempt(_prepare, outcome, sizes, home, apart)
        for repetition in range(repeat):
            for outcome in outcomes:
                tick(f"{workload.name}: {outcome.rival}")
                if not (outcome.skipped or outcome.failed or outcome.stopped):
                    if fair and workload.clean:
                        # What is still unwritten would be written on our time.
                        os.sync()
                    _repeat(workload, outcome, sizes, root, repetition, apart)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return outcomes


def _absence(workload: Workload, rival: str) -> str:
    """Why *rival* cannot take part; empty when it can."""
    for module in workload.needs:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return RIVALS[rival].absence()


def _repeat(
    workload: Workload,
    outcome: Outcome,
    sizes: Sizes,
    root: Path,
    repetition: int,
    apart: bool,
) -> None:
    """One repetition of one rival, in a fresh folder unless one was prepared."""
    home = root / outcome.rival
    if workload.prepare is None:
        home = root / f"{outcome.rival}-{repetition}"
        home.mkdir(parents=True)
    figures = _attempt(_measure, outcome, sizes, home, apart)
    if figures is not None:
        outcome.samples.append(figures)
    if workload.clean:
        shutil.rmtree(home)


def _attempt(
    step: Callable[[str, str, Sizes, Path], Figures | None],
    outcome: Outcome,
    sizes: Sizes,
    home: Path,
    apart: bool,
) -> Figures | None:
    """Run *step*, here or in a process of its own; note its failure."""
    arguments = (outcome.workload, outcome.rival, sizes, home)
    if not apart:
        figures, outcome.failed = _outcome(step, arguments)
        return figures
    limit = WORKLOADS[outcome.workload].limit if step is _measure else None
    told = in_a_process(step, arguments, limit)
    if told is None:
        outcome.stopped = f"not finished in {limit:g} s"
        return None
    figures, outcome.failed = told
    return figures


def in_a_process(
    step: Callable[..., Figures | None],
    arguments: Sequence[object],
    limit: float | None,
) -> Told | None:
    """What *step* gave, or its error, in a process of its own; None: it took longer.

    Parameters
    ----------
    step : callable
        Of a module that can be imported.
    arguments : sequence
        Picklable.
    limit : float or None
        Seconds after which the process is killed.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(theirs, step, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit):
            return None
        told: Told = ours.recv()
    except EOFError:
        process.join()
        told = None, f"its process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
    return told


def _tell(
    pipe: Connection, step: Callable[..., Figures | None], arguments: Sequence[object]
) -> None:
    """In the process: say how it ended."""
    pipe.send(_outcome(step, arguments))


def _outcome(step: Callable[..., Figures | None], arguments: Sequence[object]) -> Told:
    try:
        return step(*arguments), ""
    except Exception as error:  # noqa: BLE001
        # Any rival may fail in any way; that is a row of the table, not the end.
        return None, f"{type(error).__name__}: {error}"


def _prepare(workload: str, rival: str, sizes: Sizes, home: Path) -> None:
    """Fill the folder."""
    prepare = WORKLOADS[workload].prepare
    if prepare is not None:
        prepare(Case(RIVALS[rival], sizes, home))


def _measure(workload: str, rival: str, sizes: Sizes, home: Path) -> Figures:
    """Measure once."""
    return WORKLOADS[workload].run(Case(RIVALS[rival], sizes, home))
