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
# # Why, not only where
#
# Attention says where a model looks. What *carries* the answer is another question, and it is asked by changing something inside the
# model and looking at what becomes of the right answer: a head is taken away, activations of another run are put in, a direction is
# added. All of it here is on many questions, with intervals over images, beside the attention of the same heads.
#
# It runs on the shipped toy model, `tiny-llava`: what it shows is about the toy. Set `PROBE_MODEL=llava-hf/llava-1.5-7b-hf`,
# `PROBE_IMAGE` and `PROBE_QUESTION` to an image file and a question of yours, and `PROBE_BENCHMARK` and `PROBE_DATA` to a
# benchmark's name and folder (`gqa`, `data/gqa`), for the real thing. Then fewer questions are asked, and heads and layers are a few of the many.

# %%
import os
from dataclasses import replace
from tempfile import TemporaryDirectory

import probe
from probe.data.image import open_image
from probe.evaluation.attention_run import AttentionRun
from probe.evaluation.task import BenchmarkTask
from probe.models.tiny.questions import sample_image
from probe.models.tiny.scene_pairs import CHANGES, scene_pairs

subject = probe.load(os.environ.get("PROBE_MODEL", "tiny-llava"))
image, question, right = sample_image(seed=0, kind="colour")
if "PROBE_IMAGE" in os.environ or "PROBE_QUESTION" in os.environ:  # your own
    image = open_image(os.environ.get("PROBE_IMAGE", image))
    question, right = os.environ.get("PROBE_QUESTION", "Describe the image."), "not known"
