"""Readable plain-torch implementation of every loss: the oracle of the tests, and what runs where Triton cannot."""
