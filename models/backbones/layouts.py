"""Tables of names: how timm, transformers and torchvision call the arrays of backbones."""

from collections.abc import Mapping, Sequence
from typing import Literal

from engine import TaskError, hub

type Layout = Literal["timm", "transformers", "torchvision"]

_TIMM_VIT = {
    "embed": "patch_embed.proj",
    "positions": "pos_embed",
    "class_token": "cls_token",
    "registers": "reg_token",
    "stack/layers/attention/query": "blocks.{layer}.attn.qkv[0 of 3]",
    "stack/layers/attention/key": "blocks.{layer}.attn.qkv[1 of 3]",
    "stack/layers/attention/value": "blocks.{layer}.attn.qkv[2 of 3]",
    "stack/layers/attention/out": "blocks.{layer}.attn.proj",
    "stack/layers/feed_forward/up": "blocks.{layer}.mlp.fc1",
    "stack/layers/feed_forward/down": "blocks.{layer}.mlp.fc2",
    r"stack/layers/scale(\d)": r"blocks.{layer}.ls\1.gamma",
    r"stack/layers/(norm\d)": r"blocks.{layer}.\1",
    "pool/latent": "attn_pool.latent",
    "pool/attention/query": "attn_pool.q",
    "pool/attention/key": "attn_pool.kv[0 of 2]",
    "pool/attention/value": "attn_pool.kv[1 of 2]",
    "pool/attention/out": "attn_pool.proj",
    "pool/norm": "attn_pool.norm",
    "pool/feed_forward/up": "attn_pool.mlp.fc1",
    "pool/feed_forward/down": "attn_pool.mlp.fc2",
}
_TRANSFORMERS = {
    "embed": "embeddings.patch_embeddings.projection",
    "positions": "embeddings.position_embeddings",
    "class_token": "embeddings.cls_token",
    "registers": "embeddings.register_tokens",
    r"stack/layers/attention/(query|key|value)": r"encoder.layer.{layer}.attention.attention.\1",
    "stack/layers/attention/out": "encoder.layer.{layer}.attention.output.dense",
    "norm": "layernorm",
}
_TRANSFORMERS_VIT = _TRANSFORMERS | {
    "stack/layers/feed_forward/up": "encoder.layer.{layer}.intermediate.dense",
    "stack/layers/feed_forward/down": "encoder.layer.{layer}.output.dense",
    "stack/layers/norm1": "encoder.layer.{layer}.layernorm_before",
    "stack/layers/norm2": "encoder.layer.{layer}.layernorm_after",
}
_TRANSFORMERS_DINOV2 = _TRANSFORMERS | {
    "stack/layers/feed_forward/up": "encoder.layer.{layer}.mlp.fc1",
    "stack/layers/feed_forward/down": "encoder.layer.{layer}.mlp.fc2",
    r"stack/layers/scale(\d)": r"encoder.layer.{layer}.layer_scale\1.lambda1",
    r"stack/layers/(norm\d)": r"encoder.layer.{layer}.\1",
}
_SIGLIP_LAYER = "encoder.layers.{layer}"
_TRANSFORMERS_SIGLIP = {
    "embed": "embeddings.patch_embedding",
    "positions": "embeddings.position_embedding.weight: ab->1ab",
    "stack/layers/attention/query": f"{_SIGLIP_LAYER}.self_attn.q_proj",
    "stack/layers/attention/key": f"{_SIGLIP_LAYER}.self_attn.k_proj",
    "stack/layers/attention/value": f"{_SIGLIP_LAYER}.self_attn.v_proj",
    "stack/layers/attention/out": f"{_SIGLIP_LAYER}.self_attn.out_proj",
    "stack/layers/feed_forward/up": f"{_SIGLIP_LAYER}.mlp.fc1",
    "stack/layers/feed_forward/down": f"{_SIGLIP_LAYER}.mlp.fc2",
    r"stack/layers/norm(\d)": rf"{_SIGLIP_LAYER}.layer_norm\1",
    "norm": "post_layernorm",
    "pool/latent": "head.probe",
    "pool/attention/query/kernel": "head.attention.in_proj_weight[0 of 3]",
    "pool/attention/key/kernel": "head.attention.in_proj_weight[1 of 3]",
    "pool/attention/value/kernel": "head.attention.in_proj_weight[2 of 3]",
    "pool/attention/query/bias": "head.attention.in_proj_bias[0 of 3]",
    "pool/attention/key/bias": "head.attention.in_proj_bias[1 of 3]",
    "pool/attention/value/bias": "head.attention.in_proj_bias[2 of 3]",
    "pool/attention/out": "head.attention.out_proj",
    "pool/norm": "head.layernorm",
    "pool/feed_forward/up": "head.mlp.fc1",
    "pool/feed_forward/down": "head.mlp.fc2",
}
_LAYER = "encoder.layers.encoder_layer_{layer}"
_TORCHVISION_VIT = {
    "embed": "conv_proj",
    "positions": "encoder.pos_embedding",
    "stack/layers/attention/query/kernel": f"{_LAYER}.self_attention.in_proj_weight[0 of 3]",
    "stack/layers/attention/key/kernel": f"{_LAYER}.self_attention.in_proj_weight[1 of 3]",
    "stack/layers/attention/value/kernel": f"{_LAYER}.self_attention.in_proj_weight[2 of 3]",
    "stack/layers/attention/query/bias": f"{_LAYER}.self_attention.in_proj_bias[0 of 3]",
    "stack/layers/attention/key/bias": f"{_LAYER}.self_attention.in_proj_bias[1 of 3]",
    "stack/layers/attention/value/bias": f"{_LAYER}.self_attention.in_proj_bias[2 of 3]",
    "stack/layers/attention/out": f"{_LAYER}.self_attention.out_proj",
    "stack/layers/feed_forward/up": f"{_LAYER}.mlp.0",
    "stack/layers/feed_forward/down": f"{_LAYER}.mlp.3",
    r"stack/layers/norm(\d)": rf"{_LAYER}.ln_\1",
    "norm": "encoder.ln",
    "head": "heads.head",
}
_TIMM_CONVNEXT = {
    "stem_conv": "stem.0",
    "stem_norm": "stem.1",
    r"stages/(\d)/norm": r"stages.\1.downsample.0",
    r"stages/(\d)/conv": r"stages.\1.downsample.1",
    r"stages/(\d/blocks/\d+)/conv": r"stages.\1.conv_dw",
    r"stages/(\d/blocks/\d+)/up": r"stages.\1.mlp.fc1",
    r"stages/(\d/blocks/\d+)/down": r"stages.\1.mlp.fc2",
    "head_norm": "head.norm",
    "fc": "head.fc",
}
_TRANSFORMERS_CONVNEXT = {
    "stem_conv": "embeddings.patch_embeddings",
    "stem_norm": "embeddings.layernorm",
    r"stages/(\d)/norm": r"encoder.stages.\1.downsampling_layer.0",
    r"stages/(\d)/conv": r"encoder.stages.\1.downsampling_layer.1",
    r"stages/(\d)/blocks/(\d+)/conv": r"encoder.stages.\1.layers.\2.dwconv",
    r"stages/(\d)/blocks/(\d+)/norm": r"encoder.stages.\1.layers.\2.layernorm",
    r"stages/(\d)/blocks/(\d+)/up": r"encoder.stages.\1.layers.\2.pwconv1",
    r"stages/(\d)/blocks/(\d+)/down": r"encoder.stages.\1.layers.\2.pwconv2",
    r"stages/(\d)/blocks/(\d+)/gamma": r"encoder.stages.\1.layers.\2.layer_scale_parameter",
    "head_norm": "layernorm",
}
_TORCHVISION_CONVNEXT = {
    "stem_conv": "features.0.0",
    "stem_norm": "features.0.1",
    "head_norm": "classifier.0",
    "fc": "classifier.2",
}
for _stage in range(4):  # torchvision counts the convolutions between stages as stages, too
    _blocks, _there = rf"stages/{_stage}/blocks/(\d+)", rf"features.{2 * _stage + 1}.\1"
    _TORCHVISION_CONVNEXT |= {
        f"stages/{_stage}/norm": f"features.{2 * _stage}.0",
        f"stages/{_stage}/conv": f"features.{2 * _stage}.1",
        f"{_blocks}/conv": f"{_there}.block.0",
        f"{_blocks}/norm": f"{_there}.block.2",
        f"{_blocks}/up": f"{_there}.block.3",
        f"{_blocks}/down": f"{_there}.block.5",
        f"{_blocks}/gamma": f"{_there}.layer_scale: a11->a",
    }
