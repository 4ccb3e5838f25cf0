"""See query, key, value and mask of every attention call, next to the model's own kernel.

An attention module finds its kernel by a name in its config. While a block is open the module
(alone) has a `TappedConfig`: it shares all values with the model's config, and in a thread that the
block concerns, while the module's forward runs, it names a function registered with transformers.
That function calls the kernel the user chose, on the arguments it was given, and then shows them to
the observer. Masks, caches, foreign threads (`block_threads.py`) and everything outside the
attention call read the model's own values, so the logits are bit-identical.

    with tap(stack.attention, observe):        # observe(call) after every attention call
        model(**inputs)

Source: `AttentionInterface` of transformers (docs: "Attention interface").
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.block_threads import BlockThreads, add_hook, block_threads, concerns, model_block
from probe.hooks.compiled import refuse_compiled
from probe.hooks.inline_attention import InlineAttention
from probe.hooks.model_state import locked, state_of
from probe.hooks.own_kernel import own_function, rule_of_kernel

# Followed by the user's own choice, so that a check such as `"flash" in name` still holds
PREFIX = "probe|"

Output = tuple[Tensor, Tensor | None]  # (batch, query, head, dim); the weights, if the kernel can
Kernel = Callable[[AttentionCall], Output]
Wrapper = Callable[[AttentionCall, Kernel], Output]
View = Callable[[AttentionCall, Callable[[AttentionCall, Kernel], Output], Kernel], Output]
Observer = Callable[[AttentionCall | AttentionWeights], None]


class KernelName(str):
    """The name that a tapped module finds its kernel by: that of the dispatcher in registries. In
    comparisons it is the user's own choice as well, because some modules go another way for some
    kernels (sparse attention: `if config._attn_implementation in ("eager", "sdpa")`).

    >>> name = KernelName("sdpa")
    >>> name == "sdpa", name in ("eager", "sdpa"), name == "eager", {PREFIX + "sdpa": 1}[name]
    (True, True, False, 1)
    """

    own: str

    def __new__(cls, own: str) -> "KernelName":
        name = super().__new__(cls, PREFIX + own)
        name.own = own
        return name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and (self.own == other or str.__eq__(self, other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class TappedConfig:
    """Mixed into the class of a config: all its values, but the kernel's name as the tap has it."""

    __slots__ = ("tap",)
    tap: "TapState"

    def __init_subclass__(cls) -> None:  # transformers would make a dataclass of it
        pass

    def __deepcopy__(self, memo: dict) -> Any:
        return copy.deepcopy(self.tap.config, memo)

    @property
    def _attn_implementation(self) -> str | None:
        own = self.tap.config._attn_implementation
        return register(own or "eager") if self.tap.is_armed else own


@functools.cache
def _tapped_class(config_class: type) -> type:
    return type(config_class.__name__, (TappedConfig, config_class), {})


class TapState:
    """What all open blocks have attached to one attention module."""

    def __init__(self, name: str, module: nn.Module):
        self.name = name
        config: Any = module.config
        self.config = config.tap.config if isinstance(config, TappedConfig) else config
        self.taps: list[Tap] = []  # outermost first
        self.armed: set[int] = set()  # threads in which the module looks up its kernel next
        self.called: set[int] = set()  # threads in which it has called it since
        self.tapped_config: Any = object.__new__(_tapped_class(type(self.config)))
        self.tapped_config.tap = self
        self.tapped_config.__dict__ = self.config.__dict__

    @property
    def is_armed(self) -> bool:
        return get_ident() in self.armed

    def kernel(self, call: AttentionCall) -> Output:
        """The user's own kernel."""
        function = own_function(call.module, self.config._attn_implementation)
        tensors = call.query, call.key, call.value, call.effective_mask
        return function(call.module, *tensors, scaling=call.scaling, **call.options)

    def run(self, call: AttentionCall, view: View | None) -> Output:
        """The kernel inside the wrappers of all taps that concern this thread."""
        wrappers = [tap.wrapper for tap in tuple(self.taps) if concerns(tap.threads, tap.always)]

        def proceed(call: AttentionCall, kernel: Kernel, depth: int = 0) -> Output:
            if depth == len(wrappers):
                return kernel(call)
            return wrappers[depth](call, lambda inner: proceed(inner, kernel, depth + 1))

        if view is None:
            return proceed(call, self.kernel)
        return view(call, proceed, self.kernel)


def register(implementation: str) -> str:
    """Makes the dispatcher known under a name of its own, which is returned, with the kernel's
    function for masks: without one there would be no mask.
    """
    name = KernelName(implementation)
    if name not in ALL_ATTENTION_FUNCTIONS:
        if implementation in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
        AttentionInterface.register(name, dispatch)
    return name


