"""Text from a model, and scripts/generate.py."""

import io
import itertools
import json
import math
import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from backends import GENERATORS
from test_tokenizer import BYTES, write_vocabulary

import pygpt
import pygpt.command.generate
from pygpt.backends.interface import CACHES, WEIGHTS
from pygpt.command import colour
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.files.checkpoint import save_parameters
from pygpt.generation.generate import WINDOWS, Drawn, generate_samples, printable, start_token
from pygpt.generation.lookup import draft
from pygpt.generation.sampling import Sampling, sample
from pygpt.generation.text import TextStream
from pygpt.model import GPT2
from pygpt.reference import philox
from pygpt.text.tokenizer import ByteTokenizer, CharTokenizer

SCRIPT = Path(__file__).parents[1] / "scripts" / "generate.py"
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SPEED = r"\d+ prompt tokens in \d+\.\d\d s(, then [\d,]+\.\d tokens/s)?\n"
CONFIG = GPT2Config(vocab_size=256, n_positions=8, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)


class Scripted:
    """A generator whose logits are a function of the tokens that it sees, and which remembers what it was fed."""

    def __init__(self, logits_of, batch_size=1, vocab_size=16, positions=4):
        self.config = GPT2Config(vocab_size=vocab_size, n_positions=positions, n_embd=4, n_layer=1, n_head=1)
        self.logits_of, self.positions = logits_of, positions
        self.seen = [[] for _ in range(batch_size)]
        self.fed = []

    @property
    def lengths(self):
        return tuple(map(len, self.seen))

    def feed(self, tokens, every=False):
        self.fed.append([list(row) for row in tokens])
        logits = []
        for seen, row in zip(self.seen, tokens, strict=True):
            for number, token in enumerate(row, start=1):
                seen.append(token)
                assert len(seen) <= self.positions
                if every or number == len(row):
                    logits.append(self.logits_of(np.array(seen)))
        return np.array(logits)

    def rewind(self, lengths):
        self.seen = [seen[:length] for seen, length in zip(self.seen, lengths, strict=True)]


def columns(generator, prompts, max_new_tokens, sampling=None, **settings):
    """The tokens of each sample."""
    steps = list(generate_samples(generator, prompts, max_new_tokens, Sampling(**(sampling or {})), **settings))
    assert all(any(step) for step in steps)
    return [[drawn.token for step in steps for drawn in step[number]] for number in range(len(prompts))]


def generate(logits_of, prompt, max_new_tokens, positions=4, **settings):
    (text,) = columns(Scripted(logits_of, positions=positions), [prompt], max_new_tokens, **settings)
    return text


def counting(row):
    """Certain that the next number follows."""
    return np.where(np.arange(16) == (row[-1] + 1) % 16, 50.0, 0.0)


def uncertain(row):
    return np.cos(row.sum() * np.arange(16))


# ---- what the model sees ----


def test_each_new_token_costs_one_row():
    model = Scripted(counting, positions=8)
    assert columns(model, [[1, 2, 3]], 4) == [[4, 5, 6, 7]]
    assert model.fed == [[[1, 2, 3]], [[4]], [[5]], [[6]]]


@pytest.mark.parametrize(
    ("window", "fed"),
    [
        ("half", [[1, 2, 3, 4], [4, 5], [6], [7], [7, 8], [9]]),
        ("slide", [[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6], [4, 5, 6, 7], [5, 6, 7, 8], [6, 7, 8, 9]]),
    ],
)
def test_beyond_its_positions_the_model_sees_a_window(window, fed):
    model = Scripted(counting)
    assert columns(model, [[1, 2, 3, 4]], 6, window=window) == [[5, 6, 7, 8, 9, 10]]
    assert [rows for (rows,) in model.fed] == fed


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("positions", [1, 2, 3])
def test_few_positions_are_enough(positions, window):
    assert generate(counting, [1], 9, positions, window=window) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    text = [7]
    for token in generate(uncertain, [7], 30, positions, window=window, sampling={"temperature": 0}):
        if window == "slide":
            assert token == uncertain(np.array(text[-positions:])).argmax()
        text.append(token)


def test_a_generator_forgets_what_it_held():
    model = Scripted(counting, batch_size=2)
    assert columns(model, [[1, 2], [7]], 2) == columns(model, [[1, 2], [7]], 2) == [[3, 4], [8, 9]]


# ---- draws ----


def test_tokens_are_drawn_by_the_numbers_of_their_seed_sample_and_position():
    prompts = [[3, 1], [5], [2, 2, 9]]
    texts = columns(Scripted(uncertain, 3), prompts, 6, {"temperature": 0.7, "top_k": 9}, seed=5, window="slide")
    for stream, (prompt, drawn) in enumerate(zip(prompts, texts, strict=True)):
        text = list(prompt)
        for token in drawn:
            logits = uncertain(np.array(text[-4:]))
            assert token == sample(logits, philox.uniform(5, stream, len(text)), Sampling(0.7, 9))
            text.append(token)
        assert len(text) == len(prompt) + 6


