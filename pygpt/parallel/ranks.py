"""The processes of a run, which MPI calls ranks, and what they tell each other.

A launcher (mpiexec, srun) starts the same command several times and says so in the environment. Where it has not,
there is one rank, and mpi4py is not imported.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from pygpt.errors import UserError

T = TypeVar("T")

# how many processes a launcher has started, and which of them this one is
_LAUNCHERS = {
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "MPICH": ("PMI_SIZE", "PMI_RANK"),  # and what is made of it
    "Slurm": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
}
_SECONDS_FOR_THE_FIRST = 1.0


class _Launch(NamedTuple):
    by: str
    size: int
    rank: int


class Ranks:
    """The processes of a run; all of them make the same calls in the same order.

    An exception that leaves a `with` block of several ranks ends them all, since the others would wait for this one for
    ever: `report` prints it and gives the exit status.  What all ranks raise alike, the first alone prints.
    Within the block, the others print nothing else.
    """

    def __init__(self, world: Any = None, report: Callable[[BaseException, str], int] | None = None) -> None:
        """world: mpi4py's communicator; None: one rank."""
        self.world, self._report = world, report
        self.rank: int = 0 if world is None else world.Get_rank()
        self.size: int = 1 if world is None else world.Get_size()
        self._quiet = contextlib.ExitStack()
        host = os.uname().nodename
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        places = self.gather((host, cores))
        self.hosts = len({each for each, _ in places})
        self.rank_on_host = sum(each == host for each, _ in places[: self.rank])
        self.on_host = sum(each == host for each, _ in places)
        self.on_cores = places.count((host, cores))
        """How many ranks run on this one's machine, and on just its cores, where a launcher gave each the same."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.size > 1

    def __enter__(self) -> Ranks:
        if not self.first:
            nothing = self._quiet.enter_context(Path(os.devnull).open("w"))
            self._quiet.enter_context(contextlib.redirect_stdout(nothing))
            self._quiet.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._quiet.close()
        if error is None or not self.several or isinstance(error, SystemExit):
            return
        place = ""
        if not self.first:
            time.sleep(_SECONDS_FOR_THE_FIRST)  # which ends this rank, too, if it met the same
            place = f"rank {self.rank}: "
        assert self._report is not None
        status = self._report(error, place)
        sys.stderr.flush()
        self.world.Abort(status)
        os._exit(status)  # MPICH's Abort may return

    # ---- words ----

    def from_first(self, value: T) -> T:
        """The value that the first rank gives."""
        return value if self.world is None else self.world.bcast(value)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        return [value] if self.world is None else self.world.allgather(value)

    def in_turn(self, make: Callable[[], T]) -> T:
        """What `make` returns; the others begin when the first has done, and find files that it has left."""
        if self.first:
            made = make()
            self.gather(None)
            return made
        self.gather(None)
        return make()

    def check_same(self, facts: Mapping[str, object]) -> None:
        """Raises UserError, on all ranks, when one of these differs from the first rank's."""
        gathered = self.gather({name: str(value) for name, value in facts.items()})
        for rank, found in enumerate(gathered):
            for name, expected in gathered[0].items():
                if found[name] != expected:
                    raise UserError(f"rank {rank}: {name} is {found[name]}, expected {expected} as on rank 0")

    # ---- shares ----

    def share(self, count: int) -> range:
        """Which of `count` things that follow each other are this rank's."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)


ALONE = Ranks()


def open_ranks(report: Callable[[BaseException, str], int]) -> Ranks:
    """The ranks that a launcher has started, or one.  Raises UserError where they cannot find each other.

    report: prints an error behind the name of the rank, "" for the first, and returns the exit status.
    """
    launch = _launched()
    if launch is None or launch.size == 1:
        return ALONE
    try:
        return Ranks(_world(launch), report)
    except UserError:
        if launch.rank:
            time.sleep(_SECONDS_FOR_THE_FIRST)
            sys.exit(2)  # the first has said why
        raise


def check_alone(program: str) -> None:
    """Raises UserError where a launcher has started several processes of a program that knows only one."""
    launch = _launched()
    if launch is not None and launch.size > 1:
        raise UserError(
            f"{launch.by} started {launch.size} processes, but {program} is one: start it without a launcher"
        )


def _launched() -> _Launch | None:
    for by, (size, rank) in _LAUNCHERS.items():
        with contextlib.suppress(KeyError, ValueError):
            return _Launch(by, int(os.environ[size]), int(os.environ[rank]))
    return None


def _world(launch: _Launch) -> Any:
    started = f"{launch.by} started {launch.size} processes"
    try:
        import mpi4py

        mpi4py.rc.thread_level = "serialized"  # one thread at a time speaks with the others
        from mpi4py import MPI
    except ImportError:
        raise UserError(f"{started}, which need mpi4py to train together: pip install 'pygpt[mpi]'") from None
    except RuntimeError as error:
        raise UserError(f"{started}, and mpi4py finds no MPI library: {str(error).splitlines()[0]}") from None
    world = MPI.COMM_WORLD
    if world.Get_size() != launch.size:
        library = MPI.Get_library_version().split("\n")[0].rstrip("\0")[:40]
        raise UserError(
            f"{started}, but mpi4py's library, {library}, sees {world.Get_size()}: take the launcher that belongs to it"
            f"{', or srun --mpi=pmix or pmi2' if launch.by == 'Slurm' else ''}"
        )
    return world
