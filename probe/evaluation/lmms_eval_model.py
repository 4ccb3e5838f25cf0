"""A subject, under any intervention or reducer, as a model of lmms-eval (extra `lmms-eval`).

    from lmms_eval import evaluator
    model = lmms_eval_model(subject, FastV(2, 0.5))
    model = lmms_eval_model(subject, lambda subject: drop_vision(subject, layers=range(8)))
    evaluator.simple_evaluate(model=model, tasks=["gqa"])

lmms-eval keeps answers under the text of the model: here it names checkpoint, weights and all that
is done to it, so that answers of two interventions are never mixed up. Answers are greedy unless a
task asks for a temperature; a request that fails ends the evaluation and is not an empty
answer. Written for lmms-eval 0.7.3 (`lmms_eval/api/model.py`: class `lmms`).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

from tqdm.auto import tqdm

from probe.errors import ProbeError
from probe.hooks.model_state import active_interventions
from probe.records.provenance import content_hash
from probe.subject.subject import Subject

Block = Callable[[Subject], AbstractContextManager[Any]]
IMAGE_MARK = re.compile(r"<image>\s*")  # where tasks write it themselves; encoding places images
GENERATION = ("temperature", "top_p", "num_beams")  # arguments of a task that generate takes
LONGEST = 1024  # new tokens, where a task does not say (as lmms-eval's own models)


def lmms_eval_model(subject: Subject, *under: Block, base: type | None = None) -> Any:
    """The subject as lmms-eval takes it for `model=`; `under`: reducers and interventions, each
    entered with the subject, outermost first.

    `base`: the class to derive from, by default lmms-eval's `lmms`. Raises ProbeError where
    lmms-eval is not installed, and for a block that changes the model without saying what it does.
    """
    identity = _identity(subject, under)

    class SubjectModel(base or _lmms_base()):  # type: ignore[misc]
        is_simple = True
        batch_size_per_gpu = 1

        def __repr__(self) -> str:
            return identity

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """The answer to each request, in their order."""
            with _inside(subject, under):
                return [
                    _answer(subject, self.task_dict, request)
                    for request in tqdm(requests, desc="answer", disable=self.rank != 0)
                ]

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
            raise _unknown("generate_until_multi_round")

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            raise _unknown("loglikelihood")

    return SubjectModel()


def _lmms_base() -> type:
    if find_spec("lmms_eval") is None:
        fix = "pip install 'probe-llava[lmms-eval]'"
        raise ProbeError("lmms_eval_model", expected="the package lmms_eval", got="none", fix=fix)
    from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]

    return lmms


def _unknown(kind: str) -> ProbeError:
    fix = "choose a task whose answers are generated"
    return ProbeError("lmms_eval_model", expected="requests of generate_until", got=kind, fix=fix)


@contextmanager
def _inside(subject: Subject, under: Sequence[Block]) -> Iterator[None]:
    with ExitStack() as stack:
        for block in under:
            stack.enter_context(block(subject))
        yield


def _identity(subject: Subject, under: Sequence[Block]) -> str:
    """Text that is equal for equal models under equal blocks only."""
    plain = subject.provenance()
    with _inside(subject, under):
        facts = subject.provenance() | {"intervention": active_interventions(subject.model)}
    names = [repr(block) for block in under]
    if any(" at 0x" in name for name in names) and facts == plain | {"intervention": ""}:
        raise ProbeError(
            "lmms_eval_model",
            expected="blocks that say what they do to the model",
            got=", ".join(names),
            fix="give a reducer, or a function that opens an intervention of probe",
        )
    facts["under"] = [re.sub(r" at 0x[0-9a-f]+", "", name) for name in names]
    digest = content_hash(json.dumps(facts, sort_keys=True, default=str), length=16)
    done = "; ".join(filter(None, (facts["reducer"], facts["intervention"]))) or "as it is"
    return f"probe({subject.name}, {done}, {digest})"


def _answer(subject: Subject, tasks: Mapping[str, Any], request: Any) -> str:
    context, arguments, doc_to_visual, doc_id, task, split = request.args
    images = doc_to_visual(tasks[task][split][doc_id])
    question = IMAGE_MARK.sub("", context).strip()
    inputs = subject.encode(list(images or ()), question)
    options = {name: arguments[name] for name in GENERATION if arguments.get(name) is not None}
    sampled = options.get("temperature", 0) > 0
    if not sampled:  # transformers warns about options that only sampling uses
        options = {name: value for name, value in options.items() if name == "num_beams"}
    longest = int(arguments.get("max_new_tokens") or LONGEST)
    (ids,) = subject.generate_ids(inputs, longest, do_sample=sampled, **options)
    text = inputs.vocabulary.words(ids)
    return _until(text, arguments.get("until") or ())


def _until(text: str, stops: str | Sequence[str]) -> str:
    """The text before the first of the stops.

    >>> _until("a cat. On the mat", [".", "\\n"])
    'a cat'
    """
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop, 1)[0] if stop else text
    return text.strip()
