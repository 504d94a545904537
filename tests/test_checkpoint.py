"""The model folder: what is saved is loaded, and what does not fit is refused with a sentence that names it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.files import checkpoint
from pygpt.files.checkpoint import load_parameters, read_config, save_parameters
from pygpt.files.tensor_file import read_tensors, write_tensors
from pygpt.parameters import parameter_shapes
from pygpt.reference.bfloat16 import round_bfloat16

Parameters = dict[str, NDArray[Any]]

CONFIG = GPT2Config(vocab_size=13, n_positions=7, n_embd=6, n_layer=2, n_head=3, n_inner=10)
ROUNDING = {  # relative to the nearest value: half a unit in the last place of the significand
    "float32": 0.0,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}


@pytest.fixture
def parameters() -> Parameters:
    """Values whose significands fill float32, within float16's normal range."""
    generator = np.random.default_rng(1)
    return {
        name: generator.uniform(0.001, 2, shape).astype(np.float32) * generator.choice(np.float32([-1, 1]), shape)
        for name, shape in parameter_shapes(CONFIG).items()
    }


@pytest.fixture
def folder(tmp_path: Path, parameters: Parameters) -> Path:
    save_parameters(tmp_path / "model", CONFIG, parameters)
    return tmp_path / "model"


def load(folder: Path) -> Parameters:
    return dict(load_parameters(folder, read_config(folder)))


def rewrite(folder: Path, change: dict[str, NDArray[Any] | None], prefix: str = "") -> None:
    """Save the folder's tensors again through the library, some changed or, with None, left out."""
    tensors = {**load_file(folder / "model.safetensors"), **change}
    save_file(
        {prefix + name: value for name, value in tensors.items() if value is not None}, folder / "model.safetensors"
    )


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load_parameters(folder, read_config(folder))
    sentence = str(error.value)
    assert str(folder) in sentence
    assert len(sentence) < 500
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("dtype", ROUNDING)
def test_round_trip(tmp_path: Path, parameters: Parameters, dtype: str) -> None:
    save_parameters(tmp_path, CONFIG, parameters, dtype)
    assert read_config(tmp_path) == CONFIG
    loaded = load(tmp_path)
    assert list(loaded) == list(parameter_shapes(CONFIG))
    for name, value in parameters.items():
        assert loaded[name].dtype == np.float32
        assert loaded[name].flags.c_contiguous
        assert loaded[name].flags.aligned
        assert np.all(np.abs(loaded[name] - value) <= ROUNDING[dtype] * np.abs(value)), name
    if dtype != "float32":
        assert any(np.any(loaded[name] != value) for name, value in parameters.items())
    save_parameters(tmp_path, CONFIG, loaded, dtype)  # over the very files that are mapped
    again = load(tmp_path)
    assert all(np.array_equal(again[name], loaded[name]) for name in loaded)


def test_the_library_reads_what_is_written(folder: Path, parameters: Parameters) -> None:
    read = load_file(folder / "model.safetensors")
    assert set(read) == set(parameters)
    assert all(np.array_equal(read[name], parameters[name]) for name in parameters)
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    start = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert start % 8 == 0


def test_every_bfloat16_survives(tmp_path: Path) -> None:
    bits = np.arange(2**16, dtype=np.uint32) << 16
    values = bits.view(np.float32)
    write_tensors(tmp_path / "all", {"x": (2**16,)}, {"x": values}, "bfloat16")
    read = read_tensors(tmp_path / "all")["x"].float32()
    number = ~np.isnan(values)
    assert np.array_equal(read.view(np.uint32)[number], bits[number])
    assert np.all(np.isnan(read[~number]))


