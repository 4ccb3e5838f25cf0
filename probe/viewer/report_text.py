"""The words of a report: what a figure shows, how a result was made, a paragraph on methods."""

from collections.abc import Mapping
from typing import Any

import xarray as xr

# What a figure shows, by the end of its name ("llm-mass" is "mass" of the stack "llm").
DEFINITIONS = {
    "mass": "Mean attention that a query of type A gives to all keys of type B, over the queries "
    "that can see such a key; heads averaged (Eq. 4 of arXiv 2501.03895).",
    "share": "The same over the queries that can see the image: the shares of one A add up to 1.",
    "lift": "Share of B divided by B's part of the visible keys: 1 is an even spread.",
    "contribution": "Mean norm of what keys of type B add to a query's residual stream, in each "
    "head before the sum over heads: how much arrives, not how much weight it gets.",
    "entropy": "Spread of attention within B in nats: left after averaging heads (the paper's "
    "Appendix A), right within each head.",
    "entropy-ratio": "The same, each query's entropy divided by ln(keys of B that it sees): 1 is "
    "an even spread.",
    "heads": "Attention of one pair A → B in each head of each layer.",
    "heatmaps": "Attention that each patch receives from queries of one type, heads averaged.",
    "compression": "Attention of the compressor's queries to each patch.",
    "overview": "The other figures of this record, small.",
    "dropped": "Score where vision tokens are dropped in a window of layers; a point a window, "
    "beside the untouched model and two floors: no vision at all, another image.",
    "readings": "The same for every mode of dropping.",
    "swaps": "How often the right answer is given, and how often the other image's, where text "
    "reads another image in a window of layers.",
    "depth": "Score where vision is dropped from a layer to the last, and from the first to a "
    "layer.",
    "reduce": "Score against vision tokens, and against measured time to the first token, a line a "
    "family of methods.",
    "attribution": "What each region of the image and each word adds to the answer's "
    "log-probability; maps of flow methods have units of their own.",
    "agreement": "Attention beside attribution on one image, against a floor of misplaced maps.",
    "lens": "What the vision tokens predict after each layer, by the model's own output layer.",
    "flops": "Counted operations of reading one prompt, by component.",
    "latency": "Measured time from pixels to the first token.",
    **{
        f"{name}-{against}": f"Counted {what} of a prompt against {words}."
        for name, what in (("flops", "operations"), ("memory", "memory"))
        for against, words in (
            ("frames", "the frames of a video"),
            ("height", "the height of its image"),
            ("vision_tokens", "its vision tokens"),
        )
    },
    "memory": "Counted memory of a prompt: the LLM's cache, with the weights or without.",
    "patches": "Share of the gold answer's log-probability that patched activations bring back "
    "(denoise) or take away (noise), by layer and group of positions.",
    "dropped_parts": "Score where vision is dropped in one part of the model or another.",
    "bench": "Score of the methods beside the controls that keep as many tokens.",
}
# ... where a verb's figure has the name of another one
DEFINITIONS_OF_VERB = {
    "heads": {
        "heads": "Log-probability of the gold answer, untouched less without the head: right of 0 "
        "the answer needs it. Blue: what of it depends on the image.",
    },
    "reliability": {
        outcome: "Area under the ROC curve with which each head's attention tells samples apart: "
        f"{event}. 0.5 tells nothing; the line is the answer's own log-probability."
        for outcome, event in (
            ("correct", "right answers from wrong ones"),
            ("hallucination", "answers that name what is not there from those that say no"),
        )
    }
    | {
        "confident": "Area under the ROC curve with which each head's attention tells answers "
        "given with more confidence than the median from the others. 0.5 tells nothing.",
    },
}
FLOWS = {
    "rollout": "attention rollout",
    "gradient_rollout": "rollout of attention weighted by its gradient",
    "grad_cam": "Grad-CAM on the vision tokens",
    "contribution": "the norm of what the region's tokens add to the rows that predict the answer",
}
LABELS = {
    "model": "model",
    "revision": "revision",
    "weights": "weights (hash of their values)",
    "dtype": "dtype",
    "quantization": "quantization",
    "attention": "attention kernel",
    "aspect": "how images are fitted to the encoder",
    "types": "token types",
    "rows": "rows measured",
    "intervention": "intervention",
    "reducer": "reducer",
    "generate": "decoding",
    "prefix": "prefix",
    "passes": "forwards a sample",
    "benchmark": "benchmark",
    "split": "split",
    "questions": "questions",
    "probe_version": "probe",
    "torch_version": "torch",
    "transformers_version": "transformers",
}
MODES = (
    "mask hides vision keys from text queries; mask_frozen also lets vision rows skip these "
    "layers; remove takes vision rows out of these layers; zero keeps the softmax and counts "
    "vision values as zero; swap lets text read another image's rows"
)


def definition_of(figure: str, verb: str = "", method: str = "") -> str:
    """What a figure of this name shows, of this verb's results (and of an attribution by this
    method); "" for a name that is not known.

    >>> definition_of("vision-lift")
    "Share of B divided by B's part of the visible keys: 1 is an even spread."
    """
    if figure == "attribution" and method in FLOWS:
        return f"Score of each region of the image: {FLOWS[method]}."
    if figure in DEFINITIONS_OF_VERB.get(verb, {}):
        return DEFINITIONS_OF_VERB[verb][figure]
    known = (name for name in DEFINITIONS if figure == name or figure.endswith(f"-{name}"))
    return DEFINITIONS.get(max(known, key=len, default=""), "")


