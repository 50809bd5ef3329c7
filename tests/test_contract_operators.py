"""What PyTorch's own checks say of the operators, called as the losses call them."""

import pytest
import torch
from cases import INTERPRETED
from contract import LOSSES, evaluate, forms, make_inputs, scopes, to_dtype
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Recorder(TorchDispatchMode):
    """Keeps what the operators of the package are called with: each in every form that differs by more than numbers."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "triton_rankloss":
            form = tuple(type(arg) if isinstance(arg, (torch.Tensor, float)) else arg for arg in args)
            last = "backward" in func._schema.name or "transport" in func._schema.name  # not differentiated again
            kept = tree_map_only(
                torch.Tensor, lambda t: t.detach().clone().requires_grad_(t.requires_grad and not last), args
            )
            self.calls.setdefault(func._schema.name, {})[form] = kept
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def recorded():
    """{operator: argument tuples}, from all losses in all forms; a process group of one process is among them."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with Recorder() as recorder:
            for loss in LOSSES:
                options = {"avg_factor": torch.tensor(3.0)} if "avg_factor" in loss.parameters else {}
                options |= {"task_contrastive_weight": 0.5} if "task_contrastive_weight" in loss.allowed else {}
                group = [{"group": torch.distributed.group.WORLD}] if "group" in loss.parameters else []
                bound = {"max_positives": 30} if "max_positives" in loss.parameters else {}
                first, *others = forms(loss, to_dtype(make_inputs(loss), torch.float32))
                for form, more in [
                    (first, {}),
                    *((form, {}) for form in others),
                    *((first, more) for more in [*(scope | bound for scope in scopes(loss)[1:]), *group, options]),
                ]:
                    evaluate(loss, form, **more)
                if "task_contrastive_weight" in loss.allowed:  # half precision takes one operator more
                    evaluate(loss, to_dtype(first, torch.float16), **options)
        yield recorder.calls
    finally:
        torch.distributed.destroy_process_group()


# Gradients and tracing were checked by the first pass; shapes and what is written to differ between implementations.
OF_KERNELS = ("test_schema", "test_faketensor")
CHECKS = {"test_utils": OF_KERNELS} if INTERPRETED else {}


@pytest.mark.parametrize("operator", sorted(name for name in OPDEFS if name.startswith("triton_rankloss::")))
def test_opcheck(operator, recorded, device):
    for arguments in recorded[operator].values():
        moved = tree_map_only(torch.Tensor, lambda t: t.detach().to(device).requires_grad_(t.requires_grad), arguments)
        torch.library.opcheck(OPDEFS[operator]._opoverload, moved, **CHECKS)
