"""Byte pair encoding: the reference against the libraries; vocabularies of one's own, from a text to a model's text."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import required
from documents import ROOT, blocks

from pygpt.command import generate, tokenizer, train
from pygpt.command import prepare as prepare_command
from pygpt.errors import UserError
from pygpt.reference import bpe as reference
from pygpt.text import pieces, train_vocabulary
from pygpt.text import prepare as prepare_module
from pygpt.text.bpe import END_OF_TEXT, Vocabulary, to_text
from pygpt.text.bpe_training import _ASCII_WORDS, _WORDS, CUTS, train_merges, train_on
from pygpt.text.meta import read_meta
from pygpt.text.prepare import prepare
from pygpt.text.tokenizer import GPT2Tokenizer, load_tokenizer

ATOMS = ["a", "b", "ab", "ba", "aa", "é", "日", "😀", "1", "22", "'s", "'ll", "'", "!", "--", " ", "  ", "\n", "\r\n"]
ATOMS += ["\t", "\u3000", "\xa0", "\x1c", "\x85", "\u200b", "\x00", "low", "lowest", END_OF_TEXT]


def draw_text(draw: random.Random, length: int) -> str:
    """Of a few of the atoms, so that many pairs occur equally often."""
    atoms = draw.sample(ATOMS, draw.randint(1, 8))
    return "".join(draw.choices(atoms, k=length))


def count_words(texts: list[str]) -> Counter[str]:
    return Counter(word.decode() for text in texts for word in reference.split(text))


def small_tokenizer(merges: list[reference.Pair]) -> GPT2Tokenizer:
    ranks = reference.number_tokens(merges)
    return GPT2Tokenizer(Vocabulary(ranks, {END_OF_TEXT: len(ranks)}, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT))


# ---- the reference ----


def test_the_bytes_have_the_numbers_of_gpt2() -> None:
    assert sorted(reference.BYTES) == [bytes([byte]) for byte in range(256)]
    characters = [to_text(byte) for byte in reference.BYTES]
    assert characters == sorted(characters) and characters[0] == "!" and characters[220] == "Ġ"


def test_of_pairs_that_occur_equally_often_the_smallest_numbers_win() -> None:
    """Worked out by hand; in GPT-2's order of the bytes the space is among the last."""
    assert reference.train(["cb ca", "cb ca"], 260) == [(b"c", b"a"), (b"c", b"b"), (b" ", b"ca")]
    assert reference.train(["xa", "ya", "xa", "ya"], 258) == [(b"x", b"a"), (b"y", b"a")]
    assert reference.train(["\n1\n", "é"] * 2, 257) == [("é".encode()[:1], "é".encode()[1:])]
    assert reference.train(["aab", "aab"], 257) == [(b"a", b"a")]
    assert reference.train(["aaaa"], 300) == [(b"a", b"a")]  # aa aa: what occurs once is no pattern
    assert reference.train(["ab"], 300) == reference.train([], 300) == []


def test_a_pair_is_replaced_from_left_to_right() -> None:
    numbers = reference.number_tokens([(b"a", b"a"), (b"aa", b"a")])
    assert reference.encode("aaaaa", numbers) == [256, 257]
    assert reference.train(["aaaaa"] * 2, 258) == [(b"a", b"a"), (b"aa", b"a")]


def test_the_merges_are_those_of_the_reference() -> None:
    """The same in the same order, with as many ties as there can be, and as few when there is nothing left to merge."""
    draw = random.Random(0)
    lengths = set()
    for _ in range(300):
        texts = [draw_text(draw, draw.randrange(100)) for _ in range(draw.randint(1, 5))]
        vocab_size = 257 + draw.randrange(40)
        expected = reference.train(texts, vocab_size)
        assert train_merges(count_words(texts), vocab_size) == expected, texts
        lengths.add(len(expected))
    assert {0, 39} <= lengths


