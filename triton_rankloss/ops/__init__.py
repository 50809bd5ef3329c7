"""The losses as PyTorch operators: shapes for the compiler, gradients, and where they run."""
