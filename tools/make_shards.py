"""Pack training clips into tar shards: `python -m tools.make_shards --fileslist train.parquet --output_dir SHARDS`.

The shards are in WebDataset's layout. `SHARDS/train.parquet` says where in them each clip is: name it as
data.train_fileslist. Folders may be fsspec addresses (s3://bucket/shards). The same command resumes.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from latentsync.config.sections import DataSection
from latentsync.data.file_lists import open_clips
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from preprocess.shards import SHARD_MB, write_shards


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--fileslist", required=True, help="list of clips, text or Parquet, a path or an fsspec address")
    add("--data_dir", default="", help="folder its relative paths start from (default: its own)")
    add("--output_dir", required=True, help="folder of the shards, or an fsspec address")
    add("--shard_mb", type=int, default=SHARD_MB, help="size of a shard in megabytes (default: %(default)s)")
    return parser


@command(interrupted="interrupted; run the same command again to resume")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.shard_mb < 1:
        raise UserError(f"--shard_mb must be 1 or more, not {args.shard_mb}")
    with TemporaryDirectory(prefix="latentsync-") as folder:
        clips = open_clips(DataSection(train_output_dir=folder), args.fileslist, args.data_dir)
        name = Path(args.fileslist).stem
        shards = write_shards(clips, args.output_dir, name, args.shard_mb)
    print(f"{args.output_dir}/{name}.parquet: {len(clips)} clips in {shards} shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
