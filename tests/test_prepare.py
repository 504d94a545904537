"""Text to token files: whatever the cuts and the threads, the same tokens; nothing half-written; every bad input."""

import errno
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from test_tokenizer import write_vocabulary

from pygpt.errors import UserError
from pygpt.text import corpora as datasets
from pygpt.text import pieces, prepare
from pygpt.text.batches import TokenDataset
from pygpt.text.meta import read_meta
from pygpt.text.prepare import ensure
from pygpt.text.token_file import ShardWriter, read_tokens, write_tokens
from pygpt.text.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer, load_tokenizer

SCRIPT = Path(__file__).parents[1] / "scripts" / "prepare_data.py"


def all_tokens(folder, split):
    described = getattr(read_meta(folder), split)
    return np.concatenate([read_tokens(folder / shard.file) for shard in described.shards])


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text" / "notes.txt"
    path.parent.mkdir()
    path.write_bytes(b"".join(b"line %d of the notes\n" % i for i in range(1000)))
    return path


@pytest.fixture
def vocabulary(tmp_path):
    write_vocabulary(tmp_path / "vocabulary")
    return tmp_path / "vocabulary"


def test_bytes_of_a_file(text_file, tmp_path):
    folder = prepare.prepare(str(text_file), root=tmp_path / "data")
    text = text_file.read_bytes()
    assert folder == tmp_path / "data" / "notes-byte"
    train, val = all_tokens(folder, "train"), all_tokens(folder, "val")
    assert bytes(train.tolist()) == text[: len(text) * 9 // 10] and bytes(val.tolist()) == text[len(text) * 9 // 10 :]
    meta = read_meta(folder)
    assert (meta.name, meta.source, meta.licence) == ("notes", str(text_file), "not stated")
    assert meta.tokenizer.name == "byte" and meta.tokenizer.fingerprint == ByteTokenizer().fingerprint
    assert isinstance(load_tokenizer(folder), ByteTokenizer)
    assert sorted(path.name for path in folder.iterdir()) == [
        "meta.json",
        "notes_train_000000.bin",
        "notes_val_000000.bin",
        "pygpt_tokenizer.json",
    ]


def test_characters_of_a_file(tmp_path, monkeypatch):
    text = "é日😀\nab" * 1000
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    monkeypatch.setattr(pieces, "CHUNK", 101)  # so that cuts fall into characters
    folder = prepare.prepare(str(tmp_path / "x.txt"), "char", root=tmp_path, workers=2)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.characters == "\nabé日😀"
    train, val = all_tokens(folder, "train"), all_tokens(folder, "val")
    assert tokenizer.decode(train) + tokenizer.decode(val) == text
    assert len(val) / len(text) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("workers", [1, 3])
def test_byte_pairs_do_not_depend_on_cuts(tmp_path, vocabulary, monkeypatch, workers):
    """Pieces of a few bytes of a text full of white space of all kinds give the whole text's tokens."""
    rng = np.random.default_rng(2)
    atoms = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u3000", "\u00a0", "\u2003", "\x0b", "\x1c", "\x85"]
    atoms += ["hello", "he", "'ll", "'", "12", "é", "日", "😀", ".", "!?", "x"]
    text = "".join(rng.choice(atoms, 20_000))
    (tmp_path / "x.txt").write_text(text, encoding="utf-8", newline="")
    monkeypatch.setattr(pieces, "CHUNK", 50)
    monkeypatch.setattr(pieces, "_WINDOW", 16)
    parts = pieces.split_files([tmp_path / "x.txt"], 0.1, pieces.Cuts(words=True))
    cut = [piece for part in parts for group in pieces.groups(part, pieces.Cuts(words=True)) for piece in group]
    assert len(cut) > 500 and max(piece.size for piece in cut) < 1000
    folder = prepare.prepare(str(tmp_path / "x.txt"), "gpt2", root=tmp_path, vocab=vocabulary, workers=workers)
    tokenizer = GPT2Tokenizer.from_folder(vocabulary)
    tokens = np.concatenate([all_tokens(folder, "train"), all_tokens(folder, "val")])
    assert tokens.tolist() == [tokenizer.eot_token, *tokenizer.encode(text)]


def test_a_word_without_end_is_cut_between_characters(tmp_path, vocabulary, monkeypatch):
    text = "日本" * 500
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    for name, size in (("CHUNK", 100), ("LONGEST_WORD", 200), ("_WINDOW", 50)):
        monkeypatch.setattr(pieces, name, size)
    folder = prepare.prepare(str(tmp_path / "x.txt"), "gpt2", root=tmp_path, vocab=vocabulary)
    tokens = np.concatenate([all_tokens(folder, "train"), all_tokens(folder, "val")])
    assert load_tokenizer(folder).decode(tokens[1:]) == text


def test_a_folder(tmp_path, vocabulary):
    """Files in the order of their names, each after an end-of-text token; whole files for validation, evenly spread."""
    source = tmp_path / "texts"
    names = [f"{folder}/{i:02d}.txt" for folder in ("a", "b") for i in range(20)]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(f"{name} says hello\n")
    (source / "a" / "empty.txt").touch()
    (source / ".hidden.txt").write_text("hidden")
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text("hidden")
    prepare.prepare(str(source), root=source)  # tokens inside the folder do not count as its text

    with pytest.warns(UserWarning, match=r"^left out: \S*texts-byte \(a folder of tokens\)$"):
        folder = prepare.prepare(str(source), "gpt2", root=tmp_path, vocab=vocabulary)
    tokenizer = load_tokenizer(folder)
    found = {}
    for split in ("train", "val"):
        texts = tokenizer.decode(all_tokens(folder, split)).split("<|endoftext|>")
        assert texts.pop(0) == ""
        found[split] = [text.removesuffix(" says hello\n") for text in texts]
        assert found[split] == sorted(found[split])
    assert sorted(found["train"] + found["val"]) == names
    assert [name[0] for name in found["val"]] == ["a", "a", "b", "b"]


def test_links_in_a_folder(tmp_path):
    """Those to folders are followed, each folder once, whatever circles they make; broken ones are named."""
    texts, elsewhere = tmp_path / "texts", tmp_path / "elsewhere"
    (texts / "sub").mkdir(parents=True)
    (elsewhere / "deep").mkdir(parents=True)
    (texts / "a.txt").write_text("a" * 500)
    (elsewhere / "b.txt").write_text("b" * 400)
    (elsewhere / "deep" / "c.txt").write_text("c" * 300)
    (texts / "link.txt").symlink_to(elsewhere / "b.txt")
    (texts / "more").symlink_to("../elsewhere")
    (texts / "sub" / "again").symlink_to("../../elsewhere")
    (elsewhere / "deep" / "up").symlink_to("..")
    (texts / "loop").symlink_to(".")
    (texts / "broken").symlink_to(tmp_path / "nowhere")
    (texts / "itself").symlink_to("itself")
    with pytest.warns(UserWarning) as warned:
        folder = ensure(str(texts), root=tmp_path / "data")
    assert [str(warning.message) for warning in warned] == [
        f"left out: {texts}/broken (a broken link), {texts}/itself (a broken link)"
    ]
    tokens = [*all_tokens(folder, "train"), *all_tokens(folder, "val")]
    assert bytes(map(int, tokens)) == b"a" * 500 + b"b" * 800 + b"c" * 300
    meta = read_meta(folder)
    (elsewhere / "deep" / "c.txt").write_text("C" * 301)  # behind a link
    with pytest.warns(UserWarning):
        assert read_meta(ensure(str(texts), root=tmp_path / "data")) != meta


def test_few_files_are_cut_at_the_end(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(str(i) * 100)
    parts = pieces.split_files(sorted(tmp_path.iterdir()), 0.1, pieces.Cuts(words=False))
    assert [piece.size for piece in parts[0]] == [100, 100, 70] and [piece.size for piece in parts[1]] == [30]
    (tmp_path / "3.txt").write_text("3")  # one byte is no validation
    parts = pieces.split_files(sorted(tmp_path.iterdir()), 0.1, pieces.Cuts(words=False))
    assert [piece.size for piece in parts[0]] == [100, 100, 70] and [piece.size for piece in parts[1]] == [30, 1]
    parts = pieces.split_files(sorted(tmp_path.iterdir()), 1e-300, pieces.Cuts(words=False))
    assert [piece.size for piece in parts[1]] == [1]


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_the_same_files_whatever_the_threads(text_file, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(pieces, "CHUNK", 1000)
    folders = [
        prepare.prepare(str(text_file), tokenizer, tmp_path / str(workers), workers=workers, shard_size=4000)
        for workers in (1, 2, 7)
    ]
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1] == contents[2]
    assert len(read_meta(folders[0]).train.shards) == 5


def test_tiny_shakespeare_as_in_llmc(shared_data, tmp_path):
    folder = prepare.prepare(
        "shakespeare",
        "gpt2",
        root=tmp_path,
        vocab=shared_data / "gpt2-bpe",
        from_file=shared_data / "tinyshakespeare.txt",
    )
    train, val = all_tokens(folder, "train"), all_tokens(folder, "val")
    assert (len(train), len(val)) == (305_260, 32_768)
    assert val[:5].tolist() == [50256, 5962, 22307, 25, 198]  # <|endoftext|>First Citizen:\n
    text = (shared_data / "tinyshakespeare.txt").read_text()
    assert load_tokenizer(folder).decode(np.concatenate([val, train])).replace("<|endoftext|>", "") == text
    assert "public domain" in read_meta(folder).licence
    with pytest.raises(UserError, match=r"is divided as in llm\.c, 32768 tokens"):
        prepare.prepare("shakespeare", "gpt2", root=tmp_path, val_fraction=0.2)


def test_tiny_shakespeare_as_in_nanogpt(shared_data, tmp_path):
    source = shared_data / "tinyshakespeare.txt"
    folder = prepare.prepare("shakespeare", "char", root=tmp_path, from_file=source)
    train, val = all_tokens(folder, "train"), all_tokens(folder, "val")
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.vocab_size, len(train), len(val)) == (65, 1_003_854, 111_540)
    assert tokenizer.characters.startswith("\n !$&',-.3:;?ABC")
    assert tokenizer.decode(train) + tokenizer.decode(val) == source.read_text()


def test_the_standard_library(tmp_path):
    folder = ensure("stdlib", root=tmp_path)
    meta = read_meta(folder)
    assert folder.name == "stdlib-byte"
    assert 10**6 < meta.train.tokens + meta.val.tokens <= 32 * 2**20
    assert meta.val.tokens == pytest.approx(0.1 * meta.train.tokens / 0.9, rel=0.05)
    assert f"Python {sys.version.split()[0]}" in meta.source and "Python Software Foundation" in meta.licence
    files = datasets.find_corpus("stdlib").files
    assert not any({"test", "tests", "site-packages", "__pycache__"} & set(path.parts) for path in files)
    assert any(path.name == "argparse.py" for path in files)
    text = bytes(all_tokens(folder, "train").astype(np.uint8)).decode()
    assert "def " in text
    again = prepare.prepare("stdlib", root=tmp_path / "again", workers=3)
    assert read_meta(again) == meta


def test_a_machine_without_the_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UserError, match="the standard library's sources are not there; --data PATH"):
        ensure("stdlib", root=tmp_path)


