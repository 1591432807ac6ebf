"""The hardware table: peak FLOP/s, memory, bandwidth and links of devices as published, and named mesh shapes.

A row is one JAX device: a TPU v3 or v7 chip has two devices, so their rows describe half a chip. Peaks are dense,
without structured sparsity; NVIDIA's data sheets print both rates, or only the sparse one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.base.errors import ConfigError, did_you_mean

TERA = 10**12
GB = 10**9
GIB = 2**30


@dataclass(frozen=True)
class Links:
    """Bytes/s that a device sends, in one direction."""

    within: float  # a host of GPUs or a slice of TPUs, over all links of the device
    between: float  # hosts or slices, in its share of the network


@dataclass(frozen=True)
class Hardware:
    """Peak rates and memory of one device."""

    name: str
    bf16: float  # FLOP/s of matrix products in bfloat16
    f32: float  # FLOP/s of matrix products of float32 arrays, at JAX's default precision
    hbm_bytes: int  # memory of the device
    hbm_bandwidth: float  # bytes/s
    links: "Links"
    mesh: str = "replicated"  # the default mesh, a name in MESH_PRESETS

    def peak(self, precision: str) -> float:
        """Returns the peak FLOP/s of matrix products for a `train.precision`."""
        if precision in QUANTIZED:
            return EIGHT_BITS.get(self.name, {}).get(precision, self.bf16)
        return self.bf16 if precision == "bfloat16" else self.f32


# float32 on NVIDIA: JAX's default precision lets XLA use TF32, so the row holds the dense TF32 rate of the data sheet.
# float32 on TPU: the default precision is one pass in bfloat16, so the rate is that of bfloat16.
# The default mesh. NVLink inside a host of eight GPUs is about ten times as fast as the network between hosts, so
# parameters are split within a host and only gradients cross hosts. The chips of a TPU slice share one fast network, so
# parameters are split over the slice and only gradients cross slices. GPUs on PCIe hold whole copies: gathering
# parameters twice per step costs more time than splitting saves.
_HOST, _SLICE = "hybrid-8", "slices"
# Links of GPUs: half of the bidirectional rate of NVLink in the data sheets, or PCIe; and the InfiniBand of the DGX
# system (A100: 200 Gb/s for each GPU; H100, H200 and B200: 400 Gb/s). L4: PCIe, and an eighth of the 100 Gb/s of a
# g2-standard-96. TPUs: half of the bidirectional ICI bandwidth of a chip and its share of the data center network, in
# the specifications of Cloud TPU (v5e: 1,600 Gb/s and 25 Gb/s). v3: 4 links of 656 Gb/s for the two cores of a chip.
_HOPPER, _AMPERE, _PCIE = Links(450e9, 50e9), Links(300e9, 25e9), Links(32e9, 25e9)
_TPU3, _TPU4, _TPU5E = Links(164e9, 1.5e9), Links(300e9, 6.25e9), Links(200e9, 3.125e9)
_TPU5P, _TPU6E, _TPU7 = Links(600e9, 6.25e9), Links(400e9, 12.5e9), Links(300e9, 6.25e9)
_H100 = Hardware(
    "H100 SXM", 989.4 * TERA, 494.7 * TERA, 80 * GB, 3.35e12, _HOPPER, _HOST
)  # H100 data sheet, SXM column
_H200 = Hardware("H200", 989.4 * TERA, 494.7 * TERA, 141 * GB, 4.8e12, _HOPPER, _HOST)  # H200 data sheet, SXM column
_A100_80 = Hardware(
    "A100 80GB SXM", 312 * TERA, 156 * TERA, 80 * GB, 2.039e12, _AMPERE, _HOST
)  # A100 data sheet (2022)
_A100_40 = Hardware(
    "A100 40GB SXM", 312 * TERA, 156 * TERA, 40 * GB, 1.555e12, _AMPERE, _HOST
)  # A100 data sheet (2020)
_A100_PCIE = Hardware("A100 80GB PCIe", 312 * TERA, 156 * TERA, 80 * GB, 1.935e12, _PCIE)  # A100 data sheet (2022)
_B200 = Hardware(
    "B200", 2250 * TERA, 1125 * TERA, 180 * GB, 8.0e12, Links(900e9, 50e9), _HOST
)  # DGX B200 data sheet, an eighth
_L4 = Hardware(
    "L4", 121 * TERA, 60 * TERA, 24 * GB, 300e9, Links(32e9, 1.5e9)
)  # L4 data sheet, half of the sparse rates
_V3 = Hardware("TPU v3 core", 61.5 * TERA, 61.5 * TERA, 16 * GIB, 450e9, _TPU3, _SLICE)  # Cloud TPU v3 specs
_V4 = Hardware("TPU v4", 275 * TERA, 275 * TERA, 32 * GIB, 1.2e12, _TPU4, _SLICE)  # Cloud TPU v4 specification
_V5E = Hardware("TPU v5e", 197 * TERA, 197 * TERA, 16 * GB, 819e9, _TPU5E, _SLICE)  # Cloud TPU v5e specification
_V5P = Hardware("TPU v5p", 459 * TERA, 459 * TERA, 95 * GB, 2.765e12, _TPU5P, _SLICE)  # Cloud TPU v5p specification
_V6E = Hardware("TPU v6e", 918 * TERA, 918 * TERA, 32 * GB, 1.64e12, _TPU6E, _SLICE)  # Cloud TPU v6e specification
_V7 = Hardware("TPU v7 chiplet", 1153.5 * TERA, 1153.5 * TERA, 96 * GIB, 3.69e12, _TPU7, _SLICE)  # TPU7x (Ironwood)

DEVICES: Mapping[str, Hardware] = {
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H200": _H200,
    "NVIDIA A100-SXM4-80GB": _A100_80,
    "NVIDIA A100-SXM4-40GB": _A100_40,
    "NVIDIA A100 80GB PCIe": _A100_PCIE,
    "NVIDIA B200": _B200,
    "NVIDIA L4": _L4,
    "TPU v3": _V3,
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _V7,
}

QUANTIZED = ("float8", "int8")
"""The values of `train.precision` with matrix products in eight bits."""

EIGHT_BITS: Mapping[str, Mapping[str, float]] = {
    _H100.name: {"float8": 1978.9 * TERA, "int8": 1978.9 * TERA},  # data sheet, half of the sparse rates
    _H200.name: {"float8": 1978.9 * TERA, "int8": 1978.9 * TERA},  # data sheet, half of the sparse rates
    _B200.name: {"float8": 4500 * TERA, "int8": 4500 * TERA},  # HGX B200 data sheet, half of the sparse rates
    _L4.name: {"float8": 242.5 * TERA, "int8": 242.5 * TERA},  # data sheet, half of the sparse rates
    _A100_80.name: {"int8": 624 * TERA},  # A100 data sheet, also of the next two
    _A100_40.name: {"int8": 624 * TERA},
    _A100_PCIE.name: {"int8": 624 * TERA},
    _V5E.name: {"int8": 393 * TERA},  # Cloud TPU v5e specification
    _V5P.name: {"int8": 918 * TERA},  # jax/_src/pallas/mosaic/tpu_info.py; not in the specification
    _V6E.name: {"int8": 1836 * TERA},  # Cloud TPU v6e specification
    _V7.name: {"float8": 2307 * TERA},  # Cloud TPU7x specification, half a chip
}
"""Name of a device -> FLOP/s in eight bits, where the vendor states more than for bfloat16."""

AXES = ("pipeline", "data", "fsdp", "expert", "context", "tensor")
"""The axes of a mesh; those that may use the slowest network come first."""

# Axes that a preset does not name keep their default. "dcn.data" is the size of `data` between slices.
MESH_PRESETS: Mapping[str, Mapping[str, int]] = {
    "replicated": {"data": -1},  # a whole copy of the model on every device
    "fsdp": {"data": 1, "fsdp": -1},  # parameters split over all devices
    "hybrid-8": {"data": -1, "fsdp": 8},  # split within a host of eight, one copy per host
    "tensor-8": {"data": 1, "fsdp": -1, "tensor": 8},  # layers split within a host of eight, parameters across hosts
    "slices": {"data": 1, "fsdp": -1, "dcn.data": -1},  # split over a slice, one copy per slice
}


def find(device_kind: str) -> Hardware | None:
    """Returns the row of a `jax.Device.device_kind`; None for CPUs and for unknown devices."""
    return DEVICES.get(device_kind)


def peak_flops(device_kind: str, precision: str, count: int) -> float | None:
    """Returns the peak FLOP/s of `count` devices at a precision; None for unknown devices."""
    found = find(device_kind)
    return None if found is None else found.peak(precision) * count


def check_precision(device_kind: str, precision: str) -> None:
    """Raises ConfigError if a device of the table computes no faster at a precision in eight bits than in bfloat16."""
    found = find(device_kind)
    if found is None or precision not in QUANTIZED or precision in EIGHT_BITS.get(found.name, {}):
        return
    other = next((other for other in EIGHT_BITS.get(found.name, {})), "")
    raise ConfigError(
        f"train.precision = {precision}: {found.name} has no products in {precision} that are faster than in bfloat16. "
        f"Use {f'{other} or ' if other else ''}bfloat16."
    )


def mesh_preset(name: str) -> Mapping[str, int]:
    """Returns axis -> size of a named mesh; -1 takes all remaining devices, "dcn.data" is between slices.

    Raises:
        ConfigError: there is no preset of this name.
    """
    if name not in MESH_PRESETS:
        near = did_you_mean(name, MESH_PRESETS)
        raise ConfigError(f"mesh.preset: found {name!r}. Allowed: auto, {', '.join(MESH_PRESETS)}.{near}")
    return MESH_PRESETS[name]
