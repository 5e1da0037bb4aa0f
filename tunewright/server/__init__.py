"""Serving: the OpenAI protocol over jobs, models and an engine, for one machine."""
