"""Identity figures on given embeddings, and without the network."""

import numpy as np
import pytest

from latentsync.utils.errors import UserError
from recipes.embedded import identity


def test_a_result_is_compared_with_other_moments_of_its_source():
    rng = np.random.default_rng(0)
    person, other = rng.standard_normal((2, 128))
    source = [person + 0.1 * rng.standard_normal(128) for _ in range(8)]
    same, swapped = (
        identity.compare(source, [face + 0.1 * rng.standard_normal(128) for face in faces])
        for faces in ([person] * 8, [other] * 8)
    )
    assert same["similarity_result"] == pytest.approx(same["similarity_real"], abs=0.01)
    assert same["distance_result"] == pytest.approx(same["distance_real"], rel=0.1)
    assert swapped["similarity_result"] < 0.5 * swapped["similarity_real"]
    with pytest.raises(UserError, match="too few frames"):
        identity.compare(source[:2], source[:2])


def test_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(identity, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install dlib-bin"):
        identity.DlibEmbedder()
