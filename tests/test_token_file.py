"""Token files: what is written is read, and no header can lie."""

import struct
import tracemalloc

import numpy as np
import pytest

from pygpt.errors import UserError
from pygpt.text.token_file import ShardWriter, read_tokens, write_tokens


def token_file(path, tokens=(1, 2, 3, 65535), magic=20240520, version=1, count=None, bytes_more=b""):
    header = struct.pack("<256i", magic, version, len(tokens) if count is None else count, *[0] * 253)
    path.write_bytes(header + struct.pack(f"<{len(tokens)}H", *tokens) + bytes_more)
    return path


def test_layout(tmp_path):
    write_tokens(tmp_path / "a.bin", [1, 2, 3, 65535])
    assert (tmp_path / "a.bin").read_bytes() == token_file(tmp_path / "b.bin").read_bytes()
    tokens = read_tokens(tmp_path / "b.bin")
    assert tokens.tolist() == [1, 2, 3, 65535] and tokens.dtype == np.uint16
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.bin", "b.bin"]


@pytest.mark.parametrize(
    ("lie", "sentence"),
    [
        ({"magic": 20240521}, "starts with 20240521, expected 20240520"),
        ({"magic": -1}, "starts with -1"),
        ({"version": 2}, "version 2 of the token format, expected 1"),
        ({"version": 0}, "version 0"),
        ({"count": 0}, "0 tokens, expected at least 1"),
        ({"count": -4}, "-4 tokens, expected at least 1"),
        ({"count": 5}, "5 tokens, which take 1034 bytes, but the file has 1032"),
        ({"count": 3}, "3 tokens, which take 1030 bytes, but the file has 1032"),
        ({"count": 2**31 - 1}, "2147483647 tokens, which take 4294968318 bytes"),
        ({"tokens": ()}, "0 tokens"),
        ({"bytes_more": b"x"}, "4 tokens, which take 1032 bytes, but the file has 1033"),
    ],
)
def test_headers_that_lie(tmp_path, lie, sentence):
    path = token_file(tmp_path / "x.bin", **lie)
    with pytest.raises(UserError, match=sentence) as raised:
        read_tokens(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 1031])
def test_cut_files(tmp_path, size):
    path = token_file(tmp_path / "x.bin")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"x\.bin"):
        read_tokens(path)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_tokens(tmp_path / "x.bin")
    with pytest.raises(UserError, match="directory"):
        read_tokens(tmp_path)


def test_mutations(tmp_path):
    """Whatever happens to a file: a sentence or its true tokens, and no memory taken on a header's word."""
    rng = np.random.default_rng(1)
    path = tmp_path / "x.bin"
    whole = token_file(path, tuple(range(20))).read_bytes()
    outcomes = {"read": 0, "refused": 0}
    tracemalloc.start()
    for _ in range(3000):
        mutant = bytearray(whole)
        kind = rng.integers(4)
        if kind == 0:  # bits of the three fields, or of anything
            for _ in range(rng.integers(1, 4)):
                mutant[rng.integers(12 if rng.random() < 0.5 else len(mutant))] ^= 1 << rng.integers(8)
        elif kind == 1:  # a field replaced
            field = rng.integers(3)
            extreme = [0, 1, -1, 2**31 - 1, -(2**31), 19, 21]
            struct.pack_into("<i", mutant, 4 * int(field), extreme[rng.integers(len(extreme))])
        elif kind == 2:
            del mutant[rng.integers(len(mutant)) :]
        else:
            mutant += rng.bytes(rng.integers(1, 50))
        path.unlink()  # some file systems flush a file that is overwritten
        path.write_bytes(mutant)
        try:
            tokens = read_tokens(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            assert tokens.tobytes() == bytes(mutant[1024:]) and mutant[:8] == whole[:8]
            assert len(tokens) == struct.unpack_from("<i", mutant, 8)[0]
            outcomes["read"] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert min(outcomes.values()) > 100
    assert peak < 2**20


def test_a_large_file_is_mapped(tmp_path):
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.write(struct.pack("<256i", 20240520, 1, 10**8, *[0] * 253))
        file.truncate(1024 + 2 * 10**8)  # takes no space on the disk
    tracemalloc.start()
    tokens = read_tokens(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(tokens) == 10**8 and tokens[-1] == 0
    assert peak < 2**20


@pytest.mark.parametrize("shard_size", [1, 7, 10, 1000])
def test_shards(tmp_path, shard_size):
    tokens = np.arange(100, dtype=np.int32) * 600
    with ShardWriter(tmp_path, "x_train", shard_size) as writer:
        for part in np.split(tokens, [0, 3, 4, 30, 65]):
            writer.write(part)
    names = [f"x_train_{i:06d}.bin" for i in range(-(-100 // shard_size))]
    assert [name for name, _ in writer.shards] == names == sorted(path.name for path in tmp_path.iterdir())
    parts = [read_tokens(tmp_path / name) for name in names]
    assert [len(part) for part in parts] == [count for _, count in writer.shards]
    assert max(len(part) for part in parts) <= shard_size
    assert np.concatenate(parts).tolist() == tokens.tolist()
    with ShardWriter(tmp_path, "y", 50) as other:
        other.write(tokens)
    assert writer.sha256 == other.sha256


def test_nothing_written(tmp_path):
    with ShardWriter(tmp_path, "x_train") as writer:
        writer.write([])
    assert writer.shards == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("token", [-1, 65536])
def test_tokens_that_do_not_fit(tmp_path, token):
    with pytest.raises(UserError, match=f"token {token} does not fit"):
        write_tokens(tmp_path / "x.bin", [0, token, 5])
    with pytest.raises(UserError, match=f"token {token} does not fit"), ShardWriter(tmp_path, "x") as writer:
        writer.write(np.array([0, token, 5]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, -1, 2**31])
def test_wrong_shard_size(tmp_path, size):
    with pytest.raises(UserError, match=f"shard size is {size} tokens"):
        ShardWriter(tmp_path, "x", size)


def test_no_tokens_make_no_file(tmp_path):
    with pytest.raises(UserError, match="0 tokens do not make"):
        write_tokens(tmp_path / "x.bin", [])
