"""The file that describes an experiment.

    out_dir = "out/lr"          # optional
    seeds = [0, 1, 2]
    [base]                      # settings of every run
    data = "shakespeare"
    [tasks.characters]          # optional: each with every variant
    tokenizer = "char"
    target_loss = 1.88          # optional: when does a run get there?
    [variants.small]
    [variants.large]
    n_layer = 8

Later wins: base, task, variant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pygpt.command.flags import nearest
from pygpt.errors import UserError, show
from pygpt.training.settings import TrainSettings, check_settings, make_request, read_toml

_KEYS = ("out_dir", "seeds", "base", "tasks", "variants")
_SET_BY_THE_EXPERIMENT = ("out_dir", "seed")
_TARGET = "target_loss"


@dataclass(frozen=True)
class Run:
    """One training run of an experiment."""

    task: str
    variant: str
    seed: int
    folder: Path
    asked: Mapping[str, Any]  # settings that the file asks for
    settings: TrainSettings  # all of them

    def __str__(self) -> str:
        return f"{self.task}, {self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """Every run of an experiment, by task, then by variant, then by seed."""

    out_dir: Path
    runs: tuple[Run, ...]
    targets: Mapping[str, float]  # by task: the validation loss that is waited for


def read_plan(path: Path, out_dir: Path | None = None) -> Plan:
    """The experiment in a file, with its runs in out_dir.  Raises UserError, naming the place, when it is wrong."""
    tables = read_toml(path)
    for key in tables:
        if key not in _KEYS:
            raise UserError(f"{path}: {key} is not known, expected {', '.join(_KEYS)}{nearest(key, _KEYS)}")
    seeds, folder = _seeds(path, tables), tables.get("out_dir", f"out/{path.stem}")
    if type(folder) is not str or not folder:
        raise UserError(f"{path}: out_dir is {show(folder)}, expected the name of a folder")
    out_dir = out_dir or Path(folder)
    base = _settings(path, "base", _table(path, "base", tables.get("base", {})))
    tasks = _named(path, "tasks", tables.get("tasks", {"runs": {}}))
    targets = {name: _target(path, name, task.pop(_TARGET)) for name, task in tasks.items() if _TARGET in task}
    variants = _named(path, "variants", tables.get("variants", {}))
    runs = []
    for task, of_task in tasks.items():
        common = {**base, **_settings(path, f"tasks.{task}", of_task)}
        for variant, of_variant in variants.items():
            asked = {**common, **_settings(path, f"variants.{variant}", of_variant)}
            for seed in seeds:
                run_folder = out_dir / task / variant / f"seed-{seed}"
                all_asked = {**asked, "seed": seed, "out_dir": str(run_folder)}
                try:
                    settings = make_request(all_asked).settings
                except UserError as error:
                    raise UserError(f"{path}: [variants.{variant}] with [tasks.{task}]: {error}") from None
                runs.append(Run(task, variant, seed, run_folder, all_asked, settings))
    return Plan(out_dir, tuple(runs), targets)


def _seeds(path: Path, tables: Mapping[str, Any]) -> list[int]:
    seeds = tables.get("seeds", [0])
    if type(seeds) is not list or not seeds or any(type(seed) is not int or not 0 <= seed < 2**63 for seed in seeds):
        raise UserError(f"{path}: seeds is {show(seeds)}, expected a list of integers from 0 on, such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds is {show(seeds)}, expected each only once")
    return seeds


def _named(path: Path, kind: str, tables: Any) -> dict[str, dict[str, Any]]:
    """Tables by names that can be those of folders."""
    named = _table(path, kind, tables)
    if not named:
        raise UserError(f"{path}: holds no {kind}, expected a table [{kind}.NAME] for each")
    seen: dict[str, str] = {}
    for name in named:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"{path}: [{kind}.{name}]: expected a name of letters, digits, dots and dashes")
        if name.lower() in seen:
            raise UserError(f"{path}: [{kind}.{name}]: differs from [{kind}.{seen[name.lower()]}] by upper case only")
        seen[name.lower()] = name
    return {name: dict(_table(path, f"{kind}.{name}", table)) for name, table in named.items()}


def _table(path: Path, place: str, table: Any) -> dict[str, Any]:
    if type(table) is not dict:
        raise UserError(f"{path}: {place} is {show(table)}, expected a table")
    return table


def _settings(path: Path, place: str, table: Mapping[str, Any]) -> dict[str, Any]:
    settings = check_settings(table, f"{path}: [{place}]")
    for name in _SET_BY_THE_EXPERIMENT:
        if name in settings:
            raise UserError(
                f"{path}: [{place}]: {name} is not of one run: it stands above the tables, as {_above(name)}"
            )
    return settings


def _above(name: str) -> str:
    return "seeds" if name == "seed" else name


def _target(path: Path, task: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise UserError(f"{path}: [tasks.{task}]: {_TARGET} is {show(value)}, expected a number above 0")
    return float(value)
