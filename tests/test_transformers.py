"""transformers and pygpt open each other's folders and compute the same logits."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import required
from numpy.typing import NDArray
from variations import pairwise

import pygpt
from pygpt.backends.numpy_model import ReferenceGPT2
from pygpt.command import train
from pygpt.config import OWN_VARIATIONS, VARIATIONS, GPT2Config
from pygpt.files.checkpoint import load_parameters, read_config, save_parameters
from pygpt.text.tokenizer import load_tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"
torch = required.module("torch")
transformers = required.module("transformers")
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

CONFIG = GPT2Config(
    vocab_size=61, n_positions=16, n_embd=24, n_layer=3, n_head=3, n_inner=40, layer_norm_epsilon=1e-3,
    initializer_range=0.5, eos_token_id=60,
)  # fmt: skip
THEIRS = [name for name in VARIATIONS if name not in OWN_VARIATIONS]  # variations that transformers has, or bias of 0
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 16))


def reference(folder: Path) -> ReferenceGPT2:
    """pygpt's numpy model in float64 from a folder."""
    config = read_config(folder)
    model = ReferenceGPT2(config)
    for name, value in load_parameters(folder, config):
        model.parameters[name][...] = value
    return model


def logits(model: ReferenceGPT2) -> NDArray[Any]:
    model.forward(TOKENS)
    return model.logits(0, TOKENS.size).reshape(*TOKENS.shape, -1)


def logits_of_transformers(model: Any) -> NDArray[Any]:
    with torch.no_grad():
        return model.double().eval()(torch.from_numpy(TOKENS)).logits.numpy()