def test_a_drawn_token_has_the_probability_that_the_model_gives_it():
    settings = Sampling(temperature=0.3, top_k=2, repetition_penalty=1.5)
    text = [7]
    for ((drawn,),) in generate_samples(Scripted(uncertain), [[7]], 3, settings, allowed_tokens=range(12)):
        logits = uncertain(np.array(text))
        assert drawn.log_probability == pytest.approx(logits[drawn.token] - np.log(np.exp(logits).sum()), rel=1e-12)
        text.append(drawn.token)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_sample_is_the_same_alone_and_in_a_batch(window):
    alone = generate(uncertain, [7], 10, seed=3, window=window)
    batch = columns(Scripted(uncertain, 4), [[7]] * 4, 10, seed=3, window=window)
    assert batch[0] == alone
    assert len(set(map(tuple, batch))) == 4
    assert generate(uncertain, [7], 10, seed=4, window=window) != alone
    assert columns(Scripted(uncertain, 2), [[7], [1, 2, 3]], 10, seed=3, window=window)[0] == alone


def test_a_text_that_is_continued_goes_on_as_if_it_had_not_been_cut():
    whole = generate(uncertain, [7], 10, positions=12, seed=3)
    assert generate(uncertain, [7, *whole[:4]], 6, positions=12, seed=3) == whole[4:]


def test_the_repetition_penalty_counts_the_whole_text():
    def flat(row):
        return np.where(np.arange(16) < 8, 1.0, 0.9)

    drawn = generate(flat, [0], 15, sampling={"temperature": 0, "repetition_penalty": 2.0})
    assert sorted(drawn) == list(range(1, 16))  # each once, though the model sees four


def test_a_sample_ends_before_the_stop_token_and_the_others_go_on():
    assert generate(counting, [1], 10, stop_token=5) == [2, 3, 4]
    assert generate(counting, [4], 10, stop_token=5) == []
    free = columns(Scripted(uncertain, 4), [[7]] * 4, 12, seed=3)
    stop = free[2][3]
    model = Scripted(uncertain, 4)
    for text, stopped in zip(free, columns(model, [[7]] * 4, 12, seed=3, stop_token=stop), strict=True):
        assert stopped == list(itertools.takewhile(lambda token: token != stop, text))
    assert model.fed[-1][2] == []  # what has stopped is not computed any more


def test_a_sample_ends_with_the_token_that_is_said_to_end_it():
    asked = []

    def ends(sample, token):
        asked.append((sample, token))
        return (sample, token) == (1, 9)

    assert columns(Scripted(counting, 2), [[1], [7]], 4, ends=ends) == [[2, 3, 4, 5], [8, 9]]
    assert asked == [(0, 2), (1, 8), (0, 3), (1, 9), (0, 4), (0, 5)]


# ---- prompt lookup ----


@pytest.mark.parametrize(
    ("text", "proposed"),
    [
        ([1, 2, 3, 9, 1, 2, 3], [9, 1, 2, 3]),
        ([5, 3, 7, 1, 2, 3, 8, 4, 3], [8, 4, 3]),  # the latest of single tokens
        ([2, 3, 7, 5, 3, 8, 2, 3], [7, 5, 3, 8]),  # a longer run before a later one
        ([1, 2, 3], []),
        ([4], []),
        ([4, 4], [4]),
        ([0, 0, 0, 0], [0]),
    ],
)
def test_the_text_proposes_what_followed_its_end_before(text, proposed):
    assert draft(text, 4) == proposed
    assert draft(text, 1) == proposed[:1]
    assert draft(text, 0) == draft(text, -3) == []


def test_a_draft_that_is_right_saves_passes():
    """And is right about as many tokens as the text does repeat itself."""

    def periodic(row):
        return np.where(np.arange(16) == (row[-1] + 1) % 5, 50.0, 0.0)

    model = Scripted(periodic, positions=64)
    assert columns(model, [[0, 1, 2, 3, 4, 0]], 20, lookup=4) == [[number % 5 for number in range(1, 21)]]
    assert len(model.fed) == 1 + 4  # one token with the prompt, then five at a time, of which four were drafts
    assert [len(rows) for (rows,) in model.fed] == [6, 5, 5, 5, 4]  # no more than are wanted


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("lookup", [1, 3, 50, True])
def test_lookup_changes_no_token(lookup, window):
    def repetitive(row):
        return 3 * np.cos(row[-2:].sum() * np.arange(16))

    saved = 0
    for seed, positions, temperature in itertools.product(range(6), (4, 7, 64), (0, 0.5)):
        settings = {"seed": seed, "window": window, "sampling": {"temperature": temperature}}
        plain, fast = (Scripted(repetitive, 3, positions=positions) for _ in range(2))
        prompts = [[seed, 2], [seed + 5], [3, 3, 3]]
        assert columns(fast, prompts, 40, lookup=lookup, **settings) == columns(plain, prompts, 40, **settings)
        saved += len(plain.fed) - len(fast.fed)
    assert window == "slide" or saved > 100


