"""A chat template that would not end, or take all memory, is one line."""

import threading
import time

import models
import pytest

from probe.data.chat_template import render
from probe.data.messages import messages_of
from probe.data.template_limits import check_templates, within_limits
from probe.errors import ProbeError

USER = {"role": "user", "content": "hi"}
LOOPS = "{% for i in range(90000) %}{% for j in range(90000) %}a{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ 9 ** 9 ** 9 }}", r"computes no powers, got \*\*"),
        ("{% set n = 2**n %}", r"computes no powers, got \*\*"),
        ("{{ 'a' * 10000000000 }}", "numbers up to 100,000 in it, got '10000000000'"),
        ("{{ 'a' * 0xfffffffff }}", "got '0xfffffffff'"),
        ("{{ 1e300 }}", "got '1e300'"),
    ],
)
def test_a_step_without_end_is_refused_before_it_is_taken(template, told):
    _, processor = models.llava15()
    processor.chat_template = template
    with pytest.raises(ProbeError, match=f"^chat template: .*{told}; mend chat_template.jinja"):
        render(processor, messages_of("hi", 0, "<image>"))


def test_templates_of_real_models_pass():
    for factory in (models.llava15, models.llava_next_mistral):
        check_templates(factory()[1].chat_template)
    check_templates({"default": "{{ '10**9' }}", "tool": "{# 2**9999999 #}x 5 ** 7"})


def test_loops_without_end_are_stopped_and_leave_no_thread():
    _, processor = models.llava15()
    before = threading.active_count()

    def rendering() -> str:
        return processor.apply_chat_template([USER], chat_template=LOOPS)

    with pytest.raises(ProbeError, match=r"^chat template: expected one that ends within 0.2 s"):
        within_limits(rendering, seconds=0.2)
    patience = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < patience:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_what_a_rendering_returns_or_raises_is_handed_on():
    assert within_limits(lambda: "text") == "text"
    with pytest.raises(KeyError, match="missing"):
        within_limits(lambda: {}["missing"])
