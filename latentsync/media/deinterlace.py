"""Deinterlacing with libav's bwdif: one frame per frame, at the same times."""

from collections.abc import Iterable, Iterator

import av
from av.filter import Graph


def deinterlaced(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yield the frames of one stream; those flagged as interlaced are deinterlaced.

    Each one is computed from its neighbors too; the first and the last one have only one. Frames before the first
    interlaced one pass unchanged.
    """
    graph: Graph | None = None
    size: tuple[int, int, str] | None = None
    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        found = (frame.width, frame.height, frame.format.name)
        if graph is None or found != size:
            if graph is not None:
                yield from _pull(graph, None)
            graph, size = _open(frame), found
        yield from _pull(graph, frame)
    if graph is not None:
        yield from _pull(graph, None)


def _open(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph


def _pull(graph: Graph, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
    """Frames that are ready after one more; None ends the stream."""
    graph.push(frame)
    while True:
        try:
            result = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        if isinstance(result, av.VideoFrame):
            yield result
