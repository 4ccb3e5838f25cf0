"""The planted model is what it claims to be, and every intervention finds that."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import probe
from probe.errors import ProbeError
from probe.interventions import drop_vision, knockout, swap_vision
from probe.models.planted import CHANNELS, GRID, NO_ANSWER, planted
from probe.subject.inputs import collate

CASES = [((3,), (0,)), ((1, 4), (14, 15, 20, 21)), ((0, 2, 5), (35, 7))]


@pytest.fixture(scope="module", params=CASES, ids=str)
def known(request):
    return planted(*request.param)


@pytest.fixture(scope="module")
def subject(known):
    return probe.load(known.model, processor=known.processor)


def painted(known, patch, colour, seed=0):
    """A red image with one patch in another colour."""
    pixels = np.asarray(known.image("red", seed)).copy()
    y, x = patch // GRID * 10, patch % GRID * 10
    pixels[y : y + 10, x : x + 10] = colour
    return Image.fromarray(pixels)


@pytest.mark.parametrize("colour", CHANNELS)
def test_it_says_the_colour_of_its_patches(known, subject, colour):
    for seed in range(3):
        assert subject.answer(known.image(colour, seed), known.question) == colour


def test_other_patches_do_not_reach_the_answer_at_all(known, subject):
    def logits(image):
        with torch.no_grad():
            return subject.model(**subject.encode(image, known.question)).logits[0, -1]

    own = logits(known.image("red"))
    for patch in range(GRID * GRID):
        same = torch.equal(logits(painted(known, patch, (0, 0, 255))), own)
        is_blue = np.asarray(known.image("red"))[patch // GRID * 10, patch % GRID * 10, 2] == 255
        assert same == (patch not in known.patches or is_blue)
    if len(known.patches) > 1:
        assert (
            subject.answer(painted(known, known.patches[0], (0, 0, 0)), known.question) == NO_ANSWER
        )


@pytest.mark.parametrize("mode", ["mask", "zero", "remove"])
def test_dropping_finds_the_read_layers(known, subject, mode):
    image = known.image("green", 1)
    for layer in range(6):
        with drop_vision(subject, layer, mode=mode):
            said = subject.answer(image, known.question)
        assert said == (NO_ANSWER if layer in known.read_layers else "green")


def test_swapping_finds_them_too(known, subject):
    image, donor = known.image("green", 1), subject.encode(known.image("blue", 2), known.question)
    for layer in range(6):
        with swap_vision(subject, layer, donor):
            said = subject.answer(image, known.question)
        alone = len(known.read_layers) == 1
        assert said == (
            "green" if layer not in known.read_layers else "blue" if alone else NO_ANSWER
        )
    with swap_vision(subject, known.read_layers, donor):
        assert subject.answer(image, known.question) == "blue"


def test_knocking_out_the_patches_is_enough(known, subject):
    image = known.image("green", 1)
    inputs = subject.encode(image, known.question)
    planted_here = inputs.types.vision & np.isin(
        np.cumsum(inputs.types.vision, 1) - 1, known.patches
    )
    types = inputs.as_types({"planted": planted_here}).types
    for keys, expected in (("planted", NO_ANSWER), ("vision", "green")):
        with knockout(subject, "text", keys, known.read_layers, types=types):
            assert subject.answer(image, known.question) == expected


def test_attention_is_where_it_reads_and_even_elsewhere(known, subject):
    node = probe.measure(subject, known.image("red"), known.question)["llm"].isel(sample=0)
    mass = node["mass"].sel(query_type="response", key_type="vision")
    entropy = node["head_entropy"].sel(query_type="response", key_type="vision")
    for layer in range(6):
        reads = layer in known.read_layers
        assert float(mass.isel(layer=layer, head=0)) == pytest.approx(
            1.0 if reads else mass.isel(layer=layer, head=1)
        )
        count = len(known.patches) if reads else GRID * GRID
        assert float(entropy.isel(layer=layer, head=0)) == pytest.approx(np.log(count), abs=1e-5)


def test_batches_two_images_and_half_precision(known):
    model = planted(known.read_layers, known.patches).model
    subject = probe.load(model.bfloat16(), processor=known.processor)
    blue, red = known.image("blue", 3), known.image("red", 4)
    prompts = [
        ([blue], known.question),
        ([blue, blue], "and in these two ?"),
        ([blue, red], "what ?"),
    ]
    said = subject.generate_ids(collate([subject.encode(*given) for given in prompts]))
    words = [known.processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in said]
    assert words == ["blue", "blue", NO_ANSWER]


@pytest.mark.parametrize(
    "given", [{"read_layers": ()}, {"read_layers": [6]}, {"patches": [36]}, {"patches": [-1]}]
)
def test_a_truth_that_cannot_be_planted_is_refused(given):
    with pytest.raises(ProbeError, match="planted: expected"):
        planted(**given)


WAYS = [
    "from probe.models import planted\nplanted((2,))",
    "probe.models.planted((2,))",
    "from probe.models.planted import planted\nplanted((2,))\nprobe.models.planted((2,))",
    "import probe.models.planted\nprobe.models.planted((2,))\nprobe.models.planted.planted((2,))",
]


def test_every_way_to_planted_works_and_probe_does_not_need_torch():
    """The ways one after the other in one process, so that each works whatever came before."""
    lines = ["import sys, probe, probe.models", "assert 'torch' not in sys.modules", *WAYS, WAYS[0]]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