name, data = os.environ.get("PROBE_BENCHMARK", "shapes"), os.environ.get("PROBE_DATA")
task = BenchmarkTask.read(name, data, limit=18 if subject.toy else 8)
samples = list(task.with_images)
layers = len(subject.model.get_decoder().layers)
some_layers = list(range(layers)) if subject.toy else sorted({*range(0, layers, layers // 4)})
quiet = {"progress": False}
print(subject.name, "with weights", subject.provenance()["weights"])
print(question, "->", subject.answer(image, question), f"(right: {right})")

# %% [markdown]
# ## Take one head away
#
# `ablate_heads` is a context manager. Inside, the head's part of what its layer adds is zero (or its mean over the prompt, or the head
# is made to attend evenly, or its text queries cannot see vision); after it the model is to the bit as it was. The report says what was
# changed: an edit that reaches no call is an error, so that nothing is ever "shown to have no effect" by an edit that did not happen.

# %%
for head in range(4):
    with probe.ablate_heads(subject, {0: [head]}) as report:
        print(f"without layer 1, head {head + 1}:", subject.answer(image, question))
print(report)
print("untouched again:", subject.answer(image, question))

# %% [markdown]
# ## Every head, on many questions
#
# One answer is an anecdote. `head_sweep` takes each head away on each question and writes down what the log-probability of the right
# answer loses, here and about another image: what is lost only about its own image is *of the picture*. What can be shared between heads
# and questions is computed once, and equals each head alone.
#
# Read a row from left to right: the effect with its interval, what of it is the picture's, and what attention says of that head. If
# attention told what matters, the grey bars would fall from top to bottom as the points do. A head may look at the image most of all and be
# missed by nobody.

# %%
heads = dict.fromkeys(some_layers, "all")
sweep = probe.head_sweep(subject, samples, heads, **quiet)
golds = [
    sample.answer if isinstance(sample.answer, str) else sample.answer[0] for sample in samples
]
record = probe.measure_samples(
    subject, samples, golds, stacks=["llm"], rows="text", contribution=True, **quiet
)
_ = probe.plots.head_effects(sweep, record, top=12)
# %% [markdown]
# ## Patch one image into another
#
# Two pictures that differ in one thing, and one question whose answer it decides. The model reads the corrupted picture, with the
# clean one's activations put in at one place. Where that brings the clean answer back, that place carries the difference. ("last" is the
# prompt's last row: it says the answer's first word, here "it", and the colour is said by later ones.) The pair is a chosen one: of the first six, two show this, and in four a patch of one layer changes no answer.

# %%
(pair,) = scene_pairs(1, "colour", seed=4)
clean = subject.encode(pair.image, pair.question)
print(pair.question)
print("clean:", subject.answer(pair.image, pair.question), f"(right: {pair.answer})")
print("corrupted:", subject.answer(pair.corrupted, pair.question))
for layer in some_layers:
    said = {}
    for positions in ("vision", "last"):
        with probe.patch(subject, clean, [layer], positions):
            said[positions] = subject.answer(pair.corrupted, pair.question)
    print(f"layer {layer + 1}:", said)
pair.image

# %%
pair.corrupted

# %% [markdown]
# The same over many pairs, every layer and every type of token. 1 means that the whole difference comes back. The picture starts out in
# the vision rows; somewhere it moves on to the rows of the text that say the answer, of which the prompt has one ("last"). *Noising* is
# the other way round: corrupted activations in a clean run, and 1 means that the answer is gone.

# %%
pairs = [one for change in CHANGES for one in scene_pairs(3 if subject.toy else 1, change)]
patches = probe.patch_sweep(subject, pairs, some_layers, direction="both", **quiet)
_ = probe.plots.recovered(patches)
# %% [markdown]
# ## The same from one gradient
#
# Attribution patching replaces every patch by gradient times difference: one forward and one backward pass for all places. It is exact where
# the model is linear between the two runs, which a softmax isn't. So its agreement with exact patches on the first pairs is always part of the
# result; read it before the figure.

# %%
estimate = probe.attribution_patching(subject, pairs, some_layers, **quiet)
for key in ("spearman", "pearson", "slope", "same_sign"):
    print(f"{key}: {estimate.attrs[f'agreement_{key}']:.2f}")
_ = probe.plots.recovered(estimate)
# %% [markdown]
# ## Steer
#
# The mean activation where the answer is "red", less the mean where it is "blue", is a direction. Added on other questions about blue things it
# should make blue less likely. Look at the third panel too: it is how far the answer's *first* word is from the untouched model's ("it", which says
# nothing about colours). A model that is broken also says blue less often; a direction that means red moves the first panel long before the third.

# %%
drawn = [(seed, *sample_image(seed, kind="colour")) for seed in range(200)]
of_colour = {
    word: [
        probe.Sample(f"{word}-{seed}", picture, asked, answer=answer)
        for seed, picture, asked, answer in drawn
        if word in answer.split()
    ]
    for word in ("red", "blue")
}
middle = some_layers[len(some_layers) // 2 - 1]
towards = probe.direction(subject, of_colour["red"][:8], of_colour["blue"][:8], layer=middle)
curve = probe.steering_curve(subject, of_colour["blue"][8:14], towards, **quiet)
_ = probe.plots.steering(curve)
# %% [markdown]
# ## Flow maps, judged by what they predict
#
# Rollout follows attention from the answer back to the patches through all layers, Grad-CAM and gradient-weighted rollout let the gradient choose the
# heads, contribution sums what arrives. Each is one pass, without a map of all queries and keys. Ablation greys every patch in turn, at a forward each. Two of
# the maps are drawn here: rollout knows weights only, and prefers patches that come first in the sequence; with gradients, those of the thing that was asked about
# stand out.

# %%
over = "patches" if subject.toy else "grid"
ablation = probe.attribute(subject, image, question, over=over, **quiet)
answer_ids = ablation["token_id"].values.tolist()
maps = {}
try:
    for method in ("rollout", "gradient_rollout", "grad_cam", "contribution"):
        maps[method] = probe.flow(subject, image, question, answer_ids, method=method, over=over)
except probe.ProbeError as error:  # vision tokens without a place in the image, as LLaVA-Mini's
    print(error)
drawn_maps = {method: maps[method] for method in ("rollout", "gradient_rollout") if method in maps}
_ = probe.plots.attribution({"ablation": ablation} | drawn_maps)
# %% [markdown]
# Which of them is right? Take patches away in the order of each map: a map that knows what the answer needs makes it fall fast (solid, low is good), and given
# back in that order it returns fast (dashed, high is good). "random" is the floor. The ablation's own order is no oracle either: patches
# that stand in for each other look unneeded one by one.

# %%
scores = {"ablation": ablation["attribution"]} | {
    method: found["attribution"] for method, found in maps.items()
}
curves = probe.deletion_curves(subject, image, question, scores, answer_ids, over, baseline="mean")
area = curves["logprob"].integrate("fraction")
print(area.to_series().unstack("direction").round(1))
compared = {"ablation": ablation}
if "gradient_rollout" in maps:
    compared["gradient rollout"] = maps["gradient_rollout"]
_ = probe.plots.agreement(compared, curves=curves)
# %% [markdown]
# ## Does attention predict being right?
#
# Of each answer, a run keeps whether it was right, its attention, and the model's own log-probability of what it said. For each head: does its attention tell right
# answers from wrong ones? An AUROC of 0.5 tells nothing. The black line is what has to be beaten: the model's own confidence, which is free.
# Dots are heads that are significant among all that were tried. On 3,090 questions to larger models, concentration and entropy were found to
# correlate with being right at about zero ([arXiv 2605.08200](https://arxiv.org/abs/2605.08200)).

# %%
if data is None:  # the drawn kind of question that the toy gets wrong most often
    drawn_task = BenchmarkTask.read("shapes", limit=432)
    hard = tuple(one for one in drawn_task.samples if one.meta["kind"] == "where")
    judged = replace(drawn_task, benchmark=replace(drawn_task.benchmark, samples=hard), limit=None)
else:
    judged = BenchmarkTask.read(name, data, limit=200)
with TemporaryDirectory() as folder:
    measuring = AttentionRun(subject, judged, max_new_tokens=8)
    answered = measuring.results(measuring.run(folder))
reliable = None
try:
    reliable = probe.reliability(answered, **quiet)
    _ = probe.plots.reliability(reliable)
except probe.ProbeError as error:  # nearly all right, or nearly all wrong: nothing to tell apart
    print(error)
# %% [markdown]
# The same as a table, the most significant first; `gain` is what a head's AUROC has over the confidence's, in the direction that it has. These
# are questions of one kind, chosen because the toy gets it wrong most often; mixed with "Is there ...?" questions no head was significant for being right. A run that mixes kinds can also find heads that tell the *kind*.
# `reliable.attrs["left_out"]` says which outcomes had too few answers on a side: there is no "no" to be hallucinated against here, as there is in POPE.

# %%
from probe.records.reliability import reliability_table

columns = ["outcome", "measure", "layer", "head", "auroc", "auroc_low", "auroc_high", "gain", "q"]
if reliable is not None:
    print("left out:", reliable.attrs["left_out"] or "nothing")
    table = reliability_table(reliable).groupby("outcome", sort=False).head(4)
    print(table[columns].round(3).to_string(index=False))
