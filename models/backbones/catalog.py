"""Backbones by their names in timm, and how the images of their checkpoints were normalised."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from engine import TaskError

from . import convnext, regnet, resnet, swin, vit

type Backbone = resnet.ResNet | convnext.ConvNeXt | regnet.RegNet | swin.SwinTransformer | vit.VisionTransformer

RESNETS = {f"resnet{depth}": {"depth": depth} for depth in resnet.DEPTHS}
RESNETS |= {f"{name}d": {**settings, "deep_stem": True} for name, settings in RESNETS.items()}
"""Name in timm -> settings of a ResNet; those without a d at the end are torchvision's, too."""
FAMILIES: tuple[tuple[Any, Mapping[str, Any]], ...] = (
    (convnext.ConvNeXt, convnext.VARIANTS),
    (regnet.RegNet, regnet.VARIANTS),
    (swin.SwinTransformer, swin.VARIANTS),
    (vit.VisionTransformer, vit.VARIANTS),
)
"""Class and variants of the other families."""
NAMES = (*RESNETS, *(name for _, variants in FAMILIES for name in variants))

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of red, green and blue, in 0..1, over the photographs of ImageNet."""
CENTERED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation with which 0..1 becomes -1..1."""


def create(name: str, *, classes: int = 0, rngs: nnx.Rngs, **settings: Any) -> Backbone:
    """Returns a backbone.

    Args:
        name: one of `NAMES`.
        classes: of a linear classifier; 0: none.
        rngs: random keys for the initial values.
        settings: arguments of a ResNet, or fields of the `Variant` of another family, in place of those of the name.
            Also `layout`, the program whose names the weights have, for a ViT, ConvNeXt or RegNet.

    Raises:
        TaskError: there is no such name or setting.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise TaskError(f"found the backbone {name!r}. Allowed: {', '.join(NAMES)}.{hint}")
    layout: dict[str, Any] = {"layout": settings.pop("layout")} if "layout" in settings else {}
    try:
        if name in RESNETS:
            return resnet.ResNet(**{**RESNETS[name], **settings, **layout}, classes=classes, rngs=rngs)
        family, variants = next(one for one in FAMILIES if name in one[1])
        return family(dataclasses.replace(variants[name], **settings), classes=classes, **layout, rngs=rngs)
    except TypeError as error:
        raise TaskError(f"the backbone {name} does not take the settings {settings}: {error}") from error


def mean_and_deviation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of the colors, in 0..1, as timm normalises images for a name of `NAMES`."""
    centered = name.startswith("vit_") and "dinov2" not in name
    return CENTERED if centered else IMAGENET


def widths(backbone: Backbone) -> dict[int, int]:
    """Returns stride -> features of the map, without computing a map."""
    size = backbone.config.size if isinstance(backbone, vit.VisionTransformer) else (64, 64)
    images = jax.ShapeDtypeStruct((1, *size, 3), "float32")
    maps = nnx.eval_shape(lambda module, x: module.features(x), backbone, images)
    return {stride: found.shape[-1] for stride, found in maps.items()}
