"""Changes of the colors of an image, on floating-point numbers from 0 to 1, `[3, height, width]`, in place.

The formulas are those of `adjust_brightness`, `adjust_contrast`, `adjust_saturation` and `adjust_hue` of torchvision
(torchvision/transforms/_functional_tensor.py) on floating-point images. Results are cut off at 0 and 1 each time.
"""

import numpy as np

GRAY = (0.2989, 0.587, 0.114)  # shares of red, green and blue, of ITU-R BT.601 with torchvision's rounding


def brighten(image: np.ndarray, factor: float) -> None:
    """Multiplies all values by a factor."""
    image *= image.dtype.type(factor)
    np.clip(image, 0, 1, out=image)


def change_contrast(image: np.ndarray, factor: float) -> None:
    """Moves all values away from the mean of the gray image, or towards it for a factor below 1."""
    image -= (mean := image.dtype.type(gray(image).mean(dtype=np.float64)))
    image *= image.dtype.type(factor)
    image += mean
    np.clip(image, 0, 1, out=image)


def saturate(image: np.ndarray, factor: float) -> None:
    """Moves each pixel away from its gray value, or towards it for a factor below 1."""
    value = gray(image)
    image -= value
    image *= image.dtype.type(factor)
    image += value
    np.clip(image, 0, 1, out=image)


def shift_hue(image: np.ndarray, turns: float) -> None:
    """Adds a part of the color circle to the hue of each pixel; its saturation and value in HSV stay.

    For n = 5, 3, 1 and k = (n + 6 * hue) mod 6, red, green and blue are value - chroma * clip(min(k, 4 - k), 0, 1).
    """
    red, green, blue = image
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    divisor = np.where(chroma == 0, image.dtype.type(1), chroma)
    sector = (red - green) / divisor + 4
    np.copyto(sector, (blue - red) / divisor + 2, where=value == green)
    np.copyto(sector, (green - blue) / divisor, where=value == red)
    sector += image.dtype.type(6 * turns)  # six times the hue
    for channel, n in enumerate((5, 3, 1)):
        k = sector + n
        k -= 6 * np.floor(k / 6)
        np.minimum(k, 4 - k, out=k)
        np.clip(k, 0, 1, out=k)
        k *= chroma
        np.subtract(value, k, out=image[channel])


def gray(image: np.ndarray) -> np.ndarray:
    """Returns the gray values `[height, width]`."""
    red, green, blue = (image.dtype.type(share) for share in GRAY)
    found = image[0] * red
    found += image[1] * green
    found += image[2] * blue
    return found
