"""Scopes on the reference: what is ranked by itself, one tensor for many of them, with no loop over images.

Scopes have equally many candidates, as images of a batch do, but each its own number of positives. Those with about as
many are worked at together: padded to the most, they become at most four times as many.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """G scopes, whose positives are padded to P of each."""

    scopes: Tensor  # int64 [G]
    positives: Tensor  # int64 [G, P]: which of all positives; any where there is none
    there: Tensor | None  # bool [G, P]; None if everything is one scope

    def of_scopes(self, values: Tensor) -> Tensor:
        """What `values` [S, ...] hold for each scope, [G, ...]; a scope alone has them all, [1, ...]."""
        if self.there is None:
            return values.unsqueeze(0)
        if self.scopes.numel() == 1:
            return values[self.scopes[0]].unsqueeze(0)
        return values[self.scopes]

    def of_positives(self, values: Tensor, padding: Tensor | float) -> Tensor:
        """Values [G, P] of the positives from those of all, behind which there may be more."""
        if self.there is None:
            return values[: self.positives.shape[1]].unsqueeze(0)
        return values[self.positives].masked_fill_(~self.there, padding)

    def put(self, values: Tensor, into: Tensor) -> None:
        """Write values [G, P] to where those of all positives are."""
        if self.there is None:
            into.copy_(values.squeeze(0))
        else:
            into[self.positives.masked_select(self.there)] = values.masked_select(self.there)


def group_scopes(offsets: Tensor, at_once: int) -> Iterator[Group]:
    """All scopes that have a positive, or if none has one all, at most `at_once` together.

    Positives offsets[s]:offsets[s + 1] belong to scope s.
    """
    sizes = offsets.diff()
    if sizes.numel() == 1:
        yield Group(sizes.new_zeros(1), torch.arange(int(sizes), device=offsets.device).unsqueeze(0), None)
        return
    powers = 4 ** torch.arange(20, device=sizes.device)
    magnitudes = torch.bucketize(sizes, powers, right=True)
    for magnitude in (magnitudes[magnitudes > 0] if magnitudes.any() else magnitudes).unique().tolist():
        for scopes in (magnitudes == magnitude).nonzero().squeeze(1).split(max(1, at_once)):
            places = torch.arange(int(sizes[scopes].max()), device=offsets.device)
            there = places < sizes[scopes, None]
            yield Group(scopes, torch.where(there, offsets[scopes, None] + places, 0), there)