def test_bfloat16_rounds_to_nearest_even(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 2**32, 10_000, dtype=np.uint32).view(np.float32)
    values = np.append(values[np.isfinite(values)], np.float32([1 + 2**-8, 1 + 3 * 2**-8, 3.4e38]))
    write_tensors(tmp_path / "some", {"x": values.shape}, {"x": values}, "bfloat16")
    assert np.array_equal(read_tensors(tmp_path / "some")["x"].float32(), round_bfloat16(values))
    signalling = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    write_tensors(tmp_path / "nan", {"x": (2,)}, {"x": signalling}, "bfloat16")
    assert np.all(np.isnan(read_tensors(tmp_path / "nan")["x"].float32()))


def test_values_beyond_float16(tmp_path: Path, parameters: Parameters) -> None:
    save_parameters(tmp_path, CONFIG, parameters)
    parameters["h.1.ln_2.bias"] = parameters["h.1.ln_2.bias"] * 1e5
    with pytest.raises(UserError, match=r"tensor h\.1\.ln_2\.bias has values beyond float16's 65504"):
        save_parameters(tmp_path, CONFIG, parameters, "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    load(tmp_path)
    parameters["h.1.ln_2.bias"][:] = np.inf
    save_parameters(tmp_path, CONFIG, parameters, "float16")
    assert np.all(np.isinf(load(tmp_path)["h.1.ln_2.bias"]))


def test_float64_and_strided_parameters_are_written_as_float32(tmp_path: Path, parameters: Parameters) -> None:
    strided = {name: np.asfortranarray(value.astype(np.float64)) for name, value in parameters.items()}
    save_parameters(tmp_path, CONFIG, strided)
    loaded = load(tmp_path)
    assert all(np.array_equal(loaded[name], parameters[name]) for name in parameters)


def test_wrong_arguments_to_save(tmp_path: Path, parameters: Parameters) -> None:
    with pytest.raises(UserError, match="dtype of the saved model is 'int8', expected 'float32' or 'float16' or"):
        save_parameters(tmp_path / "model", CONFIG, parameters, "int8")
    parameters["wpe.weight"] = parameters["wpe.weight"].T
    with pytest.raises(ValueError, match=r"wpe.weight has shape \(6, 7\), expected \(7, 6\)"):
        save_parameters(tmp_path / "model", CONFIG, parameters)
    assert not (tmp_path / "model").exists()


def test_further_files_are_saved_together(folder: Path, parameters: Parameters) -> None:
    (folder / "README.md").write_text("mine")
    save_parameters(folder, CONFIG, parameters, extra=lambda saving: (saving / "vocab.json").write_text("{}") and None)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "vocab.json",
    ]  # fmt: skip

    def full(saving: Path) -> None:
        (saving / "vocab.json").write_text("half")
        raise OSError(28, "No space left on device")

    changed = {name: value + 1 for name, value in parameters.items()}
    with pytest.raises(UserError, match="model: cannot be saved: No space left on device"):
        save_parameters(folder, CONFIG, changed, extra=full)
    assert (folder / "vocab.json").read_text() == "{}"
    assert np.array_equal(load(folder)["wte.weight"], parameters["wte.weight"])
    assert len(list(folder.iterdir())) == 4


def test_a_save_that_was_cut_short_is_finished_by_the_reader(folder: Path, parameters: Parameters) -> None:
    other = GPT2Config(vocab_size=13, n_positions=7, n_embd=6, n_layer=1, n_head=2, n_inner=10)
    save_parameters(folder / ".saved", other, parameters)
    assert read_config(folder) == other
    assert len(load(folder)) == len(parameter_shapes(other))
    assert not (folder / ".saved").exists()


# --- what others write ---


