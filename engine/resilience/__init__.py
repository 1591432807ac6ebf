"""What keeps a run alive, or ends it well: preemption, hangs, divergence, silent corruption, restarts."""
