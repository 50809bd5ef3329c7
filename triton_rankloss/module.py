"""What the modules share: they store hyper-parameters, show them, and hand them to a function."""

import copy
from typing import Any

from torch import nn


class LossModule(nn.Module):
    """A module whose hyper-parameters are attributes; `self.options()` is what its function takes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._names = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def options(self, *others: str) -> dict[str, Any]:
        """The hyper-parameters, by name, but for `others`, which only the module has."""
        return {name: getattr(self, name) for name in self._names if name not in others}

    def __deepcopy__(self, memo: dict[int, Any]) -> "LossModule":
        """As averaged models take one; a process group is no copy's own, and cannot be copied."""
        if getattr(self, "group", None) is not None:
            memo[id(self.group)] = self.group
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def extra_repr(self) -> str:
        """All of them but those that are None."""
        shown = {name: value for name, value in self.options().items() if value is not None}
        return ", ".join(
            f"{name}={value:g}" if type(value) is float else f"{name}={value!r}" for name, value in shown.items()
        )
