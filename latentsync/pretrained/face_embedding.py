"""Differentiable face recognition: InsightFace's ONNX networks, run by torch.

The recognition network of the buffalo packs (ArcFace, Deng et al. 2019) is published as ONNX only, and onnxruntime
computes no gradients. Its few operators are executed here by torch, one after another.

Legend: N images, C channels, H W pixels, D embedding width.
"""

from collections.abc import Callable
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, nn

from latentsync.checkpoints import registry
from latentsync.utils.errors import UserError
from latentsync.utils.paths import CHECKPOINTS_DIR

RECOGNITION = CHECKPOINTS_DIR / registry.FACE_RECOGNITION.path
ALIGNED_SIZE = (75, 100)  # width, height of an aligned face in template units, before it is resized to a square
SIDE = 112  # pixels of the network's input
# In an aligned face, eyes, nose tip and mouth corners are on average at (22, 28), (53, 28), (37, 45), (26, 63) and
# (50, 63) template units (MediaPipe's mesh on 16 portraits). Scale and shift are the least-squares fit of these points
# to the five points of ArcFace's alignment; the largest error is 0.6 pixels.
ARCFACE_SCALE = 1.1626  # input pixels per template unit
ARCFACE_SHIFT = (12, 19)  # x, y of the aligned face's corner, input pixels
Attributes = dict[str, object]


class FaceEmbedder(nn.Module):
    """Unit embeddings of aligned faces, frozen; gradients reach the pixels."""

    def __init__(self, graph: nn.Module):
        """`graph`: RGB faces (N, 3, 112, 112) in [-1, 1], in ArcFace's framing -> (N, D)."""
        super().__init__()
        self.graph = graph.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, path: str | Path = RECOGNITION) -> "FaceEmbedder":
        """Load a recognition network of InsightFace.

        Raises:
            UserError: the file is missing, damaged, or another kind of network.
        """
        return cls(OnnxGraph.from_file(path))

    def forward(self, faces: Tensor) -> Tensor:
        """Faces (N, 3, R, R) in [-1, 1] as LatentSync aligns them -> unit vectors (N, D), float32."""
        with torch.autocast(faces.device.type, enabled=False):
            return F.normalize(self.graph(to_arcface_framing(faces.float())), dim=1)


def to_arcface_framing(faces: Tensor) -> Tensor:
    """(N, 3, R, R) aligned -> (N, 3, 112, 112): original aspect ratio, eyes and mouth where ArcFace expects them.

    The area above and beside the aligned face is black, as in ArcFace's crops at the border of an image.
    """
    width, height = (round(side * ARCFACE_SCALE) for side in ALIGNED_SIZE)
    resized = F.interpolate(faces, size=(height, width), mode="bilinear", antialias=True)
    left, top = ARCFACE_SHIFT
    return F.pad(resized, (left, SIDE - left - width, top, SIDE - top - height), value=-1.0)


class OnnxGraph(nn.Module):
    """A feed-forward ONNX model with one input and one output, executed by torch operators."""

    def __init__(self, model: onnx.ModelProto, source: str | Path = "the ONNX model"):
        """Raises UserError when the model uses an operator that is not in `OPERATORS`."""
        super().__init__()
        graph = model.graph
        unknown = sorted({node.op_type for node in graph.node} - OPERATORS.keys())
        if unknown:
            raise UserError(
                f"{source}: is not a recognition network of InsightFace (operators {', '.join(unknown)}); "
                f"give {RECOGNITION.name} of the buffalo_l pack"
            )
        weights = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
        # Names in the file contain dots, which buffer names must not.
        self.buffer_of = {name: f"weight_{index}" for index, name in enumerate(weights)}
        for name, tensor in weights.items():
            self.register_buffer(self.buffer_of[name], tensor)
        (self.input,) = (value.name for value in graph.input if value.name not in weights)
        (self.output,) = (value.name for value in graph.output)
        self.nodes = [_parse(node) for node in graph.node]

    @classmethod
    def from_file(cls, path: str | Path) -> "OnnxGraph":
        """Raises UserError when the file is missing, damaged or uses unknown operators."""
        registry.require_file(path, "face_recognition")
        try:
            model = onnx.load(str(path))
        except (DecodeError, OSError, ValueError) as error:
            raise UserError(f"{path}: is damaged or not an ONNX file; download it again") from error
        return cls(model, path)

    def forward(self, x: Tensor) -> Tensor:
        """Run the model in inference mode."""
        values = {name: getattr(self, buffer) for name, buffer in self.buffer_of.items()}
        values[self.input] = x
        for run, inputs, output, attributes in self.nodes:
            values[output] = run(attributes, *(values[name] for name in inputs))
        return values[self.output]


def _parse(node: onnx.NodeProto) -> tuple[Callable[..., Tensor], list[str], str, Attributes]:
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return OPERATORS[node.op_type], list(node.input), node.output[0], attributes


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    return F.conv2d(
        F.pad(x, (left, right, top, bottom)),
        weight,
        bias,
        stride=tuple(attributes.get("strides", (1, 1))),
        dilation=tuple(attributes.get("dilations", (1, 1))),
        groups=attributes.get("group", 1),
    )


def _batch_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


# Operators of InsightFace's recognition networks, each a function of its attributes and inputs.
OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "PRelu": lambda attributes, x, slope: torch.where(x >= 0, x, slope * x),
    "Relu": lambda attributes, x: x.relu(),
    "Add": lambda attributes, a, b: a + b,
    "Flatten": lambda attributes, x: x.flatten(attributes.get("axis", 1)),
    "Gemm": _gemm,
}
