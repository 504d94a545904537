"""Models in PyTorch's files, those of Hugging Face, nanoGPT and minGPT; what is refused, and not run."""

from __future__ import annotations

import json
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import required

import pygpt
from pygpt.command.export import main as export
from pygpt.command.import_ import main as import_
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.files.checkpoint import load_parameters, read_config, save_parameters
from pygpt.files.formats import read_model
from pygpt.files.stored_model import StoredModel
from pygpt.parameters import parameter_shapes
from pygpt.text.tokenizer import ByteTokenizer, load_tokenizer

torch = required.module("torch")

CONFIG = GPT2Config(vocab_size=13, n_positions=7, n_embd=6, n_layer=2, n_head=3, n_inner=10)
NANOGPT = GPT2Config(
    vocab_size=13, n_positions=7, n_embd=6, n_layer=2, n_head=3, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1,
    activation_function="gelu",
)  # fmt: skip
ARGUMENTS = {"n_layer": 2, "n_head": 3, "n_embd": 6, "block_size": 7, "bias": True, "vocab_size": 13, "dropout": 0.1}

Tensors = dict[str, Any]


def random_tensors(config: GPT2Config) -> Tensors:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in parameter_shapes(config).items()}


def nanogpt_tensors(tensors: Tensors, prefix: str = "_orig_mod.") -> Tensors:
    """As nanoGPT's model names and stores them: linear weights are (out, in)."""
    linear = {name for name in tensors if name.startswith("h.") and tensors[name].ndim == 2}
    held = {f"{prefix}transformer.{n}": t.T.contiguous() if n in linear else t for n, t in tensors.items()}
    return {**held, f"{prefix}lm_head.weight": held[f"{prefix}transformer.wte.weight"]}


