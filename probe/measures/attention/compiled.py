"""The sums of an attention call by compiled code, where the computer has a C compiler.

`native/attention_sums.c` computes the scores of some queries and sums over them while they are in
the processor's cache; the numbers are those of `tensor_sums.py`. It is compiled when it is first
needed (about a second, once) into the user's cache folder. Without a compiler, or with
PROBE_COMPILED=0, tensor operations are used.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from probe.hooks.attention_call import AttentionCall, bias
from probe.measures.attention.query_plan import BLOCK_QUERIES, QueryPlan
from probe.measures.attention.query_sums import Extras, QuerySums
from probe.measures.attention.typed_keys import TypedKeys

SOURCES = Path(__file__).parent / "native"
# The arithmetic of IEEE 754 but for contracted multiplications and additions. Without -ffast-math:
# a library that is linked with it changes how the whole process treats small numbers.
FLAGS = "-O3 -march=native -ffp-contract=fast -fno-math-errno -fno-trapping-math -shared -fPIC"
OPENMP = ("-fopenmp", "")  # the second where the compiler has no OpenMP
DTYPES = (torch.float32, torch.bfloat16)
POINTERS = ("query", "key", "row", "begin", "end", "query_type", "bias", "runs")
POINTERS += ("mass", "plogp", "pooled", "pooled_plogp", "received")
SIZES = ("queries", "keys", "heads", "group", "dim", "types", "run_count")
SIZES += ("query_head_stride", "query_stride", "key_head_stride", "key_stride")
SIZES += ("sums_head_stride", "received_width")


class _Call(ctypes.Structure):
    """`Call` of native/attention_call.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in SIZES),
        ("scaling", ctypes.c_float),
        ("is_bfloat16", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


def is_compiled_for(call: AttentionCall, extras: Extras) -> bool:
    """Whether `compiled_sums` can take this call: on a CPU, and nothing is asked for that needs the
    weights themselves.
    """
    if call.query.device.type != "cpu" or type(call.query) not in (Tensor, torch.nn.Parameter):
        return False
    is_plain = call.rule is not None and call.rule.is_plain  # the compiled code knows no other
    return extras == Extras() and is_plain and library() is not None


def compiled_sums(call: AttentionCall, row: int, keys: TypedKeys, plan: QueryPlan) -> QuerySums:
    """The sums of one row of a call: those of `tensor_sums` to rounding. A mask is taken
    some dozens of queries at a time.
    """
    query, key = _readable(call.query[row]), _readable(call.key[row])
    if key.dtype != query.dtype:
        query, key = query.float(), key.float()
    sums = QuerySums.empty(plan, len(query), keys, Extras())
    step = len(plan) if call.effective_mask is None else BLOCK_QUERIES
    runs = keys.runs_of_call(plan.first, call.key_count)
    for start in range(0, len(plan), max(1, step)):
        _add(call, row, query, key, sums, runs, slice(start, min(start + step, len(plan))))
    return sums


def _readable(x: Tensor) -> Tensor:
    """In a dtype that the compiled code reads, with neighbouring numbers in the last axis."""
    x = x.detach() if x.dtype in DTYPES else x.detach().float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _add(
    call: AttentionCall,
    row: int,
    query: Tensor,
    key: Tensor,
    sums: QuerySums,
    runs: Int[np.ndarray, "run 3"],
    queries: slice,
) -> None:
    plan = sums.plan
    indices = {
        "row": plan.query[queries],
        "begin": plan.begin[queries],
        "end": plan.end[queries],
        "query_type": plan.query_type[queries],
        "runs": runs,
    }
    mask_bias = None
    if call.effective_mask is not None:
        position = torch.as_tensor(plan.position[queries])
        mask_bias = bias(call, row, position, call.key_count).contiguous()
    results = {
        "mass": sums.mass[:, queries],
        "plogp": sums.plogp[:, queries],
        "pooled": sums.pooled[queries],
        "pooled_plogp": sums.pooled_plogp[queries],
        "received": sums.received[:, plan.first :],
    }
    arguments = _Call(
        query=query.data_ptr(),
        key=key.data_ptr(),
        bias=None if mask_bias is None else mask_bias.data_ptr(),
        **{name: array.ctypes.data for name, array in indices.items()},
        **{name: tensor.data_ptr() for name, tensor in results.items()},
        queries=queries.stop - queries.start,
        keys=call.key_count,
        heads=len(query),
        group=len(query) // len(key),
        dim=query.shape[-1],
        types=sums.keys.type_count,
        run_count=len(runs),
        query_head_stride=query.stride(0),
        query_stride=query.stride(1),
        key_head_stride=key.stride(0),
        key_stride=key.stride(1),
        sums_head_stride=sums.mass.stride(0),
        received_width=sums.received.stride(0),
        scaling=call.scaling,
        is_bfloat16=query.dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
    )
    compiled = library()
    assert compiled is not None
    if compiled.attention_sums(ctypes.byref(arguments)):
        raise MemoryError("no memory for the sums of one attention call")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled code, or None where there is none."""
    if os.environ.get("PROBE_COMPILED") == "0":
        return None
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        return None
    for openmp in OPENMP:
        try:
            path = _library_path(compiler, openmp)
            if not path.exists():
                _compile(compiler, openmp, path)
            return ctypes.CDLL(str(path))
        except (OSError, RuntimeError, subprocess.SubprocessError):  # or there is no home
            continue
    return None


def _library_path(compiler: str, openmp: str) -> Path:
    """Where the library lies: a name for each source, compiler and kind of processor."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    sources = [
        file.read_bytes() for file in sorted(SOURCES.iterdir()) if file.suffix in (".c", ".h")
    ]
    settings = f"{compiler} {FLAGS} {openmp} {_processor()}"
    digest = hashlib.sha256(b"".join([*sources, settings.encode()])).hexdigest()[:16]
    return cache_home / "probe" / f"attention_sums-{digest}.so"


def _processor() -> str:
    """What the processor can do: code that is compiled for one may not run on another."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() + platform.machine()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")


def _compile(compiler: str, openmp: str, path: Path) -> None:
    """Compiles into another file first, so that nobody loads half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        source = str(SOURCES / "attention_sums.c")
        command = [compiler, *FLAGS.split(), *openmp.split(), source, "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        made.replace(path)
