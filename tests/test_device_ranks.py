"""What ranks do with a model on a CUDA device: sums of gradients, parts of flat buffers, updates of slices, NCCL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_cuda import SMALL, batch, device, emulated, every_dtype, model_of
from test_parallel import on_threads, rank_of

from pygpt.backends.devices import DEVICES
from pygpt.backends.library import OK, cpu_library
from pygpt.backends.native_parts import NativeParts
from pygpt.backends.nccl import _in_words, installed, open_nccl
from pygpt.config import GPT2Config
from pygpt.errors import DeviceError, UserError
from pygpt.model import GPT2, set_threads
from pygpt.parallel.exchange import slices
from pygpt.parallel.flat import parts_of
from pygpt.parallel.messages import EXCHANGE_BYTES
from pygpt.parallel.nccl import Nccl, nccl_version
from pygpt.parallel.ranks import ALONE, Ranks
from pygpt.parallel.tree import GradientTree, levels
from pygpt.training.optimizer import update
from pygpt.training.settings import TrainSettings
from pygpt.training.setup import create_optimizer, describe, memory_of_run

__all__ = ["device", "emulated"]  # fixtures
UNIT = 2**14  # floats
CONFIG = replace(SMALL, n_embd=64)  # of three such


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of the emulation, for each rank, which is a thread itself."""
    set_threads(1)
    yield
    set_threads(None)


def parts(model: GPT2) -> NativeParts:
    found = parts_of(model)
    assert found is not None
    return found


def everything(model: GPT2, kind: str) -> np.ndarray:
    return parts(model).read(kind, slice(0, parts(model).size))


def with_gradients(device: str, dtype: str) -> GPT2:
    model = model_of(device, CONFIG, dtype=dtype)
    model.zero_grad()
    model.forward_backward(*batch(CONFIG, 2, 11))
    return model


