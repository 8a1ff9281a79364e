"""The lip reader's layout and arithmetic on seeded weights; its public file was not at hand."""

import math

import pytest
import torch
from transformers import Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerRelPositionalEmbedding,
    Wav2Vec2ConformerSelfAttention,
)

from latentsync.pretrained import lip_reader
from latentsync.pretrained.lip_reader import HEADS, SIDE, WIDTH, LipReader, RelativeAttention, relative_positions
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_, seeded_input


@pytest.fixture(scope="module")
def net() -> LipReader:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lip_reader, "BLOCKS", 1)
        return fill_(LipReader(), 0).eval()


def test_layout():
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LipReader().state_dict().items()}
    assert shapes["frontend.frontend3D.0.weight"] == (64, 1, 5, 7, 7)
    assert shapes["frontend.trunk.layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
    assert shapes["frontend.trunk.layer4.1.bn2.running_var"] == (512,) and shapes["proj_encoder.weight"] == (768, 512)
    block = {name.removeprefix("encoder.encoders.11."): shape for name, shape in shapes.items() if ".11." in name}
    assert block["self_attn.pos_bias_u"] == (12, 64) and block["conv_module.depthwise_conv.weight"] == (768, 1, 31)
    assert block["feed_forward_macaron.w_1.weight"] == (3072, 768) and "self_attn.linear_pos.bias" not in block
    assert not any(name.startswith("encoder.encoders.12.") for name in shapes)


@torch.no_grad()
def test_attention_agrees_with_transformers():
    config = Wav2Vec2ConformerConfig(hidden_size=WIDTH, num_attention_heads=HEADS, attention_dropout=0.0)
    theirs = Wav2Vec2ConformerSelfAttention(config).eval()
    ours = fill_(RelativeAttention(), 1)
    theirs.load_state_dict(ours.state_dict())
    x = seeded_input("frames", (2, 9, WIDTH))
    positions = Wav2Vec2ConformerRelPositionalEmbedding(config)(x)
    torch.testing.assert_close(relative_positions(9)[None], positions, atol=1e-4, rtol=1e-4)
    expected = theirs(x, relative_position_embeddings=positions)[0]
    torch.testing.assert_close(ours(x, positions[0]), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_features_depend_on_the_context(net):
    mouths = torch.rand(2, 6, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    both = net(mouths)
    assert both.shape == (2, 6, WIDTH)
    torch.testing.assert_close(both, torch.cat([net(mouths[:1]), net(mouths[1:])]), atol=1e-3, rtol=1e-3)
    changed = mouths.clone()
    changed[0, 5] = 0
    assert not torch.equal(net(changed)[0, 0], both[0, 0])
    scaled = net.frontend(((mouths - 0.421) / 0.165)[:, None])
    assert scaled.shape == (2, 6, 512) and math.isfinite(float(scaled.sum()))


def test_both_layouts_of_the_file_are_read_strictly(net, tmp_path, monkeypatch):
    monkeypatch.setattr(lip_reader, "BLOCKS", 1)
    path, state = tmp_path / "reader.pth", net.state_dict()
    decoder = {"decoder.embed.0.weight": torch.zeros(2), "ctc.ctc_lo.bias": torch.zeros(2)}
    old = {name.replace("proj_encoder.", "encoder.embed.0."): tensor for name, tensor in state.items()}
    old = {f"encoder.{name}" if name.startswith("frontend.") else name: tensor for name, tensor in old.items()}
    for layout in (state, old):
        torch.save({**layout, **decoder}, path)
        read = LipReader.from_pretrained(path)
        assert not read.training and all(torch.equal(read.state_dict()[name], state[name]) for name in state)
    torch.save({name: tensor for name, tensor in state.items() if name != "encoder.after_norm.bias"}, path)
    with pytest.raises(UserError, match=r"after_norm\.bias"):
        LipReader.from_pretrained(path)
