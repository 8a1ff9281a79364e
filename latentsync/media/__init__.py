"""Media files in and out: probing, streaming decode on an exact timeline, one encode, sound.

Pictures travel as `VideoFrame` (8-bit planar YUV 4:2:0 in the source's own colour space), so that pixels nobody
edits are encoded once and never converted. No external program is run; libav's own messages stay off (PyAV's default).
"""

from latentsync.media.audio import audio_duration, is_silent, load_audio
from latentsync.media.color import ColorTags
from latentsync.media.frame import VideoFrame
from latentsync.media.paths import check_input_path, check_output_path
from latentsync.media.probe import VideoInfo, probe_video
from latentsync.media.timeline import Timeline, frame_count, open_timeline
from latentsync.media.writer import VideoWriter

__all__ = [
    "ColorTags",
    "Timeline",
    "VideoFrame",
    "VideoInfo",
    "VideoWriter",
    "audio_duration",
    "check_input_path",
    "check_output_path",
    "frame_count",
    "is_silent",
    "load_audio",
    "open_timeline",
    "probe_video",
]
