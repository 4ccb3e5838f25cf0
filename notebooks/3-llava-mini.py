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
# # Inside LLaVA-Mini
#
# LLaVA-Mini ([arXiv 2501.03895](https://arxiv.org/abs/2501.03895)) gives its LLM ONE vision token for an image. It can, because
# the words have read the image before: in *pre-fusion*, a few layers in front of the LLM in which text sees all patches.
#
# ```
# patches  ->  compressor  ->  1 token ─┐
#    └──────>  pre-fusion: patches | token | words  ->  LLM: token | words that know the image
# ```
#
# The authors' code throws the attention of compressor and pre-fusion away. Here both are stacks of the record like any other.
#
# It runs on the shipped toy, `tiny-llava-mini`, which was made of `tiny-llava`; what it shows is about the toy. With
# `PROBE_MODEL=path/to/llava-mini-llama-3.1-8b` (the authors' folder), `PROBE_IMAGE` and `PROBE_QUESTION` (an image file and a question
# of yours), `PROBE_BENCHMARK` and `PROBE_DATA` (a benchmark's name and folder: `gqa`, `data/gqa`), the same cells look at the real one.

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd
import torch

import probe
from probe.data.image import open_image
from probe.models.tiny.questions import sample_image

MODEL = os.environ.get("PROBE_MODEL", "tiny-llava-mini")
subject = probe.load(MODEL)
image, question, right = sample_image(seed=0)
if "PROBE_IMAGE" in os.environ or "PROBE_QUESTION" in os.environ:  # your own
    image = open_image(os.environ.get("PROBE_IMAGE", image))
    question, right = os.environ.get("PROBE_QUESTION", "Describe the image."), "not known"
print(subject.name, "with weights", subject.provenance()["weights"])
print(question, "->", subject.answer(image, question), f"(right: {right})")
inputs = subject.encode(image, question)
print(
    "tokens that the LLM reads:",
    inputs["input_ids"].shape[1],
    "of which vision:",
    int(inputs.types.vision.sum()),
)

# %% [markdown]
# ## One record, four stacks
#
# In the compressor the queries are the compressed tokens. In pre-fusion there are patches (vision), compressed tokens and words
# (instruction); a response never enters it. In the LLM, vision is what the compressed tokens are.

# %%
record = probe.measure(subject, image, question)
stacks = record.children
{
    name: (stack.sizes["layer"], [*stack["query_type"].values], [*stack["key_type"].values])
    for name, stack in stacks.items()
}

# %% [markdown]
# ## Fig. 12: what is compressed
#
# The compressor's attention to each patch, over the image. It does not know the question.

# %%
_ = probe.plots.compression(record)
# %% [markdown]
# ## Who attends to whom, before the LLM and in it
#
# Left the `share` of the attention that goes to patches, compressed tokens and words; right the `lift`, against an even spread.
# In the LLM one token is one among many, so its share is small whatever it is worth.

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
for axis, value in zip(axes, ("share", "lift"), strict=True):
    probe.plots.mass(record, "prefusion", value, query_types=["instruction", "compressed"], ax=axis)

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
for axis, value in zip(axes, ("share", "lift"), strict=True):
    probe.plots.mass(record, "llm", value, query_types=["instruction", "response"], ax=axis)

# %% [markdown]
# Where in the image the words look, layer by layer of pre-fusion:

# %%
_ = probe.plots.heatmaps(record, stack="prefusion", query_type="instruction")
# %% [markdown]
# Look around. The page opens on the LLM, where one token stands for the whole picture: under it, "Stack" switches to pre-fusion and
# the compressor, which see patches, and "Queries" from words to compressed tokens. Drag a box on the picture to see which layers look there.

# %%
page = record.probe.view()
page
# %% [markdown]
# ## Take vision away, in either stack
#
# `stack="prefusion"` cuts rows off from the patches in some of its layers; `queries` says which: the words, the compressed token or
# (by default) both. With `stack="llm"` text cannot see the compressed token.

