"""The rivals in their authors' layout, small: weights of golden cases, with as many words as the
tests' tokenizer has.

    path = folder("mqt", tmp_path)          # config.json, weights, tokenizer, the tower's settings
    one = subject("mqt")                    # loaded; random words, so that it answers nonsense
"""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import golden_cases
import models
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

import probe

CASES = {  # name -> golden case, changes of its settings
    "mqt": ("mqt_m9_odd_gqa", {}),
    "mqt_few": ("mqt_m9_odd_gqa", {"num_visual_tokens": 9}),
    "tokenpacker": ("tokenpacker_s4_b2_gqa", {}),
    "tokenpacker_hd": ("tokenpacker_slice_2x2", {"patch_num": 9}),
    "voco": ("voco_2_b2_leftpad_labels", {}),
    "llama_vid": ("llama_vid_video_grid2_ragged_labels", {}),
    "llama_vid_mean": ("llama_vid_mean_b2", {}),
    "llama_vid_clip": ("llama_vid_clip_bert_proj", {}),
}
WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]"),
    *("what", "is", "the", "where", "how", "many", "red", "blue", "?", "there", "picture"),
)


def original(name):
    """The authors' settings, the tower's, and the tensors."""
    case, changes = CASES[name]
    path = golden_cases.COPIES / "rivals" / f"{case}.json"
    meta = json.loads(path.read_text())
    tensors = load_file(path.with_suffix(".safetensors"))
    weights = {
        key.removeprefix("weights."): x for key, x in tensors.items() if key.startswith("weights.")
    }
    return meta["config"] | changes, meta["vision_config"], weights


def folder(name, path, safetensors=True, shards=1):
    """Writes the authors' folder."""
    settings, vision, weights = original(name)
    tokenizer = models.llama_tokenizer()
    if name == "voco":
        tokenizer.add_tokens(["<voco>"], special_tokens=True)
    words = len(tokenizer)
    settings |= {"vocab_size": words, "mm_vision_tower": str(path / "tower")}
    settings |= {"max_position_embeddings": 2048, "model_type": "llava_llama"}
    settings |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    generator = torch.Generator().manual_seed(0)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        width = weights[key].shape[1]
        weights[key] = torch.randn(words, width, generator=generator) * 0.5
    if "voco_token_id" in settings:
        settings["voco_token_id"] = words - 1
    (path / "tower").mkdir(parents=True)
    (path / "tower" / "config.json").write_text(json.dumps(vision))
    (path / "config.json").write_text(json.dumps(settings))
    tokenizer.save_pretrained(path)
    if "bert_config" in settings:
        bert_tokenizer().save_pretrained(path / "bert-base-uncased")
    write_weights(weights, path, safetensors, shards)
    return path


def write_weights(weights, path, safetensors, shards):
    names = sorted(weights)
    parts = [names[i::shards] for i in range(shards)] if shards > 1 else [names]
    ending = "safetensors" if safetensors else "bin"
    stem = "model" if safetensors else "pytorch_model"
    weight_map = {}
    for number, part in enumerate(parts, 1):
        shard = f"{stem}-{number:05}-of-{shards:05}.{ending}"
        file = f"{stem}.{ending}" if shards == 1 else shard
        tensors = {name: weights[name].contiguous() for name in part}
        if safetensors:
            save_file(tensors, path / file)
        else:
            torch.save(tensors, path / file)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = path / f"{stem}.{ending}.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))


def bert_tokenizer():
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[DEC]",
    )


@cache
def subject(name):
    """A loaded rival. Not to be changed by a test."""
    with TemporaryDirectory() as path:
        return probe.load(folder(name, Path(path)))