@every_dtype
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "momentum"])
@pytest.mark.parametrize("max_norm", [0.0, 0.1])
def test_updates_of_slices_are_those_of_the_whole(
    device: str, dtype: str, optimizer: str, max_norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYGPT_ROUNDING", "stochastic")  # which depends on the place of a weight

    def update(model: GPT2) -> None:
        if optimizer == "adamw":
            model.adamw_step(1e-2)
        else:
            model.sgd_step(1e-2, 0.9 if optimizer == "momentum" else 0.0)

    whole = with_gradients(device, dtype)
    size = parts(whole).size
    middle = size // UNIT // 2 * UNIT
    assert 0 < middle < size
    slices = [slice(0, middle), slice(middle, size), slice(size // UNIT * UNIT, size // UNIT * UNIT)]  # one has none
    ranks = [with_gradients(device, dtype) for _ in slices]
    held = [parts(model) for model in ranks]
    for each, own in zip(held, slices, strict=True):
        each.own(own)
    norm = whole.clip_grad_norm(max_norm)
    assert norm > 0.1
    sums = np.concatenate([each.sums_of_squares() for each in held])
    assert [each.clip(sums, max_norm) for each in held] == [norm] * 3
    for model in (whole, *ranks):
        update(model)
    kinds = {"adamw": ["first_moments", "second_moments"], "momentum": ["first_moments"]}.get(optimizer, [])
    for each, own in zip(held, slices, strict=True):
        for kind in ("parameters", "gradients", *kinds):
            np.testing.assert_array_equal(each.read(kind, own), everything(whole, kind)[own])
    weights = everything(whole, "rounded")
    assert np.array_equal(weights, everything(whole, "parameters")) == (dtype == "float32")
    for each, own in zip(held, slices, strict=True):  # put together: the layers see the others' weights
        np.testing.assert_array_equal(each.read("rounded", own), weights[own])
        for other in slices[:2]:
            if other != own:
                each.write("rounded", other, weights[other])
    tokens, targets = batch(CONFIG, 2, 11, seed=1)
    assert {model.forward(tokens, targets) for model in ranks} == {whole.forward(tokens, targets)}


def test_a_sum_goes_through_the_tree(device: str) -> None:
    model = model_of(device, CONFIG)

    def one(number: int) -> None:
        model.accumulate(*batch(CONFIG, 2, 11, seed=number), scale=0.25, dropout_step=number)

    singles = []
    for number in range(4):
        model.zero_grad()
        one(number)
        singles.append((everything(model, "gradients"), model.summed_loss))
    tree = GradientTree(model, 4, True)
    for _ in range(2):  # its buffers are used again
        tree.sum(0, one)
        (a, b, c, d), losses = zip(*singles, strict=True)
        np.testing.assert_array_equal(everything(model, "gradients"), (a + b) + (c + d))
        assert tree.losses() == list(losses)


def test_parts_are_read_written_and_added_to(device: str) -> None:
    model = with_gradients(device, "float32")
    held, before = parts(model), everything(model, "gradients")
    part = slice(UNIT, UNIT + 1001)
    more = np.random.default_rng(0).normal(size=part.stop - part.start).astype(np.float32)
    held.add_to_gradients(part, more)
    expected = before.copy()
    expected[part] += more
    np.testing.assert_array_equal(everything(model, "gradients"), expected)
    held.write("first_moments", part, more)
    moments = everything(model, "first_moments")
    np.testing.assert_array_equal(moments[part], more)
    assert np.count_nonzero(moments) == np.count_nonzero(more)
    assert held.read("second_moments", slice(5, 5)).size == 0


def test_what_parts_refuse(device: str) -> None:
    model = with_gradients(device, "float32")
    held = parts(model)
    size = held.size
    with pytest.raises(UserError, match=rf"^2 numbers from {size - 1} on were asked for, expected some of {size} "):
        held.read("parameters", slice(size - 1, size + 1))
    with pytest.raises(UserError, match=rf"^5 numbers from 5 on, expected some of {size} from a multiple of {UNIT}"):
        held.own(slice(5, 10))
    with pytest.raises(UserError, match=rf"^parts of gradients are added from a multiple of {UNIT} on, not from 5$"):
        held.add_to_gradients(slice(5, 6), np.ones(1, np.float32))
    with pytest.raises(UserError, match=r"^no gradients were kept on level 0$"):
        held.add_kept_gradients(0, slice(None))
    with pytest.raises(UserError, match=r"^only gradients are added$"):
        held.exchange("rounded", 0, slice(0, 5), slice(5, 10), adding=True)
    with pytest.raises(UserError, match=r"^level is 1, expected 0 ... 0$"):
        held.keep_gradients(1)
    held.own(slice(UNIT, size))
    with pytest.raises(UserError, match=rf"^1 sums were given, expected {-(-size // UNIT)}$"):
        held.clip(np.ones(1), 1.0)
    with pytest.raises(UserError, match=rf"^10 numbers from 0 on were asked for, expected some of {size - UNIT} from"):
        held.read("first_moments", slice(0, 10))
    for use in (lambda: dict(model.first_moments), lambda: model.muon_step(1e-3)):
        with pytest.raises(UserError, match=r"^of the moments this process has only a part$"):
            use()
    model.adamw_step(1e-3)
    with pytest.raises(UserError, match=r"^the moments are there already$"):
        held.own(slice(0, size))


def test_the_moments_of_a_slice_take_only_its_memory(device: str) -> None:
    memory = DEVICES[device].memory
    assert memory is not None
    taken = []
    for begin in (0, UNIT):
        model = with_gradients(device, "float32")
        held = parts(model)
        held.own(slice(begin, held.size))
        before = memory()[0]
        model.adamw_step(1e-3)
        taken.append(before - memory()[0])
    assert device == "cuda" or taken[0] - taken[1] == 2 * 4 * UNIT  # which gives memory in larger pieces


def test_a_slice_has_only_its_float32_weights_beside_those_in_bfloat16(device: str) -> None:
    memory = DEVICES[device].memory
    assert memory is not None
    model = model_of(device, CONFIG, dtype="bfloat16")
    held, before = parts(model), memory()[0]
    own = slice(UNIT, 2 * UNIT)
    weights = everything(model, "parameters")
    held.own(own)
    assert device == "cuda" or memory()[0] - before >= 4 * (held.size - UNIT)
    np.testing.assert_array_equal(held.read("parameters", own), weights[own])
    with pytest.raises(UserError, match=rf"^10 numbers from 0 on were asked for, expected some of {UNIT} from {UNIT} "):
        held.read("parameters", slice(0, 10))
    uses = (
        lambda: dict(model.parameters),
        lambda: model.set_parameter("ln_f.weight", np.ones(64)),
        lambda: model.generator(),
        lambda: held.own(slice(0, UNIT)),
        lambda: model._backend.init_weights(0),
    )
    for use in uses:
        with pytest.raises(UserError, match=r"^of the float32 weights this process has only a part$"):
            use()


@every_dtype
@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "sgd"])
@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_saves_the_memory_that_was_said(emulated: str, dtype: str, optimizer: str, size: int) -> None:
    memory = DEVICES[emulated].memory
    assert memory is not None
    settings = TrainSettings(device=emulated, dtype=dtype, optimizer=optimizer, grad_accum=size)

    def taken(ranks: int) -> int:
        before = memory()[0]
        model = model_of(emulated, CONFIG, dtype=dtype)
        parts(model).own(max(slices(ranks, slice(0, parts(model).size)), key=lambda part: part.stop - part.start))
        model.forward_backward(*batch(CONFIG, 2, 11))
        update(model, settings, 1e-3)
        return before - memory()[0]

    said = memory_of_run(CONFIG, settings, 2, rank_of(1)) - memory_of_run(CONFIG, settings, 2, rank_of(size))
    said += EXCHANGE_BYTES - 4 * CONFIG.num_parameters * levels(size)  # of the tree, which only one rank needs here
    kinds = {"adamw": 2, "momentum": 1, "sgd": 0}[optimizer] + (dtype == "bfloat16")
    assert (said > 0) == (kinds > 0)
    assert said <= taken(1) - taken(size) <= said + 2**14  # a buffer has gaps, and rows beyond the vocabulary


def test_a_run_says_what_is_sliced_on_a_device(emulated: str) -> None:
    tokens = SimpleNamespace(vocab_size=256, name="byte")
    data = SimpleNamespace(train=[0], val=[0], tokenizer=tokens)

    def said(optimizer: str) -> str:
        settings = TrainSettings(device=emulated, dtype="bfloat16", grad_accum=8, optimizer=optimizer)
        return describe(settings, CONFIG, data, Path("x"), rank_of(4))  # type: ignore[arg-type]

    assert "ranks   4 on 1 host, adamw's moments and the float32 weights sliced, exchanged" in said("adamw")
    assert "ranks   4 on 1 host, muon's moments whole, exchanged" in said("muon")


def test_the_unit_is_the_same_in_every_library() -> None:
    assert cpu_library().PYGPT_SUMMED_APART == UNIT


# ---- NCCL, of which the emulation has a stand-in; ranks are threads ----


@every_dtype
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("nccl", ["", "0"])
def test_steps_have_the_same_bits_on_any_number_of_ranks(
    emulated: str, dtype: str, optimizer: str, nccl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYGPT_NCCL", nccl)
    settings = TrainSettings(device=emulated, dtype=dtype, optimizer=optimizer, grad_accum=4, grad_clip=0.5)

    def work(ranks: Ranks) -> list[np.ndarray]:
        model = model_of(emulated, replace(CONFIG, embd_pdrop=0.1, attn_pdrop=0.1), dtype=dtype)
        mine = ranks.share(4)
        tree, step_of = GradientTree(model, len(mine), True), create_optimizer(model, settings, ranks)
        norms = []
        for step in range(3):
            tree.sum(
                4 * step + mine.start,
                lambda number: model.accumulate(*batch(CONFIG, 2, 11, seed=number), scale=0.25, dropout_step=number),
                step_of.last_pass,
            )
            norms.append(step_of.step(1e-2))
        loss = model.forward(*batch(CONFIG, 2, 11, seed=99))
        assert loss is not None
        with step_of.gathered() as gathered:
            whole = [*gathered.parameters.values(), *gathered.moments.values()] if ranks.first else []
        return [everything(model, "rounded"), np.array([*norms, loss]), *whole]

    alone = work(ALONE)
    for size in (2, 4):
        first, *others = on_threads(size, work)
        for value, expected in zip(first, alone, strict=True):
            np.testing.assert_array_equal(value, expected)
        for found in others:
            for value, expected in zip(found, alone[:2], strict=True):
                np.testing.assert_array_equal(value, expected)
    first, *others = on_threads(3, work)  # other bits, and one rank has no slice
    np.testing.assert_allclose(first[1], alone[1], rtol=1e-3)
    for found in others:
        np.testing.assert_array_equal(found[0], first[0])


def connected(emulated: str, ranks: Ranks, config: GPT2Config = CONFIG) -> NativeParts:
    held = parts(GPT2(config, device=emulated))
    Nccl(held, ranks)
    return held


def test_parts_of_other_sizes_are_exchanged(emulated: str) -> None:
    """As between a power of two of ranks and those beyond it: one only sends; more than is sent at a time."""
    nccl_version(emulated)
    config = replace(CONFIG, vocab_size=70_000)
    assert config.num_parameters > 2**22

    def work(ranks: Ranks) -> np.ndarray:
        held = connected(emulated, ranks, config)
        values = np.arange(held.size, dtype=np.float32) * (ranks.rank + 1)
        held.write("gradients", slice(0, held.size), values)
        whole, none = slice(0, held.size), slice(0, 0)
        held.exchange("gradients", 1 - ranks.rank, *((none, whole) if ranks.first else (whole, none)), adding=True)
        return held.read("gradients", whole)

    first, second = on_threads(2, work)
    once = np.arange(first.size, dtype=np.float32)
    np.testing.assert_array_equal(first, once + 2 * once)
    np.testing.assert_array_equal(second, 2 * once)


def test_a_partner_that_is_gone_ends_the_exchange(emulated: str) -> None:
    nccl_version(emulated)

    def work(ranks: Ranks) -> str:
        held = connected(emulated, ranks)
        if not ranks.first:
            return "gone"  # and with it its model
        with pytest.raises(DeviceError) as caught:
            held.exchange("gradients", 1, slice(0, UNIT), slice(UNIT, 2 * UNIT), adding=True)
        return str(caught.value)

    assert on_threads(2, work)[0].startswith("NCCL failed in an exchange between ranks: remote process exited")


def test_partners_that_disagree_on_a_size(emulated: str) -> None:
    nccl_version(emulated)

    def work(ranks: Ranks) -> str:
        held = connected(emulated, ranks)
        with pytest.raises(DeviceError) as caught:
            held.exchange("gradients", 1 - ranks.rank, slice(0, 5), slice(UNIT, UNIT + 6), adding=True)
        return str(caught.value)

    assert all("invalid usage (PYGPT_NCCL=0 exchanges through" in sentence for sentence in on_threads(2, work))


def test_exchange_without_a_connection(emulated: str) -> None:
    held = parts(with_gradients(emulated, "float32"))
    with pytest.raises(UserError, match=r"^the ranks are not connected$"):
        held.exchange("gradients", 1, slice(0, 5), slice(5, 10), adding=True)


def test_nccl_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Library:
        def pygpt_nccl_open(self, place: bytes, version: Any) -> int:
            opened.append(place.decode())
            version[0] = 22703
            return OK

    library = Library()
    for named, expected in (("", ["here"]), ("there", ["here", "there"]), ("", ["here", "there", "here"])):
        monkeypatch.setenv("PYGPT_NCCL", named)
        assert [open_nccl(library, ["here"]) for _ in range(3)] == ["2.27.3"] * 3
        assert opened == expected


def test_which_nccl_is_taken(emulated: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert nccl_version(emulated) == "2.27.3"
    assert nccl_version("cpu") is None
    monkeypatch.setenv("PYGPT_NCCL", "0")
    assert nccl_version(emulated) is None
    monkeypatch.setenv("PYGPT_NCCL", str(tmp_path / "libnccl.so.2"))
    with pytest.raises(UserError, match=r"^PYGPT_NCCL is '/.*', expected the path of libnccl.so.2, or 0 for none: /"):
        nccl_version(emulated)
    monkeypatch.setenv("PYGPT_NCCL", "libm.so.6")
    with pytest.raises(UserError, match=r"undefined symbol: ncclGetVersion, expected NCCL 2.7 or later$"):
        nccl_version(emulated)


def test_nccl_is_looked_for_in_packages_before_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "nvidia" / "nccl" / "lib" / "libnccl.so.2"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr("sys.path", ["/nowhere", str(tmp_path)])
    assert installed() == [str(library), "libnccl.so.2"]
    assert [_in_words(number) for number in (2708, 22703, 23203)] == ["2.7.8", "2.27.3", "2.32.3"]
