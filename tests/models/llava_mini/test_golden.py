"""The authors' own numbers: merged embeddings, hidden states, logits, loss, gradients, generated
ids and intermediates.

The cases under tests/golden/llava_mini are small copies; where the project's shared folder is
present, all of its cases are run. Left padding is the one thing not imitated: the authors' code
mixes up the words there.
"""

import pytest
import torch
from golden_cases import COPIES, SHARED, Case
from safetensors.torch import load_file

from probe.models.llava_mini.compressor import LlavaMiniCompressor, sincos_table
from probe.models.llava_mini.original_format import renamed

NOT_CASES = {"posembed", "preproc", "prompts", "full_layout_llama31_8b", "index"}
TOLERANCE = 1e-4  # of numbers of order 10, in float32


def cases():
    paths = {
        path.stem: path
        for folder in (SHARED / "llava_mini", COPIES / "llava_mini")
        if folder.exists()
        for path in sorted(folder.glob("*.json"))
    }
    return [
        pytest.param(path, id=name) for name, path in sorted(paths.items()) if name not in NOT_CASES
    ]


@pytest.fixture(scope="module", params=cases())
def case(request):
    return Case(request.param)


def close(ours, theirs, tolerance=TOLERANCE):
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs().max().item()
    assert error <= tolerance, error


def imitated(case):
    if case.meta["case"].startswith("oddity"):
        pytest.skip("the authors' code mixes up the words of left-padded rows")


def test_logits_hidden_states_and_loss(case):
    imitated(case)
    with torch.no_grad():
        out = case.model(**case.inputs, output_hidden_states=True)
    compared = case.outputs()
    for name, ours in {
        **{f"out.hidden_states.{i}": h for i, h in enumerate(out.hidden_states)},
        "prep.inputs_embeds": out.hidden_states[0],
        "out.logits": out.logits,
    }.items():
        if name in compared:
            close(case.real(ours), case.real(case.tensors[name]))
    if "labels" in case.inputs:
        assert out.loss.item() == pytest.approx(case.meta["loss"], abs=TOLERANCE)
        unlabelled = {name: value for name, value in case.inputs.items() if name != "labels"}
        with torch.no_grad():
            out = case.model(**unlabelled, output_hidden_states=True)
        close(case.real(out.logits), case.real(case.tensors["out_nolabels.logits"]))
        close(
            case.real(out.hidden_states[0]), case.real(case.tensors["out_nolabels.inputs_embeds"])
        )


def test_generated_ids(case):
    imitated(case)
    if not (expected := case.meta.get("generated_ids")):
        pytest.skip("the case generates nothing")
    inputs = {name: value for name, value in case.inputs.items() if name != "labels"}
    length = inputs["input_ids"].shape[1]
    out = case.model.generate(
        **inputs, max_new_tokens=len(expected[0]), do_sample=False, pad_token_id=0
    )
    full = inputs["attention_mask"].all(
        1
    )  # of a padded row the authors read the first word at a column of padding
    assert out[full][:, length:].tolist() == [
        ids for ids, whole in zip(expected, full, strict=True) if whole
    ]


