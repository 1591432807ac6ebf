"""Runs models of torchvision, timm and transformers with random weights on random inputs.

Imports no engine. FOLDER/inputs.json has the names of items as "sets". For each item the program writes into
FOLDER/ITEM/: `model.safetensors`, the weights; `gradients.safetensors`, the gradients of a weighted sum of the outputs
by the same names; `arrays.npz`, the inputs, weights of the sum, outputs, and the gradient of the inputs. Gradients of
models with rectifications are computed in float64: rounding changes the sign of a number near 0, and the gradient.

The item `camera-run` is a ResNet-18 of torchvision: the program writes `model.safetensors`, `images` in `arrays.npz`,
and its last map. If FOLDER/camera-run/written has the weights of a trained backbone, it writes their last map instead.
"""

import functools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import regnet, resnet
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.transforms._presets import ImageClassification

MODELS = {
    "tiny-resnet-d": lambda: small_resnet(),
    "tiny-vit": lambda: small_vit(),
    "tiny-dinov2": lambda: small_vit(reg_tokens=3, no_embed_class=True, init_values=0.5),
    "tiny-siglip": lambda: small_vit(class_token=False, global_pool="map"),
    "tiny-convnext": lambda: ConvNeXt(depths=(1, 2, 1, 1), dims=(4, 6, 8, 10), num_classes=5, ls_init_value=0.5),
    "tiny-swin": lambda: SwinTransformer(
        img_size=(28, 60), window_size=4, embed_dim=4, depths=(2, 2), num_heads=(1, 2), num_classes=5
    ),
    "tiny-vit-transformers": lambda: small_transformers_vit(
        transformers.ViTModel, transformers.ViTConfig, pooling=False, intermediate_size=32
    ),
    "tiny-dinov2-transformers": lambda: small_transformers_vit(
        transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig, num_register_tokens=3
    ),
    "tiny-vit-torchvision": lambda: torchvision.models.VisionTransformer(16, 4, 2, 2, 8, 32, num_classes=5),
    "tiny-convnext-transformers": lambda: Pooled(
        transformers.ConvNextModel(transformers.ConvNextConfig(hidden_sizes=[4, 6, 8, 10], depths=[1, 2, 1, 1]))
    ),
    "tiny-pyramid": lambda: Pyramid(),
    "vit_b_16": lambda: torchvision.models.vit_b_16(weights=None),
    "resnet18": lambda: torchvision.models.resnet18(weights=None),
    "resnet50": lambda: torchvision.models.resnet50(weights=None),
    **{
        name: functools.partial(timm.create_model, name, pretrained=False, dynamic_img_size=True)
        for name in ("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224")
    },
    "convnext_tiny": lambda: timm.create_model("convnext_tiny", pretrained=False),
    "swin_tiny_patch4_window7_224": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, img_size=(240, 300)
    ),
    "resnet50d": lambda: timm.create_model("resnet50d", pretrained=False),
    "tiny-regnet": lambda: regnet.RegNet(
        regnet.RegNetCfg(5, 8, 6.0, 1.3, 4, se_ratio=0.25, stem_width=4), num_classes=5
    ),
    "tiny-regnet-torchvision": lambda: RegNet(
        BlockParams.from_init_params(5, 8, 6.0, 1.3, 4, se_ratio=0.25), num_classes=5, stem_width=4
    ),
    "regnetx_002": lambda: timm.create_model("regnetx_002", pretrained=False),
    "regnety_004": lambda: timm.create_model("regnety_004", pretrained=False),
    "regnet_y_400mf": lambda: torchvision.models.regnet_y_400mf(weights=None),
    "tiny-siglip-transformers": lambda: small_transformers_vit(
        transformers.SiglipVisionModel, transformers.SiglipVisionConfig, intermediate_size=32
    ),
    "tiny-convnext-torchvision": lambda: torchvision.models.ConvNeXt(
        [CNBlockConfig(*sizes) for sizes in ((4, 6, 1), (6, 8, 2), (8, 10, 1), (10, None, 1))], num_classes=5
    ),
}
"""Item -> model. A new one belongs at the end: its place is the seed of its numbers."""
RUN = "camera-run"


def small_resnet():
    """Returns a ResNet of the d-variant with two blocks in the second stage, one in the others."""
    settings = {"stem_width": 1, "stem_type": "deep", "avg_down": True, "channels": (2, 4, 8, 16)}
    return resnet.ResNet(resnet.Bottleneck, (1, 2, 1, 1), num_classes=5, **settings)


class Pooled(torch.nn.Module):
    """A model of transformers, whose result is the class token, or what the model pools."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        """Returns `[batch, width]`."""
        found = self.model(images)
        if isinstance(self.model, transformers.ConvNextModel | transformers.SiglipVisionModel):
            return found.pooler_output
        return found.last_hidden_state[:, 0]


class Pyramid(torch.nn.Module):
    """A feature pyramid on every fourth, eighth and sixteenth pixel."""

    def __init__(self):
        super().__init__()
        self.model = torchvision.ops.FeaturePyramidNetwork([3, 3, 3], 6)

    def forward(self, images):
        """Returns all features of an image in one row, from the finest map on, with the features last in each."""
        maps = {str(stride): images[:, :, ::stride, ::stride] for stride in (4, 8, 16)}
        return torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in self.model(maps).values()], 1)


def small_transformers_vit(model, config, pooling=None, **settings):
    """Returns a vision transformer of transformers whose positions belong to images of 16 x 16 pixels."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    return Pooled(model(config(**sizes, **settings), **({} if pooling is None else {"add_pooling_layer": pooling})))


