"""Token ids: rendering by the chat template, and how sequences form batches and passes. No torch at import."""
