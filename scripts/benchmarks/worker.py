"""Alternatives in processes of their own, which take turns.

So each has its threads and its OpenMP to itself, while the others sleep, and its memory can be measured.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from pygpt.errors import UserError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_OPENBLAS_CHOICES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # some machines hold it to slower kernels
_PATIENCE = 2.0  # seconds


class Side(Protocol):
    """An alternative: a description that can be sent to another process, where it does its work."""

    @property
    def name(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def prepare(self, case: Any) -> Callable[[], Any]:
        """What is timed: a function without arguments, its inputs made before.

        A number or a dictionary that it returns is told to the process that asks.
        """


class UnavailableError(Exception):
    """An alternative cannot do what was asked; the sentence says why."""


class Worker:
    """The process of a side.  Its methods raise UnavailableError when the side fails, or UserError if it is pygpt's."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.side), daemon=True)
        variables = dict.fromkeys(_THREAD_VARIABLES, str(self.side.threads)) | dict.fromkeys(_OPENBLAS_CHOICES)
        with _ignored_interrupts(), _environment(variables):
            self._process.start()
        theirs.close()

    def prepare(self, case: Hashable, patience: float | None = None) -> tuple[Any, float]:
        """Make a case ready and run it twice.  Returns what the first run returned, and the seconds of the second.

        patience: seconds after which an alternative to pygpt is given up; its process begins anew, with no case ready.
        """
        found: tuple[Any, float] = self._ask("prepare", case, patience=patience)
        return found

    def sample(self, case: Hashable, calls: int) -> tuple[Any, float]:
        """Returns what the last of some calls returned, and the seconds of one of them."""
        found: tuple[Any, float] = self._ask("sample", case, calls)
        return found

    def forget(self, case: Hashable) -> None:
        """Let go of a case's memory."""
        self._ask("forget", case)

    def peak_memory(self) -> int:
        """The most bytes that the process has had in memory."""
        return int(self._ask("peak_memory"))

    def close(self) -> None:
        self._connection.close()  # upon which it ends, unless it is in the middle of something
        self._process.join(_PATIENCE)
        self._process.terminate()
        self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, *message: Any, patience: float | None = None) -> Any:
        try:
            self._connection.send(message)
            if patience is not None and self.side.name != "pygpt" and not self._connection.poll(patience):
                self.close()
                self._start()
                raise UnavailableError(f"two calls took longer than {patience:.0f} s")
            failure, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            failure, answer = f"its process ended with status {self._process.exitcode}", None
        if failure is None:
            return answer
        if self.side.name == "pygpt":
            raise UserError(f"pygpt cannot be measured: {failure}")
        raise UnavailableError(failure)


@dataclass(frozen=True)
class Turns:
    """How a measurement is made."""

    repeats: int = 5
    seconds: float = 0.1  # that a sample takes at least; a shorter call is repeated
    patience: float = 300.0  # seconds for two calls of an alternative, and for its samples: a slow one has fewer


