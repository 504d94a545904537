"""Several processes that train one model: who they are, and how they sum and share arrays."""
