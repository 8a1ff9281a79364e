"""Reading and writing media files: probing, streaming decode on an exact timeline, encoding, audio.

Frames are `VideoFrame`s (8-bit planar YUV 4:2:0 in the source's own color space), so that unedited pixels are never
converted and encoded only once. No external program is run; libav's own log is off (PyAV's default).
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
