"""Probes for forgetting: bundled questions, instructions, requests and texts."""
