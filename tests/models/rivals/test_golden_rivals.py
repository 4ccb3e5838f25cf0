"""The authors' own numbers for their models, through `from_original`, `vision_tokens`, forward."""

import json

import golden_cases
import pytest
import torch
from golden_cases import COPIES
from safetensors.torch import load_file

from probe.models.rivals import llama_vid, mqt, tokenpacker, voco

FAMILIES = {"llama_vid": llama_vid, "mqt": mqt, "tokenpacker": tokenpacker, "voco": voco}
TOLERANCE = 2e-4


def cases(family):
    folders = (golden_cases.SHARED / "rivals", COPIES / "rivals")
    paths = {path.stem: path for folder in folders for path in folder.glob(f"{family}_*.json")}
    return [
        pytest.param(path, id=name)
        for name, path in sorted(paths.items())
        if path.with_suffix(".safetensors").exists()
    ]


ALL = [case for family in FAMILIES for case in cases(family)]


class Case:
    """A golden file: the model, and its inputs as the contract has them."""

    def __init__(self, path):
        self.meta = json.loads(path.read_text())
        self.tensors = load_file(path.with_suffix(".safetensors"))
        weights = {
            name.removeprefix("weights."): x
            for name, x in self.tensors.items()
            if name.startswith("weights.")
        }
        family = FAMILIES[self.meta["family"]]
        self.model = family.from_original(weights, self.meta["config"], self.meta["vision_config"])
        self.how = {
            name: self.meta[name]
            for name in ("num_visual_tokens", "frames")
            if self.meta.get(name) and self.meta["family"] in ("mqt", "llama_vid")
        }
        for name in ("query_ids", "query_mask", "query_image"):
            if f"input.{name}" in self.tensors:
                self.how[name] = self.tensors[f"input.{name}"]

    def inputs(self, side="right"):
        """Each -200 becomes its image's placeholders; tiles are joined by the separators' ids."""
        ids = self.tensors["input.input_ids"]
        mask = self.tensors.get("input.attention_mask", torch.ones_like(ids)).bool()
        labels = self.tensors.get("input.labels")
        rows, number = [], 0  # of the image
        for row in range(len(ids)):
            words = []
            for place in mask[row].nonzero()[:, 0].tolist():
                label = -100 if labels is None else labels[row, place].item()
                word = ids[row, place].item()
                if word != -200:
                    words.append((word, label))
                    continue
                words += [(x, -100) for x in self.image(number)]
                number += 1
            rows.append(words)
        length = max(map(len, rows))
        filler = [[(0, -100)] * (length - len(row)) for row in rows]
        left = side == "left"
        both = [f + r if left else r + f for r, f in zip(rows, filler, strict=True)]
        real = [
            [0] * len(f) + [1] * len(r) if left else [1] * len(r) + [0] * len(f)
            for r, f in zip(rows, filler, strict=True)
        ]
        both = torch.tensor(both)
        inputs = {"input_ids": both[..., 0], "attention_mask": torch.tensor(real)}
        inputs["pixel_values"] = self.tensors["input.pixel_values"]
        return inputs | self.how | ({} if labels is None else {"labels": both[..., 1]})

    def expected_tokens(self):
        whole = self.tensors.get("out.vision_tokens")
        numbered = (self.tensors.get(f"out.vision_tokens.{i}") for i in range(99))
        parts = [x.flatten(0, 1) for x in numbered if x is not None]
        return parts if whole is None else list(whole)

    def image(self, number):
        count = len(self.expected_tokens()[number])
        token = self.model.config.image_token_id
        image = [token] * count
        if self.meta.get("mode") != "slice":
            return image
        comma, newline = self.meta["config"]["separator_token_ids"]
        rows, columns = self.meta["h_block"][0], self.meta["w_block"][0]
        words = []
        for _ in range(rows):
            for column in range(columns):
                words += ([comma] if column else []) + image
            words.append(newline)
        return words + ([*image, newline] if rows * columns > 1 else [])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("path", ALL)
