"""Dual encoders (pictures and texts into one space) and the loop that embeds records."""
