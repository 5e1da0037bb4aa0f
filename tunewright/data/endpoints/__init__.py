"""Endpoints: models of others, asked over HTTP in OpenAI's protocol."""
