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
# # Token reducers
#
# An image is hundreds of tokens for the language model, and most of them can go. VisionZip
# ([arXiv 2412.04467](https://arxiv.org/abs/2412.04467)) and its rivals decide which. Here they are on any LLaVA, exactly as their
# authors' code does it, with the model's own attention kernel, and off again when the block ends.
#
# It runs on the shipped toy model, `tiny-llava`, which has 36 vision tokens. What the toy shows is about the toy: set
# `PROBE_MODEL=llava-hf/llava-1.5-7b-hf`, `PROBE_IMAGE` and `PROBE_QUESTION` to an image file and a question of yours, and
# `PROBE_BENCHMARK` and `PROBE_DATA` to a benchmark's name and folder (`gqa`, `data/gqa`), to look at the real thing. The comparison then has fewer questions, and the training at the end is skipped.

# %%
import os

import probe
from probe.data.image import open_image
from probe.models.tiny.questions import sample_image
from probe.reducers import FastV, Grid, Random, VisionZip

MODEL = os.environ.get("PROBE_MODEL", "tiny-llava")
subject = probe.load(MODEL)
image, question, right = sample_image(seed=0, kind="where")
if "PROBE_IMAGE" in os.environ or "PROBE_QUESTION" in os.environ:  # your own
    image = open_image(os.environ.get("PROBE_IMAGE", image))
    question, right = os.environ.get("PROBE_QUESTION", "Describe the image."), "not known"
patches = int(subject.encode(image, question).types.vision.sum())
print(subject.name, "with weights", subject.provenance()["weights"])
print(f"{patches} vision tokens. {question} -> {subject.answer(image, question)} (right: {right})")

# %% [markdown]
# ## One reducer
#
# VisionZip keeps the patches that the encoder's class token attends to most, and merges all others into a few. `dominant` counts the
# class token too, as the authors do.

