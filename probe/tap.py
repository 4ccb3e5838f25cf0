"""See query, key, value and mask of every attention call, beside the model's own kernel.

A hook on each attention module opens a window, and in it the module's look-up of its attention function finds ours: the
module (alone) holds a shallow copy of its config that names a function registered with transformers. That function
calls the kernel the user chose, on the arguments it was given, and then shows them to the observer. Masks, caches and
everything outside the call are built from the untouched config of the model, so the logits are bit-identical.

    with tap(stack.attention, observe):        # observe(call) after every attention call
        model(**inputs)

Source: `AttentionInterface` of transformers (docs: "Attention interface"); the mechanism is described in `design.md`
section 3, "How it is seen".
"""

import copy
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from probe.errors import ProbeError

PREFIX = "probe|"  # followed by the user's own choice, so that a check such as `"flash" in name` still holds


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one attention call, as the model gave them to its kernel.

    `mask` is in force in this call; `own_mask` is the model's own, which an intervention leaves as it was. Both are None
    (causal or not, see `causal`), bool or additive (batch, 1, query, key), or (batch, key) for flash attention.
    """

    name: str  # qualified name of the attention module
    module: nn.Module
    query: Float[Tensor, "batch head query dim"]
    key: Float[Tensor, "batch key_head key dim"]
    value: Float[Tensor, "batch key_head key dim"]
    mask: Tensor | None
    own_mask: Tensor | None
    scaling: float
    causal: bool  # meaningful where there is no mask
    window: int | None  # keys further back than this are not seen
    options: Mapping[str, object]  # what else the module passes to its kernel

    @property
    def query_count(self) -> int:
        return self.query.shape[2]

    @property
    def key_count(self) -> int:
        return self.key.shape[2]

    def with_mask(self, mask: Tensor | None) -> "AttentionCall":
        return replace(self, mask=mask)


@dataclass(frozen=True)
class AttentionWeights:
    """What is left to see of a module that calls no registered function but returns its weights."""

    name: str
    module: nn.Module
    weights: Float[Tensor, "batch head query key"]


Output = tuple[Tensor, Tensor | None]  # (batch, query, head, dim), the weights if the kernel has them
Kernel = Callable[[AttentionCall], Output]
Around = Callable[[AttentionCall, Kernel], Output]
Observer = Callable[[AttentionCall | AttentionWeights], None]


class Window:
    """The state of one attention module while its forward runs."""

    def __init__(self, name: str, module: nn.Module):
        self.name, self.config, self.routes, self.called = name, module.config, [], False
        base = module.config._attn_implementation or "eager"
        register(PREFIX + base)
        shadow = copy.copy(module.config)
        shadow._attn_implementation_internal = PREFIX + base
        module.config = shadow

    def kernel(self, call: AttentionCall) -> Output:
        """The user's own kernel, which finds the module's config as it was (flash attention reads it)."""
        module, shadow = call.module, call.module.config
        function = own_function(module, self.config._attn_implementation)
        module.config = self.config
        try:
            return function(module, call.query, call.key, call.value, call.mask, scaling=call.scaling, **call.options)
        finally:
            module.config = shadow


_windows: "weakref.WeakKeyDictionary[nn.Module, Window]" = weakref.WeakKeyDictionary()


def register(name: str) -> None:
    """Makes the dispatcher known under a name, with the base's mask function: a name without one gets no mask at all."""
    if name not in ALL_ATTENTION_FUNCTIONS:
        base = name.removeprefix(PREFIX)
        if base in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
        AttentionInterface.register(name, dispatch)


def own_function(module: nn.Module, implementation: str | None) -> Callable:
    """The function the module would have found: `eager` is a default of the file its class (or a base) comes from."""
    sources = [vars(sys.modules[cls.__module__]) for cls in type(module).__mro__ if cls.__module__ in sys.modules]
    registry = next((s["ALL_ATTENTION_FUNCTIONS"] for s in sources if "ALL_ATTENTION_FUNCTIONS" in s), None)
    eager = next((s["eager_attention_forward"] for s in sources if "eager_attention_forward" in s), None)
    return (registry or ALL_ATTENTION_FUNCTIONS).get_interface(implementation or "eager", eager)


