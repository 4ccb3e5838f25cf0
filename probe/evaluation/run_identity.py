"""What makes two runs over a benchmark the same run: model, weights, kernel, prompt, plan, data.
Not how many samples.

    fingerprint(subject, task, {"verb": "drop", ...}, {"max_new_tokens": 32})
"""

from collections.abc import Mapping
from typing import Any

from probe.evaluation.task import BenchmarkTask
from probe.records.provenance import RunFingerprint, content_hash, hash_files
from probe.subject.subject import Subject


def fingerprint(
    subject: Subject, task: BenchmarkTask, plan: Mapping[str, Any], generation: Mapping[str, Any]
) -> RunFingerprint:
    """For `RunDirectory.open`: `plan` is what is done, `generation` the arguments of generate;
    plain values.
    """
    facts = subject.provenance()
    template = content_hash(str(subject.processor.chat_template), length=16)
    always = ("weights", "quantization", "aspect", "image_processor")
    setting = {name: facts[name] for name in always}
    setting |= {name: facts[name] for name in ("reducer", "adapters") if facts[name]}
    if facts["exif"] != "upright":  # the default, which older runs do not name
        setting["exif"] = facts["exif"]
    names = {"benchmark": task.benchmark.name, "split": task.benchmark.split}
    return RunFingerprint(
        model=facts["model"],
        revision=facts["revision"],
        dtype=facts["dtype"],
        kernel=facts["attention"],
        prompt=template,
        plan={**plan, **setting},
        data=names | hash_files(task.benchmark.files),
        generation=generation,
    )
