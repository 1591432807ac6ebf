"""Pedestrians seen from above (ETH/UCY): 20 futures of 4.8 s from 3.2 s, tested at a place that is not trained on.

Copy the folders all, train and val of the data to data/eth_ucy: models/pedestrians/eth_ucy.py names their source.

tools/bazel run //configs:forecast_eth_ucy          zara1, 3.6 minutes of CPU time
convoy evaluate runs/forecast_eth_ucy --step=best   zara1: minADE/minFDE 0.17/0.31 m of the best of 20
python -m benchmarks.forecasting                    all five places with three seeds, and models with one future;
                                                    an hour of CPU time

The average over places is 0.220/0.359 m, the mean of three seeds (0.217/0.354 to 0.222/0.364). The evaluated checkpoint
is the best one on the validation split.
"""

from engine.config import defaults

FOLDER = "data/eth_ucy"


def get_config(held_out="zara1", folder=FOLDER):
    c = defaults()
    c.task = dict(target="convoy_zoo.models.pedestrians.forecasting.Forecast", modes=20, width=64)
    where = dict(held_out=held_out, folder=folder)
    c.data = dict(target="convoy_zoo.models.pedestrians.eth_ucy.AugmentedRows", split="train", **where)
    c.train.total = "25 epochs"
    c.train.global_batch_size = 8
    c.train.ema_decay = 0.99
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = "1 epoch"
    c.evaluations.validation = dict(
        data=dict(target="convoy_zoo.models.pedestrians.eth_ucy.Rows", split="validation", **where), every="1 epoch"
    )
    test = dict(target="convoy_zoo.models.pedestrians.eth_ucy.Rows", split="test", **where)
    c.evaluations.test = dict(data=test, every=None)
    c.evaluations.test_social_gan = dict(data=dict(min_agents=2, **test), every=None)
    c.checkpoint.every = "5 epochs"
    c.checkpoint.best = "validation/best/min_ade"
    c.checkpoint.best_mode = "min"
    c.tiny = {"task.width": 16, "train.global_batch_size": 2}
    return c
