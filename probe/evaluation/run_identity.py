"""What makes two runs over a benchmark the same run: model, weights, kernel, prompt, plan, data.
Not how many samples.

A name and a revision don't tell checkpoints of one architecture apart when a folder was trained
further in place, or for a model in memory. A few values of each parameter do, at the cost of
milliseconds.

    fingerprint(subject, task, {"verb": "drop", ...}, {"max_new_tokens": 32})
    weights_digest(subject.model)                         # "5d0c8f..."
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from probe.evaluation.task import BenchmarkTask
from probe.hooks.offload import stored_parameter
from probe.records.provenance import RunFingerprint, content_hash, hash_files
from probe.subject.subject import Subject

VALUES = 64  # of each parameter, evenly spread


def fingerprint(
    subject: Subject, task: BenchmarkTask, plan: Mapping[str, Any], generation: Mapping[str, Any]
) -> RunFingerprint:
    """For `RunDirectory.open`: `plan` is what is done, `generation` the arguments of generate;
    plain values.
    """
    facts = subject.provenance()
    template = content_hash(str(subject.processor.chat_template), length=16)
    setting = {name: facts[name] for name in ("quantization", "aspect", "image_processor")}
    setting["weights"] = weights_digest(subject.model)
    setting |= {name: facts[name] for name in ("reducer", "adapters") if facts[name]}
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


def weights_digest(model: nn.Module) -> str:
    """The same for equal weights, whatever the device."""
    content: list[str | bytes] = []
    for name, parameter in model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        flat = stored_parameter(model.get_submodule(owner), own_name).reshape(-1)
        some = flat[:: max(1, flat.numel() // VALUES)][:VALUES].float().cpu().numpy()
        content += [f"{name} {tuple(parameter.shape)} {parameter.dtype}", some.tobytes()]
    return content_hash(content, length=16)
