"""What only Idefics has: its LLM holds the encoder, and words beside the vocabulary have embeddings
in a matrix of their own.
"""

import pytest
import torch

import probe
from probe.errors import ProbeError
from probe.hooks.model_structure import stacks
from tests.families.checks import QUESTION, Case, decoding, knocked_out, measured, picture
from tests.families.models import idefics


@pytest.mark.parametrize("resampler", [False, True])
def test_an_llm_smaller_than_the_encoder_inside_of_it(resampler):
    """Idefics' decoder holds its encoder too, here with more layers, and a perceiver."""
    subject = probe.load(*idefics(resampler=resampler, num_hidden_layers=1))
    layers = {name: len(stack.layers) for name, stack in stacks(subject.model).items()}
    perceiver = {"compressor": 1} if resampler else {}
    assert layers == {"vision": 2, **perceiver, "cross": 1, "llm": 1}
    case = Case(subject)
    assert measured(case) == knocked_out(case) == decoding(case) == "yes"


def test_ids_of_a_second_embedding_matrix_are_words():
    """Idefics' own markers of images have embeddings of their own, and it may say them."""
    subject = probe.load(*idefics(additional_vocab_size=2))
    last = subject.model.config.vocab_size + 1
    inputs = subject.encode(picture(0), QUESTION, response=[last])
    with torch.no_grad():
        assert subject.model(**inputs).logits.shape[-1] == last + 1
    with pytest.raises(ProbeError, match=f"expected ids from 0 to {last}"):
        subject.encode(picture(0), QUESTION, response=[last + 1])
