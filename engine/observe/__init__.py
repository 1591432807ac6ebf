"""What a run tells while it goes and when it ends: metrics, progress, speed, memory, traces, the final words."""
