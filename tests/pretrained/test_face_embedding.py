"""ONNX recognition networks run by torch: the same numbers as onnxruntime, with gradients; framing; errors."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from latentsync.faces.align import TEMPLATE_SIZE
from latentsync.pretrained.face_embedding import ALIGNED_SIZE, FaceEmbedder, OnnxGraph, to_arcface_framing
from latentsync.utils.errors import UserError

ARCFACE_POINTS = np.array([(38.3, 51.7), (73.5, 51.5), (56.0, 71.7), (41.5, 92.4), (70.7, 92.2)])
ALIGNED_POINTS = np.array([(21.9, 28.1), (53.2, 28.0), (37.3, 45.2), (25.6, 62.8), (50.3, 62.6)])  # of (75, 100)


def small_model(side: int = 112) -> onnx.ModelProto:
    """One residual block with every operator of the real network, and a stride of 8 before it."""
    rng = np.random.default_rng(0)
    cells = side // 8
    weights = {
        "stem.weight": rng.standard_normal((4, 3, 8, 8)) / 14,
        "stem.bias": rng.standard_normal(4),
        "slope": np.full((4, 1, 1), 0.25),
        "bn.weight": rng.uniform(0.5, 1.5, 4),
        "bn.bias": rng.standard_normal(4),
        "bn.mean": rng.standard_normal(4),
        "bn.var": rng.uniform(0.5, 1.5, 4),
        "conv.weight": rng.standard_normal((4, 2, 3, 3)) / 4,
        "fc.weight": rng.standard_normal((6, 4 * cells * cells)) / 10,
        "fc.bias": rng.standard_normal(6),
    }
    nodes = [
        helper.make_node("Conv", ["input.1", "stem.weight", "stem.bias"], ["a"], strides=[8, 8]),
        helper.make_node("PRelu", ["a", "slope"], ["b"]),
        helper.make_node("BatchNormalization", ["b", *(f"bn.{k}" for k in ("weight", "bias", "mean", "var"))], ["c"]),
        helper.make_node("Conv", ["c", "conv.weight"], ["d"], pads=[1, 0, 1, 2], group=2),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Add", ["e", "b"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"], axis=1),
        helper.make_node("Gemm", ["g", "fc.weight", "fc.bias"], ["out"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [None, 3, side, side])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 6])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> FaceEmbedder:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    onnx.save(small_model(), path)
    return FaceEmbedder.from_pretrained(path)


def test_same_numbers_as_onnxruntime():
    model = small_model()
    faces = np.random.default_rng(1).standard_normal((2, 3, 112, 112), dtype=np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input.1": faces})
    torch.testing.assert_close(OnnxGraph(model)(torch.from_numpy(faces)), torch.from_numpy(expected))


def test_gradients_reach_the_pixels_and_nothing_else(embedder):
    faces = torch.zeros(1, 3, 40, 40, requires_grad=True)
    embedding = embedder(faces)
    assert embedding.shape == (1, 6) and float(embedding.detach().norm()) == pytest.approx(1)
    embedding[0, 0].backward()
    assert faces.grad.abs().sum() > 0 and not any(value.requires_grad for value in embedder.state_dict().values())


@pytest.mark.parametrize("resolution", [64, 256])
def test_features_of_an_aligned_face_come_where_arcface_has_them(resolution):
    assert ALIGNED_SIZE == TEMPLATE_SIZE
    for aligned, wanted in zip(ALIGNED_POINTS, ARCFACE_POINTS, strict=True):
        column, row = (aligned / ALIGNED_SIZE * resolution).round().astype(int)
        face = torch.full((1, 3, resolution, resolution), -1.0)
        face[..., row - 2 : row + 3, column - 2 : column + 3] = 1
        spot = to_arcface_framing(face)[0, 0] + 1
        assert spot.shape == (112, 112)
        found = [float((spot.sum(axis) * torch.arange(112)).sum() / spot.sum()) for axis in (0, 1)]
        assert found == pytest.approx(wanted.tolist(), abs=1.5)


def test_files_that_do_not_fit_are_reported(tmp_path):
    with pytest.raises(UserError, match="latentsync download --model face_recognition"):
        FaceEmbedder.from_pretrained(tmp_path / "none.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="noise.onnx: is damaged"):
        FaceEmbedder.from_pretrained(tmp_path / "noise.onnx")
    model = small_model()
    model.graph.node[4].op_type = "Softmax"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="other.onnx: is not a recognition network of InsightFace .operators Softmax"):
        FaceEmbedder.from_pretrained(tmp_path / "other.onnx")
