"""Numbers and names that the whole project shares, each stated once and derived exactly."""


def exact_div(dividend: int, divisor: int) -> int:
    """`dividend / divisor`, which must be whole."""
    quotient, remainder = divmod(dividend, divisor)
    if remainder:
        raise ValueError(f"{dividend} is not a multiple of {divisor}")
    return quotient


SAMPLE_RATE = 16_000  # audio samples per second, of Whisper, SyncNet and processed clips
FPS = 25  # video frames per second of the published models and of processed clips
SAMPLES_PER_FRAME = exact_div(SAMPLE_RATE, FPS)
WHISPER_ROWS_PER_SECOND = 50  # encoder states per second of audio
WHISPER_ROWS_PER_FRAME = exact_div(WHISPER_ROWS_PER_SECOND, FPS)

LATENT_FACTOR = 8  # pixels along each side of one latent cell
RGB = 3  # channels of a frame

DEFAULT_SEED = 1247

# Suffixes by which media files are found in folders.
VIDEO_SUFFIXES = frozenset(
    ".mp4 .mov .mkv .webm .avi .mpg .mpeg .m4v .flv .wmv .ts .mts .m2ts .3gp .ogv .vob .mxf".split()
)
IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .webp .gif .bmp .tif .tiff .heic .avif".split())
AUDIO_SUFFIXES = frozenset(".wav .mp3 .flac .ogg .opus .m4a .aac .wma".split())
OUTPUT_SUFFIXES = (".mp4", ".mov", ".mkv")  # of written videos