@torch.no_grad()
def test_the_authors_numbers(path, attn):
    case = Case(path)
    case.model.set_attn_implementation(attn)
    inputs = case.inputs(case.meta["config"].get("tokenizer_padding_side", "right"))
    tokens = case.model.vision_tokens(inputs["pixel_values"], **case.how)
    for ours, theirs in zip(tokens, case.expected_tokens(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
    outputs = case.model(**inputs)
    expected = case.tensors["out.logits"]
    prepared = case.tensors.get("prep.attention_mask")
    theirs = expected[prepared.bool()] if prepared is not None else expected.flatten(0, 1)
    ours = outputs.logits[inputs["attention_mask"].bool()]
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
    if "out.loss" in case.tensors:
        torch.testing.assert_close(outputs.loss, case.tensors["out.loss"], atol=TOLERANCE, rtol=0)
    if "out.visible" in case.tensors:
        visible = case.model.visible(inputs["input_ids"], inputs["attention_mask"])
        assert torch.equal(visible, case.tensors["out.visible"].bool())


def all_cases(family):
    return [Case(param.values[0]) for param in cases(family)]


@pytest.mark.parametrize("path", ALL)
@torch.no_grad()
def test_answers_with_a_cache_are_those_of_whole_forwards(path):
    """Greedily, step by step; and the best of several beams is at least as likely."""
    case = Case(path)
    inputs = {name: x for name, x in case.inputs("left").items() if name != "labels"}
    asked = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    answers = case.model.generate(**inputs, **asked)[:, inputs["input_ids"].shape[1] :]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for step in range(4):
        whole = inputs | {"input_ids": ids, "attention_mask": mask}
        chosen = case.model(**whole).logits[:, -1].argmax(-1)
        assert torch.equal(answers[:, step], chosen)
        ids = torch.cat([ids, chosen[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(chosen[:, None])], 1)
    beams = case.model.generate(**inputs, **asked, num_beams=3)
    assert beams.shape == (len(ids), ids.shape[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_released_layout_is_mapped_in_full(family):
    """Every tensor of the authors' 7B class has a place, and no place is empty."""
    path = golden_cases.SHARED / "rivals" / f"full_layout_{family}_7b.json"
    path = path if path.exists() else COPIES / "rivals" / path.name
    layout = json.loads(path.read_text())
    integers = {name for name, dtype in layout["dtypes"].items() if "int" in str(dtype)}
    state = {
        name: torch.empty(shape, dtype=torch.int64 if name in integers else None, device="meta")
        for name, shape in layout["shapes"].items()
    }
    model = FAMILIES[family].from_original(state, layout["config"], layout["vision_config"])
    assert model.model.language_model.layers[31].mlp.up_proj.weight.shape == (11008, 4096)


def test_norms_have_the_authors_epsilons():
    compressor = all_cases("mqt")[0].model.model.compressor
    assert {compressor.ln_q.eps, compressor.ln_k.eps, compressor.ln_v.eps} == {1e-6}
    compressor = all_cases("tokenpacker")[0].model.model.compressor
    assert {compressor.ln_q_1.eps, compressor.ln_k_1.eps, compressor.ln_v_1.eps} == {1e-6}
    eva = next(case for case in all_cases("llama_vid") if case.model.config.has_cls).model.model
    assert eva.compressor.norm.eps == 1e-5
    assert eva.vision_tower.encoder.layers[0].layer_norm1.eps == 1e-6
    assert eva.compressor.qformer.embeddings.layernorm.eps == 1e-12
    assert eva.compressor.qformer.encoder.layer[0].output_query.LayerNorm.eps == 1e-12


@torch.no_grad()
def test_mqt_attends_alike_to_every_image_and_tokens_are_a_prefix():
    case = all_cases("mqt")[0]
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    few, many = (case.model.vision_tokens(pixels, num_visual_tokens=m) for m in (3, 40))
    torch.testing.assert_close(few, many[:, :3])
    for wrong in (0, 257):
        with pytest.raises(ValueError, match="num_visual_tokens of 1 to 256"):
            case.model.vision_tokens(pixels, num_visual_tokens=wrong)


def test_tokenpacker_chooses_the_authors_tiles():
    path = golden_cases.SHARED / "rivals" / "tokenpacker_tiles.json"
    path = path if path.exists() else COPIES / "rivals" / path.name
    for row in json.loads(path.read_text())["rows"]:
        grid = tokenpacker.tiles(row["height"], row["width"], row["patch_num"])
        assert grid == (row["h_block"], row["w_block"]), row


@torch.no_grad()
def test_text_after_the_voco_tokens_does_not_depend_on_what_stands_before_them():
    """Under every kernel: what the text reads of the image are the keys and values of the VoCo
    tokens alone.
    """
    case = next(c for c in all_cases("voco") if "out.voco_keys" in c.tensors)
    inputs = case.inputs("left")
    visible = case.model.visible(inputs["input_ids"])
    is_voco = inputs["input_ids"] == case.model.config.voco_token_id
    last = int(is_voco[0].nonzero().max())
    keys_seen = visible[0, last + 1 :].any(0).nonzero()[:, 0]
    assert int(keys_seen.min()) == int(is_voco[0].nonzero().min())


@torch.no_grad()
def test_what_cannot_be_read_is_one_line():
    case = all_cases("llama_vid")[0]
    inputs = case.inputs()
    with pytest.raises(ValueError, match="the question for each image, got none"):
        case.model.vision_tokens(inputs["pixel_values"])
    case = all_cases("tokenpacker")[0]
    inputs = case.inputs()
    with pytest.raises(ValueError, match="expected pixel_values for the image placeholders"):
        case.model(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="placeholders, as many as vision tokens"):
        case.model(input_ids=inputs["input_ids"][:, :-9], pixel_values=inputs["pixel_values"])
