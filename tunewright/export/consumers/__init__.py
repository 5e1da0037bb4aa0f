"""Other programs that serve an export: asked for answers, which are compared with the trained model's and diagnosed."""
