"""The generator of the CUDA library, through pygpt.h: beside the CPU's plain one, and beside itself fed otherwise."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from test_cuda import device, emulated, model_of, output_of, start_python

from pygpt import GPT2, GPT2Config, UserError
from pygpt.backends.library import check, device_memory, ffi
from pygpt.backends.pointers import Floats, c_config, floats, integers
from pygpt.comparing.metrics import relative_l2
from pygpt.errors import DeviceError
from pygpt.reference.arrays import Array

__all__ = ["device", "emulated"]  # fixtures

FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}  # as in pygpt.h
CACHES = ("float32", "bfloat16")

# No size is a multiple of 32 outputs, of 32 inputs or of 4; a product has more groups of inputs than a block has warps.
CONFIG = GPT2Config(vocab_size=70, n_positions=24, n_embd=39, n_layer=2, n_head=3, n_inner=290)
# More rows than are computed together, and more positions than attention's blocks have.
LONG = GPT2Config(vocab_size=33, n_positions=600, n_embd=8, n_layer=1, n_head=2, n_inner=32)
# With several rows, products of more inputs than are staged at a time; with many, blocks of several panels.
WIDE = GPT2Config(vocab_size=33, n_positions=72, n_embd=8, n_layer=1, n_head=2, n_inner=1100)

TEXTS = [[3, 69, 0, 14, 14, 25, 60], [], [41], [7, 6, 5, 4], list(range(2, 66, 5)), [69, 68]]

every_format = pytest.mark.parametrize("weights, cache", list(product(FORMATS, CACHES)))


class Generator:
    """A Generator of pygpt.h, and its lengths."""

    def __init__(self, model: GPT2, weights: str, cache: str, B: int, positions: int = CONFIG.n_positions) -> None:
        self.library: Any = model._backend.library
        self.V = model.config.vocab_size
        made = ffi().new("Generator **")
        handle = model._backend.handle
        check(self.library, self.library.generator_create(made, handle, FORMATS[weights], FORMATS[cache], B, positions))
        self.handle = ffi().gc(made[0], self.library.generator_free)

    def feed(self, texts: list[list[int]], every: bool = False) -> Floats:
        tokens = np.array([token for text in texts for token in text], np.int32)
        lengths = np.array([len(text) for text in texts], np.int64)
        logits = np.full((len(tokens) if every else np.count_nonzero(lengths), self.V), np.nan, np.float32)
        pointer = ffi().cast("int64_t *", lengths.ctypes.data)
        check(self.library, self.library.generator_feed(self.handle, floats(logits), integers(tokens), pointer, every))
        return logits

    def rewind(self, lengths: list[int]) -> None:
        check(self.library, self.library.generator_rewind(self.handle, lengths))

    def graphs(self) -> tuple[int, int]:
        counts = ffi().new("int64_t[2]")
        check(self.library, self.library.generator_graphs(self.handle, counts, counts + 1))
        return counts[0], counts[1]


def every_logits(generator: Generator, texts: list[list[int]]) -> list[Floats]:
    """Of each text: (tokens, V)."""
    return np.split(generator.feed(texts, every=True), np.cumsum([len(text) for text in texts])[:-1])


def on_cpu(model: GPT2) -> GPT2:
    """The same weights in the CPU's plain kernels."""
    copy = GPT2(model.config, device="cpu", kernels="plain")
    for name, value in model.parameters.items():
        copy.set_parameter(name, value)
    return copy


def errors_of_rows(found: Array, expected: Array) -> Array:
    return np.array([relative_l2(a, b) for a, b in zip(found, expected, strict=True)])


# ---- the right logits ----


@every_format
@pytest.mark.parametrize("kernels", ["plain", "fast"])
def test_logits_are_those_of_the_cpu(kernels: str, weights: str, cache: str, device: str) -> None:
    """But for float32's rounding.

    Where a number becomes a bfloat16 or an integer, that seldom gives the neighbouring one: then the row, and the later
    ones of its text, are a few times 2⁻⁸ off.
    """
    model = model_of(device, CONFIG, kernels=kernels)
    found, expected = (
        Generator(each, weights, cache, len(TEXTS)).feed(TEXTS, every=True) for each in (model, on_cpu(model))
    )
    errors = errors_of_rows(found, expected)
    assert np.median(errors) <= 2e-6
    rounds = weights != "float32" or cache == "bfloat16"
    assert np.max(errors) <= (2.0**-6 if rounds else 1e-5)


