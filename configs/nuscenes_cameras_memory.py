"""The detection of `configs/nuscenes_cameras.py` with a memory, on windows of two samples of a drive.

convoy train --config=configs.nuscenes_cameras_memory --workdir=runs/nuscenes_cameras_memory
"""

from convoy_zoo.configs import nuscenes_cameras


def get_config():
    c = nuscenes_cameras.get_config()
    c.task.update(memory=16, rows=2)
    c.train.global_batch_size = 2
    for data, length in ((c.data, 2), (c.evaluations.train.data, 1), (c.evaluations.val.data, 1)):
        data.update(target="convoy_zoo.models.street.nuscenes_cameras.drives", length=length)
    return c
