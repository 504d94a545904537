"""Training in several processes: the tree, the exchange, and runs whose bits do not depend on the number of ranks."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import required
from backends import ABSENT, Backend

from pygpt import GPT2, memory_needed
from pygpt.backends.devices import DEVICES
from pygpt.backends.library import cpu_library
from pygpt.backends.native_tensors import NativeTensors
from pygpt.command import experiment
from pygpt.command.cli import report
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.parallel import overlap
from pygpt.parallel import ranks as ranks_module
from pygpt.parallel.exchange import Exchange
from pygpt.parallel.flat import HostFlat, flat_gradients
from pygpt.parallel.messages import EXCHANGE_BYTES, Messages
from pygpt.parallel.overlap import GradientExchange, portions
from pygpt.parallel.ranks import ALONE, Ranks, open_ranks
from pygpt.parallel.tree import GradientTree, levels
from pygpt.training.settings import TrainSettings
from pygpt.training.setup import check_ranks, check_run_memory, choose_device, describe, memory_of_run
from pygpt.training.slices import sums_of_squares

ROOT = Path(__file__).parents[1]
UNIT = 2**14  # floats


# ---- the tree ----


SMALL = GPT2Config(vocab_size=300, n_positions=64, n_embd=96, n_layer=3, n_head=2)


class Recorder:
    """A model whose gradients are 1e8 and small numbers, so that the order of their sum shows."""

    def __init__(self) -> None:
        model = GPT2(replace(SMALL, n_embd=2, n_layer=1), device="cpu")
        self.parameters, self.gradients = model.parameters, model.gradients
        self.values = flat_gradients(self).values  # type: ignore[arg-type,union-attr]
        self.summed_loss = 0.0

    def zero_grad(self) -> None:
        self.values[...] = 0
        self.summed_loss = 0.0

    def add(self, number: int) -> None:
        self.values += gradient(number)
        self.summed_loss += number


SIZE = Recorder().values.size


def gradient(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=SIZE).astype(np.float32) * np.float32(10.0 ** (number % 7))


def tree_sum(first: int, count: int) -> np.ndarray:
    """The definition, written down once more."""
    if count % 2:
        return functools.reduce(
            lambda a, b: a + b, map(gradient, range(first, first + count)), np.zeros(SIZE, np.float32)
        )
    return tree_sum(first, count // 2) + tree_sum(first + count // 2, count // 2)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8, 12, 24])
def test_the_tree_sums_in_its_order(count: int) -> None:
    model = Recorder()
    tree = GradientTree(model, count, True)  # type: ignore[arg-type]
    for first in (5, 100):  # its buffers are used again
        tree.sum(first, model.add)
        np.testing.assert_array_equal(model.values, tree_sum(first, count))
        parts = count >> levels(count)
        sums = [sum(range(first + i, first + i + parts)) for i in range(0, count, parts)]
        assert tree.losses() == sums


def test_the_tree_of_a_device_that_ranks_cannot_share_is_flat() -> None:
    model = Recorder()
    tree = GradientTree(model, 4, False)  # type: ignore[arg-type]
    tree.sum(0, model.add)
    np.testing.assert_array_equal(model.values, functools.reduce(np.add, map(gradient, range(4))))
    assert tree.losses() == [6.0]


@pytest.mark.parametrize("count", [1, 4, 6])
def test_the_last_pass_of_a_tree_is_completed_in_parts(count: int) -> None:
    model, before = Recorder(), []

    @contextlib.contextmanager
    def last_pass(complete: Callable[[slice], None]) -> Iterator[None]:
        before.append(model.summed_loss)
        yield
        for part in (slice(7, SIZE), slice(0, 7)):
            complete(part)

    GradientTree(model, count, True).sum(0, model.add, last_pass)  # type: ignore[arg-type]
    np.testing.assert_array_equal(model.values, tree_sum(0, count))
    in_leaf = count >> levels(count)
    assert before == [sum(range(count - in_leaf, count - 1))]  # all but the last of its leaf


# ---- the exchange, between threads ----


class World:
    """What is used of an mpi4py communicator, for threads of this process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.channels = {(a, b): queue.SimpleQueue() for a in range(size) for b in range(size)}  # type: ignore[var-annotated]

    def of(self, rank: int) -> SimpleNamespace:
        def send(values: np.ndarray, to: int) -> SimpleNamespace:
            self.channels[rank, to].put(values.copy())
            return SimpleNamespace(Test=lambda: True)

        def receive(values: np.ndarray, source: int) -> SimpleNamespace:
            def wait() -> None:
                values[...] = self.channels[source, rank].get(timeout=20)

            def test() -> bool:
                arrived = not self.channels[source, rank].empty()
                if arrived:
                    wait()
                return arrived

            return SimpleNamespace(Wait=wait, Test=test)

        def allgather(value: object) -> list[object]:
            for other in range(self.size):
                self.channels[rank, other].put(value)
            return [self.channels[other, rank].get(timeout=20) for other in range(self.size)]

        return SimpleNamespace(
            Get_rank=lambda: rank,
            Get_size=lambda: self.size,
            Isend=send,
            Irecv=receive,
            Send=send,
            Recv=lambda values, source: receive(values, source).Wait(),
            allgather=allgather,
            bcast=lambda value: allgather(value)[0],
        )


