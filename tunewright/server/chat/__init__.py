"""Chat, completions and responses: what a client sends as generations, and what the engine emits as what it expects."""
