"""Models in llama.cpp's file: what is written and read back, what is refused; and llama.cpp's own reading of it."""

from __future__ import annotations

import contextlib
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import required
from numpy.typing import NDArray

import pygpt
from pygpt.command.export import main as export
from pygpt.command.import_ import main as import_
from pygpt.errors import UserError
from pygpt.files import gguf_file
from pygpt.files.checkpoint import load_parameters, read_config, save_parameters
from pygpt.files.formats import export_gguf, read_model
from pygpt.files.gguf_file import write_gguf
from pygpt.files.stored_model import StoredModel
from pygpt.parameters import parameter_shapes
from pygpt.text import bpe
from pygpt.text.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer, load_tokenizer

gguf = required.module("gguf", "formats")

BYTES = [bytes([byte]) for byte in range(256)]
MERGES = [(b"h", b"e"), (b"l", b"l"), (b"he", b"ll"), (b" ", b"hell")]
RANKS = {token: number for number, token in enumerate([*BYTES, *(a + b for a, b in MERGES)])}
VOCABULARY = bpe.Vocabulary(
    RANKS, {"<|endoftext|>": 260}, {"<|user|>": 263}, MERGES, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
)
CONFIG = pygpt.GPT2Config(
    vocab_size=300, n_positions=5, n_embd=64, n_layer=2, n_head=2, n_inner=96, layer_norm_epsilon=3e-6,
    bos_token_id=260, eos_token_id=260,
)  # fmt: skip
TOKENIZERS: list[Tokenizer] = [
    GPT2Tokenizer(VOCABULARY), ByteTokenizer(), CharTokenizer("\n abé—😀"), CharTokenizer("\n abc"),
]  # fmt: skip

Parameters = dict[str, NDArray[np.float32]]


def random_parameters(config: pygpt.GPT2Config, scale: float = 1) -> Parameters:
    numbers = np.random.default_rng(0)
    return {
        name: np.float32(scale) * numbers.standard_normal(shape, np.float32) + np.float32("ln_" in name)
        for name, shape in parameter_shapes(config).items()
    }


def save(folder: Path, tokenizer: Tokenizer | None, dtype: str = "float32", config: Any = CONFIG) -> Path:
    save_parameters(folder, config, random_parameters(config), dtype, tokenizer and tokenizer.save)
    return folder


