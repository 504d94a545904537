"""Tensors in tf_model.h5, the file of transformers' GPT-2 for TensorFlow, which Keras wrote.

The dataset of h.0.attn.c_attn.weight is `transformer/tfgp_t2lm_head_model/transformer/h_._0/attn/c_attn/weight:0`, of
a LayerNorm's weight and bias `.../ln_1/gamma:0` and `beta:0`, of the embeddings `.../wte/weight:0` or `embeddings:0`.
Weights are (in, out) as ours; biases are (1, out).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pygpt.errors import UserError, reading
from pygpt.files.optional import import_for
from pygpt.files.tensor_file import StoredTensor

START = b"\x89HDF\r\n\x1a\n"

_NAME = re.compile(
    r"(?:.*/)?(?:h_\._(?P<layer>\d+)/(?P<part>ln_1|ln_2|attn/c_attn|attn/c_proj|mlp/c_fc|mlp/c_proj)"
    r"|(?P<top>wte|wpe|ln_f))/(?P<kind>\w+):0"
)
_KINDS = {"gamma": "weight", "beta": "bias", "embeddings": "weight"}
_DTYPES = {"f4": "F32", "f2": "F16", "f8": "F64"}  # of either byte order


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by the names that Hugging Face gives them in PyTorch.

    Raises UserError when the file is damaged, or a dataset is not stored in it number by number, as Keras does it.
    """
    h5py = import_for(path, "h5py")
    tensors: dict[str, StoredTensor] = {}

    def add(where: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        match = _NAME.fullmatch(where)
        if not match:
            raise UserError(f"{path}: holds {where[:80]!r}, which is no tensor of a GPT-2")
        stem = match["top"] or "h.{layer}.{part}".format(**match.groupdict()).replace("/", ".")
        name = f"{stem}.{_KINDS.get(match['kind'], match['kind'])}"
        if name in tensors:
            raise UserError(f"{path}: tensor {name!r} is there twice")
        # what other files hold, and what takes more memory than space in the file
        if item.external or item.is_virtual or item.id.get_storage_size() != item.nbytes:
            raise UserError(f"{path}: {where[:80]!r} is not stored number by number in this file")
        data = item[()].reshape(-1) if name.endswith(".bias") else item[()]
        tensors[name] = StoredTensor(path, name, _DTYPES.get(item.dtype.str[1:], str(item.dtype)), data)

    try:
        with reading(path), h5py.File(path, "r") as file:
            file.visititems(add)  # which follows no links
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is damaged: {str(error)[:200]}") from None
    return tensors
