"""Values that others have published for OpenAI's GPT-2 124M, where its weights are on this machine.

PYGPT_GPT2 names the model's folder; without it, Hugging Face's cache is searched.  PYGPT_TASKS names the folder with
the files of the tasks; without it, they are where `pygpt evaluate` keeps its downloads.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import required

import pygpt
from pygpt.errors import UserError
from pygpt.evaluation import examples, hellaswag, lambada
from pygpt.files import hub
from pygpt.files.checkpoint import read_config
from pygpt.files.download import Download
from pygpt.opening import open_model, open_tokenizer
from pygpt.text.batches import TokenDataset
from pygpt.text.prepare import prepare
from pygpt.text.tokenizer import Tokenizer

BATCH_SIZE = 8

Opened = tuple[pygpt.GPT2, Tokenizer]


@pytest.fixture
def gpt2(monkeypatch: pytest.MonkeyPatch) -> Opened:
    def refuse(name: str) -> Path:
        raise UserError(f"{name} is not on this machine")

    monkeypatch.setattr(hub, "_download", refuse)
    try:
        folder = hub.resolve_folder(os.environ.get("PYGPT_GPT2", "gpt2"))
    except UserError as error:
        required.skip("published", f"needs OpenAI's weights (set PYGPT_GPT2): {error}")
    config = read_config(folder)
    assert config.num_parameters == 124_439_808
    return open_model(folder, config, batch_size=BATCH_SIZE), open_tokenizer(folder, config)


def task_file(published: Download) -> Path:
    path = Path(os.environ.get("PYGPT_TASKS", Path(__file__).parents[1] / examples.FOLDER)) / published.file_name
    if not path.is_file():
        required.skip("published", f"needs {path} (set PYGPT_TASKS)")
    return path


def test_loss_of_transformer_lens(gpt2: Opened) -> None:
    model, tokenizer = gpt2
    tokens = [tokenizer.eot_token, *tokenizer.encode("Hello world!")]
    assert model.forward([tokens[:-1]], [tokens[1:]]) == pytest.approx(5.331856, abs=1e-4)


def test_losses_of_llmc(gpt2: Opened, shared_data: Path, tmp_path: Path) -> None:
    """Ten steps on the first batch of tiny Shakespeare, within the tolerance of llm.c's own test."""
    model, tokenizer = gpt2
    prepare("shakespeare", tokenizer, tmp_path / "tokens", from_file=shared_data / "tinyshakespeare.txt")
    tokens = TokenDataset(tmp_path / "tokens", "val").tokens()[: 4 * 64 + 1]
    losses = []
    for _ in range(10):
        model.zero_grad()
        losses.append(model.forward_backward(tokens[:-1].reshape(4, 64), tokens[1:].reshape(4, 64)))
        model.adamw_step(lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    published = [5.270007, 4.059707, 3.375123, 2.800783, 2.315382, 1.849029, 1.394656, 0.999147, 0.624080, 0.376511]
    assert losses == pytest.approx(published, abs=1e-2)


def test_hellaswag_of_llmc(gpt2: Opened) -> None:
    """Theirs were computed in TF32, which may decide a few of 10,042 examples."""
    choices = hellaswag.read_choices(task_file(hellaswag.PUBLISHED))
    metrics = hellaswag.evaluate(*gpt2, choices, batch_size=BATCH_SIZE).metrics
    assert metrics["accuracy"].value == pytest.approx(0.2859, abs=1e-3)
    assert metrics["normalised_accuracy"].value == pytest.approx(0.2955, abs=1e-3)


def test_lambada_of_the_harness(gpt2: Opened) -> None:
    """What lm-evaluation-harness reports for gpt2 (EleutherAI/lm-evaluation-harness, issue 2159)."""
    passages = lambada.read_passages(task_file(lambada.PUBLISHED))
    metrics = lambada.evaluate(*gpt2, passages, batch_size=BATCH_SIZE).metrics
    assert metrics["accuracy"].value == pytest.approx(0.3256, abs=5e-4)
    assert metrics["perplexity"].value == pytest.approx(40.0554, rel=1e-3)
