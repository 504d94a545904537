"""Models in tf_model.h5, laid out here as transformers' GPT-2 for TensorFlow had them; what is refused."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import required
from numpy.typing import NDArray

from pygpt.command.import_ import main as import_
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.files.checkpoint import load_parameters
from pygpt.files.formats import read_model
from pygpt.parameters import parameter_shapes

h5py = required.module("h5py", "formats")

CONFIG = GPT2Config(vocab_size=13, n_positions=7, n_embd=6, n_layer=11, n_head=3, n_inner=10)

Parameters = dict[str, NDArray[np.float32]]


def random_parameters() -> Parameters:
    numbers = np.random.default_rng(0)
    return {name: numbers.standard_normal(shape, np.float32) for name, shape in parameter_shapes(CONFIG).items()}


def keras_names(p: Parameters, model: str, embedding: str) -> Parameters:
    """The names of weights, and what they hold: a bias of TFConv1D has the shape (1, out)."""
    top = f"{model}/transformer"
    named = {f"{top}/wte/{embedding}:0": p["wte.weight"], f"{top}/wpe/embeddings:0": p["wpe.weight"]}
    for layer in range(CONFIG.n_layer):
        h, block = f"h.{layer}", f"{top}/h_._{layer}"
        for norm in ("ln_1", "ln_2"):
            named[f"{block}/{norm}/gamma:0"] = p[f"{h}.{norm}.weight"]
            named[f"{block}/{norm}/beta:0"] = p[f"{h}.{norm}.bias"]
        for part, linear in (("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj")):
            named[f"{block}/{part}/{linear}/weight:0"] = p[f"{h}.{part}.{linear}.weight"]
            named[f"{block}/{part}/{linear}/bias:0"] = p[f"{h}.{part}.{linear}.bias"][None]
    return {**named, f"{top}/ln_f/gamma:0": p["ln_f.weight"], f"{top}/ln_f/beta:0": p["ln_f.bias"]}


def write(folder: Path, named: Parameters, dtype: Any = np.float32) -> Path:
    """As Keras' save_weights() does: a group for each layer, here one, with the names of its weights."""
    folder.mkdir(exist_ok=True)
    CONFIG.to_json(folder / "config.json")
    with h5py.File(folder / "tf_model.h5", "w") as file:
        file.attrs["layer_names"] = [b"transformer"]
        file.attrs["backend"] = b"tensorflow"
        group = file.create_group("transformer")
        group.attrs["weight_names"] = [name.encode() for name in named]
        for name, values in named.items():
            group.create_dataset(name, data=values.astype(dtype))
        file.create_group("top_level_model_weights").attrs["weight_names"] = []
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        read_model(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ">f4"])
@pytest.mark.parametrize(("model", "embedding"), [("tfgp_t2lm_head_model", "weight"), ("tfgp_t2model_3", "embeddings")])
def test_the_layout_of_transformers(tmp_path: Path, model: str, embedding: str, dtype: Any) -> None:
    p = random_parameters()
    folder = write(tmp_path / "a", keras_names(p, model, embedding), dtype)
    for source in (folder, folder / "tf_model.h5"):
        found = read_model(source)
        assert found.config == CONFIG and list(found.parameters) == list(p)
        for name, values in p.items():
            assert np.array_equal(found.parameters[name], values.astype(dtype).astype(np.float32)), name
    import_([str(folder), str(tmp_path / "b")])
    assert np.array_equal(
        dict(load_parameters(tmp_path / "b", CONFIG))["h.10.ln_2.bias"], found.parameters["h.10.ln_2.bias"]
    )


def test_other_contents(tmp_path: Path) -> None:
    named = keras_names(random_parameters(), "tfgp_t2lm_head_model", "weight")
    top = "tfgp_t2lm_head_model/transformer"
    wte, bias = f"{top}/wte/weight:0", f"{top}/h_._3/mlp/c_proj/bias:0"
    for change, sentence in (
        ({"x": np.zeros(3)}, "holds 'transformer/x', which is no tensor of a GPT-2"),
        ({f"{top}/h_._11/ln_1/gamma:0": np.zeros(6)}, "'h.11.ln_1.weight' is not a parameter of the GPT-2"),
        ({f"{top}/wte/embeddings:0": np.zeros(3)}, "tensor 'wte.weight' is there twice"),
        ({wte: named[wte].T}, "wte.weight has shape (6, 13), expected (13, 6)"),
        ({bias: np.full((1, 6), np.inf, np.float32)}, "tensor h.3.mlp.c_proj.bias holds inf at [0]"),
    ):
        assert sentence in refused(write(tmp_path / "a", {**named, **change}))
    del named[bias]
    assert "tensor h.3.mlp.c_proj.bias is missing; found 135 of 136" in refused(write(tmp_path / "a", named))
    integers = refused(write(tmp_path / "a", keras_names(random_parameters(), "m", "weight"), np.int32))
    assert "has dtype int32, expected F32" in integers


@pytest.mark.parametrize(
    "create",
    [
        lambda group, name, values, beside: group.create_dataset(name, values.shape, values.dtype, chunks=(1, 6)),
        lambda group, name, values, beside: group.create_dataset(name, data=values, compression="gzip"),
        lambda group, name, values, beside: group.create_dataset(
            name, values.shape, values.dtype, external=[(str(beside), 0, values.nbytes)]
        ),
    ],
    ids=["sparse", "compressed", "external"],
)
def test_numbers_that_the_file_does_not_hold(tmp_path: Path, create: Callable[..., Any]) -> None:
    """A small file may claim enormous tensors, or the contents of another file."""
    p = random_parameters()
    folder = write(tmp_path / "a", keras_names(p, "m", "weight"))
    (tmp_path / "other").write_bytes(p["wte.weight"].tobytes())
    name = "m/transformer/wte/weight:0"
    with h5py.File(folder / "tf_model.h5", "a") as file:
        del file["transformer"][name]
        create(file["transformer"], name, p["wte.weight"], tmp_path / "other")
    assert f"'transformer/{name}' is not stored number by number in this file" in refused(folder)


def test_links_are_not_followed(tmp_path: Path) -> None:
    p = random_parameters()
    named = keras_names(p, "m", "weight")
    folder, other = write(tmp_path / "a", named), write(tmp_path / "b", named)
    name = "transformer/m/transformer/wte/weight:0"
    with h5py.File(folder / "tf_model.h5", "a") as file:
        del file[name]
        file[name] = h5py.ExternalLink(str(other / "tf_model.h5"), name)
    assert "tensor wte.weight is missing" in refused(folder)


def test_truncated(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", keras_names(random_parameters(), "m", "weight"))
    contents = (folder / "tf_model.h5").read_bytes()
    for size in [*range(8, len(contents), 5003), len(contents) - 1]:
        (folder / "tf_model.h5").write_bytes(contents[:size])
        assert f"{folder / 'tf_model.h5'}: " in refused(folder)


def test_damaged(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", keras_names(random_parameters(), "m", "weight"))
    contents = (folder / "tf_model.h5").read_bytes()
    numbers = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(contents)
        damaged[numbers.integers(len(contents))] = numbers.integers(256)
        damaged[numbers.integers(2000)] ^= 255
        (folder / "tf_model.h5").write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_model(folder)


def test_the_package_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "a", keras_names(random_parameters(), "m", "weight"))
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert refused(folder) == f"{folder / 'tf_model.h5'}: this format needs the package h5py: pip install h5py"
