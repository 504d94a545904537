"""A device beside numpy in float64, layer by layer."""
