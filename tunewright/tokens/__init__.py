"""Token ids: rendering by the chat template, and how sequences form steps and batches. No torch at import."""
