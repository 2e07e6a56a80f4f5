"""The sweep file as frozen pydantic models: every key, its type, its bounds and its default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from segray.config import require, spelling


def _no_bool(value: Any) -> Any:
    """Pydantic would take true for 1."""
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _conditions(value: Any) -> Any:
    return [value] if isinstance(value, str) else () if value is None else value


def _condition(text: str) -> str:
    require.parse(text)
    return text


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    return {} if value is None else value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]
Positive = Annotated[Whole, Field(ge=1, le=1_000_000_000)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]  # what NumPy's and Optuna's generators take
Share = Annotated[Number, Field(ge=0, le=1)]
Size = Annotated[tuple[Annotated[Whole, Field(ge=32)], Annotated[Whole, Field(ge=32)]], "H, W"]


class Frozen(BaseModel):
    """Immutable, and a key that is not in the schema is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class UNet(Frozen):
    """The classic encoder-decoder with skip connections; the default has 31M parameters."""

    name: Literal["unet"]
    width: Positive = 64
    """Channels of the first stage; each stage below has twice as many."""
    depth: Annotated[Whole, Field(ge=1, le=5)] = 4
    """How many times the encoder halves the image."""


class Segformer(Frozen):
    """SegFormer, from a pretrained encoder or from scratch."""

    name: Literal["segformer"]
    pretrained: str | None = None
    """A hub name (nvidia/mit-b3) or a folder that holds a checkpoint."""
    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5"] | None = None
    """The shape to train from scratch, instead of `pretrained`."""
    width: Annotated[Number, Field(gt=0, le=4)] = 1.0
    """Scales the channels of `variant`; 0.5 makes a model for CPUs."""
    drop_path: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth rate of the last encoder block."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.pretrained is None) == (self.variant is None):
            raise ValueError("give either pretrained (a hub name or folder) or variant (b0 to b5)")
        if self.pretrained is not None and self.width != 1:
            raise ValueError("width scales a variant from scratch; pretrained weights have theirs")
        return self


CATEGORIES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
MOST_CLASSES = 254  # a cached mask holds one byte a pixel; 254 and 255 are no classes


class _Data(Frozen):
    size: Size
    """H, W that images are cached and evaluated at."""
    split_seed: Seed = 0
    """Which cities (official) or images (pooled) go where. Not moved by `seed`."""
    ignore: Literal["void", "none"] = "void"
    """void: pixels whose truth is void count nowhere. none: void is a class like any other."""
    limit: Positive | None = None
    """Use at most this many images of each split, the first ones; null: all."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K classes in the order of a model's logits; void, where it is one, comes first."""
        named = tuple(name for name in self._named() if name != "void")
        has_void = self.ignore == "none" and "void" in self._named()
        return ("void", *named) if has_void else named

    def _named(self) -> tuple[str, ...]:
        return ("void", *CATEGORIES)


class _CityData(_Data):
    """Cityscapes' 8 categories, in cities."""

    split: Literal["official", "pooled"] = "official"
    """official: some whole cities of train are val, Cityscapes' val is test.
    pooled: train + val shuffled into 85 / 7.5 / 7.5 %."""
    val_share: Annotated[Number, Field(gt=0, lt=1)] = 0.15
    """official: cities are held out until val has this share of train's images."""


class CityscapesData(_CityData):
    """leftImg8bit/ and gtFine/*_labelIds.png below `root`."""

    format: Literal["cityscapes"]
    root: str
    """The folder that holds leftImg8bit/ and gtFine/: a path that every node has, or
    s3://bucket/folder or gs://bucket/folder, from which each node fetches what it needs once."""


