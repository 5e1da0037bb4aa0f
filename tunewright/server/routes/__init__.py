"""The paths of OpenAI's API."""
