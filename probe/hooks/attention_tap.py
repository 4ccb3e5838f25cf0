"""See query, key, value and mask of every attention call, beside the model's own kernel.

A hook on each attention module opens a window, and in it the module's look-up of its attention
function finds ours: the module (alone) holds a shallow copy of its config that names a function
registered with transformers. That function calls the kernel the user chose, on the arguments it was
given, and then shows them to the observer. Masks, caches and everything outside the call are built
from the untouched config of the model, so the logits are bit-identical.

    with tap(stack.attention, observe):        # observe(call) after every attention call
        model(**inputs)

Source: `AttentionInterface` of transformers (docs: "Attention interface"); the mechanism is
described in `design.md` section 3, "How it is seen".
"""

import copy
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.model_structure import is_compiled

PREFIX = "probe|"  # followed by the user's own choice, so that a check such as `"flash" in name` still holds


Output = tuple[
    Tensor, Tensor | None
]  # (batch, query, head, dim), the weights if the kernel has them
Kernel = Callable[[AttentionCall], Output]
Around = Callable[[AttentionCall, Kernel], Output]
Layout = Callable[[AttentionCall, Callable[[AttentionCall, Kernel], Output], Kernel], Output]
Observer = Callable[[AttentionCall | AttentionWeights], None]


class TapState:
    """The state of one attention module while its forward runs."""

    def __init__(self, name: str, module: nn.Module):
        self.name, self.routes, self.called = name, [], False
        self.config: Any = module.config
        base = self.config._attn_implementation or "eager"
        register(PREFIX + base)
        self.shadow: Any = copy.copy(self.config)
        self.shadow._attn_implementation_internal = PREFIX + base

    def kernel(self, call: AttentionCall) -> Output:
        """The user's own kernel, which finds the module's config as it was (flash attention reads
        it).
        """
        module, shadow = call.module, call.module.config
        function = own_function(module, self.config._attn_implementation)
        module.config = self.config
        try:
            return function(
                module,
                call.query,
                call.key,
                call.value,
                call.mask,
                scaling=call.scaling,
                **call.options,
            )
        finally:
            module.config = shadow


_windows: "weakref.WeakKeyDictionary[nn.Module, TapState]" = weakref.WeakKeyDictionary()
# For modules that now run on some positions of the sequence only: shows their calls over all of it
# (`rows.py`)
layouts: "weakref.WeakKeyDictionary[nn.Module, Layout]" = weakref.WeakKeyDictionary()
_untouched: ContextVar[bool] = ContextVar("untouched", default=False)


@contextmanager
def untouched() -> Iterator[None]:
    """Forwards in this block are the model's own: no route is taken and nothing is observed, in
    this thread only.
    """
    token = _untouched.set(True)
    try:
        yield
    finally:
        _untouched.reset(token)


def is_untouched() -> bool:
    """Whether the forward that runs now is the model's own."""
    return _untouched.get()


def register(name: str) -> None:
    """Makes the dispatcher known under a name, with the base's mask function: without one there
    would be no mask.
    """
    if name not in ALL_ATTENTION_FUNCTIONS:
        base = name.removeprefix(PREFIX)
        if base in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
        AttentionInterface.register(name, dispatch)


def own_function(module: nn.Module, implementation: str | None) -> Any:
    """The function the module would have found: `eager` is a default of the file its class (or a
    base) comes from.
    """
    sources = [
        vars(sys.modules[cls.__module__])
        for cls in type(module).__mro__
        if cls.__module__ in sys.modules
    ]
    registry: Any = next(
        (s["ALL_ATTENTION_FUNCTIONS"] for s in sources if "ALL_ATTENTION_FUNCTIONS" in s), None
    )
    eager = next(
        (s["eager_attention_forward"] for s in sources if "eager_attention_forward" in s), None
    )
    registry = ALL_ATTENTION_FUNCTIONS if registry is None else registry
    return registry.get_interface(implementation or "eager", eager)