class ScenesData(_CityData):
    """Generated street scenes: no download; written once as files in Cityscapes' layout."""

    format: Literal["scenes"]
    size: Size = (96, 192)
    root: str | None = None
    """Where to write them; default: below segray's cache folder."""
    train_images: Positive = 200
    """Images of the cities that train and val are made of."""
    test_images: Positive = 60
    """Images of the cities that only the final stage sees."""
    cities: Annotated[Whole, Field(ge=2, le=65)] = 10
    """How many cities train and val are made of."""
    test_cities: Annotated[Whole, Field(ge=1, le=65)] = 3
    """How many cities test is made of."""
    seed: Seed = 0
    """Another seed draws other cities."""

    @model_validator(mode="after")
    def _enough_images(self) -> Self:
        if self.train_images < self.cities or self.test_images < self.test_cities:
            raise ValueError("every city needs an image: raise train_images, test_images")
        return self


def _ids(value: Any) -> Any:
    ids = value if isinstance(value, list | tuple) else [value]
    if any(type(i) is not int or not 0 <= i <= 65535 for i in ids):
        raise ValueError(f"expected a label id, 0 to 65535, or a list of them, got {value!r}")
    return tuple(ids)


def _colours(value: Any) -> Any:
    several = isinstance(value, list | tuple) and all(isinstance(c, list | tuple) for c in value)
    colours = value if several else [value]
    for colour in colours:
        channels = colour if isinstance(colour, list | tuple) else ()
        if len(channels) != 3 or any(type(c) is not int or not 0 <= c <= 255 for c in channels):
            raise ValueError(
                f"expected [r, g, b], each 0 to 255, or a list of those, got {value!r}"
            )
    return tuple(tuple(colour) for colour in colours)


def _class_name(value: Any) -> Any:
    if not re.fullmatch(r"[^\W_][\w-]{0,63}", str(value)):
        raise ValueError(f"expected a name of letters, digits, - and _, got {value!r}")
    return value


Rgb = tuple[int, int, int]


class MaskClass(Frozen):
    """What a class of your masks is written as, by id or by colour, and how it is drawn."""

    ids: Annotated[
        tuple[int, ...], BeforeValidator(_ids, json_schema_input_type=int | tuple[int, ...])
    ] = ()
    """The label ids that are this class: one or a list. 1-bit masks hold 0 and 1."""
    color: Annotated[
        tuple[Rgb, ...], BeforeValidator(_colours, json_schema_input_type=Rgb | tuple[Rgb, ...])
    ] = ()
    """[r, g, b], or several; the first is drawn. Where no class has ids, these are the masks'."""


class Folders(Frozen):
    """Where the images of one split are, and their masks."""

    images: str
    masks: str


Part = Annotated[
    Annotated[str, Tag("list")] | Annotated[Folders, Tag("folders")],
    Discriminator(lambda value: "list" if isinstance(value, str) else "folders"),
]


