"""The settings of a training run.

TrainSettings is their only source: the flags of the command train, the keys of a settings file, the presets and what is
saved with a run are all made from its fields. Later wins: defaults (some are others with --init-from), preset, settings
file, flags; a resumed run starts from its saved settings in place of the defaults.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import math
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pygpt.backends.devices import DEVICES
from pygpt.backends.interface import DTYPES, KERNELS, OPTIMIZERS, RECOMPUTE
from pygpt.command.flags import Parser, nearest
from pygpt.command.programs import call
from pygpt.config import MODEL_SIZES, VARIATIONS
from pygpt.errors import UserError, alternatives, reading, show
from pygpt.reference import adamw, muon, sgd
from pygpt.text.corpora import NAMES as CORPORA
from pygpt.text.prepare import CHOICES as TOKENIZERS
from pygpt.text.prepare import DEFAULT as DEFAULT_TOKENIZER
from pygpt.training.schedule import SCHEDULES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETTINGS_FILE = "settings.toml"


def _setting(
    default: Any,
    group: str,
    help: str,
    *,
    low: int | None = None,
    high: int = 2**31 - 1,
    above: int | None = None,
    below: int | None = None,
    choices: Sequence[str] | None = None,
    fixed: bool = False,
    fine_tuning: Any = None,
    path: bool = False,
) -> Any:
    """A field.  Integers: low <= value <= high; numbers: low <= value, above < value < below.

    fixed: a resumed run cannot change it.  fine_tuning: another default, with --init-from.
    path: where there is such a file or folder, it is saved by its full path.
    """
    limits = {"low": low, "high": high, "above": above, "below": below, "choices": choices}
    about = {"group": group, "help": help, "fixed": fixed, "fine_tuning": fine_tuning, "path": path}
    return dataclasses.field(default=default, metadata={**about, **limits})


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides what a training run does.

    Raises UserError when a value is out of its range, or two contradict each other.
    """

    data: str = _setting(
        "stdlib", "data", "named data set, or a file or folder of text, or of prepared tokens", path=True
    )
    tokenizer: str | None = _setting(
        None,
        "data",
        f"kind of tokens (default: {DEFAULT_TOKENIZER}, or that of prepared tokens or --init-from)",
        choices=TOKENIZERS,
        fixed=True,
    )
    vocab: str | None = _setting(
        None, "data", "folder with GPT-2's vocabulary, so that no download is needed", path=True
    )
    eot_in_text: bool = _setting(
        False, "data", "<|endoftext|> in the text becomes the end-of-text token of gpt2", fixed=True
    )

    init_from: str | None = _setting(
        None, "model", "fine-tune this model: a model folder or a name on the Hugging Face hub", fixed=True, path=True
    )
    n_layer: int = _setting(2, "model", "blocks", low=1, fixed=True)
    n_head: int = _setting(4, "model", "attention heads", low=1, fixed=True)
    n_embd: int = _setting(128, "model", "channels", low=1, fixed=True)
    seq_len: int = _setting(
        64,
        "model",
        "tokens that a prediction sees at most; with --init-from no more than the model's positions",
        low=1,
        fixed=True,
        fine_tuning=256,
    )
    dropout: float | None = _setting(
        None, "model", "probability of dropping (default: 0, or the model's own with --init-from)", low=0, below=1
    )

    activation_function: str = _setting(
        "gelu_new",
        "model",
        "nonlinearity of the feed-forward part; gelu: the exact GELU",
        choices=VARIATIONS["activation_function"],
        fixed=True,
    )
    position_embedding: str = _setting(
        "learned",
        "model",
        "how positions are told apart; rotary: queries and keys are turned",
        choices=VARIATIONS["position_embedding"],
        fixed=True,
    )
    bias: bool = _setting(True, "model", "linear layers and LayerNorm have no biases", fixed=True)
    tie_word_embeddings: bool = _setting(True, "model", "the head has a matrix of its own", fixed=True)
    scale_attn_weights: bool = _setting(True, "model", "scores are not multiplied by 1/sqrt(head size)", fixed=True)
    scale_attn_by_inverse_layer_idx: bool = _setting(
        False, "model", "scores of block l, counted from 1, are divided by l", fixed=True
    )
    norm_position: str = _setting(
        "pre",
        "model",
        "where LayerNorm is; pre: before each branch; post: after its sum with what goes past it, as in the first GPT",
        choices=VARIATIONS["norm_position"],
        fixed=True,
    )

    objective: str = _setting(
        "clm",
        "model",
        "what is predicted: clm: the next token, from those before it; mlm: masked tokens, from those on both sides",
        choices=("clm", "mlm"),
        fixed=True,
    )

    batch_size: int = _setting(12, "optimization", "sequences in a batch", low=1)
    grad_accum: int = _setting(1, "optimization", "batches whose gradients make one step", low=1)
    max_iters: int = _setting(1800, "optimization", "steps of the whole run", low=1)
    optimizer: str = _setting(
        "adamw",
        "optimization",
        "muon: for the matrices of the blocks, and adamw for the rest",
        choices=OPTIMIZERS,
        fixed=True,
    )
    learning_rate: float = _setting(4e-3, "optimization", "largest learning rate", above=0, fine_tuning=3e-5)
    min_lr: float | None = _setting(
        None, "optimization", "last learning rate (default: a tenth of --learning-rate)", low=0
    )
    warmup_iters: int | None = _setting(
        None, "optimization", "steps of warm-up (default: a twentieth of --max-iters)", low=0
    )
    lr_schedule: str = _setting("cosine", "optimization", "learning rate after the warm-up", choices=SCHEDULES)
    decay_iters: int | None = _setting(
        None, "optimization", "steps of the decay of schedule wsd (default: a fifth of --max-iters)", low=1
    )
    weight_decay: float = _setting(adamw.WEIGHT_DECAY, "optimization", "decay of matrices", low=0)
    momentum: float | None = _setting(
        None,
        "optimization",
        f"of --optimizer momentum (default: {sgd.MOMENTUM}) and muon ({muon.MOMENTUM})",
        low=0,
        below=1,
    )
    muon_lr: float | None = _setting(
        None,
        "optimization",
        f"largest learning rate of Muon's matrices, scheduled like the other (default: {muon.LEARNING_RATE})",
        above=0,
    )
    beta1: float = _setting(adamw.BETA1, "optimization", "AdamW's decay of the first moment", low=0, below=1)
    beta2: float = _setting(adamw.BETA2, "optimization", "AdamW's decay of the second moment", low=0, below=1)
    adam_eps: float = _setting(
        adamw.EPS, "optimization", "AdamW's epsilon, added to the root of the second moment", above=0
    )
    grad_clip: float = _setting(1.0, "optimization", "largest norm of the gradient; 0: any", low=0)

    eval_interval: int = _setting(300, "evaluation", "steps between validations", low=1)
    eval_iters: int = _setting(20, "evaluation", "batches of a validation", low=1)
    patience: int | None = _setting(
        None, "evaluation", "stop after N validations in a row without a better loss (default: never)", low=1
    )
    sample_tokens: int = _setting(256, "evaluation", "tokens of the sample at the end; 0: none", low=0)

    out_dir: str | None = _setting(None, "run", "the run's folder (default: out/ and the name of the preset or data)")
    checkpoint_interval: int = _setting(300, "run", "steps between checkpoints", low=1)
    tensorboard: bool = _setting(False, "run", "write the log for TensorBoard, too")
    seed: int = _setting(
        0, "run", "of weights, order of the data, dropout and sample", low=0, high=2**63 - 1, fixed=True
    )

    device: str = _setting(
        "auto", "machine", "auto: cuda where it can be used, otherwise cpu", choices=("auto", *DEVICES)
    )
    dtype: str = _setting(
        "auto",
        "machine",
        "operands of matrix products; auto: bfloat16 where the device multiplies it, otherwise float32",
        choices=("auto", *DTYPES),
    )
    kernels: str = _setting("fast", "machine", "plain: the code to read and step through", choices=KERNELS)
    recompute: str = _setting(
        "cheap", "machine", "activations computed again in the backward pass, to save memory", choices=RECOMPUTE
    )
    threads: int | None = _setting(None, "machine", "CPU threads (default: OMP_NUM_THREADS, or all cores)", low=1)

    def __post_init__(self) -> None:
        for field in FIELDS.values():
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, _checked(field, value, field.name))
        if self.final_lr > self.learning_rate:
            raise UserError(f"min_lr is {self.min_lr}, expected at most learning_rate, which is {self.learning_rate}")
        if self.momentum is not None and self.optimizer not in ("momentum", "muon"):
            raise UserError(f"momentum belongs to optimizer momentum or muon, and optimizer is {self.optimizer}")
        if self.muon_lr is not None and self.optimizer != "muon":
            raise UserError(f"muon_lr belongs to optimizer muon, and optimizer is {self.optimizer}")
        if self.decay_iters is not None and self.lr_schedule != "wsd":
            raise UserError(f"decay_iters belongs to lr_schedule wsd, and lr_schedule is {self.lr_schedule}")
        if self.decay_iters is not None and self.warmup + self.decay > self.max_iters:
            raise UserError(
                f"warmup_iters and decay_iters are {self.warmup} and {self.decay}, "
                f"expected together at most max_iters, which is {self.max_iters}"
            )

    @property
    def final_lr(self) -> float:
        """The learning rate at the end of the schedule."""
        return self.learning_rate / 10 if self.min_lr is None else self.min_lr

    @property
    def used_momentum(self) -> float:
        """The momentum of the optimizer; 0 where it has none."""
        default = {"momentum": sgd.MOMENTUM, "muon": muon.MOMENTUM}.get(self.optimizer, 0.0)
        return default if self.momentum is None else self.momentum

    @property
    def used_muon_lr(self) -> float:
        """The largest learning rate of Muon's matrices."""
        return muon.LEARNING_RATE if self.muon_lr is None else self.muon_lr

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""
        return _warmup(self.max_iters) if self.warmup_iters is None else self.warmup_iters

    @property
    def decay(self) -> int:
        """Steps of the final decay of schedule wsd."""
        if self.decay_iters is not None:
            return self.decay_iters
        return max(1, min(self.max_iters // 5, self.max_iters - self.warmup))


def _warmup(max_iters: int) -> int:
    """The usual steps of warm-up."""
    return max_iters // 20


FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(TrainSettings)}
_TYPES = typing.get_type_hints(TrainSettings)
_FINE_TUNING = {
    name: field.metadata["fine_tuning"] for name, field in FIELDS.items() if field.metadata["fine_tuning"] is not None
}

# other defaults with another optimizer, also in fine-tuning: a rate of AdamW would hardly move anything
BY_OPTIMIZER: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.3},
    "momentum": {"learning_rate": 0.05},
}

