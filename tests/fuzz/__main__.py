"""Random calls until their number or the time is reached; ends in an error if one returned something else.

    PYTHONPATH=.:tests python -m fuzz --calls 10000

With TRITON_INTERPRET=1 they go through the Triton kernels, on CPU tensors, at about half a second each; where there is
a GPU, through those on it. A failure prints a call made smaller. The same seed makes the same calls: `--only` and the
number of a failure repeat it.
"""

import argparse
import os
import random
import sys
import time
import warnings
from collections import Counter

import torch

from .calls import NAMES, Call
from .compare import check, shrink
from .draw import draw

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LARGEST = 150 if INTERPRETED else 2000  # logits of a call


def failure_of(call: Call, number: int, device: torch.device, share: float) -> tuple[str, str]:
    """(kind of failure, what was found); ("", what was compared) without one."""
    try:
        return "", check(call, random.Random(number), device, share)
    except Exception as error:  # whatever a call raises is a finding
        message = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__} {message[0].partition(':')[0]}", message[0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description="random calls of every public loss")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=300, help="no call starts later")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the one call of this number")
    parser.add_argument("--failures", type=int, default=5, help="end after so many")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
    if INTERPRETED:
        # As in the tests: of lanes that are masked out; and the interpreter goes through a scan entry by entry.
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        from triton_rankloss.kernels.ranking import ap

        ap.BLOCK = 64
    numbers = range(arguments.calls) if arguments.only is None else [arguments.only]
    counts: Counter[str] = Counter()
    num_failures, begin = 0, time.monotonic()
    for number in numbers:
        if time.monotonic() - begin > arguments.seconds or num_failures == arguments.failures:
            break
        call = draw(arguments.seed, number, LARGEST)
        kind, message = failure_of(call, number, device, share=0.25)
        counts[message if not kind else "failed"] += 1
        counts[call.name] += 1
        if kind:
            num_failures += 1
            # What the call alone shows needs no others that mean the same.
            share = 0 if failure_of(call, number, device, share=0)[0] == kind else 1
            smaller = shrink(call, lambda c, k=kind, s=share: failure_of(c, 0, device, s)[0] == k)
            print(f"\n{call.name}, --seed {arguments.seed} --only {number}: {message}\n{smaller}", flush=True)
    path = "kernels" if INTERPRETED or device.type == "cuda" else "reference"
    outcomes = ", ".join(f"{counts[o]} {o}" for o in ("compared", "NaN", "unspecified", "failed"))
    print(f"\n{sum(counts[name] for name in NAMES)} calls on the {path}, {time.monotonic() - begin:.0f} s: {outcomes}")
    return 1 if num_failures else 0


if __name__ == "__main__":
    sys.exit(main())
