"""Graders: what an answer without a reference is worth, from 0 to 1. Configuration, as OpenAI's graders are."""
