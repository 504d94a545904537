"""Training: the loop of a run.

A run is a function of its settings: the dropout masks and the learning rate of a step follow from the seed and the
number of the step, its batch from the seed and the number of windows drawn before. So a checkpoint needs only weights,
moments and these two numbers, and a resumed run ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
import shlex
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from pygpt.backends.devices import DEVICES, resolve_device, resolve_dtype
from pygpt.backends.library import cpu_library, library_name
from pygpt.backends.sources import digest
from pygpt.command.programs import call
from pygpt.config import GPT2Config
from pygpt.errors import DeviceError, DivergedError, UserError
from pygpt.files.atomic import write_file
from pygpt.files.hub import resolve_folder
from pygpt.generation.generate import printable, start_token
from pygpt.model import GPT2
from pygpt.parallel.nccl import nccl_version
from pygpt.parallel.ranks import ALONE, Ranks
from pygpt.parallel.tree import GradientTree
from pygpt.training import events, plot
from pygpt.training.interruption import Interruption
from pygpt.training.optimizer import Optimizer, moment_shapes
from pygpt.training.progress import Progress, loss_text
from pygpt.training.run_folder import PLOT_FILE, SAMPLE_FILE, Onlooker, RunFolder, TrainingState
from pygpt.training.schedule import learning_rate
from pygpt.training.settings import Request, TrainSettings
from pygpt.training.setup import (
    Data,
    check_ranks,
    check_run_memory,
    check_windows,
    choose_device,
    create_model,
    create_optimizer,
    describe,
    fitted,
    model_config,
    open_data,
    slices_weights,
)
from pygpt.training.yardsticks import measure

SAMPLE_TEMPERATURE = 0.8
_SECONDS_BETWEEN_READINGS = 0.2


def train(request: Request, watch: Callable[[int], object] = lambda step: None, ranks: Ranks = ALONE) -> int:
    """Start or resume a run, and go on to its end or until it is interrupted.

    watch: is told now and then how many steps are done.  ranks: the processes that share the run and all call this.
    Returns the exit status: 0, or 128 + the number of the signal that interrupted it.  Raises UserError when the run
    cannot begin, when its loss is not finite, when the device fails, and when something cannot be saved; the latest
    checkpoint stays intact.
    """
    if request.settings.tensorboard:
        events.check_available()
    with _open_folder(request, ranks) as folder:
        state = folder.load_state() if request.resume else None
        device = resolve_device(request.settings.device)
        settings = replace(request.settings, device=device, dtype=resolve_dtype(request.settings.dtype, device))
        check_ranks(settings, ranks)
        choose_device(settings, ranks)

        def open_all() -> tuple[Path | None, Data]:
            """Where weights come from, if not from the seed, and the data."""
            source = None
            if state is not None:
                source = folder.last
            elif settings.init_from is not None:
                source = resolve_folder(settings.init_from)
            return source, open_data(settings, source)

        source, data = ranks.in_turn(open_all)
        if state is not None:
            _check_resumable(folder, settings, data, state)
        config = model_config(settings, request.given, source, data)
        settings = fitted(settings, config)
        check_windows(settings, data)
        check_run_memory(config, settings, ranks)
        print(describe(settings, config, data, folder.path, ranks), flush=True)
        if ranks.several:
            ranks.check_same(_facts(settings, config, data, state))
        if state is None and ranks.first:
            yardsticks = measure(data.train, data.val, data.tokenizer)
            print(f"compare {yardsticks.describe(data.val.described.tokens_per_byte)}", flush=True)
        try:
            model = create_model(config, settings, source, ranks)
            optimizer = create_optimizer(model, settings, ranks)
            if state is not None:
                optimizer.load(folder.read_moments(moment_shapes(settings.optimizer, config)))
                model.steps = state.step
            loop = _Loop(folder, settings, data, model, optimizer, state, watch, ranks)
            del model, optimizer  # so that the loop can let go of them
            if request.overwrite:
                ranks.gather(None)  # all have read what they begin with
                folder.clear()
            folder.save_settings(settings)
            return loop.run()
        except MemoryError as error:
            raise UserError(f"the run does not fit into memory: {error or 'an array cannot be allocated'}") from None


def _open_folder(request: Request, ranks: Ranks) -> RunFolder:
    """The run's folder: the one that was asked for, or else the next that is free."""
    if not ranks.first:
        return Onlooker(ranks.from_first(request.out_dir))
    folder = _locked_folder(request)
    ranks.from_first(folder.path)
    return folder


