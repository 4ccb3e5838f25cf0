"""The same for SparseVLM (words of the question rate, not of the answer) and PyramidDrop, also in a batch."""

from common import verdict
import models
import probe
from probe.subject.inputs import collate
from probe.reducers import PyramidDrop, SparseVLM

model, processor = models.llava15(layers=6, side=48)
subject = probe.load(model, processor=processor)
differ = {}
for reducer in (
    PyramidDrop(layers=(1, 3), keeps=(0.5, 0.2)),
    SparseVLM(192),
    SparseVLM(192, recycle=True),
):
    count = 0
    for seed in range(6):
        with probe.reduced(subject, reducer):
            inputs = collate(
                [
                    subject.encode(models.picture(seed), "what is in the picture?"),
                    subject.encode(models.picture(9), "where?"),
                ]
            )
            cached = [x.tolist() for x in subject.generate_ids(inputs, 8)]
            try:
                count += [
                    x.tolist() for x in subject.generate_ids(inputs, 8, use_cache=False)
                ] != cached
            except Exception as error:
                count += "ProbeError" not in type(error).__name__
    differ[repr(reducer)[:40]] = f"{count} of 6"
verdict(all(v.startswith("0") for v in differ.values()), answers_that_differ=differ)
