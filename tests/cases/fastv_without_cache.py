"""What FastV keeps is chosen by the prompt's last token: decoding with use_cache=False must answer as with the cache, or be refused."""

from common import verdict
import models
import probe
from probe.reducers import FastV

model, processor = models.llava15(layers=6, side=48)
subject = probe.load(model, processor=processor)
differ = 0
for seed in range(6):
    with probe.reduced(subject, FastV(layer=2, keep=0.3)) as stages:
        inputs = subject.encode(models.picture(seed), "what is in the picture?")
        cached = subject.generate_ids(inputs, 8)[0].tolist()
        by_prompt = stages[0].kept.nonzero()[:, 1].tolist()
        try:
            plain = subject.generate_ids(inputs, 8, use_cache=False)[0].tolist()
        except Exception as error:
            verdict("ProbeError" in type(error).__name__, refused=error)
        last = stages[0].kept.nonzero()[:, 1].tolist()
    differ += plain != cached
verdict(
    differ == 0,
    answers_that_differ=f"{differ} of 6",
    kept_by_the_prompt=by_prompt,
    kept_in_the_last_step=last,
)
