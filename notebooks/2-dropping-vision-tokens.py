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
# # Dropping vision tokens
#
# Which layers need the image? The LLaVA-Mini paper ([arXiv 2501.03895](https://arxiv.org/abs/2501.03895), Fig. 5) drops all
# vision tokens in four layers at a time and watches the accuracy: early layers matter, late ones hardly. Here is the same for
# any model of the family, any layers, and each of the things that "dropped" can mean.
#
# It runs on the shipped toy model, `tiny-llava`. What the toy shows is about the toy: set
# `PROBE_MODEL=llava-hf/llava-1.5-7b-hf`, `PROBE_IMAGE` and `PROBE_QUESTION` to an image file and a question of yours, and
# `PROBE_BENCHMARK` and `PROBE_DATA` to a benchmark's name and folder (`gqa`, `data/gqa`), to look at the real thing. Sweeps then have fewer questions and wider windows, so that they take minutes.

# %%
import os

import probe
from probe.data.image import open_image
from probe.models.tiny.questions import sample_image

MODEL = os.environ.get("PROBE_MODEL", "tiny-llava")
subject = probe.load(MODEL)
image, question, right = sample_image(seed=0)
if "PROBE_IMAGE" in os.environ or "PROBE_QUESTION" in os.environ:  # your own
    image = open_image(os.environ.get("PROBE_IMAGE", image))
    question, right = os.environ.get("PROBE_QUESTION", "Describe the image."), "not known"
print(subject.name, "with weights", subject.provenance()["weights"])
print(question, "->", subject.answer(image, question), f"(right: {right})")

# %% [markdown]
# ## One intervention
#
# An intervention is a context manager. Inside, text cannot see the vision tokens in these layers (0-based in code); after it the
# model is to the bit as it was.

