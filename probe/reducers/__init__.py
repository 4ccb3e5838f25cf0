"""Reducers: fewer vision tokens in the LLM, exactly as their papers' code does it, undoable, on any
LLaVA.

reducing      `probe.reduced`: reducers at work in a model, and off again
encoding      `encode`: one encoder, some views, one reducer -> what is left
reduction     what is left, what it stands for, what went into it
seen          what a reducer is shown of the encoder: features, queries and keys of two layers
vision_side   between encoder and projector of a model      packing   the order of an image's tokens

tuning        `tune`: the projector alone learns under a reducer, on transformers' Trainer

before the projector
  visionzip   VisionZip: dominant tokens by attention, the rest merged by keys
  prumerge    PruMerge, PruMerge+: outliers of the class token's attention and their like
  controls    Random, Grid, DominantOnly, ContextualOnly

inside the LLM, by the question
  fastv        FastV: before one layer, by the last token's attention
  pyramiddrop  PyramidDrop: in stages, by the next layer's queries and keys
  sparsevlm    SparseVLM: by the words that look like the image; what leaves may be merged
  ranking      what these share              clustering   DPC-kNN

Mini-Gemini has no class in transformers, so `reduced` can't be put to work in it; its
low-resolution CLIP is an encoder like any other for `encode`. What LLaVA-OneVision and
LLaVA-NeXT-Video average of frames is refused.

A method of your own is a frozen dataclass with `reduce(seen) -> Reduction`.
"""

from probe.reducers.baselines import ContextualOnly, DominantOnly, Grid, Random
from probe.reducers.context import reduced
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.encoder_reducer import encode
from probe.reducers.fastv import FastV
from probe.reducers.prumerge import PruMerge
from probe.reducers.pyramiddrop import PyramidDrop
from probe.reducers.reduction import Reduction
from probe.reducers.sparsevlm import SparseVLM
from probe.reducers.visionzip import VisionZip

__all__ = [
    "reduced",
    "encode",
    "Reduction",
    "EncoderOutput",
    "VisionZip",
    "PruMerge",
    "Random",
    "Grid",
    "DominantOnly",
    "ContextualOnly",
    "FastV",
    "PyramidDrop",
    "SparseVLM",
]
