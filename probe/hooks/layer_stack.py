"""A group of layers with their attention modules, found by what modules can do.

stack_of_layers("llm", model, layers).attention      # {qualified name: module}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from probe.errors import ProbeError

# An attention module has all attributes of one of these lines; the first line that a module of any
# layer of the list fits decides. Linear attention has a head_dim too, but is never causal or not.
ATTENTION_ATTRIBUTES = (
    ("config", "head_dim", "is_causal"),
    ("config", "num_heads", "is_causal"),
    ("config", "head_size", "is_causal"),
    ("config", "head_dim"),
    ("config", "num_heads"),
    ("num_heads",),
    ("n_heads", "head_dim"),
)
KEY_PROJECTIONS = ("k_proj", "key")


@dataclass(frozen=True)
class LayerStack:
    """One group of layers; `attention` maps qualified names (as in `model.named_modules()`), in
    order of layers. `modules` has the name of each layer's attention, None where a layer has none:
    linear attention, a convolution, or attention to something else than its own tokens. `numbers`:
    of the layers, where they are not counted from 0 (cross-attention in some layers of an LLM).
    `left_out`: why layers that do have attention are counted as those without.
    """

    name: str
    layers: tuple[nn.Module, ...]
    attention: dict[str, nn.Module]
    modules: tuple[str | None, ...]
    numbers: tuple[int, ...] | None = None
    left_out: str = ""

    def first(self, count: int, why: str) -> "LayerStack":
        """The stack with the attention of its first `count` layers alone."""
        modules = (*self.modules[:count], *[None] * (len(self.modules) - count))
        attention = {name: self.attention[name] for name in modules if name is not None}
        return replace(self, attention=attention, modules=modules, left_out=why)

    def numbered(self) -> list[tuple[int, str | None]]:
        """The number of each layer and the name of its attention."""
        numbers = range(len(self.layers)) if self.numbers is None else self.numbers
        return list(zip(numbers, self.modules, strict=True))

    def among(self, llm: "LayerStack") -> "LayerStack":
        """The stack with a place for each layer of the LLM, at its `numbers`; the LLM's own layers
        are in the other places, without attention.
        """
        layers = list(llm.layers)
        modules: list[str | None] = [None] * len(layers)
        for (number, name), layer in zip(self.numbered(), self.layers, strict=True):
            layers[number], modules[number] = layer, name
        return replace(self, layers=tuple(layers), modules=tuple(modules))

    def attention_of(self, layers: Iterable[int]) -> dict[str, nn.Module]:
        """The attention modules of these layers, where they have one."""
        names = [name for layer in layers if (name := self.modules[layer]) is not None]
        return {name: self.attention[name] for name in names}

    def attention_by_layer(self, layers: Iterable[int]) -> dict[int, nn.Module]:
        """The same by the number of the layer."""
        names = {layer: self.modules[layer] for layer in layers}
        return {layer: self.attention[name] for layer, name in names.items() if name is not None}

    @property
    def without_attention(self) -> tuple[int, ...]:
        """The layers, from 0, that have no softmax attention among their own tokens."""
        return tuple(layer for layer, name in enumerate(self.modules) if name is None)

    @property
    def with_state(self) -> tuple[int, ...]:
        """The layers, from 0, in which tokens read those before them otherwise than by attention:
        those without, and those with a convolution over positions beside it (Inkling, Falcon-H1).
        """
        numbers = range(len(self.layers))
        return tuple(i for i in numbers if self.modules[i] is None or _convolves(self.layers[i]))

    def in_place_of_attention(self) -> dict[int, str]:
        """Those layers, each with the name of the module that it has instead, "none" for none."""
        with_attention = [self.layers[i] for i, name in enumerate(self.modules) if name is not None]
        usual = _children(with_attention)
        found = {}
        for layer in self.without_attention:
            others = [part for part in _children([self.layers[layer]]) if part not in usual]
            found[layer] = others[0][0] if others else self.left_out or "none"
        return found

    def layer_of(self, attention: nn.Module) -> nn.Module:
        """The layer that an attention module of the stack belongs to."""
        name = next(name for name, module in self.attention.items() if module is attention)
        return self.layers[self.modules.index(name)]


def largest_stack(
    name: str,
    model: nn.Module,
    part: nn.Module,
    *,
    alike: bool = False,
    nearest: bool = False,
) -> LayerStack:
    """The list of layers with attention in a part of a model that has most parameters. `alike`:
    with all other lists of such layers, in the order of their definition (Mllama's encoder of
    tiles, and then of whole images). `nearest`: of those that the part owns itself, or that its
    parts own, and so on: Idefics' LLM has the encoder inside. Raises ProbeError where it has no
    list of layers, and for a layer without attention.
    """
    lists = _layer_lists(part)
    if not lists:
        raise ProbeError("model", expected=f"layers in its {name} stack", got=type(part).__name__)

    def rank(found: tuple[int, tuple[nn.Module, ...]]) -> tuple[bool, int, int]:
        depth, layers = found
        parameters = (p for layer in layers for p in layer.parameters())
        size = sum(p.numel() for p in parameters)
        return bool(attention_of(layers)), -depth if nearest else 0, size

    _, largest = max(lists, key=rank)
    kinds = {type(layer) for layer in largest}
    same = [layers for _, layers in lists if {type(layer) for layer in layers} == kinds]
    layers = tuple(layer for each in same for layer in each) if alike else largest
    return stack_of_layers(name, model, layers)


def _layer_lists(part: nn.Module) -> list[tuple[int, tuple[nn.Module, ...]]]:
    """All that may be a stack of layers, each with how deep inside it lies: lists of modules, and
    dicts and sequences whose modules are all of one kind.
    """
    return [
        (name.count("."), layers)
        for name, module in part.named_modules()
        if (layers := _listed(module))
    ]


def _listed(module: nn.Module) -> tuple[nn.Module, ...]:
    if isinstance(module, nn.ModuleList):
        return tuple(module)
    listed = tuple(module.children()) if isinstance(module, nn.ModuleDict | nn.Sequential) else ()
    return listed if len({type(each) for each in listed}) == 1 else ()


def stack_of_layers(
    name: str,
    model: nn.Module,
    layers: tuple[nn.Module, ...],
    found: Mapping[nn.Module, nn.Module] | None = None,
    numbers: tuple[int, ...] | None = None,
) -> LayerStack:
    """The stack of these layers. `found`: the attention of each layer, by default that among its
    own tokens.

    Raises ProbeError for a layer that has neither attention nor anything in its place.
    """
    names = {module: qualified for qualified, module in model.named_modules()}
    if found is None:
        found = attention_of(layers)
        _require_attention(layers, found, names)
    modules = tuple(names[found[layer]] if layer in found else None for layer in layers)
    attention = {names[module]: module for module in found.values()}
    return LayerStack(name, layers, attention, modules, numbers)


def _require_attention(
    layers: Iterable[nn.Module],
    found: Mapping[nn.Module, nn.Module],
    names: Mapping[nn.Module, str],
) -> None:
    usual = _children(found).keys()
    for layer in layers:
        others = _children([layer]).keys() - usual
        if layer not in found and (not found or not others):  # nothing in place of attention
            raise ProbeError(
                "model",
                expected="an attention module (with a head_dim) in every layer",
                got=f"none in {names[layer]}",
            )


def _convolves(layer: nn.Module) -> bool:
    """Whether a layer mixes neighbouring positions by a convolution."""
    convolutions = (part for part in layer.modules() if isinstance(part, nn.Conv1d))
    return any(part.kernel_size[0] > 1 for part in convolutions)


def _children(layers: Iterable[nn.Module]) -> dict[tuple[str, type], None]:
    """Name and kind of every part of some layers, in their order."""
    children = [child for layer in layers for child in layer.named_children()]
    return dict.fromkeys((name, type(child)) for name, child in children)


def attention_of(layers: Iterable[nn.Module]) -> dict[nn.Module, nn.Module]:
    """The attention of each layer among its own tokens, for the layers that have one."""
    for attributes in ATTENTION_ATTRIBUTES:
        found = {}
        for layer in layers:
            for name, module in layer.named_modules():
                fits = module is not layer and all(hasattr(module, each) for each in attributes)
                if fits and not _is_cross(name, module):
                    found.setdefault(layer, module)
        if found:
            return found
    return {}


def cross_attention_of(layers: Iterable[nn.Module]) -> dict[nn.Module, nn.Module]:
    """The attention of each layer to other tokens than its own, for the layers that have one."""
    found: dict[nn.Module, nn.Module] = {}
    for layer in layers:
        for name, module in layer.named_modules():
            projects = any(hasattr(module, each) for each in KEY_PROJECTIONS)
            if module is not layer and projects and _is_cross(name, module):
                found.setdefault(layer, module)
    return found


def _is_cross(name: str, module: nn.Module) -> bool:
    """Whether a module attends to other tokens than those that it is called with."""
    return bool(getattr(module, "is_cross_attention", False)) or "cross" in name.lower()


def multihead_attention(module: nn.Module) -> nn.MultiheadAttention | None:
    """Torch's own attention, which a module is or has inside (Aria's projector); None: neither."""
    parts = (part for part in module.modules() if isinstance(part, nn.MultiheadAttention))
    return next(parts, None)
