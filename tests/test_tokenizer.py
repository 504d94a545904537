"""Text to tokens and back; tokenizers saved and loaded; GPT-2's vocabulary files, also wrong ones."""

import json
import sys

import numpy as np
import pytest
import required

from pygpt import bpe
from pygpt.errors import UserError
from pygpt.tokenizer import FILE_NAME, ByteTokenizer, CharTokenizer, GPT2Tokenizer, load_tokenizer

TEXTS = ["", "a", "hello hello", "naïve café\n\n\tend  ", "日本語 😀\x00\r\n", "it's 1234 'll", "<|endoftext|>"]

# each byte as a character, worked out in another way than in pygpt.bpe
PRINTABLE = [b for b in range(256) if chr(b).isprintable() and b != 32]
BYTES = [chr(b) for b in PRINTABLE] + [chr(256 + i) for i in range(256 - len(PRINTABLE))]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("Ġ", "Ġ")]


def write_vocabulary(folder, vocab=None, merges=MERGES, names=("vocab.json", "merges.txt")):
    """A small vocabulary of GPT-2's kind: 256 bytes, six merges, the end of text."""
    if vocab is None:
        tokens = [*BYTES, *(a + b for a, b in MERGES), "<|endoftext|>"]
        vocab = {token: i for i, token in enumerate(tokens)}
    folder.mkdir(exist_ok=True)
    (folder / names[0]).write_text(json.dumps(vocab), encoding="utf-8")
    (folder / names[1]).write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    return vocab


@pytest.fixture
def small_gpt2(tmp_path):
    write_vocabulary(tmp_path / "vocabulary")
    return GPT2Tokenizer.from_folder(tmp_path / "vocabulary")


@pytest.fixture(scope="module")
def gpt2(shared_data):
    return GPT2Tokenizer.from_folder(shared_data / "gpt2-bpe")


@pytest.mark.parametrize("text", TEXTS)
def test_every_tokenizer_gives_the_text_back(text, small_gpt2):
    for tokenizer in (ByteTokenizer(), CharTokenizer.from_text("".join(TEXTS)), small_gpt2):
        tokens = tokenizer.encode(text)
        assert tokens.dtype == np.int32 and tokens.ndim == 1
        assert all(0 <= token < tokenizer.vocab_size for token in tokens)
        assert tokenizer.decode(tokens) == text
        assert tokenizer.decode_bytes(tokens.tolist()) == text.encode()
        assert "".join(tokenizer.decode_stream(tokens)) == text


