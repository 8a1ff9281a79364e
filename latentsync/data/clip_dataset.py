"""What the datasets share: which clip a sample is of, a bounded retry where one cannot be read, balance of people."""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentsync.data.cache import CacheWriteError
from latentsync.data.clips import Clip
from latentsync.data.draws import Draw, item_rng
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_TRIES = 8


class ClipDataset(torch.utils.data.Dataset):
    """Map-style dataset over clips. Subclasses say how a sample is made of a clip (`make_item`).

    An item is asked for by a `Draw`, or by an integer i, which stands for `Draw(i, i)`. What the item draws is a pure
    function of (seed, key). Where its clip cannot be read another one takes its place, at most 8 clips in all; those
    that failed are named in warnings and in the item's `failed_paths`.

    Use `latentsync.data.draws.collate` as the `collate_fn` of a DataLoader: a batch that cannot be made is then
    `{"error": str}`.
    """

    def __init__(self, clips: Sequence[Clip], seed: int) -> None:
        if not clips:
            raise UserError("there are no clips to train on; give a file list that is not empty")
        self.clips, self.seed = list(clips), seed

    def make_item(self, clip: Clip, key: int, rng: np.random.Generator) -> dict:
        """A sample of `clip`, a pure function of (seed, key) and `rng`. Raises UserError when it cannot be read."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.clips)

    def person_weights(self) -> Tensor:
        """(number of clips,) sampling weights: a person counts with the square root of the clips there are."""
        counts = Counter(clip.person for clip in self.clips)
        return torch.tensor([counts[clip.person] ** -0.5 for clip in self.clips], dtype=torch.double)

    def __getitem__(self, item: int | Draw) -> dict:
        """The sample; `key`, `video_path` and `failed_paths` beside what `make_item` gives.

        Raises:
            UserError: 8 clips, or all there are, cannot be read; or a cache cannot be written.
            IndexError: the index is beyond the clips.
        """
        draw = item if isinstance(item, Draw) else Draw(item, item)
        tried, failed = [draw.index], []
        while True:
            clip, rng = self.clips[tried[-1]], item_rng(self.seed, draw.key, len(failed))
            try:
                made = self.make_item(clip, draw.key, rng)
            except CacheWriteError:
                raise
            except UserError as error:
                logger.warning("a clip cannot be used: %s", error)
                failed.append(str(clip.path))
                others = np.setdiff1d(np.arange(len(self.clips)), tried)
                if len(failed) == MAX_TRIES or not len(others):
                    names = ", ".join(failed)
                    raise UserError(f"{len(failed)} clips tried, none can be used: {names}; last: {error}") from error
                tried.append(int(rng.choice(others)))
            else:
                return {**made, "key": draw.key, "video_path": str(clip.path), "failed_paths": failed}

    def __getitems__(self, items: Sequence[int | Draw]) -> list[dict]:
        """Samples of a batch for a DataLoader, or one `{"error": str}` where one of them cannot be made."""
        try:
            return [self[item] for item in items]
        except UserError as error:
            return [{"error": str(error)}]