def dispatch(module, query, key, value, attention_mask=None, scaling=None, **options) -> Output:
    """The registered function: every route around the call, the innermost of them the user's
    kernel.
    """
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

    def proceed(call: AttentionCall, kernel: Kernel, depth: int = 0) -> Output:
        if depth == len(window.routes):
            return kernel(call)
        return window.routes[depth](call, lambda inner: proceed(inner, kernel, depth + 1))

    layout = layouts.get(module)
    return proceed(call, window.kernel) if layout is None else layout(call, proceed, window.kernel)


class Tap:
    """One `around` at one module: opens the module's window before its forward and closes it
    behind.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        around: Around,
        innermost: bool,
        weights: Observer | None,
        always: bool,
    ):
        self.name, self.module, self.around = name, module, around
        self.innermost, self.weights, self.always, self.called = innermost, weights, always, False
        known = _windows.get(module)
        self.config: Any = (
            known.config if known else getattr(module, "config", None)
        )  # the user's own

    def open(self, *_: Any) -> None:
        if hasattr(self.module, "config") and (self.always or not is_untouched()):
            window = _windows.get(self.module) or _windows.setdefault(
                self.module, TapState(self.name, self.module)
            )
            if self.around not in window.routes:
                window.routes.insert(len(window.routes) if self.innermost else 0, self.around)
            self.module.config = window.shadow

    def close(self) -> bool:
        """Whether the registered function was called in the window. Right from any state, and as
        often as you like.
        """
        window = _windows.get(self.module)
        others = [route for route in window.routes if route is not self.around] if window else []
        if not others and self.config is not None:
            self.module.config = self.config
        called = window is not None and self.around in window.routes and window.called
        if others and window:
            window.routes[:] = others
        else:
            _windows.pop(self.module, None)
        return called

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        if is_untouched() and not self.always:
            return
        seen, self.called = self.close(), True
        if seen or output is None:  # None: the forward raised
            return
        returned = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if self.weights is None or not torch.is_tensor(returned) or returned.ndim != 4:
            raise ProbeError(
                "probe",
                expected="attention through transformers' interface, or weights (batch, head, query, key)",
                got=f"{self.name} ({type(module).__name__})",
                fix="leave it out of the stack",
            )
        self.weights(AttentionWeights(self.name, module, returned))


@contextmanager
def routed(
    modules: Mapping[str, nn.Module],
    around: Around,
    *,
    innermost: bool = False,
    weights: Observer | None = None,
    required: bool = True,
    always: bool = False,
) -> Iterator[None]:
    """Runs `around(call, kernel)` in place of the kernel in every attention call of these modules.

    `innermost` routes see what the others made of the call. `weights` receives the attention of
    modules that call no registered function but return their weights. `always`: also in forwards
    that are the model's own (`untouched`), for what has become a part of the model. Undone on any
    exit; on an interrupt the hooks of a module may not have run, so the exit restores every module
    itself, twice: another interrupt may hit the first time.

    Raises ProbeError for a compiled model, a module that was never called (where `required`), and
    one that offers neither way to be seen.
    """
    routes = [
        Tap(name, module, around, innermost, weights, always) for name, module in modules.items()
    ]
    for route in routes:
        if is_compiled(route.module):
            raise ProbeError(
                "probe",
                expected="a model that is not compiled",
                got=f"a compiled {route.name}",
                fix="probe the model before torch.compile",
            )
    undo = ExitStack()  # goes on with the others when one of its callbacks is interrupted
    try:
        try:
            for route in routes * 2:
                undo.callback(route.close)
            for route in routes:
                undo.callback(route.module.register_forward_pre_hook(route.open).remove)
                undo.callback(
                    route.module.register_forward_hook(route.after, always_call=True).remove
                )
            yield
        finally:
            undo.close()
    finally:
        undo.close()  # where the interrupt hit between the two: does nothing otherwise
    if required and (missing := [route.name for route in routes if not route.called]):
        raise ProbeError(
            "probe",
            expected="every tapped attention module to be called",
            got=f"no call of {missing[0]} ({len(missing)} of {len(routes)} modules)",
            fix="run the forward inside the block",
        )


@contextmanager
def tap(modules: Mapping[str, nn.Module], observe: Observer) -> Iterator[None]:
    """Shows every attention call of these modules (qualified name -> module) to `observe`, after
    the kernel ran.

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
