"""The frames of KITTI: boxes of the lidar, boxes of the camera as in its label files, and boxes of the image.

A box of the lidar is x, y, z of the centre, length, width, height and heading about z, which points up. A box of the
camera is x, y, z of the center of the bottom, height, width, length and the angle about y, which points down.
Each function takes arrays of numpy or of JAX, and `xp` computes with them.
"""

import jax.numpy as jnp


def camera_boxes(boxes, to_camera, xp=jnp):
    """Returns boxes of the lidar `[..., boxes, 7 or more]` as boxes of the camera `[..., boxes, 7]`.

    Args:
        boxes: boxes of the lidar.
        to_camera: from the frame of the lidar to that of the camera, `[..., 3, 4]`: `R0_rect @ Tr_velo_to_cam`.
        xp: the module of arrays.
    """
    turn, move = to_camera[..., None, :, :3], to_camera[..., None, :, 3]
    heading = boxes[..., 6]
    low = xp.concatenate([boxes[..., :2], boxes[..., 2:3] - boxes[..., 5:6] / 2], -1)
    place = (turn @ low[..., None])[..., 0] + move
    ahead = (turn @ xp.stack([xp.cos(heading), xp.sin(heading), xp.zeros_like(heading)], -1)[..., None])[..., 0]
    yaw = xp.arctan2(-ahead[..., 2], ahead[..., 0])
    return xp.concatenate([place, boxes[..., 5:6], boxes[..., 4:5], boxes[..., 3:4], yaw[..., None]], -1)


def lidar_boxes(boxes, to_camera, xp=jnp):
    """Returns boxes of the camera `[..., boxes, 7]` as boxes of the lidar: the inverse of `camera_boxes`."""
    turn, move = to_camera[..., None, :, :3], to_camera[..., None, :, 3]
    back, yaw = xp.swapaxes(turn, -1, -2), boxes[..., 6]
    low = (back @ (boxes[..., :3] - move)[..., None])[..., 0]
    ahead = (back @ xp.stack([xp.cos(yaw), xp.zeros_like(yaw), -xp.sin(yaw)], -1)[..., None])[..., 0]
    heading = xp.arctan2(ahead[..., 1], ahead[..., 0])
    centre = xp.concatenate([low[..., :2], low[..., 2:3] + boxes[..., 3:4] / 2], -1)
    return xp.concatenate([centre, boxes[..., 5:6], boxes[..., 4:5], boxes[..., 3:4], heading[..., None]], -1)


def image_boxes(boxes, projection, xp=jnp):
    """Returns the boxes (x0, y0, x1, y1) around the corners of boxes of the camera, in pixels, `[..., boxes, 4]`.

    Corners behind the camera count as 0.1 m ahead of it. The boxes may reach out of the image.

    Args:
        boxes: boxes of the camera, `[..., boxes, 7]`.
        projection: the matrix `P2`, `[..., 3, 4]`.
        xp: the module of arrays.
    """
    along = xp.asarray([1, 1, 1, 1, -1, -1, -1, -1]) * boxes[..., 5:6] / 2
    across = xp.asarray([1, 1, -1, -1, 1, 1, -1, -1]) * boxes[..., 4:5] / 2
    up = xp.asarray([0, 1, 0, 1, 0, 1, 0, 1]) * boxes[..., 3:4]
    cos, sin = xp.cos(boxes[..., 6:7]), xp.sin(boxes[..., 6:7])
    x, y = boxes[..., 0:1] + cos * along + sin * across, boxes[..., 1:2] - up
    z = xp.maximum(boxes[..., 2:3] - sin * along + cos * across, 0.1)
    places = xp.stack([x, y, z, xp.ones_like(x)], -1)  # [..., boxes, corners, 4]
    found = (projection[..., None, None, :, :] @ places[..., None])[..., 0]
    pixels = found[..., :2] / xp.maximum(found[..., 2:], 0.1)
    return xp.concatenate([pixels.min(-2), pixels.max(-2)], -1)


def clipped(boxes, size, xp=jnp):
    """Returns boxes of the image `[..., boxes, 4]` inside of images of size (height, width), `[..., 2]`."""
    most = (size[..., None, :] - 1)[..., [1, 0, 1, 0]]
    return xp.clip(boxes, 0, most)