def test_the_merges_of_a_real_text_are_those_of_the_reference() -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    expected = reference.train(texts, 400)
    assert train_merges(count_words(texts), 400) == expected and len(expected) == 144


def test_the_merges_are_those_of_the_library() -> None:
    """tokenizers, which counts ties in the same way."""
    tokenizers = required.module("tokenizers")
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000, min_frequency=2, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = byte_level(add_prefix_space=False)
    library.train_from_iterator(texts, trainer)
    merges = train_merges(count_words(texts), 1000)
    theirs = json.loads(library.to_str())["model"]["merges"]
    assert [tuple(pair) for pair in theirs] == [(to_text(a), to_text(b)) for a, b in merges]


def test_the_words_of_ascii_are_those_of_the_pattern() -> None:
    draw = random.Random(0)
    atoms = [*map(chr, range(128)), "'ll", "'re", "\n\n", "   ", "\r\n", "ab", "12", "\t "]
    for _ in range(3000):
        text = "".join(draw.choices(atoms, k=draw.randint(1, 12)))
        assert _ASCII_WORDS.findall(text) == _WORDS.findall(text)


def test_a_word_without_end_is_trained_on_quickly() -> None:
    """Of a million characters: each merge costs no more than what it changes."""
    draw = random.Random(0)
    word = "".join(draw.choices("abcdefgh", k=1_000_000))
    assert len(train_merges(Counter({word: 1, "a" * 100_000: 1}), 600)) == 344


def test_the_encoding_is_tiktokens() -> None:
    """Of any bytes, which come back."""
    draw = random.Random(1)
    for _ in range(300):
        text = draw_text(draw, 100)
        merges = reference.train([text], 256 + draw.randrange(30))
        numbers, ours = reference.number_tokens(merges), small_tokenizer(merges)
        data = draw_text(draw, 30).encode() + draw.randbytes(draw.randrange(20)) + text.encode()[: draw.randrange(20)]
        given = data.decode("utf-8", "surrogateescape")
        tokens = reference.encode(given, numbers)
        assert ours.encode(given).tolist() == tokens, data
        assert reference.decode(tokens, numbers) == ours.decode_bytes(tokens) == data
        assert ours.eot_token not in tokens
        assert ours.byte_lengths()[tokens].sum() == len(data)


def test_special_tokens_are_only_those_that_are_allowed() -> None:
    numbers = reference.number_tokens([])
    text = f"a{END_OF_TEXT}b"
    assert reference.decode(reference.encode(text, numbers), numbers) == text.encode()
    a, b = numbers[b"a"], numbers[b"b"]
    assert reference.encode(text, numbers, {END_OF_TEXT: 256}) == [a, 256, b]
    assert reference.encode("a.*b", numbers, {".*": 300}) == [a, 300, b]  # no pattern
    assert 256 not in small_tokenizer([]).encode(text)


def test_special_tokens_stand_for_no_bytes() -> None:
    lengths = small_tokenizer([(b"a", b"b")]).byte_lengths()
    assert lengths.tolist() == [1] * 256 + [2, 0]


def test_the_worked_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The document's program prints what the document says."""
    found = blocks(ROOT / "docs" / "bpe.md")
    program, printed = (block.text for block in found if block.heading == "A worked example")
    exec(program, {})
    assert capsys.readouterr().out == printed


# ---- a vocabulary of one's own ----


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a text."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    words = ["the", "cat's", "naïve", "日本", *("".join(draw.choices("abcdef", k=5)) for _ in range(50))]
    text = "".join(word + draw.choice("  \n") for word in draw.choices(words, k=3000))
    Path("text.txt").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def vocabulary(here: Path) -> Path:
    tokenizer.main(["text.txt", "--vocab-size", "290"])
    return Path("data/bpe-text-290")