def test_ensure_prepares_once(text_file, tmp_path, monkeypatch):
    calls = []
    prepared = prepare.prepare
    monkeypatch.setattr(prepare, "prepare", lambda *a, **k: calls.append(a) or prepared(*a, **k))

    def ensured(tokenizer="byte", data=text_file):
        before = len(calls)
        folder = ensure(str(data), tokenizer, tmp_path / "data")
        return folder, len(calls) - before

    folder, first = ensured()
    assert first == 1 and ensured() == (folder, 0) == ensured(None)
    assert ensured(ByteTokenizer()) == (folder, 0)
    assert ensured("char")[1] == 1 and ensured("char")[1] == 0
    # a model's own characters
    ours = CharTokenizer("".join(map(chr, range(128))))
    assert ensured(ours)[1] == 1 and ensured(ours)[1] == 0
    assert load_tokenizer(ensured(ours)[0]).vocab_size == 128
    # the folder itself
    assert ensured(data=folder) == (folder, 0) == ensured(None, folder)
    with pytest.raises(UserError, match="holds byte tokens, but char tokens are asked for"):
        ensured("char", folder)
    # damaged, or of another text
    shard = folder / "notes_val_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    assert ensured() == (folder, 1)
    (folder / "meta.json").write_text("{}")
    assert ensured() == (folder, 1)
    text_file.write_bytes(text_file.read_bytes() + b"more")
    assert ensured() == (folder, 1) and ensured() == (folder, 0)
    assert bytes(all_tokens(folder, "val").tolist()).endswith(b"more")


