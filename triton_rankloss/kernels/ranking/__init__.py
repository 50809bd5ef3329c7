"""The ranking losses: positives are listed and counted against, then errors are carried back."""
