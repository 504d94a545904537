"""From text to a folder of token files, in a stream: no text needs to fit into memory.

The text is cut into pieces of a few megabytes, the pieces are read and encoded by several threads, and their tokens are
written in the order of the text. The files are the same whatever the number of threads.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pygpt.command.programs import call
from pygpt.errors import UserError
from pygpt.files.atomic import write_files
from pygpt.text import meta
from pygpt.text.bpe_training import CUTS, train_on
from pygpt.text.corpora import NAMES as NAMED_CORPORA
from pygpt.text.corpora import TINY_SHAKESPEARE, Corpus, fetch, find_corpus
from pygpt.text.encoding import Encoder, characters, cuts_for, progress
from pygpt.text.pieces import Piece, split_files
from pygpt.text.text_files import select_texts
from pygpt.text.token_file import LARGEST_VOCAB, ShardWriter
from pygpt.text.tokenizer import (
    NAMES,
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    Tokens,
    holds_tokenizer,
    load_tokenizer,
)

VAL_FRACTION = 0.1
VOCAB_SIZE = 4096  # of "bpe", at most
CHOICES = ("bpe", *NAMES)
DEFAULT = "bpe"  # of the programs
SHARD_SIZE = 10**8  # tokens

_LLMC_VAL_TOKENS = 32768


def ensure(
    data: str,
    tokenizer: str | Tokenizer | None = None,
    root: str | Path = "data",
    *,
    default: str = "byte",
    vocab: str | Path | None = None,
    from_file: str | Path | None = None,
    eot_in_text: bool = False,
) -> Path:
    """The folder with the tokens of a data set, prepared in `root` unless it has been.

    data: the name of a corpus, a file or folder of text, or a folder of token files, which is returned as it is.
    tokenizer: one of CHOICES, or one that exists, such as a model's; None: that of the token files, or `default`.
    vocab, from_file, eot_in_text: as for prepare().
    Raises UserError as prepare() does, and when the token files were made in another way than is asked for.
    """
    if meta.is_token_folder(data):
        found = meta.read_meta(data)
        if tokenizer is not None and kind_of(tokenizer) != found.tokenizer.name:
            raise UserError(f"{data}: holds {found.tokenizer.name} tokens, but {_name(tokenizer)} tokens are asked for")
        if eot_in_text and not found.eot_in_text:
            raise UserError(f"{data}: holds tokens that were prepared without --eot-in-text; give the text's path")
        return Path(data)
    tokenizer = tokenizer or default
    if vocab is not None:
        tokenizer = _open_tokenizer(tokenizer, vocab) or tokenizer
    corpus = find_corpus(data)
    folder = _default_folder(corpus, tokenizer, Path(root))
    own = _default_folder(corpus, "bpe", Path(root))  # of which a model's tokenizer may be
    if isinstance(tokenizer, Tokenizer) and _is_prepared(own, corpus, tokenizer, eot_in_text):
        return own
    if not _is_prepared(folder, corpus, tokenizer, eot_in_text):
        prepare(data, tokenizer, folder, root=root, from_file=from_file, eot_in_text=eot_in_text)
    return folder


def prepare(
    data: str,
    tokenizer: str | Tokenizer = "byte",
    out_dir: str | Path | None = None,
    *,
    root: str | Path = "data",
    vocab: str | Path | None = None,
    from_file: str | Path | None = None,
    eot_in_text: bool = False,
    val_fraction: float | None = None,
    shard_size: int = SHARD_SIZE,
    workers: int | None = None,
) -> Path:
    """Write the tokens of a text, with meta.json and the tokenizer, into a folder: everything or nothing.

    data: the name of a corpus, or a file or folder of text.
    tokenizer: "bpe" (VOCAB_SIZE tokens of byte pair encoding, trained on the text's part for training, or as many as it
    gives), "byte", "char" (its vocabulary is what the text holds), "gpt2", a folder that holds one, or one itself.
    out_dir: the folder, by default ROOT/NAME-TOKENIZER; token files that it holds are replaced.
    root: also where downloads are kept.
    vocab: a folder with GPT-2's vocabulary; from_file: a copy of what would be downloaded.
    eot_in_text: <|endoftext|> in the text becomes the end-of-text token; a warning tells of it when it stays text.
    val_fraction: how much of the text is for validation, by default a tenth.
    shard_size: most tokens in a file; workers: threads, by default one for each processor.
    Returns the folder; a warning names what was left out. Raises UserError when something is missing, unreadable,
    empty, not text or changing, when options contradict each other, and when the network or the space on the device do
    not suffice.
    """
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise UserError(f"the fraction for validation is {val_fraction}, expected a number between 0 and 1")
    if workers is not None and workers < 1:
        raise UserError(f"the number of workers is {workers}, expected at least 1")
    corpus = find_corpus(data)
    tiny_shakespeare = corpus.download == TINY_SHAKESPEARE and _name(tokenizer) == "gpt2"
    if tiny_shakespeare and val_fraction is not None:
        raise UserError(
            f"tiny Shakespeare in GPT-2 tokens is divided as in llm.c, {_LLMC_VAL_TOKENS} tokens for validation, but "
            f"a fraction of {val_fraction} was asked for"
        )
    known = _open_tokenizer(tokenizer, vocab)
    kind = _name(known or tokenizer)
    if eot_in_text and tokenizer != "bpe" and (known is None or known.eot_token is None):
        raise UserError(f"--eot-in-text needs an end-of-text token, as gpt2 has; {kind} tokens have none")
    folder = _default_folder(corpus, tokenizer, Path(root)) if out_dir is None else Path(out_dir)
    advice = f"{' '.join(call('prepare'))} --data {corpus.name} --tokenizer {_name(tokenizer)} --from FILE takes a copy"
    files = fetch(corpus, Path(root) / "download", from_file, advice)
    files = select_texts(files, corpus.source, corpus.left_out, any_bytes=kind == "byte")
    cuts = CUTS if tokenizer == "bpe" else cuts_for(known)
    parts = split_files(files, VAL_FRACTION if val_fraction is None else val_fraction, cuts)
    workers = workers or os.cpu_count() or 1
    if known is not None:
        chosen = known
    else:
        chosen = _bpe_tokenizer(corpus, parts[0]) if tokenizer == "bpe" else _char_tokenizer(corpus, parts, workers)
    if chosen.vocab_size > LARGEST_VOCAB:
        raise UserError(f"a vocabulary of {chosen.vocab_size} tokens is too large for token files ({LARGEST_VOCAB})")

    encoder = Encoder(chosen, eot_in_text, workers)
    size = sum(piece.size for part in parts for piece in part)
    before = _shard_files(folder)
    needed = 2 * size if kind == "byte" else 0  # not known for the others
    with write_files(folder, needed) as saving, progress(f"{corpus.name}: {kind} tokens", size) as bar:
        if tiny_shakespeare:
            train, val = _llmc_shakespeare(chosen, files[0])
        else:
            train, val = (encoder.encode(part, bar) for part in parts)
        meta.Meta(
            name=corpus.name,
            source=corpus.source,
            source_digest=corpus.digest,
            licence=corpus.licence,
            tokenizer=meta.TokenizerMeta(chosen.name, chosen.vocab_size, chosen.fingerprint),
            train=_write_split(ShardWriter(saving, f"{corpus.name}_train", shard_size), train, chosen, corpus),
            val=_write_split(ShardWriter(saving, f"{corpus.name}_val", shard_size), val, chosen, corpus),
            eot_in_text=eot_in_text,
        ).save(saving)
        chosen.save(saving)
        if find_corpus(data).digest != corpus.digest:
            raise UserError(f"{corpus.source}: changed while it was read; try again when it stays as it is")
    if encoder.words_left:
        warnings.warn(
            f"{corpus.source}: holds {cuts_for(chosen).mark.decode()} {encoder.words_left:,} times, which stays text; "
            f"with --eot-in-text it becomes the end-of-text token of gpt2 tokens",
            stacklevel=2,
        )
    for name in before - _shard_files(folder):
        (folder / name).unlink(missing_ok=True)
    return folder


def _name(tokenizer: str | Tokenizer) -> str:
    return tokenizer if isinstance(tokenizer, str) else tokenizer.name


def kind_of(tokenizer: str | Tokenizer) -> str:
    """The name of the tokenizer that this one is, or will be."""
    return GPT2Tokenizer.name if tokenizer == "bpe" else _name(tokenizer)


def _open_tokenizer(tokenizer: str | Tokenizer, vocab: str | Path | None) -> Tokenizer | None:
    """The tokenizer of this name, or in this folder; None for "bpe" and "char", which need the text."""
    if vocab is not None and tokenizer != "gpt2":
        raise UserError(f"--vocab is for gpt2 tokens, but {_name(tokenizer)} tokens are asked for")
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if tokenizer not in CHOICES:
        if not holds_tokenizer(tokenizer):
            names = ", ".join(CHOICES)
            raise UserError(f"{tokenizer}: there is no tokenizer of this name ({names}), and no folder that holds one")
        return load_tokenizer(tokenizer)
    if tokenizer == "byte":
        return ByteTokenizer()
    if tokenizer == "gpt2":
        return GPT2Tokenizer.from_tiktoken() if vocab is None else GPT2Tokenizer.from_folder(vocab)
    return None


def _default_folder(corpus: Corpus, tokenizer: str | Tokenizer, root: Path) -> Path:
    """ROOT/NAME-TOKENIZER; with a digest in the name where this holds another text that has the same name."""
    label = _name(tokenizer) if _name(tokenizer) in CHOICES else Path(_name(tokenizer)).resolve().name
    folder = root / f"{corpus.name}-{label}"
    found = _try_meta(folder)
    if corpus.name in NAMED_CORPORA or found is None or found.source == corpus.source:
        return folder
    digest = hashlib.sha256(corpus.source.encode("utf-8", "surrogateescape")).hexdigest()
    return root / f"{corpus.name}-{digest[:8]}-{label}"


def _is_prepared(folder: Path, corpus: Corpus, tokenizer: str | Tokenizer, eot_in_text: bool) -> bool:
    found = _try_meta(folder)
    if found is None or found.source_digest != corpus.digest or not meta.is_complete(folder, found):
        return False
    if found.eot_in_text != eot_in_text:
        return False
    if isinstance(tokenizer, Tokenizer):
        return found.tokenizer.fingerprint == tokenizer.fingerprint
    return found.tokenizer.name == kind_of(tokenizer)


def _try_meta(folder: Path) -> meta.Meta | None:
    try:
        return meta.read_meta(folder)
    except UserError:
        return None


def _shard_files(folder: Path) -> set[str]:
    """The token files that an earlier preparation left in a folder."""
    found = _try_meta(folder) if (folder / meta.FILE_NAME).is_file() else None
    return {shard.file for split in (found.train, found.val) for shard in split.shards} if found else set()


def _bpe_tokenizer(corpus: Corpus, pieces: Sequence[Piece]) -> GPT2Tokenizer:
    """The tokenizer of a vocabulary trained on the text."""
    with progress(f"{corpus.name}: vocabulary", sum(piece.size for piece in pieces)) as bar:
        return GPT2Tokenizer(train_on(pieces, VOCAB_SIZE, bar))


def _char_tokenizer(corpus: Corpus, parts: Iterable[Sequence[Piece]], workers: int) -> CharTokenizer:
    """The tokenizer with all characters of the text."""
    pieces = [piece for part in parts for piece in part]
    with progress(f"{corpus.name}: characters", sum(piece.size for piece in pieces)) as bar:
        return CharTokenizer(characters(pieces, workers, bar))


def _llmc_shakespeare(tokenizer: Tokenizer, path: Path) -> Sequence[Iterable[Tokens]]:
    """Tiny Shakespeare as in llm.c: each section, to the end of its blank line, after an end-of-text token."""
    text = Piece(path, 0, path.stat().st_size).read_text()
    eot = np.array([tokenizer.eot_token], np.int32)
    sections = [section + "\n\n" for section in text.split("\n\n")]
    sections[-1] = sections[-1].removesuffix("\n\n")
    tokens = np.concatenate([part for section in sections for part in (eot, tokenizer.encode(section))])
    return [tokens[_LLMC_VAL_TOKENS:]], [tokens[:_LLMC_VAL_TOKENS]]


def _write_split(writer: ShardWriter, stream: Iterable[Tokens], tokenizer: Tokenizer, corpus: Corpus) -> meta.Split:
    size, lengths = 0, tokenizer.byte_lengths()
    with writer:
        for tokens in stream:
            writer.write(tokens)
            size += int(lengths[tokens].sum())
    if not writer.shards:
        raise UserError(f"{corpus.source}: is too short to be divided into a part for training and one for validation")
    return meta.Split(tuple(meta.Shard(name, count) for name, count in writer.shards), writer.sha256, size)
