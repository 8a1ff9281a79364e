"""Networks give the same results in ONNX Runtime as in PyTorch, at static shapes."""

import sys

import pytest

from latentsync.loading import ModelPaths, load_pipeline
from tests.tiny_model import RESOLUTION, TinyFiles
from tools import export_onnx


def test_networks_in_onnx_runtime(tmp_path, tiny_files: TinyFiles):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pipeline = load_pipeline(ModelPaths(**vars(tiny_files)), "cpu")
    for name, network in export_onnx.networks(pipeline, frames=2, batch=2).items():
        path = tmp_path / f"{name}.onnx"
        assert export_onnx.export(network, path) < 1e-3
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert {item.name: item.shape for item in session.get_inputs()} == {
            key: list(value.shape) for key, value in network.inputs.items()
        }
    [pixels] = session.get_outputs()
    assert pixels.shape == [2, 3, RESOLUTION, RESOLUTION]


def test_without_onnx(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export_onnx.main(["--output", str(tmp_path / "onnx")]) == 1
    assert "pip install '.[onnx]'" in capsys.readouterr().err and not (tmp_path / "onnx").exists()
