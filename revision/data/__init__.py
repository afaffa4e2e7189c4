"""From records and feature shards to micro-batches of token sequences with picture slots."""