_TORCHVISION_REGNET = {
    "conv1/conv": "f.a.0",
    "conv1/bn": "f.a.1",
    "conv2/conv": "f.b.0",
    "conv2/bn": "f.b.1",
    "conv3/conv": "f.c.0",
    "conv3/bn": "f.c.1",
    r"se/(fc\d)": r"f.se.\1",
    "downsample/conv": "proj.0",
    "downsample/bn": "proj.1",
}
"""Names within a block; those of timm are the paths."""


def vit_names(layout: Layout, *, layer_scale: bool, query_pool: bool) -> hub.Names:
    """Returns the names of a vision transformer.

    In transformers, a model with `layer_scale` is DINOv2, and its classifier, which has no name here, stays random.

    Raises:
        TaskError: there is no table for this layout.
    """
    tables: dict[str, Mapping[str, str]] = {"timm": _TIMM_VIT}
    prefixes = ("", "vit.", "dinov2.", "dinov2_with_registers.")
    if query_pool:
        tables["transformers"], prefixes = _TRANSFORMERS_SIGLIP, ("", "vision_model.")
    else:
        tables["transformers"] = _TRANSFORMERS_DINOV2 if layer_scale else _TRANSFORMERS_VIT
        if not layer_scale:
            tables["torchvision"] = _TORCHVISION_VIT
    return _names("VisionTransformer", tables, layout, "head", prefixes)