# The emulated device keeps the stacks of its threads for each thread of the host that has used it.
THREADS = ThreadPoolExecutor(8)


def on_threads(size: int, work):  # type: ignore[no-untyped-def]
    """work(ranks) of each rank, at the same time."""
    world = World(size)
    return list(THREADS.map(lambda rank: work(Ranks(world.of(rank))), range(size)))


class Elsewhere(HostFlat):
    """As in a device's memory: the host sees copies."""

    def read(self, part: slice) -> np.ndarray:
        return self.values[part].copy()

    def room(self, part: slice) -> None:
        return None


@pytest.mark.parametrize("memory", [HostFlat, Elsewhere])
@pytest.mark.parametrize("begin", [0, 3 * UNIT])
@pytest.mark.parametrize("length", [1, UNIT - 1, 3 * UNIT + 5, 2**22 + 7 * UNIT + 3])  # of several messages, too
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_ranks_end_with_the_sum_of_their_slices(size: int, length: int, begin: int, memory: type[HostFlat]) -> None:
    length += begin
    part = slice(begin, length)
    arrays = [np.random.default_rng(rank).normal(size=length).astype(np.float32) for rank in range(size)]

    def work(ranks: Ranks) -> tuple[slice, list[slice], np.ndarray, np.ndarray]:
        exchange, values = Exchange(ranks, part, Messages(ranks)), arrays[ranks.rank].copy()
        values[:begin] = ranks.rank
        exchange.sum(memory(values))
        own = values[exchange.own].copy()
        values[begin : exchange.own.start], values[exchange.own.stop :] = np.nan, np.nan
        exchange.gather(memory(values))
        assert (values[:begin] == ranks.rank).all()
        return exchange.own, exchange.slices, own, values

    found = on_threads(size, work)
    slices = sorted((own.start, own.stop) for own, *_ in found if own.stop > own.start)
    assert [begin, *(stop for _, stop in slices)] == [*(start for start, _ in slices), length]
    assert all(start % UNIT == 0 for start, _ in slices)
    expected = functools.reduce(np.add, arrays)
    if size & (size - 1) == 0:  # the tree's bits
        level = arrays
        while len(level) > 1:
            level = [a + b for a, b in zip(level[::2], level[1::2], strict=True)]
        np.testing.assert_array_equal(found[0][3][part], level[0][part])
    for own, all_slices, values, whole in found:
        assert all_slices == [each for each, *_ in found]
        np.testing.assert_allclose(whole[part], expected[part], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(whole[part], found[0][3][part])
        np.testing.assert_array_equal(values, whole[own])


def test_sums_of_stretches_make_the_sum_of_squares() -> None:
    """Also of parts, which begin where a rank's slice may."""
    model = GPT2(SMALL, device="cpu")
    gradients = flat_gradients(model).values  # type: ignore[union-attr]
    gradients[...] = np.random.default_rng(0).normal(size=gradients.size)
    unit = cpu_library().PYGPT_SUMMED_APART
    sums = np.concatenate([sums_of_squares(gradients[:unit]), sums_of_squares(gradients[unit:])])
    assert np.sqrt(np.cumsum(sums)[-1]) == model.clip_grad_norm(0.0)
    assert len(sums_of_squares(gradients[:0])) == 0


# ---- the exchange beside the backward pass ----


VARIATIONS = [
    {},
    {"tie_word_embeddings": False, "position_embedding": "rotary"},
    {"norm_position": "post", "bias": False},
]


@pytest.mark.parametrize("grain", [UNIT, 2 * UNIT, 2**20])
@pytest.mark.parametrize("changes", VARIATIONS)
def test_portions_are_all_there_is_when_it_is_finished(
    changes: dict[str, object], grain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "GRAIN", grain)
    gradients = GPT2(replace(SMALL, **changes), device="cpu").gradients  # type: ignore[arg-type]
    assert isinstance(gradients, NativeTensors)
    places, size = {name: gradients.place(name) for name in gradients}, gradients.flat().size  # type: ignore[union-attr]
    found = portions(places, size, SMALL.n_layer)
    assert [each.after for each in found] == sorted(each.after for each in found)
    assert (len(found) > SMALL.n_layer) == (grain < size)
    ends = sorted((each.part.start, each.part.stop) for each in found)
    assert [0, *(stop for _, stop in ends)] == [*(start for start, _ in ends), size]
    assert all(start % grain == 0 for start, _ in ends)


def test_portions_are_for_several_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "GRAIN", UNIT)
    model = GPT2(SMALL, device="cpu")

    def count(hosts: int) -> int:
        ranks = rank_of(2)
        ranks.hosts = hosts
        return len(GradientExchange(model, ranks, gathered=False).exchanges)

    assert count(1) == 1 < count(2)


