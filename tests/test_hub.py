"""Where a model's name leads: a folder, a cache, or a server that stands in for huggingface.co."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import required
from safetensors.numpy import load_file, save_file

from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.files.checkpoint import load_parameters, read_config, save_parameters
from pygpt.files.hub import resolve_folder
from pygpt.parameters import parameter_shapes

CONFIG = GPT2Config(vocab_size=5, n_positions=4, n_embd=4, n_layer=1, n_head=2)


def save(folder: Path) -> None:
    zeros = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(CONFIG).items()}
    save_parameters(folder, CONFIG, zeros)


def save_shards(folder: Path) -> None:
    save(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for number in range(2):
        save_file(dict(list(tensors.items())[number::2]), folder / f"model-{number}.safetensors")
    weight_map = {name: f"model-{k % 2}.safetensors" for k, name in enumerate(tensors)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


# ---- on this machine ----


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches, the current folder, and no huggingface_hub."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


def refused(name: str) -> str:
    with pytest.raises(UserError) as error:
        resolve_folder(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_is_itself(machine: None, tmp_path: Path) -> None:
    save(tmp_path / "gpt2")
    assert resolve_folder("gpt2") == Path("gpt2")
    assert resolve_folder(tmp_path / "gpt2") == tmp_path / "gpt2"


def test_a_run_is_not_a_model(machine: None, tmp_path: Path) -> None:
    save(tmp_path / "run" / "last")
    assert refused("run") == "run: holds no config.json, expected a model's folder; did you mean run/last?"
    save(tmp_path / "run" / "best")
    assert refused("run").endswith("did you mean run/best?")
    save(tmp_path / "killed" / ".saving")  # by a run that was killed while it saved
    assert resolve_folder("killed") == Path("killed")
    (tmp_path / "empty").mkdir()
    assert resolve_folder("empty") == Path("empty")


def test_names_that_lead_nowhere(machine: None, tmp_path: Path) -> None:
    for name in ("a/b/c", "/no/where", "../x", "a b", "ä", "./gpt2"):
        assert refused(name) == f"{name}: no such folder"
    assert "File name too long" in refused("x" * 5000)
    (tmp_path / "file").write_text("")
    assert refused("file").startswith(
        "file: is a file, expected a model's folder; python scripts/import_weights.py file"
    )


def test_without_the_extra(machine: None) -> None:
    assert refused("gpt2") == (
        "gpt2: no such folder, and not on this machine; pip install 'pygpt[hub]' makes pygpt download it, or download "
        "the model's files yourself and give the path of their folder"
    )


def test_hugging_face_s_cache(machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "cache/huggingface/hub/models--openai-community--gpt2"
    save(model / "snapshots" / "abc123")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc123")
    assert resolve_folder("gpt2") == model / "snapshots" / "abc123"
    assert resolve_folder("openai-community/gpt2") == model / "snapshots" / "abc123"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert "not on this machine" in refused("gpt2")
    (tmp_path / "cache/huggingface").rename(tmp_path / "home")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert read_config(resolve_folder("gpt2")) == CONFIG


@pytest.mark.parametrize("save_model, file", [(save, "model.safetensors"), (save_shards, "model-1.safetensors")])
def test_half_a_model_is_none(save_model: Any, file: str, machine: None, tmp_path: Path) -> None:
    """Where somebody else's download was interrupted."""
    model = tmp_path / "cache/huggingface/hub/models--someone--tiny"
    save_model(model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    assert resolve_folder("someone/tiny") == model / "snapshots" / "abc"
    (model / "snapshots" / "abc" / file).unlink()
    assert "not on this machine" in refused("someone/tiny")


def test_what_earlier_versions_downloaded(machine: None, tmp_path: Path) -> None:
    folder = tmp_path / "cache/pygpt/models/someone--tiny"
    save(folder)
    assert resolve_folder("someone/tiny") == folder


# ---- from the hub ----


class Hub:
    """A server with the addresses of huggingface.co, and what it was asked for."""

    SHA = "0123456789abcdef" * 2 + "01234567"

    def __init__(self, files: Path) -> None:
        self.files = files
        self.downloads: list[str] = []  # names of files
        self.asked = 0
        self.token = ""  # with which alone files are given
        self.broken = ""  # a file
        self.held = ""  # a file of which half comes, and the rest never
        self.holding = threading.Event()
        self.closing = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.asked += 1
                path = self.path.partition("?")[0].strip("/")
                if match := re.fullmatch(r"api/models/([\w/]+?)(/revision/main|/tree/\w+)?", path):
                    self.answer_about(hub.files / match[1], (match[2] or "").startswith("/tree"))
                elif match := re.fullmatch(rf"([\w/]+)/resolve/(?:main|{hub.SHA})/([\w.-]+)", path):
                    self.answer_file(hub.files / match[1] / match[2])
                else:
                    self.answer(404)

            def answer_about(self, folder: Path, listing: bool) -> None:
                if not folder.is_dir():
                    self.answer(401, error="RepoNotFound")
                    return
                files = list(folder.iterdir())
                tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"} for f in files]
                names = [{"rfilename": path.name} for path in files]
                about = tree if listing else {"id": folder.name, "sha": hub.SHA, "siblings": names}
                self.answer(200, json.dumps(about).encode())

            def answer_file(self, file: Path) -> None:
                if hub.token and self.headers["Authorization"] != f"Bearer {hub.token}":
                    self.answer(401, error="GatedRepo")
                elif not file.is_file():
                    self.answer(404, error="EntryNotFound")
                elif self.command == "GET" and hub.broken == file.name:
                    self.answer(500)
                else:
                    if self.command == "GET":
                        hub.downloads.append(file.name)
                    self.answer(200, file.read_bytes(), held=hub.held == file.name)

            def answer(self, status: int, data: bytes = b"", error: str = "", held: bool = False) -> None:
                start = int(re.sub(r"\D", "", self.headers["Range"] or "0"))  # bytes=START-
                self.send_response(206 if start else status)
                self.send_header("Content-Length", str(len(data) - start))
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", hub.SHA)
                if error:
                    self.send_header("X-Error-Code", error)
                self.end_headers()
                if self.command == "HEAD":
                    return
                if held:
                    self.wfile.write(data[: len(data) // 2])
                    hub.holding.set()
                    hub.closing.wait()
                else:
                    self.wfile.write(data[start:])

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="session")
def library() -> None:
    required.module("huggingface_hub")


@pytest.fixture
def hub(library: None, machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub = Hub(tmp_path / "served")
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    yield hub
    hub.close()


def start(name: str, first: str = "") -> subprocess.Popen[str]:
    """A process of its own, because huggingface_hub reads the environment once.  first: Python that it runs before."""
    code = f"{first}\nimport sys; sys.path.append({str(Path(__file__).parents[1])!r})\n"
    code += "from pygpt.command.cli import run\nfrom pygpt.files.hub import resolve_folder\n"
    code += "run(lambda: print(resolve_folder(sys.argv[1])))"
    command = [sys.executable, "-c", code, name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def downloaded(name: str) -> Path:
    process = start(name)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return Path(out.strip())


def not_downloaded(name: str, first: str = "") -> str:
    process = start(name, first)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "") and "Traceback" not in err
    *_, sentence = err.splitlines()  # after bars
    return sentence.removeprefix("error: ")


@pytest.mark.parametrize("save_model", [save, save_shards])
def test_download(save_model: Any, hub: Hub, tmp_path: Path) -> None:
    """What pygpt reads, and nothing else; once."""
    served = hub.files / "someone" / "tiny"
    save_model(served)
    for name in ("generation_config.json", "tokenizer.json", "vocab.json"):
        (served / name).write_text(name)
    needed = {path.name for path in served.iterdir()}
    for name in ("README.md", "pytorch_model.bin", "model.fp16.safetensors"):
        (served / name).write_text("")
    folder = downloaded("someone/tiny")
    assert folder == tmp_path / "cache/huggingface/hub/models--someone--tiny/snapshots" / hub.SHA
    assert {path.name for path in folder.iterdir()} == set(hub.downloads) == needed
    assert len(list(load_parameters(folder, read_config(folder)))) == len(parameter_shapes(CONFIG))
    hub.asked = 0
    assert downloaded("someone/tiny") == folder
    assert hub.asked == 0


def test_a_gated_model_needs_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    save(hub.files / "tiny")
    hub.token = "hf_secret"
    assert not_downloaded("tiny") == (
        f"tiny: is a gated model: ask for access on {hub.address}/tiny, and set HF_TOKEN to a token of yours"
    )
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert read_config(downloaded("tiny")) == CONFIG


def test_no_such_model(hub: Hub) -> None:
    sentence = f"nobody: no such folder, and no model of this name on {hub.address}; a private one needs your token in "
    assert not_downloaded("nobody") == sentence + "HF_TOKEN"


def test_another_kind_of_model_is_not_fetched_whole(hub: Hub) -> None:
    save(hub.files / "llama")
    (hub.files / "llama" / "config.json").write_text('{"model_type": "llama"}')
    assert "model_type is 'llama', expected 'gpt2'" in not_downloaded("llama")
    assert hub.downloads == ["config.json"]


def test_a_folder_without_weights(hub: Hub) -> None:
    save(hub.files / "tiny")
    (hub.files / "tiny" / "model.safetensors").rename(hub.files / "tiny" / "pytorch_model.bin")
    assert not_downloaded("tiny") == f"tiny: its folder on {hub.address} holds no model.safetensors"
    assert hub.downloads == []


def test_a_download_that_breaks_off(hub: Hub) -> None:
    save_shards(hub.files / "tiny")
    hub.broken = "model-1.safetensors"
    beginning = f"tiny: no such folder, not on this machine, and cannot be downloaded from {hub.address} into "
    sentence = not_downloaded("tiny")
    assert sentence.startswith(beginning) and "500" in sentence and "model-1.safetensors" in sentence
    hub.broken = ""
    hub.downloads.clear()
    assert read_config(downloaded("tiny")) == CONFIG
    assert hub.downloads == ["model-1.safetensors"]


def test_ctrl_c_ends_a_download_which_another_completes(hub: Hub) -> None:
    save_shards(hub.files / "tiny")
    hub.held = "model-1.safetensors"
    process = start("tiny")
    assert hub.holding.wait(60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err.endswith("interrupted\n") and "Traceback" not in err
    hub.held = ""
    hub.downloads.clear()
    assert read_config(downloaded("tiny")) == CONFIG
    assert hub.downloads == ["model-1.safetensors"]


def test_no_space(hub: Hub, tmp_path: Path) -> None:
    save(hub.files / "tiny")
    (hub.files / "tiny" / "model.safetensors").write_bytes(bytes(2**20))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))"
    sentence = not_downloaded("tiny", limit)
    assert sentence.endswith(f"into {tmp_path / 'cache/huggingface/hub'}: File too large")
    assert read_config(downloaded("tiny")) == CONFIG


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not_downloaded("gpt2") == (
        "gpt2: no such folder, not on this machine, and HF_HUB_OFFLINE forbids a download"
    )
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    sentence = not_downloaded("gpt2")
    assert "cannot be downloaded from http://127.0.0.1:9 into " in sentence
    assert "Connection refused" in sentence
    assert hub.asked == 0
