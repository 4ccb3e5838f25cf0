"""Reducers: fewer vision tokens in the LLM, as their papers' code does it, on any LLaVA, undone on
exit.

    with probe.reduced(subject, VisionZip(54, 10), FastV(2, 0.5)): ...
    with VisionZip(54, 10)(subject): ...
    reduction = encode(vision_tower, pixel_values, VisionZip(54, 10))

| file | what |
|---|---|
| `context.py` | `reduced`; `Reducer`, the base of all methods |
| `reduction.py` | `Reduction`, `ReductionStage`: what is left |
| **of the encoder's output** | |
| `encoder_reducer.py` | `encode`: one encoder, some views, one reducer |
| `encoder_output.py` | what a reducer is given: features, queries and keys of two layers |
| `image_features_hook.py` | between encoder and projector of a model |
| `projector_checks.py` | projectors that merge or pool features are refused |
| `chosen_tokens.py` | what is left of the images of one call |
| `single_images.py` | a call of a model for each image by itself |
| `tile_order.py` | the order of an image's tokens |
| `visionzip.py` | VisionZip: dominant tokens by attention, the rest merged by keys |
| `prumerge.py` | PruMerge, PruMerge+: outliers of the class token's attention |
| `patch_selection.py` | `KeptTokens`, `PatchSelection`: the bases of methods that choose patches |
| `vispruner.py` | VisPruner: by attention, and so that no two are alike |
| `cdpruner.py` | CDPruner: relevant to the question and different from each other |
| `holov.py` | HoloV: a quota for every part of the image |
| `vscan.py` | VScan: spread by a shallow layer, more by a deep one, the others merged |
| `hiprune.py` | HiPrune: anchors of a middle layer, their neighbours, a deep layer's best |
| `divprune.py` | DivPrune: as different from each other as can be |
| `cosine.py` | cosines of tokens, in bounded memory |
| `downsample.py` | DownSample: a smaller image, the control |
| `baselines.py` | Random, Grid, DominantOnly, ContextualOnly |
| **inside the LLM** | |
| `llm_reducer.py` | `LLMReducer`, `PreviousLayerReducer`: their base classes |
| `fastv.py` | FastV: before one layer, by the last token's attention |
| `pyramiddrop.py` | PyramidDrop: in stages, by the next layer's queries and keys |
| `sparsevlm.py` | SparseVLM: by the words that are like the image; some tokens are merged |
| `dart.py` | DART: tokens that repeat a few pivots leave |
| `dpc_knn.py` | the clustering that SparseVLM merges by |
| **both** | |
| `token_budget.py` | how many tokens a method of `METHODS` may leave in a model |
| `projector_tuning.py` | `tune`: only the projector learns, under a reducer |

A new method is one file with a frozen dataclass: a subclass of `PatchSelection` with
`choose(seen, tokens)`, one with `reduce(seen) -> Reduction`, or a subclass of `LLMReducer`; and one
line in `METHODS`.

Mini-Gemini has no class in transformers, so `reduced` does not support it; its low-resolution CLIP
is an encoder like any other for `encode`. Models that average the frames of a video
(LLaVA-OneVision, LLaVA-NeXT-Video) are refused for videos.
"""

from collections.abc import Callable

from probe.reducers.baselines import ContextualOnly, DominantOnly, Grid, Random
from probe.reducers.cdpruner import CDPruner
from probe.reducers.context import Reducer, reduced
from probe.reducers.dart import DART
from probe.reducers.divprune import DivPrune
from probe.reducers.downsample import DownSample
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.encoder_reducer import encode
from probe.reducers.fastv import FastV
from probe.reducers.hiprune import HiPrune
from probe.reducers.holov import HoloV
from probe.reducers.llm_reducer import LLMReducer, PreviousLayerReducer
from probe.reducers.patch_selection import PatchSelection
from probe.reducers.prumerge import PruMerge
from probe.reducers.pyramiddrop import PyramidDrop
from probe.reducers.reduction import Reduction, ReductionStage
from probe.reducers.sparsevlm import SparseVLM
from probe.reducers.token_budget import TokenBudget
from probe.reducers.visionzip import VisionZip
from probe.reducers.vispruner import VisPruner
from probe.reducers.vscan import VScan

__all__ = [
    "METHODS",
    "VScan",
    "VisPruner",
    "PatchSelection",
    "HoloV",
    "HiPrune",
    "DownSample",
    "DivPrune",
    "DART",
    "CDPruner",
    "ContextualOnly",
    "DominantOnly",
    "EncoderOutput",
    "FastV",
    "Grid",
    "LLMReducer",
    "PreviousLayerReducer",
    "PruMerge",
    "PyramidDrop",
    "Random",
    "Reducer",
    "Reduction",
    "ReductionStage",
    "SparseVLM",
    "TokenBudget",
    "VisionZip",
    "encode",
    "reduced",
]


# Name on the command line -> label in figures, and the method that leaves a budget
METHODS: dict[str, tuple[str, Callable[[TokenBudget], Reducer]]] = {
    "visionzip": ("VisionZip", lambda budget: VisionZip.of_tokens(budget.tokens, budget.counted)),
    "prumerge": ("PruMerge", lambda budget: PruMerge(budget.share_of_centres)),
    "random": ("random", lambda budget: Random(budget.tokens, budget=budget.counted)),
    "grid": ("grid", lambda budget: Grid(budget.tokens, budget=budget.counted)),
    "fastv": ("FastV", lambda budget: FastV(min(2, budget.depth - 1), budget.share)),
    "pyramiddrop": ("PyramidDrop", lambda budget: PyramidDrop.at(budget.share, budget.depth)),
    "sparsevlm": ("SparseVLM", lambda budget: SparseVLM.at(budget.share)),
    "vispruner": ("VisPruner", lambda budget: VisPruner(budget.tokens, budget=budget.counted)),
    "holov": ("HoloV", lambda budget: HoloV(budget.tokens, budget=budget.counted)),
    "vscan": ("VScan", lambda budget: VScan(budget.tokens, budget=budget.counted)),
    "hiprune": ("HiPrune", lambda budget: HiPrune(budget.tokens, budget=budget.counted)),
    "divprune": ("DivPrune", lambda budget: DivPrune(budget.tokens, budget=budget.counted)),
    "dart": ("DART", lambda budget: DART(min(2, budget.depth - 1), budget.share)),
    "downsample": (
        "down-sampling",
        lambda budget: DownSample(budget.tokens, budget=budget.counted),
    ),
    "dominant": (
        "dominant only",
        lambda budget: DominantOnly(budget.tokens, budget=budget.counted),
    ),
    "contextual": (
        "contextual only",
        lambda budget: ContextualOnly(budget.tokens, budget=budget.counted),
    ),
    "prumerge+": (
        "PruMerge+",
        lambda budget: PruMerge(budget.share_of_centres / 2, plus=True),
    ),
    "sparsevlm-recycling": (
        "SparseVLM, recycling",
        lambda budget: SparseVLM.at(budget.share, recycle=True),
    ),
}