def place_of(figure: str) -> int:
    """Where a figure of this name belongs in a report: in the order of `DEFINITIONS`."""
    definition = definition_of(figure)
    return [*DEFINITIONS.values()].index(definition) if definition else len(DEFINITIONS)


def made_by(attrs: Mapping[str, Any], record: xr.DataTree | xr.Dataset | None) -> dict[str, str]:
    """How a result was made, as {label: text}: what is known of `LABELS`, and how many samples."""
    made = {label: str(attrs[name]) for name, label in LABELS.items() if attrs.get(name)}
    samples = record.sizes.get("sample") if record is not None else None
    return made | ({"samples": str(samples)} if samples else {})


def methods(attrs: Mapping[str, Any], made: Mapping[str, str], verb: str = "attention") -> str:
    """A paragraph for a paper: what was measured, on what, how, with which versions.

    verb: what made the results, or the kind of the dataset.
    """
    model = f"{attrs.get('model') or 'the model'}"
    precise = [made[label] for label in ("dtype", "attention kernel") if label in made]
    how = f" ({', '.join(precise)})" if precise else ""
    sentences = [_measured(verb, f"{model}{how}", attrs)]
    if attrs.get("benchmark"):
        count = attrs.get("questions")
        of = f"{count} questions of " if count else "questions of "
        sentences.append(f"The samples are {of}{attrs['benchmark']} (split {attrs['split']}).")
    elif "samples" in made:
        several = made["samples"] != "1"
        sentences.append(f"{made['samples']} sample{'s were' if several else ' was'} measured.")
    for name in ("intervention", "reducer"):
        if attrs.get(name):
            sentences.append(f"Active while measuring: {attrs[name]}.")
    if attrs.get("benchmark") or made.get("samples", "1") != "1":
        sentences.append("Intervals are 95 % bootstrap intervals over images.")
    versions = [
        f"{label} {made[label]}" for label in ("probe", "torch", "transformers") if label in made
    ]
    if versions:
        weights = f"; weights {attrs['weights']}" if attrs.get("weights") else ""
        sentences.append(f"Software: {', '.join(versions)}{weights}.")
    if attrs.get("toy"):
        sentences.append("The model is a toy that ships with probe: no finding about LLaVA.")
    return " ".join(sentences)


def _measured(verb: str, model: str, attrs: Mapping[str, Any]) -> str:
    if verb in ("heads", "head_sweep"):
        return (
            f"Each head of {model} was ablated{_in(attrs, 'mode')}; its effect is the change of "
            "the gold answer's log-probability, with a false discovery rate over all heads."
        )
    if verb in ("patch", "patch_sweep", "attribution_patching"):
        estimated = ", estimated from the gradient" if verb == "attribution_patching" else ""
        return (
            f"Activations of {model} were patched between a clean and a corrupted "
            f"run{_in(attrs, 'site', 'corruption')}{estimated}; the share of the gold answer's "
            "log-probability that comes back is a ratio of sums over pairs."
        )
    if verb == "steering_curve":
        return (
            f"A difference of mean activations was added to those of {model}, some times over"
            f"{_in(attrs, 'site', 'layers')}."
        )
    if verb == "reliability":
        return (
            f"How well attention of {model} tells right answers from wrong ones was measured by "
            "the area under the ROC curve, for each head, beside the answer's own log-probability; "
            "with a false discovery rate over all heads."
        )
    if verb == "lens":
        return f"States of {model} after each layer were decoded by its own output layer."
    if verb == "attribution" and attrs.get("method") in FLOWS:
        return (
            f"The answer of {model} was followed back to regions of the image: each has the score "
            f"{FLOWS[attrs['method']]}."
        )
    if verb == "drop":
        return (
            f"Vision tokens of {model} were dropped in sets of LLM layers and the answers scored; "
            f"{MODES}."
        )
    if verb == "reduce":
        return (
            f"Token reducers were applied to {model} on the same questions and compared with all "
            "tokens, random and evenly spread ones, paired by question."
        )
    if verb in ("attribute", "attribution"):
        return (
            f"The log-probability of the answer of {model} was attributed to regions of the image "
            "and to words, and compared with attention by rank correlation."
        )
    if verb == "cost":
        return f"Operations and memory of reading a prompt were counted for {model}."
    if verb != "attention":
        return f"The results are those of {verb.replace('_', ' ')} on {model}."
    return (
        f"Attention of {model} was measured beside its own kernel: "
        "mass is the mean over queries of type A of the softmax weight on keys of type B; pooled "
        "entropy averages heads first, head entropy does not; both are in nats."
    )


def _in(attrs: Mapping[str, Any], *names: str) -> str:
    """How it was done, where the results say so: " (mode zero)"."""
    known = ", ".join(f"{name} {attrs[name]}" for name in names if attrs.get(name))
    return f" ({known})" if known else ""