def test_prefix_tied_head_and_mask_buffers(folder: Path, parameters: Parameters) -> None:
    rewrite(
        folder,
        {"h.0.attn.bias": np.tril(np.ones((1, 1, 7, 7), bool)), "h.1.attn.masked_bias": np.array(-1e4, np.float32)},
        prefix="transformer.",
    )
    rewrite(folder, {"lm_head.weight": parameters["wte.weight"]})
    loaded = load(folder)
    assert list(loaded) == list(parameter_shapes(CONFIG))
    assert all(np.array_equal(loaded[name], parameters[name]) for name in parameters)


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("_orig_mod.", "_orig_mod."),
        ("_orig_mod.transformer.", "_orig_mod."),
        ("module.", ""),
        ("module.transformer.", "module."),
        ("lm.model.", "lm."),
    ],
)
def test_prefixes_of_wrappers(folder: Path, parameters: Parameters, prefix: str, head: str) -> None:
    rewrite(folder, {"h.0.attn.bias": np.ones(1, np.float32)}, prefix)
    rewrite(folder, {head + "lm_head.weight": parameters["wte.weight"]})
    loaded = load(folder)
    assert all(np.array_equal(loaded[name], parameters[name]) for name in parameters)
    rewrite(folder, {head + "lm_head.weight": parameters["wte.weight"] + 1})
    assert "lm_head.weight differs from wte.weight" in refused(folder)


def test_float64_becomes_float32(folder: Path, parameters: Parameters) -> None:
    rewrite(folder, {name: value.astype(np.float64) for name, value in parameters.items()})
    loaded = load(folder)
    assert all(loaded[name].dtype == np.float32 for name in loaded)
    assert all(np.array_equal(loaded[name], parameters[name]) for name in parameters)


@pytest.mark.parametrize("inner", [10, 6])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_layers_stored_as_torch_has_them(tmp_path: Path, inner: int, dtype: str) -> None:
    config = GPT2Config(vocab_size=13, n_positions=7, n_embd=6, n_layer=2, n_head=3, n_inner=inner)
    generator = np.random.default_rng(1)
    shapes = parameter_shapes(config)
    ours = {name: round_bfloat16(generator.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}
    theirs = {name: np.ascontiguousarray(value.T) if ".c_" in name else value for name, value in ours.items()}
    config.to_json(tmp_path / "config.json")
    write_tensors(tmp_path / "model.safetensors", {name: theirs[name].shape for name in theirs}, theirs, dtype)
    with pytest.warns(UserWarning, match=r"model.safetensors: holds the weights of linear layers as \(out, in\)"):
        loaded = load(tmp_path)
    assert all(np.array_equal(loaded[name], ours[name]) for name in ours)
    theirs["h.1.attn.c_attn.weight"] = ours["h.1.attn.c_attn.weight"]
    write_tensors(tmp_path / "model.safetensors", {name: theirs[name].shape for name in theirs}, theirs)
    assert "tensor h.0.attn.c_attn.weight has shape (18, 6), expected (6, 18)" in refused(tmp_path)


def test_a_head_of_its_own(folder: Path, parameters: Parameters) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": False}))
    assert "holds no lm_head.weight, but config.json has tie_word_embeddings: false" in refused(folder)
    for head in (parameters["wte.weight"], -parameters["wte.weight"]):
        rewrite(folder, {"lm_head.weight": head})
        loaded = load(folder)
        assert list(loaded) == [*parameters, "lm_head.weight"]
        assert np.array_equal(loaded["lm_head.weight"], head)


def test_a_model_without_biases(folder: Path, parameters: Parameters) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "bias": False}))
    assert "holds biases, such as 'h.0.ln_1.bias', but config.json has bias: false" in refused(folder)
    rewrite(folder, {name: None for name in parameters if name.endswith(".bias")})
    assert list(load(folder)) == [name for name in parameters if not name.endswith(".bias")]


def test_tensors_need_not_be_aligned(folder: Path, parameters: Parameters) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    loaded = load(folder)
    assert all(np.array_equal(loaded[name], parameters[name]) for name in parameters)
    assert all(value.flags.aligned for value in loaded.values())


