"""Where the golden numbers of the authors' code lie, and LLaVA-Mini's cases as this model takes
them.

The cases under tests/golden are small copies; where the project's shared folder is present (or
PROBE_GOLDEN names one), all of its cases are run.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

from probe.models.llava_mini import from_original

ROOT = Path(__file__).parents[1]
COPIES = Path(__file__).parent / "golden"
SHARED = Path(os.environ.get("PROBE_GOLDEN", ROOT.parent / "shared" / "golden"))


class Case:
    """A golden file, and its inputs as this model takes them."""

    def __init__(self, path: Path):
        self.meta = json.loads(path.read_text())
        self.tensors = load_file(path.with_suffix(".safetensors"))
        weights = {
            name.removeprefix("weights."): t
            for name, t in self.tensors.items()
            if name.startswith("weights.")
        }
        self.model = from_original(weights, self.meta["config"], self.meta["vision_config"])
        self.inputs = self.expand(self.tensors["input.input_ids"])

    def image(self, row: int):
        """[views, 3, H, W], or a video [frames, views, 3, H, W], or None."""
        images = self.tensors.get("input.images")
        return self.tensors.get(f"input.images.{row}") if images is None else images[row]

    def expand(self, ids) -> dict:
        """-200 becomes as many placeholders as the LLM gets tokens; rows are padded (or cut) to the
        LLM's length.
        """
        mask = self.tensors.get("input.attention_mask", torch.ones_like(ids)).bool()
        labels = self.tensors.get("input.labels")
        tokens, token = (
            self.meta["config"]["compressor_size"] ** 2,
            self.model.config.image_token_id,
        )
        rows, images, videos = [], [], []
        for row in range(len(ids)):
            visual, out = self.image(row), []
            for i in mask[row].nonzero().flatten().tolist():
                if ids[row, i] != -200:
                    out.append(
                        (ids[row, i].item(), -100 if labels is None else labels[row, i].item())
                    )
                    continue
                (images if visual.ndim == 4 else videos).append(visual)
                out += [(token, -100)] * (tokens * (1 if visual.ndim == 4 else len(visual)))
            rows.append(out[: self.meta["config"]["tokenizer_model_max_length"]])
        length = max(map(len, rows))
        left = self.meta["config"]["tokenizer_padding_side"] == "left"
        pad = [[(0, -100)] * (length - len(row)) for row in rows]
        both = torch.tensor(
            [p + row if left else row + p for p, row in zip(pad, rows, strict=True)]
        )
        real = torch.tensor(
            [
                [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p)
                for p, r in zip(pad, rows, strict=True)
            ]
        )
        inputs = {"input_ids": both[..., 0], "attention_mask": real}
        inputs |= {"pixel_values": torch.stack(images)} if images else {}
        inputs |= {"pixel_values_videos": torch.stack(videos)} if videos else {}
        return inputs | ({"labels": both[..., 1]} if labels is not None else {})

    def outputs(self):
        return {name for name in self.tensors if name.startswith(("out.", "prep."))}

    def real(self, x):
        """Without padded columns, whose numbers mean nothing."""
        return x[self.inputs["attention_mask"].bool()]