# %%
quarter = VisionZip(dominant=patches // 4 - 2, contextual=2)
with probe.reduced(subject, quarter):
    left = subject.encode(image, question).types.vision.sum()
    print(f"{left} vision tokens:", subject.answer(image, question))
print("untouched again:", subject.answer(image, question))

# %% [markdown]
# What it kept, and what went into which token:

# %%
inputs = subject.encode(image, question)
reduction = probe.reducers.encode(
    subject.model.model.vision_tower,
    inputs["pixel_values"],
    quarter,
    layer=subject.model.config.vision_feature_layer,
)
_ = probe.plots.kept(reduction, image, inputs.encoder_grid[0])
# %% [markdown]
# `measure`, `drop_vision` and `drop_sweep` work inside the block, on the tokens that are left. Reducers of the encoder's
# output and those inside the LLM compose: here FastV drops half of what VisionZip leaves.

# %%
with probe.reduced(subject, quarter, FastV(layer=2, keep=0.5)) as stages:
    record = probe.measure(subject, image, question, stacks=["llm"])
print(record.attrs["reducer"])
print(
    "vision tokens that FastV left from layer",
    stages[0].layer + 1,
    "on:",
    int(stages[0].left.sum()),
)
record["llm"]["mass"].sel(query_type="response", key_type="vision").mean("head").isel(
    sample=0
).to_series().round(3)

# %% [markdown]
# ## Why a few are enough
#
# The paper's reason is that the encoder's attention gathers on few patches from layer to layer. By its measure: the share that the
# best patches hold, how uneven the distribution is, and whether the patches that are best where the LLM reads were so before.

# %%
from probe.measures.encoder_concentration import concentration

images = [sample_image(seed)[0] for seed in range(8)]
found = concentration(subject, images, top=(1, 4, 9))
_ = probe.plots.concentration(found)
# %% [markdown]
# Softmax pushes that way: the gradient of a weight by its own score, a (1 - a), is the larger the larger the weight is (up to a
# half), so whoever is ahead is moved most.

# %%
_ = probe.plots.softmax_gradient(found)
# %% [markdown]
# ## Write your own: a dozen lines on either side of the LLM
#
# Before the LLM: a frozen dataclass that chooses patches. `seen` has the encoder's features, and queries and keys of the layer that
# makes them; `seen.patch_attention(seen.output_layer)` is the attention that patches receive. Ours keeps the patches that differ most
# from the mean of their view. (One that merges tokens has `reduce(seen) -> Reduction`.)

# %%
from dataclasses import dataclass

from probe.reducers import LLMReducer, PatchSelection
from probe.reducers.patch_selection import top


@dataclass(frozen=True)
class Unusual(PatchSelection):
    """The patches whose features differ most from the mean of their view."""

    def choose(self, seen, tokens):
        features = seen.patch_features.float()
        distance = (features - features.mean(1, keepdim=True)).norm(dim=-1)
        return top(distance, tokens)


# %% [markdown]
# Inside the LLM: a frozen dataclass that says before which layers tokens leave, how many stay, and what they are ranked by. Batches,
# padding, caches and positions are taken care of.


# %%
@dataclass(frozen=True)
class UnusualInside(LLMReducer):
    """The same before one layer of the LLM, by hidden states."""

    layer: int
    keep: float

    def schedule(self, depth):
        return {self.layer: lambda tokens: round(self.keep * tokens)}

    def scores(self, layer_input, prompt):
        states = layer_input.whole().float()
        vision = prompt.vision.to(states.device)[..., None]
        mean = (states * vision).sum(1, keepdim=True) / vision.sum(1, keepdim=True)
        return (states - mean).norm(dim=-1)


# %% [markdown]
# Both work at once as any other: in a block, composed, in a batch, over all tiles of an image (`budget="image"`), and to look at.

# %%
mine, inside = Unusual(patches // 4), UnusualInside(layer=2, keep=0.25)
for reducer in (mine, inside):
    with reducer(subject):
        print(f"{type(reducer).__name__}: {subject.answer(image, question)}")
reduction = probe.reducers.encode(
    subject.model.model.vision_tower,
    inputs["pixel_values"],
    mine,
    layer=subject.model.config.vision_feature_layer,
)
_ = probe.plots.kept(reduction, image, inputs.encoder_grid[0])
# %% [markdown]
# ## Side by side, and beside the controls
#
# A comparison asks every method the same questions, counts the vision tokens that each LLM layer had, counts the operations and runs
# the clock from pixels to the first token. It resumes. From the shell: `probe reduce`, and `probe reduce --bench` for all methods at
# the budgets of recent papers. Random selection (several seeds, a band in the figure) and a down-sampled image are the controls.

# %%
from tempfile import TemporaryDirectory

from probe.evaluation.method_comparison import Comparison, Method
from probe.evaluation.method_scores import method_scores
from probe.evaluation.reducer_benchmark import reducer_benchmark
from probe.evaluation.task import BenchmarkTask
from probe.reducers import DivPrune, DownSample

few, more = patches // 9, patches // 4
families = {
    "VisionZip": lambda n: VisionZip(n - 1, 1),
    "DivPrune": DivPrune,
    "grid": Grid,
    "down-sampling": DownSample,
    "FastV": lambda n: FastV(2, n / patches),
    "unusual": Unusual,
    "unusual inside": lambda n: UnusualInside(2, n / patches),
}
methods = [Method("all tokens", subject)]
for n in (few, more):
    for name, make in families.items():
        methods.append(Method(f"{name} {n}", subject, (make(n),), name, budget=n))
    for seed in range(3):
        drawn = Random(n, seed=seed)
        methods.append(Method(f"random {n}, seed {seed}", subject, (drawn,), "random", budget=n))
questions = 36 if subject.toy else 12  # on a large model: minutes
name, data = os.environ.get("PROBE_BENCHMARK", "shapes"), os.environ.get("PROBE_DATA")
task = BenchmarkTask.read(name, data, limit=questions)
comparison = Comparison(methods, task)
with TemporaryDirectory() as folder:
    answers = comparison.results(comparison.run(folder))
costs = comparison.costs(answers, repeats=2)
official = task.module.HEADLINE  # the number that the benchmark's papers print
told = ["method", "vision_tokens", official, "over_random", "over_smaller", "verdict"]
reducer_benchmark(answers, costs)[told].round(1)

# %% [markdown]
# On the toy a plain grid is better than VisionZip: its things lie on 2 x 2 patches, so an even spread meets all of them, and nothing in
# its training ever told the class token where to look. That is what controls are for. (On LLaVA-1.5-7B the paper reports 94 % of the
# accuracy with 64 of 576 tokens.) Nor does a model this small get faster: its time is Python's. Intervals come from drawing images
# again; there are few here.

# %%
_ = probe.plots.reducer_benchmark(answers, costs)
# %% [markdown]
# The middle panel is the split of VTC-Bench: the questions that a smaller image answers wrong, and the rest. Accuracy against the number
# of tokens and against time, random selection as a band:

# %%
_ = probe.plots.reductions(answers, costs)
# %% [markdown]
# ## A second question
#
# VisionZip never sees the words, so what it leaves serves every later question: `subject.chat` keeps the cache. FastV chooses by the
# question, so with the first one's cache another answer may come out than without (which of the two is right is another matter).
# `chat` knows, and starts anew; `keep="always"` shows what would happen otherwise.

# %%
_, second, right = sample_image(seed=0, kind="count")
print(f"{second} (right: {right})")
for reducer in (quarter, FastV(2, 0.25)):
    with probe.reduced(subject, reducer):
        for keep in ("exact", "always"):
            chat = subject.chat(image, keep=keep)
            chat.ask(question)
            chat.restart()
            print(
                f"{type(reducer).__name__:9} keep={keep:8} {chat.ask(second)} ({chat.reused} tokens from the cache)"
            )

# %% [markdown]
# ## Get used to it
#
# The projector was trained for all tokens. The paper tunes it under the reducer, with encoder and LLM frozen. `tune` is that on
# `transformers.Trainer`. These thirty steps are an example of how, and too few: as the table shows, they may well make the model worse.
# A longer run, with what it gains and the interval of that, is in [analyses/reducers](../analyses/reducers).

# %%
import copy

from IPython.display import display

from probe.evaluation.benchmarks import named
from probe.reducers.projector_tuning import tune


def tuned_and_not(zipped):
    """Scores of the shipped projector and of one that was tuned, both under this reducer."""
    lessons = named("shapes").read(questions=600, seed=1).samples  # other images than those above
    with TemporaryDirectory() as folder:
        own = probe.load(copy.deepcopy(subject.model), processor=subject.processor)
        tune(
            own,
            lessons,
            folder,
            zipped,
            batch=20,
            per_device_train_batch_size=20,
            learning_rate=4e-3,
            disable_tqdm=True,
            logging_steps=100,
        )
    methods = [Method("as shipped", subject, (zipped,)), Method("tuned", own, (zipped,))]
    comparison = Comparison(methods, BenchmarkTask.read("shapes", limit=36))
    with TemporaryDirectory() as folder:
        answers = comparison.results(comparison.run(folder))
    shown = ["method", "accuracy", "accuracy_low", "accuracy_high"]
    shown += ["difference", "difference_low", "difference_high"]
    return method_scores(answers)[shown].round(1)


if subject.toy:
    display(tuned_and_not(VisionZip(few - 1, 1)))
else:
    print("Skipped: tuning a large model takes hours; `tune` is called in the same way.")
