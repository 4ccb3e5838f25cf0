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
    "log-probability.",
    "agreement": "Attention beside attribution on one image, against a floor of misplaced maps.",
    "lens": "What the vision tokens predict after each layer, by the model's own output layer.",
    "flops": "Counted operations of reading one prompt, by component.",
    "latency": "Measured time from pixels to the first token.",
    "memory": "Counted memory of a prompt: the LLM's cache, with the weights or without.",
    "patch": "Share of the difference in log-probability that a patched activation recovers.",
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


def definition_of(figure: str) -> str:
    """What a figure of this name shows; "" for a name that is not known.

    >>> definition_of("vision-lift")
    "Share of B divided by B's part of the visible keys: 1 is an even spread."
    """
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
    """A paragraph for a paper: what was measured, on what, how, with which versions."""
    model = f"{attrs.get('model') or 'the model'}"
    precise = [made[label] for label in ("dtype", "attention kernel") if label in made]
    how = f" ({', '.join(precise)})" if precise else ""
    sentences = [_measured(verb, f"{model}{how}")]
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
    if made.get("samples") != "1":
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


def _measured(verb: str, model: str) -> str:
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
    if verb == "attribute":
        return (
            f"The log-probability of the answer of {model} was attributed to regions of the image "
            "and to words, and compared with attention by rank correlation."
        )
    if verb == "cost":
        return f"Operations and memory of reading a prompt were counted for {model}."
    return (
        f"Attention of {model} was measured beside its own kernel: "
        "mass is the mean over queries of type A of the softmax weight on keys of type B; pooled "
        "entropy averages heads first, head entropy does not; both are in nats."
    )
