"""The model config refuses invalid values with the key and the fix."""

import pytest

from latentsync.models.unet_config import UNetConfig
from latentsync.utils.errors import UserError

# What is given, and what the message has to say.
REFUSED = [
    ({"add_audio_layr": True}, r"model\.add_audio_layr: unknown key; did you mean 'add_audio_layer'"),
    ({"nonsense": 1}, r"model\.nonsense: unknown key; known keys: act_fn, "),
    ({"in_channels": "13"}, r"model\.in_channels: expected a whole number, got str '13'"),
    ({"in_channels": True}, "expected a whole number"),
    ({"norm_eps": "1e-5"}, "expected a number"),
    ({"add_audio_layer": 1}, "expected true or false"),
    ({"block_out_channels": 320}, "expected a list"),
    ({"block_out_channels": [320, "x", 1280, 1280]}, r"block_out_channels\[1\]: expected a whole number"),
    ({"down_block_types": ["DownBlock2D"] * 4}, "is not one of 'CrossAttnDownBlock3D', 'DownBlock3D'"),
    ({"motion_module_type": "Fancy"}, "is not one of 'Vanilla'"),
    ({"resnet_time_scale_shift": "scale_shift"}, "is not one of 'default'"),
    ({"unet_use_cross_frame_attention": True}, "True is not one of False"),
    ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
    ({"norm_eps": 0}, "norm_eps must be above 0"),
    ({"block_out_channels": []}, "block_out_channels is empty"),
    ({"block_out_channels": [320, 640]}, "down_block_types has 4 entries, block_out_channels has 2; make them equal"),
    ({"attention_head_dim": [8, 8]}, "attention_head_dim has 2 entries for 4 blocks"),
    ({"norm_num_groups": 30}, "block_out_channels 320 is not divisible by norm_num_groups 30; change one"),
    ({"attention_head_dim": 7}, "block_out_channels 320 is not divisible by the 7 heads of attention_head_dim"),
    ({"use_motion_module": True, "motion_module_resolutions": [3]}, "are not powers of two; use some of"),
    ({"use_motion_module": True, "motion_module_resolutions": [16]}, "names no block"),
    ({"use_motion_module": True, "motion_module_kwargs": {"num_attention_heads": 7}}, "not divisible by the 7 heads"),
    ({"motion_module_kwargs": {"num_heads": 7}}, r"model\.motion_module_kwargs\.num_heads: unknown key"),
    ({"motion_module_kwargs": {"attention_block_types": []}}, "attention_block_types is empty"),
    ({"motion_module_kwargs": {"attention_block_types": ["Spatial"]}}, "'Spatial' is not one of 'Temporal_Self'"),
    ({"motion_module_kwargs": {"temporal_position_encoding_max_len": 0}}, "max_len must be at least 1"),
    ({"motion_module_kwargs": 8}, "expected a group of keys"),
    ({"layers_per_block": 10**8}, "layers_per_block must be at most 64"),
    ({"cross_attention_dim": 2**62}, "cross_attention_dim must be at most 65536"),
    ({"block_out_channels": [320] * 10_000}, "block_out_channels has 10000 entries"),
    ({"block_out_channels": [2**62, 640, 1280, 1280]}, "is more than 65536"),
    ({"motion_module_kwargs": {"num_transformer_block": 10**8}}, "num_transformer_block must be at most 64"),
    ({"motion_module_kwargs": {"temporal_position_encoding_max_len": 10**12}}, "max_len must be at most 65536"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_refused(values, message):
    with pytest.raises(UserError, match=message) as caught:
        UNetConfig.from_dict(values)
    assert "\n" not in str(caught.value)


def test_defaults_are_stage_1():
    config = UNetConfig.from_dict({})
    assert config.block_out_channels == (320, 640, 1280, 1280) and config.heads_per_block == (8, 8, 8, 8)
    assert config.max_frames is None and config.motion_at(0, decoder=True) is None


def test_motion_modules_are_placed_as_asked():
    config = UNetConfig.from_dict({"use_motion_module": True, "motion_module_resolutions": [1, 4]})
    assert [config.motion_at(level, decoder=False) is not None for level in range(4)] == [True, False, True, False]
    assert config.mid_motion is None and config.max_frames == 24
    values = {"use_motion_module": True, "motion_module_decoder_only": True, "motion_module_mid_block": True}
    efficient = UNetConfig.from_dict(values)
    assert efficient.motion_at(0, decoder=False) is None and efficient.motion_at(0, decoder=True) is not None
    assert efficient.mid_motion is None
