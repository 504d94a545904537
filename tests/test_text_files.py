"""What is no text is named, whatever it is called, and never trained on without a word."""

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from pygpt.errors import UserError
from pygpt.text.prepare import ensure, prepare
from pygpt.text.text_files import select_texts

TEXT = "It is a text, and its letters are not only ASCII: Größe, naïve.\n" * 40


def written(function, *arguments):
    file = io.BytesIO()
    function(file, *arguments)
    return file.getvalue()


def archive(file):
    with tarfile.open(fileobj=file, mode="w") as tar:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(TEXT)
        tar.addfile(entry, io.BytesIO(TEXT.encode()))


def zipped(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", TEXT)


def llmc(magic, version=1):
    return struct.pack("<256i", magic, version, 100, *[0] * 253) + bytes(400)


def safetensors():
    header = b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    return struct.pack("<Q", len(header)) + header + bytes(16)


KINDS = {
    "gzip": (gzip.compress(TEXT.encode()), "is a gzip archive, expected text; unpack it first"),
    "bzip2": (bz2.compress(TEXT.encode()), "is a bzip2 archive"),
    "bzip2 of nothing": (bz2.compress(b""), "is a bzip2 archive"),
    "xz": (lzma.compress(TEXT.encode()), "is an xz archive"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(50), "is a zstd archive"),
    "tar": (written(archive), "is a tar archive"),
    "zip": (written(zipped), "is a zip archive"),
    "npz": (written(np.savez, np.arange(9)), "is a zip archive"),
    "npy": (written(np.save, np.arange(9)), "is a numpy array, expected text; extract its text first"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "is a PDF document"),
    "parquet": (b"PAR1\x15\x04" + bytes(50) + b"PAR1", "is a Parquet table"),
    "arrow": (b"ARROW1\0\0" + bytes(50), "is an Arrow table"),
    "arrow stream": (b"\xff\xff\xff\xff\x78\x01\0\0\x10\0\0\0" + bytes(50), "is an Arrow table"),
    **{f"pickle {n}": (pickle.dumps({"a": 1}, n), "is a pickle") for n in (2, 3, 4, 5)},
    "meta.pkl": (pickle.dumps([1], 0), "is a pickle"),
    "safetensors": (safetensors(), "is a safetensors file, expected text"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "is an image"),
    "jpeg": (b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(50), "is an image"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer.*git lfs"),
    "tokens": (llmc(20240520), "is a file of tokens, expected text; --data takes the folder"),
    "llama": (llmc(20240801, 7), "Llama 3 tokens.*32 bits.*prepare the text that it was made from"),
    "hellaswag": (llmc(20240522), "is an evaluation file of llm.c"),
    "model": (llmc(20240326, 3), "is a model of llm.c"),
    "train.bin": (np.arange(500, dtype="<u2").tobytes(), "is a file of raw tokens without a header, such as nanoGPT's"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_no_text(tmp_path, name):
    """By its content alone, but for those named as what they are."""
    content, sentence = KINDS[name]
    path = tmp_path / (name if "." in name else "some.txt")
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as raised:
        prepare(str(path), root=tmp_path / "data")
    assert str(raised.value).startswith(f"{path}: ")


def test_in_a_folder_it_is_left_out(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text(TEXT)
    for number in range(7):
        (texts / f"picture {number}").write_bytes(KINDS["png"][0])
    with pytest.warns(UserWarning, match=r"^left out: \S*picture 0 \(an image\), .*picture 4 \(an image\), 2 more$"):
        folder = prepare(str(texts), "char", root=tmp_path)
    assert "\x89" not in (folder / "pygpt_tokenizer.json").read_text()
    (texts / "a.txt").unlink()
    with pytest.raises(UserError, match=r"texts: holds no file with text in it, but .*picture 0 \(an image\)"):
        prepare(str(texts), root=tmp_path)


def test_what_looks_alike_is_text(tmp_path):
    for text in ("BZh9 is a word", "PAR1S\n", "BMW, " * 20, "GIF8 bits", "ID3 tags", TEXT, "ustar", "{"):
        path = tmp_path / "text.gz"
        path.write_text(text)
        assert select_texts([path], "") == (path,)


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(tmp_path, tokenizer, encoding):
    """With a mark or without one; the command in the sentence is right."""
    path = tmp_path / "a note.txt"
    path.write_text(TEXT, encoding=encoding)
    for data in (path, tmp_path):
        with pytest.raises(
            UserError, match=r"a note.txt: is UTF-(16|32)(LE|BE)? text, expected UTF-8; to conv"
        ) as raised:
            ensure(str(data), tokenizer, tmp_path / "data")
    command = str(raised.value).split(": ")[-1]
    name = command.split("-f ")[1].split(" ")[0]
    assert path.read_bytes().decode(name) == TEXT
    assert command.endswith(f"-t UTF-8 '{path}' > NEWFILE")


def test_numbers_are_no_utf_16(tmp_path):
    """16-bit numbers below 256 look like UTF-16, but for those that are no characters."""
    path = tmp_path / "numbers"
    path.write_bytes(np.random.default_rng(1).integers(0, 65, 3000).astype("<u2").tobytes())
    with pytest.warns(UserWarning, match="numbers: not text, but taken byte by byte"):
        prepare(str(path), root=tmp_path / "data")
    with pytest.raises(UserError, match=r"numbers: is binary: byte \d is 0; --tokenizer byte"):
        prepare(str(path), "char", root=tmp_path / "data")


def test_what_nanogpt_prepared(tmp_path):
    folder = tmp_path / "shakespeare_char"
    folder.mkdir()
    tokens = np.random.default_rng(0).integers(0, 65, 5000).astype(np.uint16)
    tokens[:4600].tofile(folder / "train.bin")
    tokens[4600:].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(b"\x80\x04}.")
    sentence = r"train.bin: is a file of raw tokens without a header, such as nanoGPT's, expected .*; prepare the text"
    for data in (folder, folder / "train.bin"):
        for made in (ensure, prepare):
            with pytest.raises(UserError, match=sentence):
                made(str(data), root=tmp_path / "data")
    with pytest.raises(UserError, match=r"meta.pkl: is a pickle, expected text"):
        ensure(str(folder / "meta.pkl"), root=tmp_path / "data")
    assert not (tmp_path / "data").exists()
