"""Logits in blocks: temporaries that fit in caches, and cost a CPU no fresh pages each time."""

from collections.abc import Iterator

from torch import Tensor

from .targets import are_labels

# Logits at a time: of 2**15 to 2**23, AP Loss with all and with 1 % relevant took least with 2**19 on two cores, where
# smaller blocks spend their time on starting operations and larger ones on fresh memory.
BLOCK = 2**19


def blocks(logits: Tensor, targets: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(flat start, logits, targets) of consecutive parts of about BLOCK logits; those of labels hold whole anchors."""
    width = logits.shape[-1] if are_labels(logits, targets) else 1
    rows = logits.reshape(targets.numel(), width) if are_labels(logits, targets) else logits.reshape(-1)
    num_rows = max(1, BLOCK // max(1, width))
    for number, parts in enumerate(zip(rows.split(num_rows), targets.reshape(-1).split(num_rows), strict=True)):
        yield number * num_rows * width, *parts
