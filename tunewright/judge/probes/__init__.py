"""Probes of forgetting: bundled questions, instructions, requests and texts."""
