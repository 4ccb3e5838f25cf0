"""Tiny trained models on drawn images: small enough to ship, real enough to be probed.

`tiny-llava` is a `transformers.LlavaForConditionalGeneration` of 1.2 million parameters, trained
from a seed on images of coloured shapes and questions about them. It loads offline in a second on
any laptop, so every example, test and notebook runs on a model that has really learned to look.
`tiny-llava-mini` is made from it: a LLaVA-Mini that gives the language model ONE vision token per
image.

    scenes       what an image is                       [numpy, PIL]
    questions    what is asked about it, and the answer  [numpy, PIL]
    processor    tokenizer, chat template, image processor
    weights      the folder that is shipped
    training/    how the shipped weights were made
        recipe, mini_recipe      every number of the training
        architecture             the model, from the recipe
        packed_rows              many questions about one image in one row, exactly
        patch_pretraining        patches learn the words for what they show
        stages                   what is learned from what, at which rate
        train, train_mini        the runs: progress, checkpoints, resume
        evaluate                 exact match on frozen images, by kind and by distractors

>>> sorted(FOLDERS)
['tiny-llava', 'tiny-llava-mini']
>>> (FOLDERS["tiny-llava-mini"] / "config.json").exists()
True
"""

from pathlib import Path

FOLDERS: dict[str, Path] = {
    name: Path(__file__).parent / name for name in ("tiny-llava", "tiny-llava-mini")
}
