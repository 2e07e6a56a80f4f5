"""SegFormer (Xie et al. 2021, arXiv:2105.15203) on the modules of Hugging Face transformers.

Importing this file imports transformers, which takes seconds: only `segray.models` does so, and
only when a SegFormer is built or loaded. Letters: N images, C channels, H and W pixels, K classes.
"""

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from torch import nn
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.utils import logging as hf_logging

from segray.models.contract import (
    MissingWeights,
    ModelError,
    check_images,
    check_num_classes,
    is_number,
    require,
)

# variant: (hidden sizes, blocks a stage, decoder width), from the paper's appendix; the MLP ratio
# is transformers' default, 4 in every stage, as in the published checkpoints
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": ((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": ((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": ((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
HEADS = (1, 2, 5, 8)
SR_RATIOS = (8, 4, 2, 1)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference
PROBE_TIMEOUT = 5.0  # seconds


class SegFormer(nn.Module):
    """(N, 3, H, W) float, ImageNet-normalised -> logits (N, K, H, W) for any H, W >= 32.

    Takes the two halves of a Hugging Face model as they are: `encoder.*` here is `segformer.*`
    there, `decode_head.*` is the same in both. Built by `build` and `load`.

    Raises:
        ModelError: in `forward`, images that are too small (the first stage's sequence reduction
            by 8 has nothing left to work on).
    """

    name = "segformer"

    def __init__(self, stock: SegformerForSemanticSegmentation) -> None:
        super().__init__()
        self.config: SegformerConfig = stock.config
        self.num_classes: int = stock.config.num_labels
        # the rest of the architecture is in the config.json that save_weights writes
        self.options: dict[str, Any] = {"drop_path": float(stock.config.drop_path_rate)}
        self.encoder = stock.segformer
        self.decode_head = stock.decode_head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, K, H, W)."""
        size = images.shape[-2:]
        return F.interpolate(self.coarse(images), size=size, mode="bilinear", align_corners=False)

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, K, H / 4, W / 4), rounded up: what `forward` upsamples."""
        check_images(images)
        return self._decode(self.encoder(images, output_hidden_states=True).hidden_states)

    def _decode(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Four maps (N, C_i, H / 2^(i+2), W / 2^(i+2)), finest first -> (N, K, H / 4, W / 4).

        What transformers' decode head computes, in another order. There each map is projected to D
        channels, upsampled, and all four are fused: fuse(concat(up(P_i x_i + b_i))). A 1x1
        convolution commutes with bilinear upsampling, whose weights sum to 1, and two linear maps
        in a row are one: sum_i up(F_i P_i x_i) + sum_i F_i b_i, without the map of 4 D channels.
        """
        head = self.decode_head
        weights, bias = self._merged()
        # 1.3 times as fast on CPUs in fp32, twice in bf16
        maps = [feature.contiguous(memory_format=torch.channels_last) for feature in features]
        size = maps[0].shape[-2:]
        fused = F.conv2d(maps[0], weights[0][:, :, None, None], bias)
        for feature, weight in zip(maps[1:], weights[1:], strict=True):
            coarse = F.conv2d(feature, weight[:, :, None, None])
            fused += F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        logits: torch.Tensor = head.classifier(
            head.dropout(head.activation(head.batch_norm(fused)))
        )
        return logits

    def _merged(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Projection and fusion as one: weights (D, C_i), finest map first, and a bias (D,)."""
        head = self.decode_head
        projections = [stage.proj for stage in head.linear_projections]
        # (D, 4 D, 1, 1) takes the coarsest stage first -> four of (D, D), finest first
        fuse = head.linear_fuse.weight.flatten(1).chunk(len(projections), dim=1)[::-1]
        with torch.autocast(fuse[0].device.type, enabled=False):  # merged in full precision
            weights = [f @ p.weight for f, p in zip(fuse, projections, strict=True)]
            bias = torch.stack([f @ p.bias for f, p in zip(fuse, projections, strict=True)]).sum(0)
        return weights, bias

    def save_weights(self, folder: Path, class_names: Sequence[str] | None) -> None:
        """Writes model.safetensors and config.json for transformers' `from_pretrained(folder)`."""
        config = copy.deepcopy(self.config)
        if class_names is not None:
            config.id2label = dict(enumerate(class_names))
            config.label2id = {label: index for index, label in enumerate(class_names)}
        with torch.device("meta"):  # an empty shell: it only lends its key names and its writer
            stock = SegformerForSemanticSegmentation(config)
        stock.segformer, stock.decode_head = self.encoder, self.decode_head
        with _silence():
            stock.save_pretrained(folder)


def build(
    num_classes: int,
    *,
    pretrained: str | None = None,
    variant: str | None = None,
    width: float = 1.0,
    drop_path: float = 0.1,
) -> SegFormer:
    """A SegFormer for `num_classes` classes, in training mode.

    Args:
        num_classes: K.
        pretrained: a hub name (nvidia/mit-b3) or a local folder that holds a SegFormer. An
            ImageNet classifier lends its encoder; a segmentation model its head too, as far as
            the shapes agree. What is already in the hub's cache is not asked for again.
        variant: "b0" to "b5", with random weights. Exactly one of `pretrained` and `variant`.
        width: scales hidden sizes and decoder width of a variant; 0.25 suits a CPU. Each head
            keeps the same number of channels in all stages, rounded to at least 1.
        drop_path: stochastic depth rate of the last block, rising linearly from 0 at the first.

    Raises:
        ModelError: a value outside its range, a hub that cannot be reached, a name that does not
            exist, or a folder that holds something else.
    """
    check_num_classes(num_classes)
    require(
        is_number(drop_path) and 0 <= drop_path < 1,
        "model.drop_path of a segformer",
        "a number >= 0 and < 1",
        drop_path,
    )
    if (pretrained is None) == (variant is None):
        raise ModelError(
            "a segformer takes exactly one of pretrained and variant, "
            f"got {pretrained=} and {variant=}. Give pretrained=nvidia/mit-b3 (or a local folder) "
            "to start from trained weights, or variant=b0 to start from random ones."
        )
    if pretrained is not None:
        require(
            isinstance(pretrained, str) and pretrained != "",
            "model.pretrained of a segformer",
            "a hub name such as nvidia/mit-b3 or a local folder",
            pretrained,
        )
        if width != 1.0:
            raise ModelError(
                f"model.width scales a variant's random weights, got {width=} beside "
                f"{pretrained=}. Drop width, or give variant instead of pretrained."
            )
        stock, fresh = _read(_resolve(pretrained), num_classes, drop_path)
        foreign = sorted(key for key in fresh if key.startswith("segformer."))
        if foreign:
            raise ModelError(
                f"expected the weights of a whole SegFormer encoder in {pretrained}, but "
                f"{len(foreign)} of its tensors are missing or misshapen there, first {foreign[0]}."
                " Download it again, or save it with transformers' save_pretrained."
            )
        return SegFormer(stock).train()
    require(
        variant in list(VARIANTS),
        "model.variant of a segformer",
        "one of " + ", ".join(VARIANTS),
        variant,
    )
    require(
        is_number(width) and 0 < width <= 4,
        "model.width of a segformer",
        "a number > 0 and <= 4",
        width,
    )
    return SegFormer(
        SegformerForSemanticSegmentation(_config(str(variant), num_classes, width, drop_path))
    )


def load(folder: Path, num_classes: int, options: dict[str, Any]) -> SegFormer:
    """The SegFormer that `save_weights` wrote to `folder`; needs no network."""
    stock, fresh = _read(folder, num_classes, options["drop_path"])
    if fresh:
        raise ModelError(
            f"expected a whole SegFormer in {folder}, but {len(fresh)} tensors are missing or "
            f"misshapen, first {min(fresh)}. Save the model again."
        )
    return SegFormer(stock)


def _config(
    variant: str, num_classes: int, width: float = 1.0, drop_path: float = 0.1
) -> SegformerConfig:
    """transformers' config of a variant whose channels are scaled by `width`."""
    hidden_sizes, depths, decoder = VARIANTS[variant]
    return SegformerConfig(
        # scaled per head, so that each stage stays divisible by its heads
        hidden_sizes=[
            heads * max(1, round(width * hidden / heads))
            for hidden, heads in zip(hidden_sizes, HEADS, strict=True)
        ],
        depths=list(depths),
        decoder_hidden_size=max(1, round(width * decoder)),
        num_attention_heads=list(HEADS),
        sr_ratios=list(SR_RATIOS),
        drop_path_rate=float(drop_path),
        num_labels=num_classes,
    )


def _read(
    folder: Path, num_classes: int, drop_path: float
) -> tuple[SegformerForSemanticSegmentation, set[str]]:
    """The checkpoint in `folder`, and the keys that it lacked and that are now random.

    Raises:
        ModelError: no SegFormer there, or one that cannot be read.
    """
    _check_is_segformer(folder)
    with _silence():
        try:
            config = SegformerConfig.from_pretrained(folder)
            config.num_labels = num_classes
            config.drop_path_rate = float(drop_path)
            config.reshape_last_stage = True  # same weights; the other layout needs square images
            stock, report = SegformerForSemanticSegmentation.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,  # the default is the file's, which may be half precision
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        # many libraries parse here, each with its own errors; all of them mean a bad folder
        except Exception as error:
            raise ModelError(
                f"expected a SegFormer that transformers can read in {folder}, got "
                f"{_first_line(error)}. Download or save it again."
            ) from error
    # they lie in the mapped file, at unaligned addresses where sums may round otherwise (1e-9 of
    # difference in logits) than in the model that was saved
    for tensor in stock.state_dict(keep_vars=True).values():
        tensor.data = tensor.data.clone()
    misshapen = {
        entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]
    }
    return stock, set(report["missing_keys"]) | misshapen


def _check_is_segformer(folder: Path) -> None:
    """Raises ModelError, saying what `folder` holds, unless it is a SegFormer checkpoint."""
    config = folder / "config.json"
    files = sorted(path.name for path in folder.iterdir())
    if not config.is_file():
        holds = f"no config.json (it has {', '.join(files[:8]) or 'no files'})"
    else:
        try:
            holds = _kind(json.loads(config.read_text(encoding="utf-8")))
        except ValueError as error:
            holds = f"a config.json that is not JSON ({_first_line(error)})"
        if holds == "segformer" and not any(name in files for name in WEIGHTS):
            holds = f"a SegFormer's config.json without {' or '.join(WEIGHTS)}"
    if holds != "segformer":
        raise ModelError(
            f"expected a SegFormer checkpoint (config.json and {WEIGHTS[0]}) in {folder}, which "
            f"holds {holds}. Name a folder that `hf download nvidia/mit-b3 --local-dir DIR`, "
            "transformers' save_pretrained or segray's save_model wrote."
        )


def _kind(config: object) -> str:
    """ "segformer", or a few words on the model that this config.json describes."""
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type == "segformer":
        return "segformer"
    if not isinstance(config, dict) or model_type is None:
        return "a config.json that names no model_type"
    classes = ", ".join(map(str, config.get("architectures") or ["class not named"]))
    return f"a model of type {model_type} ({classes})"


def _resolve(pretrained: str) -> Path:
    """The local folder of a checkpoint: as named, from the hub's cache, or now downloaded.

    Raises:
        ModelError: neither a folder nor a possible hub name, or the hub does not give it.
    """
    folder = Path(pretrained)
    if folder.is_dir():
        return folder
    try:
        return _cached(pretrained) or _download(pretrained)
    except hub_errors.HFValidationError as error:
        raise ModelError(
            f"model.pretrained must be a hub name (owner/name) or a folder that exists, got "
            f"{pretrained!r}, which is no folder (seen from {Path.cwd()}) and cannot be a hub "
            "name. Correct it."
        ) from error


def _cached(name: str) -> Path | None:
    """The cache's folder for `name` where config and weights are in it: no request is made."""
    config = huggingface_hub.try_to_load_from_cache(name, "config.json")
    if isinstance(config, str):
        folder = Path(config).parent
        if any((folder / weights).is_file() for weights in WEIGHTS):
            return folder
    return None


def _download(name: str) -> Path:
    """Fetches config and one weights file of `name` into the hub's cache.

    The library retries a dead connection for 23 s a file. One plain request comes first, so that
    a machine without network hears of it at once.
    """
    with _silence():
        try:
            info = huggingface_hub.HfApi().model_info(name, timeout=PROBE_TIMEOUT)
            offered = {file.rfilename for file in info.siblings or []}
            weights = [file for file in WEIGHTS if file in offered][:1]
            if "config.json" in offered and weights:
                return Path(
                    huggingface_hub.snapshot_download(
                        name, allow_patterns=["config.json", *weights]
                    )
                )
            happened = f"it holds no config.json with {' or '.join(WEIGHTS)}"
            cause = None
        # the class of a lost connection belongs to the HTTP client, which is the library's affair
        except Exception as error:
            happened, cause = _reason(error), error
    raise MissingWeights(
        f"segformer: pretrained weights {name!r} were asked for and are neither a local folder nor "
        f"in the hub's cache, and the hub did not give them: {happened}. On a machine with network "
        f"run `hf download {name} --local-dir DIR`, copy DIR here and set model.pretrained=DIR; "
        "or train from scratch with model={name: segformer, variant: b0}."
    ) from cause


def _reason(error: Exception) -> str:
    if isinstance(error, hub_errors.GatedRepoError):
        return "its owner must grant access first"
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return "it has no model of that name, or a private one"
    if isinstance(error, hub_errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return f"it could not be reached ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0].rstrip('.')}"


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps transformers' load reports, progress bars and warnings away, for the block only."""
    loggings = (hf_logging, hub_logging)
    verbosities = [logging.get_verbosity() for logging in loggings]
    bars = hf_logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logging in loggings:
            logging.set_verbosity_error()
        hf_logging.disable_progress_bar()  # the hub's too
        try:
            yield
        finally:
            for logging, verbosity in zip(loggings, verbosities, strict=True):
                logging.set_verbosity(verbosity)
            if bars:
                hf_logging.enable_progress_bar()
            if not hub_bars:
                disable_progress_bars()
