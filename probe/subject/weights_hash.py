"""The hash of a model: of the values of its weights, as they are in memory now.

A name does not tell two trainings of one architecture apart, a commit does not tell a model that
was trained further from the one that was loaded, and a model in memory has neither. Records, runs,
tables and `verify` all show this hash.

    weights_hash(subject.model)            # "sha256:5d0c8f..."
    subject.provenance()["weights"]        # the same
"""

from torch import nn

from probe.hooks.offload import META, stored_parameter
from probe.hooks.packed_weights import unpacked
from probe.records.provenance import content_hash

VALUES = 64  # of each parameter, evenly spread: training changes them all


def weights_hash(model: nn.Module) -> str:
    """ "sha256:" and 16 digits: the same for equal weights, whatever their device and dtype.

    Of each parameter its name, its shape and `VALUES` of its values in float32 count, which takes
    milliseconds. Raises ProbeError where the values of a parameter are nowhere (device "meta").
    """
    content: list[str | bytes] = []
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    seen: set[nn.Parameter | str] = set()  # a tied weight counts once
    for module_name, module in model.named_modules():
        for own_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{own_name}" if module_name else own_name
            same = {parameter}
            if parameter.device == META:  # kept elsewhere, each name has a parameter of its own
                same = {tied.get(name, name)}
            if same & seen:
                continue
            seen |= {parameter, name, *same}
            flat = unpacked(stored_parameter(module, own_name)).reshape(-1)
            step = max(1, flat.numel() // VALUES)
            some = flat[::step][:VALUES].float().cpu().numpy()
            content += [f"{name} {tuple(parameter.shape)}", some.tobytes()]
    return f"sha256:{content_hash(content, length=16)}"
