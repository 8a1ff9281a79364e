"""`AlignRestore`: the public name for alignment and paste-back, over `latentsync.faces`."""

import numpy as np
import torch

from latentsync.faces.align import crop_size, similarity_from_anchors, template_anchors, warp_to_crop
from latentsync.faces.paste import Box, blend_region, paste_region


class AlignRestore:
    """Cuts aligned faces out of the frames of one clip and pastes edited ones back.

    The geometry runs on the CPU whatever `device` says: it works on the face's box only, which takes less time than
    copying a frame to an accelerator and back. `device` and `dtype` are accepted so that existing callers keep working.

    Args:
        align_points: number of anchors; 3 is the only layout there is.
        resolution: working resolution of the networks; sets the crop size (210x280 at 256).
    """

    def __init__(
        self,
        align_points: int = 3,
        resolution: int = 256,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if align_points != 3:
            raise ValueError(f"align_points must be 3, got {align_points}")
        self.resolution = resolution
        self.device = device
        self.dtype = dtype
        self.template = template_anchors(resolution)
        self.face_size = crop_size(resolution)  # (width, height)
        self._bias: np.ndarray | None = None

    def reset(self) -> None:
        """Forget the running translation bias: start of a clip, shot cut, face found again after a gap."""
        self._bias = None

    def align_warp_face(
        self, img: np.ndarray, landmarks3: np.ndarray, smooth: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Aligned crop of a frame.

        Args:
            img: (H, W, 3) uint8.
            landmarks3: (3, 2) anchors in frame pixels: left brow, right brow, nose.
            smooth: keep a running bias across calls.

        Returns:
            face (height, width, 3) uint8 at the crop size, matrix (2, 3) float64, frame -> crop.
        """
        matrix = self.estimate(landmarks3, smooth)
        return warp_to_crop(img, matrix, self.face_size), matrix

    def estimate(self, landmarks3: np.ndarray, smooth: bool = True) -> np.ndarray:
        """Matrix (2, 3) of the next frame's crop alone; see `align_warp_face`."""
        matrix, self._bias = similarity_from_anchors(landmarks3, self.template, self._bias, smooth)
        return matrix

    def restore_img(
        self, img: np.ndarray, face: np.ndarray | torch.Tensor, matrix: np.ndarray | torch.Tensor
    ) -> np.ndarray:
        """Frame with the face pasted back: (H, W, 3) uint8 in and out, the input is left as it is.

        Args:
            face: (h, w, 3) array, 0..255, or (3, h, w) tensor in [-1, 1]; any size.
            matrix: (2, 3) that `align_warp_face` returned with the crop.
        """
        box, rgb, alpha = self.paste_region(img.shape[:2], face, matrix)
        return blend_region(img, box, rgb, alpha)

    def paste_region(
        self,
        frame_size: tuple[int, int],
        face: np.ndarray | torch.Tensor,
        matrix: np.ndarray | torch.Tensor,
        weight: np.ndarray | None = None,
    ) -> tuple[Box, np.ndarray, np.ndarray]:
        """Inputs of the blend: box (x0, y0, x1, y1), rgb (h, w, 3) float32 0..255, alpha (h, w) float32 0..1.

        `frame_size` is (height, width); the box is clipped to it, empty if the face is outside. `weight`, (h, w)
        float32 in [0, 1], limits the blend to a part of the face.
        """
        if isinstance(face, torch.Tensor):
            pixels = (face.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
            face = pixels.permute(1, 2, 0).numpy()
        if isinstance(matrix, torch.Tensor):
            matrix = matrix.detach().cpu().numpy()
        return paste_region(
            frame_size, face, np.asarray(matrix, dtype=np.float64).reshape(2, 3), self.face_size, weight
        )