# %%
layers = {name: range(stack.sizes["layer"]) for name, stack in stacks.items()}
before = {"layers": layers["prefusion"], "stack": "prefusion"}
cuts = {
    "untouched": {"layers": []},
    "LLM: no vision token": {"layers": layers["llm"]},
    "pre-fusion: words see no patch": {**before, "queries": "text"},
    "pre-fusion: the token sees no patch": {**before, "queries": "compressed"},
}
for name, options in cuts.items():
    with probe.drop_vision(subject, **options):
        print(f"{name:<38}{subject.answer(image, question)}")

# %% [markdown]
# Over many questions, every layer alone, each case exactly as if it ran alone. The image is read once for all of them.

# %%
from probe.evaluation.task import BenchmarkTask

name, data = os.environ.get("PROBE_BENCHMARK", "shapes"), os.environ.get("PROBE_DATA")
questions = 30 if subject.toy else 9  # on a large model: minutes
task = BenchmarkTask.read(name, data, limit=questions)
samples = task.with_images
images = ("sample", [sample.meta["image"] for sample in samples])
tables = {
    f"{name} cut off": probe.drop_sweep(
        subject,
        samples,
        [probe.windows(1)],
        stack="prefusion",
        queries=queries,
        score=task.score,
        progress=False,
    ).assign(image=images)
    for name, queries in {"words": "text", "compressed token": "compressed", "both": None}.items()
}
axis = probe.plots.readings(tables, size=1)
axis.set_title("Cut off from the patches in one layer of pre-fusion", loc="left", fontsize=10)
pd.DataFrame(
    {name: table["correct"].mean("sample").to_series() for name, table in tables.items()}
).round(2)

# %% [markdown]
# `no vision` is here: words and token cut off in all of pre-fusion. What the compressor made of the image still reaches the LLM.
# [analyses/llava_mini](../analyses/llava_mini) has the whole experiment, beside `tiny-llava` and a model without pre-fusion.
#
# ## One image, many questions
#
# Patches see only patches, so the image side of pre-fusion is the same for every question: computed once, reused exactly.

# %%
seen = subject.model.encode_image(subject.processor.pixels(image))
read = subject.processor.tokenizer
for asked in (
    "What is in the picture?",
    "How many objects are there?",
    "What shape is the yellow object?",
):
    ids = subject.encode(image, asked)["input_ids"]
    with torch.no_grad():
        assert torch.allclose(
            subject.model(ids, vision=[seen]).logits,
            subject.model(**subject.encode(image, asked)).logits,
            atol=1e-4,
        )
    print(asked, "->", read.decode(subject.model.generate(ids, vision=[seen], max_new_tokens=32)[0, ids.shape[1]:],
                               skip_special_tokens=True))  # fmt: skip

# %% [markdown]
# ## Video
#
# A video is one vision token a frame; words read every frame in pre-fusion and are averaged. Frames are brought to the encoder's
# size without smoothing, as the authors do. The toy has never been shown one, so this shows the plumbing: the words of a still video
# are those of its image, and with one frame so is the answer. Four tokens in a row are new to its LLM, which its answer shows.

# %%
from probe.data.image import Video

frame = image.resize((subject.processor.image_processor.crop_size["width"],) * 2)
alone, clip = subject.encode(frame, question), subject.encode(Video([frame] * 4), question)
with torch.no_grad():
    words, same = (
        subject.model.model.merge(**each)[0][~torch.tensor(each.types.vision)]
        for each in (clip, alone)
    )
assert torch.allclose(words, same, atol=1e-4)
for shown in (frame, Video([frame]), Video([frame] * 4)):
    print(
        subject.encode(shown, question).types.vision.sum(),
        "vision tokens:",
        subject.answer(shown, question),
    )

# %% [markdown]
# Long ones go through `encode_image` frame by frame, in memory that grows by one token a frame. Pass the prompt, so that words read
# the frames on the way.

# %%
frames = (subject.processor.pixels(image) for _ in range(200))  # an iterator: never all at once
prompt = subject.encode(image, question)["input_ids"]
video = subject.model.encode_image(frames, input_ids=prompt, keep_frames=8)
print(video.num_tokens, "vision tokens; frames kept:", len(video.seen))

# %% [markdown]
# ## Trust it
#
# The promises, checked on this model, its compressor and pre-fusion included.

# %%
report = probe.verify(subject)
print(report.appendix)
assert report.passed
