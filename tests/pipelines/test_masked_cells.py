"""Only the cells that the mask regenerates are decoded, where the decoder is local."""

import pytest
import torch

from latentsync.faces.mask import load_mask
from latentsync.loading import load_scheduler
from latentsync.models.patch_autoencoder import PatchAutoencoder
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.pipelines import denoise
from latentsync.pipelines.denoise import masked_cells, regenerate_faces
from tests.conformance.seeded import fill_, seeded_input
from tests.tiny_model import PROJECT_ROOT, UNET


def test_the_cells_hold_all_that_is_regenerated():
    mask = load_mask(256)
    rows, columns = masked_cells(mask, 16)
    kept = mask.clone()
    kept[..., 16 * rows.start : 16 * rows.stop, 16 * columns.start : 16 * columns.stop] = 1
    assert kept.min() == 1
    assert (rows, columns) == (slice(4, 16), slice(0, 16))


def test_a_part_of_the_face_is_decoded(monkeypatch: pytest.MonkeyPatch):
    scheduler = load_scheduler(PROJECT_ROOT / "checkpoints" / "embedded" / "scheduler_config.json")
    codec = LatentCodec(PatchAutoencoder(4, decoder_widths=(8, 8), decoder_blocks=(1, 1), sample_size=128))
    unet = fill_(UNet3DConditionModel(UNetConfig.from_dict(UNET)))
    pixels, mask = torch.tanh(seeded_input("pixels", (1, 2, 3, 128, 128))), load_mask(128)
    tokens, noise = seeded_input("tokens", (1, 2, 4, 32)), torch.zeros(1, 4, 1, 8, 8)
    arguments = (unet, codec, scheduler, pixels, tokens, mask, noise, 1, 1.0)
    found = regenerate_faces(*arguments)
    monkeypatch.setattr(denoise, "DECODED_MARGIN", 8)
    assert torch.allclose(found, regenerate_faces(*arguments), atol=1e-4)
    assert torch.equal(found[..., :40, :], pixels[..., :40, :])
