"""Models of convoy_zoo.models.backbones with weights of torchvision, timm and transformers, on a CPU in float32."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.references import backbone_run, killed_run
from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import compare_files, exchanged
from benchmarks.references.rows import Row, relative
from convoy_zoo.models.backbones import convnext, preprocessing, regnet, swin
from convoy_zoo.models.backbones.convnext import ConvNeXt
from convoy_zoo.models.backbones.layouts import Layout
from convoy_zoo.models.backbones.preprocessing import Preprocessing
from convoy_zoo.models.backbones.pyramid import FeaturePyramid
from convoy_zoo.models.backbones.regnet import RegNet
from convoy_zoo.models.backbones.resnet import ResNet
from convoy_zoo.models.backbones.swin import SwinTransformer
from convoy_zoo.models.backbones.vit import Variant, VisionTransformer
from engine import hub, load
from engine.base.errors import RunError


def _small_vit(rngs: nnx.Rngs, layout: Layout = "timm", **settings: Any) -> nnx.Module:
    variant = Variant(width=8, depth=2, heads=2, patch=4, size=(16, 16), **settings)
    return VisionTransformer(variant, classes=0 if layout == "transformers" else 5, layout=layout, rngs=rngs)


def _small_regnet(rngs: nnx.Rngs, layout: Layout = "timm") -> nnx.Module:
    variant = regnet.Variant((1, 2, 1, 1), (8, 16, 24, 32), 4, 0.25, stem=4)
    return RegNet(variant, classes=5, layout=layout, rngs=rngs)


class _Pyramid(FeaturePyramid):
    """A feature pyramid on every fourth, eighth and sixteenth pixel."""

    def __call__(self, images: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns all features of an image in one row, from the finest map on."""
        maps = super().__call__({stride: images[:, ::stride, ::stride] for stride in self.strides})
        return jnp.concatenate([x.reshape(len(x), -1) for x in maps.values()], axis=1)


