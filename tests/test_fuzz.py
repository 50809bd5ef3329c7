"""The first calls of `make fuzz`, which go through every loss, and that the fuzz sees what is wrong."""

import os
import random
from collections import Counter

import pytest
from fuzz.calls import NAMES
from fuzz.compare import Mismatch, check
from fuzz.draw import draw

import triton_rankloss as rankloss

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.parametrize("number", range(16 if INTERPRETED else 300))
def test_a_call(number, device):
    check(draw(0, number, 150 if INTERPRETED else 2000), random.Random(number), device)


def test_every_loss_is_drawn():
    assert {f"{name}_loss" for name in NAMES} == {name for name in dir(rankloss) if name.endswith("_loss")}
    drawn = Counter(draw(0, number, 100).name for number in range(300))
    assert set(drawn) == set(NAMES)


@pytest.fixture(scope="module")
def calls():
    return [draw(0, number, 100) for number in range(150)]


@pytest.mark.skipif(INTERPRETED, reason="of the comparison, which the first pass has tested")
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_loss_is_seen(name, calls, monkeypatch, device):
    right = getattr(rankloss, f"{name}_loss")

    def wrong(**arguments):
        losses = right(**arguments)
        return 1.0001 * losses if not isinstance(losses, tuple) else type(losses)(*(1.0001 * part for part in losses))

    monkeypatch.setattr(rankloss, f"{name}_loss", wrong)
    calls = [call for call in calls if call.name == name]
    seen = 0
    for call in calls:
        try:
            check(call, random.Random(0), device)
        except Mismatch:
            seen += 1
    assert 4 * seen > len(calls)  # others have no positive, no error, or a NaN
