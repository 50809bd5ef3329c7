"""What every loss promises of NaN and infinities."""

import pytest
import torch
from cases import DTYPES, assert_close, assert_equal
from contract import NUM_CLASSES, each, evaluate, foreground, forms, make_inputs, total_of


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
