"""`probe convert` as a user runs it: whole folders, and mistakes that end in one line with nothing
written.
"""

import json

import models
import pytest
import torch
from golden_cases import COPIES
from safetensors.torch import load_file, save_file

import probe
from probe.models.llava_mini import LlavaMiniForConditionalGeneration, from_original

CASE = COPIES / "llava_mini" / "hd_c8_p1_vicuna"


@pytest.fixture(scope="module")
def case():
    meta, tensors = (
        json.loads(CASE.with_suffix(".json").read_text()),
        load_file(CASE.with_suffix(".safetensors")),
    )
    weights = {
        name.removeprefix("weights."): t
        for name, t in tensors.items()
        if name.startswith("weights.")
    }
    return meta["config"], meta["vision_config"], weights


@pytest.fixture
def original(case, tmp_path):
    """The authors' folder, one file of weights, with a tokenizer and the vision tower's config
    alone.
    """
    config, vision_config, weights = case
    folder = tmp_path / "original"
    (folder / "clip").mkdir(parents=True)
    (folder / "clip" / "config.json").write_text(json.dumps(vision_config))
    save_file(weights, folder / "model.safetensors")
    models.llama3_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps(config | {"mm_vision_tower": str(folder / "clip")})
    )
    return folder


def left(folder):
    """What is beside the authors' folder, hidden files included."""
    return [path.name for path in folder.parent.rglob("*") if not path.is_relative_to(folder)]


def test_a_converted_folder_answers_as_the_original_does(run, original, case, tmp_path):
    code, said, _ = run("convert", str(original), "--out", "native")
    assert code == 0
    assert (
        "written to native/: chat_template.jinja, config.json, model-00001-of-00001.safetensors"
        in said
    )
    native, theirs = probe.load(tmp_path / "native"), probe.load(original)
    expected = from_original(case[2], case[0], case[1]).state_dict()
    for subject in (native, theirs):
        assert isinstance(subject.model, LlavaMiniForConditionalGeneration)
        assert all(
            torch.equal(tensor, expected[name])
            for name, tensor in subject.model.state_dict().items()
        )
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "why?"}]}]
    prompts = [
        subject.processor.apply_chat_template(chat, add_generation_prompt=True)
        for subject in (native, theirs)
    ]
    assert (
        prompts[0] == prompts[1]
        and "<image>\nwhy?<|eot_id|><|start_header_id|>assistant" in prompts[0]
    )
    inputs = [
        subject.processor(text=prompts[0], images=models.picture()) for subject in (native, theirs)
    ]
    assert all(torch.equal(inputs[0][name], inputs[1][name]) for name in inputs[0])
    assert (inputs[0]["input_ids"] == native.model.config.image_token_id).sum() == 64


def test_parts_in_other_folders(run, original, case, tmp_path):
    own = {
        n: t
        for n, t in case[2].items()
        if any(part in n for part in ("mm_projector", "compressor", "prefusion"))
    }
    (original / "model.safetensors").unlink()
    torch.save(own, original / "mm_projector.bin")
    (tmp_path / "llm").mkdir()
    llm = {name: t for name, t in case[2].items() if name not in own and "vision_tower" not in name}
    save_file(llm, tmp_path / "llm" / "model.safetensors")
    clip = {
        n.replace("model.vision_tower.vision_tower.", ""): t
        for n, t in case[2].items()
        if "vision_tower" in n
    }
    code, _, said = run(
        "convert", str(original), "--vision", str(tmp_path / "llm"), "--base", "nowhere"
    )
    assert code == 2 and said == "probe: convert: expected a folder as base, got 'nowhere'\n"
    save_file(clip, original / "clip" / "model.safetensors")
    code, _, said = run("convert", str(original))
    assert code == 2 and said.endswith(
        "; it has no LLM: give the LLM's folder too (base= or --base)\n"
    )
    code, said, _ = run(
        "convert",
        str(original),
        "--vision",
        str(original / "clip"),
        "--base",
        str(tmp_path / "llm"),
    )
    assert code == 0 and "written to probe-out/convert/: " in said
    expected = from_original(case[2], case[0], case[1]).state_dict()
    ours = probe.load(tmp_path / "probe-out" / "convert").model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.items())


def test_a_folder_without_tokenizer_is_told(run, original):
    for file in original.glob("tokenizer*"):
        file.unlink()
    code, said, _ = run("convert", str(original), "--out", "native")
    assert code == 0 and "there was no tokenizer" in said


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            "expected a whole weight file, got model.safetensors",
        ),
        (
            lambda path: path.unlink(),
            "expected weights (model.safetensors, pytorch_model.bin, mm_projector.bin",
        ),
        (
            lambda path: path.rename(path.with_name("model-00001-of-00002.safetensors")),
            "expected an index file",
        ),
        (lambda path: (path.parent / "config.json").unlink(), "got No such file or directory"),
        (
            lambda path: (path.parents[1] / "native").write_text(""),
            "expected an empty or a new folder to write to",
        ),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(run, original, damage, told):
    damage(original / "model.safetensors")
    before = left(original)
    code, said, complaint = run("convert", str(original), "--out", "native")
    assert (
        (code, said) == (2, "")
        and complaint.startswith("probe: convert: ")
        and complaint.count("\n") == 1
    )
    assert told in complaint and left(original) == before


def test_a_place_that_cannot_be_written(run, original, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, complaint = run("convert", str(original), "--out", "file/native")
    assert (
        code == 2
        and "probe: --out: expected a folder that can be written, got 'file/native'" in complaint
    )
