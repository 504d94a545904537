"""Batches: random windows for training, windows in order for validation, and folders that are damaged."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from pygpt.errors import UserError
from pygpt.text.batches import TokenDataset
from pygpt.text.meta import Meta, Shard, Split, TokenizerMeta
from pygpt.text.token_file import ShardWriter, write_tokens
from pygpt.text.tokenizer import ByteTokenizer, CharTokenizer


def make_folder(folder, train, val=(1, 2, 3), shard_size=1000, vocab_size=256):
    folder.mkdir(exist_ok=True)
    splits = []
    for name, tokens in (("train", train), ("val", val)):
        with ShardWriter(folder, f"x_{name}", shard_size) as writer:
            writer.write(np.array(tokens))
        splits.append(Split(tuple(Shard(*shard) for shard in writer.shards), writer.sha256))
    tokenizer = TokenizerMeta("byte", vocab_size, ByteTokenizer().fingerprint)
    Meta("x", "somewhere", "digest", "none", tokenizer, *splits).save(folder)
    return folder


@pytest.fixture
def dataset(tmp_path):
    """The tokens 0 ... 199 in shards of 7."""
    return TokenDataset(make_folder(tmp_path / "x", range(200), shard_size=7), "train")


def test_a_batch(dataset):
    tokens, targets = dataset.batch(first=36, batch_size=12, seq_len=5, seed=1)
    assert tokens.shape == targets.shape == (12, 5)
    assert tokens.dtype == targets.dtype == np.int32
    assert tokens.flags.c_contiguous and targets.flags.c_contiguous
    assert (tokens == tokens[:, :1] + np.arange(5)).all()  # windows of consecutive tokens
    assert (targets == tokens + 1).all()


def test_a_batch_is_a_function_of_seed_and_number(dataset, tmp_path):
    def draw(data=dataset, first=12, batch_size=4, seed=1):
        return data.batch(first, batch_size, 5, seed)[0].tolist()

    assert draw() == draw()
    assert draw() != draw(first=16) and draw() != draw(seed=2)
    assert draw(seed=1) != draw(seed=1 + 2**32)
    # one shard or many
    whole = TokenDataset(make_folder(tmp_path / "whole", range(200)), "train")
    assert draw() == draw(whole)
    # the same windows in batches of another size
    assert draw(first=0, batch_size=12) == draw(first=0, batch_size=5) + draw(first=5, batch_size=7)
    # what a resumed run must find: a change of these numbers changes the order of every run's data
    assert dataset.batch(6 * 2**33, 6, 5, seed=2**63)[0][:, 0].tolist() == [128, 110, 153, 89, 88, 21]


def test_windows_begin_at_every_place(tmp_path):
    dataset = TokenDataset(make_folder(tmp_path / "x", range(15)), "train")
    starts = dataset.batch(0, 2000, 10, seed=0)[0][:, 0]
    counts = np.bincount(starts)
    assert len(counts) == 5  # 0 ... 4: the last target of the last window is the last token
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square < 23.5  # 1 in 10,000 with 4 degrees of freedom


@pytest.mark.parametrize("seq_len", [1, 6, 7, 8, 30, 199])
def test_windows_over_shards(dataset, seq_len):
    tokens, targets = dataset.batch(0, 100, seq_len, seed=5)
    assert (tokens == tokens[:, :1] + np.arange(seq_len)).all() and (targets == tokens + 1).all()


def test_validation_covers_everything_in_order(dataset):
    batches = list(dataset.validation_batches(batch_size=4, seq_len=9))
    assert [tokens.shape for tokens, _ in batches] == [(4, 9)] * 5 + [(2, 9)]  # 199 targets: 22 windows of 9
    assert np.concatenate([tokens.ravel() for tokens, _ in batches]).tolist() == list(range(198))
    assert np.concatenate([targets.ravel() for _, targets in batches]).tolist() == list(range(1, 199))


def test_validation_of_a_part_is_spread_out(dataset):
    batches = list(dataset.validation_batches(batch_size=2, seq_len=9, max_batches=3))
    assert [tokens.shape for tokens, _ in batches] == [(2, 9)] * 3
    starts = np.concatenate([tokens[:, 0] for tokens, _ in batches])
    assert starts.tolist() == [0, 27, 63, 99, 126, 162]
    everything = list(dataset.validation_batches(4, 9))
    enough = list(dataset.validation_batches(4, 9, max_batches=99))
    assert all((a[0] == b[0]).all() for a, b in zip(everything, enough, strict=True))


def test_too_short(tmp_path):
    folder = make_folder(tmp_path / "x", range(64), val=range(65))
    train, val = TokenDataset(folder, "train"), TokenDataset(folder, "val")
    assert len(train) == 64 and len(val) == 65
    sentence = r"x: has 64 train tokens, but one window takes 65 \(a sequence length of 64"
    with pytest.raises(UserError, match=sentence):
        train.batch(0, 1, 64, 0)
    with pytest.raises(UserError, match=sentence):
        next(train.validation_batches(1, 64))
    assert val.batch(0, 3, 64, 0)[1][:, -1].tolist() == [64] * 3
    assert len(list(val.validation_batches(3, 64))) == 1
    with pytest.raises(UserError, match="sequence length is 0"):
        val.batch(0, 1, 0, 0)
    with pytest.raises(UserError, match=r"the token after it\): take a sequence length of at most 63$"):
        train.batch(0, 1, 64, 0)
    single = TokenDataset(make_folder(tmp_path / "single", [1]), "train")
    with pytest.raises(UserError, match=r"the token after it\): take a longer text$"):
        single.batch(0, 1, 1, 0)


def test_tokens_outside_the_vocabulary(tmp_path):
    tokens = np.arange(40) % 10
    tokens[33] = 10
    dataset = TokenDataset(make_folder(tmp_path / "x", tokens, shard_size=20, vocab_size=10), "train")
    sentence = r"x_train_000001.bin: token 13 is 10, outside the vocabulary of 10 byte tokens"
    with pytest.raises(UserError, match=sentence):
        for step in range(100):
            dataset.batch(step, 1, 4, seed=0)
    with pytest.raises(UserError, match=sentence):
        list(dataset.validation_batches(2, 4))


def test_the_model_has_another_tokenizer(dataset, tmp_path):
    dataset.check_tokenizer(ByteTokenizer())
    with pytest.raises(UserError, match="a byte tokenizer of 256 tokens, but the model has a char tokenizer of 2"):
        dataset.check_tokenizer(CharTokenizer("ab"))
    ours = CharTokenizer("ab")
    meta = replace(dataset.meta, tokenizer=TokenizerMeta("char", 2, ours.fingerprint))
    meta.save(dataset.folder)
    other = TokenDataset(dataset.folder, "train")
    other.check_tokenizer(ours)
    with pytest.raises(UserError, match="another vocabulary than the model's, though both are char"):
        other.check_tokenizer(CharTokenizer("ac"))


def test_files_of_llmc(tmp_path):
    """Without meta.json the names tell the split, and the tokens are GPT-2's."""
    write_tokens(tmp_path / "fineweb_train_000001.bin", range(10))
    write_tokens(tmp_path / "fineweb_train_000002.bin", range(10, 15))
    write_tokens(tmp_path / "tiny_val.bin", [50256, 1, 2])
    train, val = TokenDataset(tmp_path, "train"), TokenDataset(tmp_path, "val")
    assert (len(train), len(val), train.vocab_size) == (15, 3, 50257)
    assert train.batch(0, 1, 14, 0)[0].tolist() == [list(range(14))]
    with pytest.raises(UserError, match="was made with a gpt2 tokenizer"):
        train.check_tokenizer(ByteTokenizer())
    (tmp_path / "tiny_val.bin").unlink()
    with pytest.raises(UserError, match="holds no val tokens"):
        TokenDataset(tmp_path, "val")