def test_a_sample_may_end_within_a_draft():
    for settings in ({"stop_token": 3}, {"ends": lambda sample, token: token == 2}, {}):
        plain, fast = (
            columns(Scripted(counting, positions=64), [[2, 3, 4, 5, 1]], 7, lookup=n, **settings) for n in (0, 4)
        )
        assert plain == fast


# ---- models ----


def by_forward(model, prompt, count, sampling, seed, window):
    """Every token computed from all that the model sees."""
    text, start, positions = list(prompt), 0, model.config.n_positions
    for _ in range(count):
        if len(text) - start > positions:
            start = len(text) - (positions // 2 if window == "half" else positions)
        model.forward([text[start:]])
        text.append(sample(model.logits[0, -1], philox.uniform(seed, 0, len(text)), sampling, text=text))
    return text[len(prompt) :]


@pytest.mark.parametrize("backend", GENERATORS, ids=str)
@pytest.mark.parametrize("window", WINDOWS)
def test_the_cache_changes_no_token(backend, window):
    """Nor do prompt lookup and the samples beside it."""
    model = backend.model(CONFIG, seed=1)
    for seed, sampling in itertools.product(
        range(3), (Sampling(0), Sampling(0.6, 40), Sampling(1.0, None, 0.9, 0.02, 1.2))
    ):
        expected = by_forward(model, [5, 6], 20, sampling, seed, window)
        settings = {"seed": seed, "window": window, **vars(sampling)}
        assert list(model.generate([5, 6], 20, **settings)) == expected
        assert list(model.generate([5, 6], 20, lookup=True, **settings)) == expected


@pytest.mark.parametrize("backend", [one for one in GENERATORS if one.device != "numpy"], ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("cache", CACHES)
def test_one_text_for_every_way_to_compute_it(backend, weights, cache):
    """Formats change the text; batches, lookup and threads do not."""
    model = backend.model(CONFIG, seed=1)
    for seed in range(4):
        expected = list(model.generate([5, 6], 20, seed=seed, weights=weights, cache=cache))
        pygpt.set_threads(2, beyond_cores=True)
        try:
            assert list(model.generate([5, 6], 20, seed=seed, weights=weights, cache=cache, lookup=4)) == expected
            batch = model.generator(weights, cache, batch_size=3)
            prompts = [[5, 6], [1], [7] * 8]
            assert columns(batch, prompts, 20, seed=seed)[0] == expected
            assert columns(batch, prompts, 20, seed=seed, lookup=4)[0] == expected
        finally:
            pygpt.set_threads(None)


def test_the_backends_draw_the_same_text():
    texts = {
        (backend, seed): list(backend.model(CONFIG, seed=1).generate([5, 6], 20, seed=seed, top_p=0.95))
        for backend in GENERATORS
        for seed in range(3)
    }
    for (_, seed), text in texts.items():
        assert text == texts[GENERATORS[0], seed]
    assert texts[GENERATORS[0], 0] != texts[GENERATORS[0], 1]


def test_weights_are_of_the_model_s_dtype_unless_others_are_asked_for():
    for dtype, weights in (("float32", "float32"), ("bfloat16", "bfloat16")):
        model = GPT2(CONFIG, device="numpy", dtype=dtype, seed=1)
        texts = [list(model.generate([5, 6], 20, **more)) for more in ({}, {"weights": weights})]
        assert texts[0] == texts[1]
    assert list(model.generate([5, 6], 200)) != list(model.generate([5, 6], 200, weights="float32"))


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (([], 5), {}, "the prompt is empty"),
        (([256], 5), {}, "token 256 of the prompt is outside the vocabulary, expected 0 to 255"),
        (([-1], 5), {}, "token -1 of the prompt"),
        (([2**40], 5), {}, "token 1099511627776 of the prompt is outside"),
        (([1] * 9, 5), {}, "the prompt has 9 tokens, expected at most 8, which fit into the context"),
        (([1], 0), {}, "max_new_tokens is 0"),
        (([1], 5), {"temperature": -1.0}, "temperature is -1"),
        (([1], 5), {"top_k": -1}, "top-k is -1"),
        (([1], 5), {"top_p": -0.5}, "top-p is -0.5"),
        (([1], 5), {"min_p": 2}, "min-p is 2"),
        (([1], 5), {"repetition_penalty": -1}, "repetition-penalty is -1"),
        (([1], 5), {"seed": -1}, "seed is -1"),
        (([1], 5), {"seed": 2**64}, "seed is 1844"),
        (([1], 5), {"seed": 1.0}, "seed is 1.0, expected an integer from 0"),
        (([1], 5), {"window": "none"}, "window is 'none', expected half or slide"),
        (([1], 5), {"lookup": -1}, "lookup is -1, expected an integer of at least 0"),
        (([1], 5), {"weights": "int2"}, "weights is 'int2', expected one of float32, bfloat16, int8, int4"),
        (
            ([[1, 2], [3, 4]], 5),
            {},
            r"prompt has shape \(2, 2\) and dtype int64, expected integers of shape \(T,\)",
        ),
        (([[1, 2], [3]], 5), {}, r"the prompt has rows of different lengths, expected integers of shape \(T,\)"),
        (([1.9, 2.2], 5), {}, "dtype float64, expected integers"),
        (("abc", 5), {}, "expected integers"),
        (([True, False], 5), {}, "dtype bool, expected integers"),
        ((None, 5), {}, "expected integers"),
        ((iter([1, 2]), 5), {}, "expected integers"),
        ((7, 5), {}, r"the prompt has shape \(\)"),
        (([1], 2.5), {}, "max_new_tokens is 2.5, expected an integer"),
        (([1], True), {}, "max_new_tokens is True"),
        (([1], "3"), {}, "max_new_tokens is '3'"),
        (([1], 5), {"temperature": "hot"}, "temperature is 'hot'"),
        (([1], 5), {"top_k": 1.5}, "top-k is 1.5"),
        (([1], 5), {"top_p": "0.5"}, "top-p is '0.5'"),
        (([1], 5), {"stop_token": "a"}, "stop_token has shape"),
        (([1], 5), {"allowed_tokens": [1.0]}, "allowed_tokens has shape"),
        (([1], 5), {"allowed_tokens": [256, 257]}, "none of the allowed tokens is in the vocabulary"),
    ],
)
def test_wrong_arguments_are_refused_on_the_call(arguments, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        GPT2(CONFIG, device="numpy").generate(*arguments, **settings)


def test_each_sequence_needs_a_prompt():
    with pytest.raises(UserError, match="1 prompts were given, expected 2, one for each sequence"):
        generate_samples(Scripted(counting, 2), [[1]], 3)
    with pytest.raises(UserError, match="prompt 1 has 5 tokens, expected at most 4"):
        generate_samples(Scripted(counting, 2), [[1], [1] * 5], 3)


def test_prompts_of_any_kind_of_integers():
    for prompt in ((1, 2), np.array([1, 2], np.uint8), range(1, 3), [np.int64(1), 2]):
        assert generate(counting, prompt, np.int64(3)) == [3, 4, 5]


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 100.0}, {"top_k": 2}, {"top_p": 0.1}])
def test_only_allowed_tokens_are_drawn(settings):
    """However likely the others are; among the allowed, what a vocabulary of these alone would give."""
    allowed = [1, 4, 9, 15, 99]
    drawn = generate(uncertain, [7], 200, seed=3, allowed_tokens=allowed, window="slide", sampling=settings)
    assert len(drawn) == 200 and set(drawn) <= set(allowed)
    text = [7]
    for position, token in enumerate(drawn, start=1):
        logits = uncertain(np.array(text[-4:]))[allowed[:4]]
        assert token == allowed[sample(logits, philox.uniform(3, 0, position), Sampling(**settings))]
        text.append(token)