def test_a_vocabulary_is_trained_on_what_is_trained_on(vocabulary: Path) -> None:
    ours = load_tokenizer(vocabulary)
    assert (ours.name, ours.vocab_size, ours.eot_token) == ("gpt2", 290, 289)
    (part,), _ = pieces.split_files([Path("text.txt")], 0.1, pieces.Cuts(words=True))
    merges = reference.train([part.read_text()], 289)
    assert ours._vocabulary.merges == merges
    assert {path.name for path in vocabulary.iterdir()} >= {"vocab.json", "merges.txt", "tokenizer.json"}
    fingerprint = ours.fingerprint
    (vocabulary / "tokenizer.json").unlink()  # the pair of files says the same
    assert load_tokenizer(vocabulary).fingerprint == fingerprint


def test_cuts_and_end_of_text_change_no_merge(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is read in pieces; the words for the end of a document are not learned."""
    monkeypatch.setattr(pieces, "CHUNK", 100)
    text = Path("text.txt").read_text(encoding="utf-8")
    Path("docs.txt").write_text(text.replace("\n", f"\n{END_OF_TEXT}"), encoding="utf-8")
    files = [Path("docs.txt")]
    (part,), _ = pieces.split_files(files, 0.1, CUTS)
    documents = part.read_text().split(END_OF_TEXT)
    assert len(documents) > 100
    found = train_vocabulary.train_vocabulary("docs.txt", 300)
    assert load_tokenizer(found)._vocabulary.merges == reference.train(documents, 299)


def test_transformers_opens_it(vocabulary: Path) -> None:
    transformers = required.module("transformers")
    ours = load_tokenizer(vocabulary)
    draw = random.Random(2)
    for kind in (transformers.AutoTokenizer, transformers.GPT2Tokenizer):
        theirs = kind.from_pretrained(vocabulary)
        assert len(theirs) == 290 and theirs.eos_token_id == 289
        for _ in range(100):
            text = draw_text(draw, 30).replace(END_OF_TEXT, "") + "the cat sat"
            assert ours.encode(text).tolist() == theirs(text)["input_ids"]
            assert theirs.decode(ours.encode(text), clean_up_tokenization_spaces=False) == text


def test_from_text_to_text(vocabulary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """prepare takes the folder; training takes the vocabulary from the data, and generation from the model."""
    prepare_command.main(["--data", "text.txt", "--tokenizer", str(vocabulary)])
    data = Path("data/text-bpe-text-290")
    meta = read_meta(data)
    assert meta.tokenizer.fingerprint == load_tokenizer(vocabulary).fingerprint
    assert meta.train.bytes + meta.val.bytes == Path("text.txt").stat().st_size
    assert meta.train.tokens < meta.train.bytes / 1.5
    sizes = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--seq-len", "8", "--batch-size", "2"]
    run = [*sizes, "--max-iters", "4", "--eval-interval", "2", "--sample-tokens", "5", "--device", "numpy"]
    train.main(["--data", str(data), *run, "--out-dir", "out"])
    capsys.readouterr()
    generate.main(["the cat", "--model", "out/best", "--max-new-tokens", "3", "--device", "numpy"])
    assert capsys.readouterr().out.startswith("the cat")
    assert load_tokenizer("out/best").fingerprint == meta.tokenizer.fingerprint


def test_the_default_is_a_vocabulary_of_the_text(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained at the first use, kept with the data, and found again by a run that resumes."""
    trained = []
    monkeypatch.setattr(prepare_module, "train_on", lambda *asked: trained.append(asked[1]) or train_on(*asked))
    monkeypatch.setattr(prepare_module, "VOCAB_SIZE", 300)
    sizes = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--seq-len", "8", "--batch-size", "2"]
    run = [*sizes, "--eval-interval", "2", "--sample-tokens", "5", "--device", "numpy"]
    train.main(["--data", "text.txt", *run, "--max-iters", "2", "--out-dir", "out"])
    data = Path("data/text-bpe")
    (part,), _ = pieces.split_files([Path("text.txt")], 0.1, CUTS)
    tokenizer_of_run = load_tokenizer("out/best")
    assert isinstance(tokenizer_of_run, GPT2Tokenizer)
    assert tokenizer_of_run.vocabulary.merges == reference.train([part.read_text()], 299)
    assert read_meta(data).tokenizer.fingerprint == tokenizer_of_run.fingerprint
    train.main(["--resume", "out", "--max-iters", "4"])
    train.main(["--data", "text.txt", "--tokenizer", "bpe", *run, "--max-iters", "2", "--out-dir", "again"])
    train.main(["--resume", "again", "--max-iters", "3"])
    train.main(["--data", str(data), "--tokenizer", "bpe", *run, "--max-iters", "2", "--out-dir", "third"])
    assert trained == [300] and [path.name for path in Path("data").iterdir()] == ["text-bpe"]
    prepare("text.txt", "bpe", "with-ends", eot_in_text=True)
    assert read_meta("with-ends").eot_in_text
    Path("text.txt").write_text("low lower " * 100)
    assert read_meta(prepare_module.ensure("text.txt", "bpe")).tokenizer.vocab_size < 300  # as many as the text gives


def test_prepare_takes_a_folder_with_any_tokenizer(here: Path) -> None:
    first = prepare("text.txt", "char", "first")
    second = prepare("text.txt", "first")
    assert second == Path("data/text-first")
    assert read_meta(second) == read_meta(first)
    Path("other").mkdir()
    Path("other/text.txt").write_text("the cat " * 100)
    third = prepare("other/text.txt", "first")
    assert re.fullmatch(r"text-[0-9a-f]{8}-first", third.name)
    assert read_meta(third).tokenizer == read_meta(first).tokenizer


@pytest.mark.parametrize(
    ("content", "arguments", "sentence"),
    [
        ("the cat sat", ["--vocab-size", "256"], r"size of the vocabulary is 256, expected 257 \(the bytes and <"),
        ("the cat sat", ["--vocab-size", "65537"], r"is 65537, expected 257 .* to 65536 \(what a token file can hold"),
        ("the cat sat", ["--vocab-size", "0"], "--vocab-size: expected an integer of at least 1, got '0'"),
        ("the cat sat", [], "required: --vocab-size"),
        (
            "ab " * 40,
            ["--vocab-size", "500"],
            r"text.txt: gives a vocabulary of 259 tokens, expected 500: no more pairs",
        ),
        ("", ["--vocab-size", "300"], "text.txt: is empty"),
        ("\ufeff", ["--vocab-size", "258"], "text.txt: gives a vocabulary of 257 tokens, expected 258"),
        ("a" * 9 + "\0" + "a" * 90, ["--vocab-size", "258"], "text.txt: is binary: byte 9 is 0"),
        ("ab " * 40, ["--vocab-size", "258", "--out", "there"], "there: exists, expected the name of a new folder"),
        ("ab " * 40, ["--vocab-size", "258", "--out", "text.txt"], "text.txt: exists, expected the name of a new"),
        ("ab " * 40, ["--vocab-size", "258", "--out", "text.txt/x"], "text.txt/x: cannot be saved: Not a directory"),
    ],
)
def test_what_cannot_be_trained(here: Path, content: str, arguments: list[str], sentence: str) -> None:
    """Gets one sentence, and leaves nothing behind."""
    Path("text.txt").write_text(content, encoding="utf-8")
    Path("there").mkdir()
    with pytest.raises(UserError, match=sentence) as raised:
        tokenizer.main(["text.txt", *arguments])
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in Path().rglob("*")) == ["text.txt", "there"]
    with pytest.raises(UserError, match="nowhere: there is no such file or folder, and no data set of this name"):
        tokenizer.main(["nowhere", "--vocab-size", "300"])


def test_a_vocabulary_that_cannot_be_saved_leaves_no_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", refuse)
    with pytest.raises(UserError, match="data/bpe-text-290: cannot be saved: No space left on device"):
        tokenizer.main(["text.txt", "--vocab-size", "290"])
    assert not Path("data/bpe-text-290").exists()
