"""Text to tokens and back; tokenizers saved and loaded; GPT-2's vocabulary files, also wrong ones."""

import itertools
import json
import random
import sys

import numpy as np
import pytest
import required

from pygpt.errors import UserError
from pygpt.reference.bpe import PATTERN
from pygpt.text import bpe
from pygpt.text.tokenizer import (
    FILE_NAME,
    SAVED,
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    holds_tokenizer,
    load_tokenizer,
)
from pygpt.text.vocabulary_files import read_vocabulary

TEXTS = ["", "a", "hello hello", "naïve café\n\n\tend  ", "日本語 😀\x00\r\n", "it's 1234 'll", "<|endoftext|>"]

# each byte as a character, worked out in another way than in pygpt.text.bpe
PRINTABLE = [b for b in range(256) if chr(b).isprintable() and b != 32]
OTHERS = [b for b in range(256) if b not in PRINTABLE]
BYTES = [chr(b) for b in PRINTABLE] + [chr(256 + i) for i in range(len(OTHERS))]
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
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == set(SAVED)


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
        UserError, match=r"holds no GPT-2 vocabulary: expected tokenizer.json, or vocab.json and merges.txt, or encoder"
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
    with pytest.raises(UserError, match=r"U\+D800 at 2"):
        small_gpt2.encode("ab\ud800")


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
    assert tokenizer.known_tokens().tolist() == list(range(0, 2 * len(tokens), 2))


def _without(vocab, token):
    return {key: value for key, value in vocab.items() if key != token}


def reference_encoding(text, vocab, merges):
    """OpenAI's encoder.py: GPT-2's own pattern, and the first merge in the list, everywhere, until there is none."""
    regex = pytest.importorskip("regex")
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tokens = []
    for word in regex.findall(pattern, text):
        parts = [BYTES[PRINTABLE.index(b)] if b in PRINTABLE else chr(256 + OTHERS.index(b)) for b in word.encode()]
        while pairs := [pair for pair in merges if pair in itertools.pairwise(parts)]:
            i = list(itertools.pairwise(parts)).index(pairs[0])
            parts[i : i + 2] = ["".join(pairs[0])]
        tokens += [vocab[part] for part in parts]
    return tokens


