"""The modes of torch and numpy that we compute in, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

# Devices that the backbone, or a head, may be on. Asking costs nothing where there is none.
_AUTOCAST = ("cpu", "cuda", "mps")


@contextmanager
def own_modes(*, gradients: bool) -> Iterator[None]:
    """Compute without the modes that the caller's thread is in, which come back after.

    These are inference mode, gradients, autocast, the default device, and numpy's handling of
    floating-point errors. All belong to the thread. The default dtype belongs to the process and
    cannot be replaced for one thread: tensors are created with their dtype instead.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for device in _AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        # The defaults of numpy.
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        yield
