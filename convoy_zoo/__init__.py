"""The models and configs that ship with the engine: `convoy_zoo.models` and `convoy_zoo.configs`.

In the repository these are the top-level packages `models` and `configs`. The wheel installs them inside this package,
because a user's own folders `models` and `configs` would hide top-level packages of the same names.
"""

import os

_folder = os.path.dirname(__file__)
__path__ = [_folder if os.path.isdir(os.path.join(_folder, "models")) else os.path.dirname(_folder)]