_NANOGPT = {  # its model for a CPU
    "n_layer": 4,
    "max_iters": 2000,
    "learning_rate": 1e-3,
    "eval_interval": 250,
    "checkpoint_interval": 250,
    "dtype": "float32",
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "bytes": {**_NANOGPT, "tokenizer": "byte"},
    # nanoGPT's character model on a CPU: published validation loss 1.88
    "shakespeare-char": {**_NANOGPT, "data": "shakespeare", "tokenizer": "char", "eval_iters": 100},
    # ... and on a GPU: published validation loss 1.4697
    "shakespeare-char-gpu": {
        **_NANOGPT,
        "data": "shakespeare",
        "tokenizer": "char",
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "seq_len": 256,
        "dropout": 0.2,
        "batch_size": 64,
        "max_iters": 5000,
        "warmup_iters": 100,
    },
    # GPT-2 124M on 10^10 tokens, 524,288 a step, with the optimization of GPT-3's smallest model
    "gpt2": {
        "tokenizer": "gpt2",
        "n_layer": MODEL_SIZES["gpt2"].n_layer,
        "n_head": MODEL_SIZES["gpt2"].n_head,
        "n_embd": MODEL_SIZES["gpt2"].n_embd,
        "seq_len": MODEL_SIZES["gpt2"].n_positions,
        "batch_size": 4,
        "grad_accum": 128,
        "max_iters": 19073,
        "learning_rate": 6e-4,
        "warmup_iters": 715,
        "beta2": 0.95,
    },
}
_NEED_DATA = {"gpt2"}  # presets for which the default text is far too short


