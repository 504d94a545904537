"""Text from a model, and scripts/generate.py."""

import io
import itertools
import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_tokenizer import BYTES, write_vocabulary

import pygpt.command.generate
from pygpt.backends.library import cpu_library
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.files.checkpoint import save_parameters
from pygpt.generation.generate import generate, generate_samples, printable, start_token
from pygpt.generation.sampling import sample
from pygpt.model import GPT2
from pygpt.reference import philox
from pygpt.text.tokenizer import ByteTokenizer, CharTokenizer

SCRIPT = Path(__file__).parents[1] / "scripts" / "generate.py"
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
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
        (([1], 5), {"seed": 1.0}, "seed is 1.0, expected an integer from 0"),
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
        (([1], 5), {"allowed_tokens": [16, 17]}, "none of the allowed tokens is in the vocabulary"),
    ],
)
def test_wrong_arguments_are_refused_on_the_call(arguments, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        generate(Scripted(counting), *arguments, **settings)


def test_prompts_of_any_kind_of_integers():
    for prompt in ((1, 2), np.array([1, 2], np.uint8), range(1, 3), [np.int64(1), 2]):
        assert list(generate(Scripted(counting), prompt, np.int64(3))) == [3, 4, 5]


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 100.0}, {"top_k": 2}, {"top_p": 0.1}])
def test_only_allowed_tokens_are_drawn(settings):
    """However likely the others are; among the allowed, what a vocabulary of these alone would give."""
    allowed = [1, 4, 9, 15, 99]
    drawn = list(generate(Scripted(uncertain), [7], 200, seed=3, allowed_tokens=allowed, **settings))
    assert len(drawn) == 200 and set(drawn) <= set(allowed)
    text = [7]
    for position, token in enumerate(drawn, start=1):
        logits = uncertain(np.array(text[-4:]))[allowed[:4]]
        assert token == allowed[sample(logits, philox.uniform(3, 0, position), **settings)]
        text.append(token)


def test_one_of_several_stop_tokens_ends_a_sample_even_where_it_is_not_allowed():
    for stop_token in (5, [5], (9, 5)):
        assert list(generate(Scripted(counting), [1], 10, stop_token=stop_token)) == [2, 3, 4]
        assert list(generate(Scripted(counting), [1], 10, stop_token=stop_token, allowed_tokens=[2, 3, 4])) == [2, 3, 4]


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

    monkeypatch.setattr(pygpt.command.generate, "generate_samples", tokens)
    assert script("", "--model", folder, "--device", "numpy")[1] == b"!\n"
    assert printed == [b"", b"n", b"", "é".encode(), b"", b"", b"", "😀".encode()]


def test_bytes_of_the_prompt_that_are_no_text_stay_what_they_are(script, folder):
    status, out, _ = script("-", "--model", folder, "--device", "numpy", "--max-new-tokens", 1, stdin=b"caf\xe9")
    assert status == 0
    assert out.startswith(b"caf\xe9")


def test_a_byte_order_mark_before_a_piped_prompt_is_dropped(script, folder):
    flags = ("--model", folder, "--device", "numpy", "--max-new-tokens", 5)
    assert script("-", *flags, stdin=b"\xef\xbb\xbfab") == script("ab", *flags)


@pytest.mark.parametrize(
    ("prompt", "arguments"), [("-5 degrees", ["-5 degrees"]), ("-5", ["-5"]), ("-x", ["--", "-x"]), ("", ["--", ""])]
)
def test_prompts_that_begin_with_a_dash(script, folder, prompt, arguments):
    status, out, err = script("--model", folder, "--device", "numpy", "--max-new-tokens", 1, *arguments)
    assert (status, err) == (0, "") and out.decode("latin-1").startswith(prompt)


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
            assert (status, err) == (0, "") and out.startswith(b"abc")


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
    assert script("hello", *flags) == (0, f"hello{printed}\n".encode(), "")
    assert script("hello", *flags, "--no-stop-at-eot")[1] == b"hello</s></s>\n"


def test_a_text_without_prompt_begins_as_the_model_says(script, folder, monkeypatch):
    prompts = []

    def generate_samples(model, tokens, *_, **__):
        prompts.append(list(tokens))
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
    assert (done.returncode, done.stderr) == (0, b"")
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
        (["--temperature", "hot"], "--temperature: invalid float value: 'hot'"),
        (["--temperature", "nan"], "temperature is nan, expected"),
        (["--top-k", "0"], "top-k is 0, expected an integer of at least 1"),
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
