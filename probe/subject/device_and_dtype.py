"""Devices and dtypes by their names, as `load` and the command line take them.

as_device("cuda:1")        # torch.device, on which a tensor can be made
as_dtype("bf16")           # torch.bfloat16
"""

import torch

from probe.errors import ProbeError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def as_device(device: str | torch.device) -> torch.device:
    """A device on which a tensor can be made. Raises ProbeError for any other."""
    try:
        parsed = torch.device(device)
        if parsed.type == "meta":
            raise TypeError("it holds no numbers")
        torch.empty(0, device=parsed)
    except (
        RuntimeError,
        AssertionError,
        ImportError,
        TypeError,
        ValueError,
    ) as error:  # depends on backend
        available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        available += ["mps"] * torch.backends.mps.is_available()
        expected = f"a device of this machine ({', '.join(available)})"
        raise ProbeError("load", expected=expected, got=repr(str(device))) from error
    return parsed


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by its name: float32, bfloat16, float16 or their short forms; None stays None."""
    parsed = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(parsed, torch.dtype) and parsed.is_floating_point):
        raise ProbeError("load", expected=f"a dtype of {', '.join(DTYPES)}", got=repr(dtype))
    return parsed