@pytest.mark.parametrize("cache", CACHES)
def test_logits_of_long_text_are_those_of_the_cpu(cache: str, device: str) -> None:
    model = model_of(device, LONG)
    text = [[7 * i % 33 for i in range(600)]]
    found, expected = (
        Generator(each, "float32", cache, 1, 600).feed(text, every=True) for each in (model, on_cpu(model))
    )
    errors = errors_of_rows(found, expected)
    assert np.median(errors) <= 2e-6 and np.max(errors) <= (2.0**-6 if cache == "bfloat16" else 1e-5)


@pytest.mark.parametrize("tokens", [(1, 2), (2, 1)])
def test_attention_that_looks_at_one_token_alone(tokens: tuple[int, int], device: str) -> None:
    """So scores fall by hundreds, or rise, from the positions of one block of attention to those of the next.

    The rounding of a score of 500 is 3e-5 of its exponential.
    """
    model = model_of(device, LONG)
    model.set_parameter("h.0.attn.c_attn.weight", 60 * model.parameters["h.0.attn.c_attn.weight"])
    text = [[tokens[0]] * 300 + [tokens[1]] * 300]
    found, expected = (
        Generator(each, "float32", "float32", 1, 600).feed(text, every=True) for each in (model, on_cpu(model))
    )
    assert np.max(errors_of_rows(found, expected)) <= 1e-3


@pytest.mark.parametrize("cache", CACHES)
def test_attention_to_positions_whose_scores_are_minus_infinity(cache: str, device: str) -> None:
    """The first blocks have no others, and add nothing: x̂ is ±1, and keys are 0 with +1 and -2e20 with -1."""
    model = model_of(device, LONG)
    token = np.tile([1.0, -1.0], 4)
    model.set_parameter("wpe.weight", np.zeros((600, 8)))
    model.set_parameter("wte.weight", np.array([token, -token] + [token] * 31))
    model.set_parameter("h.0.ln_1.weight", np.ones(8))
    model.set_parameter("h.0.ln_1.bias", np.zeros(8))
    weight, bias = np.array(model.parameters["h.0.attn.c_attn.weight"]), np.zeros(24)
    weight[:, :16], bias[:8], bias[8:16] = 0, 1e20, -1e20
    weight[0, 8:16] = 1e20
    model.set_parameter("h.0.attn.c_attn.weight", weight)
    model.set_parameter("h.0.attn.c_attn.bias", bias)
    text = [[1] * 200 + [0] * 30]
    found, expected = (
        Generator(each, "float32", cache, 1, 600).feed(text, every=True)[200:] for each in (model, on_cpu(model))
    )
    assert np.isfinite(expected).all()
    assert np.max(errors_of_rows(found, expected)) <= (2.0**-6 if cache == "bfloat16" else 1e-5)


@every_format
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_none_stay_visible(number: float, weights: str, cache: str, device: str) -> None:
    for name in ("wpe.weight", "h.1.ln_1.bias", "h.0.attn.c_attn.weight", "h.1.mlp.c_proj.weight"):
        model = model_of(device, CONFIG)
        values = np.array(model.parameters[name])
        values.flat[5 * 39 % values.size] = number  # of wpe: position 5
        model.set_parameter(name, values)
        found, expected = (
            Generator(each, weights, cache, len(TEXTS)).feed(TEXTS, every=True) for each in (model, on_cpu(model))
        )
        assert np.isnan(expected).any()
        assert np.array_equal(np.isnan(found), np.isnan(expected)), name


@pytest.mark.parametrize("weights", FORMATS)
def test_generator_is_a_snapshot_of_the_master_weights(weights: str, device: str) -> None:
    model = model_of(device, CONFIG, dtype="bfloat16")
    same = GPT2(CONFIG, device=device)
    for name, value in model.parameters.items():
        same.set_parameter(name, value)
    generators = [Generator(each, weights, "float32", len(TEXTS)) for each in (model, same)]
    same.set_parameter("h.0.mlp.c_fc.weight", np.zeros((39, 290)))
    del model
    assert np.array_equal(*(generator.feed(TEXTS) for generator in generators))


# ---- the same bits, however tokens are fed ----