def write(model, path):
    """Writes the weights of a model with the names that its program gives them in files."""
    model = getattr(model, "model", model)
    if isinstance(model, transformers.PreTrainedModel):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            shutil.copyfile(Path(folder) / "model.safetensors", path)
    else:
        save_file({name: x.contiguous() for name, x in model.state_dict().items()}, path)


def small_vit(**settings):
    """Returns a vision transformer whose positions belong to images of 16 x 16 pixels."""
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**sizes, dynamic_img_size=True, **settings)


def size_of(item, model):
    """Returns the rows and columns of the images: odd ones, and for a vision transformer not those of its positions.

    Those of a Swin transformer give maps of odd sizes; one is as high as a window.
    """
    if any(name in item for name in ("vit-t", "dinov2-t", "siglip-t")):
        return 16, 16
    if item == "vit_b_16":
        return 224, 224
    if "swin" in item:
        return model.patch_embed.img_size
    if patch := getattr(getattr(model, "patch_embed", None), "patch_size", None):
        return 5 * patch[0], 6 * patch[1]
    return {
        "tiny-resnet-d": (23, 30),
        "tiny-regnet": (27, 34),
        "tiny-regnet-torchvision": (27, 34),
        "tiny-convnext": (37, 42),
        "tiny-convnext-transformers": (37, 42),
        "tiny-convnext-torchvision": (37, 42),
        "tiny-pyramid": (53, 70),
    }.get(item, (97, 130))


def randomize(model):
    """Gives statistics and scales of normalisations values other than 0 and 1."""
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
        if x.dim() == 1 and x.is_floating_point():
            low, high = (0.5, 1.5) if name.endswith(("weight", "running_var", "gamma")) else (-0.2, 0.2)
            torch.nn.init.uniform_(x, low, high)
        elif name.endswith(("pos_embed", "_token", "latent", "bias_table", "heads.head.weight", "layer_scale")):
            torch.nn.init.normal_(x)


def run(item, folder, seed):
    """Writes the files of one item."""
    torch.manual_seed(seed)
    model = MODELS[item]().eval()
    with torch.no_grad():
        randomize(model)
    images = torch.randn(2, 3, *size_of(item, model))
    with torch.no_grad():
        outputs = model(images)
    weights = torch.randn_like(outputs)
    folder.mkdir()
    write(model, folder / "model.safetensors")
    dtype = torch.float64 if "resnet" in item or "regnet" in item else torch.float32
    inputs = images.to(dtype, copy=True).requires_grad_()
    (model.to(dtype)(inputs) * weights).sum().backward()
    model.float()
    with torch.no_grad():
        for _, x in model.named_parameters():
            x.copy_(torch.zeros_like(x) if x.grad is None else x.grad)
    write(model, folder / "gradients.safetensors")
    arrays = {
        "images": images.permute(0, 2, 3, 1),
        "weights": weights,
        "outputs": outputs,
        "gradient": inputs.grad.float().permute(0, 2, 3, 1),
    }
    np.savez(folder / "arrays.npz", **{name: x.numpy() for name, x in arrays.items()})


def last_map(model, images):
    """Returns the last map of a ResNet, with the features last."""
    head = torch.nn.Sequential(*list(model.children())[:-2])  # without the mean over the map and the classifier
    with torch.no_grad():
        return head.eval()(images).permute(0, 2, 3, 1).numpy()


def write_backbone(folder):
    """Writes a ResNet-18 with random weights, images, and its last map."""
    torch.manual_seed(0)
    folder.mkdir()
    model = torchvision.models.resnet18(weights=None)
    write(model, folder / "model.safetensors")
    images = torch.randn(2, 3, 48, 128)
    np.savez(folder / "arrays.npz", images=images.permute(0, 2, 3, 1).numpy())
    np.save(folder / "map_untrained.npy", last_map(model, images))


def run_written(folder):
    """Writes the last map of a trained ResNet-18; its file must have all parameters but those of the classifier."""
    model = torchvision.models.resnet18(weights=None)
    found = model.load_state_dict(load_file(folder / "written" / "model.safetensors"), strict=False)
    missing = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
    if missing != ["fc.weight", "fc.bias"] or found.unexpected_keys:
        raise SystemExit(f"{folder.name}: torchvision finds {found}")
    images = torch.from_numpy(np.load(folder / "arrays.npz")["images"]).permute(0, 3, 1, 2)
    np.save(folder / "map_there.npy", last_map(model, images))


def preprocess(path):
    """Writes a random image, and what the programs make of it for a backbone, `[32, 32, 3]`."""
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    image = Image.fromarray(image).resize((83, 61), Image.Resampling.BICUBIC)
    mean, deviation = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    settings = {"input_size": (3, 32, 32), "interpolation": "bicubic", "mean": mean, "std": deviation}
    processors = {
        "vit": transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
        "dinov2": transformers.BitImageProcessor(
            size={"shortest_edge": 40}, crop_size=32, resample=3, image_mean=mean, image_std=deviation
        ),
    }
    found = {
        "timm": timm.data.create_transform(**settings, crop_pct=0.875)(image),
        "torchvision": ImageClassification(crop_size=32, resize_size=40)(image),
        **{name: processor(image, return_tensors="pt").pixel_values[0] for name, processor in processors.items()},
    }
    np.savez(path, image=np.asarray(image), **{name: x.permute(1, 2, 0).numpy() for name, x in found.items()})


def main(folder):
    """Runs the items of a folder, and prepares an image."""
    preprocess(folder / "preprocessing.npz")
    items = json.loads((folder / "inputs.json").read_text())["sets"]
    for item in items:
        if item == RUN:
            (run_written if (folder / item / "written").is_dir() else write_backbone)(folder / item)
        elif not (folder / item).is_dir():
            run(item, folder / item, list(MODELS).index(item))
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, timm, transformers)}
    (folder / "results.json").write_text(json.dumps(versions) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    main(Path(sys.argv[1]))
