"""A vocabulary of one's own: byte pair encoding trained on a text by the library `tokenizers`.

It is numbered as GPT-2's is: the bytes, the merged tokens in their order, <|endoftext|>. What is trained:
pygpt/reference/bpe.py.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pygpt.errors import UserError
from pygpt.files.atomic import write_files
from pygpt.reference.bpe import BYTES, LEAST_COUNT
from pygpt.text.bpe import END_OF_TEXT, Vocabulary
from pygpt.text.corpora import fetch, find_corpus
from pygpt.text.encoding import Bar, progress
from pygpt.text.pieces import Cuts, Piece, groups, split_files
from pygpt.text.prepare import VAL_FRACTION
from pygpt.text.text_files import select_texts
from pygpt.text.token_file import LARGEST_VOCAB
from pygpt.text.tokenizer import GPT2Tokenizer
from pygpt.text.vocabulary_files import read_vocabulary

SMALLEST_VOCAB = len(BYTES) + 1
_CUTS = Cuts(words=True, mark=END_OF_TEXT.encode())
_LONGEST_RUN = 2**12  # characters; the library's time grows with the square of a word's length
_LONG_RUN = re.compile(rf"(?<!\S)\S{{{_LONGEST_RUN},}}|(?<!\s)\s{{{_LONGEST_RUN},}}")


def train_vocabulary(data: str, vocab_size: int, out_dir: str | Path | None = None, root: str | Path = "data") -> Path:
    """Write the files of a vocabulary of `vocab_size` tokens, trained on a text, into a new folder.

    data: the name of a corpus, or a file or folder of text; trained on is what prepare() takes for training.
    out_dir: the folder, by default ROOT/bpe-NAME-SIZE.  root: also where downloads are kept.
    Returns the folder.  Raises UserError when `tokenizers` is not installed, the size is out of range or more than the
    text gives, the folder exists, or the text is missing, unreadable, empty or not text.
    """
    if not SMALLEST_VOCAB <= vocab_size <= LARGEST_VOCAB:
        raise UserError(
            f"the size of the vocabulary is {vocab_size}, expected {SMALLEST_VOCAB} (the bytes and {END_OF_TEXT}) to "
            f"{LARGEST_VOCAB} (what a token file can hold)"
        )
    tokenizers = _import_tokenizers()
    corpus = find_corpus(data)
    folder = Path(root) / f"bpe-{corpus.name}-{vocab_size}" if out_dir is None else Path(out_dir)
    if folder.exists():
        raise UserError(f"{folder}: exists, expected the name of a new folder (--out)")
    files = fetch(corpus, Path(root) / "download", None, "the path of a copy can be given in place of the name")
    files = select_texts(files, corpus.source, corpus.left_out)
    pieces, _ = split_files(files, VAL_FRACTION, _CUTS)
    with progress(f"{corpus.name}: words", sum(piece.size for piece in pieces)) as bar:
        vocabulary = _train(tokenizers, _texts(pieces, bar), vocab_size)
    if (found := len(vocabulary.ranks) + 1) < vocab_size:
        raise UserError(
            f"{corpus.source}: gives a vocabulary of {found} tokens, expected {vocab_size}: no more pairs occur "
            f"{LEAST_COUNT} times; take --vocab-size {found} or a longer text"
        )
    with write_files(folder) as saving:
        GPT2Tokenizer(vocabulary).save(saving)
    return folder


def _train(tokenizers: Any, texts: Iterable[str], vocab_size: int) -> Vocabulary:
    """Of at most `vocab_size` tokens; no word of the texts spans two of them."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # without <|endoftext|>, which would be the first
        min_frequency=LEAST_COUNT,
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)  # GPT-2's pattern
    tokenizer.train_from_iterator(texts, trainer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.model.save(folder)
        vocabulary = read_vocabulary(Path(folder))
    end = {END_OF_TEXT: len(vocabulary.ranks)}
    return replace(vocabulary, special_tokens=end, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def _texts(pieces: Iterable[Piece], bar: Bar) -> Iterator[str]:
    """Without the words for the end-of-text token, which are no text to learn from."""
    for group in groups(pieces, _CUTS):
        for piece in group:
            for document in piece.read_text().split(END_OF_TEXT):
                yield from _cut_long_words(document)
            bar.update(piece.size)


def _cut_long_words(text: str) -> Iterator[str]:
    """The text in parts, cut where more than _LONGEST_RUN characters have no white space between them, or are it."""
    begin = 0
    for run in _LONG_RUN.finditer(text):
        for end in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
            yield text[begin:end]
            begin = end
    yield text[begin:]


def _import_tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("a vocabulary is trained by the package tokenizers: pip install tokenizers") from error
    return tokenizers
