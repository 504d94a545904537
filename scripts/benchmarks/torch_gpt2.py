"""GPT-2 in torch, as a user of it would write it: the alternative that a benchmark compares with."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pygpt.config import GPT2Config

torch: Any = importlib.import_module("torch")  # it is slow to import, and may be absent
nn: Any = torch.nn
functional: Any = torch.nn.functional


class Block(torch.nn.Module):  # type: ignore[misc]
    """One block, without dropout."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.ln_1 = nn.LayerNorm(C, eps=config.layer_norm_epsilon)
        self.c_attn = nn.Linear(C, 3 * C)
        self.attn_proj = nn.Linear(C, C)
        self.ln_2 = nn.LayerNorm(C, eps=config.layer_norm_epsilon)
        self.c_fc = nn.Linear(C, config.inner)
        self.mlp_proj = nn.Linear(config.inner, C)

    def forward(self, x: Any) -> Any:
        B, T, C = x.shape
        heads = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(C, 2))
        y = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp_proj(functional.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class TorchGPT2(torch.nn.Module):  # type: ignore[misc]
    """tokens, targets: (B,T) -> the mean cross-entropy in nats; the head is tied to the embedding."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def embed(self, tokens: Any) -> Any:
        return self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]

    def head(self, x: Any, targets: Any) -> Any:
        logits = functional.linear(self.ln_f(x), self.wte.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def forward(self, tokens: Any, targets: Any) -> Any:
        x = self.embed(tokens)
        for block in self.h:
            x = block(x)
        return self.head(x, targets)

    def load(self, parameters: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take a model's parameters; a linear layer's weight lies (out,in) here."""
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, values in parameters.items():
                turned, linear = _own_name(name)
                own.pop(turned).copy_(torch.from_numpy(values.T if linear else values))
        assert not own, f"parameters without a value: {list(own)}"

    def gradients(self, names: Iterable[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Of a model's parameters, by their names and in their shapes."""
        own, found = dict(self.named_parameters()), {}
        for name in names:
            turned, linear = _own_name(name)
            values = own[turned].grad.float().cpu().numpy()
            found[name] = values.T if linear else values
        return found


def _own_name(name: str) -> tuple[str, bool]:
    """What a model's parameter is called here, and whether it is a linear layer's weight."""
    names = {"attn.c_attn": "c_attn", "attn.c_proj": "attn_proj", "mlp.c_fc": "c_fc", "mlp.c_proj": "mlp_proj"}
    turned = name
    for theirs, ours in names.items():
        turned = turned.replace(theirs, ours)
    return turned, turned != name and name.endswith("weight")
