"""pygpt import: which sources it knows, tokens that are added, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import pygpt
from pygpt.command.import_ import main
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.files.added_tokens import add_tokens
from pygpt.files.checkpoint import load_parameters, read_config, save_parameters
from pygpt.files.formats import read_model
from pygpt.files.stored_model import StoredModel
from pygpt.parameters import parameter_shapes
from pygpt.text import bpe
from pygpt.text.tokenizer import ByteTokenizer, GPT2Tokenizer, Tokenizer, load_tokenizer

CONFIG = GPT2Config(vocab_size=258, n_positions=8, n_embd=6, n_layer=1, n_head=2, eos_token_id=257)
BYTES = [bytes([byte]) for byte in range(256)]
TOKENIZER = GPT2Tokenizer(
    bpe.Vocabulary(
        {token: number for number, token in enumerate([*BYTES, b"he"])}, {"<|endoftext|>": 257},
        merges=[(b"h", b"e")], eos_token="<|endoftext|>",
    )
)  # fmt: skip


def random_model(config: GPT2Config = CONFIG, tokenizer: Tokenizer | None = TOKENIZER) -> StoredModel:
    numbers = np.random.default_rng(0)
    parameters = {name: numbers.standard_normal(shape, np.float32) for name, shape in parameter_shapes(config).items()}
    return StoredModel(config, parameters, lambda: tokenizer)


def save(folder: Path, model: StoredModel) -> Path:
    tokenizer = model.read_tokenizer()
    save_parameters(folder, model.config, model.parameters, extra=tokenizer and tokenizer.save)
    return folder


def run(*words: str | Path) -> None:
    main([str(word) for word in words])


def parameters_of(folder: Path) -> dict[str, NDArray[np.float32]]:
    return dict(load_parameters(folder, read_config(folder)))


def test_a_folder_is_copied_in_another_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model()
    run(save(tmp_path / "a", model), tmp_path / "b", "--dtype", "float16")
    assert capsys.readouterr().out == f"{tmp_path / 'b'}: 2,118 parameters in float16, a gpt2 tokenizer\n"
    for name, values in parameters_of(tmp_path / "b").items():
        assert np.array_equal(values, model.parameters[name].astype(np.float16)), name
    assert load_tokenizer(tmp_path / "b").fingerprint == TOKENIZER.fingerprint


@pytest.mark.parametrize("padding", [0, 1, 2, 5])
def test_tokens_are_added(tmp_path: Path, padding: int) -> None:
    """New rows, or rows of padding, are the mean of the tokens' rows; the rest stays as it is, bit by bit."""
    config = GPT2Config(vocab_size=258 + padding, n_positions=8, n_embd=6, n_layer=1, n_head=2, eos_token_id=257)
    model = random_model(config)
    run(save(tmp_path / "a", model), tmp_path / "b", "--add-token", "<|user|>", "--add-token", "été")
    found, tokenizer = parameters_of(tmp_path / "b"), load_tokenizer(tmp_path / "b")
    old, new = model.parameters["wte.weight"], found.pop("wte.weight")
    assert read_config(tmp_path / "b").vocab_size == len(new) == 258 + max(padding, 2)
    assert np.array_equal(new[:258], old[:258]) and np.array_equal(new[260:], old[260:])
    assert np.array_equal(new[258:260], np.tile(old[:258].mean(0, dtype=np.float64).astype(np.float32), (2, 1)))
    for name, values in found.items():
        assert np.array_equal(values, model.parameters[name]), name
    assert tokenizer.encode("he<|user|>été<|endoftext|>").tolist()[:3] == [256, 258, 259]
    assert tokenizer.decode([258, 256, 259]) == "<|user|>heété"
    assert tokenizer.eot_token == 257


def test_fine_tuning_learns_a_new_token(tmp_path: Path) -> None:
    run(save(tmp_path / "a", random_model()), tmp_path / "b", "--add-token", "<|user|>")
    model = pygpt.GPT2.from_pretrained(tmp_path / "b", device="numpy")
    tokens = load_tokenizer(tmp_path / "b").encode("he<|user|>he<|user|>")[None]
    losses = []
    for _ in range(20):
        model.zero_grad()
        losses.append(model.forward(tokens[:, :-1], tokens[:, 1:]))
        model.backward()
        model.adamw_step(lr=0.05)
    assert losses[-1] < losses[0] / 2
    before = parameters_of(tmp_path / "b")["wte.weight"][258]
    assert not np.array_equal(model.parameters["wte.weight"][258], before)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([""], "'' cannot be added: it is empty"),
        (["he"], "'he' cannot be added: it is a token already"),
        (["<|endoftext|>"], "'<|endoftext|>' cannot be added: it is a token already"),
        (["<a>", "<a>"], "'<a>' cannot be added: it is a token already"),
        (["\ud800"], "U\\+D800 at 0 has no UTF-8 bytes"),
    ],
)
def test_tokens_that_cannot_be_added(texts: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        add_tokens(random_model(), texts)


@pytest.mark.parametrize(
    ("tokenizer", "sentence"), [(ByteTokenizer(), "the model's is 'byte'"), (None, "there is none")]
)
def test_tokenizers_that_take_no_tokens(tmp_path: Path, tokenizer: Tokenizer | None, sentence: str) -> None:
    folder = save(tmp_path / "a", random_model(tokenizer=tokenizer))
    with pytest.raises(UserError, match=f"only to a tokenizer of the kind 'gpt2', but {sentence}"):
        run(folder, tmp_path / "b", "--add-token", "<a>")
    assert not (tmp_path / "b").exists()


def test_files_of_something_else(tmp_path: Path) -> None:
    for contents in (b"", b"text", b"\x80", b"GGU"):
        (tmp_path / "x").write_bytes(contents)
        with pytest.raises(UserError, match=r"x: is not a model that can be read, expected a folder, or a file of"):
            read_model(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        read_model(tmp_path / "x")
    with pytest.raises(UserError, match="y/z/0: no such folder"):
        read_model("y/z/0")
    with pytest.raises(UserError, match=r"^model\.gguf: no such file$"):
        read_model("model.gguf")


def test_numbers_that_are_none(tmp_path: Path) -> None:
    model = random_model()
    model.parameters["h.0.mlp.c_fc.weight"][2, 5] = np.nan
    folder = save(tmp_path / "a", model)
    with pytest.raises(
        UserError, match=r"a: tensor h.0.mlp.c_fc.weight holds nan at \[2, 5\], expected finite numbers"
    ):
        run(folder, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", random_model())
    with pytest.raises(UserError, match="a: exists, expected the name of a new folder"):
        run(folder, folder)
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"b: holds no config\.json"):
        run(tmp_path / "b", tmp_path / "c")
    replace(CONFIG, n_layer=2).to_json(folder / "config.json")
    with pytest.raises(UserError, match=r"tensor h.1.ln_1.weight is missing"):
        run(folder, tmp_path / "c")
    assert not (tmp_path / "c").exists()
