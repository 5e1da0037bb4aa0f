"""Remedies: what settings change about rows, each change recorded with its place."""