def test_one_of_several_stop_tokens_ends_a_sample_even_where_it_is_not_allowed():
    for stop_token in (5, [5], (9, 5)):
        assert generate(counting, [1], 10, stop_token=stop_token) == [2, 3, 4]
        assert generate(counting, [1], 10, stop_token=stop_token, allowed_tokens=[2, 3, 4]) == [2, 3, 4]


# ---- text ----


def stream_of(text, stop, tokenizer=None):
    """What a stream shows after each token, and at the end."""
    tokenizer = tokenizer or ByteTokenizer()
    stream, shown = TextStream(tokenizer, stop), []
    for token in tokenizer.encode(text):
        if stream.add(int(token)):
            shown.append(stream.text)
            break
        shown.append(stream.text)
    stream.end()
    return shown, stream.text, stream.stopped


def test_a_stop_string_ends_a_text_across_the_borders_of_tokens():
    shown, text, stopped = stream_of("one END two", ["END"])
    assert (text, stopped) == ("one ", True)
    assert shown == ["o", "on", "one", "one ", "one ", "one ", "one "]  # nothing of it shows
    assert stream_of("one ENDs", ["ENDING", "x"])[1:] == ("one ENDs", False)
    assert stream_of("EN", ["END"]) == (["", ""], "EN", False)
    assert stream_of("aab", ["ab"])[1] == "a"  # it begins once more within itself
    assert stream_of("ababac", ["abac"])[1] == "ab"
    assert stream_of("abcd", ["cd", "bc"])[1] == "a"  # whichever is complete first
    assert stream_of("né!", ["é"])[1:] == ("n", True)
    assert stream_of("né!", [])[0] == ["n", "n", "né", "né!"]


