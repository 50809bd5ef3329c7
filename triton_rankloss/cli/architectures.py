"""The GPUs that all kernels are compiled for ahead of time; docs/architectures.md says what came out."""

ARCHITECTURES = {
    "sm_75": "T4, RTX 20",
    "sm_80": "A100, A30",
    "sm_86": "A10, A40, RTX A6000, RTX 30",
    "sm_89": "L4, L40S, RTX 40",
    "sm_90": "H100, H200, GH200",
    "sm_100": "B200, GB200",
    "sm_120": "RTX PRO 6000 Blackwell, RTX 50",
    "gfx90a": "MI210, MI250",
    "gfx942": "MI300X, MI300A, MI325X",
    "gfx1100": "RX 7900, PRO W7900",
}
# Compute capabilities. Below ours kernels spill (7.0) or do not compile (6.1).
OLDEST_COMPILED = (7, 5)
OLDEST_OF_TRITON = (8, 0)
