"""Models: loading, adapters, attention, kernels, decoding."""
