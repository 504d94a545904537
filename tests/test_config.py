"""GPT2Config: its numbers, its refusals, and the config.json that it reads and writes."""

import json
from pathlib import Path

import numpy as np
import pytest

from pygpt.config import MODEL_SIZES, GPT2Config
from pygpt.errors import UserError
from pygpt.parameters import parameter_table

# What OpenAI's gpt2 has on the hub, without the keys of other tasks.
HUB_CONFIG = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_type": "cls_index",
    "vocab_size": 50257,
}


@pytest.mark.parametrize(
    ("name", "count"),
    [("gpt2", 124439808), ("gpt2-medium", 354823168), ("gpt2-large", 774030080), ("gpt2-xl", 1557611200)],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert MODEL_SIZES[name].num_parameters == count
    assert MODEL_SIZES[name].head_size == 64


@pytest.mark.parametrize("inner", [None, 1, 40])
def test_parameter_count_is_that_of_the_table(inner: int | None) -> None:
    config = GPT2Config(vocab_size=65, n_positions=9, n_embd=6, n_layer=3, n_head=2, n_inner=inner)
    assert config.num_parameters == sum(int(np.prod(parameter.shape)) for parameter in parameter_table(config))


def test_parameters_of_absurdly_many_blocks_are_counted_without_a_table_of_them() -> None:
    one, two, many = (GPT2Config(n_layer=n_layer).num_parameters for n_layer in (1, 2, 2**31 - 1))
    assert many == one + (2**31 - 2) * (two - one)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_layer": 0}, "n_layer is 0, expected an integer from 1"),
        (
            {"position_embedding": "alibi"},
            "position_embedding is 'alibi', expected 'learned', 'sinusoidal', 'rotary' or",
        ),
        (
            {"position_embedding": "rotary", "n_embd": 12, "n_head": 4},
            "but n_embd / n_head is 12 / 4 = 3, expected an even number",
        ),
        ({"vocab_size": -5}, "vocab_size is -5"),
        ({"vocab_size": 2**31}, "vocab_size is 2147483648, expected an integer from 1 to 2147483647"),
        ({"n_positions": 10**5000}, "n_positions is "),
        ({"n_embd": 768.0}, "n_embd is 768.0, expected an integer"),
        ({"n_head": True}, "n_head is True, expected an integer"),
        ({"n_head": None}, "n_head is None, expected an integer"),
        ({"n_inner": 0}, "n_inner is 0"),
        ({"n_embd": 770}, "n_embd is 770, expected a multiple of n_head, which is 12"),
        ({"vocab_size": 2**31 - 1, "n_embd": 12 * 10**8}, "parameters, expected less than 2^61"),
        ({"activation_function": "silu"}, "activation_function is 'silu', expected 'gelu_new', 'gelu' or 'relu'"),
        ({"activation_function": ["x"] * 999}, "activation_function is ['x', 'x'"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0 in float32"),
        ({"layer_norm_epsilon": 1e-60}, "layer_norm_epsilon is 0 in float32"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
        ({"layer_norm_epsilon": 1e39}, "layer_norm_epsilon is 1e+39, expected a number that is finite in float32"),
        ({"initializer_range": -0.02}, "initializer_range is -0.02"),
        ({"initializer_range": "0.02"}, "initializer_range is '0.02', expected a number"),
        ({"embd_pdrop": 1}, "embd_pdrop is 1, expected a probability of at least 0 and below 1"),
        ({"attn_pdrop": -0.1}, "attn_pdrop is -0.1"),
        ({"resid_pdrop": 1 - 1e-12}, "resid_pdrop is 1, expected a probability"),
        ({"resid_pdrop": 10**400}, "resid_pdrop is 1"),
        ({"eos_token_id": 50257}, "eos_token_id is 50257, expected a token from 0 to 50256"),
        ({"bos_token_id": "a"}, "bos_token_id is 'a', expected a token"),
    ],
)
def test_refuses(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as error:
        GPT2Config(**settings)  # type: ignore[arg-type]
    assert words in str(error.value)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_numpy_numbers_become_plain_ones() -> None:
    config = GPT2Config(n_layer=np.int64(3), embd_pdrop=np.float32(0.5))  # type: ignore[arg-type]
    assert type(config.n_layer) is int
    assert type(config.embd_pdrop) is float
    json.dumps(config.to_dict())


def test_reads_the_hub_s_config(tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(HUB_CONFIG))
    expected = GPT2Config(embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1, bos_token_id=50256, eos_token_id=50256)
    assert GPT2Config.from_json(path) == expected


def test_round_trip(tmp_path) -> None:
    config = GPT2Config(
        vocab_size=65, n_embd=96, n_head=8, n_inner=100, activation_function="relu", embd_pdrop=0.3,
        layer_norm_epsilon=1e-6, eos_token_id=7,
    )  # fmt: skip
    config.to_json(tmp_path / "config.json", "bfloat16")
    assert GPT2Config.from_json(tmp_path / "config.json") == config
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["torch_dtype"] == "bfloat16"
    assert written["architectures"] == ["GPT2LMHeadModel"]


def test_n_ctx_stands_in_for_n_positions() -> None:
    values = {key: value for key, value in HUB_CONFIG.items() if key != "n_positions"}
    assert GPT2Config.from_dict({**values, "n_ctx": 512}).n_positions == 512
    assert GPT2Config.from_dict({**values, "n_ctx": 512, "n_positions": None}).n_positions == 512


def test_token_ids_of_other_files() -> None:
    assert GPT2Config.from_dict({**HUB_CONFIG, "vocab_size": 1000}).eos_token_id is None
    assert GPT2Config.from_dict({**HUB_CONFIG, "eos_token_id": [50256, 198]}).eos_token_id == 50256
    assert GPT2Config.from_dict({**HUB_CONFIG, "eos_token_id": []}).eos_token_id is None


def test_null_is_as_if_absent() -> None:
    flags = ("scale_attn_by_inverse_layer_idx", "add_cross_attention", "is_encoder_decoder")
    optional = ("n_inner", "activation_function", "layer_norm_epsilon", "attn_pdrop", "eos_token_id")
    values = {name: value for name, value in HUB_CONFIG.items() if name not in optional}
    assert GPT2Config.from_dict({**values, **dict.fromkeys((*flags, *optional))}) == GPT2Config.from_dict(values)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gelu_pytorch_tanh", "gelu_new"),
        ("gelu_fast", "gelu_new"),
        ("gelu_accurate", "gelu_new"),
        ("gelu_python", "gelu"),
    ],
)
def test_further_names_of_the_gelu(name: str, function: str) -> None:
    assert GPT2Config.from_dict({**HUB_CONFIG, "activation_function": name}).activation_function == function


