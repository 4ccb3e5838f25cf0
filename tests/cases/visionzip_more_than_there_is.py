"""VisionZip with a budget per view above what a view has (540 + 100 of LLaVA-NeXT's paper are for all five views): it must not make more tokens than the model had without a word."""

from common import verdict
import warnings
import models
import probe
from probe.reducers import VisionZip

model, processor = models.llava_next_vicuna()
subject = probe.load(model, processor=processor)
image = models.picture(0, 70, 50)
before = int(subject.encode(image, "what is it?").types.vision.sum())
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    try:
        with probe.reduced(
            subject, VisionZip(dominant=60, contextual=11)
        ):  # 71 for the picture's ~70 tokens; a view has 16
            after = int(subject.encode(image, "what is it?").types.vision.sum())
    except Exception as error:
        verdict("ProbeError" in type(error).__name__, refused=error)
told = [str(w.message) for w in told if "VisionZip" in str(w.message)]
verdict(
    after <= before or bool(told), vision_tokens_without=before, with_reducer=after, warned=told
)