def save_checkpoint(path: Path, tensors: Tensors, arguments: Any = ARGUMENTS, **more: Any) -> Path:
    """As nanoGPT's train.py writes it."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 6e-4}]}
    torch.save(
        {
            "model": tensors, "optimizer": optimizer, "model_args": arguments, "iter_num": 3,
            "best_val_loss": torch.tensor(1.5), "config": {"out_dir": "out", "compile": True, "beta2": 0.99}, **more,
        },
        path,
    )  # fmt: skip
    return path


def assert_holds(model: StoredModel, config: GPT2Config, tensors: Tensors) -> None:
    assert model.config == config
    assert list(model.parameters) == list(parameter_shapes(config))
    for name, values in model.parameters.items():
        assert values.dtype == np.float32 and np.array_equal(values, tensors[name].float().numpy()), name


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_model(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_pytorch_model_bin(tmp_path: Path, dtype: str, zipped: bool) -> None:
    """A folder as transformers wrote it until 2023, with a mask buffer and the head; and the file alone."""
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in random_tensors(CONFIG).items()}
    held = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    held |= {"lm_head.weight": tensors["wte.weight"], "transformer.h.0.attn.bias": torch.ones(1, 1, 7, 7).byte()}
    torch.save(held, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    CONFIG.to_json(tmp_path / "config.json")
    ByteTokenizer().save(tmp_path)
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        assert_holds(read_model(source), CONFIG, tensors)
    import_([str(tmp_path), str(tmp_path / "new")])
    assert_holds(StoredModel(CONFIG, dict(load_parameters(tmp_path / "new", CONFIG))), CONFIG, tensors)
    assert load_tokenizer(tmp_path / "new").name == "byte"


def test_shards(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    CONFIG.to_json(tmp_path / "config.json")
    weight_map = {name: f"pytorch_model-0000{1 + (i % 2)}-of-00002.bin" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        torch.save({name: tensors[name] for name in tensors if weight_map[name] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_holds(read_model(tmp_path), CONFIG, tensors)
    shard = tmp_path / "pytorch_model-00002-of-00002.bin"
    contents = shard.read_bytes()
    shard.write_bytes(contents[:-100])
    assert f"{shard}: is not a file of PyTorch, or a damaged one: " in refused(tmp_path)
    torch.save({"wte.weight": tensors["wte.weight"]}, shard)
    assert "tensor 'wte.weight' is in pytorch_model-00001-of-00002.bin too" in refused(tmp_path)
    shard.unlink()
    assert f"{shard}: cannot be read: No such file" in refused(tmp_path)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
def test_ckpt_pt_of_nanogpt(tmp_path: Path, prefix: str) -> None:
    tensors = random_tensors(NANOGPT)
    held = nanogpt_tensors(tensors, prefix)
    held |= {f"{prefix}transformer.h.{layer}.attn.bias": torch.ones(1, 1, 7, 7) for layer in range(2)}
    path = save_checkpoint(tmp_path / "ckpt.pt", held)
    with pytest.warns(UserWarning) as warnings:
        model = read_model(path)
    said = " ".join(str(warning.message) for warning in warnings)
    assert "linear layers as (out, in); they are transposed" in said
    assert_holds(model, NANOGPT, tensors)
    assert model.read_tokenizer() is None


@pytest.mark.filterwarnings("ignore")
def test_nanogpt_without_biases(tmp_path: Path) -> None:
    tensors = random_tensors(NANOGPT)
    without = {name: tensor for name, tensor in tensors.items() if not name.endswith(".bias")}
    arguments = {**ARGUMENTS, "bias": False}
    path = save_checkpoint(tmp_path / "ckpt.pt", nanogpt_tensors(without), arguments)
    assert_holds(read_model(path), replace(NANOGPT, bias=False), without)
    import_([str(path), str(tmp_path / "new")])
    model = pygpt.GPT2.from_pretrained(tmp_path / "new", device="numpy")
    assert not model.config.bias and np.isfinite(model.forward(np.arange(6)[None], np.arange(1, 7)[None]))
    one = {**without, "ln_f.bias": tensors["ln_f.bias"]}
    path = save_checkpoint(path, nanogpt_tensors(one), arguments)
    assert "holds biases, such as 'ln_f.bias', but model_args has bias: false" in refused(path)
    path = save_checkpoint(path, nanogpt_tensors(without))
    assert "holds no biases, but model_args does not say bias: false" in refused(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", [True, False])
def test_there_and_back_through_nanogpt(tmp_path: Path, bias: bool) -> None:
    config = replace(NANOGPT, bias=bias)
    tensors = random_tensors(config)
    save_parameters(tmp_path / "ours", config, {name: tensor.numpy() for name, tensor in tensors.items()})
    export([str(tmp_path / "ours"), str(tmp_path / "ckpt.pt")])
    assert_holds(read_model(tmp_path / "ckpt.pt"), config, tensors)
    held = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    assert held["model_args"] == {**ARGUMENTS, "bias": bias}
    expected = nanogpt_tensors(tensors, "")
    assert held["model"].keys() == expected.keys()
    assert all(torch.equal(held["model"][name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"activation_function": "gelu_new"}, "nanoGPT's model has activation_function gelu, found gelu_new"),
        ({"tie_word_embeddings": False}, "nanoGPT's model has tie_word_embeddings True, found False"),
        ({"n_inner": 10}, "nanoGPT's model has n_inner 24, found 10"),
    ],
)
def test_what_nanogpt_does_not_have(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    config = replace(NANOGPT, **settings)
    tensors = random_tensors(config)
    save_parameters(tmp_path / "ours", config, {name: tensor.numpy() for name, tensor in tensors.items()})
    with pytest.raises(UserError, match=sentence):
        export([str(tmp_path / "ours"), str(tmp_path / "ckpt.pt")])
    assert not (tmp_path / "ckpt.pt").exists()


@pytest.mark.filterwarnings("ignore")
def test_padding_of_the_vocabulary_is_kept(tmp_path: Path) -> None:
    """nanoGPT's 50304 rows are the model's: what a row of padding would get counts in the softmax."""
    padded = GPT2Config(vocab_size=320, n_positions=7, n_embd=6, n_layer=1, n_head=3)
    arguments = {**ARGUMENTS, "n_layer": 1, "vocab_size": 320, "dropout": 0.0}
    path = save_checkpoint(tmp_path / "ckpt.pt", nanogpt_tensors(random_tensors(padded)), arguments)
    (tmp_path / "data").mkdir()
    ByteTokenizer().save(tmp_path / "data")
    import_([str(path), str(tmp_path / "new"), "--tokenizer", str(tmp_path / "data")])
    assert read_config(tmp_path / "new").vocab_size == 320


class MinGPTBlock(torch.nn.Module):
    """Of minGPT, by its names, with the buffer that holds its mask; without dropout."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        C, T = config.n_embd, config.n_positions
        self.n_head = config.n_head
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(C), torch.nn.LayerNorm(C)
        self.attn = torch.nn.ModuleDict({"c_attn": torch.nn.Linear(C, 3 * C), "c_proj": torch.nn.Linear(C, C)})
        self.attn.register_buffer("bias", torch.tril(torch.ones(T, T)).view(1, 1, T, T))
        self.mlp = torch.nn.ModuleDict({"c_fc": torch.nn.Linear(C, 4 * C), "c_proj": torch.nn.Linear(4 * C, C)})

    def forward(self, x: Any) -> Any:
        B, T, C = x.shape
        qkv = self.attn["c_attn"](self.ln_1(x)).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in qkv)
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        p = scores.masked_fill(self.attn.bias[:, :, :T, :T] == 0, float("-inf")).softmax(-1)
        x = x + self.attn["c_proj"]((p @ v).transpose(1, 2).reshape(B, T, C))
        h = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](torch.nn.functional.gelu(h, approximate="tanh"))