@dataclass(frozen=True)
class Timing:
    """Several measurements of one case, or why there is none."""

    seconds: tuple[float, ...] = ()  # of one call
    results: tuple[Any, ...] = ()
    first_result: Any = None
    absent: str | None = None

    @property
    def median(self) -> float | None:
        """Seconds of one call; None where there is no measurement."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def median_result(self) -> float:
        return statistics.median(self.results)


def take_turns(
    entries: Sequence[tuple[Worker, Hashable]], turns: Turns, announce: Callable[[float], None] | None = None
) -> list[Timing]:
    """Measure each case, one sample of each after the other, again and again.

    announce: is told how many seconds the measurement will take, once that is known.
    """
    calls: list[int] = []
    samples_of: list[int] = []
    first_results: list[Any] = []
    absent: dict[int, str] = {}
    expected = 0.0
    for number, (worker, case) in enumerate(entries):
        first, seconds = None, turns.seconds
        try:
            first, seconds = worker.prepare(case, turns.patience)
        except UnavailableError as error:
            absent[number] = str(error)
        first_results.append(first)
        calls.append(max(1, round(turns.seconds / max(seconds, 1e-9))))
        seconds = max(seconds, turns.seconds)
        few = worker.side.name != "pygpt" and seconds * turns.repeats > turns.patience
        samples_of.append(max(1, int(turns.patience / seconds)) if few else turns.repeats)
        expected += 0.0 if number in absent else seconds * samples_of[number]
    if announce is not None:
        announce(expected)

    samples: list[list[tuple[Any, float]]] = [[] for _ in entries]
    for turn in range(turns.repeats):
        for number, (worker, case) in enumerate(entries):
            if number in absent or turn >= samples_of[number]:
                continue
            try:
                samples[number].append(worker.sample(case, calls[number]))
            except UnavailableError as error:
                absent[number] = str(error)
    for number, (worker, case) in enumerate(entries):
        if number not in absent:
            worker.forget(case)

    timings = []
    for number, found in enumerate(samples):
        if number in absent:
            timings.append(Timing(absent=absent[number]))
        else:
            results, seconds_of = tuple(result for result, _ in found), tuple(seconds for _, seconds in found)
            timings.append(Timing(seconds_of, results, first_results[number]))
    return timings


def _serve(connection: Connection, side: Side) -> None:
    """The worker's process: answers until nobody asks."""
    prepared: dict[Hashable, Callable[[], Any]] = {}

    def prepare(case: Hashable) -> tuple[Any, float]:
        prepared[case] = side.prepare(case)
        first = _told(prepared[case]())
        seconds = _timed(prepared[case], 1)[1]
        _wait_for_threads()
        return first, seconds

    def sample(case: Hashable, calls: int) -> tuple[Any, float]:
        if calls > 1:
            prepared[case]()  # wakes the threads, and fills the caches
        found = _timed(prepared[case], calls)
        _wait_for_threads()
        return found

    def forget(case: Hashable) -> None:
        del prepared[case]

    answers: dict[str, Callable[..., Any]] = {
        "prepare": prepare,
        "sample": sample,
        "forget": forget,
        "peak_memory": _peak_memory,
    }
    while True:
        try:
            command, *arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            failure, answer = None, answers[command](*arguments)
        except Exception as error:
            failure, answer = _sentence(error), None
        connection.send((failure, answer))


def _timed(function: Callable[[], Any], calls: int) -> tuple[Any, float]:
    start = time.perf_counter()
    for _ in range(calls):
        result = function()
    seconds = (time.perf_counter() - start) / calls
    return _told(result), seconds


def _wait_for_threads() -> None:
    """Until they sleep: after a product, those of OpenBLAS busy-wait for the next one for 0.1 s."""
    end = time.perf_counter() + _PATIENCE
    while time.perf_counter() < end:
        before = _thread_times()
        time.sleep(0.02)
        if all(seconds - before.get(thread, 0.0) < 0.002 for thread, seconds in _thread_times().items()):
            return


def _thread_times() -> dict[str, float]:
    """Seconds in which each other thread has run or waited for a core, which other programs may have had.

    Linux tells them apart; elsewhere there is one entry, of the whole process, which knows of no waiting.
    """
    times = {}
    for folder in Path("/proc/self/task").glob("[0-9]*"):
        if folder.name != str(threading.get_native_id()):
            with suppress(OSError, ValueError):  # it has just ended
                times[folder.name] = sum(map(int, (folder / "schedstat").read_text().split()[:2])) * 1e-9
    return times or {"all": time.process_time()}


def _told(result: Any) -> Any:
    """What is sent to the other process: no arrays."""
    return result if isinstance(result, (int, float, dict)) else None


def _sentence(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    if isinstance(error, UserError):
        return str(error)
    first_line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first_line[:200]}"


def _peak_memory() -> int:
    """Linux tells it of this process alone; elsewhere it may include that of the process that started this one."""
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """A process that is started in the block does not see Ctrl-C; the one that asks does, and ends it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Variables for a process that is started in the block; None is for one that it shall not have."""
    before = {name: os.environ.get(name) for name in values}
    _set_environment(values)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