def test_what_happens_on_the_way(case):
    """Encoder, compressor, projector and every pre-fusion layer, on the path that computes all
    rows.
    """
    imitated(case)
    calls = [f"enc{k}." for k in range(case.meta.get("encode_calls", 0))]
    if not calls or "enc0.prefusion_key_mask" not in case.tensors:
        pytest.skip("nothing is encoded, or nothing of it was stored")
    model, seen = case.model.model, {}

    def keep(name):
        return lambda module, args, out: seen.setdefault(name, []).append(out)

    hooks = [
        layer.register_forward_hook(keep(f"prefusion_layer{i}_output"))
        for i, layer in enumerate(model.prefusion.layers)
    ]
    hooks += [
        model.compressor.register_forward_hook(keep("compressed_pre_proj")),
        model.compressor.register_forward_pre_hook(
            lambda module, args: keep("compressor_input")(module, (), args[0])
        ),
    ]
    case.model.gradient_checkpointing_enable()
    case.model.train()
    try:
        with torch.no_grad():
            case.model(**case.inputs)
    finally:
        case.model.eval()
        case.model.gradient_checkpointing_disable()
        for hook in hooks:
            hook.remove()

    def theirs(name):
        return torch.cat([case.tensors[call + name] for call in calls])

    for name in ("compressor_input", "compressed_pre_proj"):
        close(torch.cat(seen[name]), theirs(name))
    visible, ids = theirs("prefusion_key_mask").bool(), case.tensors["input.input_ids"]
    real = case.tensors.get("input.attention_mask", torch.ones_like(ids)).bool()
    rows = [0] * len(visible) if len(ids) == 1 else list(range(len(visible)))
    if case.meta["images_form"] == "list":
        images = [case.image(row) for row in range(len(ids))]
        rows = [
            row
            for row, image in enumerate(images)
            for _ in range(1 if image.ndim == 4 else len(image))
        ]
    for i in range(len(model.prefusion.layers)):
        ours, name = torch.cat(seen[f"prefusion_layer{i}_output"]), f"prefusion_layer{i}_output"
        for frame, row in enumerate(rows):
            columns = visible[frame].clone()
            columns[-ids.shape[1] :] &= real[
                row
            ]  # a pad token that is not 0 is not hidden there, but comes last
            packed = ids[row][real[row] & (ids[row] != -200)]
            shown = visible[frame][-ids.shape[1] :][real[row] & (ids[row] != -200)]
            front = visible.shape[1] - ids.shape[1]
            mine = ours[frame, : front + len(packed)]  # shorter, where the prompt is cut
            kept = torch.cat([shown.new_ones(front), shown])[: len(mine)]
            close(mine[kept], theirs(name)[frame][columns][: kept.sum()])


def test_position_tables():
    """The sine-cosine table, and its bicubic copies for the keys, up and down."""
    path = next(
        folder / "posembed.safetensors"
        for folder in (SHARED / "llava_mini", COPIES / "llava_mini")
        if folder.exists()
    )
    for name, table in load_file(path).items():
        kind, dim, size, *keys = name.split(".")
        dim, size = int(dim[1:]), int(size[1:])
        if kind == "sincos":
            close(sincos_table(dim, size), table, 1e-6)
        elif kind == "abs_pos":
            compressor = LlavaMiniCompressor(None, dim, size, 8)
            compressor.pos_embed.data.copy_(sincos_table(dim, size))
            close(compressor.positions(int(keys[0][2:])).detach(), table, 1e-5)


def test_gradients(case):
    """All norms equal the authors', but words and videos get their gradients here, which the
    authors cut off.
    """
    if "grad_norms" not in case.meta:
        pytest.skip("no gradients stored")
    case.model(**case.inputs).loss.backward()
    parameters = dict(case.model.named_parameters())
    for name, expected in case.meta["grad_norms"].items():
        if "vision_tower" in name:
            continue
        ours = [parameters[n].grad for n, _ in renamed(name, case.tensors[f"weights.{name}"])]
        norm = sum(grad.square().sum().item() for grad in ours) ** 0.5
        assert (
            norm == pytest.approx(expected, rel=1e-4, abs=1e-5)
            if expected is not None
            else norm > 0
        ), name
    case.model.zero_grad()


def test_attention_of_compressor_and_prefusion(case):
    if "attn.compressor_per_head" not in case.tensors:
        pytest.skip("no attention stored")
    model, seen = case.model.model, {}
    case.model.set_attn_implementation("eager")
    modules = {
        "compressor_per_head": model.compressor.attention,
        **{
            f"prefusion_layer{i}_attn": layer.self_attn
            for i, layer in enumerate(model.prefusion.layers)
        },
        **{f"llm_layer{i}": layer.self_attn for i, layer in enumerate(model.language_model.layers)},
    }
    hooks = [
        module.register_forward_hook(
            lambda m, a, out, name=name: seen.setdefault(name, []).append(out[1])
        )
        for name, module in modules.items()
    ]
    with torch.no_grad():
        case.model(**case.inputs)
    case.model.set_attn_implementation("sdpa")
    for hook in hooks:
        hook.remove()
    ids = case.tensors["input.input_ids"][0]
    for name, weights in seen.items():
        theirs = case.tensors[f"attn.{name}"]
        if (
            "prefusion" in name
        ):  # ours: rows and keys of compressed tokens and words, without the placeholder's column
            front = theirs.shape[-1] - len(ids)
            columns = [*range(front), *(front + i for i in range(len(ids)) if ids[i] != -200)]
            theirs = theirs[:, :, columns][..., columns][:, :, 16:]
        close(weights[-1], theirs, 1e-5)
