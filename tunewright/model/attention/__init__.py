"""How tokens attend: over a tree of rows in training, to a shared prefix in decoding."""
