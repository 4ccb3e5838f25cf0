"""What `describe` says is possible is done by the public functions, in a measurement and in an
answer; what it says is not is refused by them in the same words.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import pytest

import probe
from probe.errors import ProbeError
from probe.hooks.layer_sites import SITES
from probe.hooks.model_structure import cross_attention, stacks
from probe.interventions.drop import DROP_MODES
from probe.interventions.head_ablation import HEAD_MODES
from probe.measures.flow.flow import METHODS as FLOW_METHODS
from probe.measures.logit_lens import logit_lens
from probe.reducers import METHODS, TokenBudget
from tests.families.checks import QUESTION, picture
from tests.families.models import FAMILIES
from tests.families.video_models import VIDEO_FAMILIES, clip

WORD = [14]
# Layers with a state, cross-attention, a compressor, features between layers, two encoders
ASKED = {
    **{name: FAMILIES[name] for name in ("qwen3_5", "mllama", "blip2", "qwen3_vl")},
    "video_llava": VIDEO_FAMILIES["video_llava"],
}
Attempt = Callable[[], object]
Block = Callable[[], AbstractContextManager]


def uses_of(subject) -> Iterator[tuple[str, Attempt]]:
    """What a user calls for each feature, by its name; several calls for some."""
    model, image, known = subject.model, picture(0), stacks(subject.model)
    ask = (subject, image, QUESTION, WORD)
    llm = known["llm"]
    with_heads = [layer for layer, name in enumerate(llm.modules) if name is not None]
    layers = range(len(llm.layers))

    for stack in known:
        shown = clip(0) if stack == "vision_video" else image
        measured = partial(probe.measure, subject, shown, QUESTION, WORD, stacks=[stack])
        yield f"attention, {stack}", measured
        yield f"contribution, {stack}", partial(measured, contribution=True)
    yield "logit lens", partial(logit_lens, *ask)
    for method in FLOW_METHODS:
        yield f"flow, {method}", partial(probe.flow, *ask, method, attention=False)

    def within(name: str, block: Block) -> Iterator[tuple[str, Attempt]]:
        def measured() -> None:
            with block():
                probe.measure(*ask, stacks=["llm"])

        def answered() -> None:
            with block():
                subject.answer(image, QUESTION, 2)

        yield name, measured
        yield name, answered

    for mode in DROP_MODES:
        drop = partial(probe.drop_vision, model, layers, mode)
        yield from within(f"drop_vision {mode}, llm", drop)
    knockout = partial(probe.knockout, model, "text", "vision", layers)
    yield from within("knockout, llm", knockout)
    for mode in HEAD_MODES:
        ablate = partial(probe.ablate_heads, model, dict.fromkeys(with_heads, 0), mode)
        yield from within(f"ablate_heads {mode}, llm", ablate)
    swap = partial(probe.swap_vision, subject, layers, picture(1))
    yield from within("swap_vision, llm", swap)
    for site in SITES:
        patch = partial(_patched, subject, with_heads, site)
        yield f"patch {site}, llm", patch
    tokens = int(subject.encode(image, QUESTION).types.vision.sum())
    budget = TokenBudget(0.5, max(tokens, 2), len(layers))
    for label, make in METHODS.values():
        yield label, partial(_reduced, ask, make, budget)


def _patched(subject, layers, site) -> None:
    inputs = subject.encode(picture(0), QUESTION)
    source = subject.encode(picture(1), QUESTION)
    positions = "text" if cross_attention(subject.model) else "vision"
    with probe.patch(subject.model, source, layers, positions, site):
        subject.generate_ids(inputs, 2)


def _reduced(ask, make, budget) -> None:
    with probe.reduced(ask[0], make(budget)):
        probe.measure(*ask)


def refusal(attempt: Attempt) -> str:
    """Why it can't be, "" where it can; errors of other kinds are raised."""
    try:
        attempt()
    except ProbeError as error:
        return f"expected {error.expected}, got {error.got}"
    return ""


@pytest.mark.wide
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ASKED)
def test_what_is_said_is_what_happens(name):
    subject = probe.load(*ASKED[name]())
    said = {
        feature.name: feature.missing
        for feature in probe.describe(subject, picture(0), QUESTION).features
    }
    tried = set()
    for feature, attempt in uses_of(subject):
        assert refusal(attempt) == said[feature], feature
        tried.add(feature)
    left = {feature for feature in said if not feature.endswith(", cross")} - tried
    assert left == {"places of vision tokens"}
    has_places = not np.isnan(subject.encode(picture(0), QUESTION).grid[0].box).all()
    assert (said["places of vision tokens"] == "") == has_places


def test_what_reads_videos_alone_is_measured_where_one_can_be_shown():
    """Its contribution was said to be known where it could not be measured."""
    names = ("attention, vision_video", "contribution, vision_video")
    for make, missing in ((FAMILIES, {"which takes none"}), (VIDEO_FAMILIES, {""})):
        table = probe.describe(probe.load(*make["video_llava"]())).to_dataframe()
        notes = table.set_index("name")["note"]
        assert {notes[name].rpartition(", ")[2] for name in names} == missing


def test_a_model_that_cannot_run_its_prompt_is_said_to_once():
    model, processor = FAMILIES["blip2"]()
    subject = probe.load(model, processor=processor)
    model.forward = lambda *args, pixel_values, **kwargs: pixel_values.no_such_thing
    with pytest.raises(ProbeError, match=r"describe: expected a prompt that the model itself can"):
        probe.describe(subject)
