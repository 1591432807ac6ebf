"""Bundles: a trained model as programs, weights, a manifest and samples in a folder, which runs without the engine.

Names are imported on first use. `_MODULES` repeats the imports below, which only type checkers execute; a test
compares the two.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.bundles.bundle import Bundle
    from engine.bundles.export import export_bundle
    from engine.bundles.manifest import BundleError
    from engine.bundles.options import Options
    from engine.bundles.signing import verify

__all__ = ["Bundle", "BundleError", "Options", "export_bundle", "verify"]

_MODULES = {
    "engine.bundles.bundle": ("Bundle",),
    "engine.bundles.export": ("export_bundle",),
    "engine.bundles.manifest": ("BundleError",),
    "engine.bundles.options": ("Options",),
    "engine.bundles.signing": ("verify",),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
