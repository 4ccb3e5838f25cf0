# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Does attention explain anything?
#
# A map of attention says where the weights went. Whether the answer *needed* what is there is another question, and it has other
# instruments: take a part of the image away and see what becomes of the answer. Here both are computed on the same image,
# patches and tokens, and held against each other.
#
# It runs on the shipped toy model, `tiny-llava`: what it shows is about the toy. Set
# `PROBE_MODEL=llava-hf/llava-1.5-7b-hf`, `PROBE_IMAGE` and `PROBE_QUESTION` to an image file and a question of yours (or
# `PROBE_BENCHMARK` and `PROBE_DATA` to a benchmark's name and folder, whose first question is taken), for the real thing. Regions are then cells of 2 x 2 patches, and the comparison with shuffled weights, a second model in memory, is skipped.

# %%
import os

import probe
from probe.data.image import open_image
from probe.evaluation.task import BenchmarkTask
from probe.models.planted import planted
from probe.models.tiny.questions import sample_image

subject = probe.load(os.environ.get("PROBE_MODEL", "tiny-llava"))
image, question, right = sample_image(seed=0, kind="colour")
if "PROBE_DATA" in os.environ:  # a benchmark's first question
    task = BenchmarkTask.read(os.environ["PROBE_BENCHMARK"], os.environ["PROBE_DATA"], limit=1)
    first = task.with_images[0]
    image, question, right = open_image(first.images[0]), first.question, first.answer
if "PROBE_IMAGE" in os.environ or "PROBE_QUESTION" in os.environ:  # your own
    image = open_image(os.environ.get("PROBE_IMAGE", image))
    question, right = os.environ.get("PROBE_QUESTION", "Describe the image."), "not known"
print(subject.name, "with weights", subject.provenance()["weights"])
print(question, "->", subject.answer(image, question), f"(right: {right})")
options = {"over": "patches" if subject.toy else "grid", "progress": False}

# %% [markdown]
# ## What the answer owes to each patch, and to each word
#
# The target is the log-probability of the answer. `ablation` takes one patch away at a time (here its pixels become grey) and
# writes down what the answer loses, in nats; words of the prompt are features of the same vector.

# %%
found = probe.attribute(subject, image, question, **options)
_ = probe.plots.attribution(found)
# %% [markdown]
# No stand-in for "away" is neutral. The same with text unable to see the patch's vision token, which leaves the image as it is:

# %%
hidden = probe.attribute(subject, image, question, baseline="hidden", **options)
probe.plots.attribution({"grey pixels": found, "hidden from text": hidden})
print("one prefix for all of them:", hidden.attrs["sharing"])

# %% [markdown]
# Integrated gradients follow the way from nothing to everything; their sum should be what everything is worth. How far it is off
# is in `delta`, and a warning says so where it is much, as here: more `steps` come closer, at their price.

# %%
gradients = probe.attribute(subject, image, question, method="integrated_gradients", **options)
print(
    f"worth {float(gradients['logprob'] - gradients['logprob_without']):.1f} nat, off by {float(gradients['delta']):+.1f}"
)

# %% [markdown]
# ## Attention next to it
#
# One figure. Top: what the answer owes, what is attended to, and how well the two agree in each layer. The grey band is what the same
# maps reach when they are misplaced (shuffled, shifted, flipped): inside it, agreement is noise. The dashed line is what two methods
# of attribution reach with each other; more cannot be asked of attention. Below: every head; the answer's log-probability as patches are
# taken away in the order of a score (solid) or given (dashed); and the heads of the same model with shuffled weights, which knows nothing.

# %%
from probe.measures.attribution.weight_randomisation import randomised

response_ids = found["token_id"].values.tolist()
attended = found["contribution"].mean("head").max("layer")
scores = {"ablation": found["attribution"], "attention (contribution)": attended}
curves = probe.deletion_curves(
    subject, image, question, scores, response_ids, options["over"], baseline="mean"
)
control = None
if subject.toy:
    control = probe.attribute(randomised(subject), image, question, response_ids, **options)
else:
    print("Skipped: the model with shuffled weights, which would be a second one in memory.")
_ = probe.plots.agreement(
    {"ablation": found, "integrated gradients": gradients}, curves=curves, control=control
)
# %% [markdown]
# ## Would it have been noticed?
#
# A planted model reads four patches in two layers, and nothing else; its weights are written by hand. Whatever does not find
# these is wrong.

# %%
known = planted(read_layers=(2, 4), patches=(14, 15, 20, 21))
truth = probe.load(known.model, processor=known.processor)
planted_image = known.image("red", seed=1)
there = probe.attribute(truth, planted_image, known.question, progress=False)
probe.plots.agreement(there)
by_layer = probe.attribute(truth, planted_image, known.question, over="layers", progress=False)
print(by_layer["attribution"].astype(float).round(1).to_series().to_dict())

# %% [markdown]
# ## What rows already say
#
# The logit lens sends a layer's output through the model's own last norm and head. Vision rows have words, too.

# %%
lens = probe.logit_lens(subject, image, question)
probe.plots.lens(lens, [0, lens.sizes["layer"] // 2, lens.sizes["layer"] - 1])
_ = probe.plots.lens_curves(lens)
# %% [markdown]
# ## Sinks
#
# Some rows get attention for what they are: a massive norm, whatever they show. The rule is in `probe/measures/attention/sinks.py`; where a record has
# sinks, heat maps mark them, and `measure(sinks="split")` counts them apart.

# %%
sinks = probe.find_sinks(subject, image, question)
print(sinks.attrs["rule"])
print(
    "sinks:",
    sinks["row_text"].values[sinks["sink"].any("layer").values].tolist() or "none in this model",
)

# %% [markdown]
# ## Does vision fade with depth?
#
# It depends on what is called attention on vision. Sixteen conventions, one record.

# %%
record = probe.measure(subject, image, question, types="fine", contribution=True)
_ = probe.plots.conventions(record)
