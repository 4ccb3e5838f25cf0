"""Tiny trained models on drawn images: small enough to ship, real enough to be probed.

`tiny-llava` is a `transformers.LlavaForConditionalGeneration` of 1.2 million parameters, trained
from a seed on images of coloured shapes and questions about them. It loads offline in a second on
any laptop, so every example, test and notebook runs on a model that has really learned to look.
`tiny-llava-mini` is made of it: a LLaVA-Mini, which reads each image before the language model does
and leaves ONE vision token of it.

    drawing      what an image is                       [numpy, PIL]
    questions    what is asked about it, and the answer  [numpy, PIL]
    language     tokenizer, chat template, processor
    recipe       every number of the training
    architecture the model, from the recipe
    packing      many questions about one image in one row, exactly
    pretraining  patches learn the words for what they show
    stages       what is learned from what, at which rate
    training     the run: progress, checkpoints, resume
    weights      the folder that is shipped
    evaluation   exact match on frozen images, by kind and by distractors
    mini         tiny-llava-mini before its training: recipe, variants
    packed_fusion  LLaVA-Mini on packed rows, exactly
    mini_training  its run, on transformers' Trainer

>>> sorted(FOLDERS)
['tiny-llava', 'tiny-llava-mini']
>>> (FOLDERS["tiny-llava-mini"] / "config.json").exists()
True
"""

from pathlib import Path

FOLDERS: dict[str, Path] = {
    name: Path(__file__).parent / name for name in ("tiny-llava", "tiny-llava-mini")
}
