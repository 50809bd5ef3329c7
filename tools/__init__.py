"""What only developers of the package run; nothing here is installed."""