def dispatch(module, query, key, value, attention_mask=None, scaling=None, **options) -> Output:
    """The registered function: runs the kernel inside the wrappers of this thread's taps."""
    state = state_of(module)
    thread = get_ident()
    tap: TapState | None = state.tap
    if tap is None:  # its block was closed by another thread just now
        function = own_function(module, module.config._attn_implementation)
        return function(module, query, key, value, attention_mask, scaling=scaling, **options)
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    eager = (tap.config._attn_implementation or "eager") == "eager"  # knows masks only
    call = AttentionCall(
        name=tap.name,
        module=module,
        query=query,
        key=key,
        value=value,
        effective_mask=attention_mask,
        model_mask=attention_mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        causal=bool(causal) and query.shape[2] > 1 and not (eager and attention_mask is None),
        window=options.get("sliding_window"),
        options=options,
    )
    tap.called.add(thread)
    tap.armed.discard(thread)  # the kernel may read the config
    kernel = own_function(module, tap.config._attn_implementation)
    call = replace(call, rule=rule_of_kernel(kernel, call))
    output = tap.run(call, state.views.get(thread))
    tap.armed.add(thread)
    return output


class Tap:
    """One wrapper around the kernel of one attention module, for the threads of its block."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        wrapper: Wrapper,
        innermost: bool,
        weights: Observer | None,
        always: bool,
    ):
        self.name, self.module, self.wrapper = name, module, wrapper
        self.innermost, self.weights, self.always = innermost, weights, always
        self.threads: BlockThreads = block_threads()
        self.state: TapState | None = None  # None: a module that looks up no kernel
        self.called = False
        has_kernel = hasattr(module, "config")
        self.inline = None if has_kernel else InlineAttention.of(name, module)

    @locked
    def attach(self) -> None:
        state = state_of(self.module)
        if state.tap is None and hasattr(self.module, "config"):
            state.tap = TapState(self.name, self.module)
        self.state = state.tap
        if self.state is not None:
            self.state.taps.insert(len(self.state.taps) if self.innermost else 0, self)
            self.module.config = self.state.tapped_config

    @locked
    def detach(self) -> None:
        """Right from any state, and as often as you like."""
        state = state_of(self.module)
        if state.tap is None:
            return
        state.tap.armed.discard(get_ident())  # an interrupt may have left it
        if self in state.tap.taps:
            state.tap.taps.remove(self)
        if not state.tap.taps:
            self.module.config = state.tap.config
            state.tap = None

    def before(self, module: nn.Module, args: Any) -> None:
        if self.state is not None:
            self.state.called.discard(get_ident())
            self.state.armed.add(get_ident())

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        self.called = True
        if self.state is not None:
            self.state.armed.discard(get_ident())
            if get_ident() in self.state.called:
                return
        made = None if self.inline is None else self.inline.call()
        if output is None:  # the forward raised
            return
        returned = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if torch.is_tensor(returned) and returned.ndim == 4:
            made = AttentionWeights(self.name, module, returned)
        if self.weights is None or made is None:
            raise ProbeError(
                "probe",
                expected="attention through transformers' interface, or weights "
                "(batch, head, query, key)",
                got=f"{self.name} ({type(module).__name__})",
                fix="leave it out of the stack",
            )
        self.weights(made)


@model_block
def routed(
    modules: Mapping[str, nn.Module],
    wrapper: Wrapper,
    *,
    innermost: bool = False,
    weights: Observer | None = None,
    required: bool = True,
    always: bool = False,
) -> Iterator[list[Tap]]:
    """Runs `wrapper(call, kernel)` in place of the kernel in every attention call of these modules.

    `innermost` wrappers see what the others made of the call. `weights` receives the attention of
    modules that call no registered function: the weights that they return, or else the call as
    their parts made it (`inline_attention.py`). `always`: also in forwards
    on the `untouched` model, for what has become a part of it. Undone on any exit; everything is
    undone twice, because an interrupt may hit the first time.

    Raises ProbeError for a compiled model, a module that was never called (where `required`), and
    one that offers neither way to be seen.
    """
    for module in modules.values():
        refuse_compiled("probe", module)
    options = innermost, weights, always
    taps = [Tap(name, module, wrapper, *options) for name, module in modules.items()]
    undo = ExitStack()  # goes on with the others when one of its callbacks is interrupted
    try:
        try:
            for tap in taps * 2:
                undo.callback(tap.detach)
            for tap in taps:
                tap.attach()
                add_hook(undo, tap.module.register_forward_pre_hook, tap.before, always=always)
                after = {"always": always, "always_call": True}
                add_hook(undo, tap.module.register_forward_hook, tap.after, **after)
                if tap.inline is not None:
                    tap.inline.watch(undo, always)
            yield taps
        finally:
            undo.close()
    finally:
        undo.close()  # where the interrupt hit between the two: does nothing otherwise
    if required and (missing := [tap.name for tap in taps if not tap.called]):
        raise ProbeError(
            "probe",
            expected="every tapped attention module to be called",
            got=f"no call of {missing[0]} ({len(missing)} of {len(taps)} modules)",
            fix="run the forward inside the block",
        )


@model_block
def tap(modules: Mapping[str, nn.Module], observe: Observer) -> Iterator[None]:
    """Shows every attention call of these modules (qualified name -> module) to `observe`, after
    the kernel ran.

    >>> calls = []
    >>> with tap(stacks(model)["llm"].attention, calls.append):            # doctest: +SKIP
    ...     model(**inputs)
    """

    def wrapper(call: AttentionCall, kernel: Kernel) -> Output:
        output = kernel(call)
        observe(call)
        return output

    with routed(modules, wrapper, innermost=True, weights=observe):
        yield
