"""From a model directory and held-out records to predictions, scores and result rows."""
