"""Ray: training in actors on several nodes, pools of workers for data, and jobs."""
