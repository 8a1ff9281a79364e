"""All checkpoint files that the code loads: path under `checkpoints/`, source, and how to recognize them.

Sources are repositories of the public model hub, pinned to a revision, or the download URL of the authors' release.
`latentsync.checkpoints.registry` names groups of these files.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from latentsync.utils.paths import BUNDLED_CHECKPOINTS, CHECKPOINTS_DIR

BLOB_NAME = re.compile("[0-9a-f]{64}")  # of a file in the hub's cache: its SHA-256
REVISIONS = {
    "ByteDance/LatentSync-1.5": "32a20d29aead0498e3e885e90dbbe8027da1b61b",
    "ByteDance/LatentSync-1.6": "c42c7e6c8e9c213626389fa7d9a3c444b8536353",
    "stabilityai/sd-vae-ft-mse": "31f26fdeee1355a5c34592e401dd41e45d25a493",
}


def search_roots(checkpoints: Path | None = None) -> tuple[Path, ...]:
    """Folders to search for checkpoint files: the given one alone, otherwise the user's, then the bundled one."""
    return (checkpoints,) if checkpoints else tuple(dict.fromkeys((CHECKPOINTS_DIR, BUNDLED_CHECKPOINTS)))


@dataclass(frozen=True)
class CheckpointFile:
    """One file under `checkpoints/`.

    repo, repo_path: its location on the model hub.
    url: its location if it is published elsewhere.
    size: in bytes, None if unknown.
    sha256: hash of its content or the first digits of it, None if unknown.
    other_names: paths under which the same content is accepted.
    """

    path: str
    repo: str | None = None
    repo_path: str | None = None
    size: int | None = None
    sha256: str | None = None
    other_names: tuple[str, ...] = ()
    url: str | None = None

    @property
    def is_downloadable(self) -> bool:
        return self.repo is not None or self.url is not None

    @property
    def revision(self) -> str | None:
        return REVISIONS[self.repo] if self.repo else None

    def find(self, checkpoints: Path | None = None) -> Path | None:
        """Path of the file under its own or another accepted name; None if it is missing."""
        for root in search_roots(checkpoints):
            for name in (self.path, *self.other_names):
                path = root / name
                if path.is_file() and self.may_be(path):
                    return path
        return None

    def location(self, checkpoints: Path | None = None) -> Path:
        """Path of the file, or where it belongs if it is missing."""
        return self.find(checkpoints) or search_roots(checkpoints)[0] / self.path

    def may_be(self, path: Path) -> bool:
        """Whether an existing file can be this one, without reading it.

        A link into the hub's cache is compared by hash, which is the file name there, any other file by its size.
        `registry.identify` compares the content.
        """
        if self.sha256 and BLOB_NAME.fullmatch(blob := path.resolve().name):
            return blob.startswith(self.sha256)
        return self.size in (None, path.stat().st_size)


def _hub(
    repo: str, repo_path: str, size: int | None, sha256: str, path: str | None = None, other_names: tuple[str, ...] = ()
) -> CheckpointFile:
    return CheckpointFile(path or repo_path, repo, repo_path, size, sha256, other_names)


V15, V16, SD_VAE = REVISIONS

# fmt: off
UNET_15 = _hub(V15, "latentsync_unet.pt", 5072348184,
               "6440b49a7ccceff56cdc001f5f17605216337f5bbd66fa360139768926e23f51",
               path="default_unet_v1.5.pt", other_names=("latentsync_unet.pt",))
UNET_16 = _hub(V16, "latentsync_unet.pt", 5072222488,
               "0a478e89eb660f82da4c35dbdde8a5adfb27f99d1b4e50edd03729e1e98316d3",
               other_names=("default_unet_v1.6.pt",))
WHISPER_TINY = _hub(V16, "whisper/tiny.pt", 75572083,
                    "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9")
VAE = (
    _hub(SD_VAE, "config.json", None,
         "92d3dfb746fca211a2c9e019e285f8597412211728dce3c5bcf4eda0f2d62e7e", path="vae/config.json"),
    _hub(SD_VAE, "diffusion_pytorch_model.safetensors", 334643276,
         "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
         path="vae/diffusion_pytorch_model.safetensors"),
)
SYNCNET = _hub(V16, "stable_syncnet.pt", 1605328746,
               "77678d13861a02d6e83d0b169962175b6266be773f1f6f85fda2b0182e225118")
SYNCNET_V2 = _hub(V15, "auxiliary/syncnet_v2.model", 54573114,
                  "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442")
S3FD = _hub(V15, "auxiliary/sfd_face.pth", 89844381,
            "d54a87c2b7543b64729c9a25eafd188da15fd3f6e02f0ecec76ae1b30d86c491")
HYPERIQA = _hub(V15, "auxiliary/koniq_pretrained.pkl", 109768650,
                "ff9277bcc68ecc10e77d88b6d0a32825ec3c85562095542734ec6212eaaf6d81")
I3D = _hub(V15, "auxiliary/i3d_torchscript.pt", 51235320,
           "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2")
VIDEOMAE = _hub(V15, "auxiliary/vit_g_hybrid_pt_1200e_ssv2_ft.pth", 2023804201,
                "5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70")
AUXILIARY = (SYNCNET_V2, S3FD, HYPERIQA, I3D, VIDEOMAE)
BUFFALO_L = (
    CheckpointFile("auxiliary/models/buffalo_l/det_10g.onnx", size=16923827,
                   sha256="5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91"),
    CheckpointFile("auxiliary/models/buffalo_l/2d106det.onnx", size=5030888,
                   sha256="f001b856447c413801ef5c42091ed0cd516fcd21f2d6b79635b1e733a7109dbf"),
)
FACE_RECOGNITION = CheckpointFile("auxiliary/models/buffalo_l/w600k_r50.onnx")
REALESRGAN = CheckpointFile(
    "auxiliary/RealESRGAN_x4plus.pth", sha256="4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
    url="https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.0/RealESRGAN_x4plus.pth")
GFPGAN = CheckpointFile(
    "auxiliary/GFPGANv1.4.pth", size=348632874,
    sha256="e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
    url="https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.4.pth")
VGG16 = CheckpointFile("auxiliary/vgg16-397923af.pth", sha256="397923af",
                       url="https://download.pytorch.org/models/vgg16-397923af.pth")
INCEPTION = CheckpointFile(
    "auxiliary/pt_inception-2015-12-05-6726825d.pth", sha256="6726825d",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth")
RIFE = CheckpointFile("auxiliary/rife/flownet.pkl")
LIP_READER = CheckpointFile("auxiliary/vsr_trlrs2lrs3vox2avsp_base.pth")
# fmt: on
EMBEDDED_UNET = CheckpointFile("embedded/unet.safetensors")
EMBEDDED_WHISPER = CheckpointFile("embedded/whisper_tiny_en_encoder.safetensors")
EMBEDDED_SYNCNET = CheckpointFile("embedded/syncnet.safetensors")
EMBEDDED_SCHEDULER = CheckpointFile("embedded/scheduler_config.json")
EMBEDDED_VAE = (
    CheckpointFile("embedded/vae/config.json"),
    CheckpointFile("embedded/vae/diffusion_pytorch_model.safetensors"),
)
