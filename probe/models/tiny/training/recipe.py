"""Every number of the training, in one place. The shipped weights are `Recipe()`.

A change is `dataclasses.replace(Recipe(), layers=12)`; the recipe is saved with the weights.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The data, size and training of a tiny LLaVA. Learning rates are those of AdamW.

    `steps` may be changed while a run is before its decay (the last `decay` steps): until then the
    learning rate does not depend on it, so the run equals one of the new recipe from the start.
    """

    seed: int = 0

    # The task
    things: tuple[int, int] = (1, 4)  # fewest and most things in an image
    alike: float = 0.4  # share of images with only one or two colours (and, independently, shapes)
    questions: int = 8  # asked about an image, in addition to the caption
    weights: tuple[tuple[str, float], ...] = (
        ("shape", 1.0),
        ("colour", 1.5),
        ("at", 1.0),
        ("where", 1.5),
        ("count", 1.5),
        ("exist", 1.5),
    )
    second_turn: float = 0.2  # share of questions asked as the second turn of a conversation
    later: int = 2750  # the step of stage 1 from which the mix has less of what is learned early
    later_captions: float = 0.4  # share of images with a caption from then on; before, all
    later_weights: tuple[tuple[str, float], ...] = (
        ("shape", 0.7),
        ("colour", 1.5),
        ("at", 0.7),
        ("where", 2.5),
        ("count", 2.5),
        ("exist", 1.5),
    )

    # The model
    hidden: int = 96
    intermediate: int = 256
    layers: int = 8
    heads: int = 4
    vision_hidden: int = 96
    vision_intermediate: int = 192
    vision_layers: int = 4
    vision_heads: int = 4
    initializer_range: float = 0.05

    # Stage 0: each patch learns the words for what it shows
    vision_steps: int = 2500
    vision_batch: int = 64
    vision_things: tuple[int, int] = (3, 9)
    vision_rate: float = 3e-3
    word_scale: float = 4.0  # sharpness of patch-word similarity; the loss's inverse temperature

    # Stage 1: the model learns to answer; the vision encoder keeps what it has
    steps: int = 6200
    batch: int = 16
    rate: float = 2e-3
    warmup: int = 100
    decay: int = 2000  # the last steps: the rate falls along a cosine
    last_rate: float = 0.02  # of `rate`, at the end
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 1.0