def dispatch(module, query, key, value, attention_mask=None, scaling=None, **options) -> Output:
    """The registered function: every route around the call, the innermost of them the user's kernel."""
    window = _windows[module]
    window.called = True
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    eager = (window.config._attn_implementation or "eager") == "eager"  # knows masks only
    call = AttentionCall(
        name=window.name,
        module=module,
        query=query,
        key=key,
        value=value,
        mask=attention_mask,
        own_mask=attention_mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        causal=bool(causal) and query.shape[2] > 1 and not (eager and attention_mask is None),
        window=options.get("sliding_window"),
        options=options,
    )

    def proceed(call: AttentionCall, depth: int = 0) -> Output:
        if depth == len(window.routes):
            return window.kernel(call)
        return window.routes[depth](call, lambda inner: proceed(inner, depth + 1))

    return proceed(call)


@contextmanager
def routed(
    modules: Mapping[str, nn.Module],
    around: Around,
    *,
    innermost: bool = False,
    weights: Callable[[AttentionWeights], None] | None = None,
) -> Iterator[None]:
    """Runs `around(call, kernel)` in place of the kernel in every attention call of these modules.

    `innermost` routes see what the others made of the call. `weights` receives the attention of modules that call no
    registered function but return their weights. Undone on any exit; on an interrupt the hooks of a module may not have
    run, so the exit restores every module itself.

    Raises ProbeError for a compiled model, a module that was never called, and one that offers neither way to be seen.
    """
    called = dict.fromkeys(modules, False)
    for name, module in modules.items():
        if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
            raise ProbeError("probe", expected="a model that is not compiled", got=f"compiled {name}",
                             fix="probe the model before torch.compile")  # fmt: skip

    def open_window(name: str, module: nn.Module):
        if hasattr(module, "config"):
            window = _windows.get(module) or _windows.setdefault(module, Window(name, module))
            window.routes.insert(len(window.routes) if innermost else 0, around)

    def close_window(name: str, module: nn.Module) -> bool:
        window = _windows.get(module)
        if window is None or around not in window.routes:
            return False
        window.routes.remove(around)
        if not window.routes:
            module.config = window.config
            del _windows[module]
        return window.called

    def before(name: str):
        def hook(module, args, kwargs):
            open_window(name, module)

        return hook

    def after(name: str):
        def hook(module, args, kwargs, output):
            seen = close_window(name, module)
            called[name] = True
            if not seen and output is not None:  # None: the forward raised
                returned = output[1] if isinstance(output, tuple) and len(output) > 1 else None
                if weights is None or not torch.is_tensor(returned) or returned.ndim != 4:
                    raise ProbeError("probe", expected="an attention module that uses transformers' attention interface "
                                     "or returns its weights (batch, head, query, key)", got=f"{name} "
                                     f"({type(module).__name__})", fix="leave it out of the stack")  # fmt: skip
                weights(AttentionWeights(name, module, returned))

        return hook

    with ExitStack() as hooks:
        try:
            for name, module in modules.items():
                hooks.callback(module.register_forward_pre_hook(before(name), with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(after(name), with_kwargs=True, always_call=True).remove)
            yield
        finally:
            for name, module in modules.items():
                close_window(name, module)
    if missing := [name for name, was in called.items() if not was]:
        raise ProbeError("probe", expected="every tapped attention module to be called", got=f"no call of {missing[0]}"
                         f" ({len(missing)} of {len(called)} modules)", fix="run the forward inside the block")  # fmt: skip


@contextmanager
def tap(modules: Mapping[str, nn.Module], observe: Observer) -> Iterator[None]:
    """Shows every attention call of these modules (qualified name -> module) to `observe`, after the kernel ran.

    >>> calls = []
    >>> with tap(stacks(model)["llm"].attention, calls.append):            # doctest: +SKIP
    ...     model(**inputs)
    """

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        output = kernel(call)
        observe(call)
        return output

    with routed(modules, around, innermost=True, weights=observe):
        yield