def test_two_texts_of_one_name(text_file, tmp_path):
    other = tmp_path / "other" / "notes.txt"
    other.parent.mkdir()
    other.write_text("something else " * 100)
    first = ensure(str(text_file), root=tmp_path / "data")
    second = ensure(str(other), root=tmp_path / "data")
    assert first != second and second.name.startswith("notes-")
    assert ensure(str(text_file), root=tmp_path / "data") == first
    assert ensure(str(other), root=tmp_path / "data") == second
    assert [read_meta(folder).source for folder in (first, second)] == [str(text_file), str(other)]


def test_prepared_gpt2_tokens_need_no_network(text_file, tmp_path, vocabulary, monkeypatch):
    folder = ensure(str(text_file), "gpt2", tmp_path / "data", vocab=vocabulary)

    def refuse(cls):
        raise UserError("no network")

    monkeypatch.setattr(GPT2Tokenizer, "from_tiktoken", classmethod(refuse))
    assert ensure(str(text_file), "gpt2", tmp_path / "data") == folder
    assert ensure(str(text_file), load_tokenizer(folder), tmp_path / "data") == folder
    with pytest.raises(UserError, match="no network"):
        ensure(str(SCRIPT), "gpt2", tmp_path / "data")


def test_fewer_shards_than_before(text_file, tmp_path):
    folder = prepare.prepare(str(text_file), root=tmp_path, shard_size=1000)
    (folder / "mine.bin").touch()
    many = len(list(folder.iterdir()))
    prepare.prepare(str(text_file), root=tmp_path)
    assert many > 20 and sorted(path.name for path in folder.glob("*.bin")) == [
        "mine.bin",
        "notes_train_000000.bin",
        "notes_val_000000.bin",
    ]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_nothing_half_written(text_file, tmp_path, monkeypatch, failure):
    """Ctrl-C or a full device in the middle: a first preparation leaves no trace, a second one the earlier tokens."""
    monkeypatch.setattr(pieces, "CHUNK", 1000)
    write = ShardWriter.write

    def fail(self, tokens):
        write(self, tokens)
        if len(self.shards) == 3:
            raise failure

    expected, sentence = (UserError, "No space left") if isinstance(failure, OSError) else (KeyboardInterrupt, "")
    good = prepare.prepare(str(text_file), out_dir=tmp_path / "good")
    before = {path.name: path.read_bytes() for path in good.iterdir()}
    monkeypatch.setattr(ShardWriter, "write", fail)
    for folder in (good, tmp_path / "new"):
        with pytest.raises(expected, match=sentence or None):
            prepare.prepare(str(text_file), "char", folder, shard_size=2000, workers=2)
    assert {path.name: path.read_bytes() for path in good.iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_no_space_is_said_before(text_file, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="bytes are needed, and the device has 1000 left"):
        prepare.prepare(str(text_file), root=tmp_path / "data")


def test_a_byte_order_mark(tmp_path, vocabulary):
    """Is no character of the text, wherever a file stands; bytes keep it."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text(f"hello {name}\n" * 50, encoding="utf-8-sig")
    (folder / "c.txt").write_text("hello \ufeff\n" * 50, encoding="utf-8")  # inside a text it stays
    for tokenizer in ("char", "gpt2"):
        options = {"vocab": vocabulary} if tokenizer == "gpt2" else {}
        prepared = prepare.prepare(str(folder), tokenizer, root=tmp_path, **options)
        tokens = [*all_tokens(prepared, "train"), *all_tokens(prepared, "val")]
        text = load_tokenizer(prepared).decode(tokens).replace("<|endoftext|>", "")
        assert text == "".join(f"hello {name}\n" * 50 for name in "ab\ufeff")
    prepared = prepare.prepare(str(folder), root=tmp_path)
    assert all_tokens(prepared, "train")[:5].tolist() == [0xEF, 0xBB, 0xBF, *b"he"]


MARK = "<|endoftext|>"


def test_end_of_text_in_a_text(tmp_path, vocabulary, monkeypatch):
    """Its words are text, and a warning tells of them, or they are tokens; the choice belongs to the prepared data."""
    path = tmp_path / "docs.txt"
    path.write_text(f"one\n{MARK}\ntwo\n{MARK}\n" * 200)

    def ensured(**options):
        folder = ensure(str(path), "gpt2", tmp_path / "data", vocab=vocabulary, **options)
        tokens = np.concatenate([all_tokens(folder, "train"), all_tokens(folder, "val")])
        return folder, load_tokenizer(folder), tokens

    with pytest.warns(UserWarning, match=r"docs.txt: holds <\|endoftext\|> 400 times, which stays text; with --eot-in"):
        folder, tokenizer, tokens = ensured()
    assert (tokens == tokenizer.eot_token).sum() == 1
    assert ensured(eot_in_text=True)[0] == folder  # prepared anew: no other tokens are taken for these
    tokens = ensured(eot_in_text=True)[2]
    assert (tokens == tokenizer.eot_token).sum() == 401
    assert tokenizer.decode(tokens) == MARK + path.read_text()
    assert ensure(str(folder), eot_in_text=True) == folder
    with pytest.warns(UserWarning, match="400 times"):
        assert (ensured()[2] == tokenizer.eot_token).sum() == 1
    with pytest.raises(UserError, match="prepared without --eot-in-text; give the text's path"):
        ensure(str(folder), eot_in_text=True)
    for name in ("byte", "char"):
        with pytest.raises(UserError, match=f"needs an end-of-text token, as gpt2 has; {name} tokens have none"):
            prepare.prepare(str(path), name, eot_in_text=True)
        with pytest.warns(UserWarning, match="400 times"):
            prepare.prepare(str(path), name, root=tmp_path)


def test_end_of_text_is_never_cut(tmp_path, vocabulary, monkeypatch):
    """Without white space cuts fall anywhere, but never into the mark; one that begins the text is one token."""
    text = f"{MARK}日本{MARK}{MARK}he" * 500 + "hello" * 50
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    for name, size in (("CHUNK", 17), ("LONGEST_WORD", 20), ("_WINDOW", 10)):
        monkeypatch.setattr(pieces, name, size)
    folder = prepare.prepare(
        str(tmp_path / "x.txt"), "gpt2", root=tmp_path, vocab=vocabulary, eot_in_text=True, val_fraction=0.5
    )
    tokens = np.concatenate([all_tokens(folder, "train"), all_tokens(folder, "val")])
    assert (tokens == load_tokenizer(folder).eot_token).sum() == 1500
    assert load_tokenizer(folder).decode(tokens) == text
    for tokenizer in ("byte", "char"):
        with pytest.warns(UserWarning, match="1,500 times"):
            prepare.prepare(str(tmp_path / "x.txt"), tokenizer, root=tmp_path)


def test_a_text_that_changes_meanwhile(text_file, tmp_path, monkeypatch):
    read = pieces.Piece.read

    def change(self):
        data = read(self)
        text_file.write_bytes(text_file.read_bytes().replace(b"notes", b"pages"))
        return data

    monkeypatch.setattr(pieces.Piece, "read", change)
    with pytest.raises(UserError, match=r"notes.txt: changed while it was read; try again"):
        ensure(str(text_file), root=tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_where_the_tokenizer_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "CHUNK", 100)
    path = _file(tmp_path, b"x" * 250 + b"y" + b"x" * 250)
    with pytest.raises(UserError, match=r"bad.txt: character 'y' .* \(in bytes 200 to 300\)"):
        prepare.prepare(path, CharTokenizer("x"), root=tmp_path)


def test_long_runs_are_cut_in_no_time(tmp_path, monkeypatch):
    """White space or letters without an end: one look at each window, and no step for each byte of it."""
    looks = []
    real = pieces._WORD_END

    class Counting:
        def finditer(self, *arguments):
            for match in real.finditer(*arguments):
                looks.append(match)
                yield match

    monkeypatch.setattr(pieces, "_WORD_END", Counting())
    for name, size in (("CHUNK", 2**16), ("LONGEST_WORD", 2**19)):
        monkeypatch.setattr(pieces, name, size)
    for run in (b" ", b"\n", b"x"):
        path = tmp_path / "run.txt"
        path.write_bytes(b"begin" + run * 2**21 + b"end\n")
        found = list(pieces.groups([pieces.Piece(path, 0, path.stat().st_size)], pieces.Cuts(words=True)))
        assert b"".join(piece.read() for group in found for piece in group) == path.read_bytes()
    assert len(looks) < 100


def _file(tmp_path, content):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    return str(path)


def _fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    return str(tmp_path / "fifo")


def _empty_folder(tmp_path):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "empty" / "nothing.txt").touch()
    return str(tmp_path / "empty")


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (lambda p: "shakespear", {}, r"shakespear: there is no such file or folder, and no data set.*\(stdlib, shake"),
        (lambda p: "", {}, "the name or path of the data is empty"),
        (lambda p: "a\0b", {}, "holds a zero byte, which no path does"),
        (_empty_folder, {}, "empty: holds no file with text in it"),
        (_fifo, {}, "fifo: is neither a file nor a folder"),
        (lambda p: _file(p, b""), {}, "bad.txt: is empty"),
        (lambda p: _file(p, b"x"), {}, "bad.txt: is too short to be divided"),
        (lambda p: _file(p, b"hello"), {"tokenizer": "word"}, r"word: there is no tokenizer.*byte, char, gpt2"),
        (lambda p: _file(p, b"x" * 99 + b"\0y"), {"tokenizer": "char"}, "bad.txt: is binary: byte 99 is 0"),
        (
            lambda p: _file(p, b"x" * 5000 + b"\xff" + b"x" * 5000),
            {"tokenizer": "char"},
            "bad.txt: is not UTF-8 text: byte 5000 is 0xff; --tokenizer byte",
        ),
        (lambda p: _file(p, "é".encode() * 50 + b"\xc3"), {"tokenizer": "char"}, "byte 100 is 0xc3"),
        (lambda p: _file(p, b"hello"), {"tokenizer": CharTokenizer("helz")}, r"bad.txt: character 'o' \(U\+006F\)"),
        (lambda p: _file(p, b"hello"), {"vocab": "folder"}, "--vocab is for gpt2 tokens, but byte tokens"),
        (lambda p: _file(p, b"hello"), {"tokenizer": "gpt2", "vocab": "nowhere"}, "nowhere holds no GPT-2 vocabulary"),
        (lambda p: _file(p, b"hello"), {"from_file": "x"}, "--from is for a data set that is downloaded, and bad is"),
        (lambda p: "stdlib", {"from_file": "x"}, "and stdlib is not"),
        (lambda p: "shakespeare", {"from_file": "nowhere.txt"}, "nowhere.txt: cannot be read: No such file"),
        (lambda p: _file(p, b"hello"), {"val_fraction": 0.0}, "fraction for validation is 0.0, expected a number"),
        (lambda p: _file(p, b"hello"), {"val_fraction": 1.0}, "is 1.0"),
        (lambda p: _file(p, b"hello"), {"val_fraction": float("nan")}, "is nan"),
        (lambda p: _file(p, b"hello"), {"workers": 0}, "number of workers is 0"),
        (lambda p: _file(p, b"hello"), {"shard_size": 0}, "shard size is 0 tokens"),
        (lambda p: _file(p, b"hello"), {"out_dir": SCRIPT}, "prepare_data.py: cannot be saved"),
    ],
)  # fmt: skip
def test_bad_input(tmp_path, monkeypatch, make, options, sentence):
    monkeypatch.setattr(pieces, "CHUNK", 1000)
    with pytest.raises(UserError, match=sentence) as raised:
        prepare.prepare(make(tmp_path), root=tmp_path / "data", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "data").exists() or list((tmp_path / "data").iterdir()) == []


def test_files_that_cannot_be_read(text_file, tmp_path, monkeypatch):
    real = Path.open

    def refuse(self, *arguments, **options):
        if self == text_file:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"notes.txt: cannot be read: Permission denied"):
        prepare.prepare(str(text_file), root=tmp_path / "data")


def test_a_file_that_becomes_shorter(text_file):
    piece = pieces.Piece(text_file, 0, text_file.stat().st_size)
    text_file.write_bytes(b"short")
    with pytest.raises(UserError, match=r"notes.txt: became shorter while it was read"):
        piece.read()


def test_a_copy_that_is_not_the_text(tmp_path):
    for content in (b"", b"x" * 1115394, b"x" * 1200000):
        with pytest.raises(UserError, match=r"bad.txt: is not the expected text of 1115394 bytes"):
            prepare.prepare("shakespeare", root=tmp_path, from_file=_file(tmp_path, content))


def test_download(tmp_path, monkeypatch):
    """Kept and verified; without a network, or with another text at the address, a sentence and no file."""
    text = b"To be, or not to be.\n" * 20
    download = datasets.Download("https://example.org/x", datasets.hashlib.sha256(text).hexdigest(), len(text), "x.txt")
    monkeypatch.setattr(datasets, "TINY_SHAKESPEARE", download)
    answers = []

    def urlopen(url, timeout):
        assert url == download.url and timeout > 0
        answer = answers.pop()
        if isinstance(answer, Exception):
            raise answer
        path = tmp_path / "answer"
        path.write_bytes(answer)
        return path.open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    for answer, sentence in [
        (
            urllib.error.URLError("no route to host"),
            r"example.org/x: cannot be downloaded \(no route to host\); python scripts/prepare_data.py "
            r"--data shakespeare --tokenizer byte --from FILE takes a copy",
        ),
        (TimeoutError("timed out"), r"cannot be downloaded \(timed out\)"),
        (text + b"!", "https://example.org/x: is not the expected text of 420 bytes"),
        (text[:-1], "has 419 bytes"),
    ]:
        answers.append(answer)
        with pytest.raises(UserError, match=sentence):
            ensure("shakespeare", root=tmp_path / "data")
        assert not list((tmp_path / "data").rglob("*.*"))
    answers.append(text)
    folder = ensure("shakespeare", root=tmp_path / "data")
    assert (tmp_path / "data" / "download" / "x.txt").read_bytes() == text
    ensure("shakespeare", "char", tmp_path / "data")  # from the file that was kept
    assert ensure("shakespeare", root=tmp_path / "data") == folder


def test_a_token_file_is_no_text(tmp_path):
    write_tokens(tmp_path / "x_train.bin", [1, 2, 3])
    with pytest.raises(UserError, match=r"x_train.bin: is a file of tokens, expected text; --data takes the"):
        ensure(str(tmp_path / "x_train.bin"), root=tmp_path / "data")
    with pytest.raises(UserError, match="holds tokens, expected text"):
        prepare.prepare(str(tmp_path), root=tmp_path / "data")


def script(*arguments, cwd):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_script(text_file, tmp_path):
    done = script(
        "--data",
        text_file,
        "--tokenizer",
        "byte",
        "--val-fraction",
        "0.2",
        "--shard-size",
        9000,
        "--workers",
        2,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    size = text_file.stat().st_size
    assert f"data/notes-byte: {size * 8 // 10:,} tokens for training and {size - size * 8 // 10:,} for" in done.stdout
    assert "licence    not stated" in done.stdout
    dataset = TokenDataset(tmp_path / "data" / "notes-byte", "train")
    assert len(dataset.meta.train.shards) == 2
    dataset.batch(0, 4, 64, 0)


def test_script_with_bad_input(tmp_path):
    done = script("--data", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nowhere: there is no such file") and done.stderr.count("\n") == 1
    done = script("--shard-size", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: --shard-size: expected an integer of at least 1, got '0'\n"
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []
