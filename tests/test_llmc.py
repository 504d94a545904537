"""Models in llm.c's file: their layout, what they keep, what is refused; and pygpt export and import with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pygpt
from pygpt.command import export as export_command
from pygpt.command import import_ as import_command
from pygpt.errors import UserError
from pygpt.files.checkpoint import load_parameters, read_config, save_parameters
from pygpt.files.llmc import read_model, write_model
from pygpt.parameters import parameter_shapes
from pygpt.reference.bfloat16 import round_bfloat16
from pygpt.text.tokenizer import ByteTokenizer, load_tokenizer

CONFIG = pygpt.GPT2Config(vocab_size=130, n_positions=5, n_embd=6, n_layer=3, n_head=2)
OTHER = pygpt.GPT2Config(
    vocab_size=128, n_positions=3, n_embd=4, n_layer=1, n_head=1, n_inner=7, layer_norm_epsilon=3e-6, embd_pdrop=0.1,
    attn_pdrop=0.25, resid_pdrop=0.3, bos_token_id=0, eos_token_id=127, activation_function="relu",
    position_embedding="rotary", bias=False, tie_word_embeddings=False, causal=False,
    scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True, norm_position="post",
)  # fmt: skip

Parameters = dict[str, NDArray[np.float32]]


def random_parameters(config: pygpt.GPT2Config) -> Parameters:
    numbers = np.random.default_rng(0)
    return {name: numbers.standard_normal(shape, np.float32) for name, shape in parameter_shapes(config).items()}


def laid_out(p: Mapping[str, Any], version: int) -> bytes:
    """The file of CONFIG, by llm.c's train_gpt2.py; of bfloat16 the values must be exact."""

    def layers(name: str) -> list[Any]:
        return [p[f"h.{layer}.{name}"] for layer in range(3)]

    header = np.zeros(256, "<i4")
    header[:8] = 20240326, version, 5, 130, 3, 2, 6, 256
    wte = np.zeros((256, 6), np.float32)
    wte[:130] = p["wte.weight"]
    tensors = [wte, p["wpe.weight"], *layers("ln_1.weight"), *layers("ln_1.bias")]
    tensors += [w.T for w in layers("attn.c_attn.weight")] + layers("attn.c_attn.bias")
    tensors += [w.T for w in layers("attn.c_proj.weight")] + layers("attn.c_proj.bias")
    tensors += [*layers("ln_2.weight"), *layers("ln_2.bias")]
    tensors += [w.T for w in layers("mlp.c_fc.weight")] + layers("mlp.c_fc.bias")
    tensors += [w.T for w in layers("mlp.c_proj.weight")] + layers("mlp.c_proj.bias")
    values = np.concatenate([np.ravel(tensor) for tensor in [*tensors, p["ln_f.weight"], p["ln_f.bias"]]])
    return header.tobytes() + (values.tobytes() if version == 3 else values.view("<u2")[1::2].tobytes())


def assert_equal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == np.float32 and found[name].shape == values.shape, name
        assert found[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize(("dtype", "version"), [("float32", 3), ("bfloat16", 5)])
def test_the_layout_is_that_of_llmc(tmp_path: Path, dtype: str, version: int) -> None:
    parameters = random_parameters(CONFIG)
    exact = parameters if version == 3 else {name: round_bfloat16(value) for name, value in parameters.items()}
    path = tmp_path / "model.bin"
    write_model(path, CONFIG, parameters, dtype)
    assert path.read_bytes() == laid_out(exact, version)
    config, found = read_model(path)
    assert config == CONFIG
    assert_equal(found, exact)


def test_padding_may_hold_anything(tmp_path: Path) -> None:
    parameters = random_parameters(CONFIG)
    contents = np.frombuffer(laid_out(parameters, 3), "<f4").copy()
    contents[256 + 130 * 6 : 256 + 256 * 6] = np.nan
    (tmp_path / "model.bin").write_bytes(contents.tobytes())
    assert_equal(read_model(tmp_path / "model.bin")[1], parameters)


def test_what_llmc_lacks_is_in_the_spare_fields(tmp_path: Path) -> None:
    parameters = random_parameters(OTHER)
    write_model(tmp_path / "model.bin", OTHER, parameters)
    config, found = read_model(tmp_path / "model.bin")
    assert config == OTHER
    assert_equal(found, parameters)
    header = np.fromfile(tmp_path / "model.bin", "<i4", 256)
    assert header[[8, *range(13, 23)]].tolist() == [7, 1, 128, 2, 2, 1, 1, 1, 1, 1, 1]
    assert header[9:13].view("<f4").tolist() == np.float32([3e-6, 0.1, 0.25, 0.3]).tolist()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        (0, 20240520, "is not a model of llm.c: starts with 20240520, expected 20240326"),
        (1, 1, "has version 1 of llm.c's format, expected 3"),
        (2, 0, "n_positions is 0"),
        (2, 2**31 - 1, "bytes, but a model of the sizes in its header takes"),
        (3, 129, None),
        (3, -1, "vocab_size is -1"),
        (4, 2**31 - 1, "but a model of the sizes in its header takes"),
        (5, 4, "n_embd is 6, expected a multiple of n_head, which is 4"),
        (6, 2**31 - 2, "expected less than 2^61"),
        (7, 0, "has a padded vocabulary of 0 tokens, expected at least vocab_size, which is 130"),
        (7, 257, "but a model of the sizes in its header takes"),
        (8, -5, "n_inner is -5"),
        (8, 25, "but a model of the sizes in its header takes"),
        (9, -1, "layer_norm_epsilon is nan"),
        (10, 0x3F800000, "embd_pdrop is 1, expected a probability"),
        (14, 131, "eos_token_id is 130, expected a token from 0 to 129"),
        (15, 3, "has 3 for activation_function in its header, expected 0 to 2"),
        (16, 4, "has 4 for position_embedding in its header, expected 0 to 3"),
        (17, 1, "but a model of the sizes in its header takes"),  # without biases
        (18, 1, "but a model of the sizes in its header takes"),  # with a head of its own
        (19, 2, "has 2 for causal in its header, expected 0 to 1"),
        (20, 2, "has 2 for scale_attn_weights in its header, expected 0 to 1"),
        (23, 1, "has 1 in field 23 of its header, expected 0"),
        (255, -1, "has -1 in field 255 of its header, expected 0"),
    ],
)
def test_headers_that_lie(tmp_path: Path, field: int, value: int, sentence: str | None) -> None:
    contents = bytearray(laid_out(random_parameters(CONFIG), 3))
    contents[4 * field : 4 * field + 4] = value.to_bytes(4, "little", signed=True)
    path = tmp_path / "model.bin"
    path.write_bytes(contents)
    if sentence is None:  # a smaller vocabulary with more padding is another true file
        assert read_model(path)[0].vocab_size == value
        return
    with pytest.raises(UserError) as error:
        read_model(path)
    assert str(error.value).startswith(f"{path}: ") and sentence in str(error.value)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (0, "has 0 bytes, fewer than the header of a model of llm.c (1024)"),
        (1023, "has 1023 bytes, fewer"),
        (1024, "has 1024 bytes, but a model"),
        (-1, "but a model of the sizes in its header takes"),
        (None, "but a model of the sizes in its header takes"),
    ],
)
def test_other_lengths(tmp_path: Path, size: int | None, sentence: str) -> None:
    contents = laid_out(random_parameters(CONFIG), 3)
    path = tmp_path / "model.bin"
    path.write_bytes(contents + b"\0" if size is None else contents[:size])
    with pytest.raises(UserError) as error:
        read_model(path)
    assert sentence in str(error.value)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_model(tmp_path / "none.bin")
    with pytest.raises(UserError, match="cannot be saved: No such file"):
        write_model(tmp_path / "none" / "model.bin", CONFIG, random_parameters(CONFIG))


