"""Judging: arms, metrics over rows, statistics, protocol."""
