"""The flags that say in which format a generator keeps its weights."""

from __future__ import annotations

import argparse

from pygpt.backends.interface import WEIGHTS
from pygpt.command.flags import Parser
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.reference.arrays import Array
from pygpt.text.batches import TokenDataset
from pygpt.text.prepare import ensure
from pygpt.text.tokenizer import Tokenizer

CALIBRATION_WINDOWS = 8


def add_weights_flags(parser: Parser, default: str) -> None:
    """--weights and --calibrate; default: what happens without --weights, for the help."""
    parser.add_argument("--weights", choices=WEIGHTS, help=f"format of the weights; {default}")
    parser.add_argument(
        "--calibrate", metavar="NAME|PATH", help="text or token files to which --weights int8 or int4 are fitted"
    )


def read_calibration(flags: argparse.Namespace, config: GPT2Config, tokenizer: Tokenizer) -> Array | None:
    """The windows of --calibrate, as long as the model has positions: (n,T) tokens; None where there is no such flag.

    Raises UserError where the text cannot be used, or --weights are not such as are fitted.
    """
    if flags.calibrate is None:
        return None
    if flags.weights not in ("int8", "int4"):
        raise UserError("--calibrate is given, but --weights is neither int8 nor int4: leave it out")
    dataset = TokenDataset(ensure(flags.calibrate, tokenizer), "train")
    return dataset.batch(0, CALIBRATION_WINDOWS, config.n_positions, seed=0)[0]
