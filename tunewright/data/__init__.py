"""Rows: read, parsed, audited, split. Plain values, no torch."""
