"""The Triton kernels in Triton's interpreter, on a CPU, against tensor operations."""

import numpy as np
import pytest
import torch

from probe.hooks.attention_call import AttentionCall
from probe.measures.attention.query_plan import query_plan
from probe.measures.attention.tensor_sums import tensor_sums
from probe.measures.attention.typed_keys import TypedKeys

SIZE, DIM = 80, 20  # more than a block, and no power of two

pytest.importorskip("triton", reason="the extra `gpu` is not installed")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Must be set before the kernels are imported."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


CASES = {
    "causal, grouped queries": {},
    "window": {"window": 33},
    "padding and mask": {"padding": 5},
    "bidirectional, half precision": {"causal": False, "dtype": torch.bfloat16},
    "cached decoding": {"queries": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_equals_tensor_operations(case):
    from probe.measures.attention.triton_sums import triton_sums

    options = CASES[case]
    dtype, padding = options.get("dtype", torch.float32), options.get("padding", 0)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, options.get("queries", SIZE), 4, DIM, generator=generator)
    key = torch.randn(1, SIZE, 2, DIM, generator=generator)
    query, key = (2 * query).to(dtype).transpose(1, 2), key.to(dtype).transpose(1, 2)
    ids = np.arange(SIZE) // 20 % 3
    ids[:padding] = -1
    mask = None
    if padding:
        is_key = torch.tensor(ids >= 0)
        mask = (torch.ones(SIZE, SIZE, dtype=torch.bool).tril() & is_key)[None, None]
    causal, window = options.get("causal", True), options.get("window")
    module = torch.nn.Identity()
    call = AttentionCall(
        "layer", module, query, key, key, mask, mask, DIM**-0.5, causal, window, {}
    )
    keys = TypedKeys(ids, 3, ids, ids == 1, torch.device("cpu"))
    plan = query_plan(call, 0, keys)
    got, expected = triton_sums(call, 0, keys, plan), tensor_sums(call, 0, keys, plan)
    for name in ("mass", "plogp", "pooled", "pooled_plogp", "received"):
        torch.testing.assert_close(
            getattr(got, name), getattr(expected, name), atol=3e-6, rtol=0, msg=name
        )
