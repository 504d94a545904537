"""`tokenizer.json`, the one file in which transformers keeps a whole tokenizer, for GPT-2's byte pair encoding.

Such a file describes any chain of a normalizer, a cutter into words, a model and a post-processor. Read is what gives
GPT-2's tokens; what would give others is refused. A post-processor only adds special tokens around a text, and is
passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pygpt.errors import UserError
from pygpt.files.json_file import read_json_object

FILE_NAME = "tokenizer.json"
LARGEST_FILE = 2**28

# What the tokens rely on, and the values that mean GPT-2's; None is a key that is null or absent, as in older files.
_EXPECTED: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("normalizer",): (None,),
    ("pre_tokenizer", "type"): ("ByteLevel",),
    ("pre_tokenizer", "add_prefix_space"): (False,),
    ("pre_tokenizer", "use_regex"): (True, None),
    ("model", "type"): ("BPE", None),
    ("model", "continuing_subword_prefix"): ("", None),
    ("model", "end_of_word_suffix"): ("", None),
    ("model", "byte_fallback"): (False, None),
    ("model", "ignore_merges"): (False, None),
}
_MATCHING = ("single_word", "lstrip", "rstrip")  # how an added token may be found in a text


@dataclass(frozen=True)
class TokenizerJson:
    """What a file holds, as it writes it: token -> number, and the pairs that are merged, in order."""

    vocab: dict[str, Any]
    merges: list[Any]
    special_tokens: dict[str, Any]
    added_tokens: dict[str, Any]  # which are not special: they are found in a text


def read_tokenizer_json(path: Path) -> TokenizerJson:
    """Raises UserError when the file cannot be read, or gives other tokens than GPT-2's encoding."""
    values = read_json_object(path, LARGEST_FILE)
    for keys, expected in _EXPECTED.items():
        found: Any = values
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if not any(found is value or (found == value and isinstance(value, str)) for value in expected):
            raise UserError(
                f"{path}: {'.'.join(keys)} is {found!r:.60}, expected {expected[0]!r:.60}: only the byte pair "
                f"encoding of GPT-2 is implemented"
            )
    model = values.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    merges = model.get("merges") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise UserError(f"{path}: holds no model.vocab with the tokens and model.merges with their pairs")
    special_tokens: dict[str, Any] = {}
    added_tokens: dict[str, Any] = {}
    added = values.get("added_tokens") or []
    for token in added if isinstance(added, list) else [added]:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise UserError(f"{path}: added_tokens holds {token!r:.60}, expected objects with content and id")
        special = token.get("special") is True
        for name in _MATCHING:
            if token.get(name) and not special:
                raise UserError(
                    f"{path}: the added token {token['content']!r} has {name}, expected false: only added tokens that "
                    f"are found as they stand are implemented"
                )
        (special_tokens if special else added_tokens)[token["content"]] = token.get("id")
    return TokenizerJson(vocab, merges, special_tokens, added_tokens)


def format_tokenizer_json(content: TokenizerJson) -> dict[str, Any]:
    """The contents of a file that transformers opens.  vocab: with the special and the added tokens."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [
        {"id": number, "content": token, **dict.fromkeys((*_MATCHING, "normalized"), False), "special": special}
        for tokens, special in ((content.special_tokens, True), (content.added_tokens, False))
        for token, number in tokens.items()
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": content.vocab,
            "merges": content.merges,
        },
    }