class FoldersData(_Data):
    """Your own images and masks: a mask lies where its image does, or has its stem, plus
    `mask_suffix`."""

    format: Literal["folders"]
    root: str
    """The folder that all other paths are relative to: a path that every node has, or
    s3://bucket/folder or gs://bucket/folder, from which each node fetches what it needs once."""
    images: str | None = None
    """The folder of images, searched with its subfolders."""
    masks: str | None = None
    """The folder of masks, searched with its subfolders."""
    mask_suffix: str = ""
    """What a mask's stem has after its image's: _L for 0001.png and 0001_L.png."""
    classes: dict[Annotated[str, BeforeValidator(_class_name)], MaskClass]
    """Each class and its ids or colours, in the order of the model's outputs. One named void
    holds what `ignore` is about."""
    split: Literal["pooled", "explicit"] = "pooled"
    """pooled: all images shuffled into 85 / 7.5 / 7.5 %. explicit: by train, val and test."""
    train: Part | None = None
    """explicit: {images: ..., masks: ...}, or the path of a text list with a line an image: its
    path below `images` with or without ending, its stem if no other image has it, or SegNet's
    "image-path mask-path"."""
    val: Part | None = None
    """explicit: as train."""
    test: Part | None = None
    """explicit: as train."""

    @property
    def parts(self) -> dict[str, str | Folders]:
        """The splits that an explicit section names, and where each is."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def by_colour(self) -> bool:
        """Whether masks are RGB; otherwise they hold ids."""
        return not any(masked.ids for masked in self.classes.values())

    def _named(self) -> tuple[str, ...]:
        return tuple(self.classes)

    @field_validator("classes")
    @classmethod
    def _tell_classes_apart(cls, classes: dict[str, MaskClass]) -> dict[str, MaskClass]:
        wrong = []
        count = len(classes) - ("void" in classes)
        if not 2 <= count <= MOST_CLASSES - ("void" in classes):
            wrong.append(f"expected 2 to {MOST_CLASSES - 1} classes beside void, got {count}")
        by_id = any(masked.ids for masked in classes.values())
        key = "ids" if by_id else "color"
        lacking = [name for name, masked in classes.items() if not getattr(masked, key)]
        if lacking and by_id:
            wrong.append(f"either all classes have ids or none has; {', '.join(lacking)} has none")
        elif lacking:
            wrong.append(f"{', '.join(lacking)} has neither ids nor color: which pixels are it?")
        seen: dict[object, str] = {}
        for name, masked in classes.items():
            for one in getattr(masked, key):
                if one in seen:
                    what = f"id {one}" if by_id else f"color {list(one)}"
                    twice = "twice" if seen[one] == name else f"in {seen[one]} too"
                    wrong.append(f"{what} of {name} is {twice}: leave it in one place")
                seen[one] = name
        if wrong:
            raise ValueError("; ".join(wrong))
        return classes

    @model_validator(mode="after")
    def _files_are_named(self) -> Self:
        parts = self.parts
        if self.split == "pooled" and parts:
            raise ValueError(
                f"{' and '.join(parts)} stand beside split: pooled; set split: explicit, or give "
                "images and masks instead"
            )
        if self.split == "explicit" and len(parts) < 3:
            lacking = [name for name in ("train", "val", "test") if name not in parts]
            raise ValueError(f"split: explicit needs train, val and test; got no {lacking[0]}")
        listed = any(isinstance(part, str) for part in parts.values())
        if parts and not listed and (self.images or self.masks):
            raise ValueError("train, val and test name their own folders: remove images and masks")
        if (self.split == "pooled" or listed) and not (self.images and self.masks):
            what = "a list" if listed else "split: pooled"
            raise ValueError(f"{what} needs both images and masks, the folders to look in")
        pairs = [part for part in parts.values() if isinstance(part, Folders)]
        same = [part.images for part in pairs if part.images == part.masks]
        if self.images is not None and self.images == self.masks and not listed:
            same.append(self.images)
        if same and not self.mask_suffix:
            raise ValueError(
                f"images and masks are both in {same[0]}: give mask_suffix, to tell them apart"
            )
        return self


class Optimizer(Frozen):
    """AdamW; no decay on norms and biases."""

    lr: Annotated[Number, Field(gt=0)] = 1e-3
    weight_decay: Annotated[Number, Field(ge=0)] = 0.01
    head_lr_mult: Annotated[Number, Field(gt=0)] = 1.0
    """The learning rate of everything behind the encoder is lr times this."""
    clip_norm: Annotated[Number, Field(gt=0)] | None = None
    """Gradients are scaled down to this global L2 norm; null leaves them as they are."""


class Schedule(Frozen):
    """How the learning rate moves; warm-up comes first, whichever is chosen."""

    name: Literal["poly", "plateau", "constant"] = "poly"
    warmup_steps: Annotated[Whole, Field(ge=0)] = 0
    """The learning rate rises linearly from lr / warmup_steps over this many steps."""
    power: Annotated[Number, Field(gt=0)] = 1.0
    """poly: lr x (1 - step/steps)^power."""
    factor: Annotated[Number, Field(gt=0, lt=1)] = 0.3
    """plateau: lr is multiplied by this ..."""
    patience: Annotated[Whole, Field(ge=0)] = 2
    """plateau: ... after more than this many epochs without a better metric."""


class EarlyStop(Frozen):
    """Stop once the metric has not improved for a while."""

    patience: Positive
    """Epochs without improvement after which training stops."""
    min_delta: Annotated[Number, Field(ge=0)] = 0.0
    """What counts as improvement, in the metric's own unit."""


