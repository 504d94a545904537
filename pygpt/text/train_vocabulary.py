"""A vocabulary of one's own in a folder: byte pair encoding trained on a text (bpe_training.py)."""

from __future__ import annotations

from pathlib import Path

from pygpt.errors import UserError
from pygpt.files.atomic import write_files
from pygpt.reference.bpe import BYTES, LEAST_COUNT
from pygpt.text.bpe import END_OF_TEXT
from pygpt.text.bpe_training import CUTS, train_on
from pygpt.text.corpora import fetch, find_corpus
from pygpt.text.encoding import progress
from pygpt.text.pieces import split_files
from pygpt.text.prepare import VAL_FRACTION
from pygpt.text.text_files import select_texts
from pygpt.text.token_file import LARGEST_VOCAB
from pygpt.text.tokenizer import GPT2Tokenizer

SMALLEST_VOCAB = len(BYTES) + 1


def train_vocabulary(data: str, vocab_size: int, out_dir: str | Path | None = None, root: str | Path = "data") -> Path:
    """Write the files of a vocabulary of `vocab_size` tokens, trained on a text, into a new folder.

    data: the name of a corpus, or a file or folder of text; trained on is what prepare() takes for training.
    out_dir: the folder, by default ROOT/bpe-NAME-SIZE.  root: also where downloads are kept.
    Returns the folder.  Raises UserError when the size is out of range or more than the text gives, the folder exists,
    or the text is missing, unreadable, empty or not text.
    """
    if not SMALLEST_VOCAB <= vocab_size <= LARGEST_VOCAB:
        raise UserError(
            f"the size of the vocabulary is {vocab_size}, expected {SMALLEST_VOCAB} (the bytes and {END_OF_TEXT}) to "
            f"{LARGEST_VOCAB} (what a token file can hold)"
        )
    corpus = find_corpus(data)
    folder = Path(root) / f"bpe-{corpus.name}-{vocab_size}" if out_dir is None else Path(out_dir)
    if folder.exists():
        raise UserError(f"{folder}: exists, expected the name of a new folder (--out)")
    files = fetch(corpus, Path(root) / "download", None, "the path of a copy can be given in place of the name")
    files = select_texts(files, corpus.source, corpus.left_out)
    pieces, _ = split_files(files, VAL_FRACTION, CUTS)
    with progress(f"{corpus.name}: words", sum(piece.size for piece in pieces)) as bar:
        vocabulary = train_on(pieces, vocab_size, bar)
    if (found := len(vocabulary.ranks) + 1) < vocab_size:
        raise UserError(
            f"{corpus.source}: gives a vocabulary of {found} tokens, expected {vocab_size}: no more pairs occur "
            f"{LEAST_COUNT} times; take --vocab-size {found} or a longer text"
        )
    with write_files(folder) as saving:
        GPT2Tokenizer(vocabulary).save(saving)
    return folder
