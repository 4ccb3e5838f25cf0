"""Views are cut where the processors cut them."""

from hypothesis import given
from hypothesis import strategies as st
from transformers.image_processing_utils import select_best_resolution

from probe.data.image_views import best_resolution

SIZE = st.tuples(st.integers(2, 3000), st.integers(2, 3000))
PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


@given(SIZE, st.one_of(st.just(PINPOINTS), st.lists(SIZE, min_size=1, max_size=6)))
def test_the_canvas_is_the_one_that_transformers_chooses(size, resolutions):
    assert best_resolution(size, resolutions) == select_best_resolution(size, resolutions)
