"""Wav2Lip's SyncNet against the reference's figures; training; inputs of another shape."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.models.stable_syncnet import StableSyncNet
from latentsync.models.syncnet_config import StableSyncNetConfig
from latentsync.models.syncnets import make_syncnet
from latentsync.models.wav2lip_syncnet import AUDIO_INPUT, VISUAL_INPUT, Wav2LipSyncNet, Wav2LipSyncNetConfig
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_, seeded_input

CASE = Path(__file__).parents[1] / "conformance" / "wav2lip_syncnet.npz"


def test_forward_conformance():
    with np.load(CASE) as case:
        meta = json.loads(str(case["meta"]))
        expected = torch.from_numpy(case["vision"]), torch.from_numpy(case["audio"])
    net = fill_(Wav2LipSyncNet(), meta["seed"]).eval()
    with torch.no_grad():
        embeds = net(*(seeded_input(key, tuple(meta[key]), meta["seed"]) for key in ("frames", "mel")))
    for got, wanted in zip(embeds, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_trains():
    with torch.device("meta"):
        net = Wav2LipSyncNet().train()
        vision, audio = net(torch.empty(2, *VISUAL_INPUT), torch.empty(2, *AUDIO_INPUT))
        (vision * audio).sum().backward()
    assert vision.shape == audio.shape == (2, 1024)
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_other_shapes_are_refused():
    with torch.device("meta"):
        net = Wav2LipSyncNet()
        with pytest.raises(UserError, match="takes lower halves of 5 frames of 256 px, 15x128x256; got 48x128x256"):
            net.embed_images(torch.empty(1, 48, 128, 256))
        with pytest.raises(UserError, match="takes a mel of 5 frames at 25 fps, 1x80x16; got 1x80x52"):
            net.embed_audio(torch.empty(1, 1, 80, 52))


def test_network_of_a_config():
    encoder = {"in_channels": 6, "block_out_channels": [32, 64], "downsample_factors": [2, 2]}
    with torch.device("meta"):
        assert isinstance(make_syncnet(Wav2LipSyncNetConfig()), Wav2LipSyncNet)
        stable = StableSyncNetConfig.from_dict({"audio_encoder": encoder, "visual_encoder": encoder})
        assert isinstance(make_syncnet(stable), StableSyncNet)