# ---- pygpt export and pygpt import ----


def export(*words: str | Path) -> None:
    export_command.main([str(word) for word in words])


def import_(*words: str | Path) -> None:
    import_command.main([str(word) for word in words])


@pytest.mark.parametrize(
    ("stored", "there", "back"),
    [("float32", "float32", "float32"), ("bfloat16", "bfloat16", "float32"), ("float16", "float32", "float32")],
)
def test_there_and_back(tmp_path: Path, stored: str, there: str, back: str) -> None:
    save_parameters(tmp_path / "a", OTHER, random_parameters(OTHER), stored)
    export(tmp_path / "a", tmp_path / "model.bin", "--dtype", there)
    import_(tmp_path / "model.bin", tmp_path / "b", "--dtype", back)
    assert read_config(tmp_path / "b") == OTHER
    assert_equal(dict(load_parameters(tmp_path / "b", OTHER)), dict(load_parameters(tmp_path / "a", OTHER)))


def test_a_tokenizer_is_written_beside_the_model(tmp_path: Path) -> None:
    write_model(tmp_path / "model.bin", CONFIG, random_parameters(CONFIG))
    (tmp_path / "data").mkdir()
    ByteTokenizer().save(tmp_path / "data")
    import_(tmp_path / "model.bin", tmp_path / "b", "--tokenizer", tmp_path / "data")
    assert load_tokenizer(tmp_path / "b").name == "byte"
    assert pygpt.GPT2.from_pretrained(tmp_path / "b", device="numpy").config == CONFIG


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    save_parameters(tmp_path / "a", CONFIG, random_parameters(CONFIG))
    model, text = tmp_path / "model.bin", tmp_path / "text.bin"
    for _ in range(2):  # a model file is replaced
        export(tmp_path / "a", model)
    text.write_text("mine")
    (tmp_path / "folder.bin").mkdir()
    for words, sentence in (
        ((tmp_path / "a", text), "exists and is no model of llm.c"),
        ((tmp_path / "a", tmp_path / "folder.bin"), "exists and is no model of llm.c"),
        (
            (tmp_path / "a", tmp_path / "b"),
            r"b: expected a name that ends in .gguf \(llama.cpp\), .bin \(llm.c\) or .pt",
        ),
        ((tmp_path / "a", tmp_path / "b.bin", "--dtype", "q8_0"), "--dtype is q8_0, expected float32 or bfloat16"),
    ):
        with pytest.raises(UserError, match=sentence):
            export(*words)
    for words, sentence in (
        ((model, tmp_path / "a"), "exists, expected the name of a new folder"),
        ((text, tmp_path / "b"), "is not a model that can be read"),
    ):
        with pytest.raises(UserError, match=sentence):
            import_(*words)
    assert text.read_text() == "mine"
    assert not (tmp_path / "b").exists()


def test_a_model_file_for_a_folder_tells_the_command(tmp_path: Path) -> None:
    write_model(tmp_path / "model.bin", CONFIG, random_parameters(CONFIG))
    with pytest.raises(UserError, match=r"python scripts/import_weights.py \S+/model.bin FOLDER makes one"):
        pygpt.GPT2.from_pretrained(tmp_path / "model.bin")
