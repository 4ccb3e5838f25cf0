"""A model whose weights accelerate keeps elsewhere (cpu_offload): plain transformers answers, and so must we, or say no in one line."""

from common import np, verdict
import torch
import models
import probe
import accelerate
import copy

model, processor = models.llava15()
want = probe.load(model, processor=processor).answer(
    models.picture(0), "what is it?", max_new_tokens=3
)
moved = copy.deepcopy(model)
accelerate.cpu_offload(moved, execution_device=torch.device("cpu"))
plain = moved.generate(
    **processor(
        text="USER: <image>\nwhat is it? ASSISTANT:", images=models.picture(0), return_tensors="pt"
    ),
    max_new_tokens=3,
    do_sample=False,
)
print("plain transformers generates:", tuple(plain.shape), "model.device:", moved.device)
saw = {}
subject = probe.load(moved, processor=processor)
for name, call in {
    "answer": lambda: subject.answer(models.picture(0), "what is it?", max_new_tokens=3) == want,
    "measure": lambda: bool(
        np.isfinite(
            probe.measure(subject, models.picture(0), "what is it?", response="a red circle")[
                "llm"
            ]["mass"].sel(query_type="response")
        ).all()
    ),
}.items():
    try:
        saw[name] = call()
    except Exception as error:
        saw[name] = f"{type(error).__name__}: {str(error)[:90]}"
verdict(all(v is True or str(v).startswith("ProbeError") for v in saw.values()), **saw)