def _locked_folder(request: Request) -> RunFolder:
    if request.resume or request.overwrite or "out_dir" in request.given:
        return RunFolder(request.out_dir, request.resume, request.overwrite)
    return RunFolder.next_free(request.out_dir)


def _check_resumable(folder: RunFolder, settings: TrainSettings, data: Data, state: TrainingState) -> None:
    if state.data != data.fingerprint:
        raise UserError(f"{settings.data}: holds other tokens than when the run in {folder.path} began")
    if state.step > settings.max_iters:
        raise UserError(f"max_iters is {settings.max_iters}, but the run in {folder.path} has done {state.step} steps")


def _facts(settings: TrainSettings, config: GPT2Config, data: Data, state: TrainingState | None) -> dict[str, object]:
    """What must be the same on all ranks, since they train one model."""
    return {
        **dataclasses.asdict(replace(settings, threads=None)),
        "configuration": config,
        "fingerprint of the tokens": data.fingerprint,
        "checkpoint": state,
        "library": library_name(cpu_library()),
        "NCCL": nccl_version(settings.device),
        "digest of the sources": digest(),
    }


class _Loop:
    """The steps of a run from `state` on; None is the beginning."""

    def __init__(
        self,
        folder: RunFolder,
        settings: TrainSettings,
        data: Data,
        model: GPT2,
        optimizer: Optimizer,
        state: TrainingState | None,
        watch: Callable[[int], object],
        ranks: Ranks,
    ) -> None:
        self.folder, self.settings, self.data, self.model = folder, settings, data, model
        self.optimizer, self.saved, self.watch, self.ranks = optimizer, state, watch, ranks
        self.micro_batches = ranks.share(settings.grad_accum)  # of a step
        self.tree = GradientTree(model, len(self.micro_batches), DEVICES[settings.device].ranks)
        self.state = TrainingState(data=data.fingerprint) if state is None else replace(state)
        self.tokens_per_byte: float | None = None  # where a loss is not one of all tokens
        self.val_tokens_per_byte: float | None = None
        if settings.objective == "clm":
            self.tokens_per_byte = data.train.described.tokens_per_byte
            self.val_tokens_per_byte = data.val.described.tokens_per_byte
        self.progress = Progress(self.state.step, settings.max_iters)
        self.interruption = Interruption(self._say_interrupted)
        self.stopped_by = 0  # the signal that some rank was interrupted by
        self.unread: list[tuple[int, float, float, float]] = []  # step, loss, learning rate, norm of the gradient
        self.first = self.state.step
        self.losses: list[float] = []  # in training since the latest validation
        self.seconds = 0.0  # spent on the steps since `first`
        self.started = 0.0  # when the unread steps began

    def run(self) -> int:
        """Go on to the last step or until interrupted.  Returns the exit status."""
        state = self.state
        self.folder.open_log(state, self.settings.tensorboard)
        with self.interruption, self.progress:
            try:
                self._steps()
            except DeviceError as error:
                raise UserError(f"{error}, after step {state.step}; {self._advice()}") from None
        if self.stopped_by:
            print(f"stopped by {signal.Signals(self.stopped_by).name} after step {state.step}")
            print(f"saved {self.folder.last}; go on with: {self._resume_command()}")
            return 128 + self.stopped_by
        if self.ranks.first:
            self._finish()
        return 0

    def _steps(self) -> None:
        """Step, validate and save until the last step is done or somebody interrupts."""
        settings, state = self.settings, self.state
        while True:
            last = state.step >= settings.max_iters
            if (last or state.step % settings.eval_interval == 0) and state.validated != state.step:
                self._validate()
            self.stopped_by = max(self.ranks.gather(self.interruption.signal or 0))
            stop = last or self._out_of_patience() or bool(self.stopped_by)
            if stop or state.step % settings.checkpoint_interval == 0:
                self._save()
            if stop:
                return
            self._step()
            if time.perf_counter() - self.started >= _SECONDS_BETWEEN_READINGS:
                self._read()

    # ---- one step ----

    def _step(self) -> None:
        if not self.unread:
            self.started = time.perf_counter()
        settings, state = self.settings, self.state
        lr = learning_rate(
            state.step,
            schedule=settings.lr_schedule,
            peak=settings.learning_rate,
            floor=settings.final_lr,
            warmup_iters=settings.warmup,
            max_iters=settings.max_iters,
            decay_iters=settings.decay,
        )
        self.tree.sum(self.micro_batches.start, self._accumulate, self.optimizer.last_pass)
        norm = self.optimizer.step(lr)
        losses = self.ranks.gather(self.tree.losses())
        state.step += 1
        state.windows += settings.grad_accum * settings.batch_size
        self.unread.append((state.step, _in_order(itertools.chain(*losses)), lr, norm))

    def _accumulate(self, number: int) -> None:
        """Add the gradients of a micro-batch of this step."""
        settings, state = self.settings, self.state
        tokens, targets = self.data.training_batch(state.windows + number * settings.batch_size, settings)
        dropout_step = (state.step * settings.grad_accum + number) % 2**32
        self.model.accumulate(tokens, targets, scale=1 / settings.grad_accum, dropout_step=dropout_step)

    def _read(self) -> None:
        """Log and show the steps since the latest time; writing is not done at each of thousands a second.

        Raises UserError when one is not finite.
        """
        if not self.unread:
            return
        read, self.unread = self.unread, []
        if not self.ranks.first:
            return
        seconds = time.perf_counter() - self.started
        self.seconds += seconds
        speed = len(read) * self._tokens_per_step() / seconds
        for step, loss, lr, norm in read:
            self._check_finite("loss", loss, step)
            self._check_finite("norm of the gradient", norm, step)
            record = {"step": step, **_logged("loss", loss, self.tokens_per_byte), "lr": lr, "grad_norm": norm}
            self.folder.log({**record, "tokens_per_second": round(speed, 1)})
            self.losses.append(loss)
        self.folder.flush_log()
        step, mean_loss = self.state.step, sum(loss for _, loss, _, _ in read) / len(read)
        left = (self.settings.max_iters - step) * self.seconds / (step - self.first)
        self.progress.update(step, loss_text(mean_loss, self.tokens_per_byte), speed, left)
        self.watch(step)

    def _check_finite(self, what: str, value: float, step: int) -> None:
        if math.isfinite(value):
            return
        advice = self._advice(" with a smaller --learning-rate")
        raise DivergedError(f"the {what} is {value} at step {step}; {advice}")

    def _advice(self, change: str = "") -> str:
        """How to go on after what the run does not survive."""
        if self.saved is None:
            return f"there is no checkpoint yet: begin again{change}"
        checkpoint = f"the last good checkpoint is {self.folder.last} (step {self.saved.step})"
        return f"{checkpoint}: go on from it{change}, {self._resume_command()}"

    def _tokens_per_step(self) -> int:
        return self.settings.grad_accum * self.settings.batch_size * self.settings.seq_len

    # ---- now and then ----

    def _validate(self) -> None:
        """Measure the validation loss, and keep the model if it is the best; leave it undone when interrupted."""
        self._read()
        state = self.state
        results = self._validation_losses()
        if results is None:
            return
        count = sum(counted for _, counted in results)
        loss = _in_order(mean * counted for mean, counted in results) / count
        self._check_finite("validation loss", loss, state.step)
        best = state.best_val_loss is None or loss < state.best_val_loss
        if best:
            with self.optimizer.gathered() as gathered:
                self.folder.save_best(self.model.config, gathered.parameters, self.data.tokenizer)
            state.best_step, state.best_val_loss, state.since_best = state.step, loss, 0
        else:
            state.since_best += 1
        state.validated = state.step
        self.folder.log({"step": state.step, **_logged("val_loss", loss, self.val_tokens_per_byte)})
        training = ""
        if self.losses:
            training = f", training loss {loss_text(sum(self.losses) / len(self.losses), self.tokens_per_byte)}"
            self.losses = []
        shown = loss_text(loss, self.val_tokens_per_byte)
        self.progress.say(f"step {state.step}: validation loss {shown}{', the best so far' if best else ''}{training}")

    def _validation_losses(self) -> list[tuple[float, int]] | None:
        """Mean loss and number of targets of each batch, of which every rank computes some; None when interrupted."""
        ranks, mine = self.ranks, []
        for tokens, targets in itertools.islice(
            self.data.validation_batches(self.settings), ranks.rank, None, ranks.size
        ):
            if self.interruption:
                break
            mine.append((float(self.model.forward(tokens, targets) or 0.0), int((targets >= 0).sum())))
        results = ranks.gather(None if self.interruption else mine)
        whole = [each for each in results if each is not None]
        if len(whole) < len(results):
            return None
        return [each for batches in itertools.zip_longest(*whole) for each in batches if each is not None]

    def _out_of_patience(self) -> bool:
        return self.settings.patience is not None and self.state.since_best >= self.settings.patience

    def _save(self) -> None:
        """Save a checkpoint, unless the latest one is of this very state."""
        self._read()
        if self.saved != self.state:
            with self.optimizer.gathered() as gathered:
                self.folder.save_last(self.model.config, gathered, self.data.tokenizer, self.state)
            self.saved = replace(self.state)

    def _say_interrupted(self) -> None:
        self.progress.say("interrupted: finishing the step and saving it; a second time stops at once")

    def _resume_command(self) -> str:
        return shlex.join([*call("train"), "--resume", str(self.folder.path)])

    # ---- at the end ----

    def _finish(self) -> None:
        """Draw the loss curve and save a sample; then say how it went and where everything is."""
        folder, state = self.folder, self.state
        title = f"{folder.path.resolve().name}: {self.model.num_parameters:,} parameters"
        plot.loss_curve(folder.path / PLOT_FILE, folder.read_log(), title)
        causal = self.model.config.causal
        sample = self._sample() if self.settings.sample_tokens and causal else None
        steps = state.step - self.first
        if steps:
            speed = steps * self._tokens_per_step() / self.seconds
            print(f"{steps:,} steps in {tqdm.format_interval(self.seconds)}, {speed:,.0f} tokens/s")
        if self._out_of_patience():
            times = f"{state.since_best} validation{'' if state.since_best == 1 else 's'} in a row"
            print(f"stopped early, at step {state.step}: {times} without a better loss")
        if sample is not None:
            print(f"---- a sample at temperature {SAMPLE_TEMPERATURE}\n{printable(sample)}\n----")
        assert state.best_val_loss is not None
        best = loss_text(state.best_val_loss, self.val_tokens_per_byte)
        print(f"validation loss {best} at best, at step {state.best_step}: {folder.best}")
        print(f"latest model: {folder.last}; loss curve: {folder.path / PLOT_FILE}")
        if causal:
            command = [*call("generate"), "PROMPT", "--model", str(folder.best)]
            print(f"more text: {shlex.join(command)}")

    def _sample(self) -> str:
        """Write and save a text."""
        tokenizer, settings = self.data.tokenizer, self.settings
        if slices_weights(settings, self.ranks):  # a whole model takes the place of what is left of this one
            config = self.model.config
            del self.model, self.optimizer, self.tree
            self.model = create_model(config, settings, self.folder.last, self.ranks)
        tokens = self.model.generate(
            [start_token(tokenizer, self.model.config.bos_token_id)],
            settings.sample_tokens,
            temperature=SAMPLE_TEMPERATURE,
            seed=settings.seed,
            allowed_tokens=tokenizer.known_tokens(),
        )
        text = tokenizer.decode(tokens)
        with write_file(self.folder.path / SAMPLE_FILE) as file:
            file.write(text.encode())
        return text


def _in_order(numbers: Iterable[float]) -> float:
    """Their sum, one after the other, as sum() does not take it from Python 3.12 on."""
    return functools.reduce(operator.add, numbers, 0.0)


def _logged(name: str, loss: float, tokens_per_byte: float | None) -> dict[str, float]:
    """A loss in nats per token and, where it is known, in nats per byte, as the log has it."""
    return {name: loss} | ({} if tokens_per_byte is None else {f"{name}_per_byte": loss * tokens_per_byte})