class MinGPT(torch.nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        V, C = config.vocab_size, config.n_embd
        self.transformer = torch.nn.ModuleDict(
            {
                "wte": torch.nn.Embedding(V, C),
                "wpe": torch.nn.Embedding(config.n_positions, C),
                "h": torch.nn.ModuleList([MinGPTBlock(config) for _ in range(config.n_layer)]),
                "ln_f": torch.nn.LayerNorm(C),
            }
        )
        self.lm_head = torch.nn.Linear(C, V, bias=False)

    def forward(self, tokens: Any) -> Any:
        x = self.transformer["wte"](tokens) + self.transformer["wpe"](torch.arange(tokens.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


@pytest.mark.filterwarnings("ignore")
def test_model_pt_of_mingpt(tmp_path: Path) -> None:
    """Its head is not the embedding; a config.json says the sizes, which the file does not."""
    config = GPT2Config(vocab_size=13, n_positions=7, n_embd=6, n_layer=2, n_head=3, tie_word_embeddings=False)
    torch.manual_seed(0)
    model = MinGPT(config)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    config.to_json(tmp_path / "config.json")
    import_([str(tmp_path / "model.pt"), str(tmp_path / "new")])
    tokens = torch.arange(7)[None]
    ours = pygpt.GPT2.from_pretrained(tmp_path / "new", device="numpy", dtype="float64")
    ours.forward(tokens.numpy())
    theirs = model.double()(tokens).detach().numpy()
    assert np.linalg.norm(ours.logits - theirs) <= 1e-12 * np.linalg.norm(theirs)

    replace(config, tie_word_embeddings=True).to_json(tmp_path / "config.json")
    sentence = "lm_head.weight differs from wte.weight, but config.json does not say tie_word_embeddings: false"
    assert sentence in refused(tmp_path / "model.pt")


# ---- what is refused ----


class Command:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "ckpt.pt"
    held = {"model": random_tensors(CONFIG), "model_args": Command(tmp_path / "ran")}
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    assert "holds not only tensors but posix.mkdir, and reading that could run code" in refused(path)
    path.write_bytes(pickle.dumps(Command(tmp_path / "ran"), protocol=2))
    refused(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())  # it would have run
    assert (tmp_path / "ran").exists()


def test_a_configuration_that_is_a_class_is_named(tmp_path: Path) -> None:
    torch.save({"model": random_tensors(CONFIG), "config": SimpleNamespace(n_layer=2)}, tmp_path / "ckpt.pt")
    assert "holds not only tensors but types.SimpleNamespace, and reading" in refused(tmp_path / "ckpt.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (None, "ckpt.pt: holds model_args but not what nanoGPT writes"),
        ({**ARGUMENTS, "n_head": 4}, "ckpt.pt: model_args: n_embd is 6, expected a multiple of n_head, which is 4"),
        ({**ARGUMENTS, "n_layer": None}, "ckpt.pt: model_args: n_layer is None, expected an integer"),
        ({**ARGUMENTS, "n_layer": 3}, "ckpt.pt: tensor h.2.ln_1.weight is missing; found 28 of 40"),
        ({**ARGUMENTS, "n_layer": 2**30}, "too few for the 1073741824 layers of model_args"),
        ({**ARGUMENTS, "n_layer": 1}, "'h.1.ln_1.weight' is not a parameter of the GPT-2 in model_args"),
        ({"n_layer": 2}, "ckpt.pt: model_args: vocab_size is missing"),
        ({**ARGUMENTS, "block_size": 8}, "tensor wpe.weight has shape (7, 6), expected (8, 6)"),
    ],
)
def test_model_args_that_lie(tmp_path: Path, arguments: Any, sentence: str) -> None:
    path = save_checkpoint(tmp_path / "ckpt.pt", nanogpt_tensors(random_tensors(NANOGPT)), arguments)
    assert sentence in refused(path)


def test_other_contents(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    CONFIG.to_json(tmp_path / "config.json")
    tensors = random_tensors(CONFIG)
    for contents, sentence in (
        ([1, 2], "holds 'list', expected tensors by their names"),
        ({"state_dict": tensors}, "holds 'state_dict', which is dict, expected a tensor"),
        ({**tensors, 3: torch.ones(1)}, "holds 3, which is Tensor"),
        (
            {**tensors, "ln_f.bias": torch.ones(6, dtype=torch.int64)},
            "tensor ln_f.bias has dtype torch.int64, expected F32",
        ),
        ({**tensors, "ln_f.bias": torch.ones(1).expand(6)}, "'ln_f.bias' is not stored number by number"),
        ({**tensors, "wte.weight": tensors["wte.weight"].to_sparse()}, "'wte.weight' is not stored number by number"),
        ({**tensors, "h.0.ln_1.weight": torch.full((6,), torch.nan)}, "tensor h.0.ln_1.weight holds nan at [0]"),
    ):
        torch.save(contents, path)
        assert sentence in refused(path)
    torch.save(tensors, path)
    (tmp_path / "config.json").unlink()
    assert "holds no config.json, found 'pytorch_model.bin'" in refused(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_and_damaged(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(random_tensors(CONFIG), path, _use_new_zipfile_serialization=zipped)
    CONFIG.to_json(tmp_path / "config.json")
    contents = path.read_bytes()
    for size in [*range(4, 300, 37), *range(300, len(contents), 997)]:
        path.write_bytes(contents[:size])
        assert refused(path).startswith(f"{path}: ")
    path.write_bytes(contents[:-1])
    assert "is not a file of PyTorch, or a damaged one: " in refused(path)


def test_torch_may_be_absent_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ckpt.pt"
    torch.save({}, path)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    assert "torch 2.5.1+cpu may run code from this file, expected torch 2.6 or later" in refused(path)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert refused(path) == f"{path}: this format needs the package torch: pip install torch"
