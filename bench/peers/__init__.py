"""Every implementation that is compared, under one signature: `loss(leaf, problem)` returns a scalar.

`leaf` is what the gradient is taken of; `problem` holds everything else. Peers are written here from their description.
"""
