"""Where a model's name leads: a folder, a cache, or a server that stands in for huggingface.co."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.files.checkpoint import load_parameters, read_config, save_parameters
from pygpt.files.hub import resolve_folder
from pygpt.reference.gpt2 import parameter_shapes

CONFIG = GPT2Config(vocab_size=5, n_positions=4, n_embd=4, n_layer=1, n_head=2)


def save(folder: Path) -> None:
    zeros = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(CONFIG).items()}
    save_parameters(folder, CONFIG, zeros)


class Hub:
    """A server with the addresses of huggingface.co, and what it was asked for."""

    def __init__(self, files: Path) -> None:
        self.files = files
        self.asked: list[str] = []
        self.answer = 200
        self.missing_bytes = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                file = hub.files / self.path.strip("/").replace("/resolve/main/", "/")
                if hub.answer != 200 or not file.is_file():
                    self.send_error(404 if hub.answer == 200 else hub.answer)
                    return
                data = file.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) - hub.missing_bytes])

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(tmp_path / "served")
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_a_folder_is_itself(hub: Hub, tmp_path: Path) -> None:
    save(tmp_path / "gpt2")
    assert resolve_folder("gpt2") == Path("gpt2")
    assert resolve_folder(tmp_path / "gpt2") == tmp_path / "gpt2"
    assert hub.asked == []


def test_a_run_is_not_a_model(hub: Hub, tmp_path: Path) -> None:
    save(tmp_path / "run" / "last")
    assert refused("run") == "run: holds no config.json, expected a model's folder; did you mean run/last?"
    save(tmp_path / "run" / "best")
    assert refused("run").endswith("did you mean run/best?")
    save(tmp_path / "killed" / ".saving")  # by a run that was killed while it saved
    assert resolve_folder("killed") == Path("killed")
    (tmp_path / "empty").mkdir()
    assert resolve_folder("empty") == Path("empty")


def test_hugging_face_s_cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "cache/huggingface/hub/models--openai-community--gpt2"
    save(model / "snapshots" / "abc123")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc123")
    assert resolve_folder("gpt2") == model / "snapshots" / "abc123"
    assert resolve_folder("openai-community/gpt2") == model / "snapshots" / "abc123"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError):
        resolve_folder("gpt2")
    (tmp_path / "cache/huggingface").rename(tmp_path / "home")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert read_config(resolve_folder("gpt2")) == CONFIG
    assert [path for path in hub.asked if "openai" in path] == []


def test_download(hub: Hub) -> None:
    save(hub.files / "someone" / "tiny")
    others = ["generation_config.json", "tokenizer.json", "vocab.json"]
    for name in others:
        (hub.files / "someone" / "tiny" / name).write_text("{}")
    folder = resolve_folder("someone/tiny")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", *others}
    assert len(list(load_parameters(folder, read_config(folder)))) == len(parameter_shapes(CONFIG))
    hub.asked.clear()
    assert resolve_folder("someone/tiny") == folder
    assert hub.asked == []


def test_download_of_shards(hub: Hub) -> None:
    served = hub.files / "tiny"
    save(served)
    tensors = load_file(served / "model.safetensors")
    (served / "model.safetensors").unlink()
    for number in range(2):
        save_file(dict(list(tensors.items())[number::2]), served / f"model-{number}.safetensors")
    weight_map = {name: f"model-{k % 2}.safetensors" for k, name in enumerate(tensors)}
    (served / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    folder = resolve_folder("tiny")
    assert len(list(load_parameters(folder, read_config(folder)))) == len(tensors)


def refused(name: str) -> str:
    with pytest.raises(UserError) as error:
        resolve_folder(name)
    cache = Path("cache/pygpt/models")
    assert not cache.exists() or list(cache.iterdir()) == []
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_that_lead_nowhere(hub: Hub, tmp_path: Path) -> None:
    assert refused("nobody") == f"nobody: no such folder, and no model of this name on {hub.address}"
    for name in ("a/b/c", "/no/where", "../x", "a b", "ä", "./gpt2"):
        hub.asked.clear()
        assert refused(name) == f"{name}: no such folder"
        assert hub.asked == []
    assert "File name too long" in refused("x" * 5000)
    (tmp_path / "file").write_text("")
    assert refused("file") == "file: is a file, expected a model's folder"


def test_another_kind_of_model_is_not_fetched_whole(hub: Hub) -> None:
    save(hub.files / "llama")
    (hub.files / "llama" / "config.json").write_text('{"model_type": "llama"}')
    assert "model_type is 'llama', expected 'gpt2'" in refused("llama")
    assert hub.asked == ["/llama/resolve/main/config.json"]


def test_a_folder_without_weights(hub: Hub) -> None:
    save(hub.files / "tiny")
    (hub.files / "tiny" / "model.safetensors").rename(hub.files / "tiny" / "pytorch_model.bin")
    assert refused("tiny") == f"tiny: its folder on {hub.address} holds no model.safetensors"


def test_a_download_that_breaks_off(hub: Hub) -> None:
    save(hub.files / "tiny")
    hub.missing_bytes = 10
    assert "the download of config.json broke off after" in refused("tiny")
    hub.missing_bytes = 0
    hub.answer = 503
    assert "answers 503 Service Unavailable" in refused("tiny")
    hub.answer = 200
    assert read_config(resolve_folder("tiny")) == CONFIG


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids a download" in refused("gpt2")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    sentence = "gpt2: no such folder, not in the Hugging Face cache, and no download from http://127.0.0.1:9: "
    assert refused("gpt2") == sentence + "Connection refused"
    assert hub.asked == []
