"""The losses in other people's training stacks, one module each; every module needs its library installed."""
