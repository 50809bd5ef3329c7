"""What every loss promises of NaN and infinities."""

import pytest
import torch
from cases import DTYPES, INTERPRETED, assert_close, assert_equal
from contract import NUM_CLASSES, each, evaluate, foreground, forms, make_inputs, make_labels, scopes, total_of

import triton_rankloss as rankloss


@each(lambda loss: loss.is_scalar)
def test_nan_in_nan_out(loss, device):
    inputs = make_inputs(loss, device=device)
    for form in forms(loss, inputs):
        for name in form.keys() - {"logits", loss.targets}:
            place = foreground(loss, form) if form[name].dim() == 2 and name == "iou" else 0
            poisoned = form[name].clone()
            poisoned[place] = torch.nan
            assert total_of(loss(**form | {name: poisoned})).isnan(), name
    if not loss.takes_logits:
        return
    for delta in ({}, {"delta": 0.0}) if "delta" in loss.parameters else ({},):
        for anchors in (foreground(loss, inputs), inputs[loss.targets] == NUM_CLASSES):
            poisoned = inputs["logits"].masked_fill(anchors.unsqueeze(-1), torch.nan)
            if loss.error_driven:  # one is enough
                poisoned = inputs["logits"].clone()
                anchor = tuple(anchors.nonzero()[1].tolist())
                poisoned[(*anchor, max(0, inputs[loss.targets][anchor] % NUM_CLASSES))] = torch.nan
            outputs, gradients = evaluate(loss, inputs | {"logits": poisoned}, **delta)
            assert sum(outputs).isnan()
            assert gradients[0].isnan().any() if loss.error_driven else gradients[0][anchors].isnan().all()
            assert not gradients[0][inputs[loss.targets] < 0].any()


def with_nan(loss, labels, place, device):
    """Inputs, and the same with a NaN at one of the logits."""
    inputs = make_inputs(loss, labels=labels, device=device)
    poisoned = inputs["logits"].clone()
    poisoned[place] = torch.nan
    return inputs, inputs | {"logits": poisoned}


@each(lambda loss: loss.error_driven)
def test_nan_changes_nothing_where_nothing_is_ranked(loss, device):
    labels = make_labels("mixed")
    labels[1] = NUM_CLASSES
    inputs, poisoned = with_nan(loss, labels, (1, 2, 0), device)
    assert_equal(evaluate(loss, poisoned, per_image=True), evaluate(loss, inputs, per_image=True))
    assert sum(evaluate(loss, poisoned)[0]).isnan()  # ranked with the positives of the other image
    inputs, poisoned = with_nan(loss, make_labels("no positives"), (1, 2, 0), device)
    for scope in scopes(loss):
        assert_equal(evaluate(loss, poisoned, **scope), evaluate(loss, inputs, **scope))


@each(lambda loss: loss.error_driven)
def test_parts_that_a_nan_reaches(loss, device):
    """Of Rank & Sort, sorting compares positives alone; the ranks of aLRP's localization count negatives too."""
    labels = make_labels("mixed")
    for place, is_positive in (((0, 0, 0), True), ((0, 1, 0), False)):
        inputs, poisoned = with_nan(loss, labels, place, device)
        parts = evaluate(loss, poisoned)[0]
        assert parts[0].isnan()
        if loss.function is rankloss.rank_sort_loss and not is_positive:
            assert parts[1] == evaluate(loss, inputs)[0][1] > 0
        else:
            assert all(part.isnan() for part in parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("delta", [0.0, 1.0] if INTERPRETED else [0.0, 1.0, 100.0])
def test_infinite_logits_of_a_ranking_tie_with_each_other_beyond_all_others(delta, dtype, device):
    """In every dtype; a positive and a negative, b = H(n - p), AP Loss = b / (1 + b)."""
    tie = 1.0 if delta == 0 else 0.5
    largest = 65504.0  # of float16
    cases = {(torch.inf, torch.inf): tie, (-torch.inf, -torch.inf): tie}
    for finite in (0.0, largest, -largest):
        cases |= {(finite, torch.inf): 1.0, (-torch.inf, finite): 1.0}
        cases |= {(torch.inf, finite): 0.0, (finite, -torch.inf): 0.0}
    for scores, b in cases.items():
        logits = torch.tensor(scores, dtype=dtype, device=device, requires_grad=True)
        loss = rankloss.ap_loss(logits, torch.tensor([1, 0], device=device), delta=delta)
        loss.backward()
        assert_close(loss, b / (1 + b))
        assert_close(logits.grad, torch.tensor([-1.0, 1.0], dtype=torch.float64) * (b / (1 + b)))


@each(lambda loss: not loss.is_scalar)
def test_nan_stays_with_its_positive(loss, device):
    inputs = make_inputs(loss, device=device)
    (losses,), gradients = evaluate(loss, inputs)
    # Where the second positive is: its anchor in the logits, its row in what is given per positive.
    places = dict.fromkeys(inputs, (1,))
    if loss.takes_logits:
        places["logits"] = tuple(foreground(loss, inputs).nonzero()[1].tolist())
    for name in (name for name in inputs if name != loss.targets):
        for entry in inputs[name][places[name]].new_ones(inputs[name][places[name]].shape).nonzero().tolist():
            poisoned = inputs[name].clone()
            poisoned[(*places[name], *entry)] = torch.nan
            (found,), found_gradients = evaluate(loss, inputs | {name: poisoned})
            assert found.isnan().nonzero().tolist() == [[1]]
            for leaf, gradient, wanted in zip(loss.leaves, found_gradients, gradients):
                if leaf == name:
                    assert gradient[places[leaf]].isnan().any()
                gradient[places[leaf]] = wanted[places[leaf]]
                assert_equal(gradient, wanted)
            found[1] = losses[1]
            assert_equal(found, losses)


@each(lambda loss: loss.takes_logits)
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_logits_count_as_very_large_ones(loss, dtype, device):
    values = torch.tensor([1e4, -1e4, torch.inf, -torch.inf, 0])
    labels = torch.tensor([0, 0, 1, 2, 3])
    inputs = make_inputs(loss, labels=labels, device=device)
    channels = [values, values.flip(0), values.roll(1), values.roll(2)][: inputs["logits"].shape[-1]]
    inputs["logits"] = torch.stack(channels, -1).to(device, dtype)
    outputs, gradients = evaluate(loss, inputs)
    assert all(part.isfinite().all() for part in (*outputs, *gradients))
    limit = min(torch.finfo(dtype).max, loss.large)
    expected = evaluate(loss, inputs | {"logits": inputs["logits"].clamp(-limit, limit)})
    if loss.large == 1e30:
        assert_equal((outputs, gradients), expected)
    for actual, wanted in zip((*outputs, *gradients), (*expected[0], *expected[1])):
        assert_close(actual, wanted)