@dataclass(frozen=True)
class Request:
    """What a command line asks for."""

    settings: TrainSettings
    given: frozenset[str]  # settings that a preset, a file or a flag has set
    out_dir: Path
    resume: bool
    overwrite: bool


def parse(argv: Sequence[str] | None = None) -> Request:
    """The settings of a command line.  Raises UserError when they are wrong; --help prints and exits."""
    flags = vars(make_parser().parse(argv))
    preset, config = flags.pop("preset"), flags.pop("config")
    resume, overwrite = flags.pop("resume"), flags.pop("overwrite")
    if preset not in PRESETS:
        raise UserError(f"--preset is {preset!r}, expected {alternatives(list(PRESETS))}")
    if overwrite and resume is not None:
        raise UserError("--overwrite begins a run again, and --resume goes on with it: leave one out")

    asked = {} if config is None else read_settings(config)
    asked.update((name, _from_text(FIELDS[name], text)) for name, text in flags.items())
    return make_request(asked, preset, resume, overwrite)


def make_request(
    asked: Mapping[str, Any], preset: str = "default", resume: str | None = None, overwrite: bool = False
) -> Request:
    """What these settings, each checked, ask for.  Raises UserError when they do not fit together.

    resume: the folder of the run to go on with, "" for that of the settings; None: a new run.
    """
    values = {**PRESETS[preset], **asked}
    given = frozenset(values)
    out_dir = _run_folder(values, preset, resume)
    if "warmup_iters" not in asked and "warmup_iters" in values:  # nobody asked for the preset's
        values["warmup_iters"] = min(values["warmup_iters"], _warmup(values["max_iters"]))
    if resume is not None:
        values = _resumed(out_dir, values, asked)
    elif preset in _NEED_DATA and "data" not in values:
        raise UserError(
            f"--preset {preset} is for billions of tokens, and the default text has millions: name another (--data)"
        )
    else:
        fine_tuning = _FINE_TUNING if "init_from" in values else {}
        values = {**fine_tuning, **values, **BY_OPTIMIZER.get(values.get("optimizer", ""), {}), **asked}
    settings = TrainSettings(**{**values, "out_dir": str(out_dir)})
    if "warmup_iters" in asked and settings.warmup > settings.max_iters:
        raise UserError(f"warmup_iters is {settings.warmup}, expected at most max_iters, which is {settings.max_iters}")
    return Request(settings, given, out_dir, resume is not None, overwrite)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a TOML file, checked one by one.  Raises UserError, naming the file, when they are wrong."""
    return check_settings(read_toml(path), str(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.  Raises UserError, naming the file, when it is none."""
    with reading(path):
        data = Path(path).read_bytes()
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not TOML: {error}") from None


