"""Where a model is: a folder, Hugging Face's cache on this machine, or huggingface.co."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pygpt.command.programs import call
from pygpt.config import MODEL_SIZES, GPT2Config
from pygpt.errors import UserError, reading
from pygpt.files import atomic
from pygpt.files.checkpoint import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, read_weight_map
from pygpt.text import vocabulary_files
from pygpt.text.text_ends import GENERATION_FILE

_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_SMALL_FILES = (CONFIG_FILE, INDEX_FILE, GENERATION_FILE, *vocabulary_files.DOWNLOADS)


def resolve_folder(name_or_path: str | Path) -> Path:
    """The folder of a model that is given as a folder or as a name on huggingface.co, such as "gpt2".

    A name is looked for in Hugging Face's cache, then among what earlier versions of pygpt downloaded (the folder
    pygpt/models of XDG_CACHE_HOME, ~/.cache), and is else downloaded into the former by huggingface_hub, which obeys
    HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and its other variables.
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
            command = " ".join(call("import"))
            raise UserError(
                f"{name}: is a file, expected a model's folder; {command} {name} FOLDER makes one of a file of "
                f"llama.cpp, llm.c or PyTorch"
            )
    if not _NAME.fullmatch(name):
        raise UserError(f"{name}: no such folder")
    downloaded = _cache_home() / "pygpt" / "models" / name.replace("/", "--")
    for folder in (*_huggingface_snapshots(name), downloaded):
        if all((folder / file).is_file() for file in (CONFIG_FILE, *_weights_files(folder))):
            return folder
    return _download(name)


def _suggest_model_in(folder: Path) -> None:
    """Raises UserError when a folder holds not a model but folders of models, as a training run does."""
    models = sorted(config.parent for config in folder.glob(f"[!.]*/{CONFIG_FILE}"))
    if models:  # of a run: best, last
        raise UserError(f"{folder}: holds no {CONFIG_FILE}, expected a model's folder; did you mean {models[0]}?")


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _huggingface_cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or _cache_home() / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _huggingface_snapshots(name: str) -> list[Path]:
    """Folders in Hugging Face's cache that may hold the model, the latest revision of each."""
    names = [name, f"openai-community/{name}"] if name in MODEL_SIZES else [name]
    folders = []
    for full_name in names:
        model = _huggingface_cache() / ("models--" + full_name.replace("/", "--"))
        revision = model / "refs" / "main"
        if revision.is_file():
            folders.append(model / "snapshots" / revision.read_text(errors="replace").strip()[:100])
    return folders


def _weights_files(folder: Path) -> list[str]:
    """The names of the files with the weights, which need not be there yet."""
    index = folder / INDEX_FILE
    if (folder / WEIGHTS_FILE).is_file() or not index.is_file():
        return [WEIGHTS_FILE]
    return sorted(set(read_weight_map(index).values()))


def _download(name: str) -> Path:
    """Fetch a model into Hugging Face's cache, the weights last, so that nothing is missing where they are."""
    try:
        from huggingface_hub import constants, hf_hub_download, model_info, snapshot_download
    except ImportError:
        raise UserError(
            f"{name}: no such folder, and not on this machine; pip install 'pygpt[hub]' makes pygpt download it, or "
            f"download the model's files yourself and give the path of their folder"
        ) from None
    cache = _huggingface_cache()
    with _downloading(name):
        files = {file.rfilename for file in model_info(name).siblings or ()}
    for names in ((CONFIG_FILE,), (WEIGHTS_FILE, INDEX_FILE)):
        if not files.intersection(names):
            raise UserError(f"{name}: its folder on {constants.ENDPOINT} holds no {names[0]}")
    with _downloading(name):
        folder = Path(snapshot_download(name, allow_patterns=list(_SMALL_FILES), cache_dir=cache))
    GPT2Config.from_json(folder / CONFIG_FILE)  # before gigabytes of something else arrive
    for file in _weights_files(folder):
        with _downloading(name):  # not in a snapshot, which heeds Ctrl-C only when the files that it fetches are there
            hf_hub_download(name, file, revision=folder.name, cache_dir=cache)
    return folder


@contextlib.contextmanager
def _downloading(name: str) -> Iterator[None]:
    """A block in which huggingface_hub downloads, and whatever goes wrong becomes a sentence."""
    from huggingface_hub import constants, errors

    where = constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name}: is a gated model: ask for access on {where}/{name}, and set HF_TOKEN to a token of yours"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: no such folder, and no model of this name on {where}; a private one needs your token in HF_TOKEN"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(
            f"{name}: no such folder, not on this machine, and HF_HUB_OFFLINE forbids a download"
        ) from error
    except Exception as error:  # of the network, the disk, and libraries below: they have no base in common
        raise UserError(
            f"{name}: no such folder, not on this machine, and cannot be downloaded from {where} "
            f"into {_huggingface_cache()}: {_reason(error)}"
        ) from error


def _reason(error: BaseException) -> str:
    """What began a chain of errors, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)).partition("\n")[0] or type(error).__name__