def test_a_byte_order_mark(tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(HUB_CONFIG), encoding="utf-8-sig")
    assert GPT2Config.from_json(path) == GPT2Config.from_dict(HUB_CONFIG)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', expected 'gpt2'"),
        ({"scale_attn_weights": None}, "scale_attn_weights is None, expected True or False"),  # falsy: not scaled
        ({"scale_attn_by_inverse_layer_idx": 2}, "scale_attn_by_inverse_layer_idx is 2, expected False or True"),
        ({"norm_position": "sandwich"}, "norm_position is 'sandwich', expected 'pre' or 'post'"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"activation_function": "silu"}, "activation_function is 'silu'"),
        ({"n_layer": None}, "n_layer is None"),
    ],
)
def test_refuses_other_mathematics(tmp_path, change: dict[str, object], words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**HUB_CONFIG, **change}))
    with pytest.raises(UserError) as error:
        GPT2Config.from_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["vocab_size", "n_embd", "n_layer", "n_head"])
def test_sizes_must_be_there(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is missing"):
        GPT2Config.from_dict({key: value for key, value in HUB_CONFIG.items() if key != name})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is not JSON"),
        (b'{"n_layer": 12', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"n_layer": ' + b"9" * 10_000 + b"}", "is"),
        (b"[1, 2]", "holds a JSON list, expected an object"),
        (b" " * (2**24 + 1), "is longer than 16777216 bytes"),
    ],
)
def test_refuses_files_that_are_no_configuration(tmp_path, text: bytes, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(UserError) as error:
        GPT2Config.from_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(UserError, match=r"config\.json: cannot be read: No such file"):
        GPT2Config.from_json(tmp_path / "config.json")


def test_what_transformers_does_not_have_is_not_called_gpt2(tmp_path: Path) -> None:
    """transformers' GPT-2 would compute something else from such a folder."""
    assert "position_embedding" not in GPT2Config().to_dict()
    config = GPT2Config(position_embedding="sinusoidal")
    config.to_json(tmp_path / "config.json")
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["model_type"], values["position_embedding"]) == ("pygpt", "sinusoidal")
    assert "architectures" not in values
    assert GPT2Config.from_json(tmp_path / "config.json") == config
