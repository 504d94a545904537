"""LayerNorm over the channels of each row.

    forward    x̂ = (x − μ) r      r = 1/√(σ² + ε)      y = x̂ ⊙ w + b
    backward   u = w ⊙ dy         dx = r (u − ⟨u⟩ − x̂ ⟨u ⊙ x̂⟩)      dw = Σ_n dy ⊙ x̂      db = Σ_n dy

μ and σ² are the mean and the variance of a row (over C, not C − 1), and ⟨·⟩ is the mean over channels. dx has two
terms more than the obvious one, because μ and r depend on every x of the row: it is a projection, orthogonal to 1 and
to x̂. Derive it before you write it.

Read: docs/layers/layernorm.md; Ba, Kiros & Hinton 2016, eq. 3-4.
"""

from __future__ import annotations

import numpy as np


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x: (...,C); w, b: (C,).  Returns y: (...,C), and mean μ and rstd r: (...)."""
    raise NotImplementedError


def backward(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray, mean: np.ndarray, rstd: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy, x: (...,C); w: (C,); mean, rstd: (...) from forward.  Returns dx: (...,C), dw, db: (C,)."""
    raise NotImplementedError