def test_a_stop_string_within_one_token():
    class Words(ByteTokenizer):
        def encode(self, text):
            return range(len(text.split("|")))

        def decode_bytes(self, tokens):
            return b"".join([b"so it ", b"goes END and"][token] for token in tokens)

    assert stream_of("a|b", ["END"], Words())[1:] == ("so it goes ", True)
    assert stream_of("a|b", ["END", "goes"], Words())[1:] == ("so it ", True)  # of two, the one that stands first


def test_half_a_character_at_the_end_is_shown_as_such():
    stream = TextStream(ByteTokenizer())
    stream.add(0xC3)
    assert stream.text == ""
    stream.end()
    assert stream.text == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stop", "cut"),
    [
        ("ab", [], [(0, "a"), (1, "b")]),
        ("né!", [], [(0, "n"), (2, "é"), (3, "!")]),
        ("one END", ["END"], [(0, "o"), (1, "n"), (2, "e"), (3, " ")]),
        ("one EN", ["END"], [(0, "o"), (1, "n"), (2, "e"), (3, " "), (4, "E"), (5, "N")]),
    ],
)
def test_a_text_is_cut_where_its_tokens_meet(text, stop, cut):
    stream, shown, whole = TextStream(ByteTokenizer(), stop), 0, []
    assert list(stream.pieces()) == []
    for token in ByteTokenizer().encode(text):
        stream.add(int(token))
        whole += stream.pieces(shown)
        shown = len(stream.text)
    stream.end()
    assert whole + list(stream.pieces(shown)) == list(stream.pieces()) == cut


def test_half_a_character_at_the_end_belongs_to_the_last_token():
    stream = TextStream(ByteTokenizer())
    stream.add(ord("a"))
    stream.add(0xC3)
    stream.end()
    assert list(stream.pieces()) == [(0, "a"), (1, "\ufffd")]


def test_what_stands_before_a_text_without_prompt():
    assert start_token(ByteTokenizer(), None) == ord("\n")
    assert start_token(ByteTokenizer(), 3) == 3
    assert start_token(CharTokenizer("ab\n"), None) == 2
    assert start_token(CharTokenizer("ab"), None) == 0


def test_control_characters_do_not_reach_a_terminal():
    assert printable("a\tb\n\x1b[2J\x07\r\x7f\x9b é") == "a\tb\n␛[2J␇␍␡\ufffd é"


# ---- the script ----


@pytest.fixture
def folder(tmp_path):
    """A model folder with a byte tokenizer."""
    model = GPT2(CONFIG, device="numpy", seed=1)
    save_parameters(tmp_path / "model", CONFIG, model.parameters, extra=ByteTokenizer().save)
    return tmp_path / "model"


@pytest.fixture
def script(monkeypatch, capfdbinary):
    """Runs scripts/generate.py; returns exit status, output and errors."""

    def run(*flags, stdin=b""):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, flags)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        out, err = capfdbinary.readouterr()
        return exit.value.code, out, err.decode()

    return run


def test_the_script_prints_prompt_and_text(script, folder):
    model = GPT2.from_pretrained(folder, device="numpy")
    expected = "ab" + ByteTokenizer().decode(model.generate([97, 98], 20, seed=2, top_k=50))
    flags = ("--model", folder, "--device", "numpy", "--max-new-tokens", 20, "--seed", 2, "--top-k", 50)
    status, out, err = script("ab", *flags)
    assert (status, out.decode()) == (0, expected + "\n")
    assert re.fullmatch(SPEED, err)
    assert script("-", *flags, stdin=b"ab")[1] == out


def test_the_script_prints_several_samples(script, folder):
    flags = ("--model", folder, "--device", "numpy", "--max-new-tokens", 9, "--temperature", 0.5)
    one = script("ab", *flags)[1].decode()
    three = script("ab", *flags, "--num-samples", 3)[1].decode()
    assert three.startswith("---- sample 1 of 3\n" + one + "---- sample 2 of 3\nab")
    assert "---- sample 3 of 3\nab" in three


