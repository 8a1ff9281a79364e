"""The order of samples: counted, the same for any number of processes, by weight."""

from itertools import islice

import numpy as np
import pytest
import torch

from latentsync.data.sampler import SampleId, StepBatchSampler, collate, item_rng


def drawn(count: int, *args, **options) -> list[SampleId]:
    return [draw for batch in islice(StepBatchSampler(*args, **options), count) for draw in batch]


def test_an_epoch_is_a_fresh_order_of_all_items():
    draws = drawn(9, 6, 2, 5)
    assert [draw.key for draw in draws] == list(range(18))
    epochs = [[draw.index for draw in draws[start : start + 6]] for start in (0, 6, 12)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [draw.index for draw in drawn(3, 6, 2, 6)]


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 5.0, 2.0, 0.0, 3.0])])
def test_two_processes_sample_like_one_with_twice_the_batch(weights):
    one = list(islice(StepBatchSampler(5, 6, 1, weights=weights), 8))
    two = [list(islice(StepBatchSampler(5, 3, 1, weights=weights, rank=rank, world_size=2), 8)) for rank in (0, 1)]
    assert one == [first + second for first, second in zip(*two, strict=True)]
    assert one[3:] == list(islice(StepBatchSampler(5, 6, 1, weights=weights, start=3), 5))
    assert StepBatchSampler(5, 6, 1, weights=weights).batch(7) == one[7]


def test_items_come_up_as_often_as_their_weight_says():
    weights = torch.tensor([0.0, 1.0, 2.5, 0.0, 0.5, 0.0])
    counts = np.bincount([draw.index for draw in drawn(400, 6, 6, 3, weights=weights)], minlength=6)
    assert counts[[0, 3, 5]].sum() == 0
    assert counts / counts.sum() == pytest.approx(weights.numpy() / 4, abs=0.02)
    few = np.bincount([draw.index for draw in drawn(1, 6, 6, 3, weights=weights)], minlength=6)
    assert np.abs(few - 6 * weights.numpy() / 4).max() < 1


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be 2 finite numbers"):
        StepBatchSampler(2, 1, 0, weights=torch.tensor(weights))


@pytest.mark.parametrize("options", [{"num_items": 0}, {"batch_size": 0}, {"start": -1}, {"rank": 1}])
def test_counts_out_of_range_are_refused(options):
    arguments = {"num_items": 2, "batch_size": 1, "seed": 0, **options}
    with pytest.raises(ValueError, match="got"):
        StepBatchSampler(**arguments)


def test_item_randomness_hangs_on_seed_key_and_attempt():
    values = {item_rng(*place).random() for place in ((1, 2), (1, 3), (2, 2), (1, 2, 1), (-1, 2))}
    assert len(values) == 5
    assert item_rng(1, 2).random() == item_rng(1, 2, 0).random()


def test_collate():
    items = [{"x": torch.ones(2), "key": index, "failed_paths": [], "video_path": "v"} for index in (3, 4)]
    batch = collate(items)
    assert batch["x"].shape == (2, 2)
    assert torch.equal(batch["key"], torch.tensor([3, 4]))
    assert batch["failed_paths"] == [[], []] and batch["video_path"] == ["v", "v"]
    assert collate([*items, {"error": "no clip"}]) == {"error": "no clip"}
    assert "x differs in shape" in collate([{"x": torch.ones(2)}, {"x": torch.ones(3)}])["error"]


def test_neighboring_keys_may_share_an_item():
    draws = drawn(2, 4, 6, 2, repeats=3)
    assert [draw.key for draw in draws] == list(range(12))
    indices = [draw.index for draw in draws]
    assert [indices[start : start + 3] for start in (0, 3, 6, 9)] == [[index] * 3 for index in indices[::3]]
    assert sorted(indices[::3]) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="repeats"):
        StepBatchSampler(4, 6, 2, repeats=0)