def test_bytes():
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 256 and tokenizer.eot_token is None
    assert tokenizer.encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert tokenizer.decode([97, 0xC3, 98]) == "a\ufffdb"
    assert tokenizer.encode_bytes(b"\xff\x00").tolist() == [255, 0]
    # a byte of the command line that is not UTF-8
    assert tokenizer.encode("a\udcff").tolist() == [97, 255]
    with pytest.raises(UserError, match=r"U\+D800 at 1"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize("token", [-1, 256, 2**40])
def test_tokens_outside_the_vocabulary(token, small_gpt2):
    for tokenizer in (ByteTokenizer(), CharTokenizer("ab"), small_gpt2):
        if token != 256 or tokenizer is not small_gpt2:
            with pytest.raises(UserError, match=f"token {token} is not in the vocabulary of {tokenizer.vocab_size}"):
                tokenizer.decode([0, token])


def test_characters():
    tokenizer = CharTokenizer.from_text("hello é")
    assert tokenizer.characters == " ehloé" and tokenizer.vocab_size == 6 and tokenizer.eot_token is None
    assert tokenizer.encode("oh é").tolist() == [4, 2, 0, 5]
    for unknown in ("z", "\U0010ffff", "\x00"):
        with pytest.raises(UserError, match=rf"\(U\+{ord(unknown):04X}\) is not among the 6"):
            tokenizer.encode("hell" + unknown)
    for wrong in ("", "aba"):
        with pytest.raises(UserError, match="character-level"):
            CharTokenizer(wrong)


def test_a_stream_waits_for_whole_characters():
    tokenizer = ByteTokenizer()
    assert list(tokenizer.decode_stream(tokenizer.encode("é😀!"))) == ["é", "😀", "!"]
    assert list(tokenizer.decode_stream([0x61, 0xF0, 0x9F])) == ["a", "\ufffd"]  # it ends inside a character
    assert list(tokenizer.decode_stream([0xC3, 0x61])) == ["\ufffda"]

    shown = []

    def tokens():
        for token in tokenizer.encode("aé"):
            yield token
            shown.append(list(pieces))

    pieces = []
    for piece in tokenizer.decode_stream(tokens()):
        pieces.append(piece)
    assert shown == [["a"], ["a"], ["a", "é"]]  # as soon as possible


def test_saved_and_loaded(tmp_path, small_gpt2):
    tokenizers = [ByteTokenizer(), CharTokenizer("ab"), CharTokenizer("ba"), CharTokenizer("\ud800é"), small_gpt2]
    assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == len(tokenizers)
    for tokenizer in tokenizers:  # each over the one before it
        tokenizer.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert type(loaded) is type(tokenizer)
        assert (loaded.name, loaded.vocab_size, loaded.eot_token) == (
            tokenizer.name,
            tokenizer.vocab_size,
            tokenizer.eot_token,
        )
        assert loaded.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"name": "word"}',
        '{"name": ["byte"]}',
        '{"name": "byte"}',
        '{"name": "byte", "vocab_size": 65}',
        '{"name": "char", "vocab_size": 1}',
        '{"name": "char", "vocab_size": 2, "characters": "aa"}',
        '{"name": "char", "vocab_size": 3, "characters": "ab"}',
        '{"name": "gpt2", "vocab_size": 50257}',
        "\xff",
        "[" * 100_000,
    ],
)
def test_a_wrong_description_is_refused(tmp_path, text):
    (tmp_path / FILE_NAME).write_text(text, encoding="latin-1")
    with pytest.raises(UserError):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(
        UserError, match=r"holds no GPT-2 vocabulary: expected vocab.json and merges.txt or encoder.json"
    ):
        load_tokenizer(tmp_path)


def test_small_vocabulary(tmp_path, small_gpt2):
    vocab = write_vocabulary(tmp_path / "v")
    assert small_gpt2.vocab_size == 263 and small_gpt2.eot_token == 262
    assert small_gpt2.encode("hello hello").tolist() == [vocab["hello"], vocab["Ġhello"]]
    assert small_gpt2.encode("hell").tolist() == [vocab["hell"]]
    assert small_gpt2.encode("   hello").tolist() == [vocab["ĠĠ"], vocab["Ġhello"]]
    assert small_gpt2.eot_token not in small_gpt2.encode("<|endoftext|>")
    assert small_gpt2.decode([262]) == "<|endoftext|>"
    with pytest.raises(UserError, match="tiktoken cannot encode"):
        small_gpt2.encode("\ud800")


def test_openai_names_of_the_files(tmp_path, small_gpt2):
    write_vocabulary(tmp_path / "openai", names=("encoder.json", "vocab.bpe"))
    assert load_tokenizer(tmp_path / "openai").fingerprint == small_gpt2.fingerprint


def test_numbers_in_another_order(tmp_path):
    """The end of text first, as trainers of tokenizers write it; several special tokens; numbers left out."""
    tokens = ["<|endoftext|>", "<pad>", *reversed(BYTES), *(a + b for a, b in MERGES)]
    write_vocabulary(tmp_path / "v", {token: 2 * i for i, token in enumerate(tokens)})
    tokenizer = load_tokenizer(tmp_path / "v")
    assert tokenizer.eot_token == 0 and tokenizer.vocab_size == 2 * len(tokens) - 1
    assert tokenizer.encode("hello").tolist() == [2 * tokens.index("hello")]
    with pytest.raises(UserError, match="token 1 is not in the vocabulary"):
        tokenizer.decode([1])
    tokenizer.save(tmp_path / "v")
    assert load_tokenizer(tmp_path / "v").fingerprint == tokenizer.fingerprint


