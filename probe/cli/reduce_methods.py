"""Which methods `probe reduce` compares, and in which sizes.

kinds = possible_methods(subject, methods_named("visionzip,fastv"), budgets[0])
methods = methods_of(subject, kinds, budgets, others=[])
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from probe.cli.output import say
from probe.errors import ProbeError, one_of

if TYPE_CHECKING:
    from probe.evaluation.method_comparison import Method
    from probe.reducers.token_budget import TokenBudget
    from probe.subject.subject import Subject

# By default; `probe.reducers.METHODS` has more
BY_DEFAULT = "visionzip,prumerge,random,grid,fastv,pyramiddrop,sparsevlm"
OF_BENCH = f"{BY_DEFAULT},vispruner,holov,vscan,hiprune,divprune,dart,downsample"


def methods_named(reducers: str) -> list[str]:
    """The names that were asked for, each once. Raises ProbeError for an unknown one."""
    from probe.reducers import METHODS

    names = [name.strip().lower() for name in reducers.split(",") if name.strip()]
    for name in names:
        one_of("--reducers", "names of", name, METHODS)
    return list(dict.fromkeys(names))


def budgets_of(subject: "Subject", fractions: list[float]) -> "list[TokenBudget]":
    """Of these fractions; without one, those of recent papers."""
    from probe.reducers.token_budget import TokenBudget, budgets_of_papers

    if not fractions:
        return budgets_of_papers(subject.model)
    return [TokenBudget.of(subject.model, fraction) for fraction in fractions]


def check_benchmark(subject: "Subject") -> None:
    """Raises ProbeError for a model whose images have tokens of their own number: methods are
    compared at so many tokens.
    """
    from probe.reducers.token_budget import TokenBudget

    if TokenBudget.of(subject.model, 1.0).patches is None:
        raise ProbeError(
            "--bench",
            expected="a model that shows images in views of one size",
            got="one that reads each image at its own resolution",
            fix="leave --bench out, and compare by --keep",
        )


def possible_methods(subject: "Subject", kinds: list[str], budget: "TokenBudget") -> list[str]:
    """Those of the default methods that the model can be under; of the others it is said why not.
    Raises ProbeError where there is none, and where one vision token leaves nothing to choose.
    """
    import torch

    from probe.models.tiny.questions import sample_image
    from probe.reducers import METHODS, reduced

    image, question, _ = sample_image(seed=0)
    refused: dict[str, list[str]] = {}
    first: ProbeError | None = None
    for kind in kinds:
        make = METHODS[kind][1]
        try:
            with reduced(subject, make(budget)), torch.no_grad():
                subject.model(**subject.encode(image, question))
        except ProbeError as error:
            first = first or error
            reason = f"expected {error.expected}, got {error.got}" if error.got else str(error)
            refused.setdefault(reason, []).append(kind)
    left = [kind for kind in kinds if not any(kind in of_reason for of_reason in refused.values())]
    has_choice = subject.encode(image, question).types.vision.sum() > 1
    if first is not None and not (left and has_choice):
        raise first
    for reason, of_reason in refused.items():
        say("note", f"left out: {', '.join(of_reason)} ({reason})")
    return left


def methods_of(
    subject: "Subject",
    kinds: list[str],
    budgets: "list[TokenBudget]",
    others: "list[Subject]",
    seeds: int = 1,
    *,
    in_tokens: bool = False,
) -> "list[Method]":
    """The subject as it is, under each reducer for each budget (those that draw, for each seed),
    and the other models. A label gives the tokens that a reducer really leaves; two budgets of
    equally many are one.
    """
    from probe.evaluation.method_comparison import Method
    from probe.reducers import METHODS, Random

    methods = {"all tokens": Method("all tokens", subject)}
    for kind in kinds:
        label, make = METHODS[kind]
        for budget in budgets:
            in_share = budget.patches is None  # of views of any size
            if budget.patches is not None and not in_tokens:
                in_share = budget.tokens == round(budget.share * budget.patches * budget.views)
            kept = f"{100 * budget.share:.3g} %" if in_share else f"{budget.tokens} tokens"
            name = f"{label} {kept}"
            reducer = make(budget)
            used: dict[str, Any] = {name: reducer}
            if seeds > 1 and isinstance(reducer, Random):
                used = {
                    f"{name}, seed {seed}": replace(reducer, seed=seed) for seed in range(seeds)
                }
            for own, drawn in used.items():
                # of images of any size only the share is known
                tokens = 0 if budget.patches is None else budget.tokens
                method = Method(own, subject, (drawn,), family=label, budget=tokens)
                methods.setdefault(own, method)
    methods |= {other.name: Method(other.name, other, family=other.name) for other in others}
    return list(methods.values())