OUTPUTS, GRADIENTS = 1e-4, 1e-3
"""Tolerances, relative to the largest number of the array."""
SMALLEST = 1e-3
"""A gradient whose numbers are smaller than this share of the model's largest one is compared with that share of it:
the gradient of the bias of keys is 0 but for rounding."""
TINY, DIFFERENTIATED = 15, 6
"""The first items, whose files are the golden numbers of the tests, and how many of them have their gradients tested:
the others are the same models with the names of other programs, models of the same layers, and the feature pyramid."""
MODELS: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
    "tiny-resnet-d": lambda rngs: ResNet(
        (1, 2, 1, 1), width=2, stem=2, classes=5, bottleneck=True, deep_stem=True, rngs=rngs
    ),
    "tiny-vit": lambda rngs: _small_vit(rngs),
    "tiny-dinov2": lambda rngs: _small_vit(rngs, registers=3, positions_of_class=False, layer_scale=0.5),
    "tiny-siglip": lambda rngs: _small_vit(rngs, class_token=False, positions_of_class=False, pooling="query"),
    "tiny-convnext": lambda rngs: ConvNeXt(convnext.Variant((1, 2, 1, 1), (4, 6, 8, 10)), classes=5, rngs=rngs),
    "tiny-swin": lambda rngs: SwinTransformer(swin.Variant((2, 2), (1, 2), 4, 4), classes=5, rngs=rngs),
    "tiny-regnet": lambda rngs: _small_regnet(rngs),
    "tiny-vit-transformers": lambda rngs: _small_vit(rngs, layout="transformers"),
    "tiny-dinov2-transformers": lambda rngs: _small_vit(rngs, layout="transformers", registers=3, layer_scale=0.5),
    "tiny-vit-torchvision": lambda rngs: _small_vit(rngs, layout="torchvision"),
    "tiny-convnext-transformers": lambda rngs: ConvNeXt(
        convnext.Variant((1, 2, 1, 1), (4, 6, 8, 10)), layout="transformers", rngs=rngs
    ),
    "tiny-pyramid": lambda rngs: _Pyramid({4: 3, 8: 3, 16: 3}, 6, rngs=rngs),
    "tiny-regnet-torchvision": lambda rngs: _small_regnet(rngs, layout="torchvision"),
    "tiny-siglip-transformers": lambda rngs: _small_vit(
        rngs, layout="transformers", class_token=False, positions_of_class=False, pooling="query", gelu="tanh"
    ),
    "tiny-convnext-torchvision": lambda rngs: ConvNeXt(
        convnext.Variant((1, 2, 1, 1), (4, 6, 8, 10)), classes=5, layout="torchvision", rngs=rngs
    ),
    "vit_b_16": lambda rngs: VisionTransformer("vit_base_patch16_224", classes=1000, layout="torchvision", rngs=rngs),
    "resnet18": lambda rngs: ResNet(18, classes=1000, rngs=rngs),
    "resnet50": lambda rngs: ResNet(50, classes=1000, rngs=rngs),
    "resnet50d": lambda rngs: ResNet(50, classes=1000, deep_stem=True, rngs=rngs),
    "vit_tiny_patch16_224": lambda rngs: VisionTransformer("vit_tiny_patch16_224", classes=1000, rngs=rngs),
    "vit_small_patch14_reg4_dinov2": lambda rngs: VisionTransformer("vit_small_patch14_reg4_dinov2", rngs=rngs),
    "convnext_tiny": lambda rngs: ConvNeXt("convnext_tiny", classes=1000, rngs=rngs),
    "swin_tiny_patch4_window7_224": lambda rngs: SwinTransformer(classes=1000, rngs=rngs),
    "regnetx_002": lambda rngs: RegNet("regnetx_002", classes=1000, rngs=rngs),
    "regnety_004": lambda rngs: RegNet("regnety_004", classes=1000, rngs=rngs),
    "regnet_y_400mf": lambda rngs: RegNet("regnety_004", classes=1000, layout="torchvision", rngs=rngs),
    "vit_base_patch16_siglip_224": lambda rngs: VisionTransformer("vit_base_patch16_siglip_224", rngs=rngs),
}
"""Item -> the model of this repository."""
RUN = "camera-run"
ITEMS = (*MODELS, RUN)
PREPROCESSING = {
    "timm": Preprocessing((32, 32), 36),
    "torchvision": dataclasses.replace(preprocessing.TORCHVISION, size=(32, 32), resize=40),
    "vit": dataclasses.replace(preprocessing.of_transformers("vit"), size=(32, 32)),
    "dinov2": dataclasses.replace(preprocessing.of_transformers("dinov2"), size=(32, 32), resize=40),
}
"""Program or model of transformers -> its preprocessing, for a small size."""


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields the rows of each item; there is one random set of weights for each, whatever the number of cases."""
    yield from compare_files(environment, {"sets": list(ITEMS)}, compared, TINY, train)


def compared(folder: Path, only: str = "") -> Iterator[Row]:
    """Yields rows for the items of a folder in which the outside program has run: outputs, and their gradients.

    Args:
        folder: the folder.
        only: an item; by default all.
    """
    items, _ = exchanged(folder)
    if not only:
        yield from preprocessed(folder)
    for item in [only] if only else items:
        if item == RUN:
            yield from exported(folder / item)
            continue
        with np.load(folder / item / "arrays.npz") as stored:
            arrays = dict(stored)
        module = without_values(MODELS[item])
        hub.load(module, folder / item / "model.safetensors")
        module.eval()
        outputs, of_images, of_module = _run(
            module, arrays["images"], arrays["weights"], "resnet" in item or "regnet" in item
        )
        yield Row(f"{item}, outputs", outputs.size, relative(outputs, arrays["outputs"]), OUTPUTS)
        yield Row(f"{item}, gradient of images", of_images.size, relative(of_images, arrays["gradient"]), GRADIENTS)
        hub.load(module, folder / item / "gradients.safetensors", {r"^(.*/)?(mean|var)$": None})
        wanted = jax.tree.leaves(nnx.state(module, nnx.Param))
        found = jax.tree.leaves(of_module)
        floor = SMALLEST * max(float(jnp.abs(x).max()) for x in wanted)
        largest = max(relative(*pair, floor) for pair in zip(found, wanted, strict=True))
        yield Row(f"{item}, gradients of weights", len(found), largest, GRADIENTS)


def train(folder: Path) -> None:
    """Trains the run of a folder, and writes its backbone for the outside program."""
    if not (own := folder / RUN).is_dir():
        return
    arguments = ["--config=benchmarks.references.backbone_run", f"--config.init.checkpoint=hf:{own}"]
    rows = killed_run.compare(RUN, arguments, own, backbone_run.KILLS)
    (own / "rows.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    run = own / killed_run.KILLED
    net: Any = load(run).model
    net = net.backbone.net
    net.eval()
    with np.load(own / "arrays.npz") as stored:
        found = nnx.jit(lambda net, images: net.features(images))(net, stored["images"])
    np.save(own / "map.npy", np.asarray(found[32]))
    (own / "written").mkdir()
    killed_run.convoy(
        "export",
        str(run),
        "--format=hf",
        "--part=backbone/net",
        f"--out={own / 'written' / 'model.safetensors'}",
        "--no-card",
    )


def exported(folder: Path) -> Iterator[Row]:
    """Yields the rows of the run: what kills have changed, and the last map of its backbone in torchvision."""
    yield from (Row(**row) for row in json.loads((folder / "rows.json").read_text()))
    found, there, untrained = (
        np.load(folder / "map.npy"),
        np.load(folder / "map_there.npy"),
        np.load(folder / "map_untrained.npy"),
    )
    if relative(found, untrained) < 100 * OUTPUTS:
        raise RunError(f"{RUN}: training has hardly changed the backbone, so that its outputs show nothing")
    yield Row(f"{RUN}, last map of the trained backbone", found.size, relative(found, there), OUTPUTS)


def preprocessed(folder: Path) -> Iterator[Row]:
    """Yields the rows of the preprocessing, in parts of the range of a pixel."""
    with np.load(folder / "preprocessing.npz") as stored:
        arrays = dict(stored)
    for name, function in PREPROCESSING.items():
        found, wanted = function(arrays["image"]), arrays[name]
        same = found.shape == wanted.shape
        difference = float((np.abs(found - wanted) * function.deviation).max()) if same else float("inf")
        yield Row(f"preprocessing of {name}", wanted.size, difference, 1.01 / 255)


def without_values(make: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """Returns a module whose variables are 0; initial values would be computed one by one."""
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    nnx.update(module, jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), nnx.state(module)))
    return module


@functools.partial(jax.jit, static_argnums=0)
def _differentiated(graph: Any, params: Any, rest: Any, images: Any, weights: Any) -> Any:
    def total(images: Any, params: Any) -> Any:
        outputs = nnx.merge(graph, params, rest)(images)
        return (outputs * weights).sum(), outputs

    (of_images, of_params), outputs = jax.grad(total, (0, 1), has_aux=True)(images, params)
    return outputs, of_images, of_params


def _run(module: nnx.Module, images: np.ndarray, weights: np.ndarray, rectified: bool) -> Any:
    """Returns outputs, and the gradients of images and of parameters; these in float64 if the model is `rectified`.

    Rounding changes the sign of a number near 0, and where it is rectified, the gradient of many others.
    """
    if not rectified:
        return _differentiated(*nnx.split(module, nnx.Param, ...), images, weights)
    outputs = nnx.jit(lambda module, images: module(images))(module, images)
    with jax.enable_x64(True):
        graph, *states = nnx.split(module, nnx.Param, ...)
        states = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), states)
        _, *gradients = _differentiated(graph, *states, images.astype(np.float64), weights)
    return outputs, *gradients
