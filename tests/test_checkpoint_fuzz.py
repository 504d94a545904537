"""Thousands of damaged model folders and model files: each loads or is refused with one sentence, in bounded memory.

The mutations run in a process of their own, so that a crash of a native library is seen, and under a limit on memory.
"""

import copy
import json
import os
import random
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.files.checkpoint import load_parameters, read_config, save_parameters
from pygpt.files.llmc import read_model, write_model
from pygpt.parameters import parameter_shapes

CONFIG = GPT2Config(vocab_size=11, n_positions=4, n_embd=4, n_layer=1, n_head=2)
MEMORY = 256 * 2**20  # what a process may take beyond what it had when it started
MUTATIONS = 1500
FILES = ["model.safetensors", "config.json", "model.safetensors.index.json", "model.bin"]

NUMBERS = [
    0, -1, 1, 2, 3, 4, 5, 7, 8, 16, 44, 2**16, 2**24, 2**31 - 1, 2**31, 2**32, 2**53, 2**61, 2**62, 2**63 - 1, 2**63,
    2**64 - 1, 2**64, 10**30, 0.5, 1.0, 4.0, -0.0, 1e-40, 1e39, 1e308, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
VALUES = [*NUMBERS, None, True, False, "", "4", "F16", "BF16", "F64", "U8", "F8_E4M3", "gpt2", "../x", "\0", "é" * 99,
          [], [0], [4, 4], [2**63, 0], [-1], [1] * 70, {}, {"a": 1}]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    found = []
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        found += places(value[key])
    return found


def edit_json(text: bytes, choose: random.Random) -> bytes:
    """Change, remove, copy, rename or repeat something in a JSON object."""
    value = json.loads(text)
    for _ in range(choose.choice([1, 1, 1, 2, 5])):
        container, key = choose.choice(places(value))
        kind = choose.randrange(6)
        if kind == 0:
            del container[key]
        elif kind == 1:
            other, other_key = choose.choice(places(value))
            container[key] = copy.deepcopy(other[other_key])
        elif kind == 2 and isinstance(container, dict):
            container[choose.choice(["transformer." + key, key + "x", "", "lm_head.weight", "h.0.attn.bias"])] = (
                container.pop(key)
            )
        elif kind == 3 and isinstance(container, list):
            container.append(container[key])
        elif kind == 4 and isinstance(container[key], int):
            container[key] += choose.choice([-8, -4, -2, -1, 1, 2, 4, 8])
        else:
            container[key] = copy.deepcopy(choose.choice(VALUES))
        if not places(value):
            break
    edited = json.dumps(value).encode()
    if choose.random() < 0.1:  # the same key twice
        edited = edited[:-1] + b", " + edited[1:]
    return edited


def edit_bytes(data: bytes, choose: random.Random) -> bytes:
    """Flip, insert, remove, repeat or cut off bytes."""
    damaged = bytearray(data)
    for _ in range(choose.choice([1, 1, 2, 8])):
        start = choose.randrange(len(damaged) + 1)
        length = choose.choice([1, 1, 2, 8, 100])
        kind = choose.randrange(5)
        if kind == 0 and start < len(damaged):
            damaged[start] ^= 1 << choose.randrange(8)
        elif kind == 1:
            damaged[start:start] = choose.choice([b"\0", b"\xff", b"9", b'"', b"{", b"[", b" "]) * length
        elif kind == 2:
            del damaged[start : start + length]
        elif kind == 3:
            damaged[start:start] = damaged[start : start + length]
        elif kind == 4 and choose.random() < 0.3:
            del damaged[start:]
    return bytes(damaged)


def edit_tensors(data: bytes, choose: random.Random) -> bytes:
    """Damage a safetensors file: its header's length, its header with a true length, or any of its bytes."""
    length = int.from_bytes(data[:8], "little")
    header, values = data[8 : 8 + length], data[8 + length :]
    kind = choose.randrange(6)
    if kind == 0:
        wrong = choose.choice(
            [0, 1, 8, length - 1, length + 1, len(data) - 8, 2**24, 10**8, 2**31, 2**32, 2**63, 2**64 - 1]
        )
        return wrong.to_bytes(8, "little") + data[8:]
    if kind == 1:
        return edit_bytes(data, choose)
    header = edit_bytes(header, choose) if kind == 2 else edit_json(header, choose)
    if choose.random() < 0.2:
        values = edit_bytes(values, choose)
    return len(header).to_bytes(8, "little") + header + values


def edit_model_file(data: bytes, choose: random.Random) -> bytes:
    """Damage a model file of llm.c's: fields of its header, or any of its bytes."""
    damaged = bytearray(data)
    for _ in range(choose.choice([0, 1, 1, 2, 3])):
        field = 4 * choose.randrange(choose.choice([10, 16, 256]))
        old = int.from_bytes(damaged[field : field + 4], "little")
        new = choose.choice([old ^ 1 << choose.randrange(32), old + 1, old - 1, choose.randrange(9), -1, 2**31 - 1])
        damaged[field : field + 4] = (new % 2**32).to_bytes(4, "little")
    return edit_bytes(damaged, choose) if choose.random() < 0.3 else bytes(damaged)


def mutations(name: str, original: bytes, seed: int) -> Iterator[bytes]:
    """Damaged versions of the file of this name."""
    if name == "config.json":  # of enormous models, which a small file must not make anybody allocate
        for size in ("n_layer", "vocab_size", "n_positions", "n_embd", "n_inner"):
            for value in (2**24, 2**31 - 2):
                yield json.dumps({**json.loads(original), size: value}).encode()
    for number in range(MUTATIONS):
        choose = random.Random(seed * MUTATIONS + number)
        if name == "model.safetensors":
            yield edit_tensors(original, choose)
        elif name == "model.bin":
            yield edit_model_file(original, choose)
        elif choose.random() < 0.7:
            yield edit_json(original, choose)
        else:
            yield edit_bytes(original, choose)


def attempt(folder: Path, file: str) -> str:
    """Load the folder whole, or this model file of llm.c's in it; "loaded" or "refused"."""
    try:
        is_folder = file != FILES[3]
        stored = load_parameters(folder, read_config(folder)) if is_folder else read_model(folder / file)[1].items()
        for name, value in stored:
            assert value.dtype == np.float32, name
            with np.errstate(all="ignore"):
                value.sum()
    except UserError as error:
        sentence = str(error)
        assert "\n" not in sentence, sentence
        assert len(sentence) < 700, sentence
        assert str(folder) in sentence, sentence
        return "refused"
    return "loaded"


def main(folder: Path, name: str, seed: int) -> None:
    attempt(folder, name)  # everything is imported before memory is limited
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    if pages is not None:
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    path = folder / name
    original = path.read_bytes()
    outcomes: Counter[str] = Counter()
    for damaged in mutations(name, original, seed):
        path.write_bytes(damaged)
        try:
            outcomes[attempt(folder, name)] += 1
        except BaseException:
            print(f"{name}: {damaged!r}", file=sys.stderr)
            raise
    path.write_bytes(original)
    assert attempt(folder, name) == "loaded"
    print(json.dumps(outcomes))


@pytest.mark.parametrize("name", FILES)
def test_damaged_folders(tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(0)
    shapes = parameter_shapes(CONFIG)
    dtype = "float32" if name == FILES[1] else "bfloat16"
    parameters = {key: values.standard_normal(shape) for key, shape in shapes.items()}
    save_parameters(tmp_path, CONFIG, parameters, dtype)
    write_model(tmp_path / FILES[3], CONFIG, parameters, dtype)
    if name == FILES[2]:
        tensors = {key: values.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
        (tmp_path / FILES[0]).unlink()
        for part in range(2):
            save_file(dict(list(tensors.items())[part::2]), tmp_path / f"part{part}.safetensors")
        weight_map = {key: f"part{number % 2}.safetensors" for number, key in enumerate(tensors)}
        (tmp_path / name).write_text(json.dumps({"metadata": {"total_size": 4}, "weight_map": weight_map}))
    command = [sys.executable, __file__, str(tmp_path), name, "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # the pygpt that is tested here
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    outcomes = json.loads(result.stdout)
    assert sum(outcomes.values()) >= MUTATIONS
    assert outcomes["refused"] > MUTATIONS / 3  # the mutations do damage,
    assert outcomes["loaded"] > 0  # and not always


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
