"""Several datasets with different labels in one training run, in one step or in turn.

The core does not import it. `Joint` is the source, `JointTask` passes its batches to the Task of the author, and
`UncertaintyWeights` learns the weights of the losses.
"""
