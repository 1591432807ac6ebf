"""Simulated streets, seen by a lidar and by cameras: detection, masks from above, and the fusion of both."""
