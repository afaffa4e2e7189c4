"""The model: a projector in front of any causal language model, and its directory on disk."""
