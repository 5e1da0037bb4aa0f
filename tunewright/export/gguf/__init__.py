"""GGUF, the format of llama.cpp: the merged model, and the adapter alone."""
