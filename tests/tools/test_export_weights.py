import pytest
import torch

from latentsync.checkpoints.loading import load_checkpoint, save_checkpoint
from tools.export_weights import main


def test_weights_are_halved_in_size_and_equal_up_to_rounding(tmp_path):
    weights = {"a.weight": torch.randn(4, 3), "steps": torch.tensor(7)}
    save_checkpoint(tmp_path / "unet-12.pt", weights, 12)
    assert main(["--checkpoint", str(tmp_path / "unet-12.pt"), "--output", str(tmp_path / "unet.safetensors")]) == 0
    made = load_checkpoint(tmp_path / "unet.safetensors")
    assert made.global_step == 12
    assert made.state_dict["a.weight"].dtype == torch.float16 and made.state_dict["steps"].dtype == torch.int64
    assert torch.allclose(made.state_dict["a.weight"].float(), weights["a.weight"], rtol=1e-3)


@pytest.mark.parametrize("name, words", [("unet.pt", "ends in .safetensors"), ("unet.safetensors", "does not fit")])
def test_invalid_exports_are_refused(tmp_path, capsys, name, words):
    save_checkpoint(tmp_path / "big.pt", {"a": torch.full((2, 2), 1e6)}, 1)
    assert main(["--checkpoint", str(tmp_path / "big.pt"), "--output", str(tmp_path / name)]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / name).exists()