@pytest.mark.parametrize("recompute", ["none", "block"])
@pytest.mark.parametrize("changes", VARIATIONS)
def test_a_portion_is_finished_when_a_pass_says_so(
    changes: dict[str, object], recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread copies each while the pass goes on."""
    monkeypatch.setattr(overlap, "GRAIN", UNIT)
    model = GPT2(replace(SMALL, **changes), device="cpu", recompute=recompute)  # type: ignore[arg-type]
    gradients = model.gradients
    assert isinstance(gradients, NativeTensors)
    values = gradients.flat()
    assert values is not None
    found = portions({name: gradients.place(name) for name in gradients}, values.size, SMALL.n_layer)
    tokens = np.random.default_rng(0).integers(0, SMALL.vocab_size, (16, 64), dtype=np.int32)
    for passes in (1, 2):

        def copies(finished: int) -> list[np.ndarray]:
            taken = []
            for each in found:
                while gradients.finished() < finished + each.after:
                    time.sleep(0)
                taken.append(values[each.part].copy())
            return taken

        before = gradients.finished()
        seen = THREADS.submit(copies, before)
        model.accumulate(tokens, np.roll(tokens, -1))
        assert gradients.finished() - before == SMALL.n_layer + 2
        for each, taken in zip(found, seen.result(), strict=True):
            np.testing.assert_array_equal(taken, values[each.part], str((passes, each)))


# ---- ranks ----


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_follow_each_other(size: int) -> None:
    shares = [rank_of(size, rank).share(10) for rank in range(size)]
    assert [number for share in shares for number in share] == list(range(10))


def test_what_must_be_the_same_and_is_not() -> None:
    def work(ranks: Ranks) -> str:
        with pytest.raises(UserError) as caught:
            ranks.check_same({"seed": 7, "data": "x" if ranks.rank < 2 else "y"})
        return str(caught.value)

    assert set(on_threads(3, work)) == {"rank 2: data is y, expected x as on rank 0"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith(("OMPI_", "PMI", "SLURM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setattr(ranks_module, "_SECONDS_FOR_THE_FIRST", 0.0)


def test_without_a_launcher_there_is_one_rank(launched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "1")
    assert open_ranks(report) is ALONE
    monkeypatch.delenv("PMI_SIZE")
    assert open_ranks(report) is ALONE
    assert (ALONE.first, ALONE.several, ALONE.hosts, ALONE.on_host, ALONE.on_cores) == (True, False, 1, 1, 1)


def test_a_launcher_without_mpi4py(launched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(
        UserError, match=r"^MPICH started 2 processes, which need mpi4py.*: pip install 'pygpt\[mpi\]'$"
    ):
        open_ranks(report)
    monkeypatch.setenv("PMI_RANK", "1")
    with pytest.raises(SystemExit) as caught:  # without a word
        open_ranks(report)
    assert caught.value.code == 2


def test_a_launcher_of_another_mpi(launched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("mpi4py")
    package.rc = SimpleNamespace()  # type: ignore[attr-defined]
    world = SimpleNamespace(Get_size=lambda: 1)
    package.MPI = SimpleNamespace(COMM_WORLD=world, Get_library_version=lambda: "Open MPI v5.0.11, package: x\0")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    with pytest.raises(
        UserError, match=r"^MPICH started 2 processes, but mpi4py's library, Open MPI v5.*, sees 1: take"
    ):
        open_ranks(report)


def test_a_program_of_one_process_under_a_launcher(launched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^MPICH started 2 processes, but experiment is one: start it without"):
        experiment.main(["nothing.toml"])
    monkeypatch.setenv("PMI_SIZE", "1")
    with pytest.raises(UserError, match=r"^nothing.toml: cannot be read"):
        experiment.main(["nothing.toml"])


def rank_of(size: int, rank: int = 0) -> Ranks:
    """One of several, for what it needs not speak with the others."""
    world = SimpleNamespace(Get_rank=lambda: rank, Get_size=lambda: size, allgather=lambda value: [value] * size)
    return Ranks(world)


def test_settings_that_do_not_suit_several_ranks() -> None:
    check_ranks(TrainSettings(device="cpu", grad_accum=2), rank_of(2))
    check_ranks(TrainSettings(device="numpy"), ALONE)
    with pytest.raises(
        UserError, match=r"^device is numpy, expected cpu, cuda, cuda-emulated where 2 ranks train one model$"
    ):
        check_ranks(TrainSettings(device="numpy", grad_accum=2), rank_of(2))
    with pytest.raises(
        UserError, match=r"^grad_accum is 3, expected at least 4, the number of ranks: .*--grad-accum 4"
    ):
        check_ranks(TrainSettings(device="cpu", grad_accum=3), rank_of(4))


def test_memory_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GPT2Config(vocab_size=256, n_positions=64, n_embd=64, n_layer=2, n_head=2)
    gradient = 4 * config.num_parameters
    settings = TrainSettings(device="cpu", dtype="float32", grad_accum=8)
    one = memory_needed(config, batch_size=12, seq_len=64, training=True, recompute="cheap")
    assert memory_of_run(config, settings, 12, ALONE) == one + 3 * gradient  # three levels of the tree
    assert 7 * UNIT < config.num_parameters < 8 * UNIT  # the last slice is smaller than the others
    for size, largest in ((2, 4 * UNIT), (3, 4 * UNIT), (4, 2 * UNIT)):
        tree = levels(len(rank_of(size).share(8))) * gradient
        moments = 2 * (4 * largest - gradient)
        assert memory_of_run(config, settings, 12, rank_of(size)) == one + tree + moments + EXCHANGE_BYTES
    muon = TrainSettings(device="cpu", dtype="float32", grad_accum=4, optimizer="muon")
    needed_by_muon = memory_needed(
        config, batch_size=12, seq_len=64, training=True, recompute="cheap", optimizer="muon"
    )
    assert memory_of_run(config, muon, 12, rank_of(4)) == needed_by_muon + EXCHANGE_BYTES
    emulated = TrainSettings(device="cuda-emulated", dtype="float32", grad_accum=8)
    needed = functools.partial(memory_needed, config, batch_size=12, seq_len=64, training=True, recompute="cheap")
    assert memory_of_run(config, emulated, 12, ALONE) == needed(device="cuda-emulated") + 3 * gradient

    needed_by_one = memory_of_run(config, settings, 12, rank_of(4))
    from pygpt import memory
    from pygpt.training import setup

    for module in (setup, memory):
        monkeypatch.setattr(module, "available_memory", lambda *_: 4 * needed_by_one)
    check_run_memory(config, settings, rank_of(4))
    for module in (setup, memory):
        monkeypatch.setattr(module, "available_memory", lambda *_: 4 * needed_by_one - 1)
    with pytest.raises(UserError, match="--batch-size 11 would fit"):
        check_run_memory(config, settings, rank_of(4))
    own = replace(DEVICES["cpu"], in_host_memory=False)  # as that of a GPU for each rank
    monkeypatch.setitem(DEVICES, "cpu", own)
    for module in (setup, memory):
        monkeypatch.setattr(module, "available_memory", lambda *_: needed_by_one)
    check_run_memory(config, settings, rank_of(4))


def test_each_rank_chooses_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(number: int) -> bytes:
        return bytes([*range(15), number % 3])

    monkeypatch.setitem(DEVICES, "cuda", replace(DEVICES["cuda"], choose=choose))
    settings = TrainSettings(device="cuda", grad_accum=4)
    choose_device(settings, ALONE)
    assert on_threads(3, lambda ranks: choose_device(settings, ranks) or ranks.rank_on_host) == [0, 1, 2]

    def refused(ranks: Ranks) -> str:
        with pytest.raises(UserError) as caught:
            choose_device(settings, ranks)
        return str(caught.value)

    (sentence,) = set(on_threads(4, refused))
    assert sentence.startswith("ranks 0 and 3 would share the GPU 00010203-0405-0607-0809-0a0b0c0d0e00, expected one")


def test_a_run_says_how_many_ranks_it_has() -> None:
    config = GPT2Config(vocab_size=256, n_positions=64, n_embd=64, n_layer=2, n_head=2)
    tokens = SimpleNamespace(vocab_size=256, name="byte")
    data = SimpleNamespace(train=[0], val=[0], tokenizer=tokens)

    def said(ranks: Ranks, **changes: object) -> str:
        return describe(TrainSettings(device="cpu", dtype="float32", **changes), config, data, Path("x"), ranks)  # type: ignore[arg-type]

    assert "ranks" not in said(ALONE, grad_accum=4)
    assert said(rank_of(4), grad_accum=8).endswith("ranks   4 on 1 host, adamw's moments sliced")
    assert said(rank_of(2), grad_accum=8, optimizer="muon").endswith("ranks   2 on 1 host, muon's moments whole")
    for size, count in ((3, 6), (4, 6)):
        assert "the bits are those of this number of ranks alone" in said(rank_of(size), grad_accum=count)


# ---- runs ----

FLAGS = {
    "data": "text.txt",
    "tokenizer": "byte",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 48,
    "seq_len": 16,
    "batch_size": 3,
    "grad_accum": 8,
    "max_iters": 12,
    "eval_interval": 5,
    "eval_iters": 5,
    "checkpoint_interval": 4,
    "dropout": 0.1,
    "sample_tokens": 8,
    "threads": 1,
    "device": "cpu",
    "dtype": "float32",
}

EMULATED = {"device": "cuda-emulated", "n_layer": 1, "n_embd": 32, "seq_len": 8, "grad_accum": 4, "max_iters": 6}


def mpi() -> str:
    """The launcher of the MPI that mpi4py uses."""
    required.module("mpi4py", "mpi")
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.is_file() else shutil.which("mpiexec")
    return found or required.skip("mpi", "needs mpiexec")


def emulated() -> None:
    """Skips where there is no such device."""
    if absence := ABSENT.get(Backend("cuda-emulated", "float32", "fast")):
        pytest.skip(absence)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a text."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    Path("text.txt").write_text("".join(draw.choices(["the ", "cat ", "sat ", "on ", "a ", "mat.\n"], k=3000)))
    return tmp_path


def flags(**changes: object) -> list[str]:
    values = {name: str(value) for name, value in {**FLAGS, **changes}.items()}
    return [part for name, value in values.items() for part in ("--" + name.replace("_", "-"), value)]


def command(count: int, argv: list[str], program: str | None = None) -> list[str]:
    """A command line for so many ranks; program: of Python, in place of scripts/train.py."""
    script = [str(ROOT / "scripts" / "train.py")] if program is None else ["-c", program]
    words = [sys.executable, *script, *argv]
    if count == 1:
        return words
    launcher = mpi()
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True, check=False).stdout
    crowded = ["--oversubscribe", "--bind-to", "none"] if "open" in version.lower() else []
    return [launcher, "-n", str(count), *crowded, *words]


# scripts/train.py as on several hosts, between which even small models are summed in portions beside the backward pass
IN_PORTIONS = f"""
import sys
sys.path.insert(0, {str(ROOT / "scripts")!r})
from pygpt.command.cli import run
from pygpt.command.train import main
from pygpt.parallel import overlap
from pygpt.parallel.ranks import Ranks
overlap.GRAIN = {UNIT}
init, cut = Ranks.__init__, overlap.portions
def on_hosts(self, *arguments):
    init(self, *arguments)
    self.hosts = self.size
def portions(*arguments):
    found = cut(*arguments)
    assert len(found) > 2
    return found
Ranks.__init__, overlap.portions = on_hosts, portions
"""
RUN = "run(lambda: main(sys.argv[1:]))"


def environment(**changes: str) -> dict[str, str]:
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**os.environ, **root, "PYTHONPATH": str(ROOT), **changes}


def run(count: int, argv: list[str], program: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    words = command(count, argv, program)
    return subprocess.run(words, env=environment(**variables), capture_output=True, text=True, check=False, timeout=300)


def outcome(folder: str) -> tuple[dict[str, str], list[dict[str, float]]]:
    """What two runs that are the same have in common: digests of their models, and their logs without speeds."""
    files = sorted([*Path(folder).glob("*/*"), *Path(folder).glob("sample.txt")])
    records = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
    digests = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return digests, [{name: value for name, value in r.items() if name != "tokens_per_second"} for r in records]


@pytest.mark.parametrize(
    ("changes", "nccl"),
    [
        ({}, ""),
        ({"dtype": "bfloat16", "objective": "mlm"}, ""),
        ({"optimizer": "momentum", "grad_clip": 0.05, "grad_accum": 12}, ""),
        ({"optimizer": "sgd", "kernels": "plain"}, ""),
        ({"optimizer": "muon"}, ""),
        (EMULATED, ""),
        (EMULATED, "0"),
        ({**EMULATED, "dtype": "bfloat16"}, "0"),
        ({**EMULATED, "dtype": "bfloat16", "optimizer": "momentum", "grad_clip": 0.05}, ""),
        ({**EMULATED, "dtype": "bfloat16", "optimizer": "muon"}, "0"),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) if isinstance(changes, dict) else f"nccl {changes}",
)
def test_the_bits_of_a_run_do_not_depend_on_the_number_of_ranks(
    here: Path, changes: dict[str, object], nccl: str
) -> None:
    mpi()
    if changes.get("device") == "cuda-emulated":
        emulated()
    for count in (1, 2, 4):
        done = run(count, flags(out_dir=f"ranks-{count}", **changes), IN_PORTIONS + RUN, PYGPT_NCCL=nccl)
        assert done.returncode == 0, done.stderr
        assert ("exchanged by NCCL" in done.stdout) == (count > 1 and "device" in changes and not nccl)
        assert done.stdout.count(" steps in ") == 1  # one rank speaks
        assert ("\nranks   " in done.stdout) == (count > 1)
    assert outcome("ranks-1") == outcome("ranks-2") == outcome("ranks-4")


def test_a_number_of_ranks_that_is_no_power_of_two(here: Path) -> None:
    mpi()
    runs = [run(count, flags(out_dir=f"ranks-{count}")) for count in (1, 3)]
    assert [done.returncode for done in runs] == [0, 0], runs[1].stderr
    assert "the bits are those of this number of ranks alone" in runs[1].stdout
    losses = [[record["val_loss"] for record in outcome(f"ranks-{n}")[1] if "val_loss" in record] for n in (1, 3)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def python_processes(launcher: int) -> list[int]:
    """The ranks below a launcher, whatever stands between, in the order in which they were started."""
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()[1:]]
    below = {launcher}
    for _ in range(4):
        below |= {int(pid) for pid, parent, _ in rows if int(parent) in below}
    return sorted(int(pid) for pid, _, words in rows if int(pid) in below and words.startswith(sys.executable + " "))


def stop_after_a_checkpoint(count: int, argv: list[str], folder: str, rank: int, number: int) -> tuple[int, str]:
    """Send a signal to a rank of a run that has a checkpoint.  Returns the launcher's status and what it printed."""
    with subprocess.Popen(
        command(count, argv, IN_PORTIONS + RUN),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        state = Path(folder, "last", "training_state.json")
        deadline = time.monotonic() + 60
        while not state.exists() or json.loads(state.read_text())["step"] < 4:
            assert time.monotonic() < deadline and process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.02)
        os.kill(python_processes(process.pid)[rank], number)
        out, _ = process.communicate(timeout=30)
        return process.returncode, out


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_goes_on_with_another_number_of_ranks(here: Path, rank: int, number: int) -> None:
    mpi()
    settings = {"max_iters": 400, "eval_interval": 100}
    assert run(1, flags(out_dir="whole", **settings)).returncode == 0
    status, out = stop_after_a_checkpoint(2, flags(out_dir="parts", **settings), "parts", rank, number)
    assert status != 0
    if number == signal.SIGTERM:
        assert out.count("stopped by SIGTERM after step ") == out.count("saved parts/last; go on with: ") == 1, out
    step = json.loads(Path("parts/last/training_state.json").read_text())["step"]
    assert 4 <= step < 400
    done = run(4 if rank else 1, ["--resume", "parts"])
    assert done.returncode == 0, done.stderr
    assert outcome("parts") == outcome("whole")


def test_an_error_of_all_ranks_is_one_sentence(here: Path) -> None:
    mpi()
    done = run(2, flags(out_dir="x", grad_accum=1))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("error: grad_accum is 1, expected at least 2, the number of ranks") == 1
    assert not Path("x").exists()


FAILING = """
from pygpt.errors import UserError
from pygpt.model import GPT2
from pygpt.training.run_folder import RunFolder
from pygpt.parallel.ranks import Ranks
from mpi4py import MPI
def fail(*_, **__):
    raise {error}
if MPI.COMM_WORLD.Get_rank() == {rank}:
    {place} = fail
"""


@pytest.mark.parametrize(
    ("rank", "place", "error", "sentence"),
    [
        (0, "RunFolder.save_last", "UserError('last: cannot be saved: no space')", "error: last: cannot be saved"),
        (1, "GPT2.accumulate", "MemoryError('no room')", "error: rank 1: the run does not fit into memory: no room"),
        (1, "GPT2.accumulate", "ValueError('a defect')", "ValueError: a defect"),
    ],
)
def test_an_error_of_one_rank_ends_all(here: Path, rank: int, place: str, error: str, sentence: str) -> None:
    mpi()
    program = IN_PORTIONS + FAILING.format(rank=rank, place=place, error=error) + RUN
    done = run(2, flags(out_dir="x"), program)
    assert done.returncode == (1 if "ValueError" in error else 2), done.stderr
    assert done.stderr.count(sentence) == 1, done.stderr


KILLED = """
import os, signal
from pygpt.backends.native_parts import NativeParts
from mpi4py import MPI
exchange, calls = NativeParts.exchange, []
def die(self, *arguments, **others):
    calls.append(1)
    if len(calls) == 9:  # two a step
        os.kill(os.getpid(), signal.SIGKILL)
    exchange(self, *arguments, **others)
if MPI.COMM_WORLD.Get_rank() == {rank}:
    NativeParts.exchange = die
"""


@pytest.mark.parametrize(("rank", "dtype", "count"), [(0, "float32", 2), (1, "float32", 2), (1, "bfloat16", 4)])
def test_a_rank_is_killed_while_another_waits_for_it_in_nccl(here: Path, rank: int, dtype: str, count: int) -> None:
    mpi()
    emulated()
    settings = {**EMULATED, "dtype": dtype, "checkpoint_interval": 2}
    assert run(1, flags(out_dir="whole", **settings)).returncode == 0
    words = command(2, flags(out_dir="parts", **settings), IN_PORTIONS + KILLED.format(rank=rank) + RUN)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    step = json.loads(Path("parts/last/training_state.json").read_text())["step"]
    assert 2 <= step < 6
    done = run(count, ["--resume", "parts"])
    assert done.returncode == 0, done.stderr
    assert outcome("parts") == outcome("whole")


MEASURED = """
import sys
sys.path.insert(0, {scripts!r})
from pygpt.backends.devices import DEVICES
from pygpt.command import train
from pygpt.command.cli import run
from pygpt.training import train as module
create = module.create_model
def create_model(*arguments):
    free, total = DEVICES["cuda-emulated"].memory()
    print("taken", total - free)
    return create(*arguments)
module.create_model = create_model
run(lambda: train.main(sys.argv[1:]))
"""


def test_a_sample_has_the_memory_of_the_training_that_is_over(here: Path) -> None:
    """For a model with all float32 weights, where each rank has had a slice."""
    mpi()
    emulated()
    words = flags(out_dir="x", **EMULATED, dtype="bfloat16")
    done = run(2, words, MEASURED.format(scripts=str(ROOT / "scripts")), PYGPT_EMULATION_MEMORY=str(2**30))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\ntaken 0\n") == done.stdout.count("\ntaken ") == 2


def test_two_ranks_and_one_gpu(here: Path) -> None:
    mpi()
    emulated()
    done = run(2, flags(out_dir="x", **EMULATED), PYGPT_EMULATION_DEVICES="1")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("error: ranks 0 and 1 would share the GPU") == 1, done.stderr
    assert not Path("x", "last").exists()


def test_ranks_with_other_settings(here: Path) -> None:
    mpi()
    first, second = (command(2, flags(out_dir="x", seed=seed)) for seed in (0, 1))
    at = first.index("-n")
    program = second.index(sys.executable)  # the launcher's own options hold for both
    words = [*first[:at], "-n", "1", *first[at + 2 :], ":", "-n", "1", *second[program:]]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("error: rank 1: seed is 1, expected 0 as on rank 0") == 1, done.stderr


def test_one_process_does_not_import_mpi4py() -> None:
    assert importlib.util.find_spec("pygpt.parallel.ranks")
    program = "import sys, pygpt.command.train as t; t.open_ranks(None); sys.exit('mpi4py' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True)
