"""The command line: `python -m triton_rankloss info | check | kernels`."""
