"""The whole model on any device: one interface over the numpy reference and the native libraries.

Its methods for files and text import what they need, which takes longer than everything else, when they are called.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pygpt.backends.devices import DEVICES, resolve_device
from pygpt.backends.interface import CACHES, WEIGHTS, AdamW, Generator, Layers, Model, Writable
from pygpt.backends.library import available_cores, default_threads, use_threads
from pygpt.config import GPT2Config, check_causal
from pygpt.errors import UserError, check_integer, show
from pygpt.parameters import parameter_shapes
from pygpt.reference import adamw, muon
from pygpt.reference.arrays import Array, row_of_integers
from pygpt.reference.dropout import Dropout


def layers(device: str = "cpu", dtype: str = "float32", kernels: str = "fast") -> Layers:
    """Every layer of a device, callable alone; docs/architecture.md lists them.

    device: "numpy" computes in the dtype of the arguments, the others in float32; dtype "bfloat16" rounds the operands
    of matrix products, with CUDA the tensors too.  Raises UserError for names that are unknown and libraries that are
    absent.
    """
    return DEVICES[resolve_device(device)].layers(dtype, kernels)


def set_threads(threads: int | None, *, beyond_cores: bool = False) -> None:
    """How many threads the CPU uses for later calls, whichever thread of the program makes them.

    None: as many as OMP_NUM_THREADS says; without it one for each core that this process may use, but no more than the
    CPU quota of its control groups (a container) lets run.  The results do not depend on it.  Raises UserError for
    fewer than one, and for more than the cores, which would only wait for each other, unless beyond_cores allows it.
    """
    cores = available_cores()
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}, expected at least 1")
    if threads is not None and threads > cores and not beyond_cores:
        raise UserError(f"threads is {threads}, expected at most {cores}, the cores that this process may use")
    use_threads(threads or default_threads())


def memory_needed(
    config: GPT2Config,
    *,
    batch_size: int,
    seq_len: int,
    training: bool,
    dtype: str = "float32",
    kernels: str = "fast",
    recompute: str = "none",
    device: str = "cpu",
    optimizer: str = "adamw",
) -> int:
    """Bytes that a model takes for batches of (batch_size, seq_len), in training with gradients and moments.

    optimizer: "adamw", "sgd", "momentum" (sgd_step() with momentum) or "muon".
    Raises UserError for sizes that overflow 64 bits.
    """
    needed = DEVICES[resolve_device(device)].memory_needed
    return needed(config, batch_size, seq_len, training, dtype, kernels, recompute, optimizer)


def generator_memory_needed(
    config: GPT2Config,
    *,
    weights: str = "float32",
    cache: str = "float32",
    batch_size: int = 1,
    positions: int | None = None,
    device: str = "cpu",
) -> int:
    """Bytes that GPT2.generator() takes with these settings, besides the model.  Raises UserError as that does."""
    positions = _check_generator(config, weights, cache, batch_size, positions)
    return DEVICES[resolve_device(device)].generator_memory(config, weights, cache, batch_size, positions)


class GPT2:
    """A GPT-2 with fresh weights.

    device: "cpu", "numpy", "cuda" or "cuda-emulated"; dtype: "float32" or "bfloat16" (operands of matrix products,
    with CUDA tensors too), with numpy also "float64" and "complex128"; kernels: "fast" or "plain"; recompute: "none",
    "cheap" or "block", what the backward pass computes again instead of keeping (docs/architecture.md); seed: of the
    weights and of dropout.

    Raises UserError for settings that do not exist or do not fit, MemoryError when the model does not fit into memory.
    """

    def __init__(
        self,
        config: GPT2Config,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int = 0,
        *,
        kernels: str = "fast",
        recompute: str = "none",
    ) -> None:
        if not 0 <= seed < 2**64:
            raise UserError(f"seed is {seed}, expected an integer from 0 to 2^64 - 1")
        self.config = config
        self.device = resolve_device(device)
        self.dtype = dtype
        self.kernels = kernels
        self.recompute = recompute
        self.seed = seed
        self.steps = 0  # of an optimizer
        self._backend: Model = DEVICES[self.device].model(config, dtype, kernels, recompute)
        self._backend.init_weights(seed)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, config: GPT2Config | None = None, **settings: Any) -> GPT2:
        """A model from a Hugging Face folder, or by its name on the hub.

        config: instead of the folder's own, for other dropouts.  settings: as in the constructor.  Raises UserError
        when the folder is not a GPT-2's, is damaged, or has other shapes than the configuration.
        """
        from pygpt.files import checkpoint, hub

        folder = hub.resolve_folder(name_or_path)
        config = config or checkpoint.read_config(folder)
        stored = checkpoint.load_parameters(folder, config)  # checks everything before the model takes memory
        model = cls(config, **settings)
        for name, values in stored:
            model.set_parameter(name, values)
        return model

    def save_pretrained(self, folder: str | Path, dtype: str = "float32") -> None:
        """Write config.json and model.safetensors, which transformers.GPT2LMHeadModel.from_pretrained opens.

        dtype: of the file, "float32", "float16" or "bfloat16".  Raises UserError when it cannot be written, and leaves
        a former model in this folder intact.
        """
        from pygpt.files import checkpoint

        checkpoint.save_parameters(folder, self.config, self.parameters, dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: weights, the optimizer's moments and steps, and all settings, but neither gradients
        nor activations.  A copy shares nothing with the model, whichever way it was made.
        """
        names = ("device", "dtype", "seed", "kernels", "recompute")
        settings = {name: getattr(self, name) for name in names}
        tensors = {"parameters": dict(self.parameters)}
        for kind in ("first_moments", "second_moments") if self.steps else ():
            # where the optimizer has none they are zero, and would take memory if they were written
            tensors[kind] = {name: m for name, m in getattr(self, kind).items() if m.any()}
        return _restore, (type(self), self.config, settings, self.steps, tensors)

    def __deepcopy__(self, memo: dict[int, Any]) -> GPT2:
        return copy.copy(self)

    # ---- tensors by name ----

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Name -> array; views of the model's memory on the CPU, read-only copies on other devices."""
        return self._backend.parameters

    @property
    def gradients(self) -> Mapping[str, Array]:
        """Name of the parameter -> its gradient, summed over backward passes since zero_grad()."""
        return self._backend.gradients

    @property
    def first_moments(self) -> Mapping[str, Array]:
        """Name of the parameter -> the optimizer's m: AdamW's, or momentum."""
        return self._backend.first_moments

    @property
    def second_moments(self) -> Mapping[str, Array]:
        """Name of the parameter -> AdamW's v; 0 for what another optimizer updates."""
        return self._backend.second_moments

    @property
    def activations(self) -> Mapping[str, Array]:
        """Name -> array of the latest forward pass; docs/architecture.md lists them."""
        return self._backend.activations

    @property
    def activation_gradients(self) -> Mapping[str, Array]:
        """Name of the activation -> its gradient in the latest backward pass."""
        return self._backend.activation_gradients

    @property
    def num_parameters(self) -> int:
        """How many numbers the model learns; the tied head counts once."""
        return self.config.num_parameters

    def set_parameter(self, name: str, values: ArrayLike) -> None:
        """Raises UserError for an unknown name or another shape."""
        shapes = parameter_shapes(self.config)
        values = np.asarray(values)
        if name not in shapes:
            raise UserError(f"parameter {name} is unknown, expected one such as {next(iter(shapes))}")
        if values.shape != shapes[name]:
            raise UserError(f"parameter {name} has shape {values.shape}, expected {shapes[name]}")
        _write(self._backend.parameters, name, values)

    def set_moments(self, name: str, first: ArrayLike, second: ArrayLike | None = None) -> None:
        """The optimizer's m and v of a parameter, of its shape; None where it has no v."""
        _write(self._backend.first_moments, name, first)
        if second is not None:
            _write(self._backend.second_moments, name, second)

    # ---- passes ----

    def forward(
        self, tokens: ArrayLike, targets: ArrayLike | None = None, *, dropout_step: int | None = None
    ) -> float | None:
        """Forward pass; the mean cross-entropy in nats over the targets that are not negative, None without targets.

        tokens, targets: (B,T) integers; targets[b,t] is the token to predict after tokens[b,t], as nothing is shifted
        here.  Where all targets are negative the loss is 0, and a backward pass adds nothing.  dropout_step: None for
        no dropout (evaluation); otherwise the number of the forward pass for which masks are drawn.  Raises UserError
        for tokens outside the vocabulary, other shapes, and T > n_positions.
        """
        tokens, targets = _integers("tokens", tokens), None if targets is None else _integers("targets", targets)
        return self._backend.forward(tokens, targets, self._dropout(dropout_step))

    def backward(self, scale: float = 1.0) -> None:
        """gradients += scale * d(loss)/d(parameter), for the latest forward pass; UserError if that had no targets."""
        self._backend.backward(scale)

    def forward_backward(
        self, tokens: ArrayLike, targets: ArrayLike, *, scale: float = 1.0, dropout_step: int | None = None
    ) -> float:
        """forward() and backward() with the same results, and the head's products computed once instead of twice."""
        tokens, targets = _integers("tokens", tokens), _integers("targets", targets)
        return self._backend.forward_backward(tokens, targets, scale, self._dropout(dropout_step))

    def accumulate(
        self, tokens: ArrayLike, targets: ArrayLike, *, scale: float = 1.0, dropout_step: int | None = None
    ) -> None:
        """forward_backward() that does not wait for a device to read the loss: a micro-batch of a training step.

        Where micro-batches count different numbers of targets, the scale that makes them one batch is the number of
        targets that count in this one, divided by that in all; summed_loss is then the loss of the step.
        """
        tokens, targets = _integers("tokens", tokens), _integers("targets", targets)
        self._backend.accumulate(tokens, targets, scale, self._dropout(dropout_step))

    @property
    def summed_loss(self) -> float:
        """Sum of scale * loss over the backward passes since zero_grad(); cheap after clip_grad_norm(), which waits."""
        return self._backend.summed_loss

    def _dropout(self, step: int | None) -> Dropout | None:
        return None if step is None else Dropout(0.0, seed=self.seed, step=step)

    @property
    def logits(self) -> Array:
        """Logits of the latest forward pass: (B,T,V), computed when asked for."""
        B, T = self._backend.shape
        return self._backend.logits(0, B * T).reshape(B, T, self.config.vocab_size)

    def last_logits(self) -> Array:
        """Logits of each sequence's last position in the latest forward pass: (B,V)."""
        B, T = self._backend.shape
        if not B:
            raise UserError("logits need a forward pass before them")
        return np.concatenate([self._backend.logits(row * T + T - 1, 1) for row in range(B)])

    def logits_at(self, row: int, first: int, count: int) -> Array:
        """Logits of `count` positions from `first` on of one sequence in the latest forward pass: (count,V)."""
        return self._backend.logits(row * self._backend.shape[1] + first, count)

    def attention_probabilities(self, layer: int) -> Array:
        """Attention probabilities of a layer in the latest forward pass, before dropout: (B,NH,T,T)."""
        return self._backend.attention_probabilities(layer)

    # ---- training ----

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self._backend.zero_grad()

    def clip_grad_norm(self, max_norm: float) -> float:
        """Scale the gradients down to the global norm max_norm; 0 only measures.  Returns the norm before."""
        return self._backend.clip_grad_norm(max_norm)

    def adamw_step(
        self,
        lr: float,
        betas: tuple[float, float] = (adamw.BETA1, adamw.BETA2),
        eps: float = adamw.EPS,
        weight_decay: float = adamw.WEIGHT_DECAY,
    ) -> None:
        """Update all parameters by AdamW (Loshchilov & Hutter 2019); only matrices decay.  Counts self.steps."""
        self._backend.adamw_step(AdamW(lr, *betas, eps, weight_decay), self.steps + 1)
        self.steps += 1

    def sgd_step(self, lr: float, momentum: float = 0.0, weight_decay: float = adamw.WEIGHT_DECAY) -> None:
        """Update all parameters by gradient descent, with momentum (Polyak 1964) unless it is 0; only matrices decay.

        Counts self.steps.
        """
        self._backend.sgd_step(lr, momentum, weight_decay)
        self.steps += 1

    def muon_step(
        self,
        lr: float,
        muon_lr: float = muon.LEARNING_RATE,
        momentum: float = muon.MOMENTUM,
        betas: tuple[float, float] = (adamw.BETA1, adamw.BETA2),
        eps: float = adamw.EPS,
        weight_decay: float = adamw.WEIGHT_DECAY,
    ) -> None:
        """Update the matrices of the blocks by Muon (Jordan et al. 2024), and all others by AdamW; counts self.steps.

        lr, betas, eps: of AdamW; muon_lr, momentum: of Muon (docs/layers/muon.md).  Only matrices decay.
        """
        self._backend.muon_step(muon_lr, momentum, AdamW(lr, *betas, eps, weight_decay), self.steps + 1)
        self.steps += 1

    # ---- text ----

    def generator(
        self,
        weights: str = "float32",
        cache: str = "float32",
        batch_size: int = 1,
        positions: int | None = None,
        calibration: ArrayLike | None = None,
    ) -> Generator:
        """A snapshot of the weights, and batch_size empty sequences whose keys and values it keeps.

        weights: "float32", "bfloat16", "int8" or "int4", the format in which matrices are kept and used; cache:
        "float32" or "bfloat16", that of keys and values (docs/generation.md); positions: the largest length of a
        sequence in tokens, None for n_positions.  The dtype of the model does not matter.
        calibration: (n,T) tokens of a text such as the model will see, to which weights of 8 or 4 bits are fitted
        (reference/gptq.py), for which the model keeps its activations (recompute "none") and runs once.

        feed(tokens) appends tokens[b], (n,) integers, to sequence b, and returns the logits of the token that comes
        next, (B,V) float32; rewind(lengths) leaves the first lengths[b] tokens; lengths says how many there are.  Later
        changes of the model do not change a generator, which lives on without it.  Only one thread at a time may
        use it.  Raises UserError for settings that do not exist or do not fit, MemoryError where there is no room.
        """
        positions = _check_generator(self.config, weights, cache, batch_size, positions)
        generator = self._backend.generator(weights, cache, batch_size, positions)
        if calibration is not None:
            from pygpt.generation.calibration import calibrate

            if weights not in ("int8", "int4"):
                raise UserError(f"calibration is given, but weights is {weights}, expected int8 or int4")
            if self.recompute != "none":
                raise UserError(f"calibration needs all activations, but recompute is {self.recompute}, expected none")
            calibrate(generator, self, _integers("calibration", calibration), weights)
        return generator

    def generate(
        self,
        prompt_tokens: ArrayLike,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop_token: int | Sequence[int] | None = None,
        allowed_tokens: ArrayLike | None = None,
        weights: str | None = None,
        cache: str = "float32",
        window: str = "half",
        lookup: int | bool = False,
    ) -> Iterator[int]:
        """Yield new tokens until there are max_new_tokens, or before stop_token, which may be several tokens.

        prompt_tokens: (T,) integers, T <= n_positions.  weights, cache: of the generator that computes them, a snapshot
        of the model as it is now; weights None: bfloat16 in a model of this dtype, otherwise float32.  The others are
        those of pygpt.generation.generate.generate_samples and of pygpt.generation.sampling.Sampling.
        Raises UserError, on the call, for wrong arguments, MemoryError where the generator does not fit.
        """
        from pygpt.generation.generate import generate_samples
        from pygpt.generation.sampling import Sampling

        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        prompt = row_of_integers("the prompt", prompt_tokens)
        check_integer("max_new_tokens", max_new_tokens, 1)
        positions = min(max(prompt.size + int(max_new_tokens) - 1, 1), self.config.n_positions)
        weights = weights or ("bfloat16" if self.dtype == "bfloat16" else "float32")
        samples = generate_samples(
            self.generator(weights, cache, positions=positions),
            [prompt],
            max_new_tokens,
            sampling,
            seed=seed,
            stop_token=stop_token,
            allowed_tokens=allowed_tokens,
            window=window,
            lookup=lookup,
        )
        return (drawn.token for (sample,) in samples for drawn in sample)