class Loss(Frozen):
    """Cross-entropy on class indices, plus `dice` times the soft Dice loss."""

    class_weights: Literal["balanced"] | tuple[Annotated[Number, Field(ge=0)], ...] | None = None
    """null, balanced (by the square root of train's class frequencies), or one weight a class."""
    dice: Annotated[Number, Field(ge=0)] = 0.0
    """Weight of the soft Dice loss beside cross-entropy."""


class Augment(Frozen):
    """Random changes of a training image; 0 (or scale [1, 1]) switches one off."""

    scale: tuple[Annotated[Number, Field(gt=0)], Annotated[Number, Field(gt=0)]] = (1.0, 1.0)
    """Zoom, drawn log-uniformly between the two; what is missing at the rim is ignored."""
    flip: Share = 0.0
    """Probability of a left-right flip."""
    brightness: Share = 0.0
    """Pixels times 1 +- this."""
    contrast: Share = 0.0
    """Distance from the image's mean grey times 1 +- this."""
    saturation: Share = 0.0
    """Distance from the pixel's own grey times 1 +- this."""
    hue: Annotated[Number, Field(ge=0, le=0.5)] = 0.0
    """Hue turned by +- this share of a full circle."""
    blur: Share = 0.0
    """Probability of a Gaussian blur of 0.1 to 1.5 pixels."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is [smallest, largest], got {list(self.scale)}")
        return self


class Train(Frozen):
    """The training loop."""

    epochs: Positive = 20
    batch_size: Positive = 8
    """Images a step, summed over workers."""
    crop: Size | None = None
    """H, W that a step sees, cut from the cached image; null: data.size."""
    accumulate: Positive = 1
    """In how many passes a worker takes its share of a batch: less memory for the same step. Batch
    normalisation and Dice see a pass at a time."""
    compile: bool = False
    """torch.compile: minutes more at a trial's start, often faster steps on a GPU. It needs a C++
    compiler."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast for SegFormer on a GPU that has it, else fp32; of UNet it was not shown
    that bf16 costs no accuracy."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    early_stop: EarlyStop | None = None
    loss: Loss = Loss()
    augment: Augment = Augment()


class Metric(Frozen):
    """What the sweep optimizes."""

    name: str = "val/miou"
    """val/miou, val/dice, val/accuracy, val/loss or val/iou/<class>; where void is a class, also
    val/miou_without_void."""
    goal: Literal["maximize", "minimize"] = "maximize"
    evaluate_at: Literal["train", "native"] = "train"
    """Where pixels are counted: at data.size, or at each mask's own size, which reads it from its
    file. Losses are of data.size."""
    cost_per_epoch: Annotated[Number, Field(ge=0)] = 0.0
    """What an epoch costs in the metric's unit, so that a long patience has a price."""