def test_the_script_reads_a_prompt_from_a_file(script, folder, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfab\xe9\n")
    flags = ("--model", folder, "--device", "numpy", "--max-new-tokens", 5)
    assert script("--prompt-file", tmp_path / "prompt.txt", *flags)[:2] == script("-", *flags, stdin=b"ab\xe9\n")[:2]


def test_the_script_prints_json(script, folder):
    model = GPT2.from_pretrained(folder, device="numpy")
    flags = ("--model", folder, "--device", "numpy", "--max-new-tokens", 6, "--num-samples", 2, "--lookup", 3)
    status, out, err = script("ab", *flags, "--json", "--temperature", 0.8)
    printed = json.loads(out)
    assert (status, out.count(b"\n")) == (0, 1) and re.fullmatch(SPEED, err)
    assert (printed["prompt"], printed["prompt_tokens"]) == ("ab", [97, 98])
    steps = list(generate_samples(model.generator(batch_size=2), [[97, 98]] * 2, 6, Sampling(0.8)))
    for number, text in enumerate(printed["samples"]):
        drawn = list(itertools.chain(*(step[number] for step in steps)))
        assert text["tokens"] == [one.token for one in drawn]
        assert text["text"] == ByteTokenizer().decode(text["tokens"])
        np.testing.assert_allclose(text["log_probabilities"], [one.log_probability for one in drawn], atol=1e-5)


def test_colours_tell_how_likely_the_tokens_are(script, folder, monkeypatch):
    tokens = b"one tE"
    probabilities = (1.0, 0.49, 0.126, 0.124, 0.04, 0.001)

    def drawn(*_, **settings):
        found = [Drawn(token, math.log(p)) for token, p in zip(tokens, probabilities, strict=True)]
        for step in (found[:4], found[4:]):  # several tokens at a time, as with --lookup
            for one in step:
                settings["ends"](0, one.token)
            yield [step]

    monkeypatch.setattr(pygpt.command.generate, "generate_samples", drawn)
    flags = ("ab", "--model", folder, "--device", "numpy", "--stop", "END")
    assert script(*flags, "--colour", "always")[:2] == (
        0,
        b"ab\x1b[32mo\x1b[39m\x1b[36mn\x1b[39m\x1b[36me\x1b[39m\x1b[33m \x1b[39m\x1b[33mt\x1b[39m\x1b[31mE\x1b[39m\n",
    )
    assert script(*flags)[:2] == script(*flags, "--colour", "auto")[:2] == (0, b"abone tE\n")


def test_colours_change_no_text(script, folder):
    flags = ("ab", "--model", folder, "--device", "numpy", "--num-samples", 2, "--lookup", 3, "--max-new-tokens", 30)
    plain, coloured = script(*flags)[1], script(*flags, "--colour", "always")[1]
    assert re.sub(rb"\x1b\[\d\dm", b"", coloured) == plain
    assert coloured.count(b"\x1b[39m") > 20


@pytest.mark.parametrize(
    ("when", "terminal", "no_color", "wanted"),
    [
        ("auto", True, None, True),
        ("auto", True, "", True),
        ("auto", True, "1", False),
        ("auto", False, None, False),
        ("always", False, "1", True),
        ("never", True, None, False),
    ],
)
def test_where_colours_are_shown(monkeypatch, when, terminal, no_color, wanted):
    class Out(io.StringIO):
        def isatty(self):
            return terminal

    if no_color is None:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", no_color)
    assert colour.is_wanted(when, Out()) == wanted


def test_a_text_ends_before_a_stop_string(script, folder):
    flags = ("--model", folder, "--device", "numpy", "--max-new-tokens", 40, "--num-samples", 2, "--seed", 3)
    free = json.loads(script("ab", *flags, "--json")[1])["samples"]
    stop = free[0]["text"][5:7]
    stopped = json.loads(script("ab", *flags, "--json", "--stop", stop, "--stop", "never")[1])["samples"]
    assert stopped[0]["text"] == free[0]["text"][: free[0]["text"].index(stop)]
    assert len(stopped[0]["tokens"]) < 40
    assert stopped[1]["text"] == free[1]["text"].partition(stop)[0]


def test_formats_and_windows_reach_the_generator(script, folder):
    flags = ("ab", "--model", folder, "--device", "numpy", "--max-new-tokens", 40)
    model = GPT2.from_pretrained(folder, device="numpy")
    for more in (
        {"weights": "int4"},
        {"cache": "bfloat16"},
        {"window": "slide"},
        {"repetition_penalty": 1.5},
        {"min_p": 0.1},
    ):
        ((name, value),) = more.items()
        out = script(*flags, f"--{name.replace('_', '-')}", value)[1]
        assert out.decode() == "ab" + ByteTokenizer().decode(model.generate([97, 98], 40, **more)) + "\n"
    bf16 = script(*flags, "--dtype", "bfloat16")[1].decode()
    assert bf16 == "ab" + ByteTokenizer().decode(model.generate([97, 98], 40, weights="bfloat16")) + "\n"


def test_each_line_of_a_conversation_is_a_prompt(script, folder):
    flags = ("--model", folder, "--device", "numpy", "--max-new-tokens", 5)
    status, out, err = script("--interactive", *flags, stdin=b"ab\nabcdefghij\n\ncaf\xe9\n")
    texts = [script(*prompt, *flags, stdin=b"caf\xe9")[1] for prompt in (["ab"], [], ["-"])]
    assert status == 0
    assert out == b"> " + texts[0] + b"> > " + texts[1] + b"> " + texts[2] + b"> \n"
    assert err.count("tokens/s\n") == 3
    assert "error: the prompt has 10 tokens, expected at most 8, which fit into the context\n" in err


def test_ctrl_c_ends_a_text_and_not_the_conversation(script, folder, monkeypatch):
    def interrupted(*_, **settings):
        settings["ends"](0, 97)
        yield [[Drawn(97, -1.0)]]
        raise KeyboardInterrupt

    monkeypatch.setattr(pygpt.command.generate, "generate_samples", interrupted)
    status, out, _ = script("--interactive", "--model", folder, "--device", "numpy", stdin=b"x\ny\n")
    assert (status, out) == (0, b"> xa\n> ya\n> \n")


def test_a_character_appears_when_its_last_byte_has_come(script, folder, monkeypatch, capfdbinary):
    printed = []

    def tokens(*_, **settings):
        for byte in "né😀!".encode():
            printed.append(capfdbinary.readouterr().out)  # since the token before
            settings["ends"](0, byte)
            yield [[Drawn(byte, -1.0)]]

    monkeypatch.setattr(pygpt.command.generate, "generate_samples", tokens)
    assert script("", "--model", folder, "--device", "numpy")[1] == b"!\n"
    assert printed == [b"", b"n", b"", "é".encode(), b"", b"", b"", "😀".encode()]


def test_bytes_of_the_prompt_that_are_no_text_stay_what_they_are(script, folder):
    status, out, _ = script("-", "--model", folder, "--device", "numpy", "--max-new-tokens", 1, stdin=b"caf\xe9")
    assert status == 0
    assert out.startswith(b"caf\xe9")


def test_a_byte_order_mark_before_a_piped_prompt_is_dropped(script, folder):
    flags = ("--model", folder, "--device", "numpy", "--max-new-tokens", 5)
    assert script("-", *flags, stdin=b"\xef\xbb\xbfab")[:2] == script("ab", *flags)[:2]


@pytest.mark.parametrize(
    ("prompt", "arguments"), [("-5 deg", ["-5 deg"]), ("-5", ["-5"]), ("-x", ["--", "-x"]), ("", ["--", ""])]
)
def test_prompts_that_begin_with_a_dash(script, folder, prompt, arguments):
    status, out, err = script("--model", folder, "--device", "numpy", "--max-new-tokens", 1, *arguments)
    assert status == 0 and re.fullmatch(SPEED, err) and out.decode("latin-1").startswith(prompt)


def model_that_says(folder, token, vocab_size, tokenizer=None):
    """A model folder; the model is certain of one token, and its vocabulary may be larger than the tokenizer's."""
    config = replace(CONFIG, vocab_size=vocab_size)
    parameters = dict(GPT2(config, device="numpy", seed=1).parameters)
    parameters["ln_f.weight"] = np.zeros(config.n_embd)
    parameters["ln_f.bias"] = 1000 * parameters["wte.weight"][token]
    save_parameters(folder, config, parameters, extra=None if tokenizer is None else tokenizer.save)


def test_a_token_that_the_tokenizer_lacks_is_never_drawn(script, tmp_path):
    model_that_says(tmp_path / "padded", 280, 304, ByteTokenizer())
    holes = {token: i for i, token in enumerate([*BYTES, "<|endoftext|>"])} | {"<|endoftext|>": 303}
    model_that_says(tmp_path / "holes", 280, 304)
    write_vocabulary(tmp_path / "holes", holes, merges=[])
    for name in ("padded", "holes"):
        for settings in (["--temperature", 0], ["--temperature", 5], ["--top-k", 3], ["--top-p", 0.5]):
            flags = ("--model", tmp_path / name, "--device", "numpy", "--max-new-tokens", 20, *settings)
            status, out, err = script("abc", *flags)
            assert status == 0 and re.fullmatch(SPEED, err) and out.startswith(b"abc")


@pytest.mark.parametrize(
    ("files", "printed"),
    [
        ({"config.json": {"eos_token_id": 257}}, ""),
        ({"config.json": {"eos_token_id": [256, 257]}}, ""),  # the tokenizer's own is the first
        ({"config.json": {"eos_token_id": 5}, "generation_config.json": {"eos_token_id": 257}}, ""),
        ({"config.json": {"eos_token_id": 5}}, "</s></s>"),
        ({"config.json": {"eos_token_id": 50256}}, "</s></s>"),
        ({"tokenizer_config.json": {"eos_token": "</s>"}}, ""),
    ],
)
def test_a_text_ends_where_the_model_says(script, tmp_path, files, printed):
    model_that_says(tmp_path, 257, 258)
    write_vocabulary(tmp_path, {token: i for i, token in enumerate([*BYTES, "<s>", "</s>"])}, merges=[])
    for name, values in files.items():
        path = tmp_path / name
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))
    flags = ("--model", tmp_path, "--device", "numpy", "--max-new-tokens", 2, "--temperature", 0)
    assert script("hello", *flags)[:2] == (0, f"hello{printed}\n".encode())
    assert script("hello", *flags, "--no-stop-at-eot")[1] == b"hello</s></s>\n"


