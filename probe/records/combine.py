"""Samples of several records as one record.

    merge([record, other])                                # checked before and after
    combine([part(samples, stacks, attrs), ...])          # what was just measured: checked once

Values are copied bit for bit, and ragged axes padded as `concat.py` does it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import xarray as xr

from probe.errors import ProbeError, not_empty
from probe.records.concat import Node, concatenated, only_in_one
from probe.records.schema import (
    CONDITIONS,
    LABELS,
    ROOT,
    STACK,
    Variable,
    plain_attrs,
    variables_of,
)
from probe.records.validate import divided, tree_of, validate


class Part(NamedTuple):
    """Some samples of a record, in plain nodes."""

    root: Node
    stacks: dict[str, Node]

    @classmethod
    def of(cls, record: xr.DataTree) -> "Part":
        stacks = {
            str(name): Node.of(child.to_dataset(inherit=False))
            for name, child in record.children.items()
        }
        return cls(Node.of(record.to_dataset(inherit=False)), stacks)


def merge(records: Sequence[xr.DataTree]) -> xr.DataTree:
    """One record with the samples of all, in order.

    Records that measured different things (another model, layers, types, variables, or a condition
    of `CONDITIONS`) are refused with the name of what differs: give those to a plot side by side
    instead. Other attrs that differ (a prompt's hash) become a list "a, b".
    """
    return combine([Part.of(validate(record)) for record in records])


def part(
    samples: Mapping[str, Any], stacks: Mapping[str, Mapping[str, Any]], attrs: Mapping[str, Any]
) -> Part:
    """What `assemble` takes, of some of a record's samples: checked later, once, by `combine`."""
    root = _node("root", samples, ROOT, ["sample"])
    nodes = {name: _node(name, values, STACK, LABELS) for name, values in stacks.items()}
    return Part(root._replace(attrs=plain_attrs(attrs)), nodes)


def _node(
    path: str, values: Mapping[str, Any], schema: Mapping[str, Variable], labels: Sequence[str]
) -> Node:
    """The root or a stack; `labels` are its coordinates."""
    coords, arrays = divided(values, labels)
    variables, known = variables_of("record.assemble", arrays, schema, coords, f"{path}/")
    return Node(variables | known, set(known), {})


def combine(parts: Sequence[Part]) -> xr.DataTree:
    """One record with the samples of all parts, in order: `merge` for what was just measured."""
    not_empty("record.merge", "record", parts)
    first = parts[0]
    for other in parts[1:]:
        for name in CONDITIONS:
            _same(f"attrs[{name!r}]", first.root.attrs.get(name), other.root.attrs.get(name))
        _same("stacks", sorted(first.stacks), sorted(other.stacks))
    root = _joined([each.root for each in parts])
    root = root._replace(attrs=_joined_attrs([each.root.attrs for each in parts]))
    stacks = {
        name: _merged_stack(name, [each.stacks[name] for each in parts]).dataset()
        for name in first.stacks
    }
    return validate(tree_of(root.dataset(), stacks, "record.merge"))


def _merged_stack(stack: str, nodes: list[Node]) -> Node:
    first = nodes[0]
    for other in nodes[1:]:
        for name in LABELS:
            _same(f"{stack} {name}", _labels(first, name), _labels(other, name))
        if differing := only_in_one(first, other):
            raise _different(f"{stack} variables", f"{differing} in only one")
        for name in first.variables.keys() & other.variables.keys():
            dims = first.variables[name].dims
            other_dims = other.variables[name].dims
            # a count that is the same in all layers has no axis of layers
            if dims != other_dims and (set(dims) ^ set(other_dims)) - {"layer"}:
                raise _different(f"dims of {stack}/{name}", f"{dims} and {other_dims}")
    return _joined(nodes)


def _joined(nodes: list[Node]) -> Node:
    return nodes[0] if len(nodes) == 1 else concatenated("record.merge", nodes)


def _labels(node: Node, name: str) -> list:
    return node.variables[name].values.tolist() if name in node.coords else []


def _same(what: str, first: Any, other: Any) -> None:
    if first != other:
        raise _different(what, f"{first!r} and {other!r}")


def _different(what: str, got: str) -> ProbeError:
    fix = "draw them side by side instead: plots take {label: record}"
    return ProbeError("record.merge", expected=f"the same {what}", got=got, fix=fix)


def _joined_attrs(attrs: Sequence[Mapping[Any, Any]]) -> dict[Any, Any]:
    joined = {}
    for name in dict.fromkeys(name for each in attrs for name in each):
        values = [each[name] for each in attrs if name in each]
        if len(set(values)) > 1:
            texts = dict.fromkeys(text for value in values for text in str(value).split(", "))
            values = [", ".join(texts)]
        joined[name] = values[0]
    return joined
