"""Training with Lightning: one module for every stage, strategies, exact resume, run metrics."""
