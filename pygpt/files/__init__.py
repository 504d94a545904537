"""Model folders and the tensors in them, where models are found, and files that are replaced whole."""