# %%
layers = len(subject.model.get_decoder().layers)
for name, chosen in {
    "first half": range(layers // 2),
    "second half": range(layers // 2, layers),
}.items():
    with probe.drop_vision(subject, chosen):
        print(f"without vision in the {name}:", subject.answer(image, question))
print("untouched again:", subject.answer(image, question))

# %% [markdown]
# It composes with `measure`: the record then shows no attention to vision in those layers.

# %%
with probe.drop_vision(subject, range(layers // 2, layers)):
    record = probe.measure(subject, image, question, stacks=["llm"])
print(record.attrs["intervention"])
record["llm"]["mass"].sel(query_type="response", key_type="vision").mean("head").isel(
    sample=0
).to_series().round(3)

# %% [markdown]
# ## What "dropped" can mean
#
# The paper does not say which it used.
#
# | mode | in the chosen layers | elsewhere |
# |---|---|---|
# | `mask` | text cannot see vision; vision rows go on among themselves | later layers see them as they evolved |
# | `mask_frozen` | and vision rows skip these layers | equal to `remove` |
# | `remove` | vision rows are physically gone | they come back as they were |
# | `remove_for_good` | vision rows are physically gone | they never come back |
# | `zero` | attention is untouched, the values of vision tokens count as zero | separates lost information from renormalised attention |
# | `swap` | text reads another image's vision tokens | keeps what is read realistic |


# %%
def answer_within(context):
    with context:
        return subject.answer(image, question)


middle = range(layers // 4, layers // 2)
other, *_ = sample_image(seed=5)
answers = {
    mode: answer_within(probe.drop_vision(subject, middle, mode=mode))
    for mode in ("mask", "mask_frozen", "remove", "remove_for_good", "zero")
}
answers["swap"] = answer_within(probe.swap_vision(subject, middle, other))
answers["knockout: the answer alone"] = answer_within(
    probe.knockout(
        subject, "response", "vision", middle, types=subject.encode(image, question).types
    )
)
answers

# %% [markdown]
# ## The sweep: many layer sets at once
#
# `drop_sweep` runs many cases over many samples, each exactly as if it ran alone. The image is computed once for all cases and
# all questions about it, the text only from the first dropped layer on. Three cases are always there: the untouched model and two
# floors, no vision at all and another image. A question that words alone answer stays right without vision, so the floor is not
# zero.

# %%
from probe.evaluation.task import BenchmarkTask

name, data = os.environ.get("PROBE_BENCHMARK", "shapes"), os.environ.get("PROBE_DATA")
questions, size = (48, 2) if subject.toy else (12, layers // 4)  # on a large model: minutes
step = 1 if subject.toy else size
task = BenchmarkTask.read(name, data, limit=questions)
samples = task.with_images
cases = [probe.windows(size), probe.from_layer(step), probe.until_layer(step)]
sweep = probe.drop_sweep(subject, samples, cases, score=task.score, progress=False)
print(
    f"{sweep.attrs['row_layers']} rows × layers computed; each case alone: {sweep.sizes['case'] * layers * len(samples)}"
)
sweep

# %%
sweep["correct"].mean("sample").to_series().round(2)

# %% [markdown]
# ## Fig. 5
#
# Several questions are about one image, so they are no independent evidence: intervals come from drawing images again, all
# cases with the same draws. The band holds at all windows at once. Filled points differ from the untouched model.


# %%
def with_images(table):
    """The table with the image and the kind of each question, which only the benchmark knows."""
    meta = {sample.id: sample.meta for sample in samples}
    return table.assign(
        {
            what: ("sample", [meta[name][what] for name in table["sample"].values])
            for what in ("image", "kind")
        }
    )


sweep = with_images(sweep)
_ = probe.plots.dropped(sweep, size=size)
# %% [markdown]
# From a layer on, and up to a layer, by kind of question:

# %%
_ = probe.plots.depth(sweep)
# %% [markdown]
# Every mode on one axis. `mask`, `mask_frozen` and `remove` are the same from a layer to the last one; in a window they are not.

# %%
few = samples[:24]
tables = {
    mode: with_images(
        probe.drop_sweep(subject, few, probe.windows(size), mode, score=task.score, progress=False)
    )
    for mode in ("mask", "mask_frozen", "remove_for_good", "zero", "swap")
}
probe.plots.readings(tables)
_ = probe.plots.swaps(tables)
# %% [markdown]
# Accuracy is a coarse measure. The distance of the next-token distribution from the untouched model's shows effects that change no
# answer.

# %%
_ = probe.plots.readings(tables, value="kl")
# %% [markdown]
# As a table, with paired differences to the untouched model:

# %%
from probe.evaluation.drop_effects import effects

table = effects(sweep)
table.query("kind == 'all'")[
    [
        "case",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "difference",
        "difference_low",
        "difference_high",
    ]
].round(1)

# %% [markdown]
# ## Over a benchmark
#
# `probe drop` does all of this over a benchmark's official files, into a run directory that survives crashes and goes on when the
# command is given again. From Python:

# %%
from tempfile import TemporaryDirectory

from probe.evaluation.drop_run import DropRun

with TemporaryDirectory() as folder:
    dropping = DropRun(
        subject,
        BenchmarkTask.read(name, data, limit=12),
        {"mask": probe.windows(size), "zero": probe.windows(size)},
    )
    print("\n".join(dropping.estimate()))
    run = dropping.run(folder)
    found = dropping.results(run)
    print(
        len(run.done()), "samples in", len(run.parts()), "parts;", len(run.failures()), "failures"
    )
_ = probe.plots.dropped(found)
# %% [markdown]
# ## Trust it: a planted truth
#
# `planted` makes a model in which vision can reach the answer in known layers only. A sweep has to find exactly these, although
# other layers give vision just as much attention.

# %%
from probe.models import planted

known = planted(read_layers=(1, 4), layers=6)
truth = probe.load(known.model, processor=known.processor)
control = [
    probe.Sample(colour, known.image(colour), known.question, answer=colour)
    for colour in ("red", "green", "blue")
]
found = probe.drop_sweep(truth, control, probe.windows(1), progress=False)
accuracy = found["correct"].mean("sample").to_series()
needed = [int(case) - 1 for case in accuracy.index[3:] if accuracy[case] == 0]
assert needed == list(known.read_layers)
accuracy