def _check_generator(config: GPT2Config, weights: str, cache: str, batch_size: int, positions: int | None) -> int:
    """The positions that are meant."""
    check_causal(config, "generates text")
    for name, value, known in (("weights", weights, WEIGHTS), ("cache", cache, CACHES)):
        if value not in known:
            raise UserError(f"{name} is {show(value)}, expected one of {', '.join(known)}")
    check_integer("batch_size", batch_size, 1, 2**31 - 1)
    if positions is None:
        return config.n_positions
    check_integer("positions", positions, 1, config.n_positions)
    return int(positions)


def _restore(
    cls: type[GPT2],
    config: GPT2Config,
    settings: dict[str, Any],
    steps: int,
    tensors: Mapping[str, Mapping[str, Array]],
) -> GPT2:
    model = cls(config, **settings)
    for kind, held in tensors.items():
        for name, values in held.items():
            _write(getattr(model, kind), name, values)
    model.steps = steps
    return model


def _write(tensors: Mapping[str, Array], name: str, values: ArrayLike) -> None:
    if isinstance(tensors, Writable):
        tensors.write(name, values)
    else:
        tensors[name][...] = values


def _integers(name: str, values: ArrayLike) -> Array:
    array = np.asarray(values)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise UserError(f"{name} have shape {array.shape} and dtype {array.dtype}, expected integers of shape (B, T)")
    # a token that 32 bits cannot hold is outside every vocabulary, and must not wrap around into one
    return np.clip(array, -1 if name == "targets" else -(2**31), 2**31 - 1).astype(np.int32)
