"""Which token stands for an image: what config and processor say, and where they disagree."""

import pytest
import torch

import probe
from probe.errors import ProbeError
from probe.subject.inputs import collate
from tests.families.checks import QUESTION, picture
from tests.families.models import FAMILIES
from tests.families.processors import IMAGE, PAD, TEMPLATE

OTHER = 40  # a word that is in no question


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "fuyu"])
def test_a_config_that_names_another_token_than_the_processor_writes_is_said(name):
    """It was an error of the model's own code, and `encode` had no vision tokens."""
    model, processor = FAMILIES[name]()
    model.config.image_token_id = OTHER
    subject = probe.load(model, processor=processor)
    expected = r"40 by the model's config, got none; '<image>', which is 4, stands in the prompt"
    with pytest.raises(ProbeError, match=expected):
        subject.encode(picture(0), QUESTION)
    assert not subject.encode(None, QUESTION).types.vision.any()


def test_a_template_that_leaves_images_out_is_said():
    model, processor = FAMILIES["llava"]()
    processor.chat_template = TEMPLATE.replace("<image>", "")
    subject = probe.load(model, processor=processor)
    with pytest.raises(ProbeError, match=r"which is 4, is not in the prompt either; take .* chat"):
        subject.encode(picture(0), QUESTION)


def test_filler_of_a_batch_is_no_image_where_a_placeholder_pads():
    model, processor = FAMILIES["llava"]()
    expand = processor.expand
    processor.expand = lambda size: expand(size).replace("<image>", "<pad>")
    processor.image_token, model.config.image_token_id = "<pad>", PAD
    subject = probe.load(model, processor=processor)
    rows = [
        subject.encode(picture(0), QUESTION),
        subject.encode(picture(1), "how many circle left of it ?"),
    ]
    batch = collate(rows, side="left")
    assert (batch.types.vision.sum(1) == 16).all()
    assert ((batch["input_ids"] == PAD).sum(1) == 16).all()
    with torch.no_grad():
        together = model(**batch).logits[:, -1]
        alone = torch.cat([model(**row).logits[:, -1] for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert IMAGE not in batch["input_ids"]
