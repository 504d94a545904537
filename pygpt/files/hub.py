"""Where a model is: a folder, Hugging Face's cache on this machine, or huggingface.co."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from pygpt.command.programs import call
from pygpt.config import MODEL_SIZES, GPT2Config
from pygpt.errors import UserError, reading
from pygpt.files import atomic
from pygpt.files.checkpoint import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, read_weight_map
from pygpt.files.llmc import is_model_file
from pygpt.text import vocabulary_files
from pygpt.text.text_ends import GENERATION_FILE

_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 2**20


def resolve_folder(name_or_path: str | Path) -> Path:
    """The folder of a model that is given as a folder or as a name on huggingface.co, such as "gpt2".

    A name is looked for in Hugging Face's cache, then among what was downloaded before, and else downloaded there:
    into the folder pygpt/models of XDG_CACHE_HOME (~/.cache). HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_ENDPOINT
    mean what they mean to Hugging Face's own programs.
    Raises UserError when there is no such folder or name, or it cannot be downloaded.
    """
    path, name = Path(name_or_path), str(name_or_path)
    with reading(name[:200]):
        if path.is_dir():
            atomic.finish(path)
            if not path.joinpath(CONFIG_FILE).is_file():  # raises where the folder may not be entered
                _suggest_model_in(path)
            return path
        if path.exists():
            hint = f"; {' '.join(call('export'))} {name} FOLDER makes one" if is_model_file(path) else ""
            raise UserError(f"{name}: is a file, expected a model's folder{hint}")
    if not _NAME.fullmatch(name):
        raise UserError(f"{name}: no such folder")
    downloaded = _cache_home() / "pygpt" / "models" / name.replace("/", "--")
    for folder in (*_huggingface_snapshots(name), downloaded):
        if _holds_model(folder):
            return folder
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "TRUE", "YES", "ON"}:
        raise UserError(f"{name}: no such folder, and not in the Hugging Face cache; HF_HUB_OFFLINE forbids a download")
    _download(name, downloaded)
    return downloaded


def _suggest_model_in(folder: Path) -> None:
    """Raises UserError when a folder holds not a model but folders of models, as a training run does."""
    models = sorted(config.parent for config in folder.glob(f"[!.]*/{CONFIG_FILE}"))
    if models:  # of a run: best, last
        raise UserError(f"{folder}: holds no {CONFIG_FILE}, expected a model's folder; did you mean {models[0]}?")


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _huggingface_snapshots(name: str) -> list[Path]:
    """Folders in Hugging Face's cache that may hold the model, the latest revision first."""
    home = Path(os.environ.get("HF_HOME") or _cache_home() / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    names = [name, f"openai-community/{name}"] if name in MODEL_SIZES else [name]
    folders = []
    for full_name in names:
        model = cache / ("models--" + full_name.replace("/", "--"))
        revision = model / "refs" / "main"
        if revision.is_file():
            folders.append(model / "snapshots" / revision.read_text(errors="replace").strip()[:100])
    return folders


def _holds_model(folder: Path) -> bool:
    if folder.is_dir():
        atomic.finish(folder)
    return (folder / CONFIG_FILE).is_file() and ((folder / WEIGHTS_FILE).is_file() or (folder / INDEX_FILE).is_file())


def _download(name: str, folder: Path) -> None:
    """Fetch a model's files into `folder`, which appears when all are there."""
    with atomic.write_files(folder) as saving:
        if not _fetch(name, CONFIG_FILE, saving):
            raise UserError(f"{name}: no such folder, and no model of this name on {_endpoint()}")
        GPT2Config.from_json(saving / CONFIG_FILE)  # before gigabytes of something else arrive
        for file in (*vocabulary_files.DOWNLOADS, GENERATION_FILE):
            _fetch(name, file, saving)
        if _fetch(name, WEIGHTS_FILE, saving):
            return
        if not _fetch(name, INDEX_FILE, saving):
            raise UserError(f"{name}: its folder on {_endpoint()} holds no {WEIGHTS_FILE}")
        for shard in sorted(set(read_weight_map(saving / INDEX_FILE).values())):
            if not _fetch(name, shard, saving):
                raise UserError(f"{name}: its {INDEX_FILE} names {shard}, which is not on {_endpoint()}")


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _fetch(name: str, file: str, folder: Path) -> bool:
    """Download one file with a progress bar; False when there is none of this name."""
    url = f"{_endpoint()}/{name}/resolve/main/{file}"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            size = response.length or 0
            if size > shutil.disk_usage(folder).free:
                raise UserError(f"{name}: {file} has {size} bytes, more than the device of {folder.parent} has left")
            with (
                (folder / file).open("wb") as out,
                tqdm(total=size or None, unit="B", unit_scale=True, desc=file, leave=False) as bar,
            ):
                while chunk := response.read(_CHUNK):
                    out.write(chunk)
                    bar.update(len(chunk))
                received = out.tell()
    except urllib.error.HTTPError as error:
        if error.code in {401, 403, 404}:  # 401 stands for a repository that does not exist
            return False
        raise UserError(f"{name}: {url} answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason
        raise UserError(
            f"{name}: no such folder, not in the Hugging Face cache, and no download from {_endpoint()}: {reason}"
        ) from None
    if received < size:
        raise UserError(f"{name}: the download of {file} broke off after {received} of {size} bytes")
    return True