def relative_error(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def fresh(config: GPT2Config = CONFIG) -> ReferenceGPT2:
    """A model whose biases and LayerNorm weights are not what a loader would start from."""
    model = ReferenceGPT2(config)
    model.init_weights(1)
    generator = np.random.default_rng(2)
    for value in model.parameters.values():
        value += 0.1 * generator.standard_normal(value.shape)
    return model


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_transformers_opens_what_pygpt_saves(tmp_path: Path, dtype: str) -> None:
    save_parameters(tmp_path, CONFIG, fresh().parameters, dtype)
    model, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == getattr(torch, dtype)
    assert model.config.eos_token_id == 60
    assert model.lm_head.weight is model.transformer.wte.weight
    # Both have the same rounded parameters and compute in float64 from there.
    assert relative_error(logits_of_transformers(model), logits(reference(tmp_path))) < 1e-12


def test_transformers_opens_a_fine_tuned_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder and a text in, a folder out: with the vocabulary of the first, and trained on the second."""
    monkeypatch.chdir(tmp_path)
    old, new = "the cat sat on the mat. " * 40, "a dog lay under a tree, the dog lay. " * 40
    Path("old.txt").write_text(old)
    Path("new.txt").write_text(new)
    sizes = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--seq-len", "16"]
    run = ["--device", "numpy", "--batch-size", "2", "--max-iters", "20", "--eval-interval", "20"]
    train.main(["--data", "old.txt", "--out-dir", "base", *sizes, *run])
    train.main(["--init-from", "base/best", "--data", "new.txt", "--out-dir", "tuned", "--learning-rate", "1e-2", *run])
    losses = []
    for folder in ("base/best", "tuned/best"):
        tokens = transformers.AutoTokenizer.from_pretrained(folder)(new, return_tensors="pt")["input_ids"][:, :17]
        assert tokens[0].tolist() == load_tokenizer(folder).encode(new)[:17].tolist()
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            losses.append(model(tokens[:, :-1], labels=tokens[:, :-1]).loss.item())
        ours = pygpt.GPT2.from_pretrained(folder, device="numpy")
        assert ours.forward(tokens[:, :-2].numpy(), tokens[:, 1:-1].numpy()) == pytest.approx(losses[-1], rel=1e-5)
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"device": "numpy", "dtype": "float64"}, 1e-12),
        ({"device": "numpy"}, 1e-5),
        ({"device": "cpu", "kernels": "plain"}, 1e-5),
        ({"device": "cpu", "kernels": "fast"}, 1e-5),
    ],
)
def test_there_and_back_through_every_backend(tmp_path: Path, settings: dict[str, str], bound: float) -> None:
    save_parameters(tmp_path / "ours", CONFIG, fresh().parameters)
    model = pygpt.GPT2.from_pretrained(tmp_path / "ours", **settings)
    model.forward(TOKENS)
    model.save_pretrained(tmp_path / "again")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "again")
    assert relative_error(model.logits, logits_of_transformers(theirs)) < bound


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_pygpt_opens_what_transformers_saves(tmp_path: Path, kind: str, dtype: str, shard: str) -> None:
    save_parameters(tmp_path / "ours", CONFIG, fresh().parameters)
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").to(getattr(torch, dtype))
    part = model if kind == "GPT2LMHeadModel" else model.transformer  # with the prefix `transformer.`, without
    part.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert (tmp_path / "theirs" / "model.safetensors").exists() == (shard == "1GB")
    ours = reference(tmp_path / "theirs")
    assert (ours.config.n_inner, ours.config.layer_norm_epsilon) == (40, 1e-3)
    assert relative_error(logits(ours), logits_of_transformers(model)) < 1e-12


@pytest.mark.parametrize(
    "activation", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu", "gelu_python", "relu"]
)
@pytest.mark.parametrize("n_inner", [None, 8])
def test_settings_mean_the_same(tmp_path: Path, activation: str, n_inner: int | None) -> None:
    config = GPT2Config(
        vocab_size=61, n_positions=16, n_embd=16, n_layer=1, n_head=4, n_inner=n_inner, initializer_range=0.5,
    )  # fmt: skip
    save_parameters(tmp_path, config, fresh(config).parameters)
    values = {**config.to_dict(), "activation_function": activation}
    (tmp_path / "config.json").write_text(json.dumps(values))
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    bound = 1e-10 if activation == "gelu_fast" else 1e-12  # its sqrt(2/pi) has ten digits
    assert relative_error(logits_of_transformers(model), logits(reference(tmp_path))) < bound


def test_rotary_positions_are_those_of_gpt_neox() -> None:
    """Its layer, in float64, with the angles that it makes in float32."""
    neox = transformers.models.gpt_neox.modeling_gpt_neox
    (B, T, NH, HS), rng = (2, 7, 3, 10), np.random.default_rng(0)
    qkv = rng.normal(size=(B, T, 3, NH, HS))
    settings = {"hidden_size": NH * HS, "num_attention_heads": NH, "max_position_embeddings": T}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    config = transformers.GPTNeoXConfig(**settings, rope_parameters=rope)
    q, k = (torch.from_numpy(qkv[:, :, i]).transpose(1, 2) for i in range(2))
    cos, sin = neox.GPTNeoXRotaryEmbedding(config)(q, torch.arange(T)[None])
    assert cos.shape[-1] == HS  # all channels turn
    theirs = [x.transpose(1, 2).numpy() for x in neox.apply_rotary_pos_emb(q, k, cos, sin)]
    ours = pygpt.layers("numpy").rotary_forward(qkv.reshape(B, T, -1), NH).reshape(qkv.shape)
    assert relative_error(np.stack(theirs, 2), ours[:, :, :2]) < 1e-6


def cross_entropy_backward(model: Any) -> None:
    """Of each next token; the model's own loss is in float32."""
    tokens = torch.from_numpy(TOKENS).long()
    predictions = model(tokens).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(predictions, tokens[:, 1:].flatten()).backward()


NEXT = np.pad(TOKENS[:, 1:], ((0, 0), (0, 1)), constant_values=-1)


def test_post_norm_is_that_of_the_first_gpt() -> None:
    """Logits and gradients of openai-gpt, whose parameters have our names but for the two embeddings."""
    ours = fresh(replace(CONFIG, n_inner=None, norm_position="post"))
    shape = {"vocab_size": 61, "n_positions": 16, "n_embd": 24, "n_layer": 3, "n_head": 3, "layer_norm_epsilon": 1e-3}
    settings = {"afn": "gelu", "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}  # its "gelu" is gelu_new
    model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**shape, **settings)).double()
    names = {"wte.weight": "tokens_embed.weight", "wpe.weight": "positions_embed.weight"}
    theirs = dict(model.named_parameters())
    theirs = {name: theirs.pop(f"transformer.{names.get(name, name)}") for name in ours.parameters}
    assert len(theirs) == len(list(model.parameters()))
    with torch.no_grad():
        for name, value in ours.parameters.items():
            theirs[name].copy_(torch.from_numpy(value))
    assert relative_error(logits(ours), logits_of_transformers(model)) < 1e-12
    cross_entropy_backward(model)
    ours.forward_backward(TOKENS, NEXT)
    for name, gradient in ours.gradients.items():
        if "c_attn.bias" not in name:  # of keys it is 0
            assert relative_error(theirs[name].grad.numpy(), gradient) < 1e-10, name


@pytest.mark.parametrize("settings", list(pairwise({name: VARIATIONS[name] for name in THEIRS})), ids=str)
def test_variations_mean_the_same(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Logits and gradients, of a model that pygpt has saved and of the same when transformers has saved it."""
    config = replace(CONFIG, **settings)
    save_parameters(tmp_path / "ours", config, fresh(config).parameters)
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").double()
    assert relative_error(logits_of_transformers(model), logits(reference(tmp_path / "ours"))) < 1e-12
    ours = reference(tmp_path / "ours")
    cross_entropy_backward(model)
    ours.forward_backward(TOKENS, NEXT)
    theirs = dict(model.named_parameters())
    for parameter, gradient in ours.gradients.items():
        found = theirs[parameter if parameter == "lm_head.weight" else f"transformer.{parameter}"].grad.numpy()
        if "c_attn.bias" not in parameter:  # of keys it is 0
            assert relative_error(found, gradient) < 1e-10, parameter
    if config.bias:  # transformers has them always
        model.save_pretrained(tmp_path / "theirs")
        assert relative_error(logits(reference(tmp_path / "theirs")), logits_of_transformers(model)) < 1e-6


def test_defaults_are_those_of_transformers() -> None:
    theirs = transformers.GPT2Config().to_dict()
    ours = GPT2Config().to_dict()
    for name in set(ours) - {"architectures", "torch_dtype", "bos_token_id", "eos_token_id", "bias"}:
        if not name.endswith("_pdrop"):  # none of ours is dropped unless asked for
            assert ours[name] == theirs[name], name
