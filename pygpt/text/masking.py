"""Masked tokens, the task of BERT (Devlin et al. 2018, section 3.1): tell which tokens stood where some are hidden.

Of each window of T tokens, max(1, round(0.15 T)) are to be predicted. In the model's input, 80 % of these become the
mask token, 10 % a random one, and 10 % stay, so that the model cannot rely on a token that it sees.

What is drawn is a function of the seed and of the window's number alone (reference/philox.py): for the token at t
of window n, the four words of block n T + t. The tokens with the smallest first words are predicted; the second word
says what becomes of one, and the third is the random token. So a resumed run masks as the uninterrupted one would
have, in batches of whatever size, and a validation hides the same tokens every time.
"""

from __future__ import annotations

import numpy as np

from pygpt.reference import philox
from pygpt.text.batches import Batch

PREDICTED = 0.15
MASKED, RANDOM = 0.8, 0.1  # of those that are predicted

TRAINING, VALIDATION = 0, 1  # streams


def masked(batch: Batch, first: int, seed: int, stream: int, vocab_size: int, mask_token: int) -> Batch:
    """A batch for masked-token training from windows number first, first + 1, ... of text.

    batch: tokens and the tokens that follow them, (B,T) each; vocab_size: of the tokenizer, whose tokens are drawn.
    Returns the model's input and the targets, (B,T) each; a target is -1 where nothing is to be predicted.
    """
    tokens, _ = batch
    B, T = tokens.shape
    words = philox.blocks(B * T, first * T, seed, stream, philox.MASKING).reshape(B, T, 4)
    chosen = np.argsort(words[..., 0], axis=-1, kind="stable")[:, : max(1, round(PREDICTED * T))]
    targets = np.full_like(tokens, -1)
    np.put_along_axis(targets, chosen, np.take_along_axis(tokens, chosen, -1), -1)

    fate, drawn = words[..., 1] / 2.0**32, (words[..., 2] * np.uint64(vocab_size) >> np.uint64(32)).astype(np.int32)
    hidden = np.where(fate < MASKED, np.int32(mask_token), np.where(fate < MASKED + RANDOM, drawn, tokens))
    return np.where(targets >= 0, hidden, tokens), targets
