"""Text from a model, and scripts/generate.py."""

import io
import itertools
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import pygpt.generate
from pygpt.backends.library import cpu_library
from pygpt.checkpoint import save_parameters
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.generate import generate, generate_samples, printable, start_token
from pygpt.model import GPT2
from pygpt.reference import philox
from pygpt.sampling import sample
from pygpt.tokenizer import ByteTokenizer, CharTokenizer

SCRIPT = Path(__file__).parents[1] / "scripts" / "generate.py"
CONFIG = GPT2Config(vocab_size=256, n_positions=8, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)


class Scripted:
    """A model whose logits are a function of the tokens that it sees, and which remembers what it saw."""

    def __init__(self, logits_of, vocab_size=16, n_positions=4):
        self.config = GPT2Config(vocab_size=vocab_size, n_positions=n_positions, n_embd=4, n_layer=1, n_head=1)
        self.logits_of = logits_of
        self.seen = []

    def forward(self, tokens):
        self.seen.append(tokens.copy())

    def last_logits(self):
        return np.array([self.logits_of(row) for row in self.seen[-1]])


def counting(row):
    """Certain that the next number follows."""
    return np.where(np.arange(16) == (row[-1] + 1) % 16, 50.0, 0.0)


def uncertain(row):
    return np.cos(row.sum() * np.arange(16))


def test_the_model_sees_the_last_tokens_that_have_a_position():
    model = Scripted(counting)
    assert list(generate(model, [1, 2, 3], 4)) == [4, 5, 6, 7]
    assert [seen.tolist() for seen in model.seen] == [[[1, 2, 3]], [[1, 2, 3, 4]], [[2, 3, 4, 5]], [[3, 4, 5, 6]]]
    long = Scripted(counting)
    assert list(generate(long, [9, 9, 9, 1, 2, 3], 1)) == [4]
    assert long.seen[0].tolist() == [[9, 1, 2, 3]]


def test_tokens_are_drawn_by_the_numbers_of_their_seed_sample_and_position():
    prompt = [3, 1]
    rows = list(generate_samples(Scripted(uncertain), prompt, 3, 6, temperature=0.7, top_k=9, seed=5))
    for stream in range(3):
        text = list(prompt)
        for position, row in enumerate(rows, start=2):
            logits = uncertain(np.array(text[-4:]))
            assert row[stream] == sample(logits, philox.uniform(5, stream, position), 0.7, 9)
            text.append(row[stream])


def test_a_sample_is_the_same_alone_in_a_batch_and_continued():
    alone = list(generate(Scripted(uncertain), [7], 10, seed=3))
    batch = list(generate_samples(Scripted(uncertain), [7], 4, 10, seed=3))
    assert [row[0] for row in batch] == alone
    assert len({tuple(column) for column in zip(*batch, strict=True)}) == 4
    assert list(generate(Scripted(uncertain), [7, *alone[:4]], 6, seed=3)) == alone[4:]
    assert list(generate(Scripted(uncertain), [7], 10, seed=4)) != alone


def test_a_sample_ends_before_the_stop_token_and_the_others_go_on():
    assert list(generate(Scripted(counting), [1], 10, stop_token=5)) == [2, 3, 4]
    model = Scripted(uncertain)
    free = list(zip(*generate_samples(Scripted(uncertain), [7], 4, 12, seed=3), strict=True))
    stop = free[2][3]
    rows = list(zip(*generate_samples(model, [7], 4, 12, seed=3, stop_token=stop), strict=True))
    for text, stopped in zip(free, rows, strict=True):
        kept = list(itertools.takewhile(lambda token: token != stop, text))
        assert [token for token in stopped if token is not None] == kept[: len(stopped)]
    assert rows[2][3] is None
    assert min(len(seen) for seen in model.seen) < 4  # what has stopped is not computed any more