def check_settings(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Settings of a TOML table, checked one by one.  Raises UserError, which begins with the place."""
    settings: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in FIELDS:
            raise UserError(f"{place}: {key} is not a setting{nearest(name, list(FIELDS))}")
        if name in settings:
            raise UserError(f"{place}: {key} is there twice, with a dash and with an underscore")
        settings[name] = _checked(FIELDS[name], value, f"{place}: {key}", required=True)
    return settings


def format_settings(settings: TrainSettings) -> str:
    """The text of a settings file that asks for the same run, in whatever folder."""
    lines = []
    for field in FIELDS.values():
        value = _full_path(field, getattr(settings, field.name))
        if value is not None and field.name != "out_dir":
            lines.append(f"{field.name} = {_toml(value)}\n")
    return "".join(lines)


def _run_folder(values: Mapping[str, Any], preset: str, resume: str | None) -> Path:
    if resume:
        if "out_dir" in values and Path(values["out_dir"]) != Path(resume):
            raise UserError(f"--resume names the folder {resume}, and --out-dir names {values['out_dir']}")
        return Path(resume)
    if "out_dir" in values:
        return Path(values["out_dir"])
    if preset != "default":
        return Path("out") / preset
    data = values.get("data", FIELDS["data"].default)
    found = _find(data)
    name = found.name if found is not None and found.is_dir() else Path(data).stem
    return Path("out") / (name or "run")


def _resumed(out_dir: Path, values: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings saved with a run, changed by `values` where that is possible.

    The warm-up stays what it was when the run began, unless another is asked for.
    """
    path = out_dir / SETTINGS_FILE
    if not path.is_file():
        hint = f"; did you mean --resume {out_dir.parent}?" if (out_dir.parent / SETTINGS_FILE).is_file() else ""
        raise UserError(f"{out_dir}: holds no run to resume, expected the file {SETTINGS_FILE} in it{hint}")
    saved = read_settings(path)
    for name, value in values.items():
        field = FIELDS[name]
        before = saved.get(name, field.default)
        if field.metadata["fixed"] and _full_path(field, value) != _full_path(field, before):
            raise UserError(
                f"{name} of the run in {out_dir} is {_show(before)}, and {_show(value)} was asked for; "
                f"a resumed run cannot change it (--init-from {out_dir / 'last'} starts a new run from its model)"
            )
    data = saved.get("data", FIELDS["data"].default)
    if "data" not in values and data not in CORPORA and _find(data) is None:
        raise UserError(f"{data}: the data of the run in {out_dir} is not there; --data PATH says where it is now")
    warmup = asked.get("warmup_iters", TrainSettings(**saved).warmup)
    return {**saved, **values, "warmup_iters": warmup}


def _find(path: str) -> Path | None:
    """The full path of what is there; None where nothing is."""
    try:
        return Path(path).resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a link to itself
        return None


def _full_path(field: dataclasses.Field[Any], value: Any) -> Any:
    """A path to what is there as it holds in whatever folder it is used; any other value as it is."""
    found = _find(value) if field.metadata["path"] and value is not None and value not in CORPORA else None
    return value if found is None else str(found)


def make_parser() -> Parser:
    """The flags of the command train."""
    parser = Parser(
        prog=" ".join(call("train")),
        description="Train a GPT-2. Without flags: a small one on the sources of Python's standard library.",
        epilog="Later wins: defaults, --preset, --config, flags. See docs/training.md.",
        argument_default=argparse.SUPPRESS,
        words_for="--data",
    )
    parser.add_argument("--preset", default="default", metavar="|".join(PRESETS), help="settings to start from")
    parser.add_argument(
        "--config", default=None, metavar="FILE", help="settings in TOML, such as a run's settings.toml"
    )
    parser.add_argument(
        "--resume",
        default=None,
        nargs="?",
        const="",
        metavar="FOLDER",
        help="go on with the run in FOLDER, or in --out-dir",
    )
    parser.add_argument("--overwrite", default=False, action="store_true", help="replace the run in --out-dir")
    groups: dict[str, Any] = {}
    for field in FIELDS.values():
        limits = field.metadata
        if limits["group"] not in groups:
            groups[limits["group"]] = parser.add_argument_group(limits["group"])
        kind = _kind(field)
        if kind is bool:  # given, it changes the default, and the help says to what
            flag, action = (f"no_{field.name}", "store_false") if field.default else (field.name, "store_true")
            groups[limits["group"]].add_argument(
                _flag(flag), dest=field.name, action=action, default=argparse.SUPPRESS, help=limits["help"]
            )
            continue
        help = limits["help"]
        if field.default is not None:
            other = f", or {limits['fine_tuning']} with --init-from" if limits["fine_tuning"] is not None else ""
            help += f" (default: {field.default}{other})"
        metavar = "|".join(limits["choices"]) if limits["choices"] else {int: "N", float: "X", str: "NAME"}[kind]
        groups[limits["group"]].add_argument(_flag(field.name), dest=field.name, metavar=metavar, help=help)
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kind(field: dataclasses.Field[Any]) -> Any:
    """int, float, str or bool."""
    annotation = _TYPES[field.name]
    return next((kind for kind in typing.get_args(annotation) if kind is not type(None)), annotation)


def _from_text(field: dataclasses.Field[Any], text: str | bool) -> Any:
    """The value of a flag; True for one that takes none."""
    try:
        value = _kind(field)(text)
    except ValueError:
        value = text
    return _checked(field, value, _flag(field.name))


def _checked(field: dataclasses.Field[Any], value: Any, name: str, required: bool = False) -> Any:
    """The value, as the field's type.  Raises UserError, which begins with `name`, when it is not allowed."""
    kind, limits = _kind(field), field.metadata
    if value is None and field.default is None and not required:
        return None
    if kind is float and type(value) is int and abs(value) < 2**63:
        value = float(value)
    if type(value) is not kind or kind is bool:
        right = type(value) is kind
    elif kind is str:
        right = value in limits["choices"] if limits["choices"] else value != "" and "\0" not in value
    elif kind is int:
        right = limits["low"] <= value <= limits["high"]
    else:
        right = math.isfinite(value) and (limits["low"] is None or value >= limits["low"])
        single = ctypes.c_float(value).value  # as the native libraries hold it
        right = right and (limits["above"] is None or single > limits["above"])
        right = right and (limits["below"] is None or single < limits["below"])
    if not right:
        raise UserError(f"{name} is {_show(value)}, expected {_expected(field)}")
    return value


def _expected(field: dataclasses.Field[Any]) -> str:
    kind, limits = _kind(field), field.metadata
    if limits["choices"]:
        return alternatives(limits["choices"])
    if kind is str:
        return "a text that is not empty"
    if kind is bool:
        return "true or false"
    if kind is int:
        return f"an integer from {limits['low']} to {limits['high']}"
    words = {"low": "of at least", "above": "above", "below": "below"}
    return "a number " + " and ".join(
        f"{word} {limits[key]:g}" for key, word in words.items() if limits[key] is not None
    )


def _show(value: Any) -> str:
    """A value as it stands in an error."""
    return "not set" if value is None else show(value)


def _toml(value: Any) -> str:
    # JSON's strings are TOML's, but for the one control character that JSON does not escape; so are true and false.
    if isinstance(value, (str, bool)):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
