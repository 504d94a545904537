"""What a training run keeps in its folder.

    settings.toml        repeats the run: --config
    log.jsonl            one JSON object a line: a step, or a validation
    tensorboard/         the same for TensorBoard, where it is asked for
    last/                the latest checkpoint: a model folder with the tokenizer, and what --resume needs beside it:
                         optimizer.safetensors (moments, if the optimizer has some)
                         and training_state.json
    best/                the model with the lowest validation loss, with the tokenizer
    loss.png sample.txt  written at the end

Checkpoints are replaced whole or not at all (pygpt/files/atomic.py), so whenever the program is killed, the latest
complete one stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pygpt.config import GPT2Config
from pygpt.errors import UserError, explained, reading, writing
from pygpt.files import atomic, checkpoint
from pygpt.files.json_file import read_json_object, write_json_object
from pygpt.files.tensor_file import StoredTensor, read_tensors, write_tensors
from pygpt.reference.arrays import Array
from pygpt.text.tokenizer import SAVED as TOKENIZER_FILES
from pygpt.text.tokenizer import Tokenizer
from pygpt.training import events
from pygpt.training.events import Events
from pygpt.training.optimizer import Gathered
from pygpt.training.settings import SETTINGS_FILE, TrainSettings, format_settings, read_settings

LOG_FILE = "log.jsonl"
BEST, LAST = "best", "last"
PLOT_FILE = "loss.png"
SAMPLE_FILE = "sample.txt"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "training_state.json"
_FILES = (SETTINGS_FILE, LOG_FILE, PLOT_FILE, SAMPLE_FILE)
_MODEL_FILES = (checkpoint.CONFIG_FILE, checkpoint.WEIGHTS_FILE, OPTIMIZER_FILE, STATE_FILE, *TOKENIZER_FILES)
_LARGEST_STATE = 2**16
_STATE_TYPES = {"int": (int,), "str": (str,), "float | None": (float, type(None))}


@dataclass
class TrainingState:
    """Where a run is.  Everything else that it needs is a function of these numbers and the settings."""

    step: int = 0  # updates done
    windows: int = 0  # of the training data drawn
    validated: int = -1  # the step of the latest validation
    best_step: int = -1
    best_val_loss: float | None = None
    since_best: int = 0  # validations since the best one
    data: str = ""  # fingerprint of the tokens that it trains on


class _TakenError(UserError):
    """The folder holds a run already, or another process is at work in it."""


class RunFolder:
    """A run's folder, locked against other processes as long as it is open.

    Raises UserError when the folder cannot be used: another process is at work in it, or it holds a run that shall
    neither be resumed nor overwritten. With overwrite the old run stays until clear() is called.
    """

    def __init__(self, path: Path, resume: bool, overwrite: bool = False) -> None:
        self.path = path
        self.last, self.best = path / LAST, path / BEST
        with explained(f"{path}: cannot be the run's folder"):
            path.mkdir(parents=True, exist_ok=True)
            self._folder = os.open(path, os.O_RDONLY)
        try:
            self._lock()
            if not resume:
                self._check_free(overwrite)
        except BaseException:
            os.close(self._folder)
            raise
        self._log: BinaryIO | None = None
        self._events: Events | None = None

    @classmethod
    def next_free(cls, path: Path) -> RunFolder:
        """The folder `path` for a new run or, where that is taken, path-2, path-3, ..."""
        for number in itertools.count(1):
            with contextlib.suppress(_TakenError):
                return cls(path if number == 1 else path.with_name(f"{path.name}-{number}"), resume=False)
        raise AssertionError("unreachable")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):  # what is in its buffer may not fit on the device
                self._log.close()
        if self._events is not None:
            with contextlib.suppress(UserError):
                self._events.close()
        os.close(self._folder)
        with contextlib.suppress(OSError):  # nothing came of the run
            self.path.rmdir()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _TakenError(f"{self.path}: another process is training in this folder") from None

    def _check_free(self, overwrite: bool) -> None:
        found = [name for name in (*_FILES, LAST, BEST) if (self.path / name).exists()]
        if not found or (overwrite and SETTINGS_FILE in found):
            return
        if overwrite:
            raise UserError(f"{self.path}: holds {found[0]} but no {SETTINGS_FILE}, so it is no run to overwrite")
        raise _TakenError(
            f"{self.path}: holds a run already ({found[0]}); go on with it (--resume {self.path}), "
            f"name another folder (--out-dir) or replace it (--overwrite)"
        )

    def clear(self) -> None:
        """Remove a run's own files, and no others.  Raises UserError when that cannot be done."""
        try:
            for folder in (self.last, self.best):
                if folder.is_dir():
                    atomic.finish(folder)
                for name in _MODEL_FILES:
                    (folder / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # it is not there, or holds other files
                    folder.rmdir()
            for name in _FILES:
                (self.path / name).unlink(missing_ok=True)
            for path in (self.path / events.FOLDER).glob(events.FILES):
                path.unlink()
            with contextlib.suppress(OSError):
                (self.path / events.FOLDER).rmdir()
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be removed: {error.strerror}") from None

    # ---- settings and checkpoints ----

    def save_settings(self, settings: TrainSettings) -> None:
        """Raises UserError when they cannot be written."""
        with atomic.write_file(self.path / SETTINGS_FILE) as file:
            file.write(format_settings(settings).encode())

    def save_best(self, config: GPT2Config, parameters: Mapping[str, Array], tokenizer: Tokenizer) -> None:
        """Keep the model as the best one.  Raises UserError, with the former one intact, when it cannot be written."""
        checkpoint.save_parameters(self.best, config, parameters, extra=tokenizer.save)

    def save_last(self, config: GPT2Config, gathered: Gathered, tokenizer: Tokenizer, state: TrainingState) -> None:
        """Save a checkpoint to resume from, and the log up to it.

        Raises UserError, with the former checkpoint intact, when it cannot be written.
        """
        self.flush_log()
        moments = gathered.moments
        size = 4 * (config.num_parameters + sum(map(math.prod, moments.shapes.values()))) + 2**20
        with atomic.write_files(self.last, size) as saving:
            checkpoint.write_model(saving, config, gathered.parameters)
            tokenizer.save(saving)
            if moments:
                write_tensors(saving / OPTIMIZER_FILE, moments.shapes, moments)
            write_json_object(saving / STATE_FILE, dataclasses.asdict(state))

    def load_state(self) -> TrainingState | None:
        """Where the latest checkpoint is; None where there is none yet.  Raises UserError when it is damaged."""
        if self.last.is_dir():
            atomic.finish(self.last)
        path = self.last / STATE_FILE
        if not path.exists():
            return None
        values = read_json_object(path, _LARGEST_STATE)
        if "windows" not in values and type(values.get("step")) is int:  # saved before they were counted
            saved = TrainSettings(**read_settings(self.path / SETTINGS_FILE))
            values["windows"] = values["step"] * saved.grad_accum * saved.batch_size
        values = {"since_best": 0, **values}  # likewise
        types = {field.name: _STATE_TYPES[str(field.type)] for field in dataclasses.fields(TrainingState)}
        right = values.keys() == types.keys() and all(type(values[name]) in kinds for name, kinds in types.items())
        if not right or min(values["step"], values["since_best"]) < 0 or not 0 <= values["windows"] < 2**63:
            raise UserError(f"{path}: is not the state of a training run")
        return TrainingState(**values)

    def read_moments(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, StoredTensor]:
        """The moments of the latest checkpoint, of these shapes.  Raises UserError when they are damaged."""
        if not shapes:
            return {}
        path = self.last / OPTIMIZER_FILE
        tensors = read_tensors(path)
        for name, shape in shapes.items():
            if name not in tensors:
                raise UserError(f"{path}: tensor {name} is missing")
            if tensors[name].shape != shape:
                raise UserError(f"{path}: tensor {name} has shape {tensors[name].shape}, expected {shape}")
        return tensors

    # ---- the log ----

    def open_log(self, state: TrainingState, tensorboard: bool = False) -> None:
        """Open the log to go on behind the state: what a killed run wrote beyond its latest checkpoint is dropped."""
        path = self.path / LOG_FILE
        if path.exists():
            kept = [record for record in self.read_log() if _belongs(record, state)]
            with atomic.write_file(path) as file:
                file.writelines(_line(record) for record in kept)
        with writing(path):
            self._log = path.open("ab")
        if tensorboard:
            self._events = Events(self.path, state.step)

    def log(self, record: Mapping[str, Any]) -> None:
        """Add a line; it may stay in a buffer until flush_log().  Raises UserError when it cannot be written."""
        assert self._log is not None
        with writing(self.path / LOG_FILE):
            self._log.write(_line(record))
        if self._events is not None:
            self._events.log(record)

    def flush_log(self) -> None:
        """Raises UserError when the log cannot be written."""
        assert self._log is not None
        with writing(self.path / LOG_FILE):
            self._log.flush()
        if self._events is not None:
            self._events.flush()

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log, but for a last one that was cut off.  Raises UserError when it is damaged."""
        path = self.path / LOG_FILE
        with reading(path):
            lines = path.read_bytes().split(b"\n")
        records = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                record = json.loads(line)
                if type(record["step"]) is not int or {type(value) for value in record.values()} - {int, float}:
                    raise TypeError
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise UserError(f"{path}: line {number} is not a JSON object of numbers with a step") from None
            records.append(record)
        return records


class Onlooker(RunFolder):
    """The folder as all ranks but the first have it: they read in it, and leave what is written to that one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last, self.best = path / LAST, path / BEST

    def __exit__(self, *exception: object) -> None:
        pass

    def clear(self) -> None:
        pass

    def save_settings(self, settings: TrainSettings) -> None:
        pass

    def save_best(self, config: GPT2Config, parameters: Mapping[str, Array], tokenizer: Tokenizer) -> None:
        pass

    def save_last(self, config: GPT2Config, gathered: Gathered, tokenizer: Tokenizer, state: TrainingState) -> None:
        pass

    def open_log(self, state: TrainingState, tensorboard: bool = False) -> None:
        pass

    def log(self, record: Mapping[str, Any]) -> None:
        pass

    def flush_log(self) -> None:
        pass


def _belongs(record: dict[str, Any], state: TrainingState) -> bool:
    """Whether a record of the log was written before the state was."""
    return record["step"] <= (state.validated if "val_loss" in record else state.step)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
