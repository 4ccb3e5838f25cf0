"""CDPruner: patches that matter for the question and differ from each other, by a determinantal
point process.

    relevance    r_i = min-max over all views of  mean over text segments of -cos(image_i, text)
                 (+ 1e-6), in CLIP's common space. The minus is the authors': patches of CLIP that
                 matter for a text are less similar to it.
    kernel       L_ij = r_i cos(f_i, f_j) r_j, f the projected features
    choice       greedy maximum of det(L) over sets of T patches (incremental Cholesky)

A LLaVA checkpoint holds neither CLIP's text encoder nor its projections, so a CLIP is named whose
vision tower is the model's own:

    with CDPruner(64, clip="openai/clip-vit-large-patch14-336", text=question)(subject): ...

The min-max is over all views that are encoded in one call, so that an image's patches depend on its
other views; `normalise="view"` takes each view by itself.

Source: arXiv 2506.10967 (NeurIPS 2025); Theia-4869/CDPruner at 9541616.
"""

from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from probe.errors import ProbeError, one_of
from probe.reducers.cosine import Cosines
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.patch_selection import PatchSelection

LEAST = 1e-6  # added to what min-max divides: the least relevant patch is not impossible
LEAST_GAIN = 1e-12  # of a patch that those picked already span, up to rounding


@dataclass(frozen=True)
class CDPruner(PatchSelection):
    """`keep` tokens of each view that matter for `text`.

    clip: a folder or hub id of the CLIP model whose vision tower the model has.
    normalise: "batch", as the authors, or "view".

    Raises ProbeError where no CLIP or text is named, and for a CLIP of another width.
    """

    _: KW_ONLY
    clip: str
    text: str
    normalise: Literal["batch", "view"] = "batch"

    def __post_init__(self):
        super().__post_init__()
        one_of("CDPruner", "normalise", self.normalise, ("batch", "view"))
        for name in ("clip", "text"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                expected = f"{name}: the name of a CLIP model, and the question it compares with"
                raise ProbeError("CDPruner", expected=expected, got=repr(value))

    def choose(self, seen: EncoderOutput, tokens: int) -> Bool[Tensor, "view patch"]:
        model, tokenizer = _opened(self.clip)
        patches = seen.last_hidden[:, seen.first_patch :].float()
        width = model.visual_projection.in_features
        if patches.shape[-1] != width:
            raise ProbeError(
                "CDPruner",
                expected=f"clip with the model's own vision tower, of width {patches.shape[-1]}",
                got=f"{self.clip} of width {width}",
            )
        model = model.to(patches.device)
        normed = model.vision_model.post_layernorm(patches)
        image = model.visual_projection(normed)
        text = _text_embeddings(model, tokenizer, self.text)
        return _selected(seen.projected(), image, text, tokens, self.normalise == "view")


@torch.no_grad()
def select(
    features: Float[Tensor, "view patch width"],
    image_embeds: Float[Tensor, "view patch common"],
    text_embeds: Float[Tensor, "segment common"],
    tokens: int,
) -> Bool[Tensor, "view patch"]:
    """Which patches stay, `tokens` of each view."""
    return _selected(features, image_embeds, text_embeds, tokens, by_view=False)


@torch.no_grad()
def _selected(
    features: Float[Tensor, "view patch width"],
    image_embeds: Float[Tensor, "view patch common"],
    text_embeds: Float[Tensor, "segment common"],
    tokens: int,
    by_view: bool,
) -> Bool[Tensor, "view patch"]:
    image = normalize(image_embeds.float(), dim=-1)
    text = normalize(text_embeds.float(), dim=-1)
    unlike = -(image @ text.T).mean(-1)
    lowest = unlike.amin(1, keepdim=True) if by_view else unlike.amin()
    highest = unlike.amax(1, keepdim=True) if by_view else unlike.amax()
    spread = (highest - lowest).clamp_min(torch.finfo(torch.float32).tiny)
    relevance = (unlike - lowest + LEAST) / spread
    chosen = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device)
    for view, own_features in enumerate(features):
        picked = most_diverse(Cosines(own_features), relevance[view], tokens)
        chosen[view, picked] = True
    return chosen


def most_diverse(
    cosines: Cosines, relevance: Float[Tensor, " patch"], tokens: int
) -> Int[Tensor, " picked"]:
    """Greedily the `tokens` patches with the largest determinant of r_i cos_ij r_j, in the order of
    picking; of equal gains the first position.

    Each step adds one row of the Cholesky factor: with the rows c of those picked so far, patch i
    would multiply the determinant by  gain_i = L_ii - sum over rows of c_i^2.
    """
    patches = len(relevance)
    tokens = min(tokens, patches)
    gain = relevance.square()
    rows = torch.zeros(tokens, patches, device=relevance.device)
    picked = []
    for step in range(tokens):
        token = gain.argmax()
        picked.append(token)
        at = token[None]  # an index that stays on its device: nothing waits for a GPU
        kernel_row = cosines.row(token) * relevance * relevance.index_select(0, at)
        earlier = rows[:step]
        row = rows[step]
        explained = torch.mv(earlier.T, earlier.index_select(1, at)[:, 0])
        root = gain.index_select(0, at).clamp_min_(LEAST_GAIN).sqrt_()
        torch.div(kernel_row.sub_(explained), root, out=row)
        gain.addcmul_(row, row, value=-1)
        gain.index_fill_(0, at, -torch.inf)  # and so it stays: never picked again
    return torch.stack(picked)


@lru_cache(maxsize=2)
def _opened(clip: str) -> tuple[Any, Any]:
    """The CLIP model and its tokenizer. No network unless the name is a hub id."""
    try:
        model: Any = CLIPModel.from_pretrained(clip)
        return model.eval(), AutoTokenizer.from_pretrained(clip)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ProbeError(
            "CDPruner", expected="a folder or hub id of a CLIP model with its tokenizer", got=reason
        ) from error


@torch.no_grad()
def _text_embeddings(model: Any, tokenizer: Any, text: str) -> Float[Tensor, "segment common"]:
    """Of the text in segments that the text encoder can read."""
    longest = model.config.text_config.max_position_embeddings
    encoded = tokenizer(
        text,
        truncation=True,
        max_length=longest,
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    )
    device = model.text_projection.weight.device
    ids = encoded["input_ids"].to(device)
    mask = encoded["attention_mask"].to(device)
    pooled = model.text_model(input_ids=ids, attention_mask=mask).pooler_output
    return model.text_projection(pooled)