def test_a_text_without_prompt_begins_as_the_model_says(script, folder, monkeypatch):
    prompts = []

    def generate_samples(generator, tokens, *_, **__):
        prompts.extend(tokens)
        return iter([])

    monkeypatch.setattr(pygpt.command.generate, "generate_samples", generate_samples)
    config = json.loads((folder / "config.json").read_text())
    for bos in (None, 7, 256):
        (folder / "config.json").write_text(json.dumps({**config, "bos_token_id": bos}))
        assert script("--model", folder, "--device", "numpy")[0] == 0
    (folder / "generation_config.json").write_text('{"bos_token_id": 8}')
    script("--model", folder, "--device", "numpy")
    assert prompts == [[10], [7], [10], [8]]


def test_the_prompt_of_a_command_line_is_utf8_whatever_the_locale():
    code = "import sys; from pygpt.command.generate import _read_prompt; print(ascii(_read_prompt(sys.argv[1])))"
    command = [sys.executable, "-c", code, "日".encode() + b"\xff"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **C_LOCALE}, check=True)
    assert done.stdout == b"'\\u65e5\\udcff'\n"


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, C_LOCALE])
def test_what_standard_output_cannot_show_is_replaced(folder, environment):
    command = [sys.executable, str(SCRIPT), "日é", "--model", folder, "--device", "numpy", "--max-new-tokens", "80"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0 and re.fullmatch(SPEED, done.stderr.decode())
    assert done.stdout.startswith(b"?\xe9" if environment.get("PYTHONIOENCODING") == "latin-1" else b"??")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-x"], "-x is not a flag; text that begins with - stands after the flags and --"),
        (["--", "-x"], "'--model' belongs to no flag: after -- is text, and flags stand before it"),
        (["--modell", "x"], "--modell is not a flag; did you mean --model?"),
        (["a", "b"], "'b' belongs to no flag"),
        (["--max-new-tokens", "0"], "--max-new-tokens: expected an integer of at least 1, got '0'"),
        (["--num-samples", "-3"], "--num-samples: expected an integer of at least 1, got '-3'"),
        (["--num-samples", "2000000000"], "of memory are needed"),
        (["--temperature", "hot"], "--temperature: expected a number, got 'hot'"),
        (["--temperature", "nan"], "temperature is nan, expected"),
        (["--top-k", "two"], "--top-k: expected an integer, got 'two'"),
        (["--top-k", "-1"], "top-k is -1, expected an integer of at least 0"),
        (["--top-p", "2"], "top-p is 2.0, expected a probability from 0 to 1"),
        (["--min-p", "-1"], "min-p is -1.0, expected a probability from 0 to 1"),
        (["--weights", "int3"], "--weights: invalid choice: 'int3'"),
        (["--cache", "int8"], "--cache: invalid choice: 'int8'"),
        (["--window", "all"], "--window: invalid choice: 'all'"),
        (["--lookup", "-1"], "lookup is -1, expected an integer of at least 0"),
        (["--stop", ""], "a stop string is empty"),
        (["--num-samples", "9" * 30], "expected an integer from 1 to 2147483647"),
        (["abcdefghi"], "the prompt has 9 tokens, expected at most 8, which fit into the context"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt: cannot be read: No such file or directory"),
        (["a", "--prompt-file", "b.txt"], "there is a prompt, 'a', and --prompt-file b.txt: expected one of them"),
        (["a", "--interactive"], "--interactive asks for prompts"),
        (["--json", "--interactive"], "--interactive asks for prompts"),
        (["--json", "--colour", "auto"], "--colour is auto, and --json has no colours: leave one out"),
        (["--colour", "red"], "--colour: invalid choice: 'red'"),
        (["--seed", "-1"], "seed is -1, expected"),
        (["--device", "gpu"], "--device: invalid choice: 'gpu'"),
    ],
)
def test_wrong_flags_get_a_sentence(script, folder, flags, sentence):
    status, out, err = script(*flags, "--model", folder, *([] if "--device" in flags else ["--device", "numpy"]))
    assert status == 2
    assert out == b""
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_wrong_models_get_a_sentence(script, folder):
    def refusal():
        status, out, err = script("a", "--model", folder, "--device", "numpy")
        assert (status, out, err[:7], err.count("\n")) == (2, b"", "error: ", 1)
        return err

    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert "model.safetensors" in refusal()
    weights.unlink()
    assert "holds no model.safetensors" in refusal()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "model_type" in refusal()
    (folder / "pygpt_tokenizer.json").unlink()
    assert "holds no" in refusal()
