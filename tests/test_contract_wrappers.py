"""What every loss promises inside what PyTorch wraps around a function."""

import pytest
import torch
from cases import assert_close
from contract import each, evaluate, forms, make_inputs, scopes, total_of
from torch.utils.checkpoint import checkpoint


def checkpointed(use_reentrant):
    return lambda call: lambda *leaves: checkpoint(call, *leaves, use_reentrant=use_reentrant)


def compiled(backend):
    return lambda call: torch.compile(call, fullgraph=True, backend=backend)


WRAPPERS = {
    "torch.compile(fullgraph=True)": compiled("aot_eager"),
    "inductor": compiled("inductor"),
    "activation checkpointing": checkpointed(use_reentrant=False),
    "reentrant checkpointing": checkpointed(use_reentrant=True),
    "autocast": lambda call: call,
}


@each()
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_works_under(wrapper, loss, device):
    if wrapper == "inductor" and not loss.error_driven:
        pytest.skip("slow, and behind aot_eager the same for all: three losses stand for them")
    options = {"avg_factor": torch.tensor(3.0, device=device)} if "avg_factor" in loss.parameters else {}
    options |= {"task_contrastive_weight": 0.5} if "task_contrastive_weight" in loss.allowed else {}
    inputs = make_inputs(loss, device=device)
    cases = [(form, {}) for form in forms(loss, inputs)]
    if "compile" in wrapper or wrapper == "inductor":
        cases += [(inputs, scope) for scope in scopes(loss)[1:]]
        bounds = ({}, {"max_positives": 30}) if "max_positives" in loss.parameters else ({},)
        # 2.6 refuses outputs whose size is data in a full graph, unless told not to; up to 2.11 none was tried.
        bounds = bounds[-1:] if torch.torch_version.TorchVersion(torch.__version__) < (2, 11) else bounds
        cases = [(form, scope | bound) for form, scope in cases for bound in (bounds if not scope else bounds[-1:])]
        torch._dynamo.reset()  # every loss compiles the same function of contract.py
    for form, more in cases:
        expected = evaluate(loss, form, **options | more)
        with torch.autocast(device.type, torch.bfloat16, enabled="checkpointing" not in wrapper):
            found = evaluate(loss, form, wrap=WRAPPERS[wrapper], **options | more)
        for actual, wanted in zip((*found[0], *found[1]), (*expected[0], *expected[1])):
            assert_close(actual, wanted)


@each()
def test_double_backward_raises(loss, device):
    inputs = make_inputs(loss, device=device)
    message = "error-driven" if loss.error_driven else "second derivatives of this loss are not implemented"
    for name in loss.leaves:
        if loss.error_driven and name != "logits":
            continue  # an ordinary gradient, linear in the errors
        leaf = inputs[name].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(total_of(loss(**inputs | {name: leaf})), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            gradient.sum().backward()