@every_format
def test_same_bits_however_tokens_are_fed(weights: str, cache: str, device: str) -> None:
    model = model_of(device, CONFIG)

    def make(B: int = len(TEXTS), positions: int = CONFIG.n_positions) -> Generator:
        return Generator(model, weights, cache, B, positions)

    together = every_logits(make(), TEXTS)
    last = [logits[-1] for logits in together if len(logits)]
    assert np.array_equal(make().feed(TEXTS), last)

    for text, logits in zip(TEXTS, together, strict=True):
        assert np.array_equal(make(1, max(len(text), 1)).feed([text], every=True), logits), "alone"

    one_by_one = make()
    for i in range(max(map(len, TEXTS))):
        found = one_by_one.feed([text[i : i + 1] for text in TEXTS])
        assert np.array_equal(found, [logits[i] for logits in together if len(logits) > i]), "one by one"

    pieces = make()
    for first, end in ((0, 2), (2, 3), (3, 9), (9, 24)):
        found = pieces.feed([text[first:end] for text in TEXTS], every=True)
        assert np.array_equal(found, np.concatenate([logits[first:end] for logits in together])), "in pieces"

    rewound = make()
    rewound.feed([[*text[:2], 9, 9, 9] for text in TEXTS])
    rewound.rewind([min(len(text), 2) for text in TEXTS])
    found = rewound.feed([text[2:] for text in TEXTS], every=True)
    assert np.array_equal(found, np.concatenate([logits[2:] for logits in together])), "after a rewind"


@pytest.mark.parametrize("weights", FORMATS)
def test_same_bits_of_long_text_however_it_is_fed(weights: str, device: str) -> None:
    model = model_of(device, LONG)
    text = [7 * i % 33 for i in range(600)]
    together = Generator(model, weights, "bfloat16", 1, 600).feed([text], every=True)
    pieces = Generator(model, weights, "bfloat16", 2, 600)
    for first, end in ((0, 300), (300, 597), (597, 598), (598, 600)):
        found = pieces.feed([text[first:end], text[:3]], every=True)
        assert np.array_equal(found[: end - first], together[first:end])
        assert np.array_equal(found[end - first :], together[:3])
        pieces.rewind([end, 0])


@pytest.mark.parametrize("weights", FORMATS)
def test_same_bits_of_wide_products_whatever_the_number_of_rows(weights: str, device: str) -> None:
    """And the right ones."""
    model = model_of(device, WIDE)
    text = [7 * i % 33 for i in range(72)]
    together = Generator(model, weights, "float32", 1, 72).feed([text], every=True)
    errors = errors_of_rows(together, Generator(on_cpu(model), weights, "float32", 1, 72).feed([text], every=True))
    assert np.median(errors) <= 2e-6
    pieces = Generator(model, weights, "float32", 1, 72)
    for first, end in ((0, 1), (1, 3), (3, 7), (7, 16), (16, 72)):
        assert np.array_equal(pieces.feed([text[first:end]], every=True), together[first:end])