def test_no_token_files(tmp_path):
    with pytest.raises(UserError, match="holds no token files"):
        TokenDataset(tmp_path, "train")
    with pytest.raises(UserError, match="No such file"):
        TokenDataset(tmp_path / "missing", "train")


def _shard(**changes):
    def change(values):
        values["train"]["shards"][0].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: v.pop("name"), "meta.json: name is None, expected a text"),
        (lambda v: v.update(name=3), "name is 3, expected a text"),
        (lambda v: v.update(tokenizer=[]), r"tokenizer is \[\], expected an object"),
        (lambda v: v["tokenizer"].update(vocab_size=0), "vocab_size is 0, expected an integer from 1 to 65536"),
        (lambda v: v["tokenizer"].update(vocab_size=True), "vocab_size is True"),
        (lambda v: v["tokenizer"].update(vocab_size=70000), "vocab_size is 70000"),
        (lambda v: v.update(train=None), "train is None, expected an object"),
        (lambda v: v["train"].update(shards={}), "shards is {}, expected a list"),
        (lambda v: v["train"].update(shards=[3]), "file is None"),
        (lambda v: v["train"].update(shards=[]), "holds no train tokens"),
        (lambda v: v["train"].update(bytes=-3), "bytes is -3, expected an integer from 1"),
        (lambda v: v["train"].update(bytes="12"), "bytes is 12, expected an integer from 1"),
        (lambda v: v.update(eot_in_text=1), "eot_in_text is 1, expected true or false"),
        (_shard(file="../x_train_000000.bin"), "is not a file's name in this folder"),
        (_shard(file="/etc/passwd"), "is not a file's name in this folder"),
        (_shard(file=""), "is not a file's name in this folder"),
        (_shard(file="a\0b"), "is not a file's name in this folder"),
        (_shard(file="missing.bin"), "missing.bin: cannot be read: No such file"),
        (_shard(file=".."), "is not a file's name"),
        (_shard(tokens=-7), "tokens is -7, expected an integer from 1"),
        (_shard(tokens=8), "holds 7 tokens, expected the 8 that meta.json tells of"),
    ],
)
def test_wrong_descriptions(dataset, change, sentence):
    values = json.loads((dataset.folder / "meta.json").read_text())
    assert values == json.loads(json.dumps(asdict(dataset.meta)))
    change(values)
    (dataset.folder / "meta.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=sentence):
        TokenDataset(dataset.folder, "train")


def test_a_description_of_an_older_version(dataset):
    values = json.loads((dataset.folder / "meta.json").read_text())
    del values["eot_in_text"], values["train"]["bytes"], values["val"]["bytes"]
    (dataset.folder / "meta.json").write_text(json.dumps(values))
    assert TokenDataset(dataset.folder, "train").meta == dataset.meta


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[]", "holds a JSON list, expected an object"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"{}" + b" " * 2**24, "is longer than 16777216 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
    ],
    ids=range(7),
)
def test_descriptions_that_are_no_json(dataset, text, sentence):
    (dataset.folder / "meta.json").write_bytes(text)
    with pytest.raises(UserError, match=rf"meta\.json: {sentence}"):
        TokenDataset(dataset.folder, "train")


def test_a_shard_is_missing_or_cut(dataset):
    path = dataset.folder / dataset.meta.train.shards[3].file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"x_train_000003.bin: the header tells of 7 tokens"):
        TokenDataset(dataset.folder, "train")
    path.unlink()
    with pytest.raises(UserError, match=r"x_train_000003.bin: cannot be read: No such file"):
        TokenDataset(dataset.folder, "train")