class Parameter(Frozen):
    """The values a searched key may take, in the words of a W&B sweep.

    Ray's are taken too, as text (loguniform(1e-5, 1e-2)) or as a mapping; a list means its items.
    """

    distribution: (
        Literal["categorical", "constant", "uniform", "int_uniform", "log_uniform_values"] | None
    ) = None
    """Follows from the other keys where it is left out; min and max that are both whole mean
    int_uniform."""
    values: tuple[Any, ...] | None = None
    """The choices."""
    value: Any = None
    """The only value."""
    min: Whole | Number | None = None
    """The smallest value."""
    max: Whole | Number | None = None
    """The largest value, which can be drawn too."""
    q: Whole | Number | None = None
    """The step: min, min + q, ... max. With uniform and int_uniform."""
    when: dict[str, Annotated[tuple[Any, ...], BeforeValidator(_listed), Field(min_length=1)]] = {}
    """Other searched keys and the value, or list of values, that each must have been given for
    this key to be searched; else it keeps the file's own value."""

    @model_validator(mode="before")
    @classmethod
    def _in_our_words(cls, raw: Any) -> Any:
        return spelling.ours(raw)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needs = {"categorical": ["values"], "constant": ["value"]}.get(
            self.distribution or "", ["min", "max"]
        )
        given = [key for key in ("values", "value", "min", "max") if key in self.model_fields_set]
        if given != needs:
            raise ValueError(
                f"a {self.distribution} parameter needs {' and '.join(needs)}, "
                f"got {' and '.join(given) or 'none of values, value, min, max'}"
            )
        if self.values is not None:
            if len(self.values) == 0:
                raise ValueError("values needs at least one value")
            seen: set[tuple[bool, Any]] = set()
            for value in self.values:
                plain = isinstance(value, int | float | str) and not isinstance(value, bool)
                key = (plain, value if plain else repr(value))  # 1 and 1.0 are one to a study
                if key in seen:
                    raise ValueError(f"every value is listed once, got {value} twice")
                seen.add(key)
        if self.min is not None and self.max is not None:
            if max(abs(self.min), abs(self.max)) > 2**53:
                raise ValueError("min and max must lie within 2^53, where numbers are exact")
            if self.min >= self.max:
                raise ValueError(f"min must be below max, got min={self.min} and max={self.max}")
            if self.distribution == "log_uniform_values" and self.min <= 0:
                raise ValueError(f"a logarithmic range must start above 0, got min={self.min}")
            if self.distribution == "int_uniform" and (self.min % 1 or self.max % 1):
                raise ValueError(f"int_uniform needs whole numbers, got {self.min} and {self.max}")
        if self.q is not None:
            self._check_step(self.q)
        return self

    def _check_step(self, q: float) -> None:
        if self.min is None or self.max is None or self.distribution == "log_uniform_values":
            raise ValueError(f"q is the step of uniform and int_uniform, got {self.distribution}")
        if q <= 0 or (self.distribution == "int_uniform" and q % 1):
            kind = "a whole number above 0" if self.distribution == "int_uniform" else "above 0"
            raise ValueError(f"the step q must be {kind}, got {q}")
        if self.max - self.min > 10**9 * q:
            raise ValueError(
                f"expected at most 10^9 steps, got q={q} from {self.min} to {self.max}"
            )
        if (_exact(self.max) - _exact(self.min)) % _exact(q):
            raise ValueError(f"whole steps of q={q} from min={self.min} miss max={self.max}")

    @model_serializer(mode="wrap")
    def _only_what_was_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if key in self.model_fields_set}

    @property
    def step(self) -> float | None:
        """The distance between two values of a range; None: it is continuous, or no range."""
        return 1 if self.distribution == "int_uniform" and self.q is None else self.q

    @property
    def count(self) -> int | None:
        """How many values there are; None: a continuous range."""
        if self.values is not None:
            return len(self.values)
        if self.min is None or self.max is None:
            return 1
        if self.step is None:
            return None
        return int((_exact(self.max) - _exact(self.min)) / _exact(self.step)) + 1

    def choices(self) -> Iterator[Any]:
        """Every value, in its order; none for a continuous range."""
        if self.values is not None:
            yield from self.values
        elif self.min is None:
            yield self.value
        else:
            yield from (self.nth(position) for position in range(self.count or 0))

    def nth(self, position: int) -> Any:
        """Value number `position`, from 0, of a range with steps."""
        assert self.min is not None
        assert self.step is not None
        value = _exact(self.min) + position * _exact(self.step)
        return int(value) if self.distribution == "int_uniform" else float(value)

    def probes(self) -> tuple[Any, ...]:
        """Values to try against the schema: every choice, or both ends and a point between."""
        if self.values is not None:
            return self.values
        if self.min is None or self.max is None:
            return (self.value,)
        if self.step is not None:
            return (self.min, self.max, self.nth(1))
        between = self.min + 0.3819660113 * (self.max - self.min)  # never a whole number by chance
        return (self.min, self.max, between)

    def contains(self, value: Any) -> bool:
        """Whether the sampler could draw `value`."""
        if self.values is not None:
            return any(value == choice for choice in self.values)
        if self.min is None or self.max is None:
            return bool(value == self.value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.min <= value <= self.max:
            return False
        return self.step is None or (_exact(value) - _exact(self.min)) % _exact(self.step) == 0


def _exact(number: float) -> Decimal:
    """The number as it is written: three steps of 0.1 are 0.3."""
    return Decimal(str(number))


class Asha(Frozen):
    """Asynchronous successive halving: at each rung only the best 1/eta of trials go on."""

    type: Literal["asha"]
    min_iter: Positive = 3
    """The first rung, in epochs; no trial is stopped before it."""
    eta: Annotated[Whole, Field(ge=2)] = 3
    """Rungs stand at min_iter x eta^k epochs."""


class Hyperband(Frozen):
    """Several ASHAs side by side, each with a later first rung, for trials that begin slowly."""

    type: Literal["hyperband"]
    min_iter: Positive = 3
    """The first rung of the strictest, in epochs; no trial is stopped before it."""
    eta: Annotated[Whole, Field(ge=2)] = 3
    """Rungs stand at min_iter x eta^k epochs, and each ASHA begins one rung after the one before,
    the last at or just below train.epochs."""


class Median(Frozen):
    """A trial ends where its objective is worse than the median of finished trials was there."""

    type: Literal["median"]
    min_iter: Positive = 3
    """No trial is stopped before this epoch."""
    min_trials: Positive = 5
    """Nor at an epoch that fewer finished trials came to."""


class NoRule(Frozen):
    """Every trial runs to its end."""

    type: Literal["none"]


def _none_is_null(value: Any) -> Any:
    if not isinstance(value, dict) or value.get("type") != "none":
        return value
    if others := [str(key) for key in value if key != "type"]:
        raise ValueError(f"type: none takes no other key, got {' and '.join(others)}")
    return None


StopRule = Annotated[Asha | Hyperband | Median, Field(discriminator="type")]


class Budget(Frozen):
    """When the search stops even though trials are left. No trial starts that what is left of the
    budget cannot hold; several sweep files in one command share it evenly."""

    hours: Annotated[Number, Field(gt=0)] | None = None
    """Wall-clock hours of searching; then running trials end after their epoch."""
    gpu_hours: Annotated[Number, Field(gt=0)] | None = None
    """Hours of training times the GPUs of a trial; then running trials end after their epoch."""
    epochs: Positive | None = None
    """Epochs of all trials together, never exceeded."""
    unit: Literal["trials", "epochs", "gpu_hours"] = "trials"
    """On what `segray compare` expects sweeps to have spent the same to be fair."""
    max_failed_trials: Annotated[Whole, Field(ge=0)] = 3
    """One more failed trial than this ends the sweep."""


class Failure(Frozen):
    """What happens to a trial that fails."""

    retries: Annotated[Whole, Field(ge=0)] = 1
    """How often a trial whose process died or raised goes on from its last epoch."""
    on_out_of_memory: Literal["stop", "accumulate"] = "stop"
    """accumulate: once more, with twice train.accumulate, so that a pass holds half the images."""
    on_divergence: Literal["stop", "keep"] = "stop"
    """A training whose loss is no longer finite ends. stop: it ranks below all that did not
    diverge; keep: its best epoch counts as any other's."""


class Resources(Frozen):
    """What one trial gets."""

    workers: Positive = 1
    """Processes a trial trains on."""
    gpus_per_worker: Annotated[Number, Field(ge=0)] | Literal["auto"] = "auto"
    """auto: 1 where the cluster has GPUs, else 0."""
    cpus_per_worker: Positive | Literal["auto"] = "auto"
    """auto: the cluster's cores shared out over its GPUs, or 1 without GPUs."""
    max_concurrent: Positive | Literal["auto"] = "auto"
    """auto: as many trials at once as fit."""


class Final(Frozen):
    """Train the winner again, once a seed, and score it on the test split."""

    top_k: Positive = 1
    """More than 1: so many of the best trials are trained again with every seed, and the one with
    the best mean on val is the winner. Only that one is scored on test."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    workers: Positive = 1
    """May differ from resources.workers: search on one GPU a trial, retrain on all."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"every seed can be trained once, got {list(self.seeds)}")
        return self

    @property
    def trainings(self) -> int:
        """How many trainings the stage has."""
        return self.top_k * len(self.seeds)


class Wandb(Frozen):
    """Weights & Biases."""

    project: str = "segray"
    entity: str | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online where a key is known, else offline."""
    images: Annotated[Whole, Field(ge=0)] = 4
    """Images with true and predicted masks that a training shows: of val, and of test as well for
    a final training; 0 sends none, and no comparison's page."""


class Tracking(Frozen):
    """Where results go beside the run folder."""

    wandb: Wandb = Wandb()


Model = Annotated[UNet | Segformer, Field(discriminator="name")]
Data = Annotated[CityscapesData | FoldersData | ScenesData, Field(discriminator="format")]


class TrialConfig(Frozen):
    """Everything that decides the numbers of one training."""

    model: Model
    data: Data
    train: Train
    metric: Metric
    seed: Seed
    workers: Positive
    gpus_per_worker: Annotated[Number, Field(ge=0)]
    threads: Positive
    """torch's CPU threads in each worker: sums depend on their order, so it is frozen."""


class SweepConfig(Frozen):
    """A sweep file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """The run folder's name and the W&B group."""
    storage: str = "runs"
    """The folder that run folders stand in."""
    model: Model
    data: Data
    train: Train = Train()
    metric: Metric = Metric()
    method: Literal["tpe", "random", "grid", "gp", "cmaes", "qmc"] = "tpe"
    """Who chooses the values. tpe: Optuna's tree-structured Parzen estimator. random: chance.
    grid: every combination in turn, in the file's order, the last key fastest. gp: a Gaussian
    process, which asks most of few trials. cmaes: CMA-ES, for hundreds of trials of number ranges.
    qmc: Sobol's sequence, chance spread evenly."""
    seed: Seed = 0
    parameters: Annotated[dict[str, Parameter], BeforeValidator(_without_null)] = {}
    """What is searched: the dotted path of any key of model or train -> its values. null takes out
    what the base of the file searches."""
    start_points: tuple[dict[str, Any], ...] = ()
    """Assignments to try first; parameters they leave out are drawn."""
    require: Annotated[
        tuple[Annotated[str, AfterValidator(_condition)], ...], BeforeValidator(_conditions)
    ] = ()
    """Conditions that every trial meets, such as train.early_stop.patience < train.epochs."""
    early_terminate: Annotated[
        StopRule | None,
        BeforeValidator(_none_is_null, json_schema_input_type=StopRule | NoRule | None),
    ] = None
    """Which trials are stopped early; null or {type: none}: each runs to its end."""
    run_cap: Positive | None = None
    """Trials in the sweep; null: 20, or with method grid every combination."""
    keep_trials: Positive = 3
    """Of how many trials, the best, the weights stay on disk."""
    budget: Budget = Budget()
    failure: Failure = Failure()
    resources: Resources = Resources()
    final: Final | None = None
    tracking: Tracking = Tracking()
