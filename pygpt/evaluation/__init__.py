"""How good a model is: likelihoods of texts, and tasks that are published."""
