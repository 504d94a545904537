"""lm-evaluation-harness measures the same with pygpt as with transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import required
from test_tokenizer import write_vocabulary

import pygpt
from pygpt.errors import UserError
from pygpt.text.tokenizer import GPT2Tokenizer

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
for name in ("torch", "transformers", "accelerate"):
    required.module(name)
instance, registry = required.module("lm_eval.api.instance"), required.module("lm_eval.api.registry")
harness = required.module("pygpt.evaluation.harness")
Instance = instance.Instance


ROOT = Path(__file__).parents[1]
TEXTS = [
    "hello, hello! He said hello to the whole hall, and all the others said it, too.",
    "",
    "h",
    "Ein Satz mit Ümlauten — und 数字 1234.\n\nA new paragraph  with  spaces.",
    "a text that is longer than the context of the model " * 5,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with large weights, so that its predictions differ, and a small vocabulary."""
    folder = tmp_path_factory.mktemp("model")
    write_vocabulary(folder)
    tokenizer = GPT2Tokenizer.from_folder(folder)
    eot = tokenizer.eot_token
    config = pygpt.GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=48, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
        bos_token_id=eot, eos_token_id=eot,
    )  # fmt: skip
    pygpt.GPT2(config, seed=1).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def open_both(folder: Path) -> tuple[Any, Any]:
    ours = registry.get_model("pygpt").create_from_arg_string(f"pretrained={folder},device=cpu", {"batch_size": 3})
    theirs = registry.get_model("hf").create_from_arg_string(
        f"pretrained={folder},dtype=float32", {"batch_size": 3, "device": "cpu"}
    )
    return ours, theirs


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[Any, Any]:
    return open_both(folder)


def ask(models: tuple[Any, Any], kind: str, arguments: list[tuple[Any, ...]]) -> tuple[Any, Any]:
    requests = [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]
    ours, theirs = (getattr(model, kind)(requests, disable_tqdm=True) for model in models)
    assert len(ours) == len(theirs) == len(arguments)
    return ours, theirs


def test_loglikelihood(both: tuple[Any, Any]) -> None:
    pairs = [(text[:cut], text[cut : cut + 20]) for text in TEXTS if len(text) > 1 for cut in (0, 1, 7, 30)]
    contexts = [TEXTS[0][:end] for end in range(5, 40)]
    likeliest = ask(both, "generate_until", [(context, {"max_gen_toks": 1}) for context in contexts])[0]
    pairs += [pair for pair in zip(contexts, likeliest, strict=True) if pair[1].isascii()]
    pairs += [("trailing space ", "and more"), (TEXTS[4], " and the end")]
    ours, theirs = ask(both, "loglikelihood", [pair for pair in pairs if pair[1]])
    np.testing.assert_allclose([value for value, _ in ours], [value for value, _ in theirs], rtol=1e-4)
    assert [likeliest for _, likeliest in ours] == [likeliest for _, likeliest in theirs]
    assert True in [likeliest for _, likeliest in ours]


def test_loglikelihood_rolling(both: tuple[Any, Any]) -> None:
    ours, theirs = ask(both, "loglikelihood_rolling", [(text,) for text in TEXTS])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[1] == 0


@pytest.mark.parametrize("until", [[], ["e"], ["\n\n", "ll"]])
def test_generate_until(both: tuple[Any, Any], until: list[str]) -> None:
    settings = {"max_gen_toks": 12, "do_sample": False, "until": until}
    arguments = [(text, settings) for text in TEXTS if text]
    alone = [ask(both, "generate_until", [one]) for one in arguments]  # theirs depend on what they are padded with
    assert [ours for ours, _ in alone] == [theirs for _, theirs in alone]
    assert ask(both, "generate_until", arguments)[0] == [ours[0] for ours, _ in alone]


def test_generation_ends_at_the_end_of_text_token(folder: Path, tmp_path: Path) -> None:
    """Which is here the likeliest after whatever text."""
    model, tokenizer = pygpt.GPT2.from_pretrained(folder), GPT2Tokenizer.from_folder(folder)
    embedding = np.array(model.parameters["wte.weight"])
    embedding[tokenizer.eot_token] *= 10
    model.set_parameter("wte.weight", embedding)
    model.set_parameter("ln_f.weight", np.zeros(32))
    model.set_parameter("ln_f.bias", embedding[tokenizer.eot_token])
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    assert ask(open_both(tmp_path), "generate_until", [("hello", {"max_gen_toks": 4})]) == ([""], [""])


def test_sampling_and_names_of_the_limit(both: tuple[Any, Any]) -> None:
    ours = both[0]
    for name in ("max_gen_toks", "max_new_tokens"):
        settings = {name: 5, "do_sample": True, "temperature": 2.0, "top_k": 0, "until": "zzz"}
        (text,) = ours.generate_until([Instance("generate_until", {}, ("hello", settings), 0)])
        assert 0 < len(ours.tok_encode(text)) <= 5


def test_wrong_arguments(folder: Path) -> None:
    with pytest.raises(UserError, match="nonsense is not an argument of model pygpt"):
        harness.PygptLM(str(folder), nonsense=1)
    with pytest.raises(UserError, match="no/such/: no such folder"):
        harness.PygptLM("no/such/")


TASK = """
task: local
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text.rsplit(' ', 1)[0]}}}}"
doc_to_target: " {{{{text.split(' ')[-1]}}}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def test_the_command(folder: Path, tmp_path: Path) -> None:
    """A task as lambada_openai is one, measured by the harness with both models and by pygpt evaluate."""
    data = tmp_path / "passages.jsonl"
    data.write_text(
        "".join(json.dumps({"text": text.strip()}) + "\n" for text in TEXTS if " " in text).replace("  ", " ")
    )
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "local.yaml").write_text(TASK.format(data=data))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "cache")}
    found = {}
    for model, module in (("pygpt", "pygpt.evaluation.harness"), ("hf", "lm_eval")):
        out = tmp_path / model
        arguments = ["--model", model, "--model_args", f"pretrained={folder}", "--tasks", "local", "--device", "cpu"]
        arguments += ["--include_path", str(tasks), "--output_path", str(out), "--batch_size", "2"]
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        (results,) = out.rglob("results*.json")
        found[model] = json.loads(results.read_text())["results"]["local"]
    assert found["pygpt"]["perplexity,none"] == pytest.approx(found["hf"]["perplexity,none"], rel=1e-4)
    assert found["pygpt"]["acc,none"] == found["hf"]["acc,none"]
    report = tmp_path / "report.json"
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), str(folder), "--task", "lambada"]
    subprocess.run([*command, "--data", str(data), "--json", str(report)], check=True, capture_output=True)
    metrics = json.loads(report.read_text())["metrics"]
    assert metrics["perplexity"]["value"] == pytest.approx(found["hf"]["perplexity,none"], rel=1e-4)
    assert metrics["accuracy"]["value"] == found["hf"]["acc,none"]