def convnext_names(layout: Layout) -> hub.Names:
    """Returns the names of a ConvNeXt. Raises TaskError if there is no table for this layout."""
    tables = {"timm": _TIMM_CONVNEXT, "transformers": _TRANSFORMERS_CONVNEXT, "torchvision": _TORCHVISION_CONVNEXT}
    return _names("ConvNeXt", tables, layout, "fc", ("", "convnext."))


def regnet_names(layout: Layout, depths: Sequence[int]) -> hub.Names:
    """Returns the names of a RegNet. Raises TaskError if there is no table for this layout.

    Each block has its entries: timm counts stages and blocks from 1, torchvision stages from 1 and blocks from 0.
    """
    timm, torchvision = {"fc": "head.fc"}, {"stem/conv": "stem.0", "stem/bn": "stem.1"}
    for stage, depth in enumerate(depths):
        for block in range(depth):
            here = f"stages/{stage}/blocks/{block}"
            there = f"trunk_output.block{stage + 1}.block{stage + 1}-{block}"
            timm[f"{here}/(.+)"] = rf"s{stage + 1}.b{block + 1}.\1"
            torchvision |= {f"{here}/{path}": f"{there}.{name}" for path, name in _TORCHVISION_REGNET.items()}
    return _names("RegNet", {"timm": timm, "torchvision": torchvision}, layout, "fc", ("",))


def _names(
    family: str, tables: Mapping[str, Mapping[str, str]], layout: str, head: str, prefixes: tuple[str, ...]
) -> hub.Names:
    if layout not in tables:
        raise TaskError(f"{family}: found layout = {layout!r}. Allowed for this variant: {', '.join(tables)}.")
    return hub.Names(tables[layout], heads=(head,), prefixes=prefixes if layout == "transformers" else ("",))
