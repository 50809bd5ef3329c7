"""The losses that take every logit or box once."""