def assert_equal(found: Any, expected: Any) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape and found[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_there_and_back(tmp_path: Path, dtype: str) -> None:
    """What a folder holds in a precision survives a file of the same one bit by bit."""
    folder = save(tmp_path / "a", TOKENIZERS[0], dtype)
    export([str(folder), str(tmp_path / "model.gguf"), "--dtype", dtype])
    import_([str(tmp_path / "model.gguf"), str(tmp_path / "b"), "--dtype", dtype])
    assert read_config(tmp_path / "b") == CONFIG
    names = {"model.safetensors", "config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"}
    for name in names | {"pygpt_tokenizer.json"}:
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_layout_is_llamacpps(tmp_path: Path) -> None:
    """The names, shapes and types for which llama.cpp's gpt2.cpp asks; the shape of a file is the other way round."""
    p = random_parameters(CONFIG)
    write_gguf(tmp_path / "m.gguf", StoredModel(CONFIG, p, lambda: TOKENIZERS[0]), "float16")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    expected = {"token_embd.weight": p["wte.weight"], "position_embd.weight": p["wpe.weight"]}
    expected |= {f"output_norm.{kind}": p[f"ln_f.{kind}"] for kind in ("weight", "bias")}
    for layer in range(2):
        for theirs, ours in (("attn_norm", "ln_1"), ("ffn_norm", "ln_2")):
            expected |= {f"blk.{layer}.{theirs}.{kind}": p[f"h.{layer}.{ours}.{kind}"] for kind in ("weight", "bias")}
        for theirs, ours in (
            ("attn_qkv", "attn.c_attn"), ("attn_output", "attn.c_proj"),
            ("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj"),
        ):  # fmt: skip
            expected[f"blk.{layer}.{theirs}.weight"] = p[f"h.{layer}.{ours}.weight"].T
            expected[f"blk.{layer}.{theirs}.bias"] = p[f"h.{layer}.{ours}.bias"]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        kind = np.float16 if values.ndim == 2 and name != "position_embd.weight" else np.float32
        assert tuple(found[name].shape) == values.shape[::-1], name
        assert found[name].data.dtype == kind and np.array_equal(found[name].data, values.astype(kind)), name
    fields = {name: field.contents() for name, field in reader.fields.items()}
    sizes = {"context_length": 5, "embedding_length": 64, "feed_forward_length": 96, "block_count": 2}
    sizes |= {"attention.head_count": 2, "vocab_size": 300}
    assert {key: fields[f"gpt2.{key}"] for key in sizes} == sizes
    assert fields["gpt2.attention.layer_norm_epsilon"] == np.float32(3e-6)
    assert (fields["general.architecture"], fields["general.file_type"]) == ("gpt2", 1)
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert fields["tokenizer.ggml.merges"] == ["h e", "l l", "he ll", "Ġ hell"]
    assert fields["tokenizer.ggml.tokens"][255:265] == [
        "ÿ", "he", "ll", "hell", "Ġhell", "<|endoftext|>", "[PAD261]", "[PAD262]", "<|user|>", "[PAD264]",
    ]  # fmt: skip
    assert fields["tokenizer.ggml.token_type"] == [1] * 260 + [3, 5, 5, 4] + [5] * 36
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (260, 260)


def test_q8_0(tmp_path: Path) -> None:
    """Within half a step of the largest of 32 values; rows that are no multiple of 32 are float16, vectors float32."""
    config = pygpt.GPT2Config(vocab_size=9, n_positions=5, n_embd=64, n_layer=1, n_head=1, n_inner=48)
    p = random_parameters(config)
    write_gguf(tmp_path / "m.gguf", StoredModel(config, p), "q8_0")
    found = read_model(tmp_path / "m.gguf").parameters
    for name, values in p.items():
        linear = name.startswith("h.") and values.ndim == 2
        a, b = (x.T if linear else x for x in (found[name], values))
        if name == "h.0.mlp.c_proj.weight":
            assert np.array_equal(a, b.astype(np.float16))
        elif values.ndim == 1 or name == "wpe.weight":
            assert np.array_equal(a, b)
        else:
            blocks = np.abs(b).reshape(-1, 32).max(1, keepdims=True)
            error = np.abs(a - b).reshape(-1, 32) / blocks
            assert error.max() < 0.5 / 127 * (1 + 2**-8) + 2**-11 and error.max() > 0.2 / 127


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["gpt2", "byte", "char-unicode", "char-ascii"])
@pytest.mark.filterwarnings("ignore:llama.cpp never ends")
def test_tokenizers_there_and_back(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_gguf(tmp_path / "m.gguf", StoredModel(CONFIG, random_parameters(CONFIG), lambda: tokenizer))
    found = read_model(tmp_path / "m.gguf").read_tokenizer()
    assert found is not None and type(found) is type(tokenizer)
    assert found.fingerprint == tokenizer.fingerprint


def test_the_layout_of_byte_tokens(tmp_path: Path) -> None:
    """llama.cpp takes the longest token that fits: no text may hold the name of a row of padding."""
    write_gguf(tmp_path / "m.gguf", StoredModel(CONFIG, random_parameters(CONFIG), lambda: ByteTokenizer()))
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    assert fields["tokenizer.ggml.model"] == "rwkv"
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokens[:256] == [rf"\x{byte:02x}" for byte in range(256)] and types == [1] * 256 + [5] * 44
    assert tokens[256:] == [rf"\xff[PAD{number}]" for number in range(256, 300)]


def test_a_vocabulary_without_merges(tmp_path: Path) -> None:
    tokenizer = GPT2Tokenizer(bpe.Vocabulary(dict(list(RANKS.items())[:256]), {}))
    config = replace(CONFIG, bos_token_id=None, eos_token_id=None)
    with pytest.warns(UserWarning, match="no token that ends a text: llama.cpp takes token 11 for it"):
        write_gguf(tmp_path / "m.gguf", StoredModel(config, random_parameters(config), lambda: tokenizer))
    found = read_model(tmp_path / "m.gguf").read_tokenizer()
    assert found is not None and found.fingerprint == tokenizer.fingerprint


def test_a_copy_of_the_embedding_may_be_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older files of llama.cpp hold one."""
    monkeypatch.setattr(
        gguf_file, "parameter_shapes", lambda config: {**parameter_shapes(config), "lm_head.weight": (300, 64)}
    )
    p = random_parameters(CONFIG)
    write_gguf(path, StoredModel(CONFIG, {**p, "lm_head.weight": p["wte.weight"]}))
    monkeypatch.undo()
    assert_equal(read_model(path).parameters, p)


def test_a_head_of_its_own_there_and_back(tmp_path: Path) -> None:
    config = replace(CONFIG, tie_word_embeddings=False)
    write_gguf(tmp_path / "model.gguf", StoredModel(config, random_parameters(config), lambda: TOKENIZERS[0]))
    found = read_model(tmp_path / "model.gguf")
    assert found.config == config
    assert_equal(found.parameters, random_parameters(config))


def test_biases_that_the_model_lacks_are_zeros(tmp_path: Path) -> None:
    config = replace(CONFIG, bias=False)
    p = random_parameters(config)
    write_gguf(tmp_path / "model.gguf", StoredModel(config, p, lambda: TOKENIZERS[0]))
    found = read_model(tmp_path / "model.gguf")
    assert found.config == CONFIG
    assert_equal(
        found.parameters, {name: p.get(name, np.zeros(s, np.float32)) for name, s in parameter_shapes(CONFIG).items()}
    )


def test_a_variation_that_llamacpp_lacks(tmp_path: Path) -> None:
    config = replace(CONFIG, activation_function="relu")
    with pytest.raises(
        UserError, match=r"model.gguf: llama.cpp's GPT-2 knows no other activation_function than gelu_new"
    ):
        write_gguf(tmp_path / "model.gguf", StoredModel(config, {}))
    assert not list(tmp_path.iterdir())


def test_without_a_tokenizer(tmp_path: Path) -> None:
    export_gguf(save(tmp_path / "a", None), tmp_path / "m.gguf", "float16")
    model = read_model(tmp_path / "m.gguf")
    assert model.read_tokenizer() is None
    wte = dict(load_parameters(tmp_path / "a", CONFIG))["wte.weight"]
    assert np.array_equal(model.parameters["wte.weight"], wte.astype(np.float16))


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    config = pygpt.GPT2Config(vocab_size=255, n_positions=5, n_embd=4, n_layer=1, n_head=1)
    with pytest.raises(UserError, match="the tokenizer has 256 tokens, expected at most 255"):
        export_gguf(save(tmp_path / "a", ByteTokenizer(), config=config), tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_package_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "a", None)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"m.gguf: this format needs the package gguf: pip install gguf"):
        export_gguf(folder, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


# ---- what is refused ----


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_model(path).read_tokenizer()
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "m.gguf", StoredModel(CONFIG, random_parameters(CONFIG), lambda: TOKENIZERS[0]))
    return tmp_path / "m.gguf"


def test_truncated_anywhere(path: Path) -> None:
    contents = path.read_bytes()
    for size in [*range(4, 200, 7), *np.random.default_rng(1).integers(200, len(contents) - 32, 60), len(contents) - 1]:
        path.write_bytes(contents[:size])
        assert "is truncated, or damaged: has" in refused(path)
    path.write_bytes(contents[:3])
    assert "is not a model that can be read" in refused(path)


def test_damaged(path: Path) -> None:
    contents = path.read_bytes()
    head = contents.index(b"output_norm.bias") + 64
    numbers = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(contents)
        damaged[numbers.integers(4, head)] = numbers.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_model(path).read_tokenizer()


def test_an_array_that_claims_to_be_enormous(path: Path) -> None:
    """It ends at the end of the file, whatever its elements are."""
    contents = path.read_bytes()
    at = contents.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
    path.write_bytes(contents[:at] + struct.pack("<Q", 2**60) + contents[at + 8 :])
    assert "is truncated, or damaged" in refused(path)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0gptj", "has architecture 'gptj', expected 'gpt2'"),
        (b"blk.1.attn_qkv.weight", b"blk.1.attn_kqv.weight", "h.1.attn.c_attn.weight is missing, but 'blk.1.attn_kqv"),
        (b"blk.1.attn_qkv.weight", b"blk.0.attn_qkv.weight", "Found duplicated tensor"),
        (b"token_embd.weight", b"token_enbd.weight", "holds no matrix token_embd.weight"),
        (b"gpt2.block_count\x04\0\0\0\x02", b"gpt2.block_count\x04\0\0\0\x03", "tensor h.2.ln_1.weight is missing"),
        (b"gpt2.block_count\x04\0\0\0\x02\0\0\0", b"gpt2.block_count\x04\0\0\0\xff\xff\xff\x7f", "too few for the"),
        (b"gpt2.block_count", b"gpt2.block_cound", "holds no gpt2.block_count"),
        (b"head_count\x04\0\0\0\x02", b"head_count\x04\0\0\0\x03", "n_embd is 64, expected a multiple of n_head"),
        (b"context_length\x04\0\0\0\x05", b"context_length\x04\0\0\0\x06", "wpe.weight has shape (5, 64), expected (6"),
        (b"GGUF\x03", b"GGUF\x09", "is not a GGUF file, or a damaged one: Sorry"),
        (b"gpt-2", b"gpt-4", "has a tokenizer 'gpt2', 'gpt-4', which is not implemented"),
        (b"ggml.tokens", b"ggml.tokins", "tokenizer.ggml.tokens is None, expected a list of str"),
        (b"he ll", b"he lk", "token 'helk' is missing"),
    ],
)
def test_files_that_lie(path: Path, old: bytes, new: bytes, sentence: str) -> None:
    contents = path.read_bytes()
    assert old in contents and len(old) == len(new)
    path.write_bytes(contents.replace(old, new, 1))
    assert sentence in refused(path)


def test_numbers_that_are_none(path: Path) -> None:
    for value in (np.nan, np.inf):
        p = random_parameters(CONFIG)
        p["h.1.mlp.c_fc.weight"][3, 2] = value
        write_gguf(path, StoredModel(CONFIG, p))
        assert f"tensor h.1.mlp.c_fc.weight holds {value} at [3, 2], expected finite" in refused(path)


def test_a_type_that_the_package_does_not_convert(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(path, StoredModel(CONFIG, random_parameters(CONFIG)), "q8_0")
    monkeypatch.setattr(gguf.quants, "_type_traits", {})
    assert "has type Q8_0, which gguf does not convert" in refused(path)


def test_a_part_of_a_model(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2", split_max_tensors=1)
    for name in "ab":
        writer.add_tensor(name, np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "is one of 2 parts; llama-gguf-split --merge" in refused(tmp_path / "m-00001-of-00002.gguf")


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.gguf"
    p = random_parameters(CONFIG)
    write_gguf(target, StoredModel(CONFIG, p))
    before = target.read_bytes()
    p["h.1.mlp.c_fc.weight"] = p["h.1.mlp.c_fc.weight"] * np.float32(1e6)
    with pytest.raises(UserError, match=r"h.1.mlp.c_fc.weight has values beyond float16's"):
        write_gguf(target, StoredModel(CONFIG, p), "float16")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(UserError, match=r"m.gguf: cannot be saved: No space left on device"):
        write_gguf(target, StoredModel(CONFIG, p))
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_a_file_of_something_else_is_kept(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", None)
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(UserError, match=r"m.gguf: exists and is no model of llama.cpp"):
        export([str(folder), str(tmp_path / "m.gguf")])
    assert (tmp_path / "m.gguf").read_text() == "mine"


def test_a_tokenizer_that_is_not_implemented_can_be_replaced(path: Path, tmp_path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"gpt-2", b"gpt-4", 1))
    save(tmp_path / "a", ByteTokenizer())
    import_([str(path), str(tmp_path / "b"), "--tokenizer", str(tmp_path / "a")])
    assert load_tokenizer(tmp_path / "b").name == "byte"


# ---- llama.cpp ----

RUN = pygpt.GPT2Config(vocab_size=300, n_positions=256, n_embd=64, n_layer=2, n_head=4)
TEXTS = [
    "hello hell  he\n\tll 12 it's",
    "naïve café 日本語 😀",
    "a <|endoftext|>",
    "<|user|>hell<|user|> x",
    "[PAD261]",
]
ALPHABET = "".join(sorted(set("".join(TEXTS))))


def llama(folder: Path, dtype: str = "float32") -> Any:
    """llama.cpp with a file of the model in a folder."""
    llama_cpp = required.module("llama_cpp", "llama-cpp")
    export_gguf(folder, folder / "m.gguf", dtype)
    return llama_cpp.Llama(str(folder / "m.gguf"), n_ctx=256, n_threads=1, verbose=False, logits_all=True)


def logits_of_llama(model: Any, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    model.reset()
    model.eval(tokens.tolist())
    return np.array(model.scores[: len(tokens)])


@pytest.mark.filterwarnings("ignore:llama.cpp never ends")
@pytest.mark.parametrize("tokenizer", [*TOKENIZERS[:2], CharTokenizer(ALPHABET)], ids=["gpt2", "byte", "char"])
def test_llamacpp_gives_the_same_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = llama(save(tmp_path / "a", tokenizer, config=RUN))
    for text in TEXTS:
        tokens = model.tokenize(text.encode(), add_bos=False, special=False)
        assert tokens == tokenizer.encode(text).tolist()
        assert model.detokenize(tokens, special=True) == text.encode()
    eot = tokenizer.eot_token
    assert model.token_eos() == model.token_bos() == (-1 if eot is None else eot)


def test_llamacpp_gives_the_same_tokens_with_gpt2s_vocabulary(tmp_path: Path, shared_data: Path) -> None:
    tokenizer = GPT2Tokenizer.from_folder(shared_data / "gpt2-bpe")
    config = pygpt.GPT2Config(vocab_size=50304, n_positions=256, n_embd=32, n_layer=1, n_head=1)
    model = llama(save(tmp_path / "a", tokenizer, config=config))
    for text in [*TEXTS, (shared_data / "tinyshakespeare.txt").read_text()[:20000]]:
        assert model.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text).tolist()
    assert model.token_eos() == 50256


@pytest.mark.parametrize(
    ("dtype", "error", "settings"),
    [
        ("float32", 3e-3, {}),
        ("float16", 3e-3, {}),
        ("bfloat16", 2e-2, {}),
        ("q8_0", 5e-2, {}),
        ("float32", 3e-3, {"tie_word_embeddings": False}),
        ("float32", 3e-3, {"bias": False}),
    ],
)
def test_llamacpp_gives_the_same_logits(tmp_path: Path, dtype: str, error: float, settings: dict[str, Any]) -> None:
    """As close as its table of GELU in float16, and its rounding of activations, let them be."""
    config = pygpt.GPT2Config(vocab_size=256, n_positions=256, n_embd=64, n_layer=2, n_head=4, n_inner=96, **settings)
    folder = tmp_path / "a"
    save_parameters(folder, config, random_parameters(config, 0.3), extra=ByteTokenizer().save)
    theirs = llama(folder, dtype)
    import_([str(folder / "m.gguf"), str(tmp_path / "b")])
    ours = pygpt.GPT2.from_pretrained(tmp_path / "b", device="numpy")  # with the rounded weights
    tokens = np.random.default_rng(1).integers(0, 256, 200).astype(np.int32)
    ours.forward(tokens[None])
    expected = np.array(ours.logits)[0]
    found = logits_of_llama(theirs, tokens)
    assert np.linalg.norm(found - expected) < error * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_llamacpp_writes_the_same_text(tmp_path: Path, dtype: str) -> None:
    """Greedily, each with its own tokens before."""
    folder = tmp_path / "a"
    parameters = random_parameters(RUN, 0.3)
    parameters["wpe.weight"] *= 10  # or one token would be written again and again
    parameters["ln_f.bias"] *= 0
    save_parameters(folder, RUN, parameters, extra=TOKENIZERS[0].save)
    theirs = llama(folder, dtype)
    ours = pygpt.GPT2.from_pretrained(folder, device="numpy")
    prompt = TOKENIZERS[0].encode("hello hell")
    written = list(ours.generate(prompt, max_new_tokens=30, temperature=0))
    tokens = prompt.tolist()
    for _ in range(30):
        tokens.append(int(logits_of_llama(theirs, np.array(tokens))[-1].argmax()))
    assert tokens[len(prompt) :] == written and len(set(written)) > 5