def test_the_backends_draw_the_same_text():
    try:
        cpu_library()
    except UserError as error:
        pytest.skip(str(error))
    texts = {
        (device, seed): list(GPT2(CONFIG, device=device, seed=1).generate([5, 6], 20, seed=seed, top_p=0.95))
        for device in ("numpy", "cpu")
        for seed in range(3)
    }
    for seed in range(3):
        assert texts["cpu", seed] == texts["numpy", seed]
    assert texts["cpu", 0] != texts["cpu", 1]


def test_greedy_follows_the_likeliest_token():
    model = GPT2(CONFIG, device="numpy", seed=1)
    text = [5, 6]
    for token in model.generate([5, 6], 12, temperature=0):
        model.forward([text[-8:]])
        assert token == model.logits[0, -1].argmax()
        text.append(token)
    assert len(text) == 14


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (([], 5), {}, "the prompt is empty"),
        (([16], 5), {}, "token 16 of the prompt is outside the vocabulary, expected 0 to 15"),
        (([-1], 5), {}, "token -1 of the prompt"),
        (([1], 0), {}, "max_new_tokens is 0"),
        (([1], 5), {"temperature": -1.0}, "temperature is -1"),
        (([1], 5), {"top_k": 0}, "top-k is 0"),
        (([1], 5), {"top_p": 0.0}, "top-p is 0"),
        (([1], 5), {"seed": -1}, "seed is -1"),
        (([1], 5), {"seed": 2**64}, "seed is 1844"),
    ],
)
def test_wrong_arguments_are_refused_on_the_call(arguments, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        generate(Scripted(counting), *arguments, **settings)


def test_what_stands_before_a_text_without_prompt():
    assert start_token(ByteTokenizer()) == ord("\n")
    assert start_token(CharTokenizer("ab\n")) == 2
    assert start_token(CharTokenizer("ab")) == 0


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
    assert (status, out.decode(), err) == (0, expected + "\n", "")
    assert script("-", *flags, stdin=b"ab")[1] == out


def test_the_script_prints_several_samples(script, folder):
    flags = ("--model", folder, "--device", "numpy", "--max-new-tokens", 9, "--temperature", 0.5)
    one = script("ab", *flags)[1].decode()
    three = script("ab", *flags, "--num-samples", 3)[1].decode()
    assert three.startswith("---- sample 1 of 3\n" + one + "---- sample 2 of 3\nab")
    assert "---- sample 3 of 3\nab" in three


def test_a_character_appears_when_its_last_byte_has_come(script, folder, monkeypatch, capfdbinary):
    printed = []

    def tokens(*_, **__):
        for byte in "né😀!".encode():
            printed.append(capfdbinary.readouterr().out)  # since the token before
            yield [byte]

    monkeypatch.setattr(pygpt.generate, "generate_samples", tokens)
    assert script("", "--model", folder, "--device", "numpy")[1] == b"!\n"
    assert printed == [b"", b"n", b"", "é".encode(), b"", b"", b"", "😀".encode()]


def test_bytes_of_the_prompt_that_are_no_text_stay_what_they_are(script, folder):
    status, out, _ = script("-", "--model", folder, "--device", "numpy", "--max-new-tokens", 1, stdin=b"caf\xe9")
    assert status == 0
    assert out.startswith(b"caf\xe9")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--modell", "x"], "--modell is not a flag; did you mean --model?"),
        (["a", "b"], "'b' belongs to no flag"),
        (["--max-new-tokens", "0"], "--max-new-tokens: expected an integer of at least 1, got '0'"),
        (["--num-samples", "-3"], "--num-samples: expected an integer of at least 1, got '-3'"),
        (["--num-samples", "2000000000"], "of memory are needed"),
        (["--temperature", "hot"], "--temperature: invalid float value: 'hot'"),
        (["--temperature", "nan"], "temperature is nan, expected"),
        (["--top-k", "0"], "top-k is 0, expected at least 1"),
        (["--top-p", "2"], "top-p is 2.0, expected a probability above 0 and at most 1"),
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
