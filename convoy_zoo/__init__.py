"""The models and configs that ship with the engine: `convoy_zoo.models` and `convoy_zoo.configs`.

In the repository, both are symbolic links to the top-level folders `models` and `configs`. A wheel contains copies.
They have a package of their own, since a user's own folders `models` and `configs` would hide top-level packages.
"""

import os

_folder = os.path.dirname(__file__)
if not os.path.isdir(os.path.join(_folder, "models")):  # Bazel does not follow the links
    __path__ = [os.path.dirname(_folder)]