@every_format
@pytest.mark.parametrize("order", ["reverse", "random:1"])
def test_same_bits_of_generation_in_any_order_of_threads_and_blocks(
    order: str, weights: str, cache: str, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for environment in ("forward", order):
        monkeypatch.setenv("PYGPT_EMULATION_ORDER", environment)
        generator = Generator(model_of(emulated, CONFIG), weights, cache, len(TEXTS))
        found.append(generator.feed(TEXTS, every=True))
    assert np.array_equal(*found)


# ---- graphs ----


def token_by_token(generator: Generator) -> list[Floats]:
    """Sequences of different lengths, some of which go on into another block of attention."""
    text = [7 * i % 33 for i in range(126)]
    logits = [generator.feed([text[:60], text])]
    logits += [generator.feed([[i], [i + 1]]) for i in range(6)]
    generator.rewind([0, 127])
    logits += [generator.feed([[9], [7]])]
    logits += [generator.feed([[i], []]) for i in range(3)]
    return [*logits, generator.feed([[4], [5]])]


@every_format
def test_captured_feeds_give_the_same_bits(
    weights: str, cache: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for graphs in ("1", "0"):
        monkeypatch.setenv("PYGPT_CUDA_GRAPH", graphs)
        generator = Generator(model_of(device, LONG), weights, cache, 2, 200)
        found.append(np.concatenate(token_by_token(generator)))
        assert generator.graphs() == (9 if graphs == "1" else 0, 0)
    assert np.array_equal(*found)


def test_feed_that_cannot_be_captured_is_counted_or_an_error(emulated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = token_by_token(Generator(model_of(emulated, LONG), "int8", "float32", 2, 200))
    monkeypatch.setenv("PYGPT_EMULATION_NO_CAPTURE", "1")
    generator = Generator(model_of(emulated, LONG), "int8", "float32", 2, 200)
    assert np.array_equal(np.concatenate(token_by_token(generator)), np.concatenate(expected))
    assert generator.graphs() == (0, 1)  # it does not try again
    monkeypatch.setenv("PYGPT_CUDA_GRAPH", "1")
    generator = Generator(model_of(emulated, LONG), "int8", "float32", 2, 200)
    with pytest.raises(DeviceError, match="in the capture of a pass, on which PYGPT_CUDA_GRAPH=1 insists: the capture"):
        token_by_token(generator)
    assert generator.graphs() == (0, 1)


# ---- memory, and what is refused ----


@every_format
def test_generator_takes_the_memory_that_it_is_said_to_take(weights: str, cache: str, emulated: str) -> None:
    model = model_of(emulated, CONFIG)
    library = model._backend.library
    sizes = FORMATS[weights], FORMATS[cache], 5, 23
    before = device_memory(library)[0]
    generator = Generator(model, weights, cache, 5, 23)
    assert before - device_memory(library)[0] == library.generator_memory(c_config(CONFIG), *sizes)
    generator.feed([[1, 2, 3]] * 5, every=True)
    assert before - device_memory(library)[0] == library.generator_memory(c_config(CONFIG), *sizes)
    ffi().release(generator.handle)
    assert device_memory(library)[0] == before


def test_generator_that_does_not_fit_is_refused_with_one_that_would(
    emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(emulated, CONFIG)
    library = model._backend.library
    free, total = device_memory(library)
    needed = library.generator_memory(c_config(CONFIG), FORMATS["int8"], FORMATS["float32"], 2000, 14)
    monkeypatch.setenv("PYGPT_EMULATION_MEMORY", str(total - free + needed))
    with pytest.raises(MemoryError, match=r"2000 sequences of 24 positions needs 0\.0\d GiB.*: 14 positions would fit"):
        Generator(model, "int8", "float32", 2000)
    with pytest.raises(MemoryError, match=r"needs inf GiB, and the device has 0\.0\d: 0 positions would fit"):
        Generator(model, "int8", "float32", 2**58)
    assert Generator(model, "int8", "float32", 2000, 14).feed([[5]] * 2000).shape == (2000, 70)


def test_what_is_wrong_with_a_generator_is_one_sentence(device: str) -> None:
    model = model_of(device, CONFIG)
    with pytest.raises(UserError, match=r"a generator of 1 sequences of 25 positions was asked for, .* at most 24"):
        Generator(model, "float32", "float32", 1, 25)
    with pytest.raises(UserError, match="weights of type 0 with a cache of type 2 are not in this library"):
        Generator(model, "float32", "int8", 1)
    generator = Generator(model, "int8", "float32", 2, 4)
    expected = Generator(model, "int8", "float32", 2, 4).feed([[1, 2, 3], [4]])
    generator.feed([[1, 2], []])
    with pytest.raises(UserError, match=r"token 70 of sequence 1 is outside the vocabulary, expected 0 \.\.\. 69"):
        generator.feed([[3], [70]])
    with pytest.raises(UserError, match="sequence 0 has 2 tokens, and 3 more were to be appended, but there are 4"):
        generator.feed([[3, 3, 3], [4]])
    with pytest.raises(UserError, match="sequence 1 was to keep 1 tokens, but it has 0"):
        generator.rewind([1, 1])
    assert np.array_equal(generator.feed([[3], [4]]), expected)


def test_bfloat16_needs_no_capability_in_a_generator(emulated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(emulated, CONFIG)
    expected = Generator(model, "bfloat16", "bfloat16", len(TEXTS)).feed(TEXTS)
    monkeypatch.setenv("PYGPT_EMULATION_COMPUTE_CAPABILITY", "7.5")
    model = model_of(emulated, CONFIG)
    assert np.array_equal(Generator(model, "bfloat16", "bfloat16", len(TEXTS)).feed(TEXTS), expected)


FAILING = """
import os

import numpy as np
from pygpt.errors import DeviceError
from test_cuda_generation import CONFIG, Generator, model_of

model = model_of("cuda-emulated", CONFIG)
texts = [[1, 2, 3], [4]]
expected = Generator(model, "int4", "float32", 2).feed([[*text, 5] for text in texts])
generator = Generator(model, "int4", "float32", 2)
generator.feed(texts)
launched = failures = 0
while True:
    launched += 1 + failures  # so many more kernels in each attempt, once those before are counted
    os.environ["PYGPT_EMULATION_ERROR"] = f"999@{launched}"
    try:
        found = generator.feed([[5], [5]])
        break
    except DeviceError as error:
        failures += 1
        sentence = str(error)
assert np.array_equal(found, expected)
print(failures, sentence)
"""


def test_feed_that_fails_leaves_the_sequences_as_they_were(emulated: str) -> None:
    failures, sentence = output_of(start_python(FAILING)).split(" ", 1)
    assert int(failures) > 12  # kernels of one feed
    assert sentence.startswith("CUDA failed in ") and sentence.endswith(": unknown error")