def _without(vocab, token):
    return {key: value for key, value in vocab.items() if key != token}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: [], "expected a JSON object"),
        (lambda v: {**v, "x": "1"}, "token 'x' has number '1'"),
        (lambda v: {**v, "hello": True}, "token 'hello' has number True"),
        (lambda v: {**v, "hello": -1}, "token 'hello' has number -1"),
        (lambda v: {**v, "hello": 2.0}, "token 'hello' has number 2.0"),
        (lambda v: {**v, "hello": 2**40}, "token 'hello' has number"),
        (lambda v: {**v, "new": 0}, "tokens '!' and 'new' both have number 0"),
        (lambda v: _without(v, "A"), "token 'A' is missing"),
        (lambda v: _without(v, "hello"), "token 'hello' is missing, though merges.txt makes it"),
        (lambda v: {**v, "hello": v["hell"], "hell": v["hello"]}, "'hello' has number 258, expected more than 259"),
    ],
)
def test_wrong_vocabularies(tmp_path, change, sentence):
    vocab = write_vocabulary(tmp_path)
    write_vocabulary(tmp_path, change(vocab))
    with pytest.raises(UserError, match=sentence) as raised:
        load_tokenizer(tmp_path)
    assert "vocab.json" in str(raised.value)


@pytest.mark.parametrize(
    ("merges", "sentence"),
    [
        (b"h e\nll\n", "line 2 is 'll', expected two tokens"),
        (b"h e x\n", "line 1 is 'h e x'"),
        (b"h  e\n", "line 1 is 'h  e'"),
        ("h 日\n".encode(), "line 1 is"),
        (b"h \xff\n", "is not UTF-8 text"),
        (b"hel lo\n", "joins 'hel', which is no token"),
    ],
)
def test_wrong_merges(tmp_path, merges, sentence):
    write_vocabulary(tmp_path)
    (tmp_path / "merges.txt").write_bytes(merges)
    with pytest.raises(UserError, match=sentence) as raised:
        load_tokenizer(tmp_path)
    assert "merges.txt" in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000])
def test_vocabulary_that_is_no_json(tmp_path, text):
    write_vocabulary(tmp_path)
    (tmp_path / "vocab.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"vocab.json: is not"):
        load_tokenizer(tmp_path)


def test_gpt2(gpt2):
    assert gpt2.vocab_size == 50257 and gpt2.eot_token == 50256
    assert gpt2.encode("Hello world!").tolist() == [15496, 995, 0]
    assert gpt2.decode([15496, 995, 0, 50256]) == "Hello world!<|endoftext|>"
    tokens = gpt2.encode("日本 😀")
    assert len(tokens) > 4  # characters in parts
    assert list(gpt2.decode_stream(tokens)) == ["日", "本", " ", "😀"]


def test_gpt2_in_transformers(gpt2, tmp_path):
    transformers = required.module("transformers")
    gpt2.save(tmp_path)
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    for text in TEXTS[:-1]:  # theirs takes <|endoftext|> in a text for the token
        assert gpt2.encode(text).tolist() == theirs(text)["input_ids"]


def test_gpt2_by_tiktoken(gpt2, tmp_path, monkeypatch):
    """What is saved of the tokenizer that tiktoken makes by name equals the published files."""
    tiktoken = pytest.importorskip("tiktoken")
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: {"gpt2": gpt2._encoding}[name])
    by_name = GPT2Tokenizer.from_tiktoken()
    assert by_name.fingerprint == gpt2.fingerprint
    by_name.save(tmp_path)
    loaded = bpe.Vocabulary.from_folder(tmp_path)
    assert loaded.merges == gpt2._vocabulary.merges and loaded.ranks == gpt2._vocabulary.ranks


def test_gpt2_without_network(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")

    def refuse(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(UserError, match=r"could not download the gpt2 vocabulary.*--vocab FOLDER"):
        GPT2Tokenizer.from_tiktoken()


def test_gpt2_without_tiktoken(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(UserError, match="pip install tiktoken"):
        GPT2Tokenizer.from_tiktoken()
