"""Training methods. Each is a module of three functions and no class:

prepare(template, example, row, max_length) -> list[Rendered]     once, before the loop
batches(rendered, rows, plan) -> list[Batch]                      the forward passes of one global step
loss(model, batch, plan) -> (sum, weight)                         summed by the loop, divided once
"""