@pytest.mark.parametrize("longest", [1, 2, 3, 5, bpe.LONGEST_RUN])
def test_any_text_has_the_tokens_of_the_original_and_comes_back(tmp_path, monkeypatch, longest):
    """Also where long runs of white space are cut, which are short here."""
    cut = bpe.cut_long_runs
    monkeypatch.setattr(bpe, "cut_long_runs", lambda text: cut(text, longest))
    merges = [*MERGES, ("ĠĠ", "ĠĠ"), ("Ċ", "Ċ"), ("Ġ", "Ċ"), ("ĠĠ", "a"), ("1", "1")]
    tokens = [*BYTES, *(a + b for a, b in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    write_vocabulary(tmp_path, vocab, merges)
    tokenizer = load_tokenizer(tmp_path)
    draw = random.Random(longest)
    spaces = [" ", "  ", " ", "\n", "\n\n", "\r", "\t", "\u3000", "\xa0", "\x1c", "\x85", "\u200b"]
    others = ["a", "hello", "'ll", "é", "😀", "1", "11", "!", "'"]
    for _ in range(1000):
        text = "".join(draw.choice(spaces if draw.random() < 0.7 else others) for _ in range(draw.randrange(20)))
        encoded = tokenizer.encode(text)
        assert encoded.tolist() == reference_encoding(text, vocab, merges), repr(text)
        assert tokenizer.decode(encoded) == text


def test_any_bytes_come_back(small_gpt2):
    draw = random.Random(0)
    for _ in range(300):
        data = draw.randbytes(draw.randrange(30))
        text = data.decode("utf-8", "surrogateescape")
        for tokenizer in (ByteTokenizer(), small_gpt2):
            assert tokenizer.decode_bytes(tokenizer.encode(text)) == data
    alone = [small_gpt2.encode(part).tolist() for part in ("hello", "\udcff", " hello")]
    assert small_gpt2.encode("hello\udcff hello").tolist() == [*alone[0], *alone[1], *alone[2]]


@pytest.mark.parametrize("character", [" ", "\n", "\u3000", "a", "^", "1"])
@pytest.mark.parametrize("end", ["", "x"])
def test_runs_of_a_million_characters(small_gpt2, character, end):
    text = "x" + 1_200_000 * character + end
    assert small_gpt2.decode(small_gpt2.encode(text)) == text


@pytest.mark.parametrize("special", ["", "日", "éx", "!", "."])
def test_special_tokens_of_any_kind(tmp_path, special):
    """The empty one, beyond ASCII, and with a meaning in a pattern."""
    tokens = [*BYTES, *(a + b for a, b in MERGES)]
    vocab = {token: i for i, token in enumerate(tokens)} | ({special: 999} if special not in tokens else {})
    write_vocabulary(tmp_path / "v", vocab)
    tokenizer = load_tokenizer(tmp_path / "v")
    for text in ("", "日本 éx. !", special, special * 3 + "a"):
        assert tokenizer.decode(tokenizer.encode(text)) == text and 999 not in tokenizer.encode(text)
    (tmp_path / "v" / "added_tokens.json").write_text(json.dumps({special: vocab[special]}))
    tokenizer = load_tokenizer(tmp_path / "v")
    for text in ("", "日本 éx. !", special, special * 3 + "a"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(2 * special + "a").tolist() == [*[vocab[special]] * (2 if special else 0), vocab["a"]]


def test_a_vocabulary_that_lacks_bytes(tmp_path):
    """As trainers leave out what their text did not have."""
    lacking = {token: i for i, token in enumerate([*"helo!", *(a + b for a, b in MERGES[:4])])}
    write_vocabulary(tmp_path, lacking, MERGES[:4])
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("hello!").tolist() == [lacking["hello"], lacking["!"]]
    for text in ("hello é", "é", "hello world", "\udcff"):
        with pytest.raises(UserError, match=r"byte 0x(20|c3|ff) at \d has no token in this vocabulary of 9"):
            tokenizer.encode(text)
    write_vocabulary(tmp_path, {"<s>": 0}, [])
    with pytest.raises(UserError, match=r"vocab.json: has no token for any byte"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: [], "holds a JSON list, expected an object"),
        (lambda v: {**v, "x": "1"}, "token 'x' has number '1'"),
        (lambda v: {**v, "hello": True}, "token 'hello' has number True"),
        (lambda v: {**v, "hello": -1}, "token 'hello' has number -1"),
        (lambda v: {**v, "hello": 2.0}, "token 'hello' has number 2.0"),
        (lambda v: {**v, "hello": 2**40}, "token 'hello' has number"),
        (lambda v: {**v, "new": 0}, "tokens '!' and 'new' both have number 0"),
        (lambda v: {**v, "\ud800": 999}, r"token '\\ud800' has no UTF-8 bytes"),
        (lambda v: {"<s>": 0}, "is missing, though merges.txt makes it"),
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
        (b"h e\nll\n", "merge 2 is 'll', expected two tokens"),
        (b"h e x\n", "merge 1 is 'h e x'"),
        (b"h  e\n", "merge 1 is 'h  e'"),
        ("h 日\n".encode(), "merge 1 is"),
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


# ---- tokenizer.json and the other files ----


def write_tokenizer_json(folder, change=lambda values: None, merges=MERGES, **added):
    """The small vocabulary as transformers 5 saves it, changed; added: name of a token -> whether it is special."""
    vocab = write_vocabulary(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    added_tokens = [
        {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": special}
        for number, (token, special) in enumerate({"<|endoftext|>": True, **added}.items(), start=len(vocab) - 1)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    values = {
        "version": "1.0", "added_tokens": added_tokens, "normalizer": None, "pre_tokenizer": byte_level,
        "post_processor": {"type": "TemplateProcessing"}, "decoder": byte_level,
        "model": {"type": "BPE", "continuing_subword_prefix": "", "vocab": vocab, "merges": [*map(list, merges)]},
    }  # fmt: skip
    change(values)
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    return vocab


def old_spellings(values):
    """As GPT-2's own file, which is from 2019."""
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
    del values["model"]["type"], values["pre_tokenizer"]["use_regex"], values["normalizer"]


def only_added(values):
    del values["model"]["vocab"]["<|endoftext|>"]


@pytest.mark.parametrize("change", [lambda values: None, old_spellings, only_added])
def test_tokenizer_json_alone_is_enough(tmp_path, small_gpt2, change):
    write_tokenizer_json(tmp_path, change)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.fingerprint == small_gpt2.fingerprint and tokenizer.eot_token == 262
    assert holds_tokenizer(tmp_path) and not holds_tokenizer(tmp_path.parent)


@pytest.mark.parametrize(
    ("keys", "value", "sentence"),
    [
        (("normalizer",), {"type": "NFC"}, r"normalizer is {'type': 'NFC'}, expected None"),
        (("pre_tokenizer",), None, "pre_tokenizer.type is None, expected 'ByteLevel'"),
        (("pre_tokenizer", "type"), "Whitespace", "pre_tokenizer.type is 'Whitespace'"),
        (("pre_tokenizer", "add_prefix_space"), True, "pre_tokenizer.add_prefix_space is True, expected False"),
        (("pre_tokenizer", "use_regex"), False, "pre_tokenizer.use_regex is False, expected True"),
        (("model", "type"), "Unigram", "model.type is 'Unigram', expected 'BPE'"),
        (("model", "end_of_word_suffix"), "</w>", "model.end_of_word_suffix is '</w>'"),
        (("model", "byte_fallback"), True, "model.byte_fallback is True"),
        (("model", "ignore_merges"), 1, "model.ignore_merges is 1"),
        (("model",), [], "holds no model.vocab"),
        (("model", "vocab"), [], "holds no model.vocab"),
        (("model", "merges"), {}, "holds no model.vocab"),
        (("model", "merges"), [["h"]], "merge 1 is \\['h'\\], expected two tokens"),
        (("model", "merges"), [["h", "e"], 3], "merge 2 is 3"),
        (("added_tokens",), [3], "added_tokens holds 3, expected objects"),
        (("added_tokens",), 3, "added_tokens holds 3, expected objects"),
        (("added_tokens",), [{"content": "x"}], "token 'x' has number None"),
        (("added_tokens",), [{"content": "xx", "id": 5}], "tokens '&' and 'xx' both have number 5"),
        (("added_tokens",), [{"content": "&", "id": 999}], "token '&' has number 5, and was added as 999"),
        (("added_tokens",), [{"content": "x", "id": 999, "lstrip": True}], "added token 'x' has lstrip"),
    ],
)
def test_what_gives_other_tokens_is_refused(tmp_path, keys, value, sentence):
    def change(values):
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    write_tokenizer_json(tmp_path, change)
    with pytest.raises(UserError, match=sentence) as raised:
        load_tokenizer(tmp_path)
    assert "tokenizer.json: " in str(raised.value)


def test_added_tokens_are_found_in_a_text_and_special_ones_are_not(tmp_path):
    write_tokenizer_json(tmp_path / "one", **{"<|user|>": False, "<|user|>x": False, "<|pad|>": True})
    write_vocabulary(tmp_path / "two")
    (tmp_path / "two" / "added_tokens.json").write_text(json.dumps({"<|user|>": 263, "<|user|>x": 264, "<|pad|>": 265}))
    for folder, pad in ((tmp_path / "one", False), (tmp_path / "two", True)):
        tokenizer = load_tokenizer(folder)
        hello = tokenizer.encode("hello").tolist()
        assert tokenizer.vocab_size == 266
        assert tokenizer.encode("<|user|>hello<|user|>xhello").tolist() == [263, *hello, 264, *hello]
        assert (265 in tokenizer.encode("<|pad|>")) == pad
        assert 262 not in tokenizer.encode("<|endoftext|>")
        assert tokenizer.decode([263, 265, *hello]) == "<|user|><|pad|>hello"
        tokenizer.save(folder)
        assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint
    assert len({load_tokenizer(tmp_path / name).fingerprint for name in ("one", "two")}) == 2


def test_where_tokenizer_json_is_it_alone_counts(tmp_path):
    write_tokenizer_json(tmp_path, **{"<|user|>": False})
    write_vocabulary(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"old": 263}')
    assert load_tokenizer(tmp_path).decode([263]) == "<|user|>"
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path).decode([263]) == "old"


@pytest.mark.parametrize(
    ("files", "eot"),
    [
        ({}, None),
        ({"config.json": {"eos_token_id": 263}}, 263),
        ({"config.json": {"eos_token_id": [7, 263]}}, 263),  # 7 is an ordinary token
        ({"config.json": {"eos_token_id": 50256}}, None),
        ({"config.json": {"eos_token_id": 262}, "generation_config.json": {"eos_token_id": 263}}, 263),
        ({"config.json": {"eos_token_id": 263}, "generation_config.json": {}}, 263),
        ({"config.json": {"eos_token_id": 263}, "tokenizer_config.json": {"eos_token": "<s>"}}, 262),
        ({"tokenizer_config.json": {"eos_token": {"content": "</s>"}}}, 263),
        ({"tokenizer_config.json": {"eos_token": None}, "special_tokens_map.json": {"eos_token": "</s>"}}, 263),
        ({"tokenizer_config.json": {"eos_token": ["</s>"]}}, None),
    ],
)
def test_the_token_that_ends_a_text(tmp_path, files, eot):
    tokens = [*BYTES, *(a + b for a, b in MERGES), "<s>", "</s>"]
    write_vocabulary(tmp_path, {token: i for i, token in enumerate(tokens)})
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eot_token == eot
    (tmp_path / "saved").mkdir()  # without the model's files
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.eot_token, again.fingerprint) == (eot, tokenizer.fingerprint)


def test_the_token_that_ends_a_text_belongs_to_the_fingerprint(tmp_path):
    vocab = write_vocabulary(tmp_path)
    write_vocabulary(tmp_path, {**vocab, "</s>": len(vocab)})
    fingerprints = set()
    for eos in ("</s>", "<|endoftext|>", None):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
        fingerprints.add(load_tokenizer(tmp_path).fingerprint)
    assert len(fingerprints) == 2  # None is <|endoftext|> as well


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json", FILE_NAME])
def test_a_byte_order_mark_is_passed_over(tmp_path, small_gpt2, name):
    small_gpt2.save(tmp_path)
    if name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer.json").unlink()
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert load_tokenizer(tmp_path).fingerprint == small_gpt2.fingerprint


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json", FILE_NAME])
def test_a_pointer_of_git_lfs_is_named(tmp_path, small_gpt2, name):
    small_gpt2.save(tmp_path)
    if name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer.json").unlink()
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064}\nsize 548105171\n")
    with pytest.raises(UserError, match=rf"{name}: is a Git LFS pointer.*git lfs pull"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("ends", [("<|endoftext|>", "<|endoftext|>"), ("<s>", "</s>"), (None, None)])
def test_transformers_opens_what_is_saved(tmp_path, ends, slow):
    """With the same tokens, special and added ones included, of which one leaves a hole in the numbers."""
    transformers = pytest.importorskip("transformers")
    names = {name: i for i, name in enumerate(dict.fromkeys([end for end in ends if end] or ["x"]), start=400)}
    vocabulary = bpe.Vocabulary(
        {bpe.to_bytes(token): i for i, token in enumerate([*BYTES, *(a + b for a, b in MERGES)])},
        names, {} if slow else {"<|user|>": 300}, None, *ends,
    )  # fmt: skip
    ours = GPT2Tokenizer(vocabulary)
    ours.save(tmp_path)
    if slow:
        (tmp_path / "tokenizer.json").unlink()
    for kind in (transformers.AutoTokenizer, transformers.GPT2Tokenizer):
        theirs = kind.from_pretrained(tmp_path)
        assert (theirs.bos_token, theirs.eos_token) == ends
        assert theirs.unk_token == ("<|endoftext|>" if "<|endoftext|>" in names else None)  # no token is added
        assert theirs.eos_token_id == ours.eot_token
        for text in [*TEXTS[:-1], "hello <|user|>hello"]:
            assert ours.encode(text).tolist() == theirs(text)["input_ids"], text
        for number in ours.known_tokens()[-10:]:
            assert theirs.decode([number]) == ours.decode([number])


def test_what_transformers_saves_is_opened(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_vocabulary(tmp_path)
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    theirs.add_tokens(["<|user|>"])
    theirs.add_special_tokens({"pad_token": "<|pad|>"})
    theirs.save_pretrained(tmp_path / "saved")
    ours = load_tokenizer(tmp_path / "saved")
    assert ours.eot_token == theirs.eos_token_id == 262
    assert ours.vocab_size == len(theirs)
    for text in [*TEXTS[:-1], "hello <|user|>hello"]:
        assert ours.encode(text).tolist() == theirs(text)["input_ids"], text


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
    ranks, special_tokens = gpt2._vocabulary.ranks, gpt2._vocabulary.special_tokens
    by_tiktoken = tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special_tokens)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: {"gpt2": by_tiktoken}[name])
    by_name = GPT2Tokenizer.from_tiktoken()
    assert by_name.fingerprint == gpt2.fingerprint
    by_name.save(tmp_path)
    assert read_vocabulary(tmp_path) == gpt2._vocabulary


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
