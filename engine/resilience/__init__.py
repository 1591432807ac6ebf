"""What keeps a run alive, or ends it well: preemption so far."""
