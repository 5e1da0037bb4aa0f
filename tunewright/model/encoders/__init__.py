"""Encoders: models whose tokens attend to both sides, read in padded passes, and pooled into one vector a row."""
