"""The Triton kernels in Triton's interpreter, on a CPU, against tensor operations.

Triton must be told of its interpreter before it is imported, so all cases run in a process of their
own: this file, which prints the largest difference of each number.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

SIZE, DIM = 80, 20  # more than a block, and no power of two
SUMS = ("mass", "plogp", "pooled", "pooled_plogp", "received")
CASES = {
    "causal, grouped queries": {},
    "window": {"window": 33},
    "padding and mask": {"padding": 5},
    "bidirectional, half precision": {"causal": False, "dtype": torch.bfloat16},
    "cached decoding": {"queries": 1},
}

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="the extra `gpu` is missing")


@pytest.fixture(scope="module")
def differences():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_equals_tensor_operations(case, differences):
    assert differences[case].keys() == set(SUMS)
    assert max(differences[case].values()) < 3e-6, differences[case]


def test_what_works_is_tried_out(differences):
    assert differences["tried out"] == {"float32": True, "broken": False}


def difference(causal=True, window=None, padding=0, queries=SIZE, dtype=torch.float32):
    """{sum: largest absolute difference between Triton and tensor operations}."""
    from probe.hooks.attention_call import AttentionCall
    from probe.measures.attention.query_plan import query_plan
    from probe.measures.attention.tensor_sums import tensor_sums
    from probe.measures.attention.triton_sums import triton_sums
    from probe.measures.attention.typed_keys import TypedKeys

    generator = torch.Generator().manual_seed(0)
    query = 2 * torch.randn(1, queries, 4, DIM, generator=generator)
    key = torch.randn(1, SIZE, 2, DIM, generator=generator)
    query, key = query.to(dtype).transpose(1, 2), key.to(dtype).transpose(1, 2)
    ids = np.arange(SIZE) // 20 % 3
    ids[:padding] = -1
    mask = None
    if padding:
        is_key = torch.tensor(ids >= 0)
        mask = (torch.ones(SIZE, SIZE, dtype=torch.bool).tril() & is_key)[None, None]
    module = torch.nn.Identity()
    call = AttentionCall(
        "layer", module, query, key, key, mask, mask, DIM**-0.5, causal, window, {}
    )
    keys = TypedKeys(ids, 3, ids, ids == 1, torch.device("cpu"))
    plan = query_plan(call, 0, keys)
    got, expected = triton_sums(call, 0, keys, plan), tensor_sums(call, 0, keys, plan)
    return {
        name: float((getattr(got, name) - getattr(expected, name)).abs().max()) for name in SUMS
    }


def tried_out():
    """Whether the trial passes, and whether it notices sums that are wrong."""
    import warnings

    from probe.measures.attention import triton_sums

    right = triton_sums.works(torch.device("cpu"), torch.float32)
    compute = triton_sums.triton_sums

    def broken(*arguments):
        sums = compute(*arguments)
        sums.mass += 0.1
        return sums

    triton_sums.triton_sums = broken
    triton_sums.works.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrong = triton_sums.works(torch.device("cpu"), torch.float32)
    assert "Triton is not used" in str(caught[0].message)
    return {"float32": right, "broken": wrong}


if __name__ == "__main__":
    found = {case: difference(**options) for case, options in CASES.items()}
    print(json.dumps(found | {"tried out": tried_out()}))