def shard(folder: Path, parameters: Parameters) -> dict[str, str]:
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in range(3):
        part = dict(list(parameters.items())[number::3])
        save_file(part, folder / f"model-{number}.safetensors")
        weight_map.update(dict.fromkeys(part, f"model-{number}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_shards(folder: Path, parameters: Parameters) -> None:
    shard(folder, parameters)
    loaded = load(folder)
    assert all(np.array_equal(loaded[name], parameters[name]) for name in parameters)


# --- what is refused ---


def test_shards_that_contradict_their_index(folder: Path, parameters: Parameters) -> None:
    weight_map = shard(folder, parameters)
    index = folder / "model.safetensors.index.json"

    def refused_with(change: dict[str, Any]) -> str:
        index.write_text(json.dumps({"weight_map": {**weight_map, **change}}))
        return refused(folder)

    assert "model-9.safetensors: cannot be read: No such file" in refused_with({"wte.weight": "model-9.safetensors"})
    assert "names model-2.safetensors for tensor 'wte.weight'" in refused_with({"wte.weight": "model-2.safetensors"})
    for outside in ("../model-0.safetensors", "/etc/passwd", 7, None):
        assert "expected a .safetensors file beside it" in refused_with({"wte.weight": outside})
    save_file({"wpe.weight": parameters["wpe.weight"]}, folder / "model-3.safetensors")
    assert "tensor 'wpe.weight' is in" in refused_with({"wte.weight": "model-3.safetensors"})
    for text in ("{}", '{"weight_map": []}', '{"weight_map": {}}'):
        index.write_text(text)
        assert "holds no weight_map" in refused(folder)


def test_a_float64_beyond_float32_is_named(folder: Path, parameters: Parameters) -> None:
    bias = np.array([1e300, np.inf, np.nan, 0, 0, 0])
    rewrite(folder, {"ln_f.bias": bias})
    with pytest.raises(UserError, match=r"tensor 'ln_f\.bias' holds numbers beyond the range of float32"):
        load(folder)
    bias[0] = 1e38
    rewrite(folder, {"ln_f.bias": bias})
    assert np.array_equal(load(folder)["ln_f.bias"], bias.astype(np.float32), equal_nan=True)


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: is not a folder"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no config\.json, it is empty"):
        read_config(tmp_path)
    CONFIG.to_json(tmp_path / "config.json")
    (tmp_path / "ckpt.pt").touch()
    assert refused(tmp_path).endswith("holds no model.safetensors, found 'ckpt.pt', 'config.json'")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    command = f"python scripts/import_weights.py {tmp_path} NEW_FOLDER converts pytorch_model.bin"
    assert refused(tmp_path).endswith(
        f"holds no model.safetensors, found 'ckpt.pt', 'config.json', 'pytorch_model.bin'; {command}"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064d}\nsize 548105171\n"
    (folder / name).write_text(pointer)
    with pytest.raises(UserError, match=f"{name}: is a Git LFS pointer, not the file itself: run `git lfs pull`"):
        load(folder)


def test_tensors_that_contradict_the_configuration(
    folder: Path, parameters: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = (folder / "model.safetensors").read_bytes()

    def refused_with(change: dict[str, NDArray[Any] | None]) -> str:
        (folder / "model.safetensors").write_bytes(original)
        rewrite(folder, change)
        return refused(folder)

    file = f"{folder / 'model.safetensors'}: "
    shape = refused_with({"h.1.mlp.c_fc.weight": np.zeros((6, 9), np.float32)})
    assert shape == file + "tensor h.1.mlp.c_fc.weight has shape (6, 9), expected (6, 10)"
    assert refused_with({"ln_f.bias": None}) == file + "tensor ln_f.bias is missing; found 27 of 28 parameters"
    assert "'h.2.ln_1.bias' is not a parameter of the GPT-2" in refused_with({"h.2.ln_1.bias": np.zeros(6, np.float32)})
    assert "ln_f.bias has dtype U8, expected F32, F16, BF16, F64" in refused_with({"ln_f.bias": np.zeros(6, np.uint8)})
    assert "tensor 'ln_f.bias' has dtype I64" in refused_with({"ln_f.bias": np.zeros(6, np.int64)})
    wpe = parameters["wpe.weight"]
    assert refused_with({"wpe.weight": None, **{f"wpe.{n}": wpe for n in range(5)}}) == file + (
        "tensor wpe.weight is missing, but 'wpe.0', 'wpe.1', 'wpe.2' and 2 more are there"
    )
    biases = dict.fromkeys(name for name in parameters if name.endswith(".bias"))
    assert "holds no biases, but config.json does not say bias: false" in refused_with(biases)
    twice = refused_with({"model.wte.weight": parameters["wte.weight"]})
    assert twice == file + "holds several models: 'model.wte.weight' and 'wte.weight'"
    rewrite(folder, {"wte.weight": None, "wpe.weight": wpe})
    rewrite(folder, {"model.wpe.weight": wpe})
    assert "'wpe.weight' is there twice, with a prefix and without" in refused(folder)
    monkeypatch.setattr(checkpoint, "_ROWS", 2)  # the heads are compared so many rows at a time
    head = parameters["wte.weight"].copy()
    head[-1, -1] += 1
    assert "lm_head.weight differs from wte.weight" in refused_with({"lm_head.weight": head})
    assert "lm_head.weight differs from wte.weight" in refused_with({"lm_head.weight": head[1:]})
    assert "lm_head.weight differs from wte.weight" in refused_with({"lm_head.weight": head.astype(np.float64)})


def edited(folder: Path, header: bytes, data: bytes = b"", length: int | None = None) -> str:
    """What is said of a model.safetensors of these parts."""
    length = len(header) if length is None else length
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + header + data)
    return refused(folder)


def entry(start: int, end: int, shape: str = "[2]", dtype: str = "F32") -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{start}, {end}]}}'


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ("{}", 8),  # data that nobody owns
        ("[]", 0),
        ("", 0),
        ('{"a": 1}', 0),
        ("\xff{", 0),
        (f'{{"a": {entry(0, 8)}}}', 4),  # beyond the end
        (f'{{"a": {entry(0, 8)}}}', 9),
        (f'{{"a": {entry(0, 4)}}}', 4),  # offsets that contradict the shape
        (f'{{"a": {entry(8, 0)}}}', 8),
        (f'{{"a": {entry(0, 8)}, "b": {entry(4, 12)}}}', 12),  # overlap
        (f'{{"a": {entry(0, 8)}, "b": {entry(0, 8)}}}', 8),
        (f'{{"a": {entry(0, 8)}, "b": {entry(12, 20)}}}', 20),  # gap
        (f'{{"a": {entry(0, 8)}, "a": {entry(8, 16)}}}', 16),  # twice
        (f'{{"a": {entry(0, 8, dtype="F33")}}}', 8),
        (f'{{"a": {entry(0, 8, shape="[-2]")}}}', 8),
        (f'{{"a": {entry(0, 8, shape="[2.0]")}}}', 8),
        (f'{{"a": {entry(0, 0, shape="[4294967296, 4294967296, 0]")}}}', 0),
        (f'{{"a": {entry(0, 0, shape="[18446744073709551615, 0]")}}}', 0),
        (f'{{"a": {entry(0, 4, shape="[9223372036854775808, 2]")}}}', 4),
        (f'{{"a": {entry(0, 4, shape=str([1] * 100))}}}', 4),
        (f'{{"a": {entry(2**63, 2**63 + 8)}}}', 8),
        (f'{{"wte.weight": {entry(0, 8)}}}', 8),
    ],
)
def test_headers_that_lie(folder: Path, header: str, data: int) -> None:
    edited(folder, header.encode("latin-1"), bytes(data))


def test_header_lengths_that_lie(folder: Path) -> None:
    good = (folder / "model.safetensors").read_bytes()
    for length in (0, 1, 7, len(good), 2**24 + 1, 2**63, 2**64 - 1):
        edited(folder, good[8:], length=length)
    big = 2**24 + 8
    assert "has a header of 16777224 bytes, expected at most 16777216" in edited(folder, b"{}" + b" " * (big - 2))


def test_truncated_files(folder: Path) -> None:
    path = folder / "model.safetensors"
    good = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        assert re.search(r"is truncated|is not a safetensors file", refused(folder))
