"""Endpoints: other models, asked over HTTP in OpenAI's protocol."""
